"""Compiled code on disk: called after its sources, written by several processes, or not at all."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quadmodel
from quadmodel._util import compiled

PACKAGE = Path(quadmodel.__file__).parent
# Imported by kernels for annotations, or run while they are compiled: nothing of it goes into them.
NOT_COMPILED_IN = {f"quadmodel._util.{name}" for name in ("checks", "display", "roots")}
# A compiled function and a helper from another module that goes into it: 1 + 2 * 1 is 3.
SCRIPT = """
import numpy as np
from quadmodel._util.compiled import cache_folder
from quadmodel.large_p._kernel import _add
from quadmodel.simulation._kernels.sums import dot
x, y = np.ones(3), np.arange(40.0)
_add(x, 2.0, np.ones(3))
print(x[0], dot(y, y), dot(y.astype(np.float32), y.astype(np.float32)))
print(sum(_add.stats.cache_hits.values()), sum(dot.stats.cache_hits.values()))
print(cache_folder())
"""
RIGHT = "3.0 20540.0 20540.0"
# One that other compiled functions call: refused to Python, where it would jump to address 0.
INNER = """
import numpy as np
from quadmodel._util.compiled import compiled
from quadmodel.large_p._kernel import _row
def outer(x, places):
    return _row(x, places, places, 1, 1)
outer.__module__ = "quadmodel.outer"
outer = compiled(outer)
arguments = np.arange(9.0), np.array([2, 3])
for _ in range(2):
    try:
        _row(*arguments, arguments[1], 1, 1)
    except TypeError as error:
        print(error)
    print(outer(*arguments))
"""
REFUSED = "_row can be called from compiled functions only"


def sources() -> set[Path]:
    return {path for pattern in compiled.SOURCES for path in PACKAGE.glob(pattern)}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_every_module_with_compiled_code_counts_as_a_source():
    compiling = {
        path
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module in ("numba", "numba.extending", "quadmodel._util.compiled")
    }
    assert len(compiling) > 10
    assert compiling <= sources()


def test_whatever_sources_import_counts_as_a_source():
    known = {module_of(path) for path in sources()} | NOT_COMPILED_IN
    imported = {
        node.module
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("quadmodel")
    }
    imported.discard("quadmodel.simulation._kernels")  # a module of it, which counts itself
    assert imported <= known


def test_old_folders_are_removed(tmp_path):
    for number in range(8):
        folder = tmp_path / f"quadmodel-{number}"
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder, (number, number))
    new = tmp_path / "quadmodel-7"
    compiled._remove_oldest(new)
    assert {path.name[-1] for path in tmp_path.iterdir()} == {"3", "4", "5", "6", "7"}


def start(root: Path, script: str = SCRIPT, **variables: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "PYTHON"))}
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script],
        env=kept | {"PYTHONPATH": str(root)} | variables,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


@pytest.fixture
def copy(tmp_path):
    """A package of its own, to be edited."""
    root = tmp_path / "copy"
    shutil.copytree(PACKAGE, root / "quadmodel", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.slow
def test_an_edited_helper_is_compiled_in(copy, tmp_path):
    cache = tmp_path / "cache"
    first, second = (finish(start(copy, NUMBA_CACHE_DIR=str(cache))) for _ in range(2))
    assert first[:2] == [RIGHT, "0 0"]
    assert second[:2] == [RIGHT, "1 2"]
    assert Path(first[2]).parent == cache
    helper = copy / "quadmodel/simulation/_kernels/sums.py"
    product = "return fused_multiply_add(builder, *arguments)"
    text = helper.read_text()
    assert text.count(product) == 1
    helper.write_text(text.replace(product, "return builder.fsub(arguments[2], arguments[0])"))
    edited = finish(start(copy, NUMBA_CACHE_DIR=str(cache)))
    assert edited[0].split()[0] == "-1.0"
    helper.write_text(text)
    assert finish(start(copy, NUMBA_CACHE_DIR=str(cache)))[:2] == [RIGHT, "1 2"]


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path):
    for attempt in range(5):
        cache = str(tmp_path / f"cache-{attempt}")
        both = [start(PACKAGE.parent, NUMBA_CACHE_DIR=cache) for _ in range(2)]
        for process in both:
            assert finish(process)[0] == RIGHT
        assert finish(start(PACKAGE.parent, NUMBA_CACHE_DIR=cache))[:2] == [RIGHT, "1 2"]
        assert not list(Path(cache).rglob("*.tmp"))


@pytest.mark.slow
def test_damaged_files_are_replaced(tmp_path):
    cache = str(tmp_path / "cache")
    finish(start(PACKAGE.parent, NUMBA_CACHE_DIR=cache))
    files = [path for path in Path(cache).rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert finish(start(PACKAGE.parent, NUMBA_CACHE_DIR=cache))[:2] == [RIGHT, "0 0"]
    assert finish(start(PACKAGE.parent, NUMBA_CACHE_DIR=cache))[:2] == [RIGHT, "1 2"]


@pytest.mark.slow
def test_works_where_nothing_can_be_written(copy, tmp_path):
    """Folders lie below a file, where nobody can make them."""
    (copy / "quadmodel/__pycache__").touch()
    file = tmp_path / "file"
    file.touch()
    nowhere = str(file / "below")
    variables = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LOCALAPPDATA": nowhere}
    for _ in range(2):
        assert finish(start(copy, NUMBA_CACHE_DIR=nowhere, **variables)) == [RIGHT, "0 0", "None"]


@pytest.mark.slow
def test_a_folder_that_vanishes_or_fills_does_not_matter(copy, tmp_path):
    """Saving fails after the folder was found fit for it."""
    path = copy / "quadmodel/_util/compiled.py"
    text = path.read_text()
    assert text.count("tempfile.mkstemp(dir=self._folder") == 1
    path.write_text(
        text.replace("tempfile.mkstemp(dir=self._folder", "tempfile.mkstemp(dir='/nowhere'")
    )
    found = finish(start(copy, NUMBA_CACHE_DIR=str(tmp_path / "cache")))
    assert found[:2] == [RIGHT, "0 0"]


@pytest.mark.slow
def test_what_only_compiled_code_can_call_is_refused_to_python(tmp_path):
    """Before it was compiled, after it was, and when it was found on disk."""
    for _ in range(2):
        lines = finish(start(PACKAGE.parent, INNER, NUMBA_CACHE_DIR=str(tmp_path)))
        assert lines == [REFUSED, "[5. 6.]"] * 2
