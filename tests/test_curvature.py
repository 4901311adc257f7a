"""Curvature laws: covariances, symmetry, memory."""

import math
import tracemalloc

import numpy as np
import pytest

from quadmodel._util.checks import InputError
from quadmodel.laws.curvature import (
    IndependentCurvature,
    KroneckerCurvature,
    RandomLowRankCurvature,
)

D, P = 2, 3
DATA = np.array([[2.0, 0.6], [0.6, 0.5]])
PARAMETER = np.array([[1.0, 0.3, 0.0], [0.3, 2.0, -0.5], [0.0, -0.5, 0.7]])


def dense(law, rng, shape=(D, P)):
    curvature = law.sample(rng, *shape)
    return curvature if isinstance(curvature, np.ndarray) else curvature.dense()


def gaussian_covariance(data, parameter, scale):
    pairs = np.einsum("ik,jl->ijkl", parameter, parameter)
    pairs = pairs + np.einsum("il,jk->ijkl", parameter, parameter)
    return scale**2 * np.einsum("ab,ijkl->aijbkl", data, pairs)


def covariance_z_scores(law, expected, n_draws=20_000, seed=0):
    """z-scores of the sampled E[Q_aij Q_bkl] against `expected`, for every distinct pair."""
    rng = np.random.default_rng(seed)
    rows, columns = np.triu_indices(P)
    flat = np.array([dense(law, rng)[:, rows, columns].ravel() for _ in range(n_draws)])
    expected = expected[:, rows, columns][:, :, :, rows, columns].reshape(2 * [flat.shape[1]])
    first, second = np.triu_indices(flat.shape[1])
    products = flat[:, first] * flat[:, second]
    error = products.std(0) / math.sqrt(n_draws)
    return (products.mean(0) - expected[first, second]) / error


# 78 covariances per law, 4 laws: |z| < 6 keeps the family-wise error below 1e-6 (Gaussian tails;
# the products have heavier ones, which 20,000 draws average out).
BOUND = 6.0
LAWS = [
    (IndependentCurvature(0.3), np.eye(D), np.eye(P), 0.3),
    (KroneckerCurvature(DATA, PARAMETER, scale=0.5), DATA, PARAMETER, 0.5),
    (KroneckerCurvature(DATA), DATA, np.eye(P), 1.0),
    (KroneckerCurvature(parameter_covariance=PARAMETER), np.eye(D), PARAMETER, 1.0),
]


@pytest.mark.parametrize(("law", "data", "parameter", "scale"), LAWS)
def test_covariance_is_the_stated_one(law, data, parameter, scale):
    z = covariance_z_scores(law, gaussian_covariance(data, parameter, scale))
    assert np.abs(z).max() < BOUND


def test_the_covariance_test_rejects_a_wrong_diagonal_variance():
    wrong = gaussian_covariance(np.eye(D), np.eye(P), 0.3)
    for a, i in np.ndindex(D, P):
        wrong[a, i, i, a, i, i] *= 0.5  # variance 1 on the diagonal, as off it
    assert np.abs(covariance_z_scores(IndependentCurvature(0.3), wrong)).max() > BOUND


def test_the_covariance_test_rejects_a_missing_data_correlation():
    wrong = gaussian_covariance(np.diag(np.diag(DATA)), PARAMETER, 0.5)
    assert np.abs(covariance_z_scores(LAWS[1][0], wrong)).max() > BOUND


def low_rank_z_scores(rank, scale):
    """z-scores of off-diagonal (variance 1) and diagonal (variance 3) entries of low rank."""
    rng = np.random.default_rng(rank)
    draws = dense(RandomLowRankCurvature(rank, 1.0), rng, (40_000, P))  # points are independent
    off, on = draws[:, 0, 1] ** 2, draws[:, 2, 2] ** 2
    return np.array(
        [
            (squares.mean() - scale**2 * exact) / (squares.std() / math.sqrt(squares.size))
            for squares, exact in ((off, 1.0), (on, 3.0))
        ]
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_curvature_has_unit_off_diagonal_variance(rank):
    # 4 assertions; products of four Gaussians, so a bound of 6 leaves room for their tails.
    assert np.abs(low_rank_z_scores(rank, 1.0)).max() < 6.0
    assert np.abs(low_rank_z_scores(rank, 1.2)).min() > 6.0  # negative control


@pytest.mark.parametrize(
    "law",
    [
        IndependentCurvature(0.3),
        KroneckerCurvature(np.eye(5) + 0.1, np.eye(40) + 0.2),
        RandomLowRankCurvature(2, 0.3),
    ],
)
def test_draws_are_symmetric_reproducible_and_as_large_as_stated(law):
    curvature = dense(law, np.random.default_rng(1), (5, 40))
    assert curvature.shape == (5, 40, 40)
    np.testing.assert_allclose(curvature, curvature.swapaxes(1, 2), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(curvature, dense(law, np.random.default_rng(1), (5, 40)))
    assert law.sample(np.random.default_rng(1), 5, 40).nbytes == law.nbytes(5, 40)


def test_a_singular_covariance_is_honoured():
    curvature = KroneckerCurvature(np.ones((4, 4)), np.diag([1.0, 0.0, 1.0])).sample(
        np.random.default_rng(0), 4, 3
    )
    np.testing.assert_allclose(curvature, np.broadcast_to(curvature[:1], curvature.shape))
    assert np.abs(curvature[:, 1]).max() == 0.0


@pytest.mark.parametrize(
    "law",
    [IndependentCurvature(0.3), KroneckerCurvature(np.eye(60) + 0.1, np.eye(80) + 0.2)],
)
def test_peak_memory_stays_near_the_array_itself(law):
    tracemalloc.start()
    try:
        law.sample(np.random.default_rng(0), 60, 80)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * law.nbytes(60, 80)


def test_repr_tells_matrices_apart():
    one, other = KroneckerCurvature(DATA), KroneckerCurvature(2.0 * DATA)
    assert repr(one) != repr(other)
    assert repr(one).startswith("KroneckerCurvature(data_covariance=<2x2, sha256 ")
    assert repr(one).endswith(", parameter_covariance=None, scale=1.0)")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: IndependentCurvature(-1.0), r"^scale must be a finite number >= 0, got -1"),
        (lambda: RandomLowRankCurvature(0, 1.0), r"^rank must be an integer >= 1, got 0"),
        (lambda: KroneckerCurvature([[1.0, 2.0]]), r"^data_covariance must be a square matrix"),
        (lambda: KroneckerCurvature([[1.0, 2.0], [0.0, 1.0]]), r"^data_covariance must be symm"),
        (
            lambda: KroneckerCurvature(None, [[1.0, 2.0], [2.0, 1.0]]),
            r"^parameter_covariance must be positive semidefinite, got the eigenvalue -1",
        ),
        (lambda: KroneckerCurvature(DATA).nbytes(3, 3), r"^data_covariance must have shape \(3, 3"),
        (
            lambda: KroneckerCurvature(None, PARAMETER).sample(np.random.default_rng(0), 2, 2),
            r"^parameter_covariance must have shape \(2, 2\), got \(3, 3\)",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(InputError, match=match):
        make()
