"""Polynomials in tensors: normal form, sums, deltas, values."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.indices import (
    DATA,
    PARAMETERS,
    Index,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta
from tests.symbolic._exact import rationals

A = Tensor("A", (DATA, DATA))
M = Tensor("M", (DATA, DATA), (0, 0))
J = Tensor("J", (DATA, PARAMETERS))
Q = Tensor("Q", (DATA, PARAMETERS, PARAMETERS), (0, 1, 1))
Z = Tensor("z", (DATA,))
TENSORS = [A, M, J, Q, Z]

a, b, c, d = data_indices("abcd")
i, j, k = parameter_indices("ijk")

VALUES = {
    "A": rationals(1, 3, 3),
    "M": (lambda x: x + x.T)(rationals(2, 3, 3)),
    "J": rationals(3, 3, 2),
    "Q": (lambda x: x + x.transpose(0, 2, 1))(rationals(4, 3, 2, 2)),
    "z": rationals(5, 3),
    "D": Fraction(3),
    "P": Fraction(2),
    "eta": Fraction(2, 7),
}


def by_loops(factors, free, summed, values):
    """Add up the products of entries, index value by index value."""
    size = {DATA: 3, PARAMETERS: 2}
    result = np.zeros([size[index.space] for index in free], dtype=object)
    for place in itertools.product(*(range(size[index.space]) for index in (*free, *summed))):
        at = dict(zip((*free, *summed), place, strict=True))
        entries = [values[tensor.name][tuple(at[n] for n in own)] for tensor, own in factors]
        result[place[: len(free)]] += math.prod(entries)
    return result[()]


@st.composite
def terms(draw):
    """Draw factors, the free ones among their indices and the summed ones."""
    pool = {DATA: data_indices("abcde"), PARAMETERS: parameter_indices("ijk")}
    tensors = draw(st.lists(st.sampled_from(TENSORS), min_size=1, max_size=5))
    factors = [
        (tensor, tuple(draw(st.sampled_from(pool[space])) for space in tensor.slots))
        for tensor in tensors
    ]
    used = sorted({index for _, own in factors for index in own})
    free = sorted(draw(st.sets(st.sampled_from(used), max_size=2)))
    return factors, free, [index for index in used if index not in free]


def polynomial_of(factors, summed):
    return math.prod((t(*own) for t, own in factors), start=constant(1)).sum(*summed)


@given(terms())
@settings(deadline=None, max_examples=60)
def test_values_are_those_of_loops_over_all_indices(term):
    factors, free, summed = term
    polynomial = polynomial_of(factors, summed)
    assert polynomial.free == free
    expected = by_loops(factors, free, summed, VALUES)
    np.testing.assert_array_equal(polynomial.evaluate(VALUES), expected)


@given(terms(), st.data())
@settings(deadline=None, max_examples=60)
def test_equal_terms_merge_whatever_their_order_and_the_names_of_summed_indices(term, data):
    factors, _, summed = term
    one = polynomial_of(factors, summed)
    spare = {DATA: iter("ABCDE"), PARAMETERS: iter("IJK")}
    names_of = {
        index: Index(index.space, next(spare[index.space]))
        for index in data.draw(st.permutations(summed))
    }
    other = []
    for tensor, own in data.draw(st.permutations(factors)):
        renamed = [names_of.get(index, index) for index in own]
        if tensor in (M, Q) and data.draw(st.booleans()):
            renamed[-2:] = renamed[-1:-3:-1]
        other.append((tensor, tuple(renamed)))
    two = polynomial_of(other, list(names_of.values()))
    assert one.terms == two.terms
    assert not (one - two).terms
    assert [*(one + two).terms.values()] == [2]


def test_terms_that_differ_stay_apart():
    assert len((A(a, b) + A(b, a)).terms) == 2
    assert len((M(a, b) + M(b, a)).terms) == 1
    # the same degrees everywhere, but one loop of six or two of three
    six = data_indices("abcdef")
    ring = [M(x, y) for x, y in itertools.pairwise([*six, six[0]])]
    one = math.prod(ring, start=constant(1)).sum(*six)
    triangle = (M(a, b) * M(b, c) * M(c, a)).sum(a, b, c)
    assert not one.equals(triangle * triangle)
    assert len((one + triangle * triangle).terms) == 2


def test_coefficients_are_expanded_and_cancel():
    x = names.eta
    both = (x + 1) * (x - 1) * Z(a) + (1 - x**2) * Z(a)
    assert both.terms == {}
    assert repr(both) == both._latex() == "0"
    assert (Z(a) * 2 - Z(a) - Z(a)).terms == {}


def test_a_product_keeps_the_summed_indices_of_its_factors_apart():
    norm = (Z(a) * Z(a)).sum(a)
    assert (norm * norm).evaluate(VALUES) == (VALUES["z"] @ VALUES["z"]) ** 2
    assert (norm * Z(a)).free == [a]


def test_free_indices_of_the_same_name_coincide():
    np.testing.assert_array_equal(
        (A(a, b) * Z(a)).evaluate(VALUES), VALUES["A"] * VALUES["z"][:, None]
    )


def test_indices_that_occur_three_times():
    cubes = (Z(a) * Z(a) * Z(a)).sum(a)
    assert cubes.evaluate(VALUES) == sum(VALUES["z"] ** 3)


def test_sums_over_what_no_factor_holds_give_the_size_of_the_range():
    assert Z(a).sum(b, i).equals(names.D * names.P * Z(a))
    assert constant(3).sum(a).terms == {(): 3 * names.D}


def test_deltas_are_carried_out_in_sums():
    assert (delta(a, b) * Z(b)).sum(b).equals(Z(a))
    assert (delta(i, j) * J(a, i) * J(b, j)).sum(i, j).equals((J(a, k) * J(b, k)).sum(k))
    assert (delta(a, b) * delta(b, c) * delta(c, a)).sum(a, b, c).equals(constant(names.D))
    assert (delta(a, b) * delta(b, c)).sum(b).equals(delta(a, c))
    assert delta(i, i).equals(constant(1))
    assert delta(i, j).sum(i).equals(constant(1))


def test_deltas_of_free_indices_stay_and_have_values():
    polynomial = delta(a, b) * Z(a) + A(a, b)
    np.testing.assert_array_equal(polynomial.evaluate(VALUES), np.diag(VALUES["z"]) + VALUES["A"])


def test_axes_of_values_are_the_free_indices_in_alphabetical_order():
    polynomial = J(b, k) * Z(a)
    assert polynomial.free == [a, b, k]
    np.testing.assert_array_equal(
        polynomial.evaluate(VALUES), np.multiply.outer(VALUES["z"], VALUES["J"])
    )


def test_terms_without_some_free_index_are_constant_in_it():
    np.testing.assert_array_equal(
        (Z(a) + Z(b) + 1).evaluate(VALUES), VALUES["z"][:, None] + VALUES["z"] + 1
    )


def test_values_are_fractions_where_all_is_rational():
    value = (names.eta / names.D * (Z(a) * Z(a)).sum(a)).evaluate(VALUES)
    assert type(value) is Fraction
    assert value == Fraction(2, 21) * (VALUES["z"] @ VALUES["z"])
    floats = VALUES | {"eta": 2 / 7}
    half = (names.eta / names.D * (Z(a) * Z(a)).sum(a)).evaluate(floats)
    assert half == pytest.approx(float(value), rel=1e-14)


def test_renamed_indices_do_not_meet_summed_ones():
    product = (A(a, c) * A(c, b)).sum(c)
    swapped = product.rename({a: b, b: a})
    expected = (VALUES["A"] @ VALUES["A"]).T
    np.testing.assert_array_equal(swapped.evaluate(VALUES), expected)
    np.testing.assert_array_equal(product.rename({b: c}).evaluate(VALUES), expected.T)
    np.testing.assert_array_equal(product.rename({b: a}).evaluate(VALUES), expected.diagonal())


def test_a_tensor_is_replaced_wherever_it_occurs():
    bent = (Z(a) * Z(b) * A(a, b)).sum(a).replace(Z, lambda n: (A(n, d) * Z(d)).sum(d))
    moved = VALUES["A"] @ VALUES["z"]
    np.testing.assert_array_equal(bent.evaluate(VALUES), (moved @ VALUES["A"]) * moved)
    assert (Z(a) * Z(a)).replace(Z, lambda _: 3).equals(constant(9))


def test_degree_and_coefficient():
    polynomial = 3 * Z(a) * Z(b) * A(a, b) + names.eta * Z(a) * A(b, b)
    assert (polynomial.degree(Z), polynomial.degree(A), polynomial.degree(J)) == (2, 1, 0)
    assert polynomial.coefficient(Z(a) * A(b, b)) == names.eta
    assert polynomial.coefficient(Z(a)) == 0
    assert constant(0).degree(Z) == 0


def test_equality_holds_up_to_the_form_of_coefficients():
    x = names.eta
    one = Polynomial.collect([(1 / (x + 1) + 1 / (x - 1), [(Z, (a,))], [])])
    assert one.equals(2 * x / (x**2 - 1) * Z(a))
    assert not one.equals(2 * x / (x**2 + 1) * Z(a))


def test_substitution_in_coefficients():
    assert ((names.eta + 1) * Z(a)).subs({names.eta: names.D - 1}).equals(names.D * Z(a))
    assert ((names.eta - 1) * Z(a)).subs(names.eta, 1).terms == {}


def test_printed_forms_name_every_index():
    polynomial = -names.eta / 2 * (J(a, i) * J(b, i)).sum(i) + Z(a) * Z(b)
    assert repr(polynomial) == "(-eta/2)*J_ai*J_bi + (1)*z_a*z_b"
    assert polynomial._latex() == r"- \frac{\eta}{2} J_{ai} J_{bi} + z_{a} z_{b}"
    theta = Tensor("Theta", (DATA, DATA), (0, 0))
    assert (-theta(a, b))._repr_latex_() == r"$\displaystyle - \Theta_{ab}$"
    total = ((names.eta + 1) * Z(a)).map(sp.factor)
    assert total._latex() == r"\left(\eta + 1\right) z_{a}"


def test_printed_letters_of_summed_indices_are_not_those_of_free_ones():
    assert repr((A(b, c) * A(c, a)).sum(c)) == "(1)*A_bc*A_ca"
    many = data_indices("abcdefgh")
    chain = math.prod((A(x, y) for x, y in itertools.pairwise(many)), start=A(many[-1], many[0]))
    whole = (chain * (Z(a) * Z(a)).sum(a)).sum(*many)
    letters = {pair for word in repr(whole).split("*")[1:] for pair in [word.split("_")[1]]}
    assert len(letters) == 9


@pytest.mark.parametrize(
    ("tensor", "indices", "wanted", "came"),
    [
        (Z, (i,), "z must have indices of data", "got parameters"),
        (J, (i, a), "J must have indices of data, parameters", "got parameters, data"),
        (Q, (a, i), "data, parameters, parameters", "got data, parameters"),
        (Z, (), "data", "got none"),
    ],
)
def test_wrong_indices_are_refused(tensor, indices, wanted, came):
    with pytest.raises(InputError) as refusal:
        tensor(*indices)
    message = str(refusal.value)
    assert wanted in message
    assert message.endswith(came)
    assert "\n" not in message


def test_a_delta_of_two_spaces_is_refused():
    with pytest.raises(InputError, match="data, data, got data, parameters"):
        delta(a, i)
