"""Threads that share pieces of work."""

from __future__ import annotations

import threading
import time

import pytest

from quadmodel._util.threads import Stopped, stop_if_asked, stretches, workers, working


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_piece_is_done_once_and_in_its_place(threads):
    done = []

    def work(piece):
        time.sleep(0.001 * (piece % 3))
        done.append(piece)
        return piece**2

    with workers(threads) as pool:
        for count in (0, 1, 3, 40):
            done.clear()
            assert pool.map(work, range(count)) == [k**2 for k in range(count)]
            assert sorted(done) == list(range(count))


def test_threads_work_beside_each_other():
    """Each piece waits for the other, which one thread alone could not do."""
    meeting = threading.Barrier(2, timeout=20)
    names = set()

    def work(piece):
        meeting.wait()
        names.add(threading.current_thread().name)

    with workers(2) as pool:
        pool.map(work, range(2))
    assert len(names) == 2
    assert threading.current_thread().name in names


@pytest.mark.parametrize("whose", ["caller", "other"])
def test_failures_come_out_and_stop_the_rest(whose):
    caller, meeting = threading.current_thread(), threading.Barrier(2, timeout=20)
    begun = []

    def work(piece):
        begun.append(piece)
        if piece < 2:
            meeting.wait()
            if (threading.current_thread() is caller) == (whose == "caller"):
                raise ValueError("this piece")
            time.sleep(0.2)

    with workers(2) as pool, pytest.raises(ValueError, match="this piece"):
        pool.map(work, range(100))
    assert len(begun) < 10


@pytest.mark.parametrize("whose", ["caller", "other"])
def test_begun_pieces_are_stopped_by_a_failure(whose):
    """The error that comes out is the one that was raised, not that others were stopped."""
    caller, meeting = threading.current_thread(), threading.Barrier(2, timeout=20)
    stopped = []

    def work(piece):
        meeting.wait()
        if (threading.current_thread() is caller) == (whose == "caller"):
            raise ValueError("this piece")
        try:
            for _ in stretches(0, 10**6, 1e9):
                time.sleep(0.01)
        except Stopped:
            stopped.append(piece)
            raise

    with workers(2) as pool, pytest.raises(ValueError, match="this piece"):
        pool.map(work, range(2))
    assert len(stopped) == 1
    stop_if_asked()  # the flag is not left behind


def test_pieces_of_pieces_are_stopped():
    """A call with threads of its own, made in a piece of work."""
    meeting, ended = threading.Barrier(2, timeout=20), []

    def inner(_):
        for _ in stretches(0, 10**6, 1e9):
            time.sleep(0.01)

    def work(piece):
        meeting.wait()
        if piece == 0:
            time.sleep(0.1)
            raise KeyError
        try:
            with workers(2) as pool:
                pool.map(inner, range(4))
        finally:
            ended.append(piece)

    with workers(2) as pool, pytest.raises(KeyError):
        pool.map(work, range(2))
    assert ended == [1]


def test_an_interrupt_does_not_wait_for_what_cannot_be_stopped():
    caller, release = threading.current_thread(), threading.Event()

    def work(_):
        if threading.current_thread() is caller:
            time.sleep(0.1)
            raise KeyboardInterrupt
        release.wait(20)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), workers(2) as pool:
        pool.map(work, range(2))
    assert time.monotonic() - began < 10
    assert working()
    release.set()
    deadline = time.monotonic() + 10
    while working() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not working()


def test_stretches_hold_every_step_once():
    for first, count, cost in ((0, 10, 1.0), (5, 7, 2.0**24), (3, 4, 1e30), (2, 0, 1.0)):
        found = [
            step for start, n in stretches(first, count, cost) for step in range(start, start + n)
        ]
        assert found == list(range(first, first + count))
