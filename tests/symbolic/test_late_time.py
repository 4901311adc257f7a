"""Volterra equation, rate and floor of the mean loss, against the numeric theory."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import sympy as sp
from scipy.optimize import brentq

import quadmodel as qm
from quadmodel import symbolic
from quadmodel.symbolic import late_time
from quadmodel.symbolic.algebra.names import D, eta, gamma, kappa, lam, lam_other, r
from quadmodel.symbolic.late_time import null, squared_residual, time, total
from quadmodel.symbolic.stability import eigenvalues
from tests.symbolic._exact import SCHEMES, gamma_and_kappa, is_zero, summand

DECAY = (
    1 - eta * lam
) ** 2 - kappa * eta**2 * gamma * lam**2 / D  # part of its squared residual that a mode keeps


def covariance(n_data, sgd):
    return map(float, gamma_and_kappa(n_data, sgd.batch_size, sgd.sampling))


def random_model(seed, n_data, n_params):
    rng = np.random.default_rng(seed)
    return qm.QuadraticModel(rng.normal(size=n_data), rng.normal(size=(n_data, n_params)))


def problem(sampling, level, n_params=9):
    """Return a model of 6 points and the SGD at which its finite K has that value."""
    model, sgd = random_model(4, 6, n_params), qm.SGD(1.0, 2, sampling=sampling)
    rate = qm.critical_learning_rate(model.ntk(), sgd, norm="finite", level=level)
    return model, qm.SGD(rate, 2, sampling=sampling)


@functools.cache
def numeric(expression, *more):
    return sp.lambdify([eigenvalues, eta, gamma, kappa, D, *more], expression, "numpy")


def known(lam, sgd):
    return lam, sgd.learning_rate, *covariance(len(lam), sgd), len(lam)


def check_mode_energy(module):
    """Compare with p' = (1 - eta lambda)^2 p + (eta^2 gamma / D) lambda^2 (sum p - kappa p)."""
    source = eta**2 * gamma / D * lam**2 * (total - kappa * squared_residual)
    expected = (1 - eta * lam) ** 2 * squared_residual + source
    assert is_zero(module.mode_energy_equation().rhs - expected)


def test_mode_energy():
    check_mode_energy(late_time)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(moments(c, c) * (1 / D)).sum(c) if i == k", "moments(c, c).sum(c) if i == k"),
        ("_EIGENVALUE(i) * delta(i, k)", "_EIGENVALUE(i) * _EIGENVALUE(k) * delta(i, k)"),
        ("(of_all if summed else own)", "(own if summed else of_all)"),
    ],
)
def test_a_wrong_closure_fails_the_comparison(mutated, old, new):
    module = mutated(late_time, old, new)
    with pytest.raises(AssertionError):
        check_mode_energy(module)


def test_kernel_is_what_a_mode_keeps_of_its_noise():
    """k_n = (eta^2 gamma / D) sum lambda^2 a^n."""
    kernel = summand(symbolic.volterra_kernel())
    assert is_zero(kernel.subs(time, 3) - eta**2 * gamma / D * lam**2 * DECAY**3)
    assert is_zero(kernel.subs(time, 0) - eta**2 * gamma / D * lam**2)


def test_sum_of_the_kernel_is_the_finite_norm():
    norm = symbolic.noise_kernel_norm("finite").rhs
    kernel_sum = summand(symbolic.volterra_sum())
    assert is_zero(kernel_sum - summand(norm))
    assert is_zero(kernel_sum - eta**2 * gamma / D * lam**2 / (1 - DECAY))


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("level", [0.3, 1.2])
def test_partial_sums_of_the_kernel_converge(sampling, level):
    model, sgd = problem(sampling, level)
    given = known(np.linalg.eigvalsh(model.ntk()), sgd)
    of_step = numeric(symbolic.volterra_kernel(), time)
    kernel = [of_step(*given, n) for n in range(2000)]
    assert kernel[-1] < 1e-14
    assert np.sum(kernel) == pytest.approx(level, rel=1e-10)
    assert np.sum(kernel[:4]) < 0.99 * level
    assert numeric(symbolic.volterra_sum())(*given) == pytest.approx(level, rel=1e-10)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(("level", "n_params"), [(0.3, 9), (0.8, 4), (1.2, 9)])
