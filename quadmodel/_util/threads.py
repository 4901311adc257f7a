"""The one pool of threads, and the one count of the cores that it may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import scipy.linalg.cython_blas  # noqa: F401  Numba's np.dot uses it; it must be there to be limited
from threadpoolctl import threadpool_limits

from quadmodel._util.checks import as_integer

# Where Linux tells how much processor time a container may use: version 2 holds quota and period
# in one file, version 1 in two.
_CGROUP = Path("/sys/fs/cgroup")
_QUOTA_V2 = _CGROUP / "cpu.max"
_QUOTA_V1 = (_CGROUP / "cpu/cpu.cfs_quota_us", _CGROUP / "cpu/cpu.cfs_period_us")


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


class Workers:
    """Threads of a pool and the calling one; compiled kernels and BLAS release the interpreter."""

    def __init__(self, pool: ThreadPoolExecutor | None, threads: int) -> None:
        """Wrap a pool of one thread less than are to work, since the caller works too."""
        self._pool, self.threads = pool, threads

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
        one thread at a time.
        """
        results: list[Any] = [None] * len(pieces)
        left, lock = iter(range(len(pieces))), Lock()  # taking the next one is atomic

        def work_on() -> None:
            try:
                for k in left:
                    results[k] = work(pieces[k])
                    with lock:
                        done(1)
            finally:
                # After a failure nobody begins another piece.
                for _ in left:
                    pass

        pool, others = self._pool, min(self.threads, len(pieces)) - 1
        submitted = [pool.submit(work_on) for _ in range(others)] if pool is not None else []
        try:
            work_on()
        finally:
            # Those that haven't woken up have nothing left to do.
            begun = [other for other in submitted if not other.cancel()]
            wait(begun)
        for other in begun:
            other.result()
        return results


# For work that is one piece of a pool's already.
CALLER_ONLY = Workers(None, 1)


@contextmanager
def workers(threads: int | None) -> Iterator[Workers]:
    """Let `threads` work (all available cores if None), with BLAS kept to one thread each."""
    count = threads or available_cores()
    with (
        # Rounding of a product may depend on BLAS's number of threads.
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(max(count - 1, 1)) as pool,
    ):
        yield Workers(pool, count)
