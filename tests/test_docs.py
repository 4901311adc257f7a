"""The site's pages: the reference holds every public name, and what the guide shows runs."""

import importlib.util
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import pytest

import quadmodel as qm

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "guide").glob("*.md"))]
# A newcomer's way from an installed package to the picture, in seconds.
NEWCOMER = 300


def blocks(page, language):
    """Return the code of a page, block by block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def load_reference():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_holds_every_public_name():
    pytest.importorskip("torch", reason="the reference of networks needs PyTorch")
    lines = {line.strip() for line in load_reference().page().splitlines()}
    for name in qm.__all__:
        if not name.startswith("_") and name not in MODULES:
            assert f"quadmodel.{name}" in lines
    for name in MODULES:
        module = getattr(qm, name)
        for key in set(module.__all__) - {"names"}:
            both = getattr(qm, key, None) is getattr(module, key)
            assert (f"quadmodel.{key}" if both else f"{module.__name__}.{key}") in lines


MODULES = [
    name
    for name in qm.__all__
    if not name.startswith("_") and isinstance(getattr(qm, name), type(sys))
]


def test_pages_are_in_the_site():
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"\n{page.relative_to(DOCS).with_suffix('').as_posix()}\n" in front


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_pages(page, tmp_path, monkeypatch):
    """Everything that a page shows, in its order; jax's and PyTorch's parts where they are."""
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    began, names = time.perf_counter(), {}
    code = blocks(page, "python")
    if any("import torch" in block for block in code):
        pytest.importorskip("torch", reason="the page needs PyTorch")
    for block in code:
        if "# needs jax" in block and importlib.util.find_spec("jax") is None:
            continue
        exec(compile(block, str(page), "exec"), names)
        if "# needs jax" in block:  # what follows goes on with PyTorch's
            exec(compile(code[0], str(page), "exec"), names)
    for command in [line for block in blocks(page, "bash") for line in block.splitlines()]:
        if command.startswith("quadmodel "):
            program = [sys.executable, "-c", "from quadmodel.cli import main; main()"]
            subprocess.run([*program, *shlex.split(command)[1:]], check=True, capture_output=True)
            assert (tmp_path / "phase-diagram.png").exists() or "--dry-run" in command
    if page.stem == "own-network":
        assert time.perf_counter() - began < NEWCOMER
