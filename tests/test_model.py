"""QuadraticModel: its definitions, files, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadmodel._util.checks import InputError, tolerance_of
from quadmodel.laws.curvature import (
    IndependentCurvature,
    KroneckerCurvature,
    LowRankCurvature,
    RandomLowRankCurvature,
)
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


LAWS = [
    None,
    IndependentCurvature(0.1 + 0.2),
    RandomLowRankCurvature(3, 1e-300),
    KroneckerCurvature(np.eye(D) + 0.1, np.diag(np.arange(1.0, P + 1)), 0.3),
    KroneckerCurvature(scale=2.0),
]


@KINDS
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_loaded_model_is_equal_with_its_law(kind, law, tmp_path):
    model = replace(a_model(kind), curvature_law=law)
    model.save(tmp_path / "model.npz")
    loaded = QuadraticModel.load(tmp_path / "model.npz")
    assert loaded == model
    assert hash(loaded) == hash(model)
    assert loaded.curvature_law == law
    assert loaded.spec() == model.spec()
    assert repr(loaded) == repr(model)


def test_a_loaded_model_still_stands_for_its_ntk(tmp_path):
    model = QuadraticModel.from_ntk(np.diag([2.0, 1.0]))
    assert set(model.spec()) == {"n_data", "source_hash"}
    model.save(tmp_path / "model.npz")
    assert QuadraticModel.load(tmp_path / "model.npz").spec() == model.spec()


def test_an_older_file_has_no_law(tmp_path):
    np.savez(tmp_path / "old.npz", residual=np.ones(2), jacobian=np.eye(2))
    old = QuadraticModel.load(tmp_path / "old.npz")
    assert old == QuadraticModel(np.ones(2), np.eye(2))
    assert old.curvature_law is None


@KINDS
def test_models_that_differ_are_not_equal(kind):
    model = a_model(kind)
    same = QuadraticModel(model.residual.copy(), model.jacobian.copy(), model.curvature)
    assert model == same
    assert hash(model) == hash(same)
    assert model.source_hash == same.source_hash
    changed = [
        replace(model, residual=2 * model.residual),
        replace(model, jacobian=model.jacobian + np.eye(D, P)),
        QuadraticModel(model.residual, np.ones((D, P + 1))),
        replace(model, curvature=np.ones((D, P, P))),
    ]
    for other in changed:
        assert other != model
        assert other.spec(with_curvature=True) != model.spec(with_curvature=True)
    assert [other.source_hash == model.source_hash for other in changed] == [0, 0, 0, 1]
    assert replace(model, curvature_law=LAWS[1]) != model
    assert model != "a model"
    assert len({model, same, *changed}) == 5


def test_negative_zero_equals_zero():
    one, other = (QuadraticModel([0.0, 1.0], np.eye(2) * sign) for sign in (1.0, 1.0))
    object.__setattr__(other, "residual", np.array([-0.0, 1.0]))
    assert one == other
    assert hash(one) == hash(other)
    zeros = np.zeros((2, 2))
    assert KroneckerCurvature(zeros) == KroneckerCurvature(-zeros)
    assert hash(KroneckerCurvature(zeros)) == hash(KroneckerCurvature(-zeros))


def test_a_law_of_ones_own_is_not_lost_in_a_file(tmp_path):
    class Own(IndependentCurvature):
        pass

    model = replace(a_model("none"), curvature_law=Own(0.1))
    with pytest.raises(
        InputError, match=r"^curvature_law must be one of Independent.* to be saved"
    ):
        model.save(tmp_path / "model.npz")
    assert list(tmp_path.iterdir()) == []


GOOD = {"residual": np.ones(2), "jacobian": np.eye(2)}


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"residual": np.ones(3)}, r"residual must have shape \(2\), got \(3,\)$"),
        ({"jacobian": np.eye(2) * np.nan}, r"jacobian must hold finite numbers, got nan"),
        ({"curvature": np.ones(2)}, r"curvature must have shape"),
        ({"curvature_vectors": np.ones((2, 1, 2))}, r"got curvature_vectors$"),
        (
            {
                "curvature_vectors": np.ones((2, 1, 2)),
                "curvature_coefficients": np.ones((2, 1)),
                "curvature": np.ones((2, 2, 2)),
            },
            r"got curvature_coefficients and curvature_vectors and curvature$",
        ),
        ({"curvature_law": np.array("what")}, r"curvature_law must be what .* got 'what'$"),
        ({"curvature_law": np.array('{"kind": "object"}')}, r"curvature_law must be what"),
        ({"curvature_law": np.ones(3)}, r"curvature_law must be what"),
        (
            {"curvature_law": np.array('{"kind": "IndependentCurvature", "scale": -1}')},
            r"curvature_law: scale must be a finite number >= 0, got -1",
        ),
    ],
)
def test_files_that_make_no_model(arrays, match, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **(GOOD | arrays))
    with pytest.raises(InputError, match=match) as error:
        QuadraticModel.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


# ---- precision of what comes


def single_precision(seed, n_data=60, n_params=4000):
    """An NTK as frameworks make it: of rank 20, computed and kept in single precision."""
    rng = np.random.default_rng(seed)
    jacobian = (rng.normal(size=(n_data, 20)) @ rng.normal(size=(20, n_params))).astype(np.float32)
    ntk = jacobian @ jacobian.T / np.float32(n_data)
    ntk[0, 1] *= np.float32(1 + 1e-6)
    return ntk


@pytest.mark.parametrize("seed", range(3))
def test_an_ntk_of_single_precision(seed):
    ntk = single_precision(seed)
    lowest, *_, largest = np.linalg.eigvalsh(ntk.astype(float))
    assert lowest < -1e-8 * largest  # which double precision's tolerance refuses
    model = QuadraticModel.from_ntk(ntk)
    np.testing.assert_allclose(model.ntk(), ntk, atol=1e-5 * ntk.max())
    with pytest.raises(InputError, match=r"ntk must be (symmetric|positive semidefinite)"):
        QuadraticModel.from_ntk(ntk.astype(float))
    KroneckerCurvature(ntk).sample(np.random.default_rng(0), 60, 2)


def test_the_eigenvalue_of_single_precision_that_was_refused():
    ntk = np.diag([180.0, 1.0, -8e-6])
    assert QuadraticModel.from_ntk(ntk.astype(np.float32)).eigensystem[0][-1] == 0.0
    with pytest.raises(InputError, match=r"ntk must be positive semidefinite .* eigenvalue -8e-06"):
        QuadraticModel.from_ntk(ntk)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-8), (np.int64, 1e-8), (np.longdouble, 1e-8), (np.float32, 2.3e-4)],
)
def test_tolerance_by_precision(dtype, tolerance):
    assert tolerance_of(np.ones(2, dtype)) == pytest.approx(tolerance, rel=0.02)
    for share, fits in ((0.9, True), (1.1, False)):
        lowest = -share * tolerance_of(np.ones(1, dtype))
        matrix = np.diag([1.0, lowest]).astype(dtype) if dtype is not np.int64 else None
        if matrix is None:
            continue
        if fits:
            QuadraticModel.from_ntk(matrix)
        else:
            with pytest.raises(InputError, match="positive semidefinite"):
                QuadraticModel.from_ntk(matrix)


def test_curvature_of_single_precision_is_made_symmetric():
    curvature = np.ones((2, 3, 3), np.float32)
    curvature[1, 0, 2] += np.float32(1e-6)
    given = curvature.copy()
    kept = QuadraticModel(np.ones(2), np.ones((2, 3)), curvature).curvature
    np.testing.assert_array_equal(kept, kept.swapaxes(1, 2))
    np.testing.assert_allclose(kept, given, rtol=1e-6)
    np.testing.assert_array_equal(curvature, given)
    with pytest.raises(InputError, match="curvature must be symmetric"):
        QuadraticModel(np.ones(2), np.ones((2, 3)), given.astype(float))


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
        (lambda: QuadraticModel(Z, np.ones((2, 0))), r"^jacobian must not be empty"),
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
