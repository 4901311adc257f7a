"""--store, --dry-run, --dask, status, plot, and what an interrupt leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from quadmodel.simulation.growth import measure_growth
from quadmodel.studies import phases
from quadmodel.sweeps import store
from tests.cli.command import OUTPUTS, TINY, written

COMMAND = ["phase-diagram", *TINY]


@pytest.fixture(autouse=True)
def nothing_left(undrawn):
    yield
    store._UNFINISHED.clear()


def result(path="phase-diagram.nc"):
    with xr.open_dataset(path, engine="h5netcdf") as file:
        return file.load()


@pytest.fixture
def interrupt(monkeypatch):
    """Interrupt the simulation of the fourth cell."""

    def begin():
        count = [0]

        def measure(*arguments):
            count[0] += 1
            if count[0] > 3:
                raise KeyboardInterrupt
            return measure_growth(*arguments)

        monkeypatch.setattr(phases, "measure_growth", measure)

    return begin


def test_store_status_and_plot(run, monkeypatch, interrupt):
    assert run(*COMMAND, "--data", "plain.nc", "--picture", "plain.png")[0] == 0
    with monkeypatch.context():
        interrupt()
        code, out, err = run(*COMMAND, "--store", "runs/x", "--threads", "1")
    assert (code, out) == (130, "")
    assert err.lstrip() == (
        "interrupted; 5 finished units are kept in runs/x: the same call goes on with them\n"
    )
    code, out, _ = run("status", "runs/x")
    assert (code, out) == (
        0,
        "phase diagram: 62.5 % of the units done\nedges: 2 of 2\ngrid: 3 of 6\n",
    )
    assert run("plot", "runs/x", "--picture", "half.png")[0] == 0
    monkeypatch.setattr(phases, "measure_growth", measure_growth)
    assert run(*COMMAND, "--store", "runs/x")[0] == 0
    xr.testing.assert_identical(result(), result("plain.nc"))
    assert run("status", "runs/x")[1].splitlines()[0] == "phase diagram: finished"

    def work(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(phases, "measure_growth", work)
    assert run(*COMMAND, "--store", "runs/x", "--overwrite")[0] == 0
    code, out, _ = run("plot", "plain.nc", "--picture", "again.png")
    assert (code, out) == (0, "wrote again.png\n")
    code, _, err = run("plot", "plain.nc")
    assert code == 2
    assert "plain.png must not exist yet" in err
    assert run("plot", "plain.nc", "--overwrite")[0] == 0
    assert {"again.png", "half.png"} < written()


def test_interrupt_without_a_store(run, monkeypatch, interrupt):
    with monkeypatch.context():
        interrupt()
        code, _, err = run(*COMMAND, "--threads", "1")
    assert code == 130
    assert err.lstrip() == (
        "interrupted; 5 finished units are kept in phase-diagram.store: the same command with "
        "--store phase-diagram.store goes on with them\n"
    )
    assert written() == {"phase-diagram.store"}
    store._UNFINISHED.clear()
    monkeypatch.setattr(phases, "measure_growth", measure_growth)
    assert run(*COMMAND, "--store", "phase-diagram.store")[0] == 0
    assert written() == {"phase-diagram.store", *OUTPUTS}


def test_what_an_earlier_interrupt_left_stays(run, interrupt):
    Path("phase-diagram.store").mkdir()
    interrupt()
    err = run(*COMMAND, "--threads", "1")[2]
    assert "kept in phase-diagram1.store:" in err
    assert not list(Path("phase-diagram.store").iterdir())


def test_failures_are_kept_too(run, monkeypatch):
    def measure(model, points, *arguments):
        if points.place.first == 4:
            raise ValueError("unlucky")
        return measure_growth(model, points, *arguments)

    monkeypatch.setattr(phases, "measure_growth", measure)
    code, _, err = run(*COMMAND)
    assert code == 2
    assert "1 of 6 units of stage 'grid' failed twice: unit 4: ValueError('unlucky')" in err
    assert "7 finished units are kept in phase-diagram.store" in err
    assert err.count("\n") == 1


def test_another_store_is_refused(run):
    assert run(*COMMAND, "--store", "x")[0] == 0
    code, _, err = run(*COMMAND, "--store", "x", "--seed", "1", "--overwrite")
    assert code == 2
    assert "store x must be of this sweep, got one with" in err


def test_dry_run(run):
    code, out, err = run(*COMMAND, "--dry-run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "plan of a phase diagram"
    assert lines[2].startswith("grid: 6 units, about")
    assert lines[-1].startswith("time: about ")
    assert written() == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "nowhere"], "must be the folder of a sweep"),
        (["plot", "nowhere.nc"], "must be an existing file"),
        (["plot", "words.nc"], "must be a NetCDF file of a result"),
        (["plot", "other.nc"], "must hold one of phase diagram, boundary,"),
        (["plot", "other.nc", "--picture", "x.gif"], "must hold one of"),
        ([*COMMAND, "--dask", "nowhere"], "--dask must be local or the address of a scheduler"),
        ([*COMMAND, "--store", ""], "store must be the path of a folder"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else value[0],
)
def test_refusals(arguments, words, run, monkeypatch):
    if "--dask" in arguments:
        pytest.importorskip("distributed")
        monkeypatch.setattr("quadmodel.cli._sweeps._PATIENCE", "0.2s")
    Path("words.nc").write_text("words")
    xr.Dataset({"a": 1}, attrs={"kind": "other"}).to_netcdf("other.nc", engine="h5netcdf")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_dask(run):
    distributed = pytest.importorskip("distributed")
    assert run(*COMMAND)[0] == 0
    expected = result()
    assert run(*COMMAND, "--dask", "local", "--threads", "2", "--overwrite")[0] == 0
    xr.testing.assert_identical(result(), expected)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as far:
        assert run(*COMMAND, "--dask", far.scheduler_address, "--overwrite")[0] == 0
    xr.testing.assert_identical(result(), expected)
