"use strict";
// A layer: its channels as small pictures, of which only those in sight exist, and one of them large.

const TILE = {width: 76, height: 88};
const grid = {key: "", order: [], scale: null, planes: new Map(), state: null, facts: null, wanted: 0};

async function showLayer(state) {
  const panel = byId("layer-panel");
  panel.hidden = !state.layer;
  if (!state.layer) return;
  const query = runOf(state, {name: state.layer});
  const facts = await ask("layer", query);
  const [channels, height = 1, width = 1] = facts.shape;
  byId("layer-title").textContent = `${shortName(facts.name)}: ${kindName(facts.kind)}`;
  byId("layer-note").textContent = `${facts.name}: ${channels} channels of ${height} × ${width}. Choose one to see it large.`;
  byId("sort").value = state.sort || "strength";
  const key = JSON.stringify([query, state.sort]);
  if (grid.key !== key) {
    const strengths = facts[state.sort || "strength"];
    const order = Array.from({length: channels}, (_, index) => index);
    if (state.sort !== "index") order.sort((a, b) => strengths[b] - strengths[a]);
    const scale = scaleOf({least: rangeOf(facts.least).least, largest: rangeOf(facts.largest).largest});
    Object.assign(grid, {key, order, scale, planes: new Map()});
    byId("channels").replaceChildren(element("div", {class: "inner"}));
    byId("channels").scrollTop = 0;
  }
  Object.assign(grid, {state, facts, query});
  await fillGrid();
  await showChannel(state, facts, query);
}

// The tiles in sight, and one row more each way.
async function fillGrid() {
  const box = byId("channels"), inner = box.firstElementChild, mine = grid.key;
  if (!inner || !grid.facts) return;
  const across = Math.max(1, Math.floor(box.clientWidth / TILE.width)), rows = Math.ceil(grid.order.length / across);
  box.style.height = `${Math.min(300, rows * TILE.height + 6)}px`;
  inner.style.height = `${rows * TILE.height}px`;
  const first = Math.max(0, Math.floor(box.scrollTop / TILE.height) - 1) * across;
  const last = Math.min(grid.order.length, (Math.ceil((box.scrollTop + box.clientHeight) / TILE.height) + 1) * across);
  const shown = grid.order.slice(first, last);
  const missing = shown.filter(channel => !grid.planes.has(channel));
  for (let start = 0; start < missing.length; start += 200) {
    const part = missing.slice(start, start + 200);
    const planes = await askPlanes(grid.query, part, grid.facts.shape);
    if (grid.key !== mine) return;
    part.forEach((channel, index) => grid.planes.set(channel, planes[index]));
  }
  const focused = document.activeElement && inner.contains(document.activeElement) ? document.activeElement.dataset.channel : null;
  const chosen = grid.state.channel === null ? String(grid.order[0]) : grid.state.channel;
  inner.replaceChildren(...shown.map((channel, index) => tile(channel, first + index, across, chosen)));
  if (focused !== null) inner.querySelector(`[data-channel="${focused}"]`)?.focus({preventScroll: true});
  if (!inner.querySelector("[tabindex='0']") && inner.firstElementChild) inner.firstElementChild.tabIndex = 0;
  if (grid.planes.size > 1500) grid.planes = new Map(shown.map(channel => [channel, grid.planes.get(channel)]));
}

function tile(channel, place, across, chosen) {
  const canvas = element("canvas", {"aria-hidden": "true"}), plane = grid.planes.get(channel);
  drawPlane(canvas, plane, grid.scale);
  const strength = text(grid.facts.strength[channel], 3);
  const button = element("button", {type: "button", "data-channel": channel, "data-place": place,
    "aria-label": `Channel ${channel}, mean strength ${strength}`, "aria-pressed": String(String(channel) === grid.state.channel),
    tabindex: String(channel) === chosen ? 0 : -1, onclick: () => go({channel, y: null, x: null})},
    canvas, plane.data.length === 1 ? `${channel}: ${text(plane.data[0], 3)}` : String(channel));
  button.style.left = `${(place % across) * TILE.width}px`;
  button.style.top = `${Math.floor(place / across) * TILE.height}px`;
  button.style.width = `${TILE.width - 4}px`;
  return button;
}

async function gridKeys(event) {
  const place = Number(event.target.dataset.place);
  const across = Math.max(1, Math.floor(byId("channels").clientWidth / TILE.width));
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across}[event.key];
  if (step === undefined || !(place + step in grid.order)) return;
  event.preventDefault();
  const box = byId("channels"), top = Math.floor((place + step) / across) * TILE.height;
  if (top < box.scrollTop || top + TILE.height > box.scrollTop + box.clientHeight) {
    box.scrollTop = Math.max(0, top - TILE.height);
    await fillGrid();
  }
  box.querySelector(`[data-place="${place + step}"]`)?.focus({preventScroll: true});
}

