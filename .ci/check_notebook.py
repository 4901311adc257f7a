"""Execute a notebook and check that the committed copy holds its outputs and pictures."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(path: Path) -> None:
    """Raise if the notebook fails, or was committed without its results."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    if any(cell.execution_count is None for cell in code):
        raise SystemExit(f"{path} must be committed executed, got cells without a count")
    if not any("image/png" in output.get("data", {}) for output in outputs):
        raise SystemExit(f"{path} must be committed with its pictures, got none")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    print(f"{path}: {len(code)} cells ran")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