def test_volterra_equation_gives_the_loss_of_the_closure(sampling, level, n_params):
    model, sgd = problem(sampling, level, n_params)
    steps = 40
    lam, vectors = np.linalg.eigh(model.ntk())
    start = (vectors.T @ model.residual) ** 2 / (2 * model.n_data)
    size, correlation = covariance(model.n_data, sgd)
    step = sgd.learning_rate
    kept = (1 - step * lam) ** 2 - correlation * step**2 * size * lam**2 / model.n_data
    of_step = numeric(symbolic.volterra_kernel(), time)
    kernel = [of_step(*known(lam, sgd), n) for n in range(steps)]
    loss = []
    for t in range(steps + 1):
        loss.append(start @ kept**t + sum(kernel[t - 1 - s] * loss[s] for s in range(t)))
    expected = qm.predict(model, sgd, steps, method="modes").loss
    np.testing.assert_allclose(loss, expected, rtol=1e-11)


def test_rate_equation():
    equation = symbolic.rate_equation()
    assert equation.rhs == 1
    assert is_zero(summand(equation.lhs) - eta**2 * gamma / D * lam**2 / (r - DECAY))
    # at r = 1 it says that the finite norm is 1
    norm = symbolic.noise_kernel_norm("finite").rhs
    assert is_zero(summand(equation.lhs).subs(r, 1) - summand(norm))


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("level", [0.1, 0.6, 1.0, 1.5])
def test_largest_root_is_the_late_time_rate(sampling, level):
    model, sgd = problem(sampling, level)
    given = known(np.linalg.eigvalsh(model.ntk()), sgd)
    left = numeric(symbolic.rate_equation().lhs, r)
    lam, step, size, correlation, n_data = given
    pole = ((1 - step * lam) ** 2 - correlation * size * (step * lam) ** 2 / n_data).max()
    root = brentq(lambda growth: left(*given, growth) - 1, pole + 1e-9, 10, xtol=1e-15)
    assert qm.late_time_rate(model.ntk(), sgd, norm="finite") == pytest.approx(root, rel=1e-10)
    assert (root > 1 + 1e-12) == (level > 1)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("level", [0.2, 0.9])
def test_floor_with_a_null_space(sampling, level):
    model, sgd = problem(sampling, level, n_params=4)
    unreached = model.residual - np.linalg.pinv(model.ntk()) @ model.ntk() @ model.residual
    assert unreached @ unreached > 1e-3
    equation = symbolic.loss_floor()
    floor = equation.rhs.subs({null: unreached @ unreached, D: model.n_data, "K": level})
    expected = qm.loss_floor(model.ntk(), model.residual, sgd, norm="finite")
    assert float(floor) == pytest.approx(expected, rel=1e-9)
    assert equation.lhs == late_time.loss


def test_floor():
    norm = sp.Symbol("K")
    assert is_zero(symbolic.loss_floor().rhs - null / (2 * D) / (1 - norm))


def test_squared_residual_at_the_gradient_solves_its_equation():
    """Its own mean, and the noise of all modes: e = m2 + (gamma/D) S0 (sum - kappa e)."""
    mean, bare, dressed = sp.symbols("m2 S0 S")
    found = symbolic.squared_residual_at_gradient().subs(
        dressed, 1 / (1 / bare + kappa * gamma / D)
    )
    loop = gamma / D * bare * (total - kappa * found)
    assert is_zero(found - mean - loop)


def test_stationary_squared_residuals_of_plain_sgd_stay():
    """With a mean of zero, one more step returns the squared residual: p' = p."""
    bare = symbolic.bare_response().subs(lam_other, lam)
    dressed = symbolic.dressed_response(bare)
    still = symbolic.squared_residual_at_gradient().subs({"m2": 0, "S": dressed})
    following = symbolic.mode_energy_equation().rhs.subs(squared_residual, still)
    assert is_zero(following - still)
