import { shown } from "./draw.js";
import {
  criticalLearningRate, deterministicEdge, meanLoss, noiseKernelNorm,
} from "./theory.js";

// What the panels show: from the settings and what the host has computed to charts.

const CURVE_POINTS = 120;
const EDGE_POINTS = 32;
// Relative precision, in the logarithm, that is far below a pixel.
const PIXEL = 1e-5;
// Losses are drawn over at most so many orders of magnitude below and above the first one.
const [BELOW, ABOVE] = [1e-6, 1e3];

export function geometric(low, high, count) {
  return Array.from({ length: count }, (_, n) => low * (high / low) ** (n / (count - 1)));
}

// Interpolate linearly along the first axis of a nested array; null is no value.
function between(grid, at, values) {
  let k = 0;
  while (k < grid.length - 2 && at >= grid[k + 1]) k++;
  const right = (at - grid[k]) / (grid[k + 1] - grid[k]);
  const mix = (a, b) => {
    if (Array.isArray(a)) return a.map((entry, n) => mix(entry, b[n]));
    if (right === 0) return a;
    if (right === 1) return b;
    return a === null || b === null ? null : (1 - right) * a + right * b;
  };
  return mix(values[k], values[k + 1]);
}

// Return the nonlinear edge over the linear model's from the page's table; NaN if there is none.
export function tabulatedShare(table, family, parameter, batchSize, strength) {
  if (!table.shares[family.name]) return NaN;
  const place = family.logarithmic ? Math.log : (value) => value;
  let values = between(family.tabulated.map(place), place(parameter), table.shares[family.name]);
  values = [values[0].map(() => 1), ...values];
  values = between(table.curvature_strengths, strength, values);
  return between(table.batch_sizes.map(Math.log), Math.log(batchSize), values) ?? NaN;
}

// Whether these are the optimizer and the sampling scheme that the page's table is of.
export function isTabulated({ momentum, weight_decay, sampling }) {
  return momentum === 0 && weight_decay === 0 && sampling === "without_replacement";
}

// Return the edges over batch sizes: of the linear model from its formulas, the nonlinear one from
// the host where it has computed it, else from the table; `rough` if the table is of another SGD.
export function edgesOf(lam, sgd, settings, family, table, computed) {
  const sizes = geometric(1, lam.length, EDGE_POINTS);
  const at = (size) => ({ ...sgd, batch_size: size });
  const found = {
    sizes,
    deterministic: deterministicEdge(lam, sgd),
    paper: sizes.map((size) => criticalLearningRate(lam, at(size), "paper", PIXEL)),
    finite: sizes.map((size) => criticalLearningRate(lam, at(size), "finite", PIXEL)),
  };
  const { parameter, curvature_strength: strength } = settings;
  const share = (size) => tabulatedShare(table, family, parameter, size, strength);
  const nonlinear = sizes.map((size, n) => [size, found.finite[n] * share(size)]);
  found.nonlinear = strength > 0 && nonlinear.some(([, rate]) => rate > 0) ? nonlinear : null;
  found.rough = found.nonlinear !== null && !computed?.nonlinear && !isTabulated(sgd);
  for (const name of ["exact", "typical", "nonlinear"])
    if (computed?.[name]) {
      const rates = computed[name];
      found[name] = computed.batch_size.map((size, n) => [size, rates[n] ?? NaN]);
    }
  return found;
}

// Whether there is a line to draw: of typical edges there may be that of the full batch alone.
export function isLine(points) {
  return points?.filter(([, rate]) => rate > 0).length > 1;
}

// Return the learning rate of an edge, given as points, at a batch size.
export function edgeAt(points, batchSize) {
  if (!points) return NaN;
  const rates = points.map(([, rate]) => Math.log(rate));
  const sizes = points.map(([size]) => Math.log(size));
  return sizes.length < 2 ? Math.exp(rates[0]) : Math.exp(between(sizes, Math.log(batchSize), rates));
}

// Say in words what is predicted.
export function verdict(lam, sgd, edges) {
  const norm = noiseKernelNorm(lam, sgd, "finite");
  const nonlinear = edgeAt(edges.nonlinear, sgd.batch_size);
  const exact = edgeAt(edges.exact, sgd.batch_size);
  const eta = sgd.learning_rate;
  const finite = `K (finite) = ${shown(norm)}`;
  if (eta >= edges.deterministic)
    return ["unstable", "Unstable: beyond the deterministic edge, where full batches diverge too."];
  if (norm >= 1) return ["unstable", `Unstable: ${finite}, above 1. The mean loss diverges.`];
  if (eta >= exact)
    return ["unstable", `Unstable: ${finite}, but exact K is above 1. The mean loss diverges.`];
  if (eta >= nonlinear) {
    const there = noiseKernelNorm(lam, { ...sgd, learning_rate: nonlinear }, "finite");
    const edge = Number.isFinite(there) ? `, which lies at an initial K of ${shown(there, 2)}` : "";
    if (edges.rough)
      return ["unstable", `May diverge: ${finite}, but beyond a rough nonlinear edge${edge}.`];
    return ["unstable", `Diverges: ${finite}, but beyond the nonlinear edge${edge}.`];
  }
  return ["stable", `Stable in mean square: ${finite}, below 1.`];
}

// ---- the charts

