"""Means for several laws of the curvature against enumeration of its values."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic.algebra.gaussian import CURVATURE, GaussianField, kronecker_curvature
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS
from quadmodel.symbolic.algebra.polynomials import Tensor, delta
from quadmodel.symbolic.dynamics import expected
from tests.oracles.quadratic import discrete_curvatures
from tests.symbolic._exact import SCHEMES, rationals
from tests.symbolic._models import LIGHT, Model, mean_of


@pytest.mark.parametrize("steps", [1, 2])
def test_third_order_in_the_curvature_vanishes(steps):
    model = Model(2, 2, Fraction(3, 5))
    moments = model.moments(steps, model.mix, model.root, max_order=3)
    assert moments["ntk"].any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("quantity", LIGHT)
@pytest.mark.parametrize("steps", [1, 2])
def test_curvature_with_independent_entries(scheme, quantity, steps):
    sigma = Fraction(5, 4)
    model = Model(2, 2, Fraction(3, 5), 1, scheme)
    moments = model.moments(steps, mix=[[sigma, 0], [0, sigma]])
    mean = mean_of(quantity, steps, curvature="independent", sampling=scheme)
    value = mean.evaluate(model.values | {"sigma": sigma})
    np.testing.assert_array_equal(value, moments[quantity])


def test_second_moment_for_a_curvature_with_independent_entries():
    sigma = Fraction(5, 4)
    model = Model(3, 1, Fraction(3, 5), 2, "bernoulli")
    moments = model.moments(1, mix=sigma * np.eye(3, dtype=int).astype(object))
    mean = mean_of("second_moment", curvature="independent", sampling="bernoulli")
    value = mean.evaluate(model.values | {"sigma": sigma})
    np.testing.assert_array_equal(value, moments["second_moment"])


# A curvature whose data fall into two groups, of scales s1 and s2


def two_groups(diagonal):
    p, q = Tensor("p", (DATA,)), Tensor("q", (DATA,))
    s1, s2 = sp.symbols("s1 s2", positive=True)

    def over_data(x, y):
        if diagonal:
            return (s1**2 * p(x) + s2**2 * q(x)) * delta(x, y)
        return s1**2 * p(x) * p(y) + s2**2 * q(x) * q(y)

    return kronecker_curvature(over_data=over_data)


@pytest.mark.parametrize("diagonal", [False, True], ids=["one matrix per group", "one per point"])
@pytest.mark.parametrize("quantity", ["jacobian", "ntk"])
def test_curvature_of_two_groups_of_data(quantity, diagonal):
    model = Model(3, 1, Fraction(4, 3), 2)
    p, q = np.array([1, 0, 1], dtype=object), np.array([0, 1, 0], dtype=object)
    s1, s2 = Fraction(3, 2), Fraction(2, 5)
    values = model.values | {"p": p, "q": q, "s1": s1, "s2": s2}
    mix = np.diag(s1 * p + s2 * q) if diagonal else np.array([s1 * p, s2 * q, 0 * p]).T
    mean = expected(quantity, 2, curvature=two_groups(diagonal), sampling="without_replacement")
    moments = model.moments(2, mix, model.root)
    np.testing.assert_array_equal(mean.evaluate(values), moments[quantity])


# A covariance that is a sum of two Kronecker products, hence none itself:
# Q_a = u_a R Q'_1 R^T + v_a T Q'_2 T^T with Q' the discrete curvature of two points


def truncated(product, left, right):
    """Multiply two lists of coefficients of powers of Q."""
    return [
        sum(np.einsum(product, left[m], right[n - m]) for m in range(n + 1))
        for n in range(len(left))
    ]


def direct_means(jacobian, residual, h, draws, steps, curvatures):
    """Return E J J^T and E z by plain recursion, to second order in Q."""
    gram, mean = 0, 0
    for (chance, Q), path in itertools.product(curvatures, itertools.product(draws, repeat=steps)):
        z, J = [residual, 0 * residual, 0 * residual], [jacobian, 0 * jacobian, 0 * jacobian]
        for p, w in path:
            chance = chance * p
            g = truncated("ai,a->i", J, [np.array(w, dtype=object) * x for x in z])
            Qg = [0 * jacobian, *(np.einsum("aij,j->ai", Q, x) for x in g[:-1])]
            Jg, Qgg = truncated("ai,i->a", J, g), truncated("ai,i->a", Qg, g)
            z = [x - h * y + h**2 / 2 * q for x, y, q in zip(z, Jg, Qgg, strict=True)]
            J = [x - h * y for x, y in zip(J, Qg, strict=True)]
        product = truncated("ai,bi->ab", J, J)
        gram, mean = gram + chance * (product[0] + product[2]), mean + chance * (z[0] + z[2])
    return gram, mean


@pytest.mark.slow
def test_covariance_that_is_no_kronecker_product():
    model = Model(2, 2, Fraction(4, 3))
    u, v, R, T = rationals(1, 2), rationals(2, 2), rationals(3, 2, 2), rationals(4, 2, 2)
    bent = [
        (chance, np.multiply.outer(u, R @ Q[0] @ R.T) + np.multiply.outer(v, T @ Q[1] @ T.T))
        for chance, Q in zip(*discrete_curvatures(2, 2), strict=True)
    ]
    one = Tensor("C1", (DATA, DATA), (0, 0)), Tensor("S1", (PARAMETERS, PARAMETERS), (0, 0))
    two = Tensor("C2", (DATA, DATA), (0, 0)), Tensor("S2", (PARAMETERS, PARAMETERS), (0, 0))
    parts = [kronecker_curvature(*one), kronecker_curvature(*two)]
    law = GaussianField(CURVATURE, lambda x, y: sum(f.covariance(x, y) for f in parts))
    values = model.values | {
        "C1": np.multiply.outer(u, u),
        "S1": R @ R.T,
        "C2": np.multiply.outer(v, v),
        "S2": T @ T.T,
    }
    gram, mean = direct_means(model.jacobian, model.residual, model.eta / 2, model.draws, 2, bent)
    for quantity, value in (("ntk", gram / 2), ("residual", mean)):
        polynomial = expected(quantity, 2, curvature=law, sampling="without_replacement")
        np.testing.assert_array_equal(polynomial.evaluate(values), value)
