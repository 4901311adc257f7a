r"""Typical growth: the quadratic form that grows exactly, and its one-step variance.

Let L be the eigenmatrix of the adjoint of the second-moment map, with the growth factor r. Then
:math:`\ell = z^\top Lz` has :math:`E[\ell'|z] = r\ell` for every z. With :math:`x = w - 1`, the
residual u where the gradient is taken, :math:`g = \eta\Theta LAz` (A the noise-free step) and
:math:`N = \eta^2\Theta L\Theta`,

.. math:: \ell' - r\ell = -2\sum_ig_iu_ix_i + \sum_{ij}N_{ij}u_iu_j(x_ix_j - E x_ix_j)

u and g are linear in the state, so at a Gaussian state Wick's theorem gives the variance.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import sympy as sp

from quadmodel.symbolic import linear
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import RESIDUAL, GaussianField, average, independent
from quadmodel.symbolic.algebra.indices import (
    DATA,
    PARAMETERS,
    Index,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.names import D, eta, gamma, kappa
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, delta
from quadmodel.symbolic.algebra.sampling import (
    SamplingScheme,
    as_scheme,
    average_batches,
    delta_coefficient,
    fluctuations,
    partitions,
)

WEIGHTS = Tensor("w", (DATA,))
FLUCTUATION = Tensor("x", (DATA,))
ADJOINT = Tensor("L", (DATA, DATA), (0, 0))
FORM = Tensor("N", (DATA, DATA), (0, 0))  # eta^2 Theta L Theta
POINT = Tensor("U", (DATA, DATA), (0, 0))  # E u u^T
MIXED = Tensor("Y", (DATA, DATA))  # E g u^T
SLOPE = Tensor("Z", (DATA, DATA), (0, 0))  # E g g^T

# u and g as linear maps of independent Gaussians; only their joint second moments matter.
_STATE = Tensor("s", (PARAMETERS,))
_TO_POINT = Tensor("u", (DATA, PARAMETERS))
_TO_SLOPE = Tensor("g", (DATA, PARAMETERS))

# Block sizes of the partitions of three and of four places, in the order of emitted results
HIGHER_ORDERS = ((3,), (1, 2), (1, 1, 1), (4,), (1, 3), (2, 2), (1, 1, 2), (1, 1, 1, 1))


def adjoint_step() -> Polynomial:
    r"""Return the matrix of :math:`E[\ell'|z]` for plain SGD: the adjoint map, applied to L."""
    a, b, c, d = data_indices("abcd")
    product = _step(c, a) * ADJOINT(c, d) * _step(d, b)
    return average_batches(product.sum(c, d), WEIGHTS)


def deviation() -> tuple[Polynomial, Polynomial]:
    r"""Return the parts of :math:`\ell'` of first and of second order in x, for plain SGD."""
    a, b, c, d = data_indices("abcd")
    form = _step(c, a) * ADJOINT(c, d) * _step(d, b) * RESIDUAL(a) * RESIDUAL(b)
    whole = form.sum(a, b, c, d).replace(WEIGHTS, lambda i: FLUCTUATION(i) + 1)
    orders = [sum(t == FLUCTUATION for t, _ in monomial) for monomial in whole.terms]
    parts = (
        {m: scale for (m, scale), n in zip(whole.terms.items(), orders, strict=True) if n == order}
        for order in (1, 2)
    )
    first, second = map(Polynomial, parts)
    return first, second


def mean_square() -> Polynomial:
    r"""Return :math:`E\ell^2` at a Gaussian state, in L and the second moment M."""
    a, b, c, d = data_indices("abcd")
    M, z = linear.moment(0, 0), RESIDUAL
    product = ADJOINT(a, b) * ADJOINT(c, d) * z(a) * z(b) * z(c) * z(d)
    field = GaussianField(z, lambda one, other: M(*one, *other))
    return average(product.sum(a, b, c, d), field)


def _step(row: Index, column: Index) -> Polynomial:
    step: Polynomial = delta(row, column) - eta * linear.NTK(row, column) * WEIGHTS(column)
    return step


class Variance(NamedTuple):
    """Parts of the variance, of second, third and fourth order in the weights' fluctuation."""

    second: Polynomial
    third: Polynomial
    fourth: Polynomial


