"""Count of cores: what the process may use, not what the machine has."""

import os

import pytest

from quadmodel._util import threads
from quadmodel._util.checks import InputError


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch, tmp_path):
    """A process that may run on 16 cores, in a container that says nothing about its quota."""
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "_QUOTA_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(
        threads, "_QUOTA_V1", (tmp_path / "cpu.cfs_quota_us", tmp_path / "cpu.cfs_period_us")
    )
    return tmp_path


def test_the_cores_of_the_affinity():
    assert threads.available_cores() == threads.as_threads(None) == 16


def test_where_no_affinity_is_known(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert threads.available_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.available_cores() == 1


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # one core and a half keeps two threads busy
        ("10000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("0 100000\n", 16),
        ("", 16),
        ("nonsense", 16),
    ],
)
def test_a_containers_quota(sixteen_cores, content, cores):
    (sixteen_cores / "cpu.max").write_text(content)
    assert threads.available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("300000", 3)])
def test_a_quota_as_older_systems_give_it(sixteen_cores, quota, cores):
    (sixteen_cores / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (sixteen_cores / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.available_cores() == cores


@pytest.mark.parametrize(("chosen", "cores"), [("3", 3), ("32", 32), ("0", 16), ("many", 16)])
def test_a_choice_by_environment_wins(monkeypatch, chosen, cores):
    monkeypatch.setenv("NUMBA_NUM_THREADS", chosen)
    assert threads.available_cores() == cores


def test_a_number_of_threads_is_checked():
    assert threads.as_threads(7) == 7
    for wrong in (0, 1.5, "two", True):
        with pytest.raises(InputError, match=r"^threads must be an integer >= 1, got"):
            threads.as_threads(wrong)


def test_pieces_that_are_done_are_counted_one_by_one():
    counted = []
    with threads.workers(3) as pool:
        assert pool.map(lambda n: n * n, range(20), done=counted.append) == [
            n * n for n in range(20)
        ]
    assert counted == [1] * 20
    assert threads.CALLER_ONLY.map(str, [1, 2]) == ["1", "2"]
