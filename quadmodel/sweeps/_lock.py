"""One process at a time writes a folder; what a killed one has locked is free again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from quadmodel._util.checks import InputError

NAME = "lock"
# Folders that this process writes: a lock of the system's is the process's, not the caller's.
_OURS: set[Path] = set()
_GUARD = Lock()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other calls of this one, from writing `folder`.

    Raises InputError where one does. The system frees the lock of a process that dies, and a child
    process doesn't inherit it.
    """
    place = folder.resolve()
    with _GUARD:
        if place in _OURS:
            raise InputError(f"store {folder} must not be in use, got one that this process writes")
        _OURS.add(place)
    try:
        with open(folder / NAME, "a+", encoding="ascii") as file:
            if not _take(file.fileno()):
                file.seek(0)
                raise InputError(
                    f"store {folder} must not be in use, got one that {file.read().strip()} writes"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
    finally:
        _OURS.discard(place)


def _take(handle: int) -> bool:
    """Lock an open file for this process; return whether no other one had it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # beyond what is read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
