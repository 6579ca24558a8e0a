"use strict";
// A number, the sum that made it, term by term, and the way back to any of its inputs. The terms are added up here, in float64,
// and what comes out is compared with the number that the network gave.

const ROUNDING = 2 ** -24;  // of float32, relative, in one operation
const terms = {list: [], shown: 0, most: 0};

// 2/sqrt(pi) exp(-x^2) times the sum of 2^n x^(2n+1) / (1 * 3 * ... * (2n+1)): no term takes from another.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) { term *= 2 * x * x / (2 * n + 1); sum += term; }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const sigmoid = x => 1 / (1 + Math.exp(-x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const FUNCTIONS = {
  sigmoid, swish: x => x * sigmoid(x), relu: x => Math.max(x, 0), relu6: x => Math.min(Math.max(x, 0), 6),
  gelu: x => x / 2 * (1 + erf(x * Math.SQRT1_2)),
  gelu_new: x => x / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  selu: x => 1.0507009873554804934 * (x > 0 ? x : 1.6732632423543772848 * Math.expm1(x)),
  mish: x => x * Math.tanh(softplus(x)),
};

// What a step's inputs come to: {value, rounding}; rounding is what float32 may have lost. null: cannot be computed here.
function computed(step) {
  if (step.form === "sum") {
    let sum = step.bias ?? 0, size = Math.abs(sum);
    for (let i = 0; i < step.inputs.length; i++) { const term = step.inputs[i] * step.weights[i]; sum += term; size += Math.abs(term); }
    return {value: sum / step.divisor, rounding: (8 + Math.sqrt(step.inputs.length)) * ROUNDING * size / step.divisor};
  }
  if (step.form === "product") {
    const value = step.inputs.reduce((product, input) => product * input, 1);
    return {value, rounding: 2 * ROUNDING * Math.abs(value)};
  }
  if (step.form === "normalize") {
    const scale = step.weight / Math.sqrt(step.variance + step.eps), value = (step.x - step.mean) * scale + step.bias;
    return {value, rounding: 8 * ROUNDING * (Math.abs(step.x * scale) + Math.abs(step.mean * scale) + Math.abs(step.bias))};
  }
  if (step.form === "function") {
    const apply = FUNCTIONS[step.function];
    return apply ? {value: apply(step.x), rounding: 16 * ROUNDING * (Math.abs(step.x) + Math.abs(apply(step.x)))} : null;
  }
  if (step.form === "softmax") {
    const most = rangeOf(step.inputs).largest;
    const sum = step.inputs.reduce((total, logit) => total + Math.exp(logit - most), 0);
    const value = Math.exp(step.inputs[step.at[0]] - most) / sum;
    return {value, rounding: (64 + Math.abs(step.inputs[step.at[0]] - most)) * ROUNDING * value};
  }
  if (step.form === "pixel") {
    const value = ((step.pixel * step.rescale - step.offset) - step.mean) / step.std / step.divisor;
    return {value, rounding: 8 * ROUNDING * (Math.abs(step.mean / step.std / step.divisor) + Math.abs(value) + 1)};
  }
  return {value: step.form === "copy" ? step.x : step.form === "zero" ? 0 : step.value, rounding: 0};
}

function agrees(step) {
  const result = computed(step);
  return result === null || Math.abs(result.value - step.value) <= result.rounding;
}

async function showNumber(state, drawn) {
  const panel = byId("number-panel");
  panel.hidden = [state.layer, state.channel, state.y, state.x].includes(null);
  if (panel.hidden) return;
  const at = [state.channel, state.y, state.x];
  const number = await ask("number", runOf(state, {name: state.layer, at: at.join(",")}));
  const chain = number.chain.slice().reverse();  // from the sum to the number
  const value = number.chain[0].value;
  byId("number-title").textContent = `${shortName(number.name)} [${at.join(", ")}] = ${text(value, 7)}`;
  byId("number-note").textContent = `${placeText(number.chain[0])} ${drawField(drawn, number.field)}`;
  const linear = chain[0].kind === "linear";
  byId("versus-row").hidden = !linear;
  if (document.activeElement !== byId("versus")) byId("versus").value = linear && state.versus ? labelOf(state.versus) : "";
  if (linear && state.versus) {
    await subtract(state, chain);
    byId("number-title").textContent = `${labelOf(state.channel)} minus ${labelOf(state.versus)}: ${text(value, 7)} − ${text(chain[0].versus.value, 7)} = ${text(chain[0].value, 5)}`;
  }
  byId("chain").replaceChildren(...chain.map(step => element("li", {}, told(step))));
  showCheck(chain);
  listTerms(chain[0]);
}

function placeText(step) {
  if (step.shape.length === 1) return step.name === "scores" || step.kind === "linear" ? `Class ${labelOf(step.at[0])}.` : `Number ${step.at[0]}.`;
  return `Channel ${step.at[0]}, row ${step.at[1]}, column ${step.at[2]} of ${step.shape.join(" × ")}.`;
}

// The difference of two logits is a sum, too: of the same inputs, with the difference of the weights.
async function subtract(state, chain) {
  const other = await ask("number", runOf(state, {name: "classifier", at: `${state.versus},0,0`}));
  const step = chain[0], minus = other.chain[0];
  const weights = Float64Array.from(step.weights, (weight, index) => weight - minus.weights[index]);
  chain[0] = {...step, weights, bias: step.bias - minus.bias, value: step.value - minus.value, versus: minus,
    slack: computed(step).rounding + computed(minus).rounding};
}

