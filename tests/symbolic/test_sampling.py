"""Moments of the batch weights against enumeration of all batches."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel.symbolic.algebra import names, sampling
from quadmodel.symbolic.algebra.indices import DATA, data_indices
from quadmodel.symbolic.algebra.polynomials import Tensor, constant
from quadmodel.symbolic.algebra.sampling import (
    SamplingScheme,
    average_batches,
    weight_covariance,
    weight_moment,
)
from tests.oracles import enumeration
from tests.symbolic._exact import (
    OWN_LAWS,
    PERMUTED,
    SCHEMES,
    at,
    product_mean,
    rationals,
    refused,
    scheme_of,
)

W, X = Tensor("w", (DATA,)), Tensor("x", (DATA,))
SIZES = [(1, 1), (2, 1), (2, 2), (3, 2), (4, 1), (5, 2), (5, 5)]


def patterns(length: int) -> list[str]:
    """Return a word per partition of the places, letters in order of appearance."""
    words = [""]
    for _ in range(length):
        words = [word + letter for word in words for letter in "ijklm"[: len(set(word)) + 1]]
    return words


PATTERNS = [word for length in range(1, 6) for word in patterns(length)]


@functools.cache
def batches(n_data, batch_size, scheme):
    return enumeration.rational_batches(n_data, batch_size, scheme)


def product_of(letters):
    """Return w_a x_a w_b x_b ... and its free indices; x gives the indices their range."""
    product = constant(1)
    for index in data_indices(letters):
        product = product * W(index) * X(index)
    return product


def check_moments(module, scheme, words=tuple(PATTERNS)):
    for word in words:
        moment = module.weight_moment(word, scheme)
        for n_data, batch_size in SIZES:
            if len(set(word)) > n_data:
                continue
            drawn = batches(n_data, batch_size, scheme)
            for points in (range(n_data), range(n_data)[::-1]):
                met = product_mean(drawn, [points["ijklm".index(letter)] for letter in word])
                assert at(moment, n_data, batch_size) == met, (word, n_data, batch_size)


def check_average(module, scheme, drawn, batch_size, order):
    """Compare E[w_a w_b ...] x_a x_b ... at all values of the indices."""
    n_data = len(drawn[0][1])
    x = rationals(order, n_data)
    polynomial = module.average_batches(product_of("abcd"[:order]), W, scheme)
    values = {"x": x, "D": Fraction(n_data), "B": Fraction(batch_size)}
    expected = sum(
        p * functools.reduce(np.multiply.outer, [np.array(w, dtype=object) * x] * order)
        for p, w in drawn
    )
    np.testing.assert_array_equal(polynomial.evaluate(values), expected)


def test_there_is_a_pattern_per_partition():
    assert [len(patterns(length)) for length in range(1, 6)] == [1, 2, 5, 15, 52]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moments_are_the_means_over_all_batches(scheme):
    check_moments(sampling, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moments_of_the_highest_order(scheme):
    check_moments(sampling, scheme, ["iiiiiiii", "iiiiijjj", "ijkijkij", "iijjkkll", "ijklmijk"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_covariance_is_the_enumerated_one(scheme):
    gamma, kappa = weight_covariance(scheme)
    for n_data, batch_size in SIZES[1:]:
        size, shift = at(gamma, n_data, batch_size), at(gamma * kappa, n_data, batch_size)
        expected = [
            [size * (i == j) - shift / n_data for j in range(n_data)] for i in range(n_data)
        ]
        assert enumeration.weight_covariance(n_data, batch_size, scheme) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gamma_and_kappa_alone_give_second_moments(scheme):
    values = dict(zip((names.gamma, names.kappa), weight_covariance(scheme), strict=True))
    for word in ("i", "ii", "ij"):
        difference = weight_moment(word, None).subs(values) - weight_moment(word, scheme)
        assert sp.simplify(difference) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_data", "batch_size"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 1)])
def test_deltas_give_every_entry_of_the_mean(scheme, order, n_data, batch_size):
    check_average(sampling, scheme, batches(n_data, batch_size, scheme), batch_size, order)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("law", OWN_LAWS.values(), ids=OWN_LAWS.keys())
def test_deltas_for_moments_of_ones_own(law, order):
    check_average(sampling, scheme_of(law), law, 1, order)


def test_moments_of_ones_own_are_returned_whatever_the_order_of_the_sizes():
    scheme = SamplingScheme.from_moments({(1,): 1, (1, 2): Fraction(2, 7)})
    assert weight_moment("iji", scheme) == weight_moment("jii", scheme) == sp.Rational(2, 7)


def test_covariance_of_moments_of_ones_own():
    gamma, kappa = weight_covariance(scheme_of(PERMUTED))
    # E w_1^2 = 15/8, E w_1 w_2 = 9/16; the sum over the three weights is fixed.
    assert (gamma, kappa.subs(names.D, 3)) == (sp.Rational(21, 16), 1)


def test_weights_that_do_not_vary_have_no_covariance():
    gamma, kappa = weight_covariance(SamplingScheme.from_moments({(1,): 1, (2,): 1, (1, 1): 1}))
    assert gamma == 0
    assert kappa.is_finite


def test_repeated_and_summed_indices():
    a, b, c = data_indices("abc")
    drawn, x = batches(4, 2, "without_replacement"), rationals(3, 4)
    polynomial = (W(a) * W(a) * W(b) * X(b) * W(c) * X(c)).sum(b, c) * X(a)
    mean = average_batches(polynomial, W, "without_replacement")
    arrays = [(p, np.array(w, dtype=object)) for p, w in drawn]
    expected = sum(p * w**2 * (w @ x) ** 2 * x for p, w in arrays)
    values = {"x": x, "D": Fraction(4), "B": Fraction(2)}
    np.testing.assert_array_equal(mean.evaluate(values), expected)


def test_weights_of_other_steps_stay():
    a, b = data_indices("ab")
    later = Tensor("v", (DATA,))
    mean = average_batches(W(a) * later(b), W, "bernoulli")
    assert mean.equals(later(b))


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["without_replacement", "with_replacement"])
def test_weights_of_a_batch_of_fixed_size_sum_to_the_number_of_points(scheme, order):
    indices = data_indices("abcd"[:order])
    fewer = math.prod((W(i) for i in indices[1:-1]), start=W(indices[0]))
    summed = average_batches((fewer * W(indices[-1])).sum(indices[-1]), W, scheme)
    assert summed.equals(names.D * average_batches(fewer, W, scheme))


def test_the_size_of_a_bernoulli_batch_varies():
    a, b = data_indices("ab")
    summed = average_batches((W(a) * W(b)).sum(b), W, "bernoulli")
    assert summed.equals(constant(names.D + names.D / names.B - 1))


@given(st.text("ijklm", min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_bernoulli_weights_are_independent(word):
    single = [weight_moment(letter * word.count(letter), "bernoulli") for letter in set(word)]
    assert sp.simplify(weight_moment(word, "bernoulli") - math.prod(single)) == 0


@given(st.data(), st.sampled_from(SCHEMES), st.text("ijklm", min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_names_and_order_of_the_points_do_not_matter(data, scheme, word):
    shuffled = data.draw(st.permutations(word))
    renamed = dict(zip("ijklm", data.draw(st.permutations(range(5))), strict=True))
    moment = weight_moment([renamed[letter] for letter in shuffled], scheme)
    assert moment == weight_moment(word, scheme)


@given(st.integers(1, 7), st.data(), st.sampled_from(SCHEMES))
@settings(deadline=None, max_examples=20)
def test_any_data_and_batch_size(n_data, data, scheme):
    batch_size = data.draw(st.integers(1, n_data if scheme != "with_replacement" else 3))
    points = data.draw(st.lists(st.integers(0, n_data - 1), min_size=1, max_size=6))
    expected = product_mean(batches(n_data, batch_size, scheme), tuple(points))
    assert at(weight_moment(points, scheme), n_data, batch_size) == expected


@pytest.mark.parametrize("scheme", [*SCHEMES, None, scheme_of(PERMUTED)])
def test_more_than_eight_weights_are_refused(scheme):
    refused(weight_moment, "i" * 9, scheme, names=["at most 8", "got 9"])
    (a,) = data_indices("a")
    polynomial = math.prod([W(a)] * 8, start=W(a))
    refused(average_batches, polynomial, W, scheme, names=["at most 8", "got 9"])


@pytest.mark.parametrize("unknown", ["with replacement", "", 3, ["bernoulli"]])
def test_an_unknown_scheme_is_refused(unknown):
    (a,) = data_indices("a")
    expected = [*SCHEMES, f"got {unknown!r}"]
    refused(weight_moment, "ii", unknown, names=expected)
    refused(weight_covariance, unknown, names=expected)
    refused(average_batches, W(a), W, unknown, names=expected)


def test_a_moment_that_was_not_given_is_refused():
    a, b, c = data_indices("abc")
    scheme = SamplingScheme.from_moments({(1,): 1, (2,): 3, (1, 1): 1, (2, 1): 4, (3,): 5})
    refused(weight_moment, "iijj", scheme, names=[(2, 2), "4 weights", (1, 1)])
    # The expansion needs the moments of all finer patterns too.
    refused(average_batches, W(a) * W(b) * W(c), W, scheme, names=[(1, 1, 1), (2, 1)])


@pytest.mark.parametrize("word", ["iii", "ijk", "iijj"])
def test_gamma_and_kappa_are_refused_for_higher_products(word):
    expected = [*SCHEMES, f"{len(word)} weights", "gamma and kappa"]
    refused(weight_moment, word, None, names=expected)
    product = math.prod((W(i) for i in data_indices(word[1:])), start=W(data_indices(word[0])[0]))
    refused(average_batches, product, W, None, names=expected)


MUTATIONS = [
    ("without_replacement", "for n in range(count))", "for n in range(1, count + 1))"),
    ("with_replacement", "for n in range(count))", "for n in range(1, count + 1))"),
    ("without_replacement", "_falling(B, blocks) / _falling(D, blocks)", "(B / D) ** blocks"),
    ("with_replacement", "stirling(k, n)) for n", "sp.binomial(k, n)) for n"),
    ("bernoulli", "sum(sizes) - len(sizes)", "sum(sizes) - 1"),
]


@pytest.mark.parametrize(("scheme", "old", "new"), MUTATIONS)
def test_a_wrong_moment_fails_the_comparison(mutated, scheme, old, new):
    module = mutated(sampling, old, new)
    with pytest.raises(AssertionError):
        check_moments(module, scheme)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(-1) ** (len(p) - 1) * math.factorial(len(p) - 1)", "(-1) ** (len(p) - 1)"),
        ("(-1) ** (len(p) - 1) * math.factorial(len(p) - 1)", "math.factorial(len(p) - 1)"),
        ("for other in others:", "for other in others[:1]:"),
    ],
)
def test_a_wrong_expansion_fails_the_comparison(mutated, old, new):
    module = mutated(sampling, old, new)
    check_average(module, "bernoulli", batches(4, 1, "bernoulli"), 1, 1)  # nothing to go wrong yet
    with pytest.raises(AssertionError):
        check_average(module, "bernoulli", batches(4, 1, "bernoulli"), 1, 3)
