"""Which emitted formula an SGD calls for; the formulas themselves are in `_generated`."""

from __future__ import annotations

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _generated as generated

_COVARIANCES = {
    "without_replacement": generated.without_replacement_covariance,
    "with_replacement": generated.with_replacement_covariance,
    "bernoulli": generated.bernoulli_covariance,
}


def batch_weight_covariance(sgd: SGD, n_data: int) -> tuple[float, float]:
    r"""Return :math:`\gamma, \kappa` of :math:`\mathrm{Cov}(w) = \gamma(I - \kappa 11^\top/D)`."""
    if n_data == 1 and sgd.sampling == "without_replacement":
        return 0.0, 1.0  # the formula is 0/0 there
    gamma, kappa = _COVARIANCES[sgd.sampling](n_data, sgd.batch_size)
    return float(gamma), float(kappa)


def paper_weight_covariance(sgd: SGD, n_data: int) -> tuple[float, float]:
    r"""Return :math:`\gamma = 1/\beta - 1, \kappa = 0`: the high-dimensional limit."""
    return float(generated.paper_variance(sgd.batch_size / n_data)), 0.0


def mode_recursion(lam: FloatArray, sgd: SGD) -> tuple[FloatArray, FloatArray]:
    """Return a and b of each mode's recursion without noise, z_(t+1) = a z_t - b z_(t-1)."""
    recursion = generated.nesterov_recursion if sgd.nesterov else generated.heavy_ball_recursion
    a, b = recursion(sgd.learning_rate * (lam + sgd.weight_decay), sgd.momentum)
    return a, np.broadcast_to(b, np.shape(a))


def extrapolation(sgd: SGD) -> tuple[float, float]:
    """Return p, q of the residual p z_t - q z_(t-1) where the gradient is evaluated."""
    return (1 + sgd.momentum, sgd.momentum) if sgd.nesterov else (1.0, 0.0)


def noiseless_edge(largest: float, sgd: SGD) -> float:
    """Return the learning rate at which the recursion without noise stops contracting."""
    if largest <= 0:
        return np.inf
    candidates = generated.nesterov_edges if sgd.nesterov else generated.heavy_ball_edges
    with np.errstate(divide="ignore"):
        edges = candidates(np.float64(sgd.momentum))
    return float(min(x for x in edges if x > 0)) / (largest + sgd.weight_decay)


def beyond_floats(largest: float, sgd: SGD) -> bool:
    """Return whether a step multiplies residuals by so much that its powers overflow."""
    return sgd.learning_rate * (largest + sgd.weight_decay) > 1e50


def noiseless_decay(lam: FloatArray, sgd: SGD) -> float:
    """Return the slowest mode's factor per step on the second moment, without noise."""
    a, b = mode_recursion(lam, sgd)
    roots = generated.recursion_roots(a.astype(complex), b)
    return float(np.abs(roots).max()) ** 2


def bare_response(
    lam: FloatArray,
    lam_other: FloatArray,
    sgd: SGD,
    *,
    growth: float = 1.0,
    at_gradient: bool = True,
) -> FloatArray:
    r"""Return the bare response :math:`S^0` of two modes to a unit of gradient noise.

    It is :math:`\eta^2\lambda\lambda'` times their pair sum: over all later steps, the product of
    both modes' responses, discounted by `growth` per step. These are responses of the residual at
    the point where the gradient is evaluated (`at_gradient`), or of the residual itself. It is zero
    where either eigenvalue is zero.
    """
    eta, mu = sgd.learning_rate, sgd.momentum
    x, y = eta * (lam + sgd.weight_decay), eta * (lam_other + sgd.weight_decay)
    if not sgd.nesterov:
        of_pair, of_mode = (
            generated.heavy_ball_pair_sum_at_gradient,
            generated.heavy_ball_diagonal_pair_sum,
        )
    elif at_gradient:
        of_pair, of_mode = (
            generated.nesterov_pair_sum_at_gradient,
            generated.nesterov_diagonal_pair_sum,
        )
    else:
        of_pair, of_mode = generated.nesterov_pair_sum_at_residual, None
    squared_step = (eta * lam) * (eta * lam_other)  # eta^2 alone may underflow
    with np.errstate(divide="ignore", invalid="ignore"):
        response = of_pair(x, y, mu, growth)
        if growth == 1.0 and of_mode is not None:
            # On the diagonal numerator and denominator can vanish together at the edge.
            response = np.where(x == y, of_mode(x, mu), response)
        return np.where(squared_step != 0, squared_step * response, 0.0)


def dressed_response(bare: FloatArray, gamma: float, kappa: float, n_data: int) -> FloatArray:
    r"""Return the response of two modes with the correlation of the batch weights.

    :math:`S = 1/(1/S^0 + \kappa\gamma/D)`, also where the bare response :math:`S^0` is infinite.
    """
    with np.errstate(invalid="ignore"):
        dressed = generated.dressed_response(bare, gamma, kappa, n_data)
    return np.where(np.isinf(bare), n_data / (kappa * gamma) if kappa * gamma else np.inf, dressed)
