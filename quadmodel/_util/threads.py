"""The one pool of threads, and the one count of the cores that it may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, local
from threading import enumerate as enumerate_threads
from typing import Any

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import as_integer

# Where Linux tells how much processor time a container may use: version 2 holds quota and period
# in one file, version 1 in two.
_CGROUP = Path("/sys/fs/cgroup")
_QUOTA_V2 = _CGROUP / "cpu.max"
_QUOTA_V1 = (_CGROUP / "cpu/cpu.cfs_quota_us", _CGROUP / "cpu/cpu.cfs_period_us")

# Multiplications that a compiled loop takes before it can be stopped: a fraction of a second.
_SHORT = 2.0**26
# Seconds that an interrupted caller waits for other threads to give up their pieces.
_PATIENCE = 1.0
_NAME = "quadmodel"


def available_cores() -> int:
    """Return how many cores this process may keep busy.

    Returns
    -------
    int
        ``NUMBA_NUM_THREADS`` where it is set; else the cores that the process is allowed to run on,
        or fewer where its container has a quota of processor time.
    """
    chosen = os.environ.get("NUMBA_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, _cores_of_quota(cores)))


def as_threads(value: Any) -> int:
    """Return a checked number of threads; all available cores if None."""
    return available_cores() if value is None else as_integer("threads", value)


def _cores_of_quota(otherwise: int) -> int:
    """Return the cores that the container's quota amounts to, rounded up."""
    try:
        fields = (
            _QUOTA_V2.read_text().split()
            if _QUOTA_V2.exists()
            else [path.read_text().strip() for path in _QUOTA_V1]
        )
        quota, period = int(fields[0]), int(fields[1])  # "max": no quota, not a number
    except (OSError, ValueError, IndexError):
        return otherwise
    return -(-quota // period) if quota > 0 and period > 0 else otherwise


class Stopped(KeyboardInterrupt):
    """Ends a piece of work whose caller was interrupted, or another piece of which has failed.

    Callers meet it in the first case only, where the interrupt itself was lost.
    """


class _Flag:
    """Whether the pieces of one `map` are to end; those of maps within pieces ask it too."""

    def __init__(self, above: _Flag | None) -> None:
        self.raised, self._above = False, above

    def asked(self) -> bool:
        return self.raised or (self._above is not None and self._above.asked())


# Whether the process was interrupted: above the flags of all maps. Python loses an exception that
# a signal's handler raises within a finalizer, and compiling calls thousands of these.
_process = _Flag(None)
_here = local()  # `flag`: that of the piece which this thread works on


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], None]]:
    """Yield what a signal's handler calls before it raises: work ends even if that is lost."""

    def note() -> None:
        _process.raised = True

    try:
        yield note
    finally:
        _process.raised = False


def stop_if_asked() -> None:
    """Raise Stopped in a piece of work that nobody waits for any more.

    Called between compiled loops of well below a second each: these can't be interrupted.
    """
    if getattr(_here, "flag", _process).asked():
        raise Stopped


def give_way() -> None:
    """Let another thread have this one's core, if one waits for it."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


def stretches(first: int, count: int, cost: float) -> Iterator[tuple[int, int]]:
    """Cut `count` steps from `first` on, of `cost` multiplications each, into short stretches.

    Yields first step and number of steps; between two of them a piece of work may be stopped. How
    steps are cut must not change results.
    """
    at_once = steps_at_once(cost)
    for step in range(first, first + count, at_once):
        stop_if_asked()
        yield step, min(at_once, first + count - step)


def steps_at_once(cost: float) -> int:
    """Return how many steps of `cost` multiplications take well below a second."""
    return max(1, int(_SHORT / max(cost, 1.0)))


def short_pieces(cost: float) -> int:
    """Return how many pieces work of `cost` multiplications is to be cut into."""
    return max(1, -int(-cost // _SHORT))


class Workers:
    """Threads of a pool and the calling one; compiled kernels and BLAS release the interpreter."""

    def __init__(self, pool: ThreadPoolExecutor | None, threads: int) -> None:
        """Wrap a pool of one thread less than are to work, since the caller works too."""
        self._pool, self.threads = pool, threads
        self.given_up = False  # whether a thread still works on what nobody waits for

    def map(
        self,
        work: Callable[[Any], Any],
        pieces: Sequence[Any],
        *,
        done: Callable[[int], object] = lambda count: None,
    ) -> list[Any]:
        """Run `work` on every piece and return the results in order.

        Each thread takes the next piece when it is done with one: waking a thread takes longer than
        many a piece, and the caller need not wait for it. `done(1)` is called after every piece, by
        one thread at a time. After a failure or an interrupt nobody begins another piece, and those
        that have begun end at their next `stop_if_asked`.
        """
        results: list[Any] = [None] * len(pieces)
        left, lock = iter(range(len(pieces))), Lock()  # taking the next one is atomic
        above = getattr(_here, "flag", _process)
        flag = _Flag(above)

        def work_on() -> None:
            before, _here.flag = getattr(_here, "flag", _process), flag
            try:
                for k in left:
                    stop_if_asked()
                    results[k] = work(pieces[k])
                    with lock:
                        done(1)
            except BaseException:
                flag.raised = True
                raise
            finally:
                _here.flag = before
                for _ in left:
                    pass

        submitted: list[Future[None]] = []
        try:
            if self._pool is not None:
                for _ in range(min(self.threads, len(pieces)) - 1):
                    submitted.append(self._pool.submit(work_on))
            work_on()
            wait(_begun(submitted))
        except BaseException as failure:
            flag.raised = True
            for _ in left:
                pass
            of_a_piece = isinstance(failure, Exception | Stopped)
            begun, self.given_up = _begun(submitted), not of_a_piece
            self.given_up = bool(wait(begun, None if of_a_piece else _PATIENCE).not_done)
            if not isinstance(failure, Stopped) or above.asked():
                raise
        errors = [error for other in _begun(submitted) if (error := other.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error
        return results


def _begun(submitted: list[Future[None]]) -> list[Future[None]]:
    """Return those that have begun; others, that haven't woken up, have nothing left to do."""
    return [other for other in submitted if not other.cancel()]


# For work that is one piece of a pool's already.
CALLER_ONLY = Workers(None, 1)


@contextmanager
def workers(threads: int | None) -> Iterator[Workers]:
    """Let `threads` work (all available cores if None), with BLAS kept to one thread each."""
    count = threads or available_cores()
    pool = ThreadPoolExecutor(max(count - 1, 1), thread_name_prefix=_NAME)
    some = Workers(pool, count)
    try:
        # Rounding of a product may depend on BLAS's number of threads.
        with one_blas_thread():
            yield some
    finally:
        pool.shutdown(wait=not some.given_up)


def working() -> bool:
    """Return whether a thread still works on what was given up."""
    return any(thread.name.startswith(_NAME) for thread in enumerate_threads())
