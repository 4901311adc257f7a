"""Spectral laws: eigenvalues, averages and Stieltjes transforms against each other and samples."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError
from quadmodel.spectra import (
    FromDensity,
    FromStieltjes,
    GivenEigenvalues,
    IndependentGaussian,
    MarchenkoPastur,
    Outliers,
    PowerLaw,
)

RATIOS = [0.3, 1.0 - 1e-8, 1.0, 1.0 + 1e-5, 1.3, 4.0, 60.0]


def semicircle(x):
    """Density on (0, 4) with mean 2, variance 1."""
    return np.sqrt(x * (4.0 - x)) / (2.0 * np.pi)


def semicircle_stieltjes(x):
    return 2.0 / (x - 2.0 + math.sqrt(x * (x - 4.0)))


@pytest.mark.parametrize("ratio", RATIOS)
def test_marchenko_pastur_moments(ratio):
    # Narayana polynomials: sum_k N(n, k) r^k, times scale^(2n).
    law, variance = MarchenkoPastur(ratio, scale=1.3), 1.3**2
    exact = [1.0, ratio, ratio + ratio**2, ratio + 3 * ratio**2 + ratio**3]
    for n, moment in enumerate(exact):
        got = law.average(lambda value, n=n: value**n)
        assert got == pytest.approx(moment * variance**n, rel=1e-12)
    assert law.mean == pytest.approx(exact[1] * variance, rel=1e-15)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("distance", [1e-4, 0.3, 20.0])
def test_marchenko_pastur_stieltjes_is_the_average_of_the_resolvent(ratio, distance):
    law = MarchenkoPastur(ratio, scale=0.7)
    x = law.edge * (1.0 + distance)
    assert law.stieltjes(x) == pytest.approx(law.average(lambda v: 1.0 / (x - v)), rel=1e-12)


def test_marchenko_pastur_inverse_moment_needs_no_function_below_the_support():
    assert MarchenkoPastur(3.0).average(lambda v: 1.0 / v) == pytest.approx(0.5, rel=1e-12)


def test_stieltjes_far_away_keeps_its_digits():
    law = MarchenkoPastur(2.0)
    x = 1e12
    assert x * law.stieltjes(x) - 1.0 == pytest.approx(law.mean / x, abs=3e-16)


@given(ratio=st.floats(0.05, 20.0), scale=st.floats(0.1, 10.0), y=st.floats(1.001, 50.0))
@settings(max_examples=40, deadline=None)
def test_stieltjes_solves_its_quadratic_equation(ratio, scale, y):
    # m = 1/(x - s^2 r/(1 - s^2 m)), the self-consistent equation of Marchenko and Pastur.
    law = MarchenkoPastur(ratio, scale)
    x = y * law.edge
    m = law.stieltjes(x)
    assert m == pytest.approx(1.0 / (x - scale**2 * ratio / (1.0 - scale**2 * m)), rel=1e-9)


@given(scale=st.floats(0.1, 10.0))
@settings(max_examples=20, deadline=None)
def test_scale_only_changes_the_unit(scale):
    one, other = MarchenkoPastur(2.0), MarchenkoPastur(2.0, scale)
    np.testing.assert_allclose(
        other.eigenvalues(20, 40), scale**2 * one.eigenvalues(20, 40), rtol=1e-12
    )
    assert other.edge == pytest.approx(scale**2 * one.edge)


@pytest.mark.parametrize("shape", [(100, 30), (100, 100), (100, 250)])
def test_quantiles_follow_the_distribution(shape):
    law = IndependentGaussian(scale=0.5).law(*shape)
    values = law.eigenvalues(*shape)
    assert np.count_nonzero(values) == min(shape)
    assert (np.diff(values) <= 0.0).all()
    lower, upper = 0.25 * (math.sqrt(shape[1] / shape[0]) - 1) ** 2, law.edge
    for i in (0, 7, min(shape) // 2, min(shape) - 1):
        # Mass above the quantile, by an integral of the textbook density in another variable.
        from scipy.integrate import quad

        mass, _ = quad(
            lambda root: math.sqrt((upper - root**2) * (root**2 - lower)) / (0.25 * math.pi * root),
            math.sqrt(values[i]),
            math.sqrt(upper),
            epsabs=1e-10,
            limit=200,
        )
        assert mass == pytest.approx((i + 0.5) / shape[0], abs=2e-7)


def test_density_agrees_with_the_law_it_was_taken_from():
    lower, upper = (math.sqrt(2.5) - 1) ** 2, (math.sqrt(2.5) + 1) ** 2
    law = FromDensity(
        lambda x: np.sqrt((upper - x) * (x - lower)) / (2 * np.pi * x), (lower, upper)
    )
    exact = MarchenkoPastur(2.5)
    assert law.mean == pytest.approx(2.5, rel=1e-12)
    assert law.stieltjes(7.0) == pytest.approx(exact.stieltjes(7.0), rel=1e-12)
    np.testing.assert_allclose(law.eigenvalues(40, 100), exact.eigenvalues(40, 100), rtol=1e-9)


@pytest.mark.parametrize(
    ("density", "support", "second_moment"),
    [
        (lambda x: np.full_like(x, 0.5), (1.0, 3.0), 13.0 / 3.0),  # hard edges
        (lambda x: 1.0 / (np.pi * np.sqrt(x * (2.0 - x))), (0.0, 2.0), 1.5),  # singular edges
        (lambda x: 1.0 - np.abs(x - 1.0), (0.0, 2.0), 7.0 / 6.0),  # a kink
    ],
)
def test_density_of_any_kind_is_integrated(density, support, second_moment):
    law = FromDensity(density, support)
    assert law.average(lambda v: v**2) == pytest.approx(second_moment, rel=1e-10)
    assert np.mean(law.eigenvalues(2000, 2000) ** 2) == pytest.approx(second_moment, rel=1e-3)


def test_stieltjes_law_keeps_what_it_is_given():
    law = FromStieltjes(semicircle_stieltjes, edge=4.0, mean=2.0)
    assert (law.edge, law.mean, law.law(3, 4)) == (4.0, 2.0, law)
    dense = FromDensity(semicircle, (0.0, 4.0))
    assert law.stieltjes(4.5) == pytest.approx(dense.stieltjes(4.5), rel=1e-12)
    assert repr(law) == "FromStieltjes(semicircle_stieltjes, edge=4.0, mean=2.0)"
    assert repr(dense) == "FromDensity(semicircle, support=(0.0, 4.0))"
    with pytest.raises(InputError, match=r"^average must be asked of a law with a density"):
        law.average(math.sqrt)
    with pytest.raises(InputError, match=r"^eigenvalues must be asked of a law with a density"):
        law.eigenvalues(3, 4)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (PowerLaw(exponent=2.0, scale=8.0), [8.0, 2.0, 8.0 / 9.0, 0.0]),
        (Outliers([5.0, 9.0], bulk=0.5), [9.0, 5.0, 0.5, 0.0]),
        (Outliers([5.0]), [5.0, 1.0, 1.0, 0.0]),
        (GivenEigenvalues([0.0, 3.0, 1.0, 2.0]), [3.0, 2.0, 1.0, 0.0]),
    ],
)
def test_laws_of_one_matrix(law, expected):
    np.testing.assert_allclose(law.eigenvalues(4, 3), expected, rtol=1e-15)
    np.testing.assert_array_equal(
        law.sample_eigenvalues(np.random.default_rng(0), 4, 3), law.eigenvalues(4, 3)
    )
    as_law = law.law(4, 3)
    assert as_law.edge == expected[0]
    assert as_law.mean == pytest.approx(np.mean(expected), rel=1e-15)
    assert as_law.stieltjes(10.0) == pytest.approx(
        np.mean(1.0 / (10.0 - np.array(expected))), rel=1e-14
    )


def moment_z_scores(law, n_draws=40, shape=(60, 90)):
    """z-scores of the first two sampled moments against exact finite-size expectations."""
    rng = np.random.default_rng(5)
    draws = np.array([law.sample_eigenvalues(rng, *shape) for _ in range(n_draws)])
    d, p = shape
    # E tr(JJ^T)^2 of a Wishart matrix: d p (d + p + 1), in units of variance squared.
    exact = np.array([0.49 * p / d, 0.49**2 * p * (d + p + 1) / d**2])
    moments = np.stack([draws.mean(1), (draws**2).mean(1)], axis=1)
    return (moments.mean(0) - exact) / (moments.std(0, ddof=1) / math.sqrt(n_draws))


def test_sampled_gaussian_spectrum_has_wishart_moments():
    # Two assertions, 39 degrees of freedom: |t| < 6.1 keeps the family-wise error below 1e-6.
    assert (np.abs(moment_z_scores(IndependentGaussian(scale=0.7))) < 6.1).all()


def test_the_moment_test_rejects_a_wrong_scale():
    assert (np.abs(moment_z_scores(IndependentGaussian(scale=0.74))) > 6.1).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PowerLaw(exponent=-1.0), r"^exponent must be a finite number >= 0, got -1"),
        (lambda: PowerLaw(scale=0.0), r"^scale must be a finite number > 0"),
        (lambda: IndependentGaussian(math.nan), r"^scale must be a finite number > 0, got nan"),
        (lambda: MarchenkoPastur(0.0), r"^ratio must be a finite number > 0"),
        (lambda: MarchenkoPastur(2.0).eigenvalues(10, 10), r"^ratio must be n_params/n_data=1"),
        (lambda: MarchenkoPastur(2.0).stieltjes(5.8), r"^x must be a finite number > 5.8"),
        (lambda: Outliers([1.0], bulk=2.0), r"^bulk must be .* <= 1, got 2"),
        (lambda: Outliers([3.0, 2.0]).eigenvalues(9, 1), r"^non-zero eigenvalues must be at most"),
        (lambda: GivenEigenvalues([1.0, -1.0]), r"^values must not be negative, got -1"),
        (lambda: GivenEigenvalues([[1.0]]), r"^values must have shape"),
        (lambda: GivenEigenvalues([1.0]).eigenvalues(2, 2), r"^values must hold n_data=2 numbers"),
        (
            lambda: GivenEigenvalues([1.0, 2.0]).eigenvalues(2, 1),
            r"^non-zero eigenvalues must be at most min\(n_data=2, n_params=1\), got 2",
        ),
        (lambda: PowerLaw().average(abs), r"^average must be asked of a law with a limit"),
        (lambda: PowerLaw().mean, r"^mean must be asked of a law with a limit, got PowerLaw"),
        (lambda: IndependentGaussian().edge, r"^edge must be asked of .*\.law\(n_data, n_params\)"),
        (lambda: FromDensity(semicircle, (0.0, 3.0)), r"^density must integrate to 1"),
        (lambda: FromDensity(semicircle, (3.0, 1.0)), r"^the upper end of support must be"),
        (lambda: FromDensity(semicircle, (-1.0, 4.0)), r"^the lower end of support must be"),
        (lambda: FromDensity(3.0, (0.0, 4.0)), r"^density must be a function"),
        (lambda: FromDensity(lambda x: 2 * x - 1, (0.0, 2.0)), r"^density must not be negative"),
        (
            lambda: FromDensity(semicircle, (0.0, 4.0)).eigenvalues(4, 3),
            r"^non-zero eigenvalues must be at most",
        ),
        (
            lambda: MarchenkoPastur(2.0).average(lambda v: 1.0 / (v - 2.0) ** 2),
            r"^function must be smooth",
        ),
        (lambda: FromStieltjes(lambda x: 1.0 / (3.0 - x), 4.0, 2.0), r"^transform\(2\*edge\)"),
        (lambda: FromStieltjes(semicircle_stieltjes, 4.0, 5.0), r"^mean must be"),
        (lambda: FromStieltjes(1.0, 4.0, 2.0), r"^transform must be a function"),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(InputError, match=match):
        make()
