import { shown } from "./draw.js";
import { geometric } from "./panels.js";

// Native inputs with labels, one per setting; sliders run over lists of values, so that every step
// of an arrow key changes something.

let instances = 0;

function nearest(values, value) {
  let best = 0;
  values.forEach((other, n) => {
    if (Math.abs(other - value) < Math.abs(values[best] - value)) best = n;
  });
  return best;
}

function sizes(nData) {
  const found = new Set(geometric(1, Math.max(nData, 2), 60).map(Math.round));
  return [...found].filter((size) => size <= nData).sort((a, b) => a - b);
}

// Return the settings' controls, given what depends on the spectrum.
function described({ family, lam, unit, residual, adjustable }) {
  const decays = [0, ...geometric(0.001, 1, 31)].map((value) => value * unit);
  return [
    { name: "learning_rate", label: "Learning rate η", values: geometric(1e-3 / unit, 4 / unit, 240) },
    { name: "batch_size", label: "Batch size B", values: sizes(lam.length) },
    { name: "momentum", label: "Momentum μ", values: Array.from({ length: 100 }, (_, n) => n / 100) },
    { name: "nesterov", label: "Nesterov’s momentum", kind: "checkbox" },
    { name: "weight_decay", label: "Weight decay ρ", values: decays },
    {
      name: "sampling",
      label: "Batches drawn",
      options: [
        ["without_replacement", "without replacement"],
        ["with_replacement", "with replacement"],
        ["bernoulli", "each point by itself (Bernoulli)"],
      ],
    },
    { name: "spectrum", label: "NTK spectrum" },
    { name: "parameter", label: family.parameter_label, values: family.values },
    {
      name: "curvature_strength",
      label: "Curvature strength q = σ√P",
      values: Array.from({ length: adjustable ? 33 : 1 }, (_, n) => ((n / 4) * unit) / residual),
    },
    { name: "steps", label: "Steps", values: [50, 100, 200, 300, 500, 700, 1000] },
  ];
}

// Build all controls in an element; `change(name, value)` is told what a user sets. Returns a
// function that shows the settings, to be called after every change.
export function controls(element, families, change) {
  const own = `quadmodel-${instances++}`;
  const rows = new Map();
  let known = new Map();

  function row({ name, label, kind, options, values }) {
    const box = element.ownerDocument.createElement("div");
    const id = `${own}-${name}`;
    box.className = "control";
    if (kind === "checkbox") {
      box.innerHTML = `<label><input type="checkbox" id="${id}"> ${label}</label>`;
    } else if (options) {
      const list = options.map(([value, text]) => `<option value="${value}">${text}</option>`);
      box.innerHTML = `<label for="${id}">${label}</label><select id="${id}">${list.join("")}</select>`;
    } else {
      box.innerHTML =
        `<label for="${id}">${label}</label><output for="${id}"></output>` +
        `<input type="range" id="${id}" min="0" max="${values.length - 1}" step="1">`;
    }
    element.append(box);
    const input = box.querySelector("input, select");
    input.dataset.setting = name;
    input.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take arrow keys for itself
    input.addEventListener(input.type === "range" ? "input" : "change", () => {
      if (kind === "checkbox") change(name, input.checked);
      else change(name, options ? input.value : known.get(name).values[input.valueAsNumber]);
    });
    return { box, input, label: box.querySelector("label"), output: box.querySelector("output") };
  }

  return function show(settings, context) {
    for (const description of described(context)) {
      const { name } = description;
      if (name === "spectrum") description.options = families.map((f) => [f.name, f.label]);
      known.set(name, description);
      if (!rows.has(name)) rows.set(name, row(description));
      const { box, input, label, output } = rows.get(name);
      const value = settings[name];
      if (description.values) {
        box.hidden = description.values.length < 2;
        label.textContent = description.label;
        input.max = description.values.length - 1;
        input.value = nearest(description.values, value);
        output.textContent = shown(value);
        input.setAttribute("aria-valuetext", shown(value));
      } else if (description.kind === "checkbox") {
        input.checked = value;
        input.disabled = settings.momentum === 0;
      } else {
        box.hidden = description.options.length < 2;
        input.value = value;
      }
    }
  };
}
