"""Index forms of steps and means: known equations, and recorded values."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.gaussian import (
    JACOBIAN,
    OVER_PARAMETERS,
    RESIDUAL,
    GaussianField,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import DATA, data_indices, parameter_indices
from quadmodel.symbolic.algebra.matrices import as_matrix
from quadmodel.symbolic.algebra.polynomials import Tensor, delta
from quadmodel.symbolic.algebra.sampling import weight_covariance
from quadmodel.symbolic.dynamics import (
    NTK,
    batch_weights,
    difference,
    expected,
    start,
    step,
    with_ntk,
)
from tests.symbolic._exact import SCHEMES, rationals
from tests.symbolic._models import Model, mean_of

RECORDS = json.loads((Path(__file__).parents[1] / "data" / "sharpening.json").read_text("utf-8"))

(a, b, c), (i, j, k) = data_indices("abc"), parameter_indices("ijk")


@pytest.mark.parametrize("scheme", [*SCHEMES, None])
def test_second_moment_of_the_linear_model(scheme):
    r"""M' = R M R + eta^2 gamma Theta (diag M - kappa M / D) Theta with R = 1 - eta Theta."""
    M = Tensor("M", (DATA, DATA), (0, 0))
    random = GaussianField(RESIDUAL, lambda x, y: M(*x, *y))
    given = expected("second_moment", curvature="none", residual=random, sampling=scheme)
    d, e = data_indices("de")
    eta, gamma, kappa = names.eta, names.gamma, names.kappa
    if scheme is not None:
        gamma, kappa = weight_covariance(scheme)
    R = [delta(x, y) - eta * NTK(x, y) for x, y in ((a, d), (e, b))]
    inner = delta(d, e) * M(d, d) - kappa / names.D * M(d, e)
    noise = eta**2 * gamma * NTK(a, d) * inner * NTK(e, b)
    assert given.equals((R[0] * M(d, e) * R[1] + noise).sum(d, e))


def test_mean_residual_of_the_linear_model():
    d, e, f = data_indices("def")
    R = [delta(x, y) - names.eta * NTK(x, y) for x, y in ((a, d), (d, e), (e, f))]
    product = (R[0] * R[1] * R[2] * RESIDUAL(f)).sum(d, e, f)
    assert expected("residual", 3, curvature="none").equals(product)


def test_first_difference_of_the_ntk_from_a_random_residual():
    # eta^2 sigma^2 (P + 1) s^2 tr(Theta) / (D B) without replacement
    change = difference(
        "ntk", 1, curvature="independent", residual="independent", sampling="without_replacement"
    )
    size = names.eta * names.sigma * names.s
    trace = size**2 * (names.P + 1) / (names.D * names.B) * NTK(c, c).sum(c)
    assert change.equals(trace * delta(a, b))


@pytest.mark.parametrize("order", [1, 2])
def test_differences_are_those_of_the_enumerated_means(order):
    model = Model(2, 2, Fraction(3, 5))
    change = difference("ntk", order, sampling="without_replacement").evaluate(model.values)
    values = [model.moments(t, model.mix, model.root)["ntk"] for t in range(order + 1)]
    expected = values[1] - values[0] if order == 1 else values[2] - 2 * values[1] + values[0]
    np.testing.assert_array_equal(change, expected)


def test_without_curvature_the_ntk_stays():
    zero = kronecker_curvature(over_data=lambda x, y: 0)
    for none in ("none", zero):
        assert expected("ntk", 2, curvature=none).equals(NTK(a, b))
        assert expected("jacobian", 2, curvature=none).equals(JACOBIAN(a, i))
    assert expected("residual", 2, curvature=zero, sampling="bernoulli").equals(
        expected("residual", 2, curvature="none")
    )


def test_jacobians_become_the_ntk_only_where_nothing_else_holds_the_index():
    J, S = JACOBIAN, OVER_PARAMETERS
    pair = (J(a, i) * J(b, i)).sum(i)
    held = (J(a, i) * J(b, i) * S(i, j)).sum(i)
    open_ = J(a, i) * J(b, i)
    square = (J(a, i) * J(a, i)).sum(a, i)
    assert with_ntk(pair).equals(names.D * NTK(a, b))
    assert with_ntk(square).equals(names.D * NTK(c, c).sum(c))
    for other in (held, open_, (J(a, i) * J(b, i) * J(c, i)).sum(i), J(a, i).sum(i)):
        assert with_ntk(other).terms == other.terms
    assert with_ntk(pair * held).equals(names.D * NTK(a, b) * held)


@pytest.mark.parametrize(("steps", "order"), [(1, 1), (2, 5)])
def test_steps_to_full_order_are_exact(steps, order):
    # one step is of first order in Q, two of fifth
    n_data, n_params, h = 2, 1, Fraction(2, 7) / 2
    z, J = rationals(1, n_data), rationals(2, n_data, n_params)
    bent = rationals(3, n_data, n_params, n_params)
    values = {"z": z, "J": J, "Q": bent, "eta": Fraction(2, 7), "D": Fraction(n_data)}
    state = start(order)
    for t in range(steps):
        w = values[batch_weights(t).name] = rationals(5 + t, n_data)
        g = J.T @ (w * z)
        z, J = z - h * J @ g + h**2 / 2 * (bent @ g) @ g, J - h * bent @ g
        state = step(state, batch_weights(t))
    for series, value in zip(state, (z, J), strict=True):
        total = sum(part.evaluate(values) for part in series)
        np.testing.assert_array_equal(total, value)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"seed{r['seed']}-B{r['batch_size']}")
@pytest.mark.parametrize("steps", [1, 2])
def test_recorded_change_of_the_ntk(record, steps):
    rng = np.random.default_rng(record["seed"])
    n_data, n_params = record["n_data"], record["n_params"]
    jacobian, residual = rng.normal(size=(n_data, n_params)), rng.normal(size=n_data)
    roots = rng.normal(size=(n_data, n_data)), rng.normal(size=(n_params, n_params))
    values = {
        "J": jacobian,
        "z": residual[:, None],
        "Theta": jacobian @ jacobian.T / n_data,
        "C": 1e-4 * roots[0] @ roots[0].T / n_data,
        "S": roots[1] @ roots[1].T / n_params,
        "sigma": 1e-2,
        "eta": record["learning_rate"],
        "D": n_data,
        "P": n_params,
        "B": record["batch_size"],
    }
    curvature = "independent" if record["independent"] else "kronecker"
    mean = mean_of("ntk", steps, curvature=curvature, sampling=record["sampling"])
    # Without the start, next to which the change is small; as matrices, since that is fast.
    change = as_matrix(mean - NTK(a, b))
    wanted = sorted(change.free_symbols, key=str)
    value = sp.lambdify(wanted, change, "numpy")(*(values[str(symbol)] for symbol in wanted))
    recorded = np.array(record["expected_ntk_change"][record["steps"].index(steps)])
    np.testing.assert_allclose(value, recorded, rtol=1e-10, atol=1e-10 * np.abs(recorded).max())
