// Closed forms of the theory. Written by `quadmodel derive`; not to be edited by hand.
// SymPy 1.14.0. The same formulas as in quadmodel/theory/_generated.py, whose docstrings hold
// them as equations. Arguments are numbers; several results come as an array. The arguments:
//
// - a: coefficient of z_t in a mode's recursion a z_t - b z_(t-1).
// - a_other: a of the other mode.
// - at_gradient: E u u' of two modes at the point of the gradient.
// - b: coefficient of -z_(t-1).
// - b_other: b of the other mode.
// - bare: response of a pair of modes.
// - batch_fraction: batch size over number of data points.
// - batch_size: number of points in a batch.
// - coefficient_now: coefficient p of the point p z_t - q z_(t-1) where the gradient is taken.
// - coefficient_old: coefficient q of that point.
// - cross: E z_t z_(t-1)' of two modes.
// - cross_other: E z_(t-1) z_t' of two modes.
// - effective_step: eta lambda of a mode.
// - effective_step_other: eta lambda of the other mode.
// - gamma: variance parameter of the batch weights.
// - kappa: correlation parameter of the batch weights.
// - mean: E z_t of a mode.
// - mean_other: E z_t of the other mode.
// - momentum: momentum.
// - n_data: number of data points.
// - noise: covariance of the batch noise between two modes.
// - now: E z_t z_t' of two modes.
// - old: E z_(t-1) z_(t-1)' of two modes.
// - old_mean: E z_(t-1) of a mode.
// - old_mean_other: E z_(t-1) of the other mode.
// - point_noise: V^T diag(E u_i^2) V between two modes.
// - weight_decay_force: eta rho z_0 of a mode.
// - weight_decay_force_other: eta rho z_0 of the other mode.
// - x: eta (lambda + rho) of a mode.

// Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).
// See derivations/01-batch-weights.md.
export function without_replacement_covariance(n_data, batch_size) {
  return [-n_data*(batch_size - n_data)/(batch_size*(n_data - 1)), 1];
}

// Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).
// See derivations/01-batch-weights.md.
export function with_replacement_covariance(n_data, batch_size) {
  return [n_data/batch_size, 1];
}

// Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).
// See derivations/01-batch-weights.md.
export function bernoulli_covariance(n_data, batch_size) {
  return [-(batch_size - n_data)/batch_size, 0];
}

// Return gamma without replacement for many data points.
// See derivations/01-batch-weights.md.
export function paper_variance(batch_fraction) {
  return -1 + 1/batch_fraction;
}

// Return a, b of a mode's noise-free z_(t+1) = a z_t - b z_(t-1).
// See derivations/02-second-moment.md.
export function heavy_ball_recursion(x, momentum) {
  return [momentum - x + 1, momentum];
}

// Return candidates for the edge in eta (lambda + rho), the least positive of them.
// See derivations/03-noise-kernel.md.
export function heavy_ball_edges(momentum) {
  return [2*momentum + 2];
}

// Return the pair sum of a mode with itself at the gradient, common factors cancelled.
// See derivations/03-noise-kernel.md.
export function heavy_ball_diagonal_pair_sum(x, momentum) {
  return (momentum + 1)/(x*(momentum - 1)*(-2*momentum + x - 2));
}

// Return a, b of a mode's noise-free z_(t+1) = a z_t - b z_(t-1).
// See derivations/02-second-moment.md.
export function nesterov_recursion(x, momentum) {
  const shared0 = x - 1;
  return [-shared0*(momentum + 1), -momentum*shared0];
}

// Return candidates for the edge in eta (lambda + rho), the least positive of them.
// See derivations/03-noise-kernel.md.
export function nesterov_edges(momentum) {
  const shared0 = 1/momentum;
  const shared1 = momentum + 1;
  return [shared0*(momentum - 1), shared0*shared1, 2*shared1/(2*momentum + 1)];
}

// Return the pair sum of a mode with itself at the gradient, common factors cancelled.
// See derivations/03-noise-kernel.md.
export function nesterov_diagonal_pair_sum(x, momentum) {
  const shared0 = momentum*x;
  const shared1 = shared0 + 1;
  return -(2*(momentum*momentum)*x + momentum + shared1)/(x*(-momentum + shared1)*(-2*momentum + 2*shared0 + x - 2));
}

// Return S = 1 / (1/S0 + kappa gamma/D).
// See derivations/03-noise-kernel.md.
export function dressed_response(bare, gamma, kappa, n_data) {
  return bare/(bare*gamma*kappa/n_data + 1);
}

// Return the noise-free part of the next second moment of two modes.
// See derivations/02-second-moment.md.
export function propagated_moment(a, a_other, b, b_other, now, cross, cross_other, old) {
  return a*a_other*now - a*b_other*cross - a_other*b*cross_other + b*b_other*old;
}

// Return the part of the next second moment that is due to weight decay.
// See derivations/02-second-moment.md.
export function forced_moment(a, a_other, b, b_other, weight_decay_force, weight_decay_force_other, mean, mean_other, old_mean, old_mean_other) {
  return weight_decay_force*(a_other*mean_other - b_other*old_mean_other) + weight_decay_force_other*(a*mean - b*old_mean + weight_decay_force);
}

// Return the part of the next second moment that the batch noise injects.
// See derivations/02-second-moment.md.
export function injected_moment(effective_step, effective_step_other, noise) {
  return effective_step*effective_step_other*noise;
}

// Return E z_(t+1) z_t' of two modes.
// See derivations/02-second-moment.md.
export function cross_moment(a, b, weight_decay_force, now, cross_other, mean_other) {
  return a*now - b*cross_other + mean_other*weight_decay_force;
}

// Return E z_(t+1) of a mode.
// See derivations/02-second-moment.md.
export function next_mean(a, b, weight_decay_force, mean, old_mean) {
  return a*mean - b*old_mean + weight_decay_force;
}

// Return E u u' of two modes at the point where the gradient is taken.
// See derivations/02-second-moment.md.
export function at_gradient_moment(now, cross, cross_other, old, coefficient_now, coefficient_old) {
  const shared0 = coefficient_now*coefficient_old;
  return (coefficient_now*coefficient_now)*now + (coefficient_old*coefficient_old)*old - cross*shared0 - cross_other*shared0;
}

// Return the covariance of the batch noise between two modes.
// See derivations/02-second-moment.md.
export function noise_covariance(at_gradient, point_noise, gamma, kappa, n_data) {
  return -at_gradient*gamma*kappa/n_data + gamma*point_noise;
}
