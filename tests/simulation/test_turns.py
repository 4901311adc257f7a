"""Pieces of steps: each is done once, in its round, whoever comes and goes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import quadmodel as qm
from quadmodel._util.threads import workers
from quadmodel.simulation import _stepper
from quadmodel.simulation._kernels.turns import (
    _RELEASED,
    ENDED,
    WAITING,
    end_piece,
    next_part,
    turns,
)
from quadmodel.simulation._replicas import start_replicas
from quadmodel.simulation._stepper import Stepper, options_of

MODEL, SGD = qm.Ensemble(6, 8, curvature=0.1).sample(0), qm.SGD(0.01, 3)


@njit(nogil=True)
def take_part(replicas, options, limit, buffers, cut):
    return next_part(replicas, options, limit, buffers, cut)


@njit(nogil=True)
def end_part(buffers, cut):
    end_piece(buffers, cut)


def counter_of(cut, replicas):
    """Return a function that takes the next part of some replicas' steps, and its buffers."""
    some = start_replicas(MODEL, np.full(replicas, 0.01), np.full(replicas, 3), np.arange(replicas))
    buffers = Stepper(MODEL, SGD, seed=1)._buffers(replicas, cut.slabs)
    return lambda: take_part(some, options_of(SGD, 1), 1e100, buffers, cut), buffers


def taken(cut, replicas, helpers, leave_after):
    """Return parts as they begin (+1) and end (-1), taken by some threads.

    Each but the caller leaves after some parts, and a new one comes in its place.
    """
    take_next, buffers = counter_of(cut, replicas)
    events, lock = [], threading.Lock()

    def take(most):
        while most > 0:
            part = take_next()
            if part == ENDED:
                return
            if part == WAITING:
                time.sleep(0)
                continue
            with lock:
                events.append((part, 1))
            time.sleep(0)
            with lock:
                events.append((part, -1))
            end_part(buffers, cut)
            most -= 1

    def help_out():
        for _ in range(20):
            take(leave_after)

    others = [threading.Thread(target=help_out) for _ in range(helpers)]
    for other in others:
        other.start()
    take(10**6)
    for other in others:
        other.join()
    return events


def check(events, cut):
    """Assert that steps follow each other, and parts with one slab of gradients too."""
    parts = cut.slabs * cut.rounds
    begun = [part for part, sign in events if sign > 0]
    assert len(begun) == cut.n_steps * parts
    running = []
    for part, sign in events:
        slab = part // cut.rounds
        if sign < 0:
            running.remove(part)
            continue
        # Those of one round only, which add to different slabs.
        assert all(other % cut.rounds == part % cut.rounds for other in running)
        assert slab not in [other // cut.rounds for other in running]
        running.append(part)
    for step in range(cut.n_steps):
        of_step = begun[step * parts : (step + 1) * parts]
        assert sorted(of_step) == list(range(parts))
        assert [part % cut.rounds for part in of_step] == sorted(p % cut.rounds for p in of_step)


@settings(deadline=None)
@given(
    n_steps=st.integers(1, 5), replicas=st.integers(1, 5), chunks=st.integers(1, 5),
    slabs=st.integers(1, 4), rounds=st.integers(1, 3), helpers=st.integers(0, 3),
    leave_after=st.integers(1, 4),
)  # fmt: skip
def test_every_part_once_and_in_its_round(
    n_steps, replicas, chunks, slabs, rounds, helpers, leave_after
):
    cut = turns(7, n_steps, min(chunks, replicas), slabs, rounds)
    check(taken(cut, replicas, helpers, leave_after), cut)


def begun_and_never_ended(cut):
    """Return the parts that are given out while none has ended, and what comes after them."""
    take_next, _ = counter_of(cut, replicas=2)
    parts = []
    while (part := take_next()) >= 0:
        parts.append(part)
    return parts, part


def test_the_next_round_waits_for_parts_that_have_not_ended():
    assert begun_and_never_ended(turns(0, 20, 1, 3, 1)) == ([0, 1, 2], WAITING)


def test_a_round_that_is_released_too_early_is_noticed():
    cut = turns(0, 20, 1, 3, 1)
    cut.counters[_RELEASED] = 81
    parts, last = begun_and_never_ended(cut)
    assert last == ENDED
    with pytest.raises(AssertionError):
        check([(part, 1) for part in parts], cut)


@pytest.mark.parametrize("shared", [False, True])
def test_threads_that_never_come_are_not_waited_for(shared, monkeypatch):
    """A pool whose threads are busy: the caller does it all, with the same result."""
    monkeypatch.setattr(_stepper, "_SHARED_FROM", 0.0 if shared else np.inf)

    def run(pool):
        replicas = start_replicas(MODEL, np.full(9, 0.01), np.full(9, 3), np.arange(9))
        Stepper(MODEL, SGD, seed=1).advance(replicas, 0, 30, pool)
        return replicas.state

    with workers(3) as pool:
        free = run(pool)
        stop = threading.Event()
        for _ in range(2):
            pool._pool.submit(stop.wait)
        busy = run(pool)
        stop.set()
    assert np.array_equal(free, busy)
    assert np.abs(free).max() > 0
