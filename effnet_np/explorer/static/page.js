"use strict";
// The state of the page is its address: what is behind the "#". `go` changes it, `render` shows it.

const FIELDS = ["model", "picture", "layer", "channel", "y", "x", "class", "versus", "overlay", "sort", "changes", "beside", "judged"];
let opening = null, labels = [], current = null, rendering = Promise.resolve();

function stateOf(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(FIELDS.map(field => [field, given.get(field)]));
}

function addressFor(state) {
  const known = FIELDS.filter(field => state[field] !== null && state[field] !== undefined && state[field] !== "");
  return `#${new URLSearchParams(known.map(field => [field, String(state[field])]))}`;
}

// What a question about this state's run needs; `more` adds to it, or replaces.
const runOf = (state, more = {}) => ({model: state.model, picture: state.picture, changes: state.changes, ...more});
const labelOf = index => labels[Number(index)] ?? `class ${index}`;

// Go to the state that differs from this one by `patch`; `quietly` leaves no entry in the browser's history.
async function go(patch, quietly = false) {
  const next = {...stateOf(location.hash), ...patch}, address = addressFor(next);
  const steps = next.y !== null && ("y" in patch || "layer" in patch) && !quietly;
  history[quietly ? "replaceState" : "pushState"](null, "", address);
  await render();
  if (steps) byId("number-title").focus();
}

function render() {
  rendering = rendering.then(show, show);
  return rendering;
}

async function show() {
  try {
    document.body.setAttribute("aria-busy", "true");
    const state = stateOf(location.hash);
    state.model ??= opening.models[0];
    state.picture ??= opening.first ?? opening.pictures.at(-1)?.key ?? null;
    if (state.picture === null) { say("Choose a picture to begin."); return; }
    if (!opening.pictures.some(each => each.key === state.picture)) throw new Error("The picture of this address is no longer held: choose its file again.");
    if (current?.model !== state.model || !labels.length) await loadLabels(state);
    say("");
    const answer = await ask("answer", runOf(state));
    state.beside ??= opening.against ? "trace" : "";
    state.class ??= String(answer.predictions[0].index);
    current = state;
    history.replaceState(null, "", addressFor({...stateOf(location.hash), model: state.model, picture: state.picture}));
    for (const hidden of ["map-panel", "whatif-panel", "sides-panel"]) byId(hidden).hidden = false;
    await showAnswer(state);
    window.answeredAt = performance.now();
    const drawn = await showPicture(state);
    const panels = [showWhatIf(state, answer), showMap(state), showLayer(state), showNumber(state, drawn)];
    const failed = (await Promise.allSettled(panels)).find(panel => panel.status === "rejected");
    showHeld(state);
    byId("save").hidden = Boolean(saved);
    byId("save").href = addressOf("explorer.html", {model: state.model, picture: state.picture});
    showSides(state).catch(error => say(error.message, true));  // which may take seconds: the page goes on meanwhile
    if (failed) throw failed.reason;
  } catch (error) {
    say(error.message, true);
  } finally {
    document.body.setAttribute("aria-busy", "false");
    window.shownAt = performance.now();
    document.body.dataset.rendered = Number(document.body.dataset.rendered || 0) + 1;
  }
}

function say(words, wrong = false) {
  byId("status").textContent = words;
  byId("status").className = wrong ? "error" : "";
}

async function loadLabels(state) {
  labels = await ask("labels", {model: state.model});
  byId("labels").replaceChildren(...labels.map(label => element("option", {value: label})));
  byId("about").textContent = `${state.model}, in NumPy, by effnet_np ${opening.version}` +
    (saved ? ". A saved page: it holds one answer, all layers' channels in 8 bits, and the sums on the strongest ways back from the first logits to a pixel. What it does not hold, it says." : "");
}

function showHeld(state) {
  byId("held").replaceChildren(...(opening.pictures.length < 2 ? [] : opening.pictures).map(each =>
    element("button", {type: "button", "aria-pressed": String(each.key === state.picture), onclick: () => go({picture: each.key, changes: null})}, each.name)));
}

async function take(blob, name) {
  if (saved) { say(NOT_SAVED, true); return; }
  say("Reading the picture ...");
  try {
    const picture = await sendPicture(blob, name);
    opening.pictures = [...opening.pictures.filter(each => each.key !== picture.key), picture].slice(-opening.most_pictures);
    await go({picture: picture.key, changes: null, ...(stateOf(location.hash).picture ? {} : {layer: null})});
  } catch (error) { say(error.message, true); }
}

function chooseClass(field, key) {
  const wanted = byId(field).value.trim();
  if (!wanted && key === "versus") { go({versus: null}); return; }
  const exact = labels.findIndex(label => label === wanted), close = labels.findIndex(label => label.toLowerCase().includes(wanted.toLowerCase()));
  const index = /^\d+$/.test(wanted) && wanted in labels ? Number(wanted) : exact >= 0 ? exact : close;
  if (index < 0 || !wanted) say(`No label is called ${wanted}.`, true);
  else go({[key]: index, ...(key === "class" ? {overlay: current.overlay || 60, versus: null} : {})});
}

function listen() {
  addEventListener("hashchange", render); addEventListener("popstate", render); addEventListener("resize", () => { if (current?.layer) fillGrid(); });
  byId("file").addEventListener("change", event => { const [file] = event.target.files; if (file) take(file, file.name); event.target.value = ""; });
  document.querySelectorAll(".sample").forEach(button => button.addEventListener("click", async () => {
    if (saved) { say(NOT_SAVED, true); return; }
    await take(await (await fetch(button.dataset.file)).blob(), button.dataset.file);
  }));
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", event => {
    event.preventDefault(); document.body.classList.remove("dropping");
    const [file] = event.dataTransfer.files; if (file) take(file, file.name);
  });
  byId("class").addEventListener("change", () => chooseClass("class", "class"));
  byId("versus").addEventListener("change", () => chooseClass("versus", "versus"));
  byId("opacity").addEventListener("input", event => go({overlay: event.target.value}, true));
  byId("open-logit").addEventListener("click", () => go({layer: "classifier", channel: current.class, y: 0, x: 0}));
  byId("map").addEventListener("keydown", mapKeys);
  byId("sort").addEventListener("change", event => go({sort: event.target.value}));
  byId("channels").addEventListener("scroll", () => requestAnimationFrame(fillGrid));
  byId("channels").addEventListener("keydown", gridKeys);
  byId("plane").addEventListener("click", planeClick); byId("plane").addEventListener("keydown", planeKeys);
  byId("place").addEventListener("submit", event => {
    event.preventDefault();
    const form = event.currentTarget;
    go({channel: form.channel.value, y: form.y.value, x: form.x.value});
  });
  byId("step-back").addEventListener("click", () => history.back());
  byId("more").addEventListener("click", () => moreTerms(100));
  byId("silence").addEventListener("click", silenceChannel);
  for (const id of ["bias", "gate", "blur", "grey"]) byId(id).addEventListener("input", () => slide(id));
  byId("undo").addEventListener("click", () => go({changes: null}));
  byId("beside").addEventListener("change", event => go({beside: event.target.value}));
  byId("judged").addEventListener("change", event => go({judged: event.target.value}));
}

async function start() {
  for (const hidden of ["map-panel", "whatif-panel", "sides-panel"]) byId(hidden).hidden = true;
  try {
    await unpack();
    opening = await ask("open");
    if (opening.against) byId("map-panel").after(byId("sides-panel"));  // what the page was opened for
  } catch (error) { say(error.message, true); return; }
  listen();
  await render();
}

start();