function told(step) {
  const value = text(step.value, 7), name = shortName(step.name);
  if (step.form === "sum" && step.versus) {
    return `${labelOf(step.at[0])} minus ${labelOf(step.versus.at[0])}: ${step.inputs.length} inputs × the difference of the weights, and of the biases (${text(step.bias)}): ${value}`;
  }
  if (step.form === "sum") {
    const bias = step.bias === null ? "" : ` + bias ${text(step.bias)}`;
    if (step.divisor > 1) return `${name}: the mean of ${step.inputs.length} numbers = ${value}`;
    if (step.kind === "add") return `${name}: the projection plus what the block was given = ${value}`;
    return `${name}: ${step.inputs.length} inputs × weights, added up${bias} = ${value}`;
  }
  if (step.form === "product") return `${name}: ${Array.from(step.inputs, input => text(input)).join(" × gate ")} = ${value}`;
  if (step.form === "normalize") {
    return `${name}: (${text(step.x)} − mean ${text(step.mean)}) ÷ √(variance ${text(step.variance)} + ${text(step.eps)}) × weight ${text(step.weight)} + bias ${text(step.bias)} = ${value}`;
  }
  if (step.form === "function") return `${name}: ${step.function}(${text(step.x)}) = ${value}`;
  if (step.form === "copy") return `${name}: ${step.kind === "global_max_pool" ? "the largest of the plane" : "the same number"}, ${value}`;
  if (step.form === "zero") return `${name}: a zero of the padding`;
  if (step.form === "softmax") return `${name}: exp(${text(step.inputs[step.at[0]])}) ÷ the sum of exp of all ${step.inputs.length} logits = ${value}`;
  if (step.form === "constant") return `${name}: ${value}, put there by what is changed below`;
  const stored = step.divisor === 1 ? "" : ` ÷ ${text(step.divisor)}`;
  const scaled = step.rescale === 1 ? String(step.pixel) : `${step.pixel} × ${text(step.rescale)}`;
  return `The photograph's own pixel, resized: ${"red green blue alpha".split(" ")[step.at[0]]} = ${step.pixel} of 255. ` +
    `(${scaled}${step.offset ? " − 1" : ""} − ${text(step.mean)}) ÷ ${text(step.std)}${stored} = ${value}`;
}

function showCheck(chain) {
  const check = byId("check"), first = chain[0], result = computed(first);
  const wrong = chain.filter(step => !(step.versus ? Math.abs(computed(step).value - step.value) <= step.slack : agrees(step)));
  const unknown = chain.filter(step => computed(step) === null).length;
  check.className = wrong.length ? "bad" : "good";
  const sum = first.form === "sum" || first.form === "product" ? `Added up here in float64: ${text(result.value, 9)}; the network's float32: ${text(first.value, 9)}. ` : "";
  check.textContent = wrong.length ? `${sum}These do not agree: ${wrong.map(step => shortName(step.name)).join(", ")}.` :
    `${sum}${chain.length - unknown} of ${chain.length} steps agree to float32's rounding.`;
}

function listTerms(step) {
  const table = byId("terms"), many = step.inputs && step.form !== "pixel";
  table.hidden = !many; byId("more").hidden = true;
  table.querySelector("tbody").replaceChildren();
  if (!many) return;
  const factor = step.form === "softmax" ? 0 : 1, divisor = step.divisor || 1;
  terms.list = Array.from(step.inputs, (input, index) => {
    const weight = step.weights ? step.weights[index] : null;
    const softmax = step.form === "softmax" ? Math.exp(input - rangeOf(step.inputs).largest) : null;
    return {input, weight, value: softmax ?? (weight === null ? input : input * weight / divisor),
      place: Array.from(step.places.slice(3 * index, 3 * index + 3)), source: step.sources[factor && Math.min(index, step.sources.length - 1)]};
  });
  if (step.kind !== "add" && step.kind !== "scale_channels") terms.list.forEach(term => { term.source = step.sources[0]; });
  if (step.form !== "product") terms.list.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  terms.most = terms.list.reduce((most, term) => Math.max(most, Math.abs(term.value)), 1e-30);
  terms.shown = 0;
  const what = {softmax: "the logits, exp(logit − the largest)", product: "the factors"}[step.form] || "the terms, the largest first";
  table.querySelector("caption").textContent = `${counted(terms.list.length)} of ${what}. Choose one to see how that number was made.`;
  moreTerms(30);
}

function moreTerms(count) {
  const body = byId("terms").querySelector("tbody"), part = terms.list.slice(terms.shown, terms.shown + count);
  body.append(...part.map(term => {
    const bar = element("div", {class: term.value < 0 ? "minus" : ""});
    bar.style.width = `${100 * Math.abs(term.value) / terms.most}%`;
    const padding = term.place[0] < 0;
    const name = padding ? "a zero of the padding" : `${shortName(term.source)} [${term.place.join(", ")}]`;
    const from = padding ? name : element("button", {type: "button", class: "from", "data-name": term.source, "data-at": term.place.join(","),
      onclick: () => go({layer: term.source, channel: term.place[0], y: term.place[1], x: term.place[2]})}, name);
    return element("tr", {}, element("td", {}, from), element("td", {class: "n"}, text(term.input)),
      element("td", {class: "n"}, term.weight === null ? "" : text(term.weight)), element("td", {class: "n"}, text(term.value)),
      element("td", {class: "share"}, bar));
  }));
  terms.shown += part.length;
  byId("more").hidden = terms.shown >= terms.list.length;
}