def one_step_variance(sampling: str | SamplingScheme | None = None) -> Variance:
    r"""Return :math:`E_s\mathrm{Var}(\ell'|s)` over Gaussian states s.

    Parameters
    ----------
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`; None leaves the moments of the weights
        as symbols: :math:`\gamma, \kappa` and those of :func:`higher_moment_symbols`.

    Returns
    -------
    Variance
        In N and the moments :math:`U = E uu^\top, Y = E gu^\top, Z = E gg^\top` at all data points.

    Notes
    -----
    Momentum changes the values of U, Y and Z, and not the formula.

    References
    ----------
    .. [1] derivations/07-typical-stability.md.
    """
    a, b, c, d = data_indices("abcd")
    law = symbolic_fluctuations() if sampling is None else fluctuations(sampling)

    def mean(product: Polynomial) -> Polynomial:
        return average_batches(product, FLUCTUATION, law)

    def first_order(i: Index) -> Polynomial:
        product: Polynomial = -2 * _linear(_TO_SLOPE, i) * _linear(_TO_POINT, i)
        return product

    def second_order(i: Index, j: Index) -> Polynomial:
        product: Polynomial = FORM(i, j) * _linear(_TO_POINT, i) * _linear(_TO_POINT, j)
        return product

    x = FLUCTUATION
    pair, other = mean(x(a) * x(b)), mean(x(c) * x(d))
    second = mean(x(a) * x(b)) * first_order(a) * first_order(b)
    third = mean(x(a) * x(b) * x(c)) * first_order(a) * second_order(b, c) * 2
    fourth = mean(x(a) * x(b) * x(c) * x(d)) - pair * other
    return Variance(
        _over_states(second.sum(a, b)),
        _over_states(third.sum(a, b, c)),
        _over_states((fourth * second_order(a, b) * second_order(c, d)).sum(a, b, c, d)),
    )


def _linear(map_: Tensor, i: Index) -> Polynomial:
    (j,) = parameter_indices("j")
    return (map_(i, j) * _STATE(j)).sum(j)


def _over_states(polynomial: Polynomial) -> Polynomial:
    a, b = data_indices("ab")
    (i,) = parameter_indices("i")
    result = average(polynomial, independent(_STATE, scale=1))
    for one, other, tensor in (
        (_TO_POINT, _TO_POINT, POINT),
        (_TO_SLOPE, _TO_POINT, MIXED),
        (_TO_SLOPE, _TO_SLOPE, SLOPE),
    ):
        result = fold(result, (one(a, i) * other(b, i)).sum(i), tensor)
    return result


def higher_moment_symbols() -> dict[tuple[int, ...], sp.Symbol]:
    r"""Return a symbol for every coefficient of third and fourth order.

    Returns
    -------
    dict of tuple of int to Symbol
        By block sizes: :math:`E[x_ix_jx_k] = c_3\delta_{ijk} + c_{21}(\delta_{ij} + \delta_{jk}
        + \delta_{ik}) + c_{111}`, and likewise for :math:`E[x_ix_jx_kx_l]`.
    """
    return {
        sizes: sp.Symbol("c_" + "".join(map(str, sorted(sizes, reverse=True))))
        for sizes in HIGHER_ORDERS
    }


def symbolic_fluctuations() -> SamplingScheme:
    r"""Return a law of :math:`x = w - 1` whose delta coefficients are symbols.

    Returns
    -------
    SamplingScheme
        Of second order :math:`\gamma` and :math:`-\gamma\kappa/D`, up to the fourth those of
        :func:`higher_moment_symbols`.
    """
    known = higher_moment_symbols() | {(1,): sp.S.Zero, (2,): gamma, (1, 1): -gamma * kappa / D}

    def moment(sizes: tuple[int, ...]) -> sp.Expr:
        finer = itertools.product(*(partitions(size) for size in sizes))
        return sp.Add(
            *(
                known[tuple(sorted(len(block) for part in parts for block in part))]
                for parts in finer
            )
        )

    return SamplingScheme("any fluctuations", moment)


def higher_moments(sampling: str | SamplingScheme) -> tuple[sp.Expr, ...]:
    r"""Return the delta coefficients of third and fourth order of :math:`x = w - 1`.

    Parameters
    ----------
    sampling : str or SamplingScheme
        As for :func:`~quadmodel.symbolic.weight_moment`.

    Returns
    -------
    tuple of SymPy expression
        :math:`c_3, c_{21}, c_{111}, c_4, c_{31}, c_{22}, c_{211}, c_{1111}`, factored: with whole
        numbers of data points and of points in a batch, only the last operations round.

    Raises
    ------
    InputError
        If the scheme is unknown.

    References
    ----------
    .. [1] derivations/07-typical-stability.md.
    """
    law = fluctuations(as_scheme(sampling))
    return tuple(delta_coefficient(sizes, law) for sizes in HIGHER_ORDERS)
