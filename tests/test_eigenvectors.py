"""Eigenvector laws: orthogonality, where the weight sits, invariance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError
from quadmodel.laws.eigenvectors import Haar, Localised, haar_frame


@given(
    seed=st.integers(0, 2**32),
    n_data=st.integers(2, 40),
    fraction=st.floats(0.01, 0.5),
    share=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_localised_vectors_are_orthogonal_with_the_exact_share(seed, n_data, fraction, share):
    n_heavy = round(fraction * n_data)
    law = Localised(fraction, share)
    if not 1 <= n_heavy <= n_data / 2:  # 0.5 of an odd number is rounded up
        with pytest.raises(InputError, match=r"^row_fraction must give between 1 and"):
            law.sample(np.random.default_rng(seed), n_data)
        return
    vectors = law.sample(np.random.default_rng(seed), n_data)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(n_data), atol=1e-12)
    row_weight = (vectors[:, :n_heavy] ** 2).sum(1)
    heavy = np.isclose(row_weight, share, rtol=0.0, atol=1e-12)
    assert heavy.sum() >= n_heavy
    if heavy.sum() == n_heavy:  # else light rows carry the same, at share = row_fraction = 1/2
        weights = (vectors[heavy, :n_heavy] ** 2).sum(0)
        np.testing.assert_allclose(weights, share, atol=1e-12)


def test_the_heavy_points_are_random():
    rng = np.random.default_rng(0)
    law = Localised(0.25, 1.0)
    chosen = {tuple(np.flatnonzero(law.sample(rng, 8)[:, 0])) for _ in range(20)}
    assert len(chosen) > 5


@pytest.mark.parametrize("law", [Haar(), Localised(0.5, 0.5)])
def test_draws_depend_on_the_generator_only(law):
    first, again, other = (law.sample(np.random.default_rng(seed), 12) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def haar_z_scores(draw, n_draws=3000, rows=5, columns=3):
    """z-scores of E V_ia = 0, E V_ia^2 = 1/D and E V_ia^4 = 3/(D(D+2)), for each entry."""
    rng = np.random.default_rng(11)
    frames = np.array([draw(rng, rows, columns) for _ in range(n_draws)])
    exact = {1: 0.0, 2: 1.0 / rows, 4: 3.0 / (rows * (rows + 2))}
    return np.array(
        [
            ((frames**k).mean(0) - value) / ((frames**k).std(0) / math.sqrt(n_draws))
            for k, value in exact.items()
        ]
    )


def test_frames_have_haar_moments():
    # 45 assertions; |z| < 5.6 keeps the family-wise error below 1e-6.
    assert np.abs(haar_z_scores(haar_frame)).max() < 5.6


def test_the_moment_test_rejects_a_frame_without_sign_fix():
    def plain_qr(rng, rows, columns):
        return np.linalg.qr(rng.standard_normal((rows, columns)))[0]

    assert np.abs(haar_z_scores(plain_qr)).max() > 5.6


def test_the_complement_of_localised_modes_is_haar():
    # At share 1 the light rows of the other modes form a Haar matrix of size D - n.
    # 45 assertions, bound as above.
    def complement(rng, rows, columns):
        vectors = Localised(2 / 7, 1.0).sample(rng, 7)
        light = np.flatnonzero(np.abs(vectors[:, :2]).max(1) < 1e-12)
        return vectors[np.ix_(light, range(2, 7))][:rows, :columns]

    assert np.abs(haar_z_scores(complement)).max() < 5.6


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Localised(0.6, 0.5), r"^row_fraction must be .* <= 0.5, got 0.6"),
        (lambda: Localised(0.0, 0.5), r"^row_fraction must be a finite number > 0"),
        (lambda: Localised(0.1, 1.5), r"^share must be .* <= 1, got 1.5"),
        (
            lambda: Localised(0.01, 0.5).sample(np.random.default_rng(0), 10),
            r"^row_fraction must give between 1 and n_data/2=5 heavy points, got 0 from 0.01",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(InputError, match=match):
        make()
