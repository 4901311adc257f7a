"""Rational arrays, enumerated weights, and the conversions between SymPy and fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import sympy as sp

from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.sampling import SamplingScheme
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
