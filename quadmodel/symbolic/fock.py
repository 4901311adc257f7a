r"""Curvature as operators on a free Fock space: products at finite and at large P.

Parameters move in the span of :math:`Q_{a_1}\cdots Q_{a_l}J_b^\top`, and residual and NTK are made
of the inner products :math:`J_bQ_{a_1}\cdots Q_{a_n}J_c^\top`. With :math:`\Xi = PC` held as P
grows, these no longer fluctuate, and their mean keeps only the pairings of the Q without crossings.
The limit is also a matrix element in the free Fock space of basis states
:math:`|a_1\dots a_l;b\rangle`, where :math:`Q_a` is the sum of a creation operator, which puts the
data index a in front, and an annihilation operator, which removes the leading index c with weight
:math:`\Xi_{ac}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import sympy as sp

from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    GaussianField,
    average,
    kronecker_curvature,
    pairings,
)
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, Index, Space, data_indices
from quadmodel.symbolic.algebra.names import P
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta

# P C: the covariance of the curvature between two data points, times P
CURVATURE_COVARIANCE = Tensor("Xi", (DATA, DATA), (0, 0))
GRAM = Tensor("G_0", (DATA, DATA), (0, 0))  # J J^T

# Coefficients of basis states: for every number of leading data indices, a function of them and of
# the Jacobian's row
Vector = Sequence[Callable[..., Polynomial]]
_numbers = itertools.count()


def fock_moment(points: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return :math:`E[J_bQ_{a_1}\cdots Q_{a_n}J_c^\top]` over the curvature, for every P.

    Parameters
    ----------
    points : sequence of Index
        Data indices :math:`a_1 \dots a_n`, n at most 10.
    rows : tuple of two Index
        Data indices b and c.

    Returns
    -------
    Polynomial
        In :math:`\Xi = PC` and :math:`G_0 = JJ^\top`, with powers of 1/P.

    Raises
    ------
    InputError
        If there are more than 10 points.

    References
    ----------
    .. [1] derivations/08-large-p.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> a, b = symbolic.data_indices("ab")
    >>> symbolic.fock_moment([a, a], (b, b))
    (1 + 1/P)*G_0_bb*Xi_aa
    """
    product, places = curvature_product(points, rows)
    return with_gram(average(product.sum(*places), scaled_curvature()))


def fock_variance(points: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return the variance of :math:`J_bQ_{a_1}\cdots Q_{a_n}J_c^\top` over the curvature.

    Parameters
    ----------
    points : sequence of Index
        Data indices :math:`a_1 \dots a_n`, n at most 5.
    rows : tuple of two Index
        Data indices b and c.

    Returns
    -------
    Polynomial
        In the terms of :func:`~quadmodel.symbolic.fock_moment`, for every P. It falls as 1/P.

    Raises
    ------
    InputError
        If there are more than 5 points.

    References
    ----------
    .. [1] derivations/08-large-p.md.
    """
    (one, places), (other, others) = (curvature_product(points, rows) for _ in range(2))
    square = average((one * other).sum(*places, *others), scaled_curvature())
    mean = fock_moment(points, rows)
    return with_gram(square) - mean * mean


def scaled_curvature() -> GaussianField:
    r"""Return the curvature with covariance :math:`\Xi/P` over data, and independent parameters."""
    return kronecker_curvature(lambda a, b: CURVATURE_COVARIANCE(a, b) * (1 / P), delta)


def curvature_product(
    points: Sequence[Index], rows: tuple[Index, Index]
) -> tuple[Polynomial, list[Index]]:
    r"""Return :math:`J_{bi}Q_{a_1ij}\cdots J_{ck}` and its parameter indices, not yet summed."""
    places = [fresh(PARAMETERS) for _ in range(len(points) + 1)]
    product = JACOBIAN(rows[0], places[0]) * JACOBIAN(rows[1], places[-1])
    for point, one, other in zip(points, places[:-1], places[1:], strict=True):
        product = product * CURVATURE(point, one, other)
    return product, places


def with_gram(polynomial: Polynomial) -> Polynomial:
    r"""Write :math:`JJ^\top` as :math:`G_0`."""
    a, b = data_indices("ab")
    i = fresh(PARAMETERS)
    return fold(polynomial, (JACOBIAN(a, i) * JACOBIAN(b, i)).sum(i), GRAM)


def many_parameters(polynomial: Polynomial) -> Polynomial:
    r"""Return the limit of many parameters, :math:`\Xi` and :math:`G_0` held."""
    return polynomial.map(lambda scale: sp.limit(scale, P, sp.oo))


def fock_inner_product(points: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return the limit of the moment for many parameters, by pairings without crossings.

    Parameters
    ----------
    points : sequence of Index
        Data indices :math:`a_1 \dots a_n`.
    rows : tuple of two Index
        Data indices b and c.

    Returns
    -------
    Polynomial
        In :math:`\Xi` and :math:`G_0`.

    References
    ----------
    .. [1] derivations/08-large-p.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> a, b, c, d = symbolic.data_indices("abcd")
    >>> symbolic.fock_inner_product([a, b], (c, d))
    (1)*G_0_cd*Xi_ab
    """
    total = constant(0)
    for pairing in pairings(len(points)):
        if _cross(pairing):
            continue
        product = GRAM(*rows)
        for one, other in pairing:
            product = product * CURVATURE_COVARIANCE(points[one], points[other])
        total = total + product
    return total


def _cross(pairing: Sequence[tuple[int, int]]) -> bool:
    return any(a < c < b < d for (a, b), (c, d) in itertools.permutations(pairing, 2))


def row_vector(row: Index, truncation_order: int) -> Vector:
    r"""Return the basis state :math:`|b\rangle` of a row of the Jacobian."""
    return [lambda b: delta(row, b), *(_nothing for _ in range(truncation_order))]


def act(point: Index, vector: Vector) -> Vector:
    r"""Apply :math:`Q_a`, the sum of a creation and an annihilation operator, truncated."""

    def of_length(length: int) -> Callable[..., Polynomial]:
        def coefficient(*places: Index) -> Polynomial:
            total = constant(0)
            if length > 0:
                total = total + delta(point, places[0]) * vector[length - 1](*places[1:])
            if length + 1 < len(vector):
                c = fresh(DATA)
                annihilated = CURVATURE_COVARIANCE(point, c) * vector[length + 1](c, *places)
                total = total + annihilated.sum(c)
            return total

        return coefficient

    return [of_length(length) for length in range(len(vector))]


def inner_product(left: Vector, right: Vector) -> Polynomial:
    r"""Return the inner product: data indices contracted by :math:`\Xi`, rows by :math:`G_0`."""
    total = constant(0)
    for length, (one, other) in enumerate(zip(left, right, strict=True)):
        places = [(fresh(DATA), fresh(DATA)) for _ in range(length + 1)]
        product = one(*(i for i, _ in places)) * other(*(k for _, k in places))
        for i, k in places[:-1]:
            product = product * CURVATURE_COVARIANCE(i, k)
        total = total + (product * GRAM(*places[-1])).sum(*(i for pair in places for i in pair))
    return total


def _nothing(*_: Index) -> Polynomial:
    return constant(0)


def fresh(space: Space) -> Index:
    """Return an index that no other has."""
    return Index(space, f"_{next(_numbers)}")
