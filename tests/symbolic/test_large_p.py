"""The large-P system: gradient of its own loss, a network, and the limit of exact means."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic import fock, large_p
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.gaussian import CURVATURE, JACOBIAN, average
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, data_indices
from quadmodel.symbolic.algebra.polynomials import Tensor
from tests.oracles import free_limit
from tests.symbolic._exact import rationals

N_DATA = 2
ETA = Fraction(1, 3)
a, b = data_indices("ab")


def positive(seed, n=N_DATA):
    root = rationals(seed, n, n)
    return root @ root.T


@functools.cache
def setting(n_data=N_DATA):
    """Values of everything but the coefficients."""
    return {
        "Xi": positive(1, n_data) / 7,
        "G_0": positive(2, n_data) / 5,
        "z_0": rationals(3, n_data),
        "eta": ETA,
        "D": Fraction(n_data),
    }


def started(order, n_data=N_DATA):
    return {f"T_{n}": np.full((n_data,) * (n + 1), Fraction(0)) for n in range(order + 1)}


@functools.cache
def system(order):
    return large_p.large_p_step(order)


def forces(count, n_data=N_DATA):
    """Weights of batches: what multiplies the residual in every step."""
    return [np.abs(rationals(10 + t, n_data)) for t in range(count)]


def train(order, weights):
    """Return residual and D Theta before every step and at the end, in fractions."""
    at, path = system(order), []
    n_data = len(weights[0])
    values = setting(n_data) | started(order, n_data)
    for w in [*weights, None]:
        z = at.residual.evaluate(values)
        path.append((z, at.gram.evaluate(values)))
        if w is None:
            return path
        values["zeta"] = w * z
        changes = [change.evaluate(values) for change in at.changes]
        values |= {f"T_{n}": values[f"T_{n}"] + change for n, change in enumerate(changes)}
    raise AssertionError


def symbols(order):
    return {
        f"T_{n}": np.array(sp.symbols(f"t{n}_:{N_DATA ** (n + 1)}")).reshape((N_DATA,) * (n + 1))
        for n in range(order + 1)
    }


def metric_of(n):
    """Return the metric of basis states with n leading data indices as a matrix."""
    values = setting()
    metric = np.array([[Fraction(1)]], dtype=object)
    for _ in range(n):
        metric = np.kron(metric, values["Xi"])
    return np.kron(metric, values["G_0"])


def check_gradient(module, order):
    """A step follows the gradient of the loss, in the metric of the basis states."""
    at = module.large_p_step(order)
    unknown = symbols(order)
    values = setting() | unknown
    residual = at.residual.evaluate(values)
    gram = np.zeros((N_DATA, N_DATA), dtype=object)
    for n, gradient in enumerate(at.gradients):
        names_ = unknown[f"T_{n}"].ravel()
        slopes = np.array([[sp.diff(z, t) for t in names_] for z in residual])
        metric = metric_of(n)
        rows = gradient.evaluate(values).reshape(N_DATA, -1)
        assert not any(sp.expand(x) for x in (slopes - rows @ metric).ravel())
        gram = gram + rows @ metric @ rows.T
        force = rationals(4, N_DATA)
        change = at.changes[n].evaluate(values | {"zeta": force}).ravel()
        assert not any(sp.expand(x) for x in change + ETA / N_DATA * (force @ rows))
    assert not any(sp.expand(x) for x in (gram - at.gram.evaluate(values)).ravel())


@pytest.mark.parametrize("order", [0, 1, 2])
def test_truncated_system_is_gradient_descent_of_its_own_loss(order):
    check_gradient(large_p, order)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* sp.Rational(1, 2)", "* sp.S.One"),
        ("+ other(*i)", "+ 2 * other(*i)"),
        ("(-eta / D) for w in", "(eta / D) for w in"),
        ("inner_product(gradient(a), gradient(b))", "inner_product(gradient(a), theta)"),
    ],
)
def test_a_wrong_system_is_noticed(mutated, old, new):
    module = mutated(large_p, old, new)
    with pytest.raises((AssertionError, ValueError)):
        check_gradient(module, 1)


def test_order_one_is_a_network_of_two_layers():
    for one, other in zip(large_p.order_one_network(), large_p.two_layer_network(), strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("n_data", [2, 3])
def test_order_one_trains_like_a_network_of_two_layers(n_data):
    """Gradient descent of z_0 + W x in its own parameters, exactly."""
    jacobian = np.eye(n_data, n_data + 1, dtype=int) + rationals(5, n_data, n_data + 1) / 3
    values = setting(n_data)
    xi = values["Xi"]
    x, layer = np.full(n_data + 1, Fraction(0)), jacobian.copy()
    at, start = system(1), values | started(1, n_data) | {"G_0": jacobian @ jacobian.T}
    for w in forces(4, n_data):
        z = values["z_0"] + layer @ x
        np.testing.assert_array_equal(at.residual.evaluate(start), z)
        np.testing.assert_array_equal(at.gram.evaluate(start), layer @ layer.T + xi * (x @ x))
        start["zeta"] = w * z
        start |= {
            f"T_{n}": start[f"T_{n}"] + change.evaluate(start)
            for n, change in enumerate(at.changes)
        }
        slopes = layer.T @ (w * z), np.outer(xi @ (w * z), x)
        x, layer = x - ETA / n_data * slopes[0], layer - ETA / n_data * slopes[1]
    assert (layer != jacobian).any()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_truncation_is_exact_for_its_first_steps(order):
    """The residual for L + 1 steps, the NTK for L."""
    weights = forces(order + 2)
    one, more = train(order, weights), train(order + 1, weights)
    for t in range(order + 2):
        np.testing.assert_array_equal(one[t][0], more[t][0])
        assert (one[t][1] == more[t][1]).all() == (t <= order)
    assert (one[order + 2][0] != more[order + 2][0]).any()


def parameters(factors):
    """Return theta_i after steps with given forces, as a polynomial in J and Q."""
    theta = None
    for force in factors:
        before = theta

        def theta(i, before=before, force=force):
            j, c = fock.fresh(PARAMETERS), fock.fresh(DATA)
            slope = (force(c) * JACOBIAN(c, i)).sum(c)
            if before is not None:
                slope = slope + (force(c) * CURVATURE(c, i, j) * before(j)).sum(c, j)
            return (before(i) if before is not None else 0) + slope * (-names.eta / names.D)

    return theta


def mean_of_many_parameters(polynomial):
    mean = average(polynomial, fock.scaled_curvature())
    return fock.many_parameters(fock.with_gram(mean))


@pytest.mark.parametrize(("steps", "order"), [(1, 1), (2, 2), (3, 3)])
def test_limit_of_the_mean_over_the_curvature(steps, order):
    """Quadratic model with P parameters under given forces: mean over Q, exactly, then the limit.

    Neither basis states nor pairings without crossings are used for the means.
    """
    factors = [Tensor(f"f{t}", (DATA,)) for t in range(steps)]
    theta = parameters(factors)
    i, j = fock.fresh(PARAMETERS), fock.fresh(PARAMETERS)
    linear = (JACOBIAN(a, i) * theta(i)).sum(i)
    quadratic = (CURVATURE(a, i, j) * theta(i) * theta(j)).sum(i, j) * sp.Rational(1, 2)
    rows = [JACOBIAN(x, i) + (CURVATURE(x, i, j) * theta(j)).sum(j) for x in (a, b)]
    wanted = {
        "residual": mean_of_many_parameters(linear + quadratic) + large_p.START(a),
        "gram": mean_of_many_parameters((rows[0] * rows[1]).sum(i)),
    }
    at, values = system(order), setting() | started(order)
    given = dict(zip((f"f{t}" for t in range(steps)), forces(steps), strict=True))
    for force in given.values():
        values["zeta"] = force
        changes = [change.evaluate(values) for change in at.changes]
        values |= {f"T_{n}": values[f"T_{n}"] + change for n, change in enumerate(changes)}
    for name, polynomial in wanted.items():
        np.testing.assert_array_equal(
            polynomial.evaluate(values | given), getattr(at, name).evaluate(values)
        )


@pytest.mark.parametrize("order", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_numeric_recursion(order):
    """The oracle of the numeric theory, step by step."""
    values = setting(3)
    floats = {name: np.array(values[name], dtype=float) for name in ("G_0", "Xi", "z_0")}
    at, coefficients = system(order), started(order, 3)
    batches = [[0, 2], [1, 1], [2, 0], [1, 0]]
    path = free_limit.train(
        floats["G_0"], floats["Xi"], floats["z_0"], order, batches, float(ETA), 2
    )
    for batch, expected in zip([*batches, None], path, strict=True):
        for n, t in enumerate(expected):
            np.testing.assert_allclose(
                coefficients[f"T_{n}"].astype(float), t, rtol=1e-11, atol=1e-12 * np.abs(t).max()
            )
        z = at.residual.evaluate(values | coefficients)
        theta = free_limit.ntk(expected, floats["G_0"], floats["Xi"])
        gram = at.gram.evaluate(values | coefficients).astype(float)
        np.testing.assert_allclose(gram / 3, theta, rtol=1e-10)
        if batch is None:
            break
        force = z * np.bincount(batch, minlength=3) * Fraction(3, 2)
        changes = [c.evaluate(values | coefficients | {"zeta": force}) for c in at.changes]
        coefficients = {f"T_{n}": coefficients[f"T_{n}"] + c for n, c in enumerate(changes)}


@pytest.mark.parametrize("order", [-1, 5, 1.5, "1"])
def test_truncation_orders_out_of_range(order):
    with pytest.raises(InputError, match=r"^truncation_order must be"):
        large_p.large_p_step(order)
