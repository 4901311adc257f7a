r"""Words in curvature and Jacobian, their inner products, and the limit of many parameters.

A word is :math:`Q_{a_1}\cdots Q_{a_l}J_b^\top`. With :math:`\Xi = PC` held as P grows, inner
products no longer fluctuate and keep only the pairings that don't cross. The same numbers come from
:math:`Q_a = \mathrm{put}_a + \mathrm{take}_a` on orthogonal words
:math:`|a_1\dots a_l;b\rangle`: the first puts the letter a in front, the second takes a letter c
off the front, at the price :math:`\Xi_{ac}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import sympy as sp

from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    average,
    kronecker_curvature,
    pairings,
)
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, Index, Space, data_indices
from quadmodel.symbolic.algebra.names import P
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta

LETTERS = Tensor("Xi", (DATA, DATA), (0, 0))  # P C: what a pair of letters is worth
GRAM = Tensor("G_0", (DATA, DATA), (0, 0))  # J J^T

# A vector of words: per length, from letters and row to the coefficient
Vector = Sequence[Callable[..., Polynomial]]
_numbers = itertools.count()


def word_moment(letters: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return :math:`E[J_bQ_{a_1}\cdots Q_{a_n}J_c^\top]` over the curvature, exactly.

    Parameters
    ----------
    letters : sequence of Index
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
        If there are more than 10 letters.

    References
    ----------
    .. [1] derivations/08-large-p.md.
    """
    law = kronecker_curvature(lambda a, b: LETTERS(a, b) * (1 / P), delta)
    product, places = word(letters, rows)
    return with_gram(average(product.sum(*places), law))


def word_variance(letters: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return the variance of :math:`J_bQ_{a_1}\cdots Q_{a_n}J_c^\top` over the curvature, exactly.

    Parameters
    ----------
    letters : sequence of Index
        Data indices :math:`a_1 \dots a_n`, n at most 5.
    rows : tuple of two Index
        Data indices b and c.

    Returns
    -------
    Polynomial
        As of :func:`word_moment`. It falls as 1/P.

    Raises
    ------
    InputError
        If there are more than 5 letters.

    References
    ----------
    .. [1] derivations/08-large-p.md.
    """
    law = kronecker_curvature(lambda a, b: LETTERS(a, b) * (1 / P), delta)
    (one, places), (other, others) = word(letters, rows), word(letters, rows)
    square = average((one * other).sum(*places, *others), law)
    mean = word_moment(letters, rows)
    return with_gram(square) - mean * mean


def word(letters: Sequence[Index], rows: tuple[Index, Index]) -> tuple[Polynomial, list[Index]]:
    r"""Return :math:`J_{bi}Q_{a_1ij}\cdots J_{ck}` and its parameter indices, not yet summed.

    Parameters
    ----------
    letters : sequence of Index
        Data indices :math:`a_1 \dots a_n`.
    rows : tuple of two Index
        Data indices b and c.

    Returns
    -------
    tuple of Polynomial and list of Index
    """
    places = [fresh(PARAMETERS) for _ in range(len(letters) + 1)]
    product = JACOBIAN(rows[0], places[0]) * JACOBIAN(rows[1], places[-1])
    for letter, one, other in zip(letters, places[:-1], places[1:], strict=True):
        product = product * CURVATURE(letter, one, other)
    return product, places


def with_gram(polynomial: Polynomial) -> Polynomial:
    r"""Write :math:`JJ^\top` as :math:`G_0`.

    Parameters
    ----------
    polynomial : Polynomial
        With the Jacobian in it.

    Returns
    -------
    Polynomial
    """
    a, b = data_indices("ab")
    i = fresh(PARAMETERS)
    return fold(polynomial, (JACOBIAN(a, i) * JACOBIAN(b, i)).sum(i), GRAM)


def many_parameters(polynomial: Polynomial) -> Polynomial:
    r"""Return the limit of many parameters, :math:`\Xi` and :math:`G_0` held.

    Parameters
    ----------
    polynomial : Polynomial
        With powers of P in its coefficients.

    Returns
    -------
    Polynomial
    """
    return polynomial.map(lambda scale: sp.limit(scale, P, sp.oo))


def word_inner_product(letters: Sequence[Index], rows: tuple[Index, Index]) -> Polynomial:
    r"""Return the limit of :func:`word_moment`, by pairings that don't cross.

    Parameters
    ----------
    letters : sequence of Index
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
    >>> from quadmodel.symbolic import fock as words
    >>> from quadmodel.symbolic.algebra import indices
    >>> a, b, c, d = indices.data_indices("abcd")
    >>> words.word_inner_product([a, b], (c, d))
    (1)*G_0_cd*Xi_ab
    """
    total = constant(0)
    for pairing in pairings(len(letters)):
        if _cross(pairing):
            continue
        product = GRAM(*rows)
        for one, other in pairing:
            product = product * LETTERS(letters[one], letters[other])
        total = total + product
    return total


def _cross(pairing: Sequence[tuple[int, int]]) -> bool:
    return any(a < c < b < d for (a, b), (c, d) in itertools.permutations(pairing, 2))


def row_vector(row: Index, level: int) -> Vector:
    """Return the word of no letters that ends in a row of the Jacobian.

    Parameters
    ----------
    row : Index
        Which.
    level : int
        Longest words that are kept.

    Returns
    -------
    Vector
    """
    return [lambda b: delta(row, b), *(_nothing for _ in range(level))]


def act(letter: Index, vector: Vector) -> Vector:
    r"""Apply :math:`Q_a`: put the letter in front, or take one off.

    Parameters
    ----------
    letter : Index
        a.
    vector : Vector
        On what; words longer than its longest are dropped.

    Returns
    -------
    Vector
    """

    def level(length: int) -> Callable[..., Polynomial]:
        def coefficient(*places: Index) -> Polynomial:
            total = constant(0)
            if length > 0:
                total = total + delta(letter, places[0]) * vector[length - 1](*places[1:])
            if length + 1 < len(vector):
                c = fresh(DATA)
                taken = LETTERS(letter, c) * vector[length + 1](c, *places)
                total = total + taken.sum(c)
            return total

        return coefficient

    return [level(length) for length in range(len(vector))]


def inner_product(left: Vector, right: Vector) -> Polynomial:
    r"""Return the inner product: letters contracted by :math:`\Xi`, rows by :math:`G_0`.

    Parameters
    ----------
    left, right : Vector
        Of the same length.

    Returns
    -------
    Polynomial
    """
    total = constant(0)
    for length, (one, other) in enumerate(zip(left, right, strict=True)):
        places = [(fresh(DATA), fresh(DATA)) for _ in range(length + 1)]
        product = one(*(i for i, _ in places)) * other(*(k for _, k in places))
        for i, k in places[:-1]:
            product = product * LETTERS(i, k)
        total = total + (product * GRAM(*places[-1])).sum(*(i for pair in places for i in pair))
    return total


def _nothing(*_: Index) -> Polynomial:
    return constant(0)


def fresh(space: Space) -> Index:
    """Return an index that no other has.

    Parameters
    ----------
    space : Space
        Its range.

    Returns
    -------
    Index
    """
    return Index(space, f"_{next(_numbers)}")
