r"""One-step fluctuation of the quadratic form :math:`\ell = s^\top Ls` that grows by r exactly.

s is the residual, or with momentum the pair of the last two. Derived in
derivations/07-typical-stability.md; tests compare the contractions here with those derived there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory._recursion import COLUMNS, ROWS


class Eigenmatrices(NamedTuple):
    """Eigenmatrices of the second-moment map and of its adjoint, over pairs of modes.

    `now`, `cross`, `old` are the blocks of E s s^T, s = (z_t, z_(t-1)), and `adjoint_now`,
    `adjoint_cross`, `adjoint_old` those of L. `at_gradient` is E u u^T, u the residual where the
    gradient is evaluated; with this normalisation of L it is eta^2 Theta L_now Theta too.
    """

    growth: float
    now: FloatArray
    cross: FloatArray
    old: FloatArray
    adjoint_now: FloatArray
    adjoint_cross: FloatArray
    adjoint_old: FloatArray
    at_gradient: FloatArray


def eigenmatrices(
    lam: FloatArray, vectors: FloatArray, sgd: SGD, growth: float, per_point: FloatArray
) -> Eigenmatrices:
    r"""Return both eigenmatrices from the growth factor and the points' mean squared residuals.

    `per_point` is the Perron vector of the noise kernel discounted by `growth`; `lam` holds
    positive eigenvalues only. The noise kernel is symmetric, so the adjoint has the same Perron
    vector.
    """
    n_data = len(vectors)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    pair = lam[ROWS], lam[COLUMNS], sgd
    dressed = formulas.dressed_response(
        formulas.bare_response(*pair, growth=growth), gamma, kappa, n_data
    )
    point_noise = vectors.T @ (per_point[:, None] * vectors)
    at_gradient = gamma * dressed * point_noise
    noise = generated.noise_covariance(at_gradient, point_noise, gamma, kappa, n_data)
    now = at_gradient
    if sgd.nesterov:
        now = formulas.bare_response(*pair, growth=growth, at_gradient=False) * noise
    a, b = formulas.mode_recursion(lam, sgd)
    a, a_other, b, b_other = a[ROWS], a[COLUMNS], b[ROWS], b[COLUMNS]
    coefficient_now, coefficient_old = formulas.extrapolation(sgd)
    effective_step = sgd.learning_rate * lam
    adjoint = at_gradient / (effective_step[ROWS] * effective_step[COLUMNS])
    both = growth**2 - b * b_other
    cross = (growth * a - b * a_other) / both * now
    source = coefficient_now * coefficient_old * noise
    adjoint_cross = b * b_other * a_other * adjoint - growth * b_other * a * adjoint
    adjoint_cross = (adjoint_cross + (b_other - growth) * source) / both
    return Eigenmatrices(
        growth,
        now,
        cross,
        now / growth,
        adjoint,
        adjoint_cross,
        (b * b_other * adjoint + coefficient_old**2 * noise) / growth,
        at_gradient,
    )


class Fluctuation(NamedTuple):
    """How the form fluctuates in one step, at Gaussian s."""

    variance: float  # E Var(l' | s) / (r^2 E l^2)
    directions: float  # (E l)^2 / (Var l / 2), the number of directions of s that l consists of


def one_step_fluctuation(
    lam: FloatArray, vectors: FloatArray, sgd: SGD, m: Eigenmatrices
) -> Fluctuation:
    """Return the variance over all batches, relative to the form."""
    # l' = r l - 2 sum_i g_i u_i x_i + sum_ij N_ij u_i u_j (x_i x_j - E x_i x_j), x = w - 1,
    # u the residual at the gradient, g = eta Theta [L A s]_now, N = eta^2 Theta L_now Theta.
    a, b = formulas.mode_recursion(lam, sgd)
    coefficient_now, coefficient_old = formulas.extrapolation(sgd)
    effective_step = sgd.learning_rate * lam[:, None]
    # g = of_now z_t - of_old z_(t-1)
    of_now = effective_step * (m.adjoint_now * a + m.adjoint_cross)
    if sgd.momentum == 0.0:
        mixed = of_now @ m.now
        slope = mixed @ of_now.T
        product = m.adjoint_now @ m.now
    else:
        of_old = effective_step * (m.adjoint_now * b)
        with_now = of_now @ m.now - of_old @ m.cross.T
        with_old = of_now @ m.cross - of_old @ m.old
        mixed = coefficient_now * with_now - coefficient_old * with_old
        slope = with_now @ of_now.T - with_old @ of_old.T
        product = np.block(
            [[m.adjoint_now, m.adjoint_cross], [m.adjoint_cross.T, m.adjoint_old]]
        ) @ np.block([[m.now, m.cross], [m.cross.T, m.old]])
    squared_mean, spread = np.trace(product) ** 2, np.sum(product * product.T)
    square = squared_mean + 2 * spread
    point, mixed, slope = (vectors @ matrix @ vectors.T for matrix in (m.at_gradient, mixed, slope))
    weights = weight_moments(sgd, len(vectors))
    gamma, kappa = formulas.batch_weight_covariance(sgd, len(vectors))
    variance = (
        _second_order(point, mixed, slope, gamma, kappa)
        + _third_order(point, mixed, weights)
        + _fourth_order(point, weights, gamma, kappa)
    )
    return Fluctuation(
        max(float(variance / (m.growth**2 * square)), 0.0),  # below only by rounding
        float(squared_mean / spread),
    )


def _second_order(
    point: FloatArray, mixed: FloatArray, slope: FloatArray, gamma: float, kappa: float
) -> float:
    r"""Return :math:`4\sum_{ij}E[x_ix_j]E[g_iu_ig_ju_j]`.

    Moments at all data points: `point` E u u^T, `mixed` E g u^T, `slope` E g g^T.
    """
    own = np.diagonal(slope) @ np.diagonal(point) + 2 * np.sum(np.diagonal(mixed) ** 2)
    total = np.trace(mixed) ** 2 + np.sum(slope * point) + np.sum(mixed * mixed.T)
    return float(4 * gamma * (own - kappa * total / len(point)))


def _third_order(point: FloatArray, mixed: FloatArray, weights: WeightMoments) -> float:
    r"""Return :math:`-4\sum_{ijk}E[x_ix_jx_k]N_{jk}E[g_iu_iu_ju_k]`, N being `point`."""
    p, q = np.diagonal(point), np.diagonal(mixed)
    squared = point @ point
    across = mixed * point
    one = 3 * np.sum(p**2 * q)
    two = (
        q.sum() * (p @ p)
        + 2 * across.sum(axis=0) @ p
        + 4 * q @ np.diagonal(squared)
        + 2 * across.sum(axis=1) @ p
    )
    three = q.sum() * np.trace(squared) + 2 * np.sum(mixed * squared)
    return float(-4 * (weights.c3 * one + weights.c21 * two + weights.c111 * three))


def _fourth_order(point: FloatArray, weights: WeightMoments, gamma: float, kappa: float) -> float:
    r"""Return :math:`\sum(E[x_ix_jx_kx_l]-E[x_ix_j]E[x_kx_l])N_{ij}N_{kl}E[u_iu_ju_ku_l]`."""
    p, share = np.diagonal(point), kappa / len(point)
    squared = point @ point
    entries = point**2
    s = np.diagonal(squared)
    cubed = np.sum(p * np.sum(squared * point, axis=1))  # sum_i P_ii (P^3)_ii
    trace, fourth = np.trace(squared), np.sum(squared**2)
    pairs, mixed, quartic = (p @ p) ** 2, p @ entries @ p, np.sum(entries**2)
    joined = (p @ p) * trace + 2 * cubed
    free = trace**2 + 2 * fourth
    return float(
        weights.c4 * 3 * np.sum(p**4)
        + weights.c31 * 12 * (p**2) @ s
        + weights.c22 * (pairs + 4 * mixed + 4 * quartic)
        + weights.c211 * (2 * joined + 4 * cubed + 8 * np.sum(s**2))
        + weights.c1111 * free
        - gamma**2 * (pairs + 2 * mixed - 2 * share * joined + share**2 * free)
    )


class WeightMoments(NamedTuple):
    r"""Third and fourth moments of the batch weights x = w - 1, in products of deltas.

    :math:`E[x_ix_jx_k] = c_3\delta_{ijk} + c_{21}(\delta_{ij}+\delta_{jk}+\delta_{ik}) + c_{111}`
    and likewise :math:`E[x_ix_jx_kx_l]`: the digits of a coefficient's name are the block sizes of
    the partitions of the indices that it multiplies.
    """

    c3: float
    c21: float
    c111: float
    c4: float
    c31: float
    c22: float
    c211: float
    c1111: float


_HIGHER_MOMENTS = {
    "without_replacement": generated.without_replacement_fluctuations,
    "with_replacement": generated.with_replacement_fluctuations,
    "bernoulli": generated.bernoulli_fluctuations,
}
_ORDERS = (3, 3, 3, 4, 4, 4, 4, 4)


def weight_moments(sgd: SGD, n_data: int) -> WeightMoments:
    """Return the moments of the sampling scheme; exact up to the conversion to float."""
    if sgd.sampling == "without_replacement" and n_data < 4:
        return _of_few_points(n_data, sgd.batch_size)
    return WeightMoments(*map(float, _HIGHER_MOMENTS[sgd.sampling](n_data, sgd.batch_size)))


def _of_few_points(n_data: int, batch_size: int) -> WeightMoments:
    """Return the moments without replacement from at most three data points.

    There the general formula has poles. A batch of one point is drawn alike with replacement. Any
    other batch leaves out one point or none, and its x is a multiple of the x of a batch that holds
    just the point left out.
    """
    scale = 1.0 if batch_size == 1 else -(n_data - batch_size) / batch_size
    single = generated.with_replacement_fluctuations(n_data, 1)
    return WeightMoments(*(c * scale**order for c, order in zip(single, _ORDERS, strict=True)))
