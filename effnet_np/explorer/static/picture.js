"use strict";
// The photograph with what lies on it, and the answer.

const photo = {key: null, image: null};
const LIGHT = "#ffffff", DARK = "#15181c";

async function showPicture(state) {
  if (photo.key !== state.picture) {
    const address = await askPicture(state.picture);
    const image = new Image();
    image.src = address;
    await image.decode();
    if (address.startsWith("blob:")) URL.revokeObjectURL(address);
    Object.assign(photo, {key: state.picture, image});
  }
  const facts = opening.pictures.find(each => each.key === state.picture);
  const {region, width, height} = await ask("region", runOf(state, {changes: ""}));
  const canvas = byId("photo"), context = canvas.getContext("2d"), image = photo.image;
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  context.drawImage(image, 0, 0);
  const scale = image.naturalWidth / facts.width;
  const seen = {top: region[0] * scale, left: region[1] * scale, height: region[2] * scale, width: region[3] * scale};
  seen.y = seen.height / height; seen.x = seen.width / width;  // a network's pixel, in the canvas's
  await drawEvidence(state, context, seen);
  frame(context, seen.left, seen.top, seen.width, seen.height, [6, 5]);
  canvas.setAttribute("aria-label", `${facts.name}, ${facts.width} × ${facts.height} pixels`);
  byId("photo-note").textContent = `${facts.name}, ${facts.width} × ${facts.height}. Dashed: what the network sees, as ${width} × ${height}.`;
  return {context, seen, width, height};
}

async function drawEvidence(state, context, seen) {
  const note = byId("evidence-note");
  const opacity = Number(state.overlay || 0);
  byId("opacity").value = opacity;
  if (!opacity) { note.textContent = "Move the slider to see where in the picture the class's logit comes from."; return; }
  const map = await ask("cam", runOf(state, {class: state.class}));
  const other = state.versus ? await ask("cam", runOf(state, {class: state.versus})) : null;
  const data = other ? map.scores.map((value, index) => value - other.scores[index]) : map.scores;
  const {least, largest} = rangeOf(data), small = element("canvas");
  const scale = other ? scaleOf({least: Math.min(least, -1e-30), largest}) : {stops: RISING, low: least, high: largest > least ? largest : least + 1};
  drawPlane(small, {data, width: map.width, height: map.height}, scale);
  context.globalAlpha = opacity / 100;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, seen.left, seen.top, seen.width, seen.height);
  context.globalAlpha = 1;
  const mean = data.reduce((sum, value) => sum + value, 0) / data.length;
  note.textContent = `Each position's score for ${labelOf(state.class)}${other ? ` minus ${labelOf(state.versus)}` : ""}: ` +
    `${text(least, 3)} (blue) to ${text(largest, 3)} (${other ? "orange" : "yellow"}); their mean, ${text(mean, 4)}, is the ` +
    (other ? "difference of the logits." : "logit.");
}

function frame(context, left, top, width, height, dash = []) {
  const line = Math.max(1.5, context.canvas.width / 400);
  context.setLineDash([]);
  for (const [style, thick] of [[DARK, 2 * line], [LIGHT, line]]) {
    context.strokeStyle = style; context.lineWidth = thick;
    if (style === LIGHT) context.setLineDash(dash.map(each => each * line));
    context.strokeRect(left + line, top + line, Math.max(1, width - 2 * line), Math.max(1, height - 2 * line));
  }
  context.setLineDash([]);
}

// The window of the network's pixels that a number sees, on the photograph; what lies beyond the picture is padding.
function drawField({context, seen, width, height}, field) {
  const whole = field.everything;
  const top = whole ? 0 : Math.max(0, field.top), left = whole ? 0 : Math.max(0, field.left);
  const bottom = whole ? height : Math.min(height, field.bottom + 1), right = whole ? width : Math.min(width, field.right + 1);
  frame(context, seen.left + left * seen.x, seen.top + top * seen.y, (right - left) * seen.x, (bottom - top) * seen.y);
  const rows = `rows ${top} to ${bottom - 1}, columns ${left} to ${right - 1} of the ${width} × ${height} pixels that the network sees`;
  if (whole) return `It sees the whole picture: ${rows}.`;
  const beyond = field.top < 0 || field.left < 0 || field.bottom >= height || field.right >= width ? " (beyond the edge lies padding)" : "";
  const gates = field.gated ? " Through the gates of squeeze-excite, every pixel counts a little." : "";
  return `It sees ${rows}${beyond}.${gates}`;
}

async function showAnswer(state) {
  const answer = await ask("answer", runOf(state));
  const best = answer.predictions[0];
  byId("answer").replaceChildren(...answer.predictions.map(({label, index, score}) => {
    const bar = element("div", {class: "bar"});
    bar.style.width = `${100 * score}%`;
    const why = index === best.index ? null : element("button", {type: "button", class: "why",
      "aria-label": `Why not? ${label}`, title: `Why ${best.label} and not ${label}`,
      onclick: () => go({layer: "classifier", channel: best.index, y: 0, x: 0, class: best.index, versus: index, overlay: state.overlay || 60})}, "Why not?");
    return element("li", {"data-index": index},
      element("button", {type: "button", class: "name", title: label, "aria-pressed": String(String(index) === state.class),
        onclick: () => go({class: index, versus: null, overlay: state.overlay || 60})}, label),
      element("span", {class: "n score"}, percent(score)), why || element("span"),
      element("div", {class: "track", "aria-hidden": "true"}, bar));
  }));
  byId("answer-note").textContent = state.changes ? "With what is changed below." : "";
  const field = byId("class");
  if (document.activeElement !== field) field.value = state.class === null ? "" : labelOf(state.class);
  return answer;
}
