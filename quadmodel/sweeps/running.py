"""How a sweep runs, which its result does not depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from quadmodel._util.checks import InputError, as_integer, shown


class Running(TypedDict, total=False):
    """How a sweep runs: options that all sweeps share.

    Parameters
    ----------
    threads : int, optional
        Worker threads of this process; all available cores by default.
    progress : bool, optional
        Show what is done, how long the rest takes and how many grid points are undecided, on a
        terminal or in a notebook: so by default.
    store : path-like, optional
        Folder for what is finished, a record per unit of work. The same call goes on where a
        process was stopped, or returns the finished result.
    executor : concurrent.futures.Executor, optional
        Who computes, in place of threads: processes, loky, a Dask client's
        ``get_executor(pure=False)``, MPI. Units of work carry specification and seed; a worker
        draws its model itself, or maps arrays that were given from one file, in `store` if there is
        one.
    dry_run : bool, optional
        Compute a few units only, and raise :class:`quadmodel.sweeps.DryRun`, whose text says how
        many units there are, what they take on disk, and about how long.

    Raises
    ------
    InputError
        By the sweeps, if a value is of the wrong kind, if another process writes the store, or if
        it holds another sweep: the message names the first field that differs.
    OSError
        If the store can't be written, as when the disk is full: what is finished is kept.
    quadmodel.sweeps.SweepError
        If units of work failed twice: all others are finished and kept.

    Notes
    -----
    Results are the same bits for every executor and number of threads, and after any interruption.
    A unit's record is written beside its place, brought to disk, and moved there. A finished store
    holds the result as ``result.nc``. Without a store, what is finished stays in memory when a
    sweep is interrupted (Ctrl-C): the same call goes on with it.

    Examples
    --------
    >>> import tempfile, quadmodel as qm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     how: qm.Running = {"store": folder, "threads": 1}
    ...     grid = qm.phase_diagram(qm.Ensemble(10, 20), 4, [1, 2], steps=32, replicas=2, **how)
    >>> grid.sizes["batch_size"]
    2
    """

    threads: int | None
    progress: bool
    store: str | os.PathLike[str] | None
    executor: Executor | None
    dry_run: bool


@dataclass(frozen=True)
class How:
    """Checked options of `Running`."""

    threads: int | None
    progress: bool
    store: Path | None
    executor: Executor | None
    dry_run: bool = False


def as_how(running: Mapping[str, Any]) -> How:
    """Check the options that say how a sweep runs."""
    unknown = [name for name in running if name not in Running.__annotations__]
    if unknown:
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    threads, store = running.get("threads"), running.get("store")
    executor = running.get("executor")
    if store is not None and (
        not isinstance(store, str | os.PathLike) or "\0" in os.fspath(store) or not str(store)
    ):
        raise InputError(f"store must be the path of a folder, got {shown(store)}")
    if executor is not None and not isinstance(executor, Executor):
        raise InputError(
            f"executor must be a concurrent.futures.Executor, got {type(executor).__name__}"
        )
    return How(
        None if threads is None else as_integer("threads", threads),
        bool(running.get("progress", True)),
        None if store is None else Path(store),
        executor,
        bool(running.get("dry_run", False)),
    )