export function spectrumChart(lam, sgd, edges) {
  const points = lam.map((value, n) => [n + 1, value]).filter(([, value]) => value > 1e-9 * lam[0]);
  const unstableFrom = (edges.deterministic * (lam[0] + sgd.weight_decay)) / sgd.learning_rate;
  const edge = unstableFrom - sgd.weight_decay;
  const low = points[points.length - 1][1];
  return {
    label: "Eigenvalues of the NTK, and the eigenvalue above which modes are unstable",
    x: { label: "mode", log: true, range: [0.9, 1.1 * Math.max(lam.length, 2)] },
    y: {
      label: "NTK eigenvalue",
      log: true,
      range: [0.7 * Math.min(low, edge), 1.5 * Math.max(lam[0], Math.min(edge, 50 * lam[0]))],
    },
    layers: [
      { style: "dots", points: dotted(points) },
      { style: "deterministic", horizontal: edge, name: "edge: full batches diverge above" },
      { style: "spectrum", points, name: "eigenvalues" },
    ],
  };
}

// Short dashes at the points themselves, so that few modes are seen one by one.
function dotted(points) {
  return points.flatMap(([x, y]) => [[x * 0.98, y], [x * 1.02, y], [NaN, NaN]]);
}

export function normChart(lam, sgd, edges, range, exact) {
  const top = Math.min(range[1], 1.3 * edges.deterministic);
  const rates = geometric(range[0], Math.min(top, edges.deterministic * (1 - 1e-9)), CURVE_POINTS);
  const curve = (norm) =>
    rates.map((rate) => [rate, noiseKernelNorm(lam, { ...sgd, learning_rate: rate }, norm)]);
  const finite = curve("finite");
  const now = noiseKernelNorm(lam, sgd, "finite");
  const layers = [
    { style: "one", horizontal: 1 },
    {
      style: "deterministic",
      vertical: edges.deterministic,
      name: "deterministic edge",
    },
    { style: "paper", points: curve("paper"), name: "paper’s limit" },
    { style: "finite", points: finite, name: "finite D" },
  ];
  if (exact) {
    const points = exact.learning_rate.map((rate, n) => [rate, exact.norm[n] ?? NaN]);
    layers.push({ style: "exact", points, name: "exact" });
  }
  layers.push({ style: "here", at: [sgd.learning_rate, Math.min(now, 1e3)], name: "here" });
  const high = Math.max(3, Math.min(1.5 * now, 30));
  return {
    label: `Noise kernel norm against learning rate; here ${shown(now)}`,
    x: { label: "learning rate η", log: true, range: [range[0], Math.max(top, sgd.learning_rate)] },
    y: { label: "noise kernel norm K", log: true, range: [1e-2, high] },
    layers,
  };
}

export function lossChart(lam, start, sgd, steps, curved, simulation) {
  const loss = meanLoss(lam, start, sgd, steps);
  const points = Array.from(loss, (value, n) => [n, value]).filter(([, v]) => v < 1e200);
  const values = points.map(([, value]) => value);
  const layers = [];
  if (simulation) {
    const { step, runs, mean } = simulation;
    const flat = curved && !simulation.curved ? ", without the curvature" : "";
    const line = (values) => step.map((n, k) => [n, values[k] ?? NaN]);
    for (const run of runs) layers.push({ style: "run", points: line(run) });
    layers[0].name = `simulated runs${flat}`;
    layers.push({ style: "simulated", points: line(mean), name: "their mean" });
    values.push(...mean.filter((value) => value !== null));
  }
  const model = curved ? "predicted, without the curvature" : "predicted";
  layers.push({ style: "finite", points, name: `mean loss, ${model}` });
  const [least, most] = [Math.min(...values), Math.max(...values)];
  return {
    label: `Mean loss over ${steps} steps, predicted; at the end ${shown(loss[steps])}`,
    x: { label: "step", log: false, range: [0, steps] },
    y: {
      label: "loss",
      log: true,
      range: [0.7 * Math.max(least, BELOW * loss[0]), 1.5 * Math.min(most, ABOVE * loss[0])],
    },
    layers,
  };
}

// Return up to where a batch size is stable, by the edge that knows most of those there are.
function limit(edges, size, n) {
  const known = [edgeAt(edges.nonlinear, size), edgeAt(edges.exact, size), edges.finite[n]];
  return Math.min(known.find((rate) => rate > 0), edges.deterministic);
}

export function phaseChart(lam, sgd, edges, range) {
  const { sizes } = edges;
  const line = (rates) => sizes.map((size, n) => [size, rates[n]]);
  const layers = [
    { style: "stable", below: sizes.map((size, n) => [size, limit(edges, size, n)]) },
    {
      style: "deterministic",
      points: [[sizes[0], edges.deterministic], [lam.length, edges.deterministic]],
      name: "deterministic edge",
    },
    { style: "paper", points: line(edges.paper), name: "K = 1, paper’s limit" },
    { style: "finite", points: line(edges.finite), name: "K = 1, finite D" },
  ];
  const more = [
    ["exact", "K = 1, exact"],
    ["typical", "typical edge"],
    ["nonlinear", edges.rough ? "nonlinear edge, roughly: from plain SGD" : "nonlinear edge"],
  ];
  for (const [kind, name] of more) {
    const points = edges[kind];
    const style = kind === "nonlinear" && edges.rough ? "nonlinear rough" : kind;
    if (isLine(points)) layers.push({ style, points, name });
  }
  layers.push({ style: "here", at: [sgd.batch_size, sgd.learning_rate], name: "here" });
  const low = Math.min(edges.finite[0], edges.paper[0], sgd.learning_rate);
  return {
    label: "Phase diagram of learning rate against batch size, with the predicted edges",
    x: { label: "batch size B", log: true, range: [0.93, 1.07 * lam.length] },
    y: {
      label: "learning rate η",
      log: true,
      range: [0.5 * Math.max(low, range[0]), 2 * Math.max(edges.deterministic, sgd.learning_rate)],
    },
    layers,
  };
}
