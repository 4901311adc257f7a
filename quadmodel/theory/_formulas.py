r"""The closed forms that every prediction is made of, each in one place.

Symbols: :math:`x = \eta(\lambda + \rho)` for one mode and :math:`y` for another, momentum
:math:`\mu`. In a mode, SGD without its noise is :math:`z_{t+1} = A z_t - B z_{t-1}`.
"""

from __future__ import annotations

import numpy as np

from quadmodel._validation import FloatArray
from quadmodel.optimizer import SGD


def batch_weight_covariance(sgd: SGD, n_data: int) -> tuple[float, float]:
    r"""Return :math:`\gamma, \kappa` of :math:`\mathrm{Cov}(w) = \gamma(I - \kappa 11^\top/D)`."""
    d, b = n_data, sgd.batch_size
    if sgd.sampling == "without_replacement":
        return (0.0, 1.0) if b == d else (d * (d - b) / (b * (d - 1)), 1.0)
    if sgd.sampling == "with_replacement":
        return d / b, 1.0
    return (d - b) / b, 0.0


def paper_weight_covariance(sgd: SGD, n_data: int) -> tuple[float, float]:
    r"""Return :math:`\gamma = 1/\beta - 1, \kappa = 0`: the high-dimensional limit of [1]_.

    References
    ----------
    .. [1] arXiv:2404.19261, section 3.
    """
    return n_data / sgd.batch_size - 1.0, 0.0


def mode_recursion(lam: FloatArray, sgd: SGD) -> tuple[FloatArray, FloatArray]:
    """Return the coefficients A and B of each mode's noiseless recursion."""
    x = sgd.learning_rate * (lam + sgd.weight_decay)
    if sgd.nesterov:
        return (1 + sgd.momentum) * (1 - x), sgd.momentum * (1 - x)
    return 1 + sgd.momentum - x, np.full_like(x, sgd.momentum)


def noiseless_edge(largest: float, sgd: SGD) -> float:
    r"""Return the learning rate at which the noiseless recursion stops contracting.

    Schur-Cohn: :math:`|B| < 1` and :math:`|A| < 1 + B`. Heavy ball: :math:`x = 2(1+\mu)`;
    Nesterov: :math:`x = 2(1+\mu)/(1+2\mu)`, or :math:`1 - 1/\mu` where :math:`\mu < -1/3`.
    """
    if largest <= 0:
        return np.inf
    mu = sgd.momentum
    if not sgd.nesterov:
        x = 2 * (1 + mu)
    elif mu >= -1 / 3:
        x = 2 * (1 + mu) / (1 + 2 * mu)
    else:
        x = 1 - 1 / mu
    return x / (largest + sgd.weight_decay)


def noiseless_decay(lam: FloatArray, sgd: SGD) -> float:
    """Return the slowest mode's factor per step on the second moment, without noise."""
    a, b = mode_recursion(lam, sgd)
    roots = np.abs(0.5 * (a + np.sqrt((a * a - 4 * b).astype(complex))))
    other = np.abs(0.5 * (a - np.sqrt((a * a - 4 * b).astype(complex))))
    return float(np.maximum(roots, other).max()) ** 2


def pair_response(
    lam: FloatArray,
    lam_other: FloatArray,
    sgd: SGD,
    *,
    growth: float = 1.0,
    at_gradient: bool = True,
) -> FloatArray:
    r"""Return the summed response :math:`S^0` of a pair of modes to a unit of gradient noise.

    With :math:`h_n` the response, n steps later, of the point where the gradient is evaluated
    (`at_gradient`) or of the residual itself, and r the `growth` factor that discounts it:

    .. math:: S^0 = \eta^2\lambda\lambda' \sum_{n\ge0} r^{-n-1} h_n h'_n

    Plain SGD, r = 1: :math:`\eta/(1/\lambda + 1/\lambda' - \eta)`. The sum is solved from the
    linear system for the four products of two-step states and written around r = 1 so that nothing
    cancels there for small learning rates. Modes with :math:`\lambda = 0` carry 0.
    """
    eta, mu = sgd.learning_rate, sgd.momentum
    x, y = eta * (lam + sgd.weight_decay), eta * (lam_other + sgd.weight_decay)
    a, b = mode_recursion(lam, sgd)
    a_other, b_other = mode_recursion(lam_other, sgd)
    aa, bb = a * a_other, b * b_other
    if sgd.nesterov:
        at_one = (
            (1 - mu) ** 2 * (1 + mu) * (x + y)
            + mu * (1 + mu - mu**2) * (x * x + y * y)
            - (1 - 2 * mu - mu**2 + 4 * mu**3) * x * y
            + mu * (3 * mu**2 - 1) * x * y * (x + y)
            - mu**2 * (1 + 2 * mu) * (x * y) ** 2
        )
    else:
        at_one = (1 - mu) ** 2 * ((1 + mu) * (x + y) - x * y) + mu * (x - y) ** 2
    r = growth
    beyond = (
        (r + 1) * (r * r + 1)
        - (r * r + r + 1) * aa
        + (r + 1) * (a * a * b_other + a_other * a_other * b - 2 * bb)
        - aa * bb
    )
    denominator = at_one + (r - 1) * beyond
    numerator = r * (r * r - bb)
    if sgd.nesterov and at_gradient:
        numerator = ((1 + mu) ** 2 * r + mu**2) * (r * r - bb) - mu * (1 + mu) * r * (
            r * (a + a_other) - b * a_other - b_other * a
        )
        if growth == 1.0:
            # On the diagonal 1 - b^2 divides both, and vanishes at the edge where mu < -1/3.
            same = x == y
            numerator = np.where(
                same, ((1 + mu) ** 2 + mu**2) * (1 + b) - 2 * mu * (1 + mu) * a, numerator
            )
            denominator = np.where(
                same, (1 - mu + mu * x) * x * (2 * (1 + mu) - x * (1 + 2 * mu)), denominator
            )
    drive = eta * eta * lam * lam_other
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(drive > 0, drive * numerator / denominator, 0.0)


def dressed_response(bare: FloatArray, gamma: float, kappa: float, n_data: int) -> FloatArray:
    r"""Return :math:`S = 1/(1/S^0 + \kappa\gamma/D)`: the response with the batch's fixed sum."""
    with np.errstate(invalid="ignore"):
        dressed = bare / (1 + kappa * gamma / n_data * bare)
    return np.where(np.isinf(bare), n_data / (kappa * gamma) if kappa * gamma else np.inf, dressed)
