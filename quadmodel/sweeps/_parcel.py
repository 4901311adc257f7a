"""What is sent to a worker, and what the worker does with it."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import scipy.linalg.cython_blas  # noqa: F401  it must be there to be limited
from threadpoolctl import threadpool_limits

from quadmodel._util.threads import CALLER_ONLY, Workers
from quadmodel.sweeps._records import Record, write_whole

ARRAYS = "arrays.bin"
# Bytes of arrays from which on they go through a file, and the boundary where each begins there.
_LARGE, _ALIGNED = 2**17, 64


@dataclass(frozen=True)
class Job:
    """What the units of a sweep are computed from.

    `prepare`, a function that other processes can import, makes of `source` what a worker keeps for
    its next unit; `kept` is what this process has prepared. Threads compute several units at a
    time, unless each is `alone` with all of them. `nbytes` is the size of what a worker keeps.
    """

    prepare: Callable[[Any], Any]
    source: Any
    kept: Any
    alone: bool = False
    nbytes: int = 0


def keep_as_sent(source: Any) -> Any:
    """Prepare nothing: a worker keeps what it was sent."""
    return source


@dataclass(frozen=True)
class Parcel:
    """A job without what this process keeps; large arrays of the source lie in a file."""

    key: str
    prepare: Callable[[Any], Any]
    pickled: bytes
    file: str | None
    buffers: tuple[tuple[int, int], ...]
    sender: tuple[str, int]

    def unpacked(self) -> Any:
        """Return the source, with arrays that are mapped from the file."""
        if self.file is None:
            return pickle.loads(self.pickled)
        with open(self.file, "rb") as file:
            # Private copies of what is written to, so that nothing comes to the file.
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        mapped = [whole[first : first + size] for first, size in self.buffers]
        return pickle.loads(self.pickled, buffers=mapped)


@contextmanager
def parcel_of(job: Job, key: str, folder: Path) -> Iterator[Parcel]:
    """Pack a job for other processes; large arrays lie in `folder` as long as they are needed."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(job.source, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    file: Path | None = None
    named: str | None = None
    places: list[tuple[int, int]] = []
    if sum(part.nbytes for part in raw) < _LARGE:
        pickled = pickle.dumps(job.source, protocol=5)
    else:
        content = bytearray()
        for part in raw:
            content += bytes(-len(content) % _ALIGNED)
            places.append((len(content), part.nbytes))
            content += part
        file = folder / ARRAYS
        write_whole(file, bytes(content))
        named = str(file.resolve())
    sender = socket.gethostname(), os.getpid()
    try:
        yield Parcel(
            key,
            job.prepare,
            pickled,
            named,
            tuple(places),
            sender,
        )
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


# What this worker keeps: of one sweep.
_KEPT: dict[str, Any] = {}
_GUARD = Lock()


class Unit(Protocol):
    """A piece of work: small, and a class that other processes can import."""

    def compute(self, kept: Any, pool: Workers, /) -> Record:
        """Compute its record from what the worker keeps, with threads that may help."""


def compute_unit(parcel: Parcel, unit: Unit) -> Record:
    """Compute one unit, in a worker."""
    if parcel.sender != (socket.gethostname(), os.getpid()):  # which limits its own threads
        _one_thread()
    with _GUARD:
        if parcel.key not in _KEPT:
            _KEPT.clear()
            _KEPT[parcel.key] = parcel.prepare(parcel.unpacked())
        kept = _KEPT[parcel.key]
    return unit.compute(kept, CALLER_ONLY)


@cache
def _one_thread() -> threadpool_limits:
    """Limit BLAS and OpenMP to one thread from now on; kernels start none of Numba's."""
    return threadpool_limits(limits=1)
