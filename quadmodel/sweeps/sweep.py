"""run_sweep(): stages of units, computed or found in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from quadmodel._util.progress import progress_bar
from quadmodel.sweeps._execution import Compute, SweepError, by_executor, by_threads
from quadmodel.sweeps._parcel import Job, Unit
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.plan import Plan
from quadmodel.sweeps.running import How
from quadmodel.sweeps.store import (
    Folder,
    Manifest,
    Memory,
    Store,
    forget,
    leave,
    open_folder,
    unfinished,
)

if TYPE_CHECKING:
    import xarray as xr

# Units of a stage, at most, that are not kept small by how long they take.
_FEW, _MOST = 96, 3000
# Multiplications after which a unit is to end: some seconds.
_LONG = 2.0**33


class RunsStages(Protocol):
    """Returns records of stages."""

    def run(
        self,
        stage: str,
        units: Sequence[Unit],
        undecided: Callable[[Record], int] | None = None,
    ) -> list[Record]:
        """Return the records of a stage, in the order of its units.

        Units are small and can be pickled; `undecided` counts in a record what is not clear yet.
        """


@dataclass(frozen=True)
class Sweep:
    """A sweep that runs: computes the units that its store doesn't hold."""

    store: Store
    compute: Compute
    progress: bool

    def run(
        self,
        stage: str,
        units: Sequence[Unit],
        undecided: Callable[[Record], int] | None = None,
    ) -> list[Record]:
        """Return the records of a stage, and compute those that are missing."""
        self.store.begin(stage, len(units))
        found = self.store.records(stage, len(units))
        doubtful = 0 if undecided is None else sum(map(undecided, found.values()))
        missing, lock = [n for n in range(len(units)) if n not in found], Lock()
        with progress_bar(
            len(units), what=stage, show=self.progress and bool(missing), initial=len(found)
        ) as bar:

            def keep(number: int, record: Record) -> None:
                nonlocal doubtful
                self.store.keep(stage, number, record)
                with lock:
                    found[number] = record
                    if undecided is not None:
                        doubtful += undecided(record)
                        bar.set_postfix_str(f"{doubtful} undecided", refresh=False)
                    bar.update(1)

            failed = self.compute(units, missing, keep)
        if failed:
            raise self._failure(stage, len(units), failed) from failed[min(failed)]
        return [found[number] for number in range(len(units))]

    def _failure(self, stage: str, count: int, failed: dict[int, Exception]) -> SweepError:
        """Return the error that names the units that failed twice."""
        first = "; ".join(f"unit {n}: {failed[n]!r}" for n in sorted(failed)[:3])
        more = ", ..." if len(failed) > 3 else ""
        return SweepError(
            f"{len(failed)} of {count} units of stage {stage!r} failed twice: {first}{more}; "
            f"{self.store.left()}"
        )


def run_sweep(
    manifest: Manifest, job: Job, how: How, flow: Callable[[RunsStages], xr.Dataset]
) -> xr.Dataset:
    """Return what `flow` makes of the records of its stages, or the result that the store holds.

    Raises InputError where the store is another sweep's or in use, OSError where it can't be
    written, and SweepError where units failed twice; what is finished is kept.
    """
    if how.dry_run:
        plan = Plan(manifest, job, how)
        flow(plan)
        raise plan.end()
    with _store(manifest, how) as store:
        if isinstance(store, Folder) and (found := store.result()) is not None:
            return found
        by = (
            by_threads(job, how.threads)
            if how.executor is None
            else by_executor(job, how.executor, manifest.hash, how.store)
        )
        with by as compute:
            found = flow(Sweep(store, compute, how.progress))
        if isinstance(store, Folder):
            store.finish(found)
        return found


@contextmanager
def _store(manifest: Manifest, how: How) -> Iterator[Store]:
    """Open the store; where the sweep doesn't end, say what is finished and how to go on."""
    before = unfinished(manifest)
    with ExitStack() as opened:
        store: Store = before or Memory(manifest)
        if how.store is not None:
            store = opened.enter_context(open_folder(how.store, manifest))
            if before is not None:
                before.copy_to(store)
        try:
            yield store
        except (KeyboardInterrupt, SweepError) as stop:
            if isinstance(store, Memory):
                leave(store)
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt(store.left()) from None
            raise
    forget(manifest)


def unit_size(count: int, cost: float) -> int:
    """Return how many pieces of work, of `cost` multiplications each, to do in one unit.

    About a hundred units, or as many as take some seconds each, but no more than three thousand: so
    that all stages together have less than ten thousand.
    """
    size = min(-(-count // _FEW), max(int(_LONG / max(cost, 1.0)), 1))
    return max(size, -(-count // _MOST), 1)


def cut(count: int, size: int) -> list[slice]:
    """Cut `count` pieces of work into units of `size`."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
