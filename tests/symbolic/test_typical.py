"""One-step variance of the quadratic form that grows exactly, against sums over all batches."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel import SGD
from quadmodel._util.checks import InputError
from quadmodel.symbolic import linear, typical
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.indices import data_indices
from quadmodel.symbolic.algebra.sampling import (
    fluctuations,
    partitions,
    weight_covariance,
    weight_moment,
)
from quadmodel.theory import _fluctuation
from tests.oracles import enumeration
from tests.oracles.one_step import weight_fluctuations
from tests.symbolic._exact import SCHEMES, at, rationals

ETA = Fraction(2, 7)
SIZES = [(2, 1), (3, 1), (3, 2), (4, 3)]
OPTIMIZERS = {"plain": (0, 0), "heavy ball": (Fraction(1, 2), 0), "Nesterov": (Fraction(-1, 3), 1)}


@functools.cache
def drawn(n_data, batch_size, scheme):
    return [
        (p, np.array(w, dtype=object))
        for p, w in enumeration.rational_batches(n_data, batch_size, scheme)
    ]


def symmetric(seed, n):
    root = rationals(seed, n, n)
    return root @ root.T


def steps(ntk, batches, momentum, nesterov):
    """Yield the matrix of every batch on (z_t, z_(t-1)); plain SGD remembers nothing."""
    n = len(ntk)
    unit = np.eye(n, dtype=int).astype(object) * Fraction(1)
    p, q = (1 + momentum, momentum) if nesterov else (Fraction(1), Fraction(0))
    for probability, w in batches:
        gradient = ETA * ntk * w
        if momentum == 0:
            yield probability, unit - gradient
            continue
        now, old = (1 + momentum) * unit - p * gradient, -momentum * unit + q * gradient
        yield probability, np.block([[now, old], [unit, 0 * unit]])


def product(first, second, covariance):
    """E[(s^T K s)(s^T K' s)] at Gaussian s."""
    a, b = first @ covariance, second @ covariance
    return np.trace(a) * np.trace(b) + 2 * np.trace(a @ b)


@functools.cache
def case(n_data, batch_size, scheme, optimizer):
    """Return the arrays of the formula, and the enumerated variance."""
    momentum, nesterov = OPTIMIZERS[optimizer]
    n_state = n_data if momentum == 0 else 2 * n_data
    ntk, form, covariance = symmetric(1, n_data), symmetric(2, n_state), symmetric(3, n_state)
    all_steps = list(steps(ntk, drawn(n_data, batch_size, scheme), momentum, nesterov))
    forms = [(p, step.T @ form @ step) for p, step in all_steps]
    mean = sum(p * f for p, f in forms)
    variance = sum(p * product(f, f, covariance) for p, f in forms)
    variance -= product(mean, mean, covariance)
    noise_free = sum(p * step for p, step in all_steps)
    to_point = np.eye(n_data, n_state, dtype=int).astype(object) * Fraction(1)
    if nesterov:
        to_point = np.hstack(
            [(1 + momentum) * to_point[:, :n_data], -momentum * to_point[:, :n_data]]
        )
    to_slope = ETA * ntk @ (form @ noise_free)[:n_data]
    values = {
        "N": ETA**2 * ntk @ form[:n_data, :n_data] @ ntk,
        "U": to_point @ covariance @ to_point.T,
        "Y": to_slope @ covariance @ to_point.T,
        "Z": to_slope @ covariance @ to_slope.T,
        "D": Fraction(n_data),
        "B": Fraction(batch_size),
    }
    return values, variance


@functools.cache
def variance_of(module, scheme):
    return module.one_step_variance(scheme)


def check_variance(module, n_data, batch_size, scheme, optimizer="plain"):
    values, variance = case(n_data, batch_size, scheme, optimizer)
    assert sum(part.evaluate(values) for part in variance_of(module, scheme)) == variance


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n_data", "batch_size"), SIZES)
def test_variance_is_that_of_all_batches(n_data, batch_size, scheme, optimizer):
    check_variance(typical, n_data, batch_size, scheme, optimizer)
    assert case(n_data, batch_size, scheme, optimizer)[1] > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* first_order(a) * second_order(b, c) * 2", "* first_order(a) * second_order(b, c)"),
        (" - pair * other", ""),
        ("-2 * _linear", "2 * _linear"),
        ("law = symbolic_fluctuations()", "law = fluctuations('bernoulli')"),
    ],
)
def test_a_wrong_variance_fails_the_comparison(mutated, old, new):
    module = mutated(typical, old, new)
    if "law" in old:  # the moments of another scheme
        values, variance = case(4, 3, "without_replacement", "plain")
        assert sum(part.evaluate(values) for part in module.one_step_variance()) != variance
        return
    with pytest.raises(AssertionError):
        check_variance(module, 4, 3, "without_replacement")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_symbols_stand_for_the_moments_of_a_scheme(scheme):
    known = dict(
        zip(typical.higher_moment_symbols().values(), typical.higher_moments(scheme), strict=True)
    )
    known |= dict(zip((names.gamma, names.kappa), weight_covariance(scheme), strict=True))
    for general, special in zip(
        typical.one_step_variance(), typical.one_step_variance(scheme), strict=True
    ):
        assert general.subs(known).equals(special)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n_data", "batch_size"), SIZES)
