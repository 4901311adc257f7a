"""Digits of the emitted formulas in double precision."""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy as sp

from quadmodel.optimizer import SAMPLING_SCHEMES
from quadmodel.symbolic import linear, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import mu, r, x, y
from quadmodel.symbolic.output.formulas import formulas
from quadmodel.symbolic.output.response_fractions import symmetric_form
from quadmodel.theory import _generated as generated

OPTIMIZERS = {"heavy_ball": linear.HEAVY_BALL, "nesterov": linear.NESTEROV}
PRECISION = 60
ROUNDING = 2.0**-52


@functools.cache
def derived():
    return {formula.name: formula for formula in formulas()}


# Errors in double precision, against the effect of rounding the arguments.

FRACTIONS = (1e-12, 1e-6, 0.1, 0.9, 0.999, 1 - 1e-9)  # of the deterministic edge
GROWTHS = (1.0, 1 + 1e-9, 1.1)
TOLERANCE = 1e3 * ROUNDING


def edge(name, m):
    if name == "heavy_ball":
        return 2 * (1 + m)
    return 2 * (1 + m) / (1 + 2 * m) if m > -1 / 3 else (m - 1) / m


def sensitivity(function, arguments):
    """Return the value and its relative change per relative change of the arguments, in sum."""
    value, shift, total = function(*arguments), mpmath.mpf(10) ** -25, 0
    for k, argument in enumerate(arguments):
        moved = [*arguments[:k], argument * (1 + shift), *arguments[k + 1 :]]
        total += abs((function(*moved) - value) / value / shift)
    return value, total


def worst_loss(function, reference, points):
    """Return the largest relative error over what is allowed: TOLERANCE, times the sensitivity."""
    worst = 0.0
    with mpmath.workdps(PRECISION):
        for arguments in points:
            value, sensitive = sensitivity(reference, [mpmath.mpf(v) for v in arguments])
            error = abs((mpmath.mpf(float(function(*arguments))) - value) / value)
            worst = max(worst, float(error / (1 + sensitive)) / TOLERANCE)
    return worst


def pair_points(name, momenta):
    for m in momenta:
        places = [fraction * edge(name, m) for fraction in FRACTIONS]
        pairs = itertools.combinations_with_replacement(places, 2)
        yield from ((*pair, m, growth) for pair in pairs for growth in GROWTHS)


# Nesterov below -1/3 has its edge where the memory's own factor reaches 1, and there numerator and
# denominator vanish together.
@pytest.mark.parametrize("momenta", [(0.0, 0.5), (0.9,), (0.99,), (-0.3,), (-0.6, -0.9)])
@pytest.mark.parametrize(
    ("name", "at"), [("heavy_ball", "gradient"), ("nesterov", "gradient"), ("nesterov", "residual")]
)
def test_pair_sums_keep_their_digits(name, at, momenta):
    reference = sp.lambdify([x, y, mu, r], stability.pair_sum(OPTIMIZERS[name], r, at), "mpmath")
    function = getattr(generated, f"{name}_pair_sum_at_{at}")
    assert worst_loss(function, reference, pair_points(name, momenta)) < 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_expanded_sums_lose_their_digits(name):
    expression = stability.pair_sum(OPTIMIZERS[name], r, "gradient")
    reference, expanded = (sp.lambdify([x, y, mu, r], expression, m) for m in ("mpmath", "numpy"))
    with np.errstate(all="ignore"):
        assert worst_loss(expanded, reference, pair_points(name, (0.99,))) > 1e3


@pytest.mark.parametrize("at", ["gradient", "residual"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_learning_rates_at_large_momentum(name, at):
    at = "gradient" if name == "heavy_ball" else at
    reference = sp.lambdify([x, y, mu, r], stability.pair_sum(OPTIMIZERS[name], r, at), "mpmath")
    function = getattr(generated, f"{name}_pair_sum_at_{at}")
    for pair in itertools.product((1e-15, 1e-12, 3e-12, 1e-9), repeat=2):
        with mpmath.workdps(PRECISION):
            expected = reference(*(mpmath.mpf(v) for v in (*pair, 0.99, 1.0)))
        assert function(*pair, 0.99, 1.0) == pytest.approx(float(expected), rel=TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_diagonal_sums_keep_their_digits(name):
    expression = sp.cancel(stability.pair_sum(OPTIMIZERS[name]).subs(y, x))
    reference = sp.lambdify([x, mu], expression, "mpmath")
    function = getattr(generated, f"{name}_diagonal_pair_sum")
    momenta = (0.0, 0.5, 0.9, 0.99, -0.3, -0.6, -0.9)
    points = [(fraction * edge(name, m), m) for m in momenta for fraction in FRACTIONS]
    assert worst_loss(function, reference, points) < 1


@pytest.mark.parametrize("scheme", SAMPLING_SCHEMES)
@pytest.mark.parametrize("n_data", [4, 5, 10, 19, 97, 1000, 9973, 10_000])
def test_moments_of_weights_keep_their_digits(scheme, n_data):
    """Also near their roots: until the last divisions whole numbers are exact."""
    name = f"{scheme}_fluctuations"
    exact = sp.lambdify([names.D, names.B], derived()[name].results, modules=[])
    sizes = {*range(1, min(n_data, 30) + 1), *np.linspace(1, n_data, 200).round().astype(int)}
    roots = [round(n_data * share) for share in (0.2113, 0.5, 0.7887)]
    sizes |= {root + shift for root in roots for shift in (-1, 0, 1) if 0 < root + shift < n_data}
    for batch_size in map(int, sizes):
        for kind in (int, float):
            found = getattr(generated, name)(kind(n_data), kind(batch_size))
            for value, target in zip(
                found, exact(Fraction(n_data), Fraction(batch_size)), strict=True
            ):
                assert abs(Fraction(float(value)) - target) <= 8 * ROUNDING * abs(target)


@pytest.mark.parametrize(
    "polynomial", [x + y, x**2 + y**2 - 3 * x * y * mu, x**3 * y + x * y**3, mu]
)
def test_symmetric_forms(polynomial):
    form = symmetric_form(polynomial)
    assert sp.expand(form - polynomial) == 0


def test_other_polynomials_have_no_symmetric_form():
    with pytest.raises(ValueError, match="not symmetric"):
        symmetric_form(x + 2 * y)
