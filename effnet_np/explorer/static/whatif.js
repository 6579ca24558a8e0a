"use strict";
// What if: changes to the network and to the picture, written into the address; the answer before and after.

const sliding = {busy: false, next: null};

const changesOf = state => (state.changes || "").split(";").filter(Boolean);
const keyOf = change => change.split(":").slice(0, change.startsWith("blur") || change.startsWith("grey") ? 1 : 3).join(":");

// The changes with one more, in place of what was changed there before; value null takes it away.
function withChange(state, key, change) {
  const others = changesOf(state).filter(each => keyOf(each) !== key);
  return [...others, ...(change === null ? [] : [change])].join(";");
}

function changeText(change) {
  const [kind, name, channel, value] = change.split(":");
  if (kind === "blur") return `the picture blurred by ${name} pixels`;
  if (kind === "grey") return `the picture ${Math.round(100 * name)}% grey`;
  if (kind === "silence") return `${shortName(name)}: channel ${channel} silenced`;
  return `${shortName(name)}: channel ${channel}'s ${kind === "gate" ? `gate is ${value}` : `bias times ${value}`}`;
}

async function showWhatIf(state, answer) {
  const network = await ask("network", runOf(state, {changes: ""}));
  const all = network.parts.flatMap(part => part.operations), chosen = all.find(each => each.name === state.layer);
  const here = chosen && state.channel !== null, off = Boolean(saved);
  const norm = here && ownNorm(all, chosen);
  byId("whatif-note").textContent = off ? "In this saved page nothing can be computed anew: effnet-np explore does." :
    here ? `Chosen: ${shortName(state.layer)}, channel ${state.channel}.` : "Choose a layer and a channel above, or change the picture.";
  const silent = here && changesOf(state).includes(`silence:${state.layer}:${state.channel}`);
  const silence = byId("silence");
  silence.disabled = off || !here || ["softmax", "pixel_values", "set_channel"].includes(chosen.kind);
  silence.textContent = silent ? "Let the channel speak" : "Silence the channel";
  silence.setAttribute("aria-pressed", String(Boolean(silent)));
  byId("bias-label").hidden = !norm; byId("gate-label").hidden = !(here && chosen.kind === "sigmoid");
  set("bias", norm ? valueOf(state, `bias:${norm}:${state.channel}`, 3, 1) : 1);
  set("gate", here ? valueOf(state, `gate:${state.layer}:${state.channel}`, 3, 1) : 1);
  set("blur", valueOf(state, "blur", 1, 0)); set("grey", valueOf(state, "grey", 1, 0));
  for (const id of ["bias", "gate", "blur", "grey", "undo"]) byId(id).disabled = off;
  byId("bias").dataset.name = norm || "";
  byId("undo").disabled = !state.changes;
  byId("changes").replaceChildren(...changesOf(state).map(change => element("li", {}, `${changeText(change)} `,
    element("button", {type: "button", "aria-label": `Take back: ${changeText(change)}`,
      onclick: () => go({changes: withChange(state, keyOf(change), null)})}, "take back"))));
  await showMoved(state, answer);
}

function set(id, value) { if (document.activeElement !== byId(id)) byId(id).value = value; }

function valueOf(state, key, at, otherwise) {
  const found = changesOf(state).find(change => keyOf(change) === key);
  return found ? found.split(":")[at] : otherwise;
}

// The layer with the bias that moves this channel: itself, or what its numbers went through just before.
function ownNorm(all, operation) {
  for (let each = operation; each; each = each.inputs.length === 1 ? all.find(other => other.name === each.inputs[0]) : null) {
    if (each.kind === "batch_norm" || each.kind === "linear" || /squeeze_excite\.(reduce|expand)$/.test(each.name)) return each.name;
    if (each.kind === "conv2d") return null;
  }
  return null;
}

async function showMoved(state, answer) {
  const table = byId("moved");
  table.hidden = !state.changes;
  if (!state.changes) return;
  const before = await ask("answer", runOf(state, {changes: ""}));
  const indices = new Set([...before.predictions, ...answer.predictions].map(each => each.index));
  const rows = [...indices].sort((a, b) => before.scores[b] - before.scores[a]);
  table.querySelector("tbody").replaceChildren(...rows.map(index => {
    const change = answer.scores[index] - before.scores[index];
    return element("tr", {"data-index": index}, element("td", {}, labelOf(index)), element("td", {class: "n"}, percent(before.scores[index])),
      element("td", {class: "n"}, percent(answer.scores[index])),
      element("td", {class: "n"}, `${change >= 0 ? "+" : "−"}${percent(Math.abs(change))}`));
  }));
  const who = answer.backend === "kernels" ? "NumPy up to the change, the compiled kernels behind it" : "NumPy";
  table.querySelector("caption").textContent =
    `The answer, before and after: ${answer.parts} parts of the network computed anew in ${answer.milliseconds.toFixed(0)} ms (${who}).`;
}

function silenceChannel() {
  const key = `silence:${current.layer}:${current.channel}`;
  go({changes: withChange(current, key, changesOf(current).includes(key) ? null : key)});
}

// A slider that moves: one question at a time, the last position wins.
async function slide(id) {
  const value = byId(id).value;
  const key = id === "bias" ? `bias:${byId("bias").dataset.name}:${current.channel}` : id === "gate" ? `gate:${current.layer}:${current.channel}` : id;
  const neutral = {bias: "1", blur: "0", grey: "0"}[id];
  sliding.next = withChange(current, key, Number(value) === Number(neutral) ? null : `${key}:${value}`);
  if (sliding.busy) return;
  sliding.busy = true;
  try {
    while (sliding.next !== null) { const changes = sliding.next; sliding.next = null; await go({changes}, true); }
  } finally { sliding.busy = false; }
}
