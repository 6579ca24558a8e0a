"use strict";
// The network as a map, and the chosen part's operations.

async function showMap(state) {
  const network = await ask("network", runOf(state, {changes: ""}));
  const map = byId("map"), most = Math.max(...network.parts.map(part => part.shape[1] || 1), 1);
  const total = network.parts.reduce((sum, part) => sum + part.shape[0], 0), wide = Math.min(0.3, 1000 / total);
  const chosen = state.layer ? network.parts.findIndex(part => part.operations.some(each => each.name === state.layer)) : -1;
  if (map.dataset.of !== `${state.model} ${network.parts.length} ${network.input}`) {
    map.dataset.of = `${state.model} ${network.parts.length} ${network.input}`;
    map.replaceChildren(...network.parts.map((part, number) => mapItem(part, number, network, wide, most)));
  }
  map.querySelectorAll("button").forEach((button, number) => {
    button.setAttribute("aria-current", String(number === chosen));
    button.tabIndex = number === Math.max(chosen, 0) ? 0 : -1;
  });
  byId("part-note").textContent = chosen < 0 ? "" : described(network.parts[chosen]);
  byId("operations").replaceChildren(...(chosen < 0 ? [] : network.parts[chosen].operations).map(each => element("li", {},
    element("button", {type: "button", "aria-pressed": String(each.name === state.layer), "data-name": each.name,
      onclick: () => go({layer: each.name, channel: null, y: null, x: null})},
      each.name.split(".").pop(), element("small", {}, `${kindName(each.kind)}, ${each.shape.join(" × ")}`)))));
  return network;
}

function described(part) {
  const stage = part.stage === null ? "" : `, stage ${part.stage}`;
  return `${part.title}${stage}: gives ${part.shape.join(" × ")}; ${counted(part.parameters)} parameters, ` +
    `${counted(part.mult_adds)} multiply-adds.`;
}

function mapItem(part, number, network, wide, most) {
  const button = element("button", {type: "button", "aria-label": described(part), title: described(part),
    onclick: () => go({layer: part.operations[part.operations.length - (number === network.parts.length - 1 ? 2 : 1)].name,
      channel: null, y: null, x: null})});
  button.style.width = `${Math.max(24, wide * part.shape[0])}px`;
  button.style.height = `${14 + 130 * (part.shape[1] || 1) / most}px`;
  const short = number === 0 ? "stem" : number === network.parts.length - 1 ? "head" : String(number - 1);
  return element("li", {}, button, element("span", {"aria-hidden": "true"}, short));
}

function mapKeys(event) {
  const buttons = [...byId("map").querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1}[event.key];
  if (at < 0 || to === undefined || !buttons[to]) return;
  event.preventDefault();
  buttons.forEach((button, index) => { button.tabIndex = index === to ? 0 : -1; });
  buttons[to].focus();
}
