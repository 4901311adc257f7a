"""Reading of arrays that may be damaged, writing of files as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from quadmodel._util.checks import InputError


def open_npz(path: str | PathLike[str], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read all arrays of an .npz file; pickled content is refused."""
    arrays = _load(Path(path))
    if not isinstance(arrays, dict):
        raise InputError(f"{path} must be an .npz file with {', '.join(required)}, got one array")
    for name in required:
        if name not in arrays:
            raise InputError(f"{path} must hold an array {name!r}, got {sorted(arrays)}")
    return arrays


def load_array(spec: str) -> Any:
    """Read one array from ``FILE.npy``, ``FILE.npz`` (if it holds one) or ``FILE.npz:name``."""
    path, name = array_path(spec), spec.rpartition(".npz:")[2] if ".npz:" in spec else ""
    content = _load(path)
    if not isinstance(content, dict):
        return content
    if not name and len(content) == 1:
        return next(iter(content.values()))
    if name not in content:
        asked = f"an array {name!r}" if name else "one array, or a name as in FILE.npz:name"
        raise InputError(f"{path} must hold {asked}, got {sorted(content)}")
    return content[name]


def array_path(spec: str) -> Path:
    """Return the file that ``FILE.npz:name`` or ``FILE`` names."""
    return Path(spec.rpartition(".npz:")[0] + ".npz" if ".npz:" in spec else spec)


def _load(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path} must be an existing .npy or .npz file, got no such file")
    if path.is_dir():
        raise InputError(f"{path} must be an .npy or .npz file, got a directory")
    try:
        with open(path, "rb") as file:  # NumPy leaves a file open that it can't read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except PermissionError:
        raise InputError(f"{path} must be readable, got permission denied") from None
    except MemoryError:
        raise
    except Exception as error:  # damage raises nearly anything: zip, zlib, tokenizer, header errors
        pickled = "Object arrays" in str(error)
        kind = "pickled objects" if pickled else "another format, a pickle or a damaged file"
        raise InputError(f"{path} must be a plain .npy or .npz file, got {kind}") from None


def check_writable(path: str | PathLike[str]) -> None:
    """Raise InputError unless a file can be created or replaced at `path`."""
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"output {target} must lie in an existing folder, got {folder}")
    if target.is_dir():
        raise InputError(f"output {target} must be a file, got a folder")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".quadmodel-"):
            pass
    except OSError as error:
        raise InputError(f"output {target} must be writable, got {error.strerror}") from None


# Outputs that this process has written, in order.
WRITTEN: list[Path] = []


@contextmanager
def write_atomically(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, remove it otherwise."""
    target = Path(path)
    check_writable(target)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix
    )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp makes private files
        os.replace(partial, target)
        WRITTEN.append(target)
    finally:
        partial.unlink(missing_ok=True)
