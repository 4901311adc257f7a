"""Steps of SGD and their means against enumeration of all batches and curvatures."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from quadmodel._util.checks import InputError
from quadmodel.symbolic import dynamics
from quadmodel.symbolic.algebra.gaussian import JACOBIAN, RESIDUAL, independent
from quadmodel.symbolic.algebra.sampling import SamplingScheme
from quadmodel.symbolic.dynamics import difference, expected
from tests.symbolic._exact import OWN_LAWS, PERMUTED, SCHEMES, gamma_and_kappa, refused, scheme_of
from tests.symbolic._models import LIGHT, QUANTITIES, Model, check_means, mean_of

# The NTK's largest eigenvalue is above 1 in all models, so that 5 is beyond every edge.
RATES = (Fraction(1, 7), Fraction(3, 5), Fraction(5))


def batch_sizes(n_data, scheme):
    return [*range(1, n_data + 1), *([n_data + 1] if scheme == "with_replacement" else [])]


SMALL = [
    (n_data, n_params, scheme, batch_size)
    for n_data, n_params in [(2, 2), (3, 1), (1, 2)]
    for scheme in SCHEMES
    for batch_size in batch_sizes(n_data, scheme)
]
LARGE = [(*size, scheme, size[0] - 1) for size in [(3, 2), (2, 3)] for scheme in SCHEMES]


@pytest.mark.parametrize(("n_data", "n_params", "scheme", "batch_size"), SMALL + LARGE)
def test_means_after_one_step(n_data, n_params, scheme, batch_size):
    model = Model(n_data, n_params, RATES[(n_data + batch_size) % 3], batch_size, scheme)
    check_means(mean_of, model, QUANTITIES, 1, sampling=scheme)


@pytest.mark.parametrize(("n_data", "n_params", "scheme", "batch_size"), SMALL)
def test_means_after_two_steps(n_data, n_params, scheme, batch_size):
    model = Model(n_data, n_params, RATES[(n_data + batch_size) % 3], batch_size, scheme)
    check_means(mean_of, model, LIGHT, 2, sampling=scheme)


def test_mean_ntk_of_three_points_after_two_steps():
    model = Model(3, 2, Fraction(2, 3), 2)
    check_means(mean_of, model, ["jacobian", "ntk"], 2, sampling="without_replacement")


@pytest.mark.slow
@pytest.mark.parametrize("n_params", [1, 2])
def test_second_moment_after_two_steps(n_params):
    model = Model(2, n_params, Fraction(3, 4))
    sampling = scheme_of(model.draws, beyond=Fraction(0))  # zero leaves fewer terms
    check_means(mean_of, model, ["second_moment"], 2, sampling=sampling)


@pytest.mark.slow
def test_mean_ntk_after_three_steps():
    model = Model(2, 2, Fraction(3, 5))
    check_means(mean_of, model, ["ntk"], 3, sampling="without_replacement")


def test_no_step_leaves_the_start():
    model = Model(3, 2, Fraction(1))
    check_means(mean_of, model, QUANTITIES, 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("quantity", "steps"), [("residual", 1), ("jacobian", 2), ("ntk", 2)])
def test_gamma_and_kappa_are_enough_for_the_mean_ntk(scheme, quantity, steps):
    n_data, batch_size = 3, 2
    model = Model(n_data, 1, Fraction(3, 5), batch_size, scheme)
    gamma, kappa = gamma_and_kappa(n_data, batch_size, scheme)
    values = model.values | {"gamma": gamma, "kappa": kappa}
    moments = model.moments(steps, model.mix, model.root)
    mean = mean_of(quantity, steps)
    np.testing.assert_array_equal(mean.evaluate(values), moments[quantity])


@pytest.mark.parametrize("law", OWN_LAWS.values(), ids=OWN_LAWS.keys())
def test_moments_of_ones_own_in_two_steps(law):
    model = Model(len(law[0][1]), 1, Fraction(4, 3))
    model.draws = law
    check_means(expected, model, LIGHT, 2, sampling=scheme_of(law, 4))


def test_moments_of_ones_own_in_the_second_moment():
    model = Model(3, 2, Fraction(4, 3))
    model.draws = PERMUTED
    check_means(expected, model, ["second_moment"], 1, sampling=scheme_of(PERMUTED, 4))


def test_unknown_names_are_refused():
    refused(expected, "loss", names=["quantity", *QUANTITIES, "'loss'"])
    refused(
        expected,
        "ntk",
        curvature="gaussian",
        names=["curvature", "kronecker, independent, none", "'gaussian'"],
    )
    refused(
        expected, "ntk", residual="random", names=["residual", "fixed, independent", "'random'"]
    )
    refused(expected, "ntk", jacobian=None, names=["jacobian", "fixed, independent", "None"])
    refused(expected, "ntk", sampling="once", names=["sampling", *SCHEMES, "'once'"])


@pytest.mark.parametrize("steps", [5, -1, 1.5, True, "2"])
def test_steps_out_of_range_are_refused(steps):
    refused(expected, "ntk", steps, names=["steps", "between 0 and 4", f"got {steps!r}"])


@pytest.mark.parametrize("order", [0, 5, 1.5])
def test_differences_out_of_range_are_refused(order):
    with pytest.raises(InputError, match=rf"order must be an integer between 1 and 4, got {order}"):
        difference("ntk", order)


def test_fields_of_other_tensors_are_refused():
    refused(expected, "ntk", curvature=independent(RESIDUAL), names=["curvature", "Q", "z"])
    refused(expected, "ntk", residual=independent(JACOBIAN), names=["residual", "z", "J"])
    refused(expected, "ntk", jacobian=independent(RESIDUAL), names=["jacobian", "J", "z"])


def test_moments_that_are_missing_are_refused():
    given = SamplingScheme.from_moments({(1,): 1, (2,): 2, (1, 1): Fraction(1, 2)})
    expected("ntk", 2, sampling=given)
    refused(expected, "second_moment", sampling=given, names=["moments", "4 weights", "(1, 1)"])
    refused(expected, "second_moment", names=["sampling", *SCHEMES, "4 weights", "None"])
    refused(expected, "residual", 2, names=["sampling", *SCHEMES, "3 weights", "None"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_h**2 / 2 * q", "_h**2 * q"),
        ("p - _h * q", "p + _h * q"),
        ("if n + m < len(first)", "if n + m < len(first) - 1"),
    ],
)
def test_a_wrong_step_fails_the_comparison(mutated, old, new):
    module = mutated(dynamics, old, new)
    model = Model(2, 1, Fraction(3, 5))
    options = {"sampling": "without_replacement"}
    check_means(mean_of, model, ["ntk"], 2, **options)
    with pytest.raises(AssertionError):
        check_means(module.expected, model, ["ntk"], 2, **options)
