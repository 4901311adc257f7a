"""Sweeps of toys: stores, resuming, refusals, failures, interrupts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from quadmodel._util.checks import InputError
from quadmodel.sweeps import _records, store
from quadmodel.sweeps._execution import SweepError
from quadmodel.sweeps.store import Folder, progress_of, unfinished
from quadmodel.sweeps.sweep import cut, unit_size
from tests.sweeps.toys import sweep

FINISHED = ["lock", "manifest.json", "result.nc", "stages.json"]
ROOT = Path(store.__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    store._UNFINISHED.clear()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "x"


@pytest.fixture
def marks(tmp_path):
    place = tmp_path / "marks"
    place.mkdir()
    return place


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same(first, second):
    xr.testing.assert_identical(first[0], second[0])
    np.testing.assert_array_equal(first[0].value, second[0].value)
    assert {n: v.dtype for n, v in first[0].items()} == {n: v.dtype for n, v in second[0].items()}


def interrupted(folder=None, *, marks, at=6, **options):
    with pytest.raises(KeyboardInterrupt) as stop:
        sweep(trouble={at: "interrupt"}, marks=marks, store=folder, threads=1, **options)
    return str(stop.value)


def test_with_and_without_a_store(folder):
    plain, kept = sweep(), sweep(store=folder)
    same(plain, kept)
    assert names(folder) == FINISHED
    again = sweep(trouble=dict.fromkeys(range(10), "always"), store=folder)  # nothing is computed
    same(plain, again)


def test_manifest(folder, marks):
    interrupted(folder, marks=marks, at=0)
    content = json.loads((folder / "manifest.json").read_text())
    assert content["seed"] == 3
    assert content["specification"] == {"count": 10, "sgd": {"momentum": 0.0}, "seed": 3}
    assert content["hash"] == store.read_manifest(folder).hash
    assert content["quadmodel_version"]
    assert not (folder / "first-stage" / "00000.npz").exists()  # written before the first unit


def test_resume(folder, marks):
    message = interrupted(folder, marks=marks)
    assert message == f"6 finished units are kept in {folder}: the same call goes on with them"
    assert progress_of(folder).done == {"first stage": 6}
    assert progress_of(folder).share == pytest.approx(0.3)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    with pytest.raises(KeyboardInterrupt):
        sweep(trouble={8: "interrupt"}, marks=marks, store=folder, threads=1)
    assert {path: path.stat().st_mtime_ns for path in times} == times  # not computed again
    same(sweep(store=folder), sweep())
    assert progress_of(folder).share == 1.0
    assert progress_of(folder).finished


def test_interrupt_without_a_store(folder, marks):
    message = interrupted(marks=marks)
    assert message.startswith("6 finished units are kept in memory: the same call goes on")
    assert unfinished().kept == 6
    always = dict.fromkeys(range(6), "always")
    same(sweep(trouble=always), sweep())  # the first six were kept
    assert unfinished() is None
    interrupted(marks=marks, at=7)
    unfinished().save(folder)
    assert progress_of(folder).done == {"first stage": 7}
    interrupted(marks=marks, at=8)
    same(sweep(trouble=always, store=folder), sweep())


def test_another_sweep_does_not_go_on_with_what_is_kept(marks):
    interrupted(marks=marks)
    sweep(specification={"seed": 4})
    assert unfinished().kept == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 9}, "got one with count 10 in place of 9"),
        ({"specification": {"seed": 4}}, "got one with seed 3 in place of 4"),
        ({"specification": {"sgd": {"momentum": 0.5}}}, "sgd.momentum 0.0 in place of 0.5"),
        ({"specification": {"more": 1}}, "got one with more None in place of 1"),
    ],
    ids=str,
)
def test_another_specification_is_refused(options, message, folder, marks):
    interrupted(folder, marks=marks)
    before = {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    with pytest.raises(InputError, match=message) as refused:
        sweep(store=folder, **options)
    assert "\n" not in str(refused.value)
    assert {name: (folder / name).stat().st_mtime_ns for name in names(folder)} == before


def test_another_version_is_refused(folder, marks, monkeypatch):
    interrupted(folder, marks=marks)
    text = (folder / "manifest.json").read_text()
    version = json.loads(text)["quadmodel_version"]
    (folder / "manifest.json").write_text(text.replace(f'"{version}"', '"0.0.1"'))
    with pytest.raises(InputError, match=r"quadmodel_version '0\.0\.1' in place of"):
        sweep(store=folder)


@pytest.mark.parametrize("kind", ["a file", "other files", "damaged", "no manifest"])
def test_what_is_no_store_is_refused(kind, folder):
    folder.parent.mkdir()
    if kind == "a file":
        folder.write_text("precious")
    else:
        folder.mkdir()
        (folder / ("manifest.json" if kind == "damaged" else "precious")).write_text("{")
    if kind == "no manifest":
        with pytest.raises(InputError, match=r"got one without manifest\.json"):
            progress_of(folder)
        return
    with pytest.raises(InputError) as refused:
        sweep(store=folder)
    assert "\n" not in str(refused.value)
    assert len(names(folder.parent)) == 1


@pytest.mark.parametrize("value", ["", 3, "a\0b"])
def test_store_must_be_a_path(value):
    with pytest.raises(InputError, match=r"^store must be the path of a folder"):
        sweep(store=value)


def test_options_are_checked():
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        sweep(thread=2)
    with pytest.raises(InputError, match=r"^executor must be a concurrent\.futures\.Executor"):
        sweep(executor=2)
    with pytest.raises(InputError, match=r"^threads must be"):
        sweep(threads=0)


def test_damaged_records_are_computed_again(folder, marks):
    interrupted(folder, marks=marks)
    first = folder / "first-stage"
    content = (first / "00001.npz").read_bytes()
    (first / "00001.npz").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 255
    (first / "00002.npz").write_bytes(flipped)
    (first / "00003.npz").write_bytes(b"")
    assert sorted(Folder(folder).records("first stage", 10)) == [0, 4, 5]
    same(sweep(store=folder), sweep())


def test_what_killed_processes_leave_is_removed(folder, marks):
    interrupted(folder, marks=marks)
    (folder / "first-stage" / "00007.npz.123.part").write_bytes(b"half")
    (folder / "result.nc.123.part").write_bytes(b"half")
    same(sweep(store=folder), sweep())
    assert names(folder) == FINISHED


def test_records_left_beside_a_result_are_removed(folder, monkeypatch):
    """As after a kill between the two."""
    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
        sweep(store=folder)
    assert len(names(folder)) > 20
    sweep(store=folder)
    assert names(folder) == FINISHED


def test_one_writer_at_a_time(folder):
    """In one process, and from another one; the lock of a dead one is free."""
    code = """
