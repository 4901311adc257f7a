"""Products of curvature matrices: moments by every entry, and the free Fock space at large P."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic import fock
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.gaussian import pairings
from quadmodel.symbolic.algebra.indices import data_indices
from tests.symbolic._exact import rationals

N_DATA = 2
ROWS = data_indices("ab")
PLACES = data_indices("cdefgh")


def over_data(seed=1):
    root = rationals(seed, N_DATA, N_DATA)
    return root @ root.T


def arrays(n_params):
    """Return values of the formulas, and the Jacobian."""
    jacobian = rationals(2, N_DATA, n_params)
    values = {"Xi": over_data(), "G_0": jacobian @ jacobian.T, "P": Fraction(n_params)}
    return values, jacobian


def naive_moment(points, rows, n_params, jacobian):
    """Sum over all entries and pairings, E Q_aij Q_bkl = C_ab (d_ik d_jl + d_il d_jk), P C = Xi."""
    c = over_data() / n_params
    total = Fraction(0)
    for places in itertools.product(range(n_params), repeat=len(points) + 1):
        ends = jacobian[rows[0], places[0]] * jacobian[rows[1], places[-1]]
        entries = list(zip(points, places[:-1], places[1:], strict=True))
        for pairing in pairings(len(points)):
            weight = Fraction(1)
            for one, other in pairing:
                (a, i, j), (b, k, m) = entries[one], entries[other]
                weight *= c[a, b] * ((i == k) * (j == m) + (i == m) * (j == k))
            total += ends * weight
    return total


@pytest.mark.parametrize("n_params", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_moments_by_every_entry(count, n_params):
    values, jacobian = arrays(n_params)
    moment = fock.fock_moment(PLACES[:count], ROWS)
    if count % 2:
        assert not moment.terms
        return
    found = moment.evaluate(values)
    for index in np.ndindex(found.shape):
        assert found[index] == naive_moment(index[2:], index[:2], n_params, jacobian)


@pytest.mark.parametrize("n_params", [1, 2])
def test_variance_by_every_entry(n_params):
    """E (J_b Q_a J_c)^2, from the covariance of the entries."""
    values, _ = arrays(n_params)
    found = fock.fock_variance(PLACES[:1], ROWS).evaluate(values)
    gram, xi = values["G_0"], values["Xi"]
    for a, b, c in np.ndindex(found.shape):
        of_rows = gram[a, a] * gram[b, b] + gram[a, b] ** 2
        assert found[a, b, c] == xi[c, c] * of_rows / n_params


@pytest.mark.parametrize("count", range(7))
def test_limit_of_the_moments(count):
    moment = fock.fock_moment(PLACES[:count], ROWS)
    limit = fock.many_parameters(moment)
    assert limit.equals(fock.fock_inner_product(PLACES[:count], ROWS))
    assert fock.many_parameters((moment - limit).map(lambda scale: scale * names.P)).terms or (
        count in (0, 1, 3, 5)
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fluctuations_fall_with_the_number_of_parameters(count):
    variance = fock.fock_variance(PLACES[:count], ROWS)
    assert not fock.many_parameters(variance).terms
    assert fock.many_parameters(variance.map(lambda scale: scale * names.P)).terms


def test_pairings_that_do_not_cross_are_counted_by_catalan():
    for half in range(5):
        (c,) = data_indices("c")
        product = fock.fock_inner_product([c] * (2 * half), ROWS)
        (count,) = product.terms.values()
        assert count == math.comb(2 * half, half) // (half + 1)


def check_operators(module, *counts):
    """<b| Q_a1 ... Q_an |c> over orthogonal fock."""
    for count in counts:
        check_operators_of(module, count)


def check_operators_of(module, count):
    order = (count + 1) // 2
    vector = module.row_vector(ROWS[1], order)
    for point in reversed(PLACES[:count]):
        vector = module.act(point, vector)
    found = module.inner_product(module.row_vector(ROWS[0], order), vector)
    assert found.equals(fock.fock_inner_product(PLACES[:count], ROWS))


@pytest.mark.parametrize("count", range(7))
def test_creation_and_annihilation_give_the_limit(count):
    check_operators(fock, count)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("annihilated = CURVATURE_COVARIANCE(", "annihilated = 2 * CURVATURE_COVARIANCE("),
        ("vector[length + 1](c, *places)", "vector[length + 1](*places, c)"),
        ("delta(point, places[0]) * vector[length - 1](*places[1:])",
         "delta(point, places[-2]) * vector[length - 1](*places[:-2], places[-1])"),
    ],
)  # fmt: skip
def test_wrong_operators_fail(mutated, old, new):
    module = mutated(fock, old, new)
    with pytest.raises(AssertionError):
        check_operators(module, 2, 4, 6)


def test_crossing_pairings_would_be_noticed(mutated):
    module = mutated(fock, "if _cross(pairing):", "if False:")
    moment = fock.fock_moment(PLACES[:4], ROWS)
    assert not fock.many_parameters(moment).equals(module.fock_inner_product(PLACES[:4], ROWS))


def test_too_many_points():
    (c,) = data_indices("c")
    with pytest.raises(InputError, match=r"^order must be at most 10"):
        fock.fock_moment([c] * 11, ROWS)


def test_one_point_and_one_row():
    """A semicircle: moments of one entry of a large symmetric matrix, Catalan's numbers."""
    (c,) = data_indices("c")
    moment = fock.fock_moment([c] * 4, ROWS)
    (value,) = moment.terms.values()
    # E (Q^4)_ii / sigma^4 = 2 P^2 + 5 P + 5
    assert sp.expand(value * names.P**2 - (2 * names.P**2 + 5 * names.P + 5)) == 0
