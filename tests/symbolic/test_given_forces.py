"""Two-time functions for given forces, against the tensors of the large-P limit: exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic import given_forces
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV, PLAIN_SGD
from tests.symbolic._exact import fraction, rationals
from tests.symbolic.test_large_p import ETA, setting, started, system

DECAY = Fraction(1, 7)


def numbers(coefficients, momentum=Fraction(2, 5)):
    return [fraction(sp.sympify(c).subs(names.mu, sp.Rational(momentum))) for c in coefficients]


def combined(coefficients, series, zero):
    """Sum the latest entries of a series, weighted."""
    return sum((c * x for c, x in zip(coefficients, series[::-1], strict=False)), zero)


def by_words(optimizer, order, forces, decay):
    """Return residual and D Theta at the points of the gradient, with all the tensors."""
    at, values = system(order), setting(forces[0].size)
    iterates, path = [started(order, forces[0].size)], []
    update, extrapolation = numbers(optimizer.update), numbers(optimizer.extrapolation)
    for force in [*forces, None]:
        point = {
            n: combined(extrapolation, [x[n] for x in iterates], 0 * iterates[0][n])
            for n in iterates[0]
        }
        path.append((at.residual.evaluate(values | point), at.gram.evaluate(values | point)))
        if force is None:
            return path
        changes = [c.evaluate(values | point | {"zeta": force}) for c in at.changes]
        iterates.append(
            {
                name: combined(update, [x[name] for x in iterates], 0 * point[name])
                + change
                - ETA * decay * point[name]
                for (name, change) in zip(point, changes, strict=True)
            }
        )
    raise AssertionError


def bare_response(optimizer, steps, decay):
    update, extrapolation = numbers(optimizer.update), numbers(optimizer.extrapolation)
    rows = [[Fraction(0)] * steps for _ in range(steps + 1)]
    for s in range(steps):
        x, y = [Fraction(0)], Fraction(0)
        for t in range(s, steps):
            x.append(combined(update, x, Fraction(0)) - ETA * decay * y + (t == s))
            y = combined(extrapolation, x, Fraction(0))
            rows[t + 1][s] = y
    return rows


def by_two_times(module, optimizer, forces, decay):
    n_data = forces[0].size
    values, step = setting(n_data), ETA / n_data
    gram, xi = values["G_0"], values["Xi"]
    curved, linear = ([[f @ m @ g for g in forces] for f in forces] for m in (xi, gram))
    bare = bare_response(optimizer, len(forces), decay)
    functions = module.two_time_functions(curved, linear, bare, step)
    path = []
    for t in range(len(forces) + 1):
        z = values["z_0"]
        for (one, other), f in zip(
            module.residual_coefficients(functions, t, step), forces, strict=False
        ):
            z = z + one * (gram @ f) + other * (xi @ f)
        own, mixed, square = module.ntk_coefficients(functions, t, step)
        ntk = gram + own * xi
        for s, r in np.ndindex(t, t):
            push = np.outer(xi @ forces[s], mixed[s][r] * (gram @ forces[r]))
            push = push + square[s][r] * np.outer(xi @ forces[s], xi @ forces[r])
            ntk = ntk + push + push.T
        path.append((z, ntk))
    return path


def check(module, optimizer, order, n_data=2, decay=Fraction(0)):
    """Tensors of order L are exact for L + 1 steps of the residual and L of the NTK."""
    forces = [rationals(20 + t, n_data) for t in range(order + 1)]
    words = by_words(optimizer, order, forces, decay)
    sums = by_two_times(module, optimizer, forces, decay)
    for t, (one, other) in enumerate(zip(words, sums, strict=True)):
        np.testing.assert_array_equal(one[0], other[0])
        if t <= order:
            np.testing.assert_array_equal(one[1], other[1])
    assert (words[-1][1] != sums[-1][1]).any()  # the tensors' truncation, not the sums'


@pytest.mark.parametrize(("order", "n_data"), [(2, 3), (3, 2), (4, 2)])
def test_all_words_of_sgd(order, n_data):
    check(given_forces, PLAIN_SGD, order, n_data)


@pytest.mark.parametrize("optimizer", [HEAVY_BALL, NESTEROV], ids=["heavy ball", "Nesterov"])
def test_all_words_with_momentum_and_weight_decay(optimizer):
    check(given_forces, optimizer, 3, decay=DECAY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bare[t][s] + step**2 * sum(echoes)", "bare[t][s] - step**2 * sum(echoes)"),
        ("linear[s][r] + curved[s][r]", "linear[s][r] + 2 * curved[s][r]"),
        ("-step * u[t][s] * product[t][s])", "-step * u[t][s] * product[t][s] / 2)"),
        ("            + mixed[s][r] * product[t][r]\n", ""),  # of theory without this term
        ("min(s, r)] / 2\n", "min(s, r)]\n"),
    ],
)
def test_a_wrong_sum_fails(mutated, old, new):
    module = mutated(given_forces, old, new)
    with pytest.raises(AssertionError):
        check(module, PLAIN_SGD, 3)