import sys
from tests.sweeps.toys import sweep
sys.stdout.write(str(float(sweep(store=sys.argv[1])[0].value.sum())))
"""
    command = [sys.executable, "-c", code, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []

    def other_process():
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        said.append(done.stderr)

    class Meanwhile(ThreadPoolExecutor):
        def submit(self, *arguments):
            if not said:
                other_process()
                with pytest.raises(InputError, match="got one that this process writes"):
                    sweep(store=folder)
            return super().submit(*arguments)

    with Meanwhile(1) as executor:
        kept = sweep(store=folder, executor=executor)
    assert f"must not be in use, got one that process {os.getpid()} on" in said[0]
    same(kept, sweep())
    assert "process" in (folder / "lock").read_text()
    sweep(store=folder)


def test_failures_are_tried_again_and_reported(folder, marks):
    trouble = {2: "once", 3: "always", 5: "always"}
    with pytest.raises(SweepError) as failed:
        sweep(trouble=trouble, marks=marks, store=folder)
    assert str(failed.value) == (
        "2 of 10 units of stage 'first stage' failed twice: "
        "unit 3: ValueError('3 is unlucky'); unit 5: ValueError('5 is unlucky'); "
        f"8 finished units are kept in {folder}: the same call goes on with them"
    )
    same(sweep(store=folder), sweep())


def test_failures_without_a_store(marks):
    with pytest.raises(SweepError, match="9 finished units are kept in memory"):
        sweep(trouble={3: "always"}, marks=marks)
    same(sweep(trouble={2: "always"}), sweep())


def test_want_of_memory_is_final(folder, marks):
    with pytest.raises(MemoryError, match="no memory for it"):
        sweep(trouble={3: "memory"}, marks=marks, store=folder, threads=1)
    assert progress_of(folder).done == {"first stage": 3}


def test_full_disk(folder, monkeypatch):
    """Not even a part of a record remains, and the sweep goes on when there is space again."""
    fsync, count = os.fsync, [0]

    def full(handle):
        count[0] += 1
        if count[0] > 7:
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(_records.os, "fsync", full)
        with pytest.raises(OSError, match="got No space left on device; 5 finished units") as error:
            sweep(store=folder, threads=1)
    assert error.value.errno == 28
    assert not list(folder.rglob("*.part"))
    assert progress_of(folder).done == {"first stage": 5}
    same(sweep(store=folder), sweep())


def test_sizes_of_units():
    assert unit_size(288, 1e3) == 3
    assert unit_size(288, 1e12) == 1
    assert unit_size(1, 1e3) == 1
    assert unit_size(0, 1e3) == 1
    size = unit_size(10**6, 1e12)
    assert 10**6 / size <= 3000
    assert cut(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert cut(0, 3) == []
