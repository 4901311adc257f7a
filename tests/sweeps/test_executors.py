"""The same bits from threads, processes, loky and Dask; workers that fail or are killed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel.sweeps import _execution, store
from quadmodel.sweeps._execution import SweepError
from quadmodel.sweeps._parcel import Job, compute_unit, parcel_of
from quadmodel.sweeps.store import progress_of
from tests.sweeps.toys import Square, double, sweep

ENSEMBLE = qm.Ensemble(12, 24, qm.spectra.PowerLaw(0.5))
CURVED = qm.Ensemble(6, 8, curvature=0.05)


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    store._UNFINISHED.clear()


@pytest.fixture
def marks(tmp_path):
    place = tmp_path / "marks"
    place.mkdir()
    return place


def processes(count=2):
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


@contextmanager
def loky():
    executors = pytest.importorskip("loky")
    with executors.ProcessPoolExecutor(2, timeout=60) as executor:
        yield executor


@contextmanager
def dask(workers=2):
    """A cluster on this machine, of one process per worker."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)


EXECUTORS = {
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": processes,
    "loky": loky,
    "dask": dask,
}


def diagram(source=ENSEMBLE, **running):
    return qm.phase_diagram(source, 6, [1, 4], steps=64, replicas=4, seed=3, **running)


@pytest.fixture(scope="module")
def serial():
    return {source: diagram(source, threads=1) for source in (ENSEMBLE, CURVED)}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_same_bits(name, serial, tmp_path):
    """Also those of a model whose arrays are mapped from a file."""
    model = ENSEMBLE.sample(3)
    with EXECUTORS[name]() as executor:
        for source, expected in serial.items():
            xr.testing.assert_identical(diagram(source, executor=executor), expected)
        toy, ours = sweep(source=np.full(50_000, 1.5), executor=executor, store=tmp_path / "toy")
        found = diagram(model, executor=executor, store=tmp_path / "x")
    xr.testing.assert_identical(toy, sweep(source=1.5)[0])
    assert (os.getpid() in ours) == (name == "threads")
    kept = found.drop_attrs(deep=False)
    xr.testing.assert_identical(kept, serial[ENSEMBLE].drop_attrs(deep=False))
    assert not (tmp_path / "toy" / "arrays.bin").exists()


def test_two_threads(serial):
    for source, expected in serial.items():
        xr.testing.assert_identical(diagram(source, threads=2), expected)


def test_arrays_are_mapped(tmp_path):
    """Large ones go through a file, and what a worker writes to them stays with it."""
    source = {"large": np.arange(50_000.0), "small": np.arange(3)}
    with parcel_of(Job(double, source, None), "key", tmp_path) as parcel:
        assert len(parcel.pickled) < 1000
        for _ in range(2):
            found = parcel.unpacked()
            np.testing.assert_array_equal(found["large"], source["large"])
            found["large"][:] = 0.0
    assert not list(tmp_path.iterdir())
    with parcel_of(Job(double, 1.0, None), "key", tmp_path) as parcel:
        assert not list(tmp_path.iterdir())
        record = compute_unit(parcel, Square(3))
    assert record["square"] == 9


class Inline(ThreadPoolExecutor):
    """Counts what waits for it."""

    def __init__(self):
        super().__init__(1)
        self.waiting, self.most, self.submitted = 0, 0, 0

    def submit(self, *arguments):
        self.waiting, self.submitted = self.waiting + 1, self.submitted + 1
        self.most = max(self.most, self.waiting)
        future = super().submit(*arguments)
        future.add_done_callback(self.end)
        return future

    def end(self, _):
        self.waiting -= 1


def test_submission_is_bounded(monkeypatch):
    monkeypatch.setattr(_execution, "_AHEAD", 7)
    with Inline() as executor:
        sweep(50, executor=executor)
    assert executor.submitted == 100
    assert executor.most <= 7


def test_failures_are_tried_again_and_reported(tmp_path, marks):
    trouble = {2: "once", 3: "always", 5: "always"}
    with Inline() as executor:
        with pytest.raises(SweepError, match="2 of 10 units of stage 'first stage' failed twice"):
            sweep(trouble=trouble, marks=marks, executor=executor, store=tmp_path / "x")
        assert executor.submitted == 13
        with pytest.raises(MemoryError):
            sweep(trouble={1: "memory"}, marks=marks, executor=executor)
        found, _ = sweep(executor=executor, store=tmp_path / "x")
    xr.testing.assert_identical(found, sweep()[0])


class Cancels(ThreadPoolExecutor):
    """Cancels what it is given first."""

    def submit(self, *arguments):
        future = super().submit(*arguments)
        if not hasattr(self, "cancelled"):
            self.cancelled = future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


def test_cancelled_units_are_submitted_again():
    with Cancels(1) as executor:
        found, _ = sweep(executor=executor)
    xr.testing.assert_identical(found, sweep()[0])


@pytest.mark.slow
def test_a_process_that_dies_breaks_the_pool_only(tmp_path, marks):
    options = {"marks": marks, "store": tmp_path / "x"}
    with processes(1) as executor, pytest.raises(BrokenExecutor):
        sweep(trouble={5: "die"}, executor=executor, **options)
    assert progress_of(tmp_path / "x").done["first stage"] >= 1
    with processes(1) as executor:
        found, _ = sweep(executor=executor, **options)
    xr.testing.assert_identical(found, sweep()[0])


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_is_replaced(tmp_path, marks):
    """By SIGKILL while it works: the same bits, and nothing for the caller to do."""
    slow = dict.fromkeys(range(40), "slow")
    with dask() as executor:
        client = executor._client
        victim = client.submit(os.getpid, pure=False).result()

        class Kills(Inline):
            def submit(self, *arguments):
                self.submitted += 1
                if self.submitted == 20:
                    os.kill(victim, signal.SIGKILL)
                return executor.submit(*arguments)

        with Kills() as killing:
            found, _ = sweep(40, trouble=slow, marks=marks, executor=killing, store=tmp_path / "x")
    xr.testing.assert_identical(found, sweep(40)[0])
