"""The large-P system: gradient of its own loss, a network, and the limit of exact means."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic import fock as words
from quadmodel.symbolic import large_p
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.gaussian import CURVATURE, JACOBIAN, average, kronecker_curvature
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, data_indices
from quadmodel.symbolic.algebra.polynomials import Tensor, delta
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
    """Values of everything but the words."""
    return {
        "Xi": positive(1, n_data) / 7,
        "G_0": positive(2, n_data) / 5,
        "z_0": rationals(3, n_data),
        "eta": ETA,
        "D": Fraction(n_data),
    }


def started(level, n_data=N_DATA):
    return {f"T_{n}": np.full((n_data,) * (n + 1), Fraction(0)) for n in range(level + 1)}


@functools.cache
def system(level):
    return large_p.large_p_step(level)


def forces(count, n_data=N_DATA):
    """Weights of batches: what multiplies the residual in every step."""
    return [np.abs(rationals(10 + t, n_data)) for t in range(count)]


def train(level, weights, module=None):
    """Return residual and D Theta before every step and at the end, in fractions."""
    at, path = (module or large_p).large_p_step(level) if module else system(level), []
    n_data = len(weights[0])
    values = setting(n_data) | started(level, n_data)
    for w in [*weights, None]:
        z = at.residual.evaluate(values)
        path.append((z, at.gram.evaluate(values)))
        if w is None:
            return path
        values["zeta"] = w * z
        changes = [change.evaluate(values) for change in at.changes]
        values |= {f"T_{n}": values[f"T_{n}"] + change for n, change in enumerate(changes)}
    raise AssertionError


def symbols(level):
    return {
        f"T_{n}": np.array(sp.symbols(f"t{n}_:{N_DATA ** (n + 1)}")).reshape((N_DATA,) * (n + 1))
        for n in range(level + 1)
    }


def metric_of(n):
    """Return the metric of words of n letters as a matrix."""
    values = setting()
    metric = np.array([[Fraction(1)]], dtype=object)
    for _ in range(n):
        metric = np.kron(metric, values["Xi"])
    return np.kron(metric, values["G_0"])


def check_gradient(module, level):
    """A step goes down the gradient of the loss over the words, in their metric."""
    at = module.large_p_step(level)
    unknown = symbols(level)
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


@pytest.mark.parametrize("level", [0, 1, 2])
def test_truncated_at_any_level_it_is_gradient_descent_of_its_own_loss(level):
    check_gradient(large_p, level)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("half = sp.Rational(1, 2)", "half = sp.S.One"),
        ("+ other(*i)", "+ 2 * other(*i)"),
        ("(-eta / D) for w in", "(eta / D) for w in"),
        ("inner_product(gradient(a), gradient(b))", "inner_product(gradient(a), theta)"),
    ],
)
def test_a_wrong_system_is_noticed(mutated, old, new):
    module = mutated(large_p, old, new)
    with pytest.raises((AssertionError, ValueError)):
        check_gradient(module, 1)


def test_level_one_is_a_network_of_two_layers():
    for one, other in zip(large_p.order_one_network(), large_p.two_layer_network(), strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("n_data", [2, 3])
def test_level_one_trains_like_a_network_of_two_layers(n_data):
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


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_is_exact_for_its_first_steps(level):
    """The residual for L + 1 steps, the NTK for L."""
    weights = forces(level + 2)
    here, beyond = train(level, weights), train(level + 1, weights)
    for t in range(level + 2):
        np.testing.assert_array_equal(here[t][0], beyond[t][0])
        assert (here[t][1] == beyond[t][1]).all() == (t <= level)
    assert (here[level + 2][0] != beyond[level + 2][0]).any()


def parameters(kicks):
    """Return theta_i after steps with given forces, as a polynomial in J and Q."""
    theta = None
    for force in kicks:
        before = theta

        def theta(i, before=before, force=force):
            j, c = words.fresh(PARAMETERS), words.fresh(DATA)
            slope = (force(c) * JACOBIAN(c, i)).sum(c)
            if before is not None:
                slope = slope + (force(c) * CURVATURE(c, i, j) * before(j)).sum(c, j)
            return (before(i) if before is not None else 0) + slope * (-names.eta / names.D)

    return theta


def mean_of_many_parameters(polynomial):
    law = kronecker_curvature(lambda x, y: words.CURVATURE_COVARIANCE(x, y) * (1 / names.P), delta)
    return words.many_parameters(words.with_gram(average(polynomial, law)))


@pytest.mark.parametrize(("steps", "level"), [(1, 1), (2, 2), (3, 3)])
def test_limit_of_the_mean_over_the_curvature(steps, level):
    """Quadratic model with P parameters under given forces: mean over Q, exactly, then the limit.

    Neither words nor pairings that don't cross are used there.
    """
    kicks = [Tensor(f"f{t}", (DATA,)) for t in range(steps)]
    theta = parameters(kicks)
    i, j = words.fresh(PARAMETERS), words.fresh(PARAMETERS)
    linear = (JACOBIAN(a, i) * theta(i)).sum(i)
    bent = (CURVATURE(a, i, j) * theta(i) * theta(j)).sum(i, j) * sp.Rational(1, 2)
    rows = [JACOBIAN(x, i) + (CURVATURE(x, i, j) * theta(j)).sum(j) for x in (a, b)]
    wanted = {
        "residual": mean_of_many_parameters(linear + bent) + large_p.START(a),
        "gram": mean_of_many_parameters((rows[0] * rows[1]).sum(i)),
    }
    at, values = system(level), setting() | started(level)
    given = dict(zip((f"f{t}" for t in range(steps)), forces(steps), strict=True))
    for force in given.values():
        values["zeta"] = force
        changes = [change.evaluate(values) for change in at.changes]
        values |= {f"T_{n}": values[f"T_{n}"] + change for n, change in enumerate(changes)}
    for name, polynomial in wanted.items():
        np.testing.assert_array_equal(
            polynomial.evaluate(values | given), getattr(at, name).evaluate(values)
        )


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_numeric_recursion(level):
    """The oracle of the numeric theory, step by step."""
    values = setting(3)
    floats = {name: np.array(values[name], dtype=float) for name in ("G_0", "Xi", "z_0")}
    at, words_ = system(level), started(level, 3)
    batches = [[0, 2], [1, 1], [2, 0], [1, 0]]
    path = free_limit.train(
        floats["G_0"], floats["Xi"], floats["z_0"], level, batches, float(ETA), 2
    )
    for batch, there in zip([*batches, None], path, strict=True):
        for n, t in enumerate(there):
            np.testing.assert_allclose(
                words_[f"T_{n}"].astype(float), t, rtol=1e-11, atol=1e-12 * np.abs(t).max()
            )
        z = at.residual.evaluate(values | words_)
        theta = free_limit.ntk(there, floats["G_0"], floats["Xi"])
        gram = at.gram.evaluate(values | words_).astype(float)
        np.testing.assert_allclose(gram / 3, theta, rtol=1e-10)
        if batch is None:
            break
        force = z * np.bincount(batch, minlength=3) * Fraction(3, 2)
        changes = [c.evaluate(values | words_ | {"zeta": force}) for c in at.changes]
        words_ = {f"T_{n}": words_[f"T_{n}"] + c for n, c in enumerate(changes)}


@pytest.mark.parametrize("level", [-1, 5, 1.5, "1"])
def test_levels_out_of_range(level):
    with pytest.raises(InputError, match=r"^level must be"):
        large_p.large_p_step(level)
