import { controls } from "./controls.js";
import { chart, legend } from "./draw.js";
import {
  edgesOf, isLine, isTabulated, lossChart, normChart, phaseChart, spectrumChart, verdict,
} from "./panels.js";

// The explorer: one front end for two hosts. `model` holds the settings and what the host has
// computed: anywidget's model in a notebook, `pageModel` on a page.

export const SETTINGS = [
  "learning_rate", "batch_size", "momentum", "nesterov", "weight_decay", "sampling", "spectrum",
  "parameter", "curvature_strength", "steps",
];
const PANELS = [
  ["phase", "Phase diagram"],
  ["norm", "Noise kernel norm"],
  ["loss", "Loss"],
  ["spectrum", "Spectrum"],
];

// Return a model without a host.
export function pageModel(values) {
  const listeners = new Set();
  return {
    get: (name) => values[name],
    set: (name, value) => (values[name] = value),
    save_changes: () => listeners.forEach((listener) => listener()),
    on: (_, listener) => listeners.add(listener),
    off: (_, listener) => listeners.delete(listener),
  };
}

// Whether what the host has computed belongs to these settings.
function belongs(computed, settings, names) {
  return Boolean(computed?.settings) && names.every((n) => computed.settings[n] === settings[n]);
}

function skeleton(element) {
  const figure = ([name, title]) =>
    `<figure class="panel" data-panel="${name}"><figcaption>${title}</figcaption>` +
    `<div class="chart"></div><ul class="legend"></ul><p class="note"></p></figure>`;
  element.innerHTML =
    `<div class="quadmodel-explorer"><div class="layout">` +
    `<form class="controls" aria-label="Settings"></form>` +
    `<div class="shown"><p class="verdict" role="status" aria-live="polite"></p>` +
    `<div class="panels">${PANELS.map(figure).join("")}</div></div></div></div>`;
  return element.querySelector(".quadmodel-explorer");
}

let views = 0;

// Draw the explorer in an element; returns a function that ends it.
export function render({ model, el }) {
  const root = skeleton(el);
  const source = model.get("source");
  const own = `quadmodel-view-${views++}`;
  const shown = new Map();
  const byName = new Map(source.families.map((family) => [family.name, family]));
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  const panel = (name) => root.querySelector(`[data-panel="${name}"]`);
  const charts = Object.fromEntries(PANELS.map(([n]) => [n, panel(n).querySelector(".chart")]));

  // Sizes are asked for when they change only: to know them, the browser has to lay out anew.
  const sizes = {};
  function measure() {
    for (const [name, { clientWidth, clientHeight }] of Object.entries(charts))
      sizes[name] = [clientWidth, clientHeight];
    later();
  }

  // Markup that is there already is left alone: what takes time is painting.
  function replace(element, markup) {
    if (shown.get(element) === markup) return;
    element.innerHTML = markup;
    shown.set(element, markup);
  }

  function put(name, description, note = "") {
    const [width, height] = sizes[name];
    if (width > 0) replace(charts[name], chart(description, width, height, `${own}-${name}`));
    replace(panel(name).querySelector(".legend"), legend(description.layers));
    replace(panel(name).querySelector(".note"), note);
  }

  const show = controls(root.querySelector("form"), source.families, (name, value) => {
    model.set(name, value);
    if (name === "spectrum") model.set("parameter", byName.get(value).default);
    if (name === "momentum" && value === 0) model.set("nesterov", false);
    model.save_changes();
    later();
  });
  let edges;
  let edgesFor;

  function draw() {
    const settings = Object.fromEntries(SETTINGS.map((name) => [name, model.get(name)]));
    const family = byName.get(settings.spectrum);
    const lam = family.eigenvalues[Math.max(0, family.values.indexOf(settings.parameter))];
    const { unit, residual, adjustable } = source;
    const context = { family, lam, unit, residual, adjustable };
    const sgd = settings;
    const computed = model.get("computed") ?? {};
    const ofEdges = belongs(computed.edges, settings, source.of_edges) ? computed.edges : null;
    const simulation = belongs(computed.simulation, settings, SETTINGS) ? computed.simulation : null;
    const exact = belongs(computed.norms, settings, source.of_norms) ? computed.norms : null;
    const range = [1e-3 / unit, 4 / unit];
    const key = JSON.stringify(source.of_edges.map((name) => settings[name]));
    if (edgesFor?.key !== key || edgesFor.computed !== ofEdges) {
      edges = edgesOf(lam, sgd, settings, family, source.table, ofEdges);
      edgesFor = { key, computed: ofEdges };
    }
    show(settings, context);
    const [kind, text] = verdict(lam, sgd, edges);
    const line = root.querySelector(".verdict");
    line.dataset.kind = kind;
    if (line.textContent !== text) line.textContent = text;
    const start = family.start ?? lam.map(() => residual ** 2);
    put("phase", phaseChart(lam, sgd, edges, range), noteOnEdges(ofEdges, sgd));
    put("norm", normChart(lam, sgd, edges, range, exact), exact ? "" : source.note_on_norms);
    const curved = source.curved || settings.curvature_strength > 0;
    put("loss", lossChart(lam, start, sgd, settings.steps, curved, simulation));
    put("spectrum", spectrumChart(lam, sgd, edges));
  }

  function noteOnEdges(ofEdges, sgd) {
    const notes = [];
    if (edges.nonlinear) {
      const ofTable = isTabulated(sgd) ? source.note_on_table : source.note_beyond_table;
      notes.push(ofEdges?.nonlinear ? source.note_on_computed : ofTable);
    }
    if (model.get("computed") === undefined) notes.push(source.note_on_no_host);
    else if (ofEdges?.typical && !isLine(edges.typical)) notes.push(source.note_on_no_typical);
    return notes.join(" ");
  }

  let waiting = null;
  function later() {
    waiting ??= requestAnimationFrame(() => {
      waiting = null;
      draw();
    });
  }

  model.on("change", later);
  const observer = new ResizeObserver(measure);
  observer.observe(root);
  measure();
  return () => {
    model.off("change", later);
    observer.disconnect();
    if (waiting !== null) cancelAnimationFrame(waiting);
  };
}

export default { render };
