"""Rational arrays, enumerated weights, conversions of SymPy numbers, and comparisons."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic import stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.sampling import SamplingScheme
from tests.oracles import enumeration
from tests.oracles.quadratic import draw_list

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")

# Laws of exchangeable weights with mean 1 that no scheme of the package has: (probability, weights)
PERMUTED = [
    (Fraction(1, 6), [Fraction(3, 4) * n for n in order])
    for order in itertools.permutations((0, 1, 3))
]
COMMON_FACTOR = [  # the batch as a whole is scaled too: the weights are correlated positively
    (probability / 2, [factor * w for w in weights])
    for probability, weights in draw_list(2, 1)
    for factor in (Fraction(1, 2), Fraction(3, 2))
]
THREE_VALUES = [  # independent weights 0, 1, 2
    (
        math.prod((Fraction(1, 4), Fraction(1, 2), Fraction(1, 4))[n] for n in ns),
        list(map(Fraction, ns)),
    )
    for ns in itertools.product(range(3), repeat=2)
]
OWN_LAWS = {"permuted": PERMUTED, "common factor": COMMON_FACTOR, "three values": THREE_VALUES}


def fraction(expression: sp.Expr) -> Fraction:
    """Return a rational SymPy number as a fraction; NaN and floats fail."""
    assert expression.is_Rational, expression
    return Fraction(int(expression.p), int(expression.q))


def at(expression: sp.Expr, n_data: int, batch_size: int) -> Fraction:
    """Return a function of D and B there."""
    return fraction(sp.sympify(expression).subs({names.D: n_data, names.B: batch_size}))


def rationals(seed: int, *shape: int) -> np.ndarray:
    """Draw an array of fractions of either sign, none of them zero."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-5, -4, -3, -2, -1, 1, 2, 3, 4, 5], shape)
    return np.vectorize(lambda n, d: Fraction(int(n), int(d)), otypes=[object])(
        values, rng.choice([1, 2, 3], shape)
    )


def product_mean(draws: list, points: tuple[int, ...]) -> Fraction:
    """Return E[w_i w_j ...] by visiting every batch."""
    return sum((p * math.prod(w[i] for i in points) for p, w in draws), Fraction(0))


def scheme_of(draws: list, order: int = 8, beyond: Fraction = Fraction(-7, 5)) -> SamplingScheme:
    """Return the scheme whose moments are those of a list of batches.

    More different points than there are never meet: the moment `beyond` given for them is free.
    """
    n_data = len(draws[0][1])
    table = {}
    for total in range(1, order + 1):
        for sizes in _integer_partitions(total, total):
            points = [i for i, size in enumerate(sizes) for _ in range(size)]
            possible = len(sizes) <= n_data
            table[sizes] = product_mean(draws, tuple(points)) if possible else beyond
    return SamplingScheme.from_moments(table)


def _integer_partitions(total: int, largest: int) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    return [
        (first, *rest)
        for first in range(min(total, largest), 0, -1)
        for rest in _integer_partitions(total - first, first)
    ]


def gamma_and_kappa(n_data: int, batch_size: int, scheme: str) -> tuple[Fraction, Fraction]:
    """Return both from the enumerated covariance of the weights."""
    matrix = enumeration.weight_covariance(n_data, batch_size, scheme)
    gamma = matrix[0][0] - matrix[0][1]
    return gamma, -n_data * matrix[0][1] / gamma


def is_zero(expression: sp.Expr) -> bool:
    return sp.cancel(sp.together(expression)) == 0


def summand(expression: sp.Expr) -> sp.Expr:
    """Return the terms, with their common factor, of a multiple of a sum over all modes."""
    (series,) = expression.atoms(sp.Sum)
    factor = expression / series
    assert not factor.has(sp.Sum)
    ((mode, first, last),) = series.limits
    assert (first, last) == (0, names.D - 1)
    return factor * series.function.subs(stability.eigenvalues[mode], names.lam)


def refused(function, *arguments, names, **options) -> None:
    """Check that a call is refused in one line which tells all of `names`."""
    with pytest.raises(InputError) as refusal:
        function(*arguments, **options)
    message = str(refusal.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message
