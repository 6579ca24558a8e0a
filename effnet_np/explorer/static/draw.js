"use strict";
// Colours, numbers as text, and elements. Two colour maps, both told apart without red and green: dark blue to yellow for what
// has no negative numbers, and blue - white - orange, with zero in the middle, for what has.

const RISING = [[0, 34, 78], [45, 66, 110], [98, 103, 117], [146, 141, 121], [198, 183, 105], [254, 232, 56]];
const BOTH_WAYS = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [230, 140, 40], [127, 59, 8]];

function colour(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, index) => Math.round(value + (stops[low + 1][index] - value) * (at - low)));
}

// The 256 colours of each map as ImageData has them in memory, one whole number each.
const TABLES = new Map([RISING, BOTH_WAYS].map(stops => {
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) bytes.set([...colour(stops, i / 255), 255], 4 * i);
  return [stops, new Uint32Array(bytes.buffer)];
}));
// NaN is almost black, what is marked violet: neither is near a colour of the maps, for colour-blind people either.
const [NOTHING, MARKED] = new Uint32Array(Uint8ClampedArray.of(34, 0, 0, 255, 170, 0, 255, 255).buffer);

function rangeOf(data) {
  let least = Infinity, largest = -Infinity;
  for (const value of data) { if (value < least) least = value; if (value > largest) largest = value; }
  return {least, largest};
}

// What the colours mean: {stops, low, high}.
function scaleOf({least, largest}) {
  if (least >= 0) return {stops: RISING, low: 0, high: largest || 1};
  const most = Math.max(-least, largest) || 1;
  return {stops: BOTH_WAYS, low: -most, high: most};
}

function drawPlane(canvas, plane, scale, marked = []) {
  canvas.width = plane.width; canvas.height = plane.height;
  const image = new ImageData(plane.width, plane.height), pixels = new Uint32Array(image.data.buffer);
  const table = TABLES.get(scale.stops), step = 255 / (scale.high - scale.low), {data} = plane;
  for (let i = 0; i < data.length; i++) {
    const shade = (data[i] - scale.low) * step + 0.5;
    pixels[i] = shade !== shade ? NOTHING : table[shade < 0 ? 0 : shade > 255 ? 255 : shade | 0];
  }
  for (const [y, x] of marked) pixels[y * plane.width + x] = MARKED;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawScale(canvas, scale) {
  const data = Float32Array.from({length: 256}, (_, i) => scale.low + (scale.high - scale.low) * i / 255);
  drawPlane(canvas, {data, width: 256, height: 1}, scale);
}

function text(value, digits = 5) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 2) : String(+value.toPrecision(digits));
}

const percent = value => `${(100 * value).toFixed(1)}%`;
const counted = value => value.toLocaleString("en");

// element("button", {class: "x", onclick: f}, "text", child): attributes, listeners, children.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

const byId = id => document.getElementById(id);

// "efficientnet.encoder.blocks.4.depthwise_conv.depthwise_norm" -> "block 4 · depthwise_norm"
function shortName(name) {
  const block = name.match(/blocks\.(\d+)\.(.*)$/);
  if (block) return `block ${block[1]} · ${block[2].split(".").pop()}`;
  if (name === "pixel_values") return "the network's input";
  if (name.includes("embeddings")) return `stem · ${name.split(".").pop()}`;
  return name.includes("encoder") || name.includes("pooler") ? `head · ${name.split(".").pop()}` : name;
}

const KINDS = {
  conv2d: "convolution", batch_norm: "batch norm", pad2d: "padding", global_average_pool: "mean of each plane",
  global_max_pool: "largest of each plane", scale_channels: "channel × gate", add: "plus the block's input",
  linear: "classifier", softmax: "softmax", set_channel: "changed", pixel_values: "input",
};
const kindName = kind => KINDS[kind] || kind;
