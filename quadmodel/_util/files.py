"""Reading of arrays that may be damaged, writing of files as a whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quadmodel._util.checks import InputError, shown

T = TypeVar("T")


def open_npz(path: str | PathLike[str], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read all arrays of an .npz file; pickled content is refused."""
    arrays = _load(_as_path("path", path), str(path))
    if not isinstance(arrays, dict):
        raise InputError(f"{path} must be an .npz file with {', '.join(required)}, got one array")
    for name in required:
        if name not in arrays:
            raise InputError(
                f"{path} must hold an array {name!r}, got {shown(sorted(arrays), 200)}"
            )
    return arrays


def load_array(spec: str, option: str) -> Any:
    """Read the one array of ``FILE.npy`` or ``FILE.npz``, or ``FILE.npz:name``, for an option."""
    if not spec:
        raise InputError(f"{option} must name an .npy or .npz file, got {spec!r}")
    path, name = array_path(spec), spec.rpartition(".npz:")[2] if ".npz:" in spec else ""
    content = _load(_as_path(option, path), f"{option} {path}")
    if not isinstance(content, dict):
        return content
    if not name and len(content) == 1:
        return next(iter(content.values()))
    if name not in content:
        asked = f"an array {name!r}" if name else "one array, or a name as in FILE.npz:name"
        raise InputError(f"{option} {path} must hold {asked}, got {shown(sorted(content), 200)}")
    return content[name]


def map_array(path: str | PathLike[str], name: str) -> Any:
    """Map the array of an .npy file into memory, without reading it."""
    return _load(_as_path(name, path), f"{name} {os.fspath(path)}", mapped=True)


def array_path(spec: str) -> Path:
    """Return the file that ``FILE.npz:name`` or ``FILE`` names."""
    return Path(spec.rpartition(".npz:")[0] + ".npz" if ".npz:" in spec else spec)


def _as_path(name: str, path: Any) -> Path:
    """Return a path, or raise InputError."""
    if not isinstance(path, str | PathLike) or "\0" in os.fspath(path):
        raise InputError(f"{name} must be the path of a file, got {shown(path)}")
    return Path(path)


def _load(path: Path, called: str, *, mapped: bool = False) -> Any:
    """Read a file that messages call so, or map its array."""
    wanted = ".npy" if mapped else ".npy or .npz"
    try:
        if not path.exists():
            raise InputError(f"{called} must be an existing {wanted} file, got no such file")
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "a device or a pipe"
            raise InputError(f"{called} must be an {wanted} file, got {kind}")
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as file:  # NumPy leaves a file open that it can't read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except (InputError, MemoryError):
        raise
    except PermissionError:
        raise InputError(f"{called} must be readable, got permission denied") from None
    except Exception as error:  # damage raises nearly anything: zip, zlib, tokenizer, header errors
        if isinstance(error, OSError) and error.strerror:  # like a name that is too long
            raise InputError(f"{called} must be readable, got {error.strerror}") from None
        pickled = "Object arrays" in str(error)
        kind = "pickled objects" if pickled else "another format, a pickle or a damaged file"
        raise InputError(f"{called} must be a plain {wanted} file, got {kind}") from None


def settings_to_arrays(key: str, settings: Any) -> dict[str, Any]:
    """Return a dataclass as arrays by name: numbers as JSON called `key`, arrays as they are."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    arrays = {n: values.pop(n) for n in list(values) if isinstance(values[n], np.ndarray)}
    text = json.dumps({"kind": type(settings).__name__, **values})
    return {key: np.array(text), **{f"{key}_{n}": array for n, array in arrays.items()}}


def settings_from_arrays(key: str, arrays: Mapping[str, Any], kinds: Sequence[type[T]]) -> T | None:
    """Return the dataclass in arrays by name, one of `kinds`; None if there is none."""
    if key not in arrays:
        return None
    beside = f"{key}_"
    given = {n.removeprefix(beside): a for n, a in arrays.items() if n.startswith(beside)}
    text = str(arrays[key])
    try:
        values = json.loads(text)
        kind = {kind.__name__: kind for kind in kinds}[values.pop("kind")]
        return kind(**{**values, **given})
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{key} must be what this package writes, got {shown(text)}") from None


def check_writable(path: str | PathLike[str], name: str = "output") -> None:
    """Raise InputError, which calls the file so, unless it can be created or replaced."""
    target = _as_path(name, path)
    folder = target.parent
    try:
        if not folder.is_dir():
            raise InputError(f"{name} {target} must lie in an existing folder, got {folder}")
        if target.is_dir() or os.fspath(path) == "":
            raise InputError(f"{name} {target} must be a file, got a folder")
        if target.exists() and not target.is_file():
            raise InputError(f"{name} {target} must be a file, got a device or a pipe")
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_hidden(target), suffix=target.suffix):
            pass
    except OSError as error:
        raise InputError(f"{name} {target} must be writable, got {error.strerror}") from None


def _hidden(target: Path) -> str:
    """Return what names of temporary files for a target begin with."""
    return f".{target.stem}-"


# Outputs that this process has written, in order.
WRITTEN: list[Path] = []


def on_disk(path: Path) -> None:
    """Make sure that a file is on disk, so that it is whole after a failure of power."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def write_atomically(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, remove it otherwise."""
    check_writable(path)
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_hidden(target), suffix=target.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp makes private files
        on_disk(partial)
        os.replace(partial, target)
        WRITTEN.append(target)
    finally:
        partial.unlink(missing_ok=True)
