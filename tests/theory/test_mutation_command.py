"""The maintainer's mutation run finds what it should in a source, and its changes compile."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''
def response(x: float | None, y: float, *, power: int = 2) -> float:
    """Not this 1 + 1."""
    if x is None:
        raise ValueError(f"{1 + 1}")
    total = -x[0] + y @ x.T
    total += 1e-9 * 0.5
    return total**power if x < y else np.where(x, x, y)
'''
CHANGES = [
    "2 -> 3",
    "x is None -> x is not None",
    "-x[0] + y @ x.T -> -x[0] - y @ x.T",
    "-x[0] -> x[0]",
    "0 -> 1",
    "y @ x.T -> x.T @ y",
    "x.T -> x",
    "total += 1e-09 * 0.5 -> total -= 1e-09 * 0.5",
    "1e-09 * 0.5 -> 1e-09 / 0.5",
    "0.5 -> 0.75",
    "x < y -> x >= y",
    "total ** power -> total * power",
    "np.where(x, x, y) -> np.where(x, y, x)",
]


@pytest.fixture
def find(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / ".ci" / "mutations"))
    spec = importlib.util.spec_from_file_location("_find", ROOT / ".ci" / "mutations" / "_find.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "_find", module)
    spec.loader.exec_module(module)
    return module


def test_every_sign_operator_integer_and_index(find, tmp_path):
    """Neither docstrings, annotations, errors nor tolerances."""
    file = tmp_path / "source.py"
    file.write_text(SOURCE)
    found = find.mutants([file])
    assert sorted(f"{m.old} -> {m.new}" for m in found) == sorted(CHANGES)
    for mutant in found:
        assert mutant.function == "response"
        text = find.ast.unparse(mutant.tree())
        assert text != find.ast.unparse(find.ast.parse(SOURCE))
        compile(text, "mutant", "exec")


def test_names_are_unique_in_the_theory(find):
    found = find.mutants(sorted(find.THEORY.glob("*.py")))
    assert len({mutant.key for mutant in found}) == len(found) > 1000
