"""Threads that share pieces of work."""

from __future__ import annotations

import threading
import time

import pytest

from quadmodel._util.threads import workers


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
