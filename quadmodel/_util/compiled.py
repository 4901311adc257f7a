"""Compiled functions, kept on disk under a name that changes with every source they depend on.

Numba keeps a compiled function until its own file changes, though other modules' code is compiled
into it, and its index of compiled versions is not made for two processes that write. Here a folder
is called after a hash of all sources of compiled code, and each compiled version of a function is a
file that is written as a whole or not at all. Where no folder can be written to, every process
compiles for itself.

No function is compiled with `fastmath`: a helper is compiled into each of its callers, and flags
that let the compiler choose the order of sums let the copies differ. Which copy runs would depend
on what this process has compiled and what it has found on disk.
"""

# mypy: ignore-errors

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import numba
from numba import config, njit
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

_PACKAGE = Path(__file__).parents[1]
# Files whose code, constants and types go into compiled functions.
SOURCES = (
    "_util/compiled.py",
    "batches.py",
    "large_p/_kernel.py",
    "optimizer.py",
    "simulation/_kernels/*.py",
)
# Folders of other versions of the sources that are kept.
_KEPT = 4


def compiled(function, *, inner=False):
    """Compile a function when it is called first, without the interpreter's lock; kept on disk.

    An `inner` one is called from compiled functions only; see `compiled_inner`.
    """
    dispatcher = njit(nogil=True, no_cfunc_wrapper=True, no_cpython_wrapper=inner)(function)
    folder = None if config.DISABLE_JIT else cache_folder()
    if folder is not None:
        dispatcher._cache = _Cache(function, folder)
    return dispatcher


def compiled_inner(function):
    """Compile a function for compiled callers only, without what unpacks arguments from Python.

    To compile that may take as long as the function itself, where arguments hold many arrays.
    """
    dispatcher = compiled(function, inner=True)
    if not config.DISABLE_JIT:
        # Python, which finds no version, then asks for one; it would jump to address 0.
        dispatcher.add_overload = partial(_keep_version, dispatcher.overloads)
        dispatcher._compile_for_args = partial(_refuse, function.__qualname__)
    return dispatcher


def _keep_version(versions, version):
    """Keep a compiled version where other compiled functions look for it."""
    versions[tuple(version.signature.args)] = version


def _refuse(name, *args, **kwargs):
    """Refuse a call from Python."""
    raise TypeError(f"{name} can be called from compiled functions only")


@cache
def cache_folder() -> Path | None:
    """Return the folder of compiled functions, or None where none can be written to.

    It lies in ``NUMBA_CACHE_DIR`` if that is set, else beside the package's bytecode, else in the
    user's folder for caches.
    """
    digest = _digest()
    if digest is None:
        return None
    users = AppDirs(appname="numba", appauthor=False).user_cache_dir
    for parent in (config.CACHE_DIR, _PACKAGE / "__pycache__", users):
        if not parent:
            continue
        folder = Path(parent) / f"quadmodel-{digest}"
        try:
            new = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        if new:
            _remove_oldest(folder)
        return folder
    return None


def _digest() -> str | None:
    """Return a hash of all sources of compiled code and of what compiles them."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.implementation.cache_tag}".encode())
    try:
        for pattern in SOURCES:
            for path in sorted(_PACKAGE.glob(pattern)):
                digest.update(f"\0{path.relative_to(_PACKAGE).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _remove_oldest(new: Path) -> None:
    """Remove all but a few folders that belong to other sources."""
    try:
        others = sorted(set(new.parent.glob("quadmodel-*")) - {new}, key=os.path.getmtime)
    except OSError:  # another process removes them
        return
    for folder in others[:-_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


class _Cache(NullCache):
    """What a Numba dispatcher loads from and saves to: a file per types of arguments and target."""

    def __init__(self, function, folder: Path) -> None:
        self._folder = folder
        self._stem = f"{function.__module__.removeprefix('quadmodel.')}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(self._folder)

    def load_overload(self, sig, target_context):
        target_context.refresh()
        key = sig, target_context.codegen().magic_tuple()
        try:
            found, payload = pickle.loads(self._path(key).read_bytes())
        except Exception:  # missing or damaged: compile again
            return None
        return CompileResult._rebuild(target_context, *payload) if found == key else None

    def save_overload(self, sig, data) -> None:
        if data.lifted or data.library.has_dynamic_globals:
            return
        key = sig, data.codegen.magic_tuple()
        content = dumps((key, data._reduce()))
        try:
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            try:
                with open(handle, "wb") as file:
                    file.write(content)
                os.replace(name, self._path(key))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError:  # not there any more, not writable, full: the next process compiles again
            pass

    def _path(self, key) -> Path:
        return self._folder / f"{self._stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