def test_adjoint_is_that_of_all_batches(n_data, batch_size, scheme):
    ntk, form = symmetric(1, n_data), symmetric(2, n_data)
    gamma, kappa = weight_covariance(scheme)
    values = {"Theta": ntk, "L": form, "eta": ETA, "D": Fraction(n_data)}
    values |= {"gamma": at(gamma, n_data, batch_size), "kappa": at(kappa, n_data, batch_size)}
    expected = sum(
        p * step.T @ form @ step
        for p, step in steps(ntk, drawn(n_data, batch_size, scheme), 0, False)
    )
    np.testing.assert_array_equal(typical.adjoint_step().evaluate(values), expected)


def test_deviation_and_mean_square():
    """At every batch and state; the mean square from that of two forms."""
    ntk, form, covariance = symmetric(1, 3), symmetric(2, 3), symmetric(3, 3)
    state = rationals(4, 3)
    values = {"Theta": ntk, "L": form, "eta": ETA, "z": state, "M": covariance}
    batches = drawn(3, 2, "without_replacement")
    for (_, w), (_, step) in zip(batches, steps(ntk, batches, 0, False), strict=True):
        noise_free = (np.eye(3, dtype=int) - ETA * ntk) @ state
        whole = step @ state @ form @ step @ state - noise_free @ form @ noise_free
        parts = typical.deviation()
        assert sum(part.evaluate(values | {"x": w - 1}) for part in parts) == whole
        # g u x and N u u x x of the variance
        g = ETA * ntk @ form @ noise_free
        assert parts[0].evaluate(values | {"x": w - 1}) == -2 * g @ (state * (w - 1))
    assert typical.mean_square().evaluate(values) == product(form, form, covariance)


def test_noise_form_obeys_the_equation_of_the_second_moment():
    r"""With N = eta^2 Theta L Theta: so N is proportional to the eigenmatrix M."""
    a, b, c, d = data_indices("abcd")
    theta, L, N = linear.NTK, typical.ADJOINT, typical.FORM
    inner = typical.adjoint_step().rename({a: c, b: d})
    stepped = (names.eta**2 * theta(a, c) * inner * theta(d, b)).sum(c, d)
    stepped = fold(stepped, (theta(a, c) * L(c, d) * theta(d, b)).sum(c, d), N, names.eta**-2)
    (moment,) = linear.second_moments(linear.PLAIN_SGD).values()
    assert moment.replace(linear.moment(0, 0), N).equals(stepped)


def test_contractions_of_the_numeric_theory():
    n_data, gamma, kappa = 5, 1.7, 0.6
    rng = np.random.default_rng(0)
    root, mixed, slope = rng.normal(size=(3, n_data, n_data))
    point, slope = root @ root.T, slope @ slope.T
    moments = dict(zip(typical.higher_moment_symbols().values(), rng.normal(size=8), strict=True))
    values = {"N": point, "U": point, "Y": mixed, "Z": slope, "D": n_data}
    values |= {"gamma": gamma, "kappa": kappa}
    values |= {symbol.name: value for symbol, value in moments.items()}
    weights = _fluctuation.WeightMoments(*moments.values())
    found = (
        _fluctuation._second_order(point, mixed, slope, gamma, kappa),
        _fluctuation._third_order(point, mixed, weights),
        _fluctuation._fourth_order(point, weights, gamma, kappa),
    )
    for value, part in zip(found, typical.one_step_variance(), strict=True):
        assert value == pytest.approx(float(part.evaluate(values)), rel=1e-12)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(
    ("n_data", "batch_size"), [(n, b) for n in (1, 2, 3) for b in range(1, n + 1)]
)
def test_moments_of_few_points(n_data, batch_size, sampling):
    """Coefficients give every moment, also where the formula has poles."""
    c = _fluctuation.weight_moments(SGD(1.0, batch_size, sampling=sampling), n_data)
    known = dict(zip(typical.HIGHER_ORDERS, c, strict=True))
    for order in (3, 4):
        for points, expected in weight_fluctuations(n_data, batch_size, sampling, order).items():
            total = sum(
                known[tuple(sorted(map(len, blocks)))]
                for blocks in partitions(order)
                if all(len({points[i] for i in block}) == 1 for block in blocks)
            )
            assert total == pytest.approx(float(expected), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moments_of_the_fluctuations(scheme):
    law = fluctuations(scheme)
    for n_data, batch_size in SIZES:
        for pattern in ("i", "ii", "ij", "iij", "ijk", "iiij", "iijj", "iijk"):
            if len(set(pattern)) > n_data:
                continue
            points = ["ijk".index(label) for label in pattern]
            met = sum(
                p * np.prod([w[i] - 1 for i in points], initial=Fraction(1))
                for p, w in drawn(n_data, batch_size, scheme)
            )
            assert at(weight_moment(pattern, law), n_data, batch_size) == met


def test_weights_of_a_fixed_batch_size_fluctuate_against_each_other():
    """Summed over one of the points every moment vanishes."""
    for scheme in ("without_replacement", "with_replacement"):
        c3, c21, c111, c4, c31, c22, c211, c1111 = typical.higher_moments(scheme)
        D = names.D
        sums = (c3 + D * c21, 2 * c21 + D * c111, c4 + D * c31, c31 + c22 + D * c211)
        assert [sp.simplify(total) for total in (*sums, 3 * c211 + D * c1111)] == [0] * 5


def test_unknown_scheme():
    for function in (fluctuations, typical.higher_moments, typical.one_step_variance):
        with pytest.raises(InputError, match=r"^sampling must be"):
            function("uniform")
