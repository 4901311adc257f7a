"""Closed forms over arrays of learning rates and batch sizes: the same numbers, one NTK."""

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError

NTK = qm.Ensemble(12, 20).sample(seed=0).ntk()
SGD = qm.SGD(0.02, 3, momentum=0.3)
RATES, SIZES = [0.1, 0.02, 10.0], [1, 4, 12]


@pytest.fixture
def diagonalisations(monkeypatch):
    """A list that grows by one with every diagonalised matrix of the NTK's size."""
    seen, eigh = [], np.linalg.eigh

    def counted(matrix):
        if matrix.shape == NTK.shape and np.allclose(matrix, NTK):
            seen.append(matrix)
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    return seen


@pytest.mark.parametrize("norm", ["paper", "finite", "exact", None])
def test_noise_kernel_norm(norm, diagonalisations):
    found = qm.noise_kernel_norm(NTK, SGD, norm=norm, learning_rates=RATES, batch_sizes=SIZES)
    assert len(diagonalisations) == 1
    assert found.noise_kernel_norm.dims == ("learning_rate", "batch_size")
    for rate in RATES:
        for size in SIZES:
            at = found.noise_kernel_norm.sel(learning_rate=rate, batch_size=size)
            assert at == qm.noise_kernel_norm(NTK, qm.SGD(rate, size, momentum=0.3), norm=norm)
    assert found.attrs["norm"] == (norm or "exact")
    assert found.attrs["momentum"] == 0.3
    assert not {"learning_rate", "batch_size"} & set(found.attrs)


def test_one_of_the_two():
    found = qm.noise_kernel_norm(NTK, SGD, learning_rates=RATES)
    assert found.noise_kernel_norm.dims == ("learning_rate",)
    assert found.attrs["batch_size"] == 3
    found = qm.noise_kernel_norm(NTK, SGD, batch_sizes=SIZES)
    assert found.noise_kernel_norm.dims == ("batch_size",)
    assert found.attrs["learning_rate"] == 0.02


def test_a_spectral_law():
    law = qm.spectra.MarchenkoPastur(2.0)
    found = qm.noise_kernel_norm(law, SGD, n_data=50, batch_sizes=[1, 2])
    assert found.attrs["jacobian"] == "MarchenkoPastur(ratio=2.0, scale=1.0)"
    assert found.noise_kernel_norm[1] == qm.noise_kernel_norm(
        law, qm.SGD(0.02, 2, momentum=0.3), n_data=50
    )


@pytest.mark.parametrize("norm", ["paper", "exact"])
def test_critical_learning_rate(norm, diagonalisations):
    found = qm.critical_learning_rate(NTK, SGD, norm=norm, level=0.5, batch_sizes=SIZES)
    assert len(diagonalisations) == 1
    for size in SIZES:
        sgd = qm.SGD(1.0, size, momentum=0.3)
        wanted = qm.critical_learning_rate(NTK, sgd, norm=norm, level=0.5)
        assert found.critical_learning_rate.sel(batch_size=size) == wanted


def test_edge_of_stability(diagonalisations):
    found = qm.edge_of_stability(NTK, SGD, learning_rates=RATES, batch_sizes=SIZES)
    assert len(diagonalisations) == 1
    edge = qm.edge_of_stability(NTK, SGD)
    assert (found.edge_of_stability == edge).all()
    np.testing.assert_allclose(found.margin * found.learning_rate, edge, rtol=1e-15)
    assert found.margin.dims == ("learning_rate", "batch_size")
    only = qm.edge_of_stability(NTK, SGD, learning_rates=RATES)
    assert only.edge_of_stability.dims == ()
    assert only.margin.dims == ("learning_rate",)


def test_results_go_together():
    merged = xr.merge(
        [
            qm.noise_kernel_norm(NTK, SGD, learning_rates=RATES, batch_sizes=SIZES),
            qm.critical_learning_rate(NTK, SGD, batch_sizes=SIZES),
            qm.edge_of_stability(NTK, SGD, batch_sizes=SIZES)[["edge_of_stability"]],
        ],
        compat="no_conflicts",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    stable = merged.learning_rate < merged.critical_learning_rate
    assert ((merged.noise_kernel_norm < 1) == stable.transpose("learning_rate", ...)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rates": [0.1, -0.2]}, "learning_rates must be a finite number > 0"),
        ({"learning_rates": []}, "learning_rates must hold at least one"),
        ({"batch_sizes": [1, 13]}, "between 1 and 12, got 13"),
        ({"batch_sizes": [1.5]}, "batch"),
        ({"learning_rates": "fast"}, "learning_rates"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(InputError, match=words):
        qm.noise_kernel_norm(NTK, SGD, **options)


def test_the_batch_size_that_counts_is_checked():
    ntk = np.diag([1.0, 2.0, 3.0])
    too_large = qm.SGD(0.1, 4)
    with pytest.raises(InputError, match="batch_size"):
        qm.noise_kernel_norm(ntk, too_large, learning_rates=[0.1, 0.2])
    found = qm.noise_kernel_norm(ntk, too_large, batch_sizes=[1, 2])
    assert found.sizes == {"batch_size": 2}
    assert list(found.coords) == ["batch_size"]
