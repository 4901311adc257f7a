"""The kernel that comes with the package."""

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm

NTKS = ("ntk_initial", "ntk_trained")


@pytest.fixture(scope="module")
def data():
    return qm.datasets.digits_ntk()


def test_contents(data):
    assert set(data.data_vars) == {*NTKS, "residual_initial"}
    assert dict(data.sizes) == {"row": 200, "column": 200}
    assert not data.coords
    for name in NTKS:
        assert data[name].dims == ("row", "column")
        assert data[name].attrs == {"units": "1 / learning rate"}
    assert data.residual_initial.dims == ("row",)
    assert data.residual_initial.attrs == {"units": "residual"}


@pytest.mark.parametrize("name", [*NTKS, "residual_initial"])
def test_finite_floats(data, name):
    assert data[name].dtype.kind == "f"
    assert np.isfinite(data[name].values).all()


@pytest.mark.parametrize("name", NTKS)
def test_symmetric_and_positive(data, name):
    ntk = data[name].values.astype(np.float64)
    np.testing.assert_allclose(ntk, ntk.T, rtol=0, atol=1e-10 * ntk.max())
    eigenvalues = np.linalg.eigvalsh(ntk)
    assert eigenvalues[0] >= -1e-8 * eigenvalues[-1]
    # 200 points and far more parameters: the kernel has full rank.
    assert np.linalg.matrix_rank(ntk) == 200
    assert (np.diag(ntk) > 0).all()


@pytest.mark.parametrize(
    ("name", "trace", "largest"),
    [
        ("ntk_initial", 248.8774814193486, 20.709723173364054),
        ("ntk_trained", 448.092525138598, 35.88141906190927),
    ],
)
def test_trace_and_largest_eigenvalue(data, name, trace, largest):
    ntk = data[name].values
    assert np.trace(ntk) == pytest.approx(trace, rel=1e-6)
    assert np.linalg.eigvalsh(ntk)[-1] == pytest.approx(largest, rel=1e-6)


def test_training_changed_the_kernel(data):
    change = np.linalg.norm(data.ntk_trained - data.ntk_initial)
    assert change > 0.01 * np.linalg.norm(data.ntk_initial)


def test_every_call_reads_anew(data):
    first = qm.datasets.digits_ntk()
    xr.testing.assert_identical(first, data)
    first.ntk_initial[:] = 0
    xr.testing.assert_identical(qm.datasets.digits_ntk(), data)


@pytest.mark.parametrize("name", NTKS)
def test_makes_a_model(data, name):
    model = qm.QuadraticModel.from_ntk(data[name])
    assert (model.n_data, model.n_params) == (200, 200)
    eigenvalues = np.linalg.eigvalsh(data[name].values)[::-1]
    np.testing.assert_allclose(
        np.sort(model.eigensystem[0])[::-1], eigenvalues, rtol=1e-6, atol=1e-9 * eigenvalues[0]
    )


def test_edges_of_a_language_model():
    data = qm.datasets.llm_edge()
    assert data.base_batch_size.values.tolist() == [1, 1, 1, 64, 64, 64]
    assert data.checkpoint_percent.values.tolist() == [10, 50, 100] * 2
    shares = data.unstable_fraction
    assert int(shares.notnull().sum()) == 3 * 15 + 3 * 25
    # As in the file: base batch size 1, half way, batch size 4; the last checkpoint of 64 at 32.
    assert shares.sel(panel=1, batch_size=4).values.tolist() == [0, 0, 0, 0.5, 1]
    assert shares.sel(panel=5, batch_size=32).values.tolist() == [0.7, 1, 1, 1, 1]
    assert shares.sel(panel=0, batch_size=64).isnull().all()
    assert "arXiv:2607.21716" in data.attrs["source"]
