"""Units computed by this process's threads, or by an executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import InputError
from quadmodel._util.threads import CALLER_ONLY, Workers, workers
from quadmodel.sweeps._parcel import Job, Parcel, Unit, compute_unit, parcel_of
from quadmodel.sweeps._records import Record

# Units that an executor has at a time: enough for so many workers.
_AHEAD = 512
# Errors that the same unit would meet again.
_FINAL = (InputError, MemoryError)

# Computes units by their numbers, and hands over records; returns errors of units that failed.
Keep = Callable[[int, Record], None]
Compute = Callable[[Sequence[Unit], Iterable[int], Keep], dict[int, Exception]]


class SweepError(RuntimeError):
    """Some units of a sweep failed; the others are kept.

    Examples
    --------
    Store what is finished, to go on from there after the reason is gone:

    >>> import quadmodel as qm
    >>> try:
    ...     grid = qm.phase_diagram(qm.Ensemble(10, 20), 4, [1, 2], steps=32, replicas=2)
    ... except qm.sweeps.SweepError as error:
    ...     print(error)
    """


@contextmanager
def by_threads(job: Job, threads: int | None) -> Iterator[Compute]:
    """Compute units by threads of this process."""
    with workers(threads) as pool:

        def compute(
            units: Sequence[Unit], wanted: Iterable[int], keep: Keep
        ) -> dict[int, Exception]:
            failed: dict[int, Exception] = {}
            numbers = list(wanted)
            # Few units: one after the other, with all threads.
            alone = job.alone or len(numbers) < pool.threads
            helpers = pool if alone else CALLER_ONLY

            def work(number: int) -> None:
                try:
                    record = _attempt(job, units[number], helpers)
                except _FINAL:
                    raise
                except Exception as error:
                    failed[number] = error
                else:
                    keep(number, record)

            if alone:
                for number in numbers:
                    work(number)
            else:
                pool.map(work, numbers)
            return failed

        yield compute


def _attempt(job: Job, unit: Unit, helpers: Workers) -> Record:
    """Compute a unit, once more if that fails."""
    try:
        return unit.compute(job.kept, helpers)
    except _FINAL:
        raise
    except Exception:
        return unit.compute(job.kept, helpers)


@contextmanager
def by_executor(job: Job, executor: Executor, key: str, folder: Path | None) -> Iterator[Compute]:
    """Compute units by an executor, to whose processes large arrays come through `folder`."""
    with (
        one_blas_thread(),  # for an executor whose workers are threads of this process
        TemporaryDirectory(prefix="quadmodel-") as otherwise,
        parcel_of(job, key, folder or Path(otherwise)) as parcel,
    ):

        def compute(
            units: Sequence[Unit], wanted: Iterable[int], keep: Keep
        ) -> dict[int, Exception]:
            return _distribute(executor, parcel, units, wanted, keep)

        yield compute


def _distribute(
    executor: Executor,
    parcel: Parcel,
    units: Sequence[Unit],
    wanted: Iterable[int],
    keep: Keep,
) -> dict[int, Exception]:
    """Submit units, a bounded number at a time, and keep what comes back."""
    left, failed, tries = iter(wanted), dict[int, Exception](), Counter[int]()
    running: dict[Future[Record], int] = {}
    finished: SimpleQueue[Future[Record]] = SimpleQueue()

    def submit(number: int) -> None:
        tries[number] += 1
        future = executor.submit(compute_unit, parcel, units[number])
        running[future] = number
        future.add_done_callback(finished.put)

    try:
        while True:
            while len(running) < _AHEAD and (number := next(left, None)) is not None:
                submit(number)
            if not running:
                return failed
            future = finished.get()
            number = running.pop(future)
            error = None if future.cancelled() else future.exception()
            if future.cancelled():
                error = RuntimeError("the executor cancelled it")
            if error is None:
                keep(number, future.result())
            elif isinstance(error, (*_FINAL, BrokenExecutor)):
                raise error
            elif tries[number] < 2:
                submit(number)
            else:
                failed[number] = RuntimeError(f"{type(error).__name__}: {error}")
    finally:
        for future in running:
            future.cancel()
