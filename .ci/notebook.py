"""Check a notebook: committed with outputs of these very sources, and running.

The notebook holds a hash of the sources that its outputs are of: an edit without a new run fails.
Where QUADMODEL_NOTEBOOKS is "quick", replacements that cells name in their metadata
(``"quick": {"replicas=1000": "replicas=50"}``) make sizes small; readers see the full ones.

``--write`` runs it at full size and saves outputs and hash.
"""

import argparse
import hashlib
import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LIMIT = 600  # seconds a cell
BAR = "application/vnd.jupyter.widget-view+json"


def code_of(notebook: Any) -> list[Any]:
    """Return the cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def hash_of(notebook: Any) -> str:
    """Return what tells sources apart."""
    sources = json.dumps([cell.source for cell in code_of(notebook)])
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def problems(notebook: Any) -> list[str]:
    """Return what is wrong with the committed state."""
    code = code_of(notebook)
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    if any(cell.execution_count is None for cell in code):
        found.append("must be committed executed, got cells without a count")
    if not any("image/png" in output.get("data", {}) for output in outputs):
        found.append("must be committed with its pictures, got none")
    if any(output.output_type == "error" for output in outputs):
        found.append("must be committed without errors")
    if notebook.metadata.get("quadmodel", {}).get("sources") != hash_of(notebook):
        found.append("has outputs of other sources: run python .ci/notebook.py --write on it")
    for number, cell in enumerate(notebook.cells):
        missing = [old for old in cell.metadata.get("quick", {}) if old not in cell.source]
        found += [f"has no {old!r} to replace in cell {number}" for old in missing]
    return found


def needs_torch(notebook: Any) -> bool:
    """Say whether a cell imports PyTorch."""
    return any("import torch" in cell.source for cell in code_of(notebook))


def make_quick(notebook: Any) -> None:
    """Make sizes small."""
    for cell in notebook.cells:
        for old, new in cell.metadata.get("quick", {}).items():
            cell.source = cell.source.replace(old, new)


def clean(notebook: Any) -> None:
    """Take out what differs from run to run: times of day, and bars that a slow machine shows."""
    notebook.metadata.pop("widgets", None)
    for cell in code_of(notebook):
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if BAR not in output.get("data", {})]


def run(notebook: Any, path: Path) -> float:
    """Execute in place; return seconds."""
    began = time.perf_counter()
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=LIMIT, resources=place).execute()
    return time.perf_counter() - began


def main() -> None:
    """Check, or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("paths", nargs="+", type=Path)
    given = parser.parse_args()
    for path in given.paths:
        notebook = nbformat.read(path, as_version=4)
        if needs_torch(notebook) and find_spec("torch") is None:
            print(f"{path}: left out, since it needs PyTorch")
            continue
        if given.write:
            seconds = run(notebook, path)
            clean(notebook)
            notebook.metadata["quadmodel"] = {"sources": hash_of(notebook)}
            nbformat.write(notebook, path)
        else:
            if found := problems(notebook):
                raise SystemExit("\n".join(f"{path} {problem}" for problem in found))
            if os.environ.get("QUADMODEL_NOTEBOOKS") == "quick":
                make_quick(notebook)
            seconds = run(notebook, path)
        print(f"{path}: {len(code_of(notebook))} cells, {seconds:.0f} s")


if __name__ == "__main__":
    main()
