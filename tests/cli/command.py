"""The command line as a process, small grids, and what a folder holds."""

import os
import sys
from pathlib import Path

import quadmodel

COMMAND = [sys.executable, "-c", "from quadmodel.cli import main; main()", "phase-diagram"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(quadmodel.__file__).parents[1])}
GRID = ["--learning-rates", "6", "--batch-sizes", "3", "--replicas", "4", "--refine", "2"]
SIZE = ["--n-data", "20", "--n-params", "40"]
SMALL = [*SIZE, *GRID, "--steps", "64"]
TINY = [*SIZE, "--learning-rates", "3", "--batch-sizes", "2", "--replicas", "2"]
TINY += ["--refine", "0", "--steps", "32"]
OUTPUTS = {"phase-diagram.png", "phase-diagram.nc"}


def contents():
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in Path().rglob("*")
    }


def written():
    return {path.name for path in Path().iterdir()}
