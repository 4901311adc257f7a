"""Responses, noise kernel norms and edges, against sums step by step and enumerated batches."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from scipy.optimize import brentq

import quadmodel as qm
from quadmodel import symbolic
from quadmodel._util.checks import InputError
from quadmodel.symbolic import stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import D, beta, eta, gamma, kappa, lam, lam_other, mu, rho
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV, PLAIN_SGD, LinearOptimizer
from tests.oracles import enumeration, linear_memory
from tests.symbolic._exact import SCHEMES, gamma_and_kappa, is_zero, summand

UPDATE, EXTRAPOLATION = (
    (Fraction(6, 5), Fraction(-3, 10), Fraction(1, 10)),
    (Fraction(4, 5), 0, Fraction(1, 5)),
)
MEMORY_3 = LinearOptimizer(UPDATE, EXTRAPOLATION)
MEMORY_4 = LinearOptimizer(
    (Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 8)),
    (Fraction(3, 2), Fraction(-1, 3), Fraction(1, 2), Fraction(-2, 3)),
)
# Optimizer, and its coefficients in numbers for a momentum
OPTIMIZERS = {
    "sgd": (PLAIN_SGD, lambda m: ((1,), (1,))),
    "heavy ball": (HEAVY_BALL, lambda m: ((1 + m, -m), (1, 0))),
    "nesterov": (NESTEROV, lambda m: ((1 + m, -m), (1 + m, -m))),
    "memory 3": (MEMORY_3, lambda m: (UPDATE, EXTRAPOLATION)),
}
OPTIONS = {"sgd": {}, "heavy ball": {"momentum": True}, "nesterov": {"nesterov": True}}


def rational(value):
    return sp.Rational(value.numerator, value.denominator)


def check_response(module, name, decay, momentum, growth, at):
    """Compare with the sum solved for in fractions, and with the sum itself step by step."""
    optimizer, coefficients = OPTIMIZERS[name]
    update, extrapolation = coefficients(momentum)
    step, first, second = Fraction(1, 2), Fraction(1), Fraction(3, 4)
    recursions = [
        linear_memory.recursion(update, extrapolation, step * (v + decay)) for v in (first, second)
    ]
    seen = extrapolation if at == "gradient" else (1,) + (0,) * (len(extrapolation) - 1)
    found = module.bare_response(
        optimizer, weight_decay=decay != 0, growth=growth and rational(growth), at=at
    )
    numbers = {eta: step, lam: first, lam_other: second, rho: decay, mu: momentum}
    found = found.subs({symbol: rational(value) for symbol, value in numbers.items()})
    scale = step**2 * first * second
    assert found == scale * rational(linear_memory.whole_sum(*recursions, seen, growth))
    assert abs(found - scale * linear_memory.partial_sum(*recursions, seen, growth, 80)) < 1e-12


@pytest.mark.parametrize(
    ("growth", "at"),
    [(Fraction(1), "gradient"), (Fraction(9, 8), "gradient"), (Fraction(9, 8), "residual")],
)
@pytest.mark.parametrize("decay", [Fraction(0), Fraction(1, 5)])
@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ("sgd", Fraction(0)),
        *itertools.product(("heavy ball", "nesterov"), (Fraction(2, 5), Fraction(-1, 3))),
        ("memory 3", Fraction(0)),
    ],
)
def test_bare_response_is_the_sum_over_all_steps(optimizer, decay, momentum, growth, at):
    check_response(stability, optimizer, decay, momentum, growth, at)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("companion[k + 1, k] = 1", "companion[k, k + 1] = 1"),
        ("eta**2 * lam * lam_other * pair", "eta**2 * lam**2 * pair"),
        ("decay = rho if weight_decay else 0", "decay = 0"),
        ('if at == "gradient" else (1,)', 'if at == "residual" else (1,)'),
        ("system = growth * sp.eye(size**2)", "system = sp.eye(size**2)"),
    ],
)
def test_a_wrong_response_fails_the_comparison(mutated, old, new):
    module = mutated(stability, old, new)
    arguments = Fraction(1, 5), Fraction(2, 5), Fraction(9, 8), "gradient"
    with pytest.raises(AssertionError):
        check_response(module, "nesterov", *arguments)


@pytest.mark.parametrize("optimizer", [PLAIN_SGD, HEAVY_BALL])
def test_growth_as_a_symbol(optimizer):
    response = symbolic.bare_response(optimizer, growth=names.r)
    assert is_zero(response.subs(names.r, 1) - symbolic.bare_response(optimizer))
    at_growth = symbolic.bare_response(optimizer, growth=sp.Rational(9, 8))
    assert is_zero(response.subs(names.r, sp.Rational(9, 8)) - at_growth)


def test_response_of_plain_sgd():
    assert is_zero(symbolic.bare_response() - eta / (1 / lam + 1 / lam_other - eta))


@pytest.mark.parametrize("weight_decay", [False, True])
def test_response_of_the_heavy_ball(weight_decay):
    decay = rho if weight_decay else 0
    a, b = (1 + mu - eta * (v + decay) for v in (lam, lam_other))
    memory = mu * (a**2 + b**2 - 2 * mu * a * b) / (1 - mu**2)
    expected = eta**2 * lam * lam_other / (1 - a * b - mu**2 + memory)
    assert is_zero(symbolic.bare_response(HEAVY_BALL, weight_decay=weight_decay) - expected)


def test_response_of_a_mode_with_itself():
    diagonal = symbolic.bare_response(HEAVY_BALL).subs(lam_other, lam)
    expected = eta * lam * (1 + mu) / ((1 - mu) * (2 * (1 + mu) - eta * lam))
    assert is_zero(diagonal - expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_special_cases_of_the_response(optimizer):
    chosen, _ = OPTIMIZERS[optimizer]
    response = symbolic.bare_response(chosen)
    exchanged = response.subs({lam: lam_other, lam_other: lam}, simultaneous=True)
    assert is_zero(response - exchanged)
    decayed = symbolic.bare_response(chosen, weight_decay=True)
    assert is_zero(decayed.subs(rho, 0) - response)
    if optimizer != "memory 3":
        assert is_zero(response.subs(mu, 0) - symbolic.bare_response())


@pytest.mark.parametrize("weight_decay", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_small_learning_rates(optimizer, weight_decay):
    # The simple root 1 of the recursion moves by -x / slope, whatever the others do.
    chosen, _ = OPTIMIZERS[optimizer]
    slope = 1 + sum(age * c for age, c in enumerate(chosen.update))
    limit = stability.small_learning_rate_limit(chosen, weight_decay=weight_decay)
    expected = lam**2 / (lam + (rho if weight_decay else 0)) / (2 * slope)
    assert is_zero(limit - expected)


@pytest.mark.parametrize("optimizer", [HEAVY_BALL, NESTEROV])
def test_small_learning_rate_of_momentum(optimizer):
    """K -> eta tr(Theta) / (2 B (1 - mu)) for small batches."""
    assert is_zero(stability.small_learning_rate_limit(optimizer) - lam / (2 * (1 - mu)))


def test_dressed_response():
    S0, size, correlation = sp.symbols("S0 g k")
    dressed = symbolic.dressed_response(S0)
    assert is_zero(1 / dressed - 1 / S0 - kappa * gamma / D)
    assert is_zero(S0 - kappa * gamma / D * S0 * dressed - dressed)
    assert is_zero(symbolic.dressed_response(S0, size, correlation).subs(correlation, 0) - S0)
    given = symbolic.dressed_response(S0, size, correlation)
    assert is_zero(given.subs({size: gamma, correlation: kappa}) - dressed)


def test_norms_of_plain_sgd():
    own = summand(symbolic.noise_kernel_norm("paper").rhs)
    assert is_zero(own - eta * (1 / beta - 1) / D * lam / (2 - eta * lam))
    own = summand(symbolic.noise_kernel_norm("finite").rhs)
    expected = eta * gamma / D * lam / (2 - eta * lam * (1 - kappa * gamma / D))
    assert is_zero(own - expected)


@pytest.mark.parametrize(
    ("optimizer", "weight_decay"),
    [("sgd", True), ("heavy ball", True), ("nesterov", False), ("memory 3", False)],
)
def test_finite_norm_sums_the_dressed_diagonal(optimizer, weight_decay):
    chosen, _ = OPTIMIZERS[optimizer]
    equation = symbolic.noise_kernel_norm("finite", optimizer=chosen, weight_decay=weight_decay)
    own = summand(equation.rhs)
    diagonal = symbolic.bare_response(chosen, weight_decay=weight_decay).subs(lam_other, lam)
    assert is_zero(own - gamma / D / (1 / diagonal + kappa * gamma / D))


def test_one_data_point_of_random_curvature():
    """Mean a, variance s^2 = gamma a^2: 1/eta = a / (2 (1 + mu)) + s^2 / (2 a (1 - mu))."""
    own = summand(symbolic.noise_kernel_norm("finite", momentum=True).rhs)
    norm = own.subs({D: 1, kappa: 0})
    inverse = lam / (2 * (1 + mu)) + gamma * lam / (2 * (1 - mu))
    assert is_zero(norm.subs(eta, 1 / inverse) - 1)


@functools.cache
def numeric(norm, optimizer, weight_decay):
    """Return a function of arrays, numbers by name: of i and j too where it is a matrix entry."""
    own = (
        {"optimizer": OPTIMIZERS[optimizer][0]} if optimizer not in OPTIONS else OPTIONS[optimizer]
    )
    equation = symbolic.noise_kernel_norm(norm, weight_decay=weight_decay, **own)
    entries = list(equation.lhs.indices) if norm == "exact" else []
    assert equation.lhs == sp.IndexedBase("G")[tuple(entries)] if entries else sp.Symbol("K")
    numbers = [eta, mu, rho, beta, gamma, kappa, D]
    arrays = [stability.eigenvalues, stability.eigenvectors]
    return sp.lambdify([*entries, *arrays, *numbers], equation.rhs, "numpy")


def norm_by_formula(norm, optimizer, ntk, sgd):
    n_data = len(ntk)
    covariance = map(float, gamma_and_kappa(n_data, sgd.batch_size, sgd.sampling))
    function = numeric(norm, optimizer, sgd.weight_decay > 0)
    known = [*np.linalg.eigh(ntk), sgd.learning_rate, sgd.momentum, sgd.weight_decay]
    known += [sgd.batch_size / n_data, *covariance, n_data]
    if norm != "exact":
        return function(*known)
    kernel = [[function(i, j, *known) for j in range(n_data)] for i in range(n_data)]
    return np.linalg.eigvalsh(kernel)[-1]


def random_ntk(seed, n_data, n_params):
    jacobian = np.random.default_rng(seed).normal(size=(n_data, n_params))
    return jacobian @ jacobian.T / n_data


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ("sgd", 0.0),
        ("heavy ball", 0.8),
        ("heavy ball", -0.5),
        ("nesterov", 0.8),
        ("nesterov", -0.6),
    ],
)
@pytest.mark.parametrize("norm", ["paper", "finite", "exact"])
def test_norms_of_arrays_are_the_numeric_ones(norm, optimizer, momentum, decay, sampling):
    ntk = random_ntk(3, 4, 9)
    sgd = qm.SGD(1.0, 2, momentum, optimizer == "nesterov", decay, sampling)
    for fraction in (0.1, 0.7):
        sgd = replace(sgd, learning_rate=fraction * qm.edge_of_stability(ntk, sgd))
        expected = qm.noise_kernel_norm(ntk, sgd, norm=norm)
        assert norm_by_formula(norm, optimizer, ntk, sgd) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["paper", "finite", "exact"])
def test_norms_of_an_ntk_with_a_null_space(norm, decay):
    # modes of eigenvalue zero update nothing; between two of them the formula itself reads 0/0
    tiny = 1e-300 if norm == "exact" else 0.0
    ntk, sgd = np.diag([tiny, tiny, 1.0, 2.0]), qm.SGD(0.4, 2, weight_decay=decay)
    expected = qm.noise_kernel_norm(ntk, sgd, norm=norm)
    assert norm_by_formula(norm, "sgd", ntk, sgd) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_threshold_of_a_methodwith_memory_of_three(sampling, decay):
    ntk, batch_size = random_ntk(8, 3, 6), 1 if sampling == "without_replacement" else 2
    update, extrapolation = ([float(c) for c in given] for given in (UPDATE, EXTRAPOLATION))
    edge = least_positive(MEMORY_3) / (np.linalg.eigvalsh(ntk)[-1] + decay)

    def norm(learning_rate):
        sgd = qm.SGD(learning_rate, batch_size, weight_decay=decay, sampling=sampling)
        return norm_by_formula("exact", "memory 3", ntk, sgd)

    def radius(learning_rate):
        settings = learning_rate, decay, batch_size, sampling
        return linear_memory.spectral_radius(ntk, update, extrapolation, *settings)

    threshold = brentq(lambda step: norm(step) - 1, 1e-3 * edge, 0.999 * edge, xtol=1e-15)
    assert 0.1 * edge < threshold < 0.9 * edge
    assert radius(threshold) == pytest.approx(1, abs=1e-9)
    for factor in (0.2, 0.8, 0.99, 1.01, 1.1):
        stable = factor < 1
        assert (norm(factor * threshold) < 1) == stable
        assert (radius(factor * threshold) < 1) == stable


def least_positive(optimizer, momentum=0.0):
    """Return the deterministic edge, in eta (lambda + rho)."""
    places = [complex(e.subs(mu, momentum)) for e in symbolic.edge_of_stability(optimizer)]
    return min(e.real for e in places if abs(e.imag) < 1e-9 and e.real > 0)


MOMENTA = [*np.random.default_rng(0).uniform(-0.97, 0.97, 8), -0.34, -0.32]


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ("sgd", 0.0),
        *itertools.product(("heavy ball", "nesterov"), MOMENTA),
        ("memory 3", 0.0),
    ],
)
def test_edge_is_where_roots_leave_the_unit_circle(optimizer, momentum):
    chosen, coefficients = OPTIMIZERS[optimizer]
    expected = enumeration.first_crossing(
        lambda x: linear_memory.deterministic_radius(*coefficients(momentum), x), 1e-3
    )
    assert least_positive(chosen, momentum) == pytest.approx(expected, rel=1e-9)


def test_edge_of_the_longest_memory():
    update, extrapolation = (
        [float(c) for c in given] for given in (MEMORY_4.update, MEMORY_4.extrapolation)
    )
    expected = enumeration.first_crossing(
        lambda x: linear_memory.deterministic_radius(update, extrapolation, x), 1e-3
    )
    assert least_positive(MEMORY_4) == pytest.approx(expected, rel=1e-9)


def test_known_edges():
    assert symbolic.edge_of_stability() == [2]
    (place,) = symbolic.edge_of_stability(HEAVY_BALL)
    assert is_zero(place - 2 * (1 + mu))
    assert any(
        is_zero(place - 2 * (1 + mu) / (1 + 2 * mu))
        for place in symbolic.edge_of_stability(NESTEROV)
    )


def test_a_memory_with_zero_coefficients_changes_nothing():
    idle = LinearOptimizer((1, 0, 0), (1,))
    assert symbolic.edge_of_stability(idle) == [2]
    assert is_zero(symbolic.bare_response(idle) - symbolic.bare_response())


def random_polynomials(degree):
    """Return monic polynomials of fractions, none with a root next to the unit circle."""
    rng = np.random.default_rng(degree)
    while True:
        coefficients = [1, *(Fraction(int(n), 8) for n in rng.integers(-10, 11, degree))]
        radius = np.abs(np.roots([float(c) for c in coefficients])).max(initial=0.0)
        if abs(radius - 1) > 1e-3:
            yield coefficients, bool(radius < 1)


def check_conditions(module, degree, count=60):
    symbols = sp.symbols(f"f1:{degree + 1}")
    general = module.schur_cohn_conditions([1, *symbols])
    verdicts = set()
    for coefficients, stable in itertools.islice(random_polynomials(degree), count):
        exact = [rational(Fraction(c)) for c in coefficients]
        values = dict(zip(symbols, exact[1:], strict=True))
        assert all(c.subs(values) > 0 for c in general) is stable
        given = module.schur_cohn_conditions(exact)
        assert len(given) == 2 * degree
        assert all(c > 0 for c in given) is stable
        verdicts.add(stable)
    assert verdicts == {False, True}


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_conditions_tell_where_the_roots_are(degree):
    check_conditions(stability, degree)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("f[0] * p - f[-1] * q", "f[0] * p + f[-1] * q"),
        ("sp.factor(f[0] + f[-1])]", "sp.factor(f[0])]"),
        ("reversed(f), strict=True)][:-1]", "reversed(f), strict=True)][1:]"),
    ],
)
def test_wrong_conditions_fail_the_comparison(mutated, old, new):
    module = mutated(stability, old, new)
    with pytest.raises(AssertionError):
        check_conditions(module, 3)


def test_conditions_of_two_roots_are_the_stability_triangle():
    a, b = sp.symbols("a b")
    conditions = symbolic.schur_cohn_conditions([1, a, b])
    assert {sp.expand(c) for c in conditions} == {1 - b, 1 + b, 1 + b - a, 1 + b + a}


@pytest.mark.parametrize("coefficients", [[1, 1], [1, 0, 1], [1, 3, 1], [1, 0, 0, -1]])
def test_a_root_on_the_unit_circle_is_not_inside(coefficients):
    conditions = symbolic.schur_cohn_conditions(coefficients)
    assert sp.nan not in conditions
    assert not all(c > 0 for c in conditions)


def test_coefficients_may_be_floats():
    assert all(c > 0 for c in symbolic.schur_cohn_conditions([1.0, 0.5]))


@pytest.mark.parametrize("coefficients", [[], [1], [2, 1], [names.mu, 1]])
def test_refused_coefficients(coefficients):
    with pytest.raises(InputError, match="must start with 1 and hold another"):
        symbolic.schur_cohn_conditions(coefficients)


@pytest.mark.parametrize("norm", ["", "Paper", "modes", 3])
def test_an_unknown_norm_is_refused(norm):
    with pytest.raises(InputError, match="norm must be one of paper, finite, exact"):
        symbolic.noise_kernel_norm(norm)


@pytest.mark.parametrize("at", ["", "z", None])
def test_an_unknown_place_is_refused(at):
    with pytest.raises(InputError, match="at must be one of gradient, residual"):
        symbolic.bare_response(at=at)


def test_full_batches_have_no_noise():
    assert symbolic.noise_kernel_norm("paper").rhs.subs(beta, 1) == 0
    assert symbolic.noise_kernel_norm("finite").rhs.subs(gamma, 0) == 0
    assert symbolic.noise_kernel_norm("exact").rhs.subs(gamma, 0) == 0
    assert math.isclose(float(norm_by_formula("paper", "sgd", np.eye(2), qm.SGD(0.5, 1))), 1 / 3)
