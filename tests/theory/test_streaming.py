"""NTKs of Jacobians in files and behind products; large kernels in single precision."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.theory import _inputs, _noise_products, streaming


def jacobian_of(n_data=7, n_params=53, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(n_data, n_params)).astype(dtype)


class Chunked:
    """An array that is only read by columns, in chunks, as zarr's are."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, chunks
        self.read = []

    def __getitem__(self, key):
        self.read.append(key[1])
        return self.array[key]


@pytest.mark.parametrize("width", [1, 5, 53, 1000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_blocks_of_columns_add_up(dtype, width, tmp_path, monkeypatch):
    jacobian = (10 * jacobian_of()).astype(dtype)
    np.save(tmp_path / "jacobian.npy", jacobian)
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 8.0 * 7 * width)
    exact = jacobian.astype(float) @ jacobian.T.astype(float) / 7
    mapped = np.load(tmp_path / "jacobian.npy", mmap_mode="r")
    for source in (
        jacobian, jacobian.tolist(), mapped, tmp_path / "jacobian.npy", np.asfortranarray(jacobian)
    ):  # fmt: skip
        found = qm.ntk_from_jacobian(source)
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12 * exact.max())
        np.testing.assert_array_equal(found, found.T)
        assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("columns", "chunks", "width"),
    [(11, (7, 4), 8), (3, (7, 4), 4), (1, None, 1), (0.5, None, 1), (11, None, 11)],
)
def test_chunks_are_read_whole(columns, chunks, width, monkeypatch):
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 8.0 * 7 * columns)
    source = Chunked(jacobian_of(), chunks)
    qm.ntk_from_jacobian(source)
    assert [(s.start, s.stop) for s in source.read][:2] == [(0, width), (width, 2 * width)]


def test_blocks_are_of_256_mebibytes():
    class UnreadError(Exception):
        pass

    class Source:
        shape, dtype, asked = (1000, 10**6), np.dtype(float), slice(0)

        def __getitem__(self, key):
            self.asked = key[1]
            raise UnreadError

    source = Source()
    with pytest.raises(UnreadError):
        qm.ntk_from_jacobian(source)
    assert source.asked == slice(0, 2**28 // 8000)


def test_a_wide_jacobian_is_never_held(tmp_path, monkeypatch):
    """A file of a million columns, of which a few thousand are in memory at a time."""
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 2.0**20)
    n_params = 10**6
    source = np.lib.format.open_memmap(
        tmp_path / "wide.npy", mode="w+", dtype=np.float32, shape=(3, n_params)
    )
    source[0], source[1], source[2] = 1.0, 0.5, np.arange(n_params) % 2
    held = []
    monkeypatch.setattr(
        streaming.np, "ascontiguousarray",
        lambda a, dtype: (held.append(a.size), np.array(a, dtype, order="C"))[1],
    )  # fmt: skip
    found = qm.ntk_from_jacobian(tmp_path / "wide.npy")
    rows = np.array([[1.0, 0.5, 0.5], [0.5, 0.25, 0.25], [0.5, 0.25, 0.5]])
    np.testing.assert_allclose(found, rows * n_params / 3, rtol=1e-12)
    assert max(held) * 8 <= 2**20


