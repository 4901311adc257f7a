"""Residual laws: norm, direction, share of the null space."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError
from quadmodel.laws.eigenvectors import haar_frame
from quadmodel.laws.residuals import AlignedResidual, GaussianResidual


def eigensystem(n_data=12, rank=12, seed=0):
    eigenvalues = np.zeros(n_data)
    eigenvalues[:rank] = 1.0 / np.arange(1, rank + 1)
    return eigenvalues, haar_frame(np.random.default_rng(seed), n_data, n_data)


def null_share(z, eigenvalues, vectors):
    squared = (vectors.T @ z) ** 2
    return squared[eigenvalues == 0.0].sum() / squared.sum()


@given(
    seed=st.integers(0, 2**32),
    rank=st.integers(1, 11),
    fraction=st.floats(0.0, 0.99),
    scale=st.floats(0.01, 100.0),
)
@settings(max_examples=50, deadline=None)
def test_the_null_space_carries_exactly_its_fraction(seed, rank, fraction, scale):
    modes = eigensystem(rank=rank)
    for law in (
        GaussianResidual(scale, null_fraction=fraction),
        AlignedResidual([0], scale=scale, null_fraction=fraction),
        AlignedResidual([0], [3.0], scale=scale, null_fraction=fraction),
    ):
        z = law.sample(np.random.default_rng(seed), *modes)
        assert null_share(z, *modes) == pytest.approx(fraction, abs=1e-12)


def test_a_null_fraction_keeps_norm_and_directions_of_the_draw():
    eigenvalues, vectors = eigensystem(rank=7)
    plain = GaussianResidual(2.0).sample(np.random.default_rng(3), eigenvalues, vectors)
    mixed = GaussianResidual(2.0, 0.4).sample(np.random.default_rng(3), eigenvalues, vectors)
    assert np.linalg.norm(mixed) == pytest.approx(np.linalg.norm(plain), rel=1e-14)
    for part in (slice(0, 7), slice(7, 12)):
        one, other = (vectors.T @ plain)[part], (vectors.T @ mixed)[part]
        assert one @ other == pytest.approx(np.linalg.norm(one) * np.linalg.norm(other))


def test_fraction_zero_without_null_space_changes_nothing():
    modes = eigensystem()
    plain = GaussianResidual(2.0).sample(np.random.default_rng(3), *modes)
    zero = GaussianResidual(2.0, 0.0).sample(np.random.default_rng(3), *modes)
    np.testing.assert_allclose(zero, plain, rtol=1e-12)


def test_gaussian_residual_looks_at_modes_only_if_asked():
    assert not GaussianResidual().needs_modes
    assert GaussianResidual(null_fraction=0.0).needs_modes
    assert AlignedResidual([0]).needs_modes


@given(seed=st.integers(0, 2**32), scale=st.floats(0.01, 100.0), fraction=st.floats(0.0, 0.9))
@settings(max_examples=40, deadline=None)
def test_aligned_residual_has_exact_norm_and_stays_in_its_modes(seed, scale, fraction):
    eigenvalues, vectors = eigensystem(rank=8)
    law = AlignedResidual([1, 5], scale=scale, null_fraction=fraction)
    z = law.sample(np.random.default_rng(seed), eigenvalues, vectors)
    assert z @ z == pytest.approx(12 * scale**2, rel=1e-12)
    outside = (vectors.T @ z)[[0, 2, 3, 4, 6, 7]]
    np.testing.assert_allclose(outside, 0.0, atol=1e-12 * scale)


@pytest.mark.parametrize("fraction", [0.0, 0.75])
def test_given_coefficients_are_kept(fraction):
    eigenvalues, vectors = eigensystem(rank=8)
    law = AlignedResidual([5, 1], [1.0, -2.0], scale=3.0, null_fraction=fraction)
    z = law.sample(np.random.default_rng(0), eigenvalues, vectors)
    np.testing.assert_allclose((vectors.T @ z)[[5, 1]], [3.0, -6.0], rtol=1e-12)
    assert z @ z == pytest.approx(45.0 / (1.0 - fraction), rel=1e-12)


def variance_z_scores(law, scale, n_draws=4000):
    """z-scores of variances and neighbouring covariances of the entries."""
    rng = np.random.default_rng(8)
    nothing = np.empty((12, 0))
    z = np.array([law.sample(rng, np.zeros(12), nothing) for _ in range(n_draws)])
    squares, products = z**2 - scale**2, z[:, 1:] * z[:, :-1]
    return np.array(
        [x.mean() / (x.std() / math.sqrt(n_draws)) for x in (*squares.T, *products.T, *z.T)]
    )


def test_gaussian_residual_has_independent_entries_of_its_scale():
    # 35 assertions; |z| < 5.6 keeps the family-wise error below 1e-6.
    assert np.abs(variance_z_scores(GaussianResidual(0.7), 0.7)).max() < 5.6
    assert np.abs(variance_z_scores(GaussianResidual(0.7), 0.8)).max() > 5.6  # negative control


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianResidual(-1.0), r"^scale must be a finite number >= 0"),
        (lambda: GaussianResidual(null_fraction=1.0), r"^null_fraction must be .* < 1"),
        (lambda: AlignedResidual([]), r"^modes must be one or more different numbers"),
        (lambda: AlignedResidual([1, 1]), r"^modes must be one or more different numbers"),
        (lambda: AlignedResidual([-1]), r"^a mode must be an integer >= 0, got -1"),
        (lambda: AlignedResidual([0], [1.0, 2.0]), r"^coefficients must have shape \(1\)"),
        (lambda: AlignedResidual([0], [0.0]), r"^coefficients must not all be zero"),
        (lambda: AlignedResidual([0], scale=0.0), r"^scale must be a finite number > 0"),
    ],
)
def test_bad_specification(make, match):
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize(
    ("law", "rank", "match"),
    [
        (GaussianResidual(1.0, 0.5), 12, r"^null_fraction must be 0 where the NTK has no null"),
        (AlignedResidual([0], null_fraction=0.5), 12, r"^null_fraction must be 0 where the NTK"),
        (GaussianResidual(1.0, 0.5), 0, r"^the NTK must not be zero"),
        (AlignedResidual([3]), 3, r"^modes must be among the 3 with non-zero eigenvalue, got 3"),
    ],
)
def test_laws_that_do_not_fit_the_ntk(law, rank, match):
    with pytest.raises(InputError, match=match):
        law.sample(np.random.default_rng(0), *eigensystem(rank=rank))
