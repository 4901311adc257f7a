"""Means over a random residual or Jacobian at the start.

A mean over a Gaussian is one over any law with as many equal moments.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic.algebra.gaussian import JACOBIAN, independent
from quadmodel.symbolic.dynamics import expected
from tests.symbolic._models import Model, mean_of

SIGNS = [(Fraction(1, 2), -1), (Fraction(1, 2), 1)]
# Moments 1, 3, 15 as a normal variable's, up to the seventh
SEVEN = [
    (Fraction(weight, 180), n)
    for n, weight in ((-3, 1), (-2, 9), (-1, 45), (0, 70), (1, 45), (2, 9), (3, 1))
]


def over_starts(model, quantity, steps, residuals, jacobians):
    """Average the brute force over lists of (probability, start)."""
    total = 0
    for (p, z), (q, J) in itertools.product(residuals, jacobians):
        moments = model.moments(steps, model.mix, model.root, residual=z, jacobian=J)
        total = total + p * q * moments[quantity]
    return total


def starts(scale, law, *shape):
    """List all arrays of independent entries as (probability, array)."""
    return [
        (math.prod(p for p, _ in drawn), scale * np.array([x for _, x in drawn]).reshape(shape))
        for drawn in itertools.product(law, repeat=math.prod(shape))
    ]


def test_the_seven_values_have_the_moments_of_a_normal_variable():
    for order in range(8):
        moment = sum(p * x**order for p, x in SEVEN)
        assert moment == (sp.factorial2(order - 1) if order % 2 == 0 else 0)


@pytest.mark.parametrize(("quantity", "steps"), [("jacobian", 2), ("ntk", 1), ("ntk", 2)])
@pytest.mark.parametrize("scheme", ["without_replacement", "bernoulli"])
def test_random_residual(quantity, steps, scheme):
    s = Fraction(7, 3)
    model = Model(2, 2, Fraction(3, 5), 1, scheme)
    fixed = [(Fraction(1), model.jacobian)]
    mean = expected(quantity, steps, residual="independent", sampling=scheme)
    value = over_starts(model, quantity, steps, starts(s, SIGNS, 2), fixed)
    np.testing.assert_array_equal(mean.evaluate(model.values | {"s": s}), value)


def test_a_residual_stays_odd_in_its_start():
    assert expected("residual", 2, residual="independent", sampling="bernoulli").terms == {}


def test_second_moment_from_a_random_residual():
    s = Fraction(7, 3)  # of fourth order in the residual
    model = Model(2, 1, Fraction(3, 5), 1, "with_replacement")
    mean = expected("second_moment", residual="independent", sampling="with_replacement")
    fixed = [(Fraction(1), model.jacobian)]
    value = over_starts(model, "second_moment", 1, starts(s, SEVEN, 2), fixed)
    np.testing.assert_array_equal(mean.evaluate(model.values | {"s": s}), value)


@pytest.mark.parametrize(
    ("quantity", "steps", "n_data", "n_params"),
    [("residual", 1, 2, 1), ("ntk", 2, 1, 2), ("ntk", 2, 2, 1)],
)
def test_random_jacobian(quantity, steps, n_data, n_params):
    s = Fraction(2, 3)
    model = Model(n_data, n_params, Fraction(3, 5), 1, "bernoulli")
    mean = mean_of(quantity, steps, jacobian="independent", sampling="bernoulli")
    # of sixth order in the Jacobian at most
    fixed = [(Fraction(1), model.residual)]
    value = over_starts(model, quantity, steps, fixed, starts(s, SEVEN, n_data, n_params))
    np.testing.assert_array_equal(mean.evaluate(model.values | {"s": s}), value)


def test_random_start_of_both():
    s, t = Fraction(2, 3), Fraction(5, 2)
    model = Model(2, 1, Fraction(3, 5), 1, "with_replacement")
    size = sp.Symbol("t", positive=True)
    mean = expected(
        "ntk",
        2,
        residual="independent",
        jacobian=independent(JACOBIAN, size),
        sampling="with_replacement",
    )
    value = over_starts(model, "ntk", 2, starts(s, SIGNS, 2), starts(t, SEVEN, 2, 1))
    np.testing.assert_array_equal(mean.evaluate(model.values | {"s": s, "t": t}), value)