@pytest.mark.parametrize(
    ("jacobian", "message"),
    [
        (np.ones(3), "two axes"),
        (np.ones((2, 3, 4)), "two axes"),
        (np.ones((0, 3)), "two axes"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.ones((2, 3), complex), "real numbers"),
        (np.array([[1.0, np.nan]]), "finite"),
        (aslinearoperator(np.array([[1.0, np.inf]])), "finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_jacobians_are_refused(jacobian, message):
    with pytest.raises(InputError, match=f"^jacobian must .*{message}"):
        qm.ntk_from_jacobian(jacobian)


def test_bad_files_are_refused(tmp_path):
    damaged, archive, pickled = (tmp_path / n for n in ("damaged.npy", "a.npz", "pickled.npy"))
    damaged.write_bytes(b"\x93NUMPY\x01\x00")
    np.savez(archive, np.eye(2))
    np.save(pickled, np.array([None, 1]), allow_pickle=True)
    for path, got in (
        (tmp_path / "none.npy", "got no such file"),
        (tmp_path, "got a directory"),
        (damaged, "damaged"),
        (archive, "another format"),
        (pickled, "another format|dtype object|pickled"),
    ):
        with pytest.raises(InputError, match=got) as error:
            qm.ntk_from_jacobian(path)
        assert str(error.value).startswith(f"jacobian {path} must be")
        assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused_before_it_is_read():
    source = Chunked(np.broadcast_to(0.0, (10**8, 10)), (1, 1))
    with pytest.raises(MemoryError, match="the NTK needs"):
        qm.ntk_from_jacobian(source)
    assert source.read == []


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_operators_stand_for_matrices(dtype, monkeypatch):
    monkeypatch.setattr(streaming, "_AT_ONCE", 3)
    jacobian = jacobian_of(dtype=dtype)
    ntk, tolerance = jacobian @ jacobian.T / 7, 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(
        qm.ntk_from_jacobian(aslinearoperator(jacobian)), ntk, rtol=0, atol=tolerance * ntk.max()
    )
    operator, sgd = aslinearoperator(ntk), qm.SGD(0.02, 2)
    for function in (qm.noise_kernel_norm, qm.critical_learning_rate, qm.edge_of_stability):
        assert function(operator, sgd) == pytest.approx(
            function(ntk.astype(float), sgd), rel=10 * tolerance
        )


def test_operators_must_be_square_and_symmetric():
    with pytest.raises(InputError, match=r"^ntk must be square"):
        qm.noise_kernel_norm(aslinearoperator(np.ones((2, 3))), qm.SGD(0.1, 1))
    with pytest.raises(InputError, match=r"^ntk must be symmetric"):
        qm.noise_kernel_norm(aslinearoperator(np.triu(np.ones((3, 3)))), qm.SGD(0.1, 1))
    nothing = LinearOperator((2, 2), matvec=lambda x: x * np.nan, dtype=float)
    with pytest.raises(InputError, match=r"^ntk must be finite"):
        qm.noise_kernel_norm(nothing, qm.SGD(0.1, 1))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_symmetry_gives_the_same_products(dtype, monkeypatch):
    rng, n = np.random.default_rng(1), 40
    vectors = np.linalg.qr(rng.normal(size=(n, n)))[0].astype(dtype)
    response = rng.uniform(size=(n, n))
    response = (response + response.T).astype(dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for per_point in (rng.normal(size=n), rng.uniform(size=n), -rng.uniform(size=n), np.zeros(n)):
        d = per_point.astype(dtype)
        plain = _noise_products.noise_kernel_product(vectors, response, d)
        with monkeypatch.context() as patched:
            patched.setattr(_noise_products, "_SYMMETRIC", 0)
            found = _noise_products.noise_kernel_product(vectors, response, d)
        np.testing.assert_allclose(found, plain, rtol=0, atol=tolerance * (1 + np.abs(plain).max()))
        quotient = _noise_products.rayleigh(vectors, response, d)
        assert quotient == pytest.approx(float(d @ plain), abs=10 * tolerance)


def test_eigenvectors_in_single_precision_leave_a_small_error(monkeypatch):
    """K, critical learning rate, rate and floor of a kernel that counts as large."""
    model = qm.Ensemble(600, 900).sample(seed=0)
    ntk, sgd = model.ntk(), qm.SGD(0.1, 20)

    def found():
        critical = qm.critical_learning_rate(ntk, sgd, norm="exact")
        at = qm.SGD(0.6 * critical, 20)
        return [
            critical,
            qm.noise_kernel_norm(ntk, at, norm="exact"),
            qm.edge_of_stability(ntk, at),
            qm.late_time_rate(ntk, at),
        ]

    exact = found()
    monkeypatch.setattr(_inputs, "SINGLE_FROM", 500)
    single = found()
    np.testing.assert_allclose(single, exact, rtol=2e-5)
    assert single[2] == pytest.approx(exact[2], rel=1e-10)
    assert single[1] != exact[1]


def test_products_that_are_not_quite_symmetric_give_a_symmetric_matrix():
    matrix = np.array([[2.0, 1.0], [1.0 + 1e-6, 3.0]])
    found = streaming.matrix_of("ntk", lambda units: matrix @ units, 2)
    np.testing.assert_allclose(found, [[2.0, 1.0 + 5e-7], [1.0 + 5e-7, 3.0]], rtol=1e-15)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rounding_of_single_precision_is_no_eigenvalue(scale, monkeypatch):
    """Whatever the units, and where the largest eigenvalue stands alone."""
    monkeypatch.setattr(_inputs, "SINGLE_FROM", 50)
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((60, 60)))[0]
    values = np.r_[1.0, 1e-4, 3e-6, np.zeros(57)] * scale
    ntk = (orthogonal * values) @ orthogonal.T
    found = _inputs.as_finite_spectrum(0.5 * (ntk + ntk.T))
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.eigenvalues[:3], values[:3], rtol=0, atol=2e-7 * scale)
    assert found.eigenvalues[0] == pytest.approx(scale, rel=1e-12)
    rest = found.eigenvalues[3:]
    assert (rest == 0).sum() > 30
    assert rest.max() < 1e-6 * scale
    assert ((rest == 0) | (rest >= 0.99e-7 * scale)).all()