async function showChannel(state, facts, query) {
  const box = byId("channel");
  box.hidden = state.channel === null;
  if (box.hidden) return;
  const channel = Number(state.channel);
  if (channel >= facts.shape[0]) throw new Error(`this layer has channels 0 to ${facts.shape[0] - 1}`);
  const [plane] = await askPlanes(query, [channel], facts.shape);
  const range = rangeOf(plane.data), scale = scaleOf(range), canvas = byId("plane");
  drawPlane(canvas, plane, scale, frameAround(state, plane, facts.shape));
  drawScale(byId("scale"), scale);
  byId("scale-note").textContent = `${text(scale.low, 4)} to ${text(scale.high, 4)}. ` + (plane.coarse ?
    "In this saved page channels have 8 bits, and large ones are reduced." : "Click a position, or use the arrow keys and Enter.");
  canvas.setAttribute("aria-label", `Channel ${channel}, ${plane.height} × ${plane.width}, from ${text(range.least)} to ${text(range.largest)}`);
  byId("channel-title").textContent = `Channel ${channel}`;
  const form = byId("place"), [, height = 1, width = 1] = facts.shape;
  form.channel.max = facts.shape[0] - 1; form.y.max = height - 1; form.x.max = width - 1;
  form.channel.value = channel; form.y.value = state.y ?? 0; form.x.value = state.x ?? 0;
  showStatistics(facts, channel, plane);
  for (const id of ["plane", "scale", "scale-note", "histogram", "histogram-note"]) byId(id).hidden = plane.data.length === 1;
  await showKernel(query, channel);
}

function showStatistics(facts, channel, plane) {
  const rows = [["mean", facts.mean], ["deviation", facts.deviation], ["least", facts.least], ["largest", facts.largest],
    ["zeros", facts.zeros], ["mean of |x|", facts.strength]];
  byId("statistics").replaceChildren(...rows.flatMap(([name, values]) =>
    [element("dt", {}, name), element("dd", {class: "n"}, name === "zeros" ? percent(values[channel]) : text(values[channel], 4))]));
  const bins = 32, counts = new Array(bins).fill(0), {least, largest} = rangeOf(plane.data);
  for (const value of plane.data) counts[Math.min(bins - 1, Math.floor(bins * (value - least) / (largest - least || 1)))] += 1;
  const canvas = byId("histogram"), context = canvas.getContext("2d"), most = Math.max(...counts);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--bar");
  counts.forEach((count, bin) => {
    const high = count ? Math.max(1, canvas.height * Math.log1p(count) / Math.log1p(most)) : 0;
    context.fillRect(bin * 10, canvas.height - high, 9, high);
  });
  const fullest = counts.indexOf(most);
  const about = least + (largest - least) * (fullest + 0.5) / bins;
  byId("histogram-note").textContent = `How many of the ${counted(plane.data.length)} numbers lie where, from ${text(least, 3)} to ` +
    `${text(largest, 3)}; heights are logarithms. Most, ${counted(most)}, lie about ${text(about, 3)}.`;
  canvas.setAttribute("aria-label", byId("histogram-note").textContent);
}

async function showKernel(query, channel) {
  const canvas = byId("kernel"), note = byId("kernel-note"), title = byId("kernel-title");
  let kernel;
  try {
    kernel = await ask("kernel", {...query, channel});
  } catch (error) {
    if (!(error instanceof NotSaved)) throw error;
    kernel = {name: "", shape: []};
  }
  canvas.hidden = title.hidden = !kernel.name;
  note.textContent = kernel.name ? "" : "No weights of its own make this channel.";
  if (!kernel.name) return;
  const [count, height = 1, width = 1] = kernel.shape, range = rangeOf(kernel.weights);
  const across = height * width === 1 ? Math.ceil(Math.sqrt(count * 2)) : Math.min(count, 8), down = Math.ceil(count / across);
  const gap = height > 1 ? 1 : 0, plane = {width: across * (width + gap) - gap, height: down * (height + gap) - gap};
  plane.data = new Float32Array(plane.width * plane.height).fill(NaN);
  kernel.weights.forEach((weight, index) => {
    const input = Math.floor(index / (height * width)), at = index % (height * width);
    const y = Math.floor(input / across) * (height + gap) + Math.floor(at / width), x = (input % across) * (width + gap) + at % width;
    plane.data[y * plane.width + x] = weight;
  });
  drawPlane(canvas, plane, scaleOf({least: Math.min(range.least, -1e-30), largest: range.largest}));
  canvas.style.width = `${Math.min(300, plane.width * Math.max(4, Math.floor(120 / plane.height)))}px`;
  title.textContent = `Its kernel, of ${kernel.name.split(".").pop()}`;
  const numbers = kernel.weights.length <= 27 ? ` ${Array.from(kernel.weights, weight => text(weight, 3)).join(", ")}.` : "";
  note.textContent = `${count} × ${height} × ${width} weights, from ${text(range.least, 3)} (blue) to ${text(range.largest, 3)} (orange).${numbers}`;
  canvas.setAttribute("aria-label", note.textContent);
}

// The chosen position's frame, one position wide, in a colour that no map has: [row, column] of each of its positions.
function frameAround(state, plane, shape) {
  if (state.y === null) return [];
  const y = Math.floor(state.y * plane.height / (shape[1] || 1)), x = Math.floor(state.x * plane.width / (shape[2] || 1)), around = [];
  for (let j = y - 1; j <= y + 1; j++) for (let i = x - 1; i <= x + 1; i++) {
    if ((i !== x || j !== y) && i >= 0 && j >= 0 && i < plane.width && j < plane.height) around.push([j, i]);
  }
  return around;
}

function planeClick(event) {
  const canvas = event.currentTarget, box = canvas.getBoundingClientRect(), [, height = 1, width = 1] = grid.facts.shape;
  const x = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * width)));
  const y = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * height)));
  go({y, x});
}

function planeKeys(event) {
  const [, height = 1, width = 1] = grid.facts.shape;
  const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Enter: [0, 0]}[event.key];
  if (!step) return;
  event.preventDefault();
  const y = Math.min(height - 1, Math.max(0, Number(grid.state.y ?? 0) + step[0]));
  const x = Math.min(width - 1, Math.max(0, Number(grid.state.x ?? 0) + step[1]));
  go({y, x}, event.key !== "Enter");
}
