// Charts as SVG: a description of axes and layers in, markup out.

const MARGIN = { left: 58, right: 12, top: 10, bottom: 40 };
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Return a number as readers see it: plain where that is short, else with a power of ten.
export function shown(value, digits = 3) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "none" : value > 0 ? "∞" : "−∞";
  const exponent = Math.floor(Math.log10(Math.abs(value)) + 1e-9);
  if (exponent >= -4 && exponent < 5)
    return String(Number(value.toPrecision(digits))).replace("-", "−");
  const mantissa = Number((value / 10 ** exponent).toPrecision(digits));
  const power = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[digit]).join("");
  const factor = mantissa === 1 ? "" : `${mantissa} · `;
  return `${factor}10${exponent < 0 ? "⁻" : ""}${power}`;
}

// Return the values at which an axis has ticks, some `apart` pixels from each other.
export function ticks({ range: [low, high], log }, pixels, apart) {
  if (!log) {
    const rough = ((high - low) * apart) / pixels;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length: count }, (_, n) => (first + n) * step);
  }
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const decade = pixels / Math.log10(high / low);
  const factors = 0.3 * decade > apart ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(apart / decade));
  const found = [];
  for (let n = from; n <= to; n++)
    if (n % every === 0) for (const factor of factors) found.push(factor * 10 ** n);
  return found.filter((value) => value >= low * 0.9999 && value <= high * 1.0001);
}

// Return a function from values of an axis to pixels.
function scale({ range: [low, high], log }, from, to) {
  const place = log ? (value) => Math.log(value) : (value) => value;
  const slope = (to - from) / (place(high) - place(low));
  return (value) => from + slope * (place(value) - place(low));
}

// Return the path through points, broken where there is none; far outside they are cut off.
function path(points, x, y, height) {
  let text = "";
  let pen = "M";
  for (const [left, up] of points) {
    const [px, py] = [x(left), y(up)];
    if (Number.isNaN(px) || Number.isNaN(py) || px === Infinity || px === -Infinity) {
      pen = "M";
      continue;
    }
    const cut = Math.min(Math.max(py, -height), 2 * height);
    text += `${pen}${px.toFixed(1)} ${cut.toFixed(1)}`;
    pen = "L";
  }
  return text;
}

// Return the markup of a chart, in which `id` names what is cut off at the frame. Layers are lines ({points}), areas below a line ({below}), places
// on one axis ({vertical} or {horizontal}) and one marked point ({at}); `style` is their class.
export function chart({ label, x: xAxis, y: yAxis, layers }, width, height, id) {
  const [right, bottom] = [width - MARGIN.right, height - MARGIN.bottom];
  const x = scale(xAxis, MARGIN.left, right);
  const y = scale(yAxis, bottom, MARGIN.top);
  const parts = [
    `<svg role="img" aria-label="${label}" width="${width}" height="${height}" `,
    `viewBox="0 0 ${width} ${height}"><clipPath id="${id}"><rect x="${MARGIN.left}" `,
    `y="${MARGIN.top}" width="${right - MARGIN.left}" height="${bottom - MARGIN.top}"/></clipPath>`,
  ];
  for (const value of ticks(xAxis, right - MARGIN.left, 42)) {
    const at = x(value).toFixed(1);
    parts.push(
      `<path class="grid" d="M${at} ${MARGIN.top}V${bottom}"/>`,
      `<text class="tick" x="${at}" y="${bottom + 16}" text-anchor="middle">${shown(value)}</text>`,
    );
  }
  for (const value of ticks(yAxis, bottom - MARGIN.top, 20)) {
    const at = y(value).toFixed(1);
    parts.push(
      `<path class="grid" d="M${MARGIN.left} ${at}H${right}"/>`,
      `<text class="tick" x="${MARGIN.left - 6}" y="${at}" dy="0.35em" text-anchor="end">`,
      `${shown(value)}</text>`,
    );
  }
  const middle = (MARGIN.top + bottom) / 2;
  parts.push(
    `<text class="axis" x="${(MARGIN.left + right) / 2}" y="${height - 6}" text-anchor="middle">`,
    `${xAxis.label}</text><text class="axis" transform="translate(13 ${middle}) rotate(-90)" `,
    `text-anchor="middle">${yAxis.label}</text><g clip-path="url(#${id})">`,
  );
  for (const { style, points, below, vertical, horizontal, at } of layers) {
    if (below) {
      const line = path(below, x, y, height);
      const [first, last] = [below[0][0], below[below.length - 1][0]].map((v) => x(v).toFixed(1));
      parts.push(`<path class="${style}" d="${line}L${last} ${bottom}L${first} ${bottom}Z"/>`);
    }
    if (points) parts.push(`<path class="line ${style}" d="${path(points, x, y, height)}"/>`);
    if (vertical !== undefined)
      parts.push(`<path class="line ${style}" d="M${x(vertical).toFixed(1)} ${MARGIN.top}V${bottom}"/>`);
    if (horizontal !== undefined)
      parts.push(`<path class="line ${style}" d="M${MARGIN.left} ${y(horizontal).toFixed(1)}H${right}"/>`);
    if (at) {
      const inside = Math.min(Math.max(y(at[1]), MARGIN.top + 6), bottom - 6);
      parts.push(
        `<circle class="${style}" cx="${x(at[0]).toFixed(1)}" cy="${inside.toFixed(1)}" r="6"/>`,
      );
    }
  }
  parts.push(
    `</g><rect class="frame" x="${MARGIN.left}" y="${MARGIN.top}" `,
    `width="${right - MARGIN.left}" height="${bottom - MARGIN.top}"/></svg>`,
  );
  return parts.join("");
}

// Return the legend of all layers that have a name.
export function legend(layers) {
  const named = layers.filter(({ name }) => name);
  const sample = ({ style, at }) =>
    at
      ? `<circle class="${style}" cx="14" cy="6" r="5"/>`
      : `<path class="line ${style}" d="M0 6H28"/>`;
  return named
    .map((l) => `<li><svg aria-hidden="true" width="28" height="12">${sample(l)}</svg>${l.name}</li>`)
    .join("");
}
