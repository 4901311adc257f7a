import {
  at_gradient_moment, bernoulli_covariance, cross_moment, dressed_response, forced_moment,
  heavy_ball_diagonal_pair_sum, heavy_ball_edges, heavy_ball_recursion, injected_moment,
  nesterov_diagonal_pair_sum, nesterov_edges, nesterov_recursion, next_mean, noise_covariance,
  paper_variance, propagated_moment, with_replacement_covariance, without_replacement_covariance,
} from "./formulas.js";

// What the linear model does, from its NTK's eigenvalues `lam` and `sgd`, an object with
// learning_rate, batch_size, momentum, nesterov, weight_decay and sampling. Which formula is called
// for is decided here as in quadmodel/theory; the formulas are the same.

// Return gamma, kappa of the batch weights.
export function batchWeights(sgd, norm, nData) {
  if (norm === "paper") return [paper_variance(sgd.batch_size / nData), 0];
  if (sgd.sampling === "with_replacement") return with_replacement_covariance(nData, sgd.batch_size);
  if (sgd.sampling === "bernoulli") return bernoulli_covariance(nData, sgd.batch_size);
  return nData === 1 ? [0, 1] : without_replacement_covariance(nData, sgd.batch_size);
}

// Return the learning rate above which full batches diverge.
export function deterministicEdge(lam, sgd) {
  const candidates = sgd.nesterov ? nesterov_edges(sgd.momentum) : heavy_ball_edges(sgd.momentum);
  return Math.min(...candidates.filter((value) => value > 0)) / (lam[0] + sgd.weight_decay);
}

// Return the noise kernel norm "paper" or "finite"; infinite at and above the deterministic edge.
export function noiseKernelNorm(lam, sgd, norm) {
  const eta = sgd.learning_rate;
  if (eta >= deterministicEdge(lam, sgd)) return Infinity;
  const nData = lam.length;
  const [gamma, kappa] = batchWeights(sgd, norm, nData);
  const pairSum = sgd.nesterov ? nesterov_diagonal_pair_sum : heavy_ball_diagonal_pair_sum;
  let sum = 0;
  for (const value of lam) {
    if (value === 0) continue;
    const step = eta * value;
    const bare = step * step * pairSum(eta * (value + sgd.weight_decay), sgd.momentum);
    sum += dressed_response(bare, gamma, kappa, nData);
  }
  return (gamma * sum) / nData;
}

// Return the learning rate at which K is 1, or the deterministic edge if it stays below.
export function criticalLearningRate(lam, sgd, norm, tolerance = 1e-14) {
  const edge = deterministicEdge(lam, sgd);
  const excess = (logFraction) => {
    const at = { ...sgd, learning_rate: edge * Math.exp(logFraction) };
    return Math.log(noiseKernelNorm(lam, at, norm));
  };
  let [high, above] = [-1e-14, excess(-1e-14)];
  if (!(above > 0)) return edge;
  let [low, below] = [-1, excess(-1)];
  while (below > 0) [high, above, low, below] = [low, below, 2 * low, excess(2 * low)];
  // Secants inside a bracket; an end that stays twice counts half (Illinois), and in between
  // halves, since K turns steep at the edge.
  for (let n = 0, side = 0; n < 200 && high - low > tolerance * Math.abs(low); n++) {
    const secant = high - (above * (high - low)) / (above - below);
    const inside = secant > low && secant < high && n % 3 < 2;
    const middle = inside ? secant : 0.5 * (low + high);
    const value = excess(middle);
    if (Math.abs(value) < tolerance) return edge * Math.exp(middle);
    if (value > 0) {
      [high, above] = [middle, value];
      if (side > 0) below *= 0.5;
      side = 1;
    } else {
      [low, below] = [middle, value];
      if (side < 0) above *= 0.5;
      side = -1;
    }
  }
  return edge * Math.exp(0.5 * (low + high));
}

// Return the mean loss after 0 ... steps steps in the closure in modes; `start` holds the mean
// squared residual of each mode. Infinite from where it overflows.
export function meanLoss(lam, start, sgd, steps) {
  const nData = lam.length;
  const [gamma, kappa] = batchWeights(sgd, "finite", nData);
  const [p, q] = sgd.nesterov ? [1 + sgd.momentum, sgd.momentum] : [1, 0];
  const recursion = sgd.nesterov ? nesterov_recursion : heavy_ball_recursion;
  const eta = sgd.learning_rate;
  const force = eta * sgd.weight_decay;
  const a = new Float64Array(nData);
  const b = new Float64Array(nData);
  for (let k = 0; k < nData; k++)
    [a[k], b[k]] = recursion(eta * (lam[k] + sgd.weight_decay), sgd.momentum);
  // The mean is linear in the initial residual: it is followed from 1, and squares are scaled.
  const mean = new Float64Array(nData).fill(1);
  const oldMean = mean.slice();
  const now = Float64Array.from(start);
  const cross = now.slice();
  const old = now.slice();
  const atGradient = new Float64Array(nData);
  const loss = new Float64Array(steps + 1);
  for (let t = 0; t <= steps; t++) {
    let total = 0;
    let atPoint = 0;
    for (let k = 0; k < nData; k++) {
      total += now[k];
      atGradient[k] = at_gradient_moment(now[k], cross[k], cross[k], old[k], p, q);
      atPoint += atGradient[k];
    }
    loss[t] = total / (2 * nData);
    if (!(loss[t] < 1e200)) return loss.fill(Infinity, t);
    for (let k = 0; k < nData; k++) {
      const [z, before, c] = [mean[k], oldMean[k], force];
      const noise = noise_covariance(atGradient[k], atPoint / nData, gamma, kappa, nData);
      const following =
        propagated_moment(a[k], a[k], b[k], b[k], now[k], cross[k], cross[k], old[k]) +
        start[k] * forced_moment(a[k], a[k], b[k], b[k], c, c, z, z, before, before) +
        injected_moment(eta * lam[k], eta * lam[k], noise);
      cross[k] = cross_moment(a[k], b[k], force * start[k], now[k], cross[k], z);
      old[k] = now[k];
      now[k] = following;
      [mean[k], oldMean[k]] = [next_mean(a[k], b[k], force, z, before), z];
    }
  }
  return loss;
}
