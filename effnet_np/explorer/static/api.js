"use strict";
// What the page asks. The server answers; a page that was saved as a file answers from what was saved with it.

let saved = null;  // {answers, planes, picture, webp}, once it is unpacked
const answersKept = new Map();  // address -> promise; what is asked twice is computed once
const NOT_SAVED = "This saved page does not hold that. With the photograph, effnet-np explore shows every number.";

class NotSaved extends Error {}

function addressOf(name, query) {
  return `${name}?${new URLSearchParams(known(query))}`;
}

function decode(text) {
  const bytes = Uint8Array.from(atob(text.base64), letter => letter.charCodeAt(0));
  const kinds = {float32: Float32Array, float64: Float64Array, int32: Int32Array, uint8: Uint8Array};
  return new kinds[text.dtype](bytes.buffer);
}

function revive(key, value) {
  return value && typeof value === "object" && "base64" in value && "dtype" in value ? decode(value) : value;
}

async function fetched(path, options) {
  const response = await fetch(`api/${path}`, options);
  if (!response.ok) {
    const told = await response.json().catch(() => ({error: `the server answered ${response.status}`}));
    throw new Error(told.error);
  }
  return response;
}

async function unpack() {
  if (typeof SAVED_PACKED === "undefined") return;
  const bytes = Uint8Array.from(atob(SAVED_PACKED), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  saved = JSON.parse(await new Response(stream).text());
}

const known = query => Object.entries(query).filter(([, value]) => value !== "" && value !== undefined && value !== null)
  .sort(([a], [b]) => (a < b ? -1 : 1));

// name, {key: value} -> the answer, with arrays as typed arrays.
async function ask(name, query = {}) {
  const path = addressOf(name, query);
  if (saved) {
    const answer = saved.answers[[name, ...known(query).map(([key, value]) => `${key}=${value}`)].join("|")];
    if (answer === undefined) throw new NotSaved(NOT_SAVED);
    return JSON.parse(JSON.stringify(answer), revive);
  }
  if (!answersKept.has(path)) {
    const answer = fetched(path).then(async response => JSON.parse(await response.text(), revive));
    answer.catch(() => answersKept.delete(path));
    answersKept.set(path, answer);
    if (answersKept.size > 60) answersKept.delete(answersKept.keys().next().value);
  }
  return answersKept.get(path);
}

// Channels of a layer -> an array of Float32Array, one for each channel, with `width` and `height`.
async function askPlanes(query, channels, shape) {
  const [, height = 1, width = 1] = shape;
  if (saved) return savedPlanes(query, channels);
  const response = await fetched(addressOf("planes", {...query, channels: channels.join(",")}));
  const numbers = new Float32Array(await response.arrayBuffer());
  const size = height * width;
  return channels.map((_, index) => ({data: numbers.subarray(index * size, (index + 1) * size), width, height}));
}

// A saved page has its channels in 8 bits, and the larger ones smaller: enough to look at.
function savedPlanes(query, channels) {
  const kept = saved.planes[query.name];
  if (!kept || query.changes || (query.picture !== saved.picture)) throw new NotSaved(NOT_SAVED);
  const bytes = decode({dtype: "uint8", base64: kept.base64}), size = kept.height * kept.width;
  return channels.map(channel => {
    const low = kept.low[channel], step = (kept.high[channel] - low) / 255;
    const data = Float32Array.from(bytes.subarray(channel * size, (channel + 1) * size), byte => low + step * byte);
    return {data, width: kept.width, height: kept.height, coarse: true};
  });
}

async function askPicture(key) {
  if (saved) {
    if (key !== saved.picture) throw new NotSaved(NOT_SAVED);
    return saved.webp;
  }
  const blob = await (await fetched(addressOf("picture", {picture: key}))).blob();
  return URL.createObjectURL(blob);
}

async function sendPicture(blob, name) {
  if (saved) throw new NotSaved(NOT_SAVED);
  const response = await fetched(addressOf("picture", {name}), {method: "POST", body: blob});
  return response.json();
}
