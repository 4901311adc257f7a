"""The four kernels that the average over the curvature leaves."""

from __future__ import annotations

import itertools

import pytest
import sympy as sp

from quadmodel import symbolic
from quadmodel.symbolic import curvature_average
from quadmodel.symbolic.algebra.names import D, P, eta, sigma
from quadmodel.symbolic.curvature_average import mode_factor as c

TIMES = (0, 1, 2)
C, Z, u, G, Cxy, Cxx, ux = (sp.Function(name) for name in ("C", "Z", "u", "G", "Cxy", "Cxx", "ux"))


def late(function, t, s):
    """Return a symmetric function of two times, the later one first."""
    return function(max(t, s), min(t, s))


def check(module):
    """Compare all pairs of three times with the noises and memories of the theory's text."""
    kernels = module.mean_field_kernels(TIMES, iterate=True)
    ratio = sigma**2 * P / D  # qhat^2
    for t, s in itertools.product(TIMES, repeat=2):
        noise = eta**2 * sigma**2 * late(Z, t, s) * late(C, t, s) / D
        assert kernels.parameter_noise[t, s] - noise == 0
        assert kernels.residual_noise[t, s] - c * sigma**2 * late(C, t, s) ** 2 / 2 == 0
        of_forces = eta**2 * ratio * Z(t, s) * u(t, s + 1) if s < t else 0
        of_residuals = -eta * sigma**2 * G(t, s) * C(t, s) if s <= t else 0
        assert sp.expand(kernels.parameter_memory[t, s] - of_forces - of_residuals) == 0
        memory = -eta * ratio * c * C(t, s) * u(t, s + 1) if s < t else 0
        assert kernels.residual_memory[t, s] - memory == 0
        assert kernels.seen_noise[t, s] - c * sigma**2 * late(Cxx, t, s) ** 2 / 2 == 0
        assert kernels.seen_cross_noise[t, s] - c * sigma**2 * Cxy(t, s) ** 2 / 2 == 0
        memory = -eta * ratio * c * Cxy(t, s) * ux(t, s + 1) if s < t else 0
        assert kernels.seen_memory[t, s] - memory == 0
    assert kernels.back_reaction
    assert not any(kernels.back_reaction)


def test_kernels_of_three_times():
    check(curvature_average)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sum(a, i, j) * (eta / D)", "sum(a, i, j) * (-eta / D)"),
        ("* sp.Rational(1, 2)", "* sp.Rational(1, 1)"),
        ("sp.Rational(-1, 2)", "sp.Rational(-1, 1)"),
        ("if order[s] >= order[t]", "if order[s] > order[t]"),  # the residual's own step
        ("if order[s] > order[t]", "if order[s] != order[t]"),  # causality
    ],
)
def test_a_wrong_average_fails(mutated, old, new):
    module = mutated(curvature_average, old, new)
    with pytest.raises(AssertionError):
        check(module)


def test_the_average_is_a_gaussian_one():
    """Second and fourth moment of the exponent of one step, entry by entry for D = 1, P = 1."""
    exponent = curvature_average.averaged_exponent([0])
    y, step, force, residual = sp.symbols("y xhat f zhat")
    values = {"y": y, r"\hat x": step, "zeta": force, r"\hat z": residual}
    mean = sum(
        scale * sp.Mul(*(values[one] * values[other] for one, _, other, _ in dots))
        for dots, scale in exponent.items()
    )
    slope = eta / D * force * step * y - residual * y**2 / 2  # of S in the only entry of Q
    assert sp.expand(mean + (2 * sigma**2) * slope**2 / 2) == 0


def test_times_may_be_symbols():
    t, s = sp.symbols("t s", integer=True)
    kernels = symbolic.mean_field_kernels([s, t])
    assert kernels.residual_memory[t, s].has(u(t, s + 1))
    assert kernels.residual_memory[s, t] == 0
