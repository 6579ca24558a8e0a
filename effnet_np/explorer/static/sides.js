"use strict";
// Two side by side: another picture, another model, or a trace from a file; differences by layer, the first wrong one marked.

function fillBeside(state) {
  const choices = [["nothing", "nothing"]];
  if (opening.against) choices.push(["trace", `the trace ${opening.against}`]);
  for (const model of opening.models) if (model !== state.model) choices.push([`model:${model}`, `the model ${model}`]);
  for (const picture of opening.pictures) if (picture.key !== state.picture) choices.push([`picture:${picture.key}`, `the picture ${picture.name}`]);
  const select = byId("beside"), wanted = JSON.stringify(choices);
  if (select.dataset.choices !== wanted) {
    select.dataset.choices = wanted;
    select.replaceChildren(...choices.map(([value, name]) => element("option", {value}, name)));
  }
  select.value = choices.some(([value]) => value === state.beside) ? state.beside : "nothing";
  select.disabled = Boolean(saved);
}

async function showSides(state) {
  fillBeside(state);
  const table = byId("rows"), verdict = byId("verdict"), beside = byId("beside").value === "nothing" ? "" : byId("beside").value;
  byId("judged-label").hidden = beside !== "trace";
  byId("judged").value = state.judged || "reference";
  table.hidden = !beside;
  if (!beside) {
    verdict.textContent = saved ? "A saved page has one picture and one model." :
      opening.against ? "" : "Choose a second picture above, or start with --against FILE or --against MODEL.";
    byId("hints").replaceChildren(); byId("three").replaceChildren();
    return;
  }
  if (verdict.dataset.of !== addressOf("", runOf(state, {beside, judged: state.judged}))) verdict.textContent = "Comparing ...";
  const found = await ask("compare", runOf(state, {beside, judged: state.judged}));
  if (current !== state) return;
  verdict.dataset.of = addressOf("", runOf(state, {beside, judged: state.judged}));
  verdict.textContent = found.verdict;
  byId("hints").replaceChildren(...[...found.hints.map(each => `Hint: ${each}`), ...found.notes.map(each => `Note: ${each}`)].map(each => element("li", {}, each)));
  const key = JSON.stringify([state.model, state.picture, state.changes, beside, state.judged]);
  if (table.dataset.key !== key) {
    table.dataset.key = key;
    table.querySelector("tbody").replaceChildren(...found.layers.map(row => {
      const open = element("button", {type: "button", "data-name": row.name, onclick: () => go({layer: row.opens || row.name, channel: row.channel ?? 0, y: null, x: null})}, row.name);
      return element("tr", {class: row.name === found.first_divergence ? "first" : ""},
        element("td", {}, row.opens ? open : row.name, row.name === found.first_divergence ? " ← first" : ""), element("td", {class: row.status}, row.status),
        element("td", {class: "n"}, row.relative === null ? row.note : row.relative.toExponential(1)),
        element("td", {class: "n"}, row.cosine === null ? "" : row.cosine.toFixed(6)));
    }));
    table.querySelector("tr.first")?.scrollIntoView({block: "nearest"});
  }
  await showThree(state, beside);
}

// The chosen channel here, there, and the difference, in one scale for the two and one for the difference.
async function showThree(state, beside) {
  const three = byId("three");
  three.replaceChildren();
  if (!state.layer || state.channel === null) return;
  const query = runOf(state, {name: state.layer}), facts = await ask("layer", query);
  const [here] = await askPlanes(query, [Number(state.channel)], facts.shape);
  const other = await ask("beside", {...query, beside, channel: state.channel});
  if (current !== state) return;
  if (!other.data) { three.replaceChildren(element("p", {}, other.note)); return; }
  const there = {data: other.data, width: here.width, height: here.height};
  const difference = {...here, data: here.data.map((value, index) => value - there.data[index])};
  const a = rangeOf(here.data), b = rangeOf(there.data), d = rangeOf(difference.data);
  const scale = scaleOf({least: Math.min(a.least, b.least), largest: Math.max(a.largest, b.largest)});
  three.append(...[["this", here, scale, a], ["the other", there, scale, b], ["difference", difference, scaleOf({least: Math.min(d.least, -1e-30), largest: d.largest}), d]]
    .map(([name, plane, colours, range]) => {
      const canvas = element("canvas", {role: "img", "aria-label": `${name}, channel ${state.channel}`});
      drawPlane(canvas, plane, colours);
      return element("figure", {}, canvas, element("figcaption", {}, `${name}: ${text(range.least, 3)} to ${text(range.largest, 3)}`));
    }));
}
