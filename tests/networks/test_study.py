"""Grids of trainings, what tells divergence, their pictures, and the command."""

import sys

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from tests.networks.nets import inputs_for, small_net, torch
from tests.networks.test_data import digits, write_idx

SIZES, SHARES = [2, 9], [0.3, 3.0]


def small_grid(**options):
    """Return a grid of a small network."""
    targets = torch.as_tensor(np.random.default_rng(3).standard_normal((9, 1)))
    probe = qm.networks.Probe(every=20)
    arguments = {"replicas": 2, "probe": probe, **options}
    return qm.networks.train_grid(small_net, inputs_for(9), targets, SIZES, SHARES, 60, **arguments)


def made_up(scores, ended):
    """Return a grid whose runs have given scores, growing to their last one."""
    steps = np.arange(0, 101, 20)
    values = np.array(scores)[:, None] * np.linspace(0.5, 1, len(steps))
    losses = np.ones_like(values)
    for row, end in enumerate(ended):
        if end >= 0:
            values[row, steps > end], losses[row, steps > end] = np.nan, np.inf
    dims = ("batch_size", "share", "replica")
    shape = (1, 1, len(scores))
    return xr.Dataset(
        {
            "loss": ((*dims, "step"), losses.reshape(*shape, -1)),
            "noise_kernel_norm_exact": ((*dims, "step"), values.reshape(*shape, -1)),
            "divergence_step": (dims, np.array(ended).reshape(shape)),
        },
        {"batch_size": [1], "share": [1.0], "replica": np.arange(len(scores)), "step": steps},
    )


def test_learning_rates_are_shares_of_the_critical_one():
    found = small_grid()
    assert dict(found.loss.sizes) == {"batch_size": 2, "share": 2, "replica": 2, "step": 4}
    kernel = qm.networks.ntk(small_net(), inputs_for(9))
    for size in SIZES:
        wanted = qm.critical_learning_rate(kernel, qm.SGD(1.0, size), norm="finite")
        rates = found.learning_rate.sel(batch_size=size, replica=0)
        np.testing.assert_allclose(rates, wanted * np.array(SHARES), rtol=2e-3)
    start = found.isel(step=0)
    np.testing.assert_allclose(
        start.scaled_largest_eigenvalue, found.learning_rate * start.ntk_largest_eigenvalue
    )
    # The same networks and batches at every learning rate.
    assert (start.loss == start.loss[0, 0]).all()


def test_areas():
    bad = made_up([3.0, 2.0, 5.0, 1.0, 1.5], [60, 60, 80, -1, -1])
    areas = qm.networks.separation(bad, leads=[0, 40, 70], draws=50)
    # Largest values up to the end, 40 and 70 steps before it, against 1 and 1.5.
    assert areas.auc.sel(lead=0).item() == 1.0
    assert areas.auc_low.sel(lead=0).item() == 1.0
    assert areas.auc.sel(lead=40).item() == pytest.approx(5.0 / 6)
    assert areas.diverged.values.tolist() == [3, 3, 1]
    assert areas.attrs["converged"] == 2
    mixed = made_up([1.0, 2.0, 1.0, 2.0], [80, 80, -1, -1])
    areas = qm.networks.separation(mixed, draws=200)
    assert areas.auc.item() == pytest.approx(0.25)
    assert areas.auc_low.item() < 0.25 < areas.auc_high.item()
    none = qm.networks.separation(made_up([1.0, 2.0], [-1, -1]))
    assert np.isnan(none.auc.item())
    with pytest.raises(ValueError, match="found must hold one of"):
        qm.networks.separation(bad.drop_vars("noise_kernel_norm_exact"))
    with pytest.raises(ValueError, match=r"Dataset from train_grid\(\)"):
        qm.networks.separation(xr.Dataset())


def test_pictures():
    mpl.use("agg")
    found = small_grid(replicas=1)
    assert len(qm.plot.network_runs(found)) == 4
    lines = qm.plot.network_runs(found, quantity="scaled_largest_eigenvalue")
    assert len(lines) == 4
    assert len(qm.plot.network_outcomes(found)) == 4
    areas = qm.networks.separation(made_up([3.0, 2.0, 1.0], [60, -1, -1]), leads=[0, 20])
    assert len(qm.plot.separation(areas)) == 2
    with pytest.raises(ValueError, match="runs that diverged and runs that didn't"):
        qm.plot.separation(qm.networks.separation(made_up([1.0, 2.0], [-1, -1])))
    with pytest.raises(ValueError, match=r"Dataset from train_grid\(\)"):
        qm.plot.network_runs(xr.Dataset())


def run(monkeypatch, *arguments):
    """Run the command; return its exit code."""
    from quadmodel.cli import main

    monkeypatch.setattr(sys, "argv", ["quadmodel", "network", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images, classes = digits(12)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", classes)
    small = [
        "--path", ".", "--n-data", "12", "--steps", "20", "--record-every", "10", "--replicas", "1",
        "--batch-sizes", "2", "--shares", "0.3,4", "--width", "4",
    ]  # fmt: skip
    assert not run(monkeypatch, *small)
    said = capsys.readouterr().out
    assert "12 points of mnist (parity), K measured on 12 of them" in said
    assert "exact K" in said
    with xr.open_dataset("network.nc", engine="h5netcdf") as found:
        assert found.loss.sizes["step"] == 3
        assert found.attrs["model"] == "fc"
    assert (tmp_path / "network.png").stat().st_size > 10_000
    for arguments, complaint in (
        (["--model", "language"], "--data-set must be text for --model language, got mnist"),
        (["--loss", "cross_entropy", "--labels", "parity"], "--labels must not be given"),
        (["--data-set", "cifar10"], "--path must be given with --data-set cifar10"),
    ):
        assert run(monkeypatch, *arguments, "--overwrite") == 2
        assert complaint in capsys.readouterr().err
