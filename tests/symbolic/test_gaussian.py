"""Gaussian averages against generating functions and against a discrete curvature."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra import gaussian, names
from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    OVER_DATA,
    OVER_PARAMETERS,
    RESIDUAL,
    GaussianField,
    average,
    independent,
    independent_curvature,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, data_indices, parameter_indices
from quadmodel.symbolic.algebra.polynomials import Tensor, constant, delta
from tests.oracles.quadratic import discrete_curvatures
from tests.symbolic._exact import fraction, rationals, refused

a, b, c, d, e = data_indices("abcde")
i, j, k, m, n, o = parameter_indices("ijkmno")
Q, J, Z = CURVATURE, JACOBIAN, RESIDUAL

VALUES = {"D": Fraction(2), "P": Fraction(2), "sigma": Fraction(3, 4), "s": Fraction(2, 3)}
for _n, _name in enumerate("CS"):
    _root = rationals(_n, 2, 2)
    VALUES[_name] = _root @ _root.T


def generated_moments(covariance, order):
    """Return a function of the variables' numbers: a derivative of exp(u S u / 2) at u = 0."""
    size = len(covariance)
    u = sp.symbols(f"u:{size}")
    form = sum(
        sp.Rational(covariance[x][y]) * u[x] * u[y] for x in range(size) for y in range(size)
    )
    series = sp.Poly((form / 2) ** (order // 2) / math.factorial(order // 2), *u)

    def moment(*variables):
        powers = [Counter(variables)[x] for x in range(size)]
        return fraction(series.coeff_monomial(powers) * math.prod(map(math.factorial, powers)))

    return functools.cache(moment)


def entries(shape):
    return list(np.ndindex(*shape))


def check_moments(polynomial, field, covariance, shape, order, module=gaussian, values=VALUES):
    """Compare E[X_.. X_..] with the derivatives, where X has that covariance between entries."""
    mean = module.average(polynomial, field).evaluate(values)
    where = {entry: number for number, entry in enumerate(entries(shape))}
    sigma = [[covariance(x, y) for y in entries(shape)] for x in entries(shape)]
    moment = generated_moments(sigma, order)
    for place in itertools.product(entries(shape), repeat=order):
        # free indices are ordered by space: the data index of all factors, then the others
        split = [*(p[0] for p in place), *(x for p in place for x in p[1:])]
        assert mean[tuple(split)] == moment(*sorted(where[p] for p in place)), place


def over_all_curvatures(polynomial, mix, root, values):
    """Average by visiting every value of Q = mix root Q' root^T."""
    total = 0
    for chance, given in zip(*discrete_curvatures(2, 2), strict=True):
        bent = np.einsum("ab,ik,bkl,jl->aij", mix, root, given.astype(object), root)
        total = total + chance * polynomial.evaluate(values | {"Q": bent})
    return total


def check_wick(module):
    """Compare moments of a vector, to sixth order."""
    field = module.GaussianField(Z, lambda x, y: OVER_DATA(*x, *y))
    for order in (2, 4, 6):
        product = math.prod((Z(x) for x in data_indices("abcdef"[:order])), start=constant(1))
        check_moments(product, field, lambda x, y: VALUES["C"][x + y], (2,), order, module)


def curvature_covariance(C, S):
    def covariance(x, y):
        (p, q, r), (t, u, v) = x, y
        return C[p, t] * (S[q, u] * S[r, v] + S[q, v] * S[r, u])

    return covariance


def check_curvature(module, order, n_data, n_params):
    """Compare moments of Q, all indices free."""
    letters = [(a, i, j), (b, k, m), (c, n, o), (d, *parameter_indices("pq"))]
    product = math.prod((Q(*own) for own in letters[:order]), start=constant(1))
    field = module.kronecker_curvature()
    C, S = VALUES["C"][:n_data, :n_data], VALUES["S"][:n_params, :n_params]
    shape, values = (n_data, n_params, n_params), VALUES | {"C": C, "S": S}
    check_moments(product, field, curvature_covariance(C, S), shape, order, module, values)


@pytest.mark.parametrize("order", range(11))
def test_moments_of_one_normal_variable(order):
    field = GaussianField(Z, lambda x, y: constant(names.s**2))
    product = math.prod([Z(a)] * order, start=constant(1))
    expected = names.s**order * sp.factorial2(order - 1) if order % 2 == 0 else 0
    assert average(product, field).equals(constant(expected))


def test_moments_of_a_vector_are_derivatives_of_the_generating_function():
    check_wick(gaussian)


@pytest.mark.parametrize(("order", "n_data", "n_params"), [(2, 2, 2), (4, 2, 1), (4, 1, 2)])
def test_moments_of_the_curvature(order, n_data, n_params):
    check_curvature(gaussian, order, n_data, n_params)


def test_fourth_moments_of_a_jacobian_with_correlated_entries():
    field = GaussianField(J, lambda x, y: OVER_DATA(x[0], y[0]) * OVER_PARAMETERS(x[1], y[1]))
    product = J(a, i) * J(b, j) * J(c, k) * J(d, m)
    C, S = VALUES["C"], VALUES["S"]
    check_moments(product, field, lambda x, y: C[x[0], y[0]] * S[x[1], y[1]], (2, 2), 4)


def test_fourth_moments_of_independent_entries():
    product = J(a, i) * J(b, j) * J(c, k) * J(d, m)
    check_moments(product, independent(J), lambda x, y: VALUES["s"] ** 2 * (x == y), (2, 2), 4)


QUADRATIC = {
    "free indices": Q(a, i, j) * Q(b, k, m),
    "one loop": (Q(a, i, j) * Q(b, j, k)).sum(j),
    "both loops": (Q(a, i, j) * Q(b, i, j)).sum(i, j),
    "traces": (Q(a, i, i) * Q(b, j, j)).sum(i, j),
    "same point": (Q(a, i, j) * Q(a, j, k) * Z(a)).sum(a, j),
    "a parameter three times": (Q(a, i, i) * Q(b, i, j) * J(c, j) * Z(a)).sum(a, i),
    "with gradients": (Q(a, i, j) * J(c, j) * Z(c) * Q(b, i, k) * J(d, k) * Z(d)).sum(
        c, d, i, j, k
    ),
    "sum": names.eta * Q(a, i, j) * Q(b, i, j) + Q(a, i, i) * Q(b, j, j) * J(a, i) + J(b, j),
    "odd": (Q(a, i, j) * J(a, j)).sum(j) + J(a, i),
}


@pytest.mark.parametrize("polynomial", QUADRATIC.values(), ids=QUADRATIC.keys())
def test_second_order_averages_are_those_over_all_values_of_a_discrete_curvature(polynomial):
    mix, root = rationals(11, 2, 2), rationals(12, 2, 2)
    values = VALUES | {
        "J": rationals(13, 2, 2),
        "z": rationals(14, 2),
        "C": mix @ mix.T,
        "S": root @ root.T,
        "eta": Fraction(1, 3),
    }
    expected = over_all_curvatures(polynomial, mix, root, values)
    mean = average(polynomial, kronecker_curvature())
    np.testing.assert_array_equal(mean.evaluate(values), expected)
    identity = np.array([[Fraction(x == y) for y in range(2)] for x in range(2)], dtype=object)
    expected = over_all_curvatures(polynomial, VALUES["sigma"] * identity, identity, values)
    mean = average(polynomial, independent_curvature())
    np.testing.assert_array_equal(mean.evaluate(values), expected)


def test_independent_entries_are_the_kronecker_law_with_unit_matrices():
    product = (Q(a, i, j) * Q(b, j, k) * Q(c, k, m) * Q(d, m, i)).sum(i, j, k, m)
    general = average(product, kronecker_curvature())
    unit = general.replace(OVER_DATA, lambda x, y: names.sigma**2 * delta(x, y))
    unit = unit.replace(OVER_PARAMETERS, delta)
    assert unit.equals(average(product, independent_curvature()))
    assert not general.equals(unit)


def test_closed_loops_give_the_numbers_of_points_and_parameters():
    D, P, sigma, s = names.D, names.P, names.sigma, names.s
    square = (Q(a, i, j) * Q(b, i, j)).sum(i, j)
    mean = average(square, independent_curvature())
    assert mean.equals(sigma**2 * P * (P + 1) * delta(a, b))
    trace = average(square.rename({b: a}).sum(a), independent_curvature())
    assert trace.equals(constant(sigma**2 * D * P * (P + 1)))
    wishart = (J(a, i) * J(b, i) * J(b, j) * J(a, j)).sum(a, b, i, j)
    # E tr(W^2) of a Wishart matrix of independent entries
    assert average(wishart, independent(J)).equals(constant(s**4 * D * P * (D + P + 1)))


def test_fields_are_independent_of_each_other():
    polynomial = (Q(a, i, j) * Q(b, i, k) * J(a, j) * J(b, k) * Z(a) * Z(b)).sum(a, b, i, j, k)
    fields = [independent_curvature(), independent(J), independent(Z)]
    # a = b, j = k: D P choices, each with E z^2 E J^2 sum_i E Q_aij^2 = s^4 (P + 1) sigma^2
    expected = constant(names.D * names.P * (names.P + 1) * names.sigma**2 * names.s**4)
    for order in itertools.permutations(fields):
        assert average(polynomial, *order).equals(expected)


def test_what_holds_no_field_stays():
    polynomial = names.eta * Z(a) + (J(a, i) * J(b, i)).sum(i)
    assert average(polynomial, independent_curvature()).equals(polynomial)
    assert average(polynomial).equals(polynomial)
    assert average(Q(a, i, j) * Z(b), independent_curvature()).equals(constant(0))


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_pairings_are_all_different_and_cover_all_places(size):
    found = list(gaussian.pairings(size))
    assert len({frozenset(map(frozenset, pairing)) for pairing in found}) == len(found)
    assert len(found) == math.prod(range(1, size, 2))
    assert all(sorted(itertools.chain(*pairing)) == list(range(size)) for pairing in found)


LOPSIDED_DATA = Tensor("A", (DATA, DATA))
LOPSIDED = Tensor("R", (PARAMETERS, PARAMETERS))


def test_a_curvature_law_that_is_not_symmetric_is_refused():
    both = "symmetric under the exchange of both entries"
    refused(kronecker_curvature, LOPSIDED_DATA, names=["Q", both, "A_ae", "A_ea"])
    refused(kronecker_curvature, OVER_DATA, LOPSIDED, names=["Q", both])


def test_a_covariance_that_is_not_symmetric_in_the_parameters_is_refused():
    def half(first, second):
        (x, y, z), (u, v, w) = first, second
        return OVER_DATA(x, u) * OVER_PARAMETERS(y, v) * OVER_PARAMETERS(z, w)

    expected = ["covariance of Q", "exchange of indices 2 and 3", "S_im", "S_jm"]
    refused(GaussianField, Q, half, names=expected)


def test_a_covariance_with_other_free_indices_is_refused():
    refused(GaussianField, Z, lambda x, y: OVER_DATA(*x, h()), names=["covariance of z", "h too"])


def h():
    return data_indices("h")[0]


def test_a_covariance_that_lacks_an_index_is_accepted():
    field = GaussianField(J, lambda x, y: OVER_DATA(x[0], y[0]))  # the same in all columns
    assert average(J(a, i) * J(b, j), field).equals(OVER_DATA(a, b))


def test_more_than_ten_factors_are_refused():
    product = math.prod([Z(a)] * 10, start=Z(a))
    refused(average, product, independent(Z), names=["at most 10 in z", "got 11"])
    assert average(product, independent(J)).equals(product)


@pytest.mark.parametrize("others", ["others[:1]", "others[1:] or others"])
def test_a_forgotten_pairing_fails_the_comparison(mutated, others):
    module = mutated(gaussian, "for partner in others:", f"for partner in {others}:")
    with pytest.raises(AssertionError):
        check_wick(module)


LAW = "both * over_data(a, b)"


@pytest.mark.parametrize(
    "both", ["(both + over_parameters(i, j) * over_parameters(k, m))", "both * 2"]
)
def test_a_wrong_law_of_the_curvature_fails_the_comparison(mutated, both):
    module = mutated(gaussian, LAW, f"{both} * over_data(a, b)")
    with pytest.raises(AssertionError):
        check_curvature(module, 2, 2, 2)


def test_half_of_the_law_of_the_curvature_is_not_symmetric(mutated):
    half = "over_parameters(i, k) * over_parameters(j, m)"
    module = mutated(gaussian, LAW, f"{half} * over_data(a, b)")
    with pytest.raises(InputError, match="indices 2 and 3"):
        module.kronecker_curvature()
