"""Options of commands that run sweeps: threads, a store, Dask, a dry run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quadmodel._util.checks import InputError
from quadmodel._util.threads import as_threads
from quadmodel.cli._click import Decorator, option

if TYPE_CHECKING:
    from quadmodel.sweeps import Running

# Seconds to wait for a scheduler.
_PATIENCE = "10s"

SWEEP: dict[str, Decorator] = {
    "threads": option("--threads", None, "Worker threads.  [default: all cores]", type=int),
    "store": option(
        "--store DIR", None, "Keep what is finished in this folder: the same command goes on where "
        "it was stopped, and draws again what is finished.",
    ),
    "dask": option(
        "--dask WHERE", None, "Compute with Dask: local, for processes on this machine, or the "
        "address of a scheduler.",
    ),
    "dry_run": option(
        "--dry-run", False, "Print how many units of work there are, what they take on disk and "
        "about how long, and stop.", is_flag=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Sweeping:
    """How a command runs its sweep."""

    threads: int | None
    store: str | None
    dask: str | None
    dry_run: bool

    @contextmanager
    def running(self) -> Iterator[Running]:
        """Give the options that functions take, while an executor lasts."""
        options: Any = {"threads": self.threads, "progress": True, "dry_run": self.dry_run}
        if self.store is not None:
            options["store"] = self.store
        if self.dask is None:
            yield options
            return
        with _dask(self.dask, as_threads(self.threads)) as executor:
            yield options | {"executor": executor}


@contextmanager
def _dask(where: str, workers: int) -> Iterator[Any]:
    """Give the executor of a cluster on this machine, or of a scheduler somewhere."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError(
            "--dask must be used where Dask is installed: pip install 'quadmodel[distributed]'"
        ) from None
    if where == "local":
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client.get_executor(pure=False)
        return
    wanted = "--dask must be local or the address of a scheduler that answers, like HOST:8786"
    if ":" not in where:
        raise InputError(f"{wanted}, got {where!r}")
    try:
        found = Client(where, timeout=_PATIENCE)
    except (OSError, ValueError) as error:  # no answer in time is an OSError
        raise InputError(f"{wanted}, got {where!r}: {error}") from None
    with found as client:
        yield client.get_executor(pure=False)


def rescued() -> str:
    """Write to disk what a sweep without a store has left in memory; say where, if there is any."""
    from quadmodel.sweeps.store import unfinished

    memory = unfinished()
    if memory is None:
        return ""
    name = memory.manifest.kind.replace(" ", "-")
    folder = next(
        path
        for path in (Path(f"{name}{number or ''}.store") for number in count())
        if not path.exists()
    )
    memory.save(folder)
    return (
        f"{memory.kept} finished units are kept in {folder}: the same command with --store "
        f"{folder} goes on with them"
    )
