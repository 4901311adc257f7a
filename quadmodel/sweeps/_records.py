"""Files written as a whole or not at all, and records of arrays in them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.files import on_disk

# What one unit has found: arrays by name, none of them of objects.
Record = dict[str, NDArray[Any]]
# How names of files end that are being written.
PARTIAL = ".part"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path beside a file's place; what is written there comes to disk and is moved.

    The folder has one writer. A process that is killed leaves the old file, or none, and at most
    one whose name ends in ``.part``: by which the next writer finds it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        on_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    with written_aside(path) as partial:
        partial.write_bytes(content)


def packed(record: Mapping[str, Any]) -> bytes:
    """Return a record as the bytes of an .npz file."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(values) for name, values in record.items()}
    np.savez(file, **arrays)
    return file.getvalue()


def read(path: Path) -> Record | None:
    """Return a record; None if it isn't there or is damaged, which its checksums tell."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # damage raises nearly anything: zip, zlib, headers
        return None
