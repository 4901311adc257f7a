"""QuadraticModel: its definitions, files, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError
from quadmodel.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel, clean_eigenvalues, ntk_eigensystem

D, P = 4, 6


def low_rank(rng):
    return LowRankCurvature(rng.normal(size=(D, 2)), rng.normal(size=(D, 2, P)))


def a_model(kind, seed=0):
    rng = np.random.default_rng(seed)
    curvature = rng.normal(size=(D, P, P))
    kinds = {"none": None, "dense": curvature + curvature.swapaxes(1, 2), "low rank": low_rank(rng)}
    return QuadraticModel(rng.normal(size=D), rng.normal(size=(D, P)), kinds[kind])


KINDS = pytest.mark.parametrize("kind", ["none", "dense", "low rank"])


@KINDS
def test_values_follow_the_definition(kind):
    model, theta = a_model(kind), np.random.default_rng(1).normal(size=P)
    q = np.zeros((D, P, P))
    if kind != "none":
        q = model.curvature if kind == "dense" else model.curvature.dense()
    z = model.residual + model.jacobian @ theta + 0.5 * np.einsum("aij,i,j->a", q, theta, theta)
    jacobian = model.jacobian + np.einsum("aij,j->ai", q, theta)
    np.testing.assert_allclose(model.residual_at(theta), z, rtol=1e-12)
    np.testing.assert_allclose(model.jacobian_at(theta), jacobian, rtol=1e-12)
    np.testing.assert_allclose(model.ntk(theta), jacobian @ jacobian.T / D, rtol=1e-12)
    assert model.loss(theta) == pytest.approx((z**2).sum() / (2 * D), rel=1e-12)
    np.testing.assert_allclose(model.ntk(), model.ntk(np.zeros(P)), rtol=1e-14)
    assert model.loss() == pytest.approx(model.loss(np.zeros(P)), rel=1e-14)


@KINDS
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_the_jacobian_is_the_derivative_of_the_residual(kind, seed):
    # For a quadratic function a central difference is exact, whatever the step.
    model, rng = a_model(kind, seed), np.random.default_rng(seed)
    theta, step = rng.normal(size=(2, P))
    change = 0.5 * (model.residual_at(theta + step) - model.residual_at(theta - step))
    np.testing.assert_allclose(change, model.jacobian_at(theta) @ step, atol=1e-10)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_asymmetry_is_accepted_whatever_the_sign(sign):
    curvature = np.full((2, 3, 3), sign * 1e6)
    curvature[1, 0, 2] += 1e-8
    QuadraticModel(Z, J, curvature)


def test_jacobian_at_is_a_copy():
    model = a_model("none")
    model.jacobian_at(np.zeros(P))[:] = 0.0
    assert model.jacobian.any()


@KINDS
def test_save_and_load_give_the_model_back(kind, tmp_path):
    model = a_model(kind)
    model.save(tmp_path / "model.npz")
    loaded = QuadraticModel.load(str(tmp_path / "model.npz"))
    np.testing.assert_array_equal(loaded.residual, model.residual)
    np.testing.assert_array_equal(loaded.jacobian, model.jacobian)
    assert type(loaded.curvature) is type(model.curvature)
    if kind == "dense":
        np.testing.assert_array_equal(loaded.curvature, model.curvature)
    if kind == "low rank":
        np.testing.assert_array_equal(loaded.curvature.vectors, model.curvature.vectors)
        np.testing.assert_array_equal(loaded.curvature.coefficients, model.curvature.coefficients)
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_a_file_without_a_jacobian_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", residual=np.ones(3))
    with pytest.raises(InputError, match=r"other.npz must hold an array 'jacobian', got \['res"):
        QuadraticModel.load(tmp_path / "other.npz")


@given(seed=st.integers(0, 2**32), n_data=st.integers(1, 8), rank=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_from_ntk_gives_the_ntk_back(seed, n_data, rank):
    factor = np.random.default_rng(seed).normal(size=(n_data, rank))
    ntk = factor @ factor.T
    model = QuadraticModel.from_ntk(ntk)
    np.testing.assert_allclose(model.ntk(), ntk, atol=1e-10 * ntk.max())
    assert np.count_nonzero(model.eigensystem[0]) <= rank
    np.testing.assert_array_equal(model.residual, np.ones(n_data))


def test_from_ntk_takes_a_residual():
    model = QuadraticModel.from_ntk([[2.0, 1.0], [1.0, 2.0]], residual=[3, 4])
    assert model.loss() == 25.0 / 4.0


def test_eigensystem_is_descending_and_complete():
    eigenvalues, vectors = ntk_eigensystem(a_model("none").ntk())
    assert (np.diff(eigenvalues) <= 0.0).all()
    np.testing.assert_allclose((vectors * eigenvalues) @ vectors.T, a_model("none").ntk())


def test_rounding_noise_in_eigenvalues_becomes_zero():
    np.testing.assert_array_equal(clean_eigenvalues(np.array([1.0, 1e-17, -1e-17])), [1.0, 0, 0])
    np.testing.assert_array_equal(clean_eigenvalues(np.array([1.0, 1e-12])), [1.0, 1e-12])


@KINDS
def test_repr_shows_shapes_bytes_and_spectrum(kind):
    text = repr(a_model(kind))
    expected = "low rank 2" if kind == "low rank" else kind
    assert text.startswith(f"QuadraticModel(n_data=4, n_params=6, curvature: {expected}, ")
    assert "largest eigenvalue" in text


@KINDS
def test_nbytes_counts_all_arrays(kind):
    held = {"none": 0, "dense": 8 * D * P * P, "low rank": 8 * D * 2 * (1 + P)}[kind]
    assert a_model(kind).nbytes == 8 * D * (1 + P) + held


Z, J = np.ones(2), np.ones((2, 3))
ASYMMETRIC = np.zeros((2, 3, 3))
ASYMMETRIC[1, 0, 2] = 1.0
NOT_FINITE = np.zeros((2, 3, 3))
NOT_FINITE[1, 2, 2] = np.inf


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: QuadraticModel(np.ones(3), J), r"^residual must have shape \(2\), got \(3,\)"),
        (lambda: QuadraticModel(Z, np.ones(2)), r"^jacobian must have shape \(any, any\)"),
        (lambda: QuadraticModel(Z, np.ones((2, 0))), r"^jacobian must have shape"),
        (lambda: QuadraticModel([1.0, math.nan], J), r"^residual must hold finite .* at \(1,\)"),
        (lambda: QuadraticModel(Z, J + 1j), r"^jacobian must hold real numbers, got dtype complex"),
        (lambda: QuadraticModel(Z, [[1.0], [1.0, 2.0]]), r"^jacobian must be .* got a ragged one"),
        (lambda: QuadraticModel(Z, J, np.ones((2, 3))), r"^curvature must have shape \(2, 3, 3\)"),
        (lambda: QuadraticModel(Z, J, ASYMMETRIC), r"^curvature must be symmetric"),
        (lambda: QuadraticModel(Z, J, -ASYMMETRIC), r"^curvature must be symmetric"),
        (lambda: QuadraticModel(Z, J, NOT_FINITE), r"^curvature must hold .* got inf at \(1, 2, 2"),
        (
            lambda: QuadraticModel(Z, J, LowRankCurvature(np.ones((2, 1)), np.ones((2, 1, 4)))),
            r"^curvature must have shape \(2, 3, 3\), got \(2, 4, 4\)",
        ),
        (
            lambda: LowRankCurvature(np.ones((2, 1)), np.ones((2, 2, 4))),
            r"^vectors must have shape",
        ),
        (lambda: QuadraticModel(Z, J).loss(np.ones(2)), r"^theta must have shape \(3\)"),
        (lambda: QuadraticModel(Z, J).ntk([0, 0, math.inf]), r"^theta must hold finite numbers"),
        (lambda: QuadraticModel.from_ntk(J), r"^ntk must be a square matrix, got shape \(2, 3\)"),
        (lambda: QuadraticModel.from_ntk([[1, 2], [0, 1]]), r"^ntk must be symmetric, got entries"),
        (lambda: QuadraticModel.from_ntk([[1, 2], [2, 1]]), r"^ntk must be positive semidefinite"),
        (
            lambda: QuadraticModel.from_ntk(np.eye(2), np.ones(3)),
            r"^residual must have shape \(2\)",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(InputError, match=match):
        make()
