"""A sweep of a million cells whose work is left out: time, memory, files; and a store's overhead.

Prints what it takes to submit, track and open the sweep, by threads and through an executor, and
exits with 1 beyond 2 GB or 10^4 files. `--overhead` only times a default phase diagram with a
store: what its units compute, and the rest.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

import quadmodel as qm
from quadmodel._util.threads import Workers
from quadmodel.studies import _diagram, _scan
from quadmodel.sweeps import sweep as engine
from quadmodel.sweeps._records import Record

MOST_BYTES, MOST_FILES = 2e9, 10_000


def nothing(unit: _diagram.PointsUnit, kept: Any, pool: Workers) -> Record:
    """Return what a unit would, without computing."""
    rates = unit.points.learning_rate
    found = {name: np.log(rates) for name in _diagram._MEASURED}
    found["mean_growth_standard_error"] = found["typical_growth_standard_error"] = 1e-3 * rates
    return {
        **found,
        "noise_kernel_norm": np.ones((3, rates.size)),
        "replica_steps": np.array(rates.size),
    }


def million(folder: Path, **running: Any) -> int:
    """Run a sweep of a million cells, and read it on the way and after; return how many files."""
    model = qm.Ensemble(1000, 1, qm.spectra.PowerLaw(1.0)).sample(0)
    files, seen = [0], [0.0]
    keep = engine.Folder.keep

    def counted(self: Any, stage: str, unit: int, record: Record) -> None:
        keep(self, stage, unit, record)
        if unit == 1500:
            began = time.perf_counter()
            share = qm.open_phase_diagram(folder).attrs["share_done"]
            seen[:] = [time.perf_counter() - began, share]
            files[0] = sum(1 for path in folder.rglob("*") if path.is_file())

    engine.Folder.keep = counted  # type: ignore[method-assign]
    began = time.perf_counter()
    sizes = np.unique(np.geomspace(1, 1000, 400).astype(int))
    rates = np.geomspace(1e-3, 10, -(-(10**6) // sizes.size))
    found = qm.phase_diagram(
        model, rates, sizes, steps=10**6, replicas=16, refine=0, store=folder, **running
    )
    spent = time.perf_counter() - began
    engine.Folder.keep = keep  # type: ignore[method-assign]
    cells = found.sizes["learning_rate"] * found.sizes["batch_size"]
    began = time.perf_counter()
    qm.open_phase_diagram(folder)
    opened = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{cells} cells in {spent:.0f} s, {cells / spent:,.0f} cells per second; read on the way "
        f"in {seen[0]:.1f} s (share done {seen[1]:.2f}), in the end in {opened:.1f} s; "
        f"{files[0]} files half-way, {memory / 1e9:.2f} GB at most",
        flush=True,
    )
    if memory > MOST_BYTES:
        raise SystemExit("too much memory")
    return files[0]


def overhead(folder: Path) -> None:
    """Time a default diagram on one thread: what units compute, and everything."""
    spent, lock = [0.0], Lock()
    kinds: list[Any] = [_diagram.EdgeUnit, _diagram.PointsUnit, _scan.CloseUpUnit]
    before = [kind.compute for kind in kinds]

    def timed(compute: Any) -> Any:
        def work(unit: Any, kept: Any, pool: Workers) -> Record:
            began = time.thread_time(), time.perf_counter()
            record: Record = compute(unit, kept, pool)
            with lock:
                spent[0] += time.perf_counter() - began[1]
            return record

        return work

    for kind, compute in zip(kinds, before, strict=True):
        kind.compute = timed(compute)
    qm.phase_diagram(qm.Ensemble(200, 400), 3, 2, steps=64, replicas=2)  # compiles
    spent[0], began = 0.0, time.perf_counter()
    qm.phase_diagram(qm.Ensemble(200, 400), threads=1, store=folder / "x")
    whole = time.perf_counter() - began
    print(
        f"default diagram with a store on one thread: {whole:.1f} s, of which units "
        f"{spent[0]:.1f} s: the rest is {100 * (whole / spent[0] - 1):.2f} %"
    )


def main() -> None:
    """Run the million cells, and the default diagram if asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overhead", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.overhead:
            overhead(Path(name))
            return
        _diagram.PointsUnit.compute = nothing  # type: ignore[method-assign, assignment]
        _diagram.EdgeUnit.compute = edge  # type: ignore[method-assign, assignment]
        files = million(Path(name) / "threads")
        with ThreadPoolExecutor(2) as executor:
            million(Path(name) / "executor", executor=executor)
    sys.exit(files > MOST_FILES)


def edge(unit: _diagram.EdgeUnit, kept: Any, pool: Workers) -> Record:
    """Return edges without computing."""
    one = np.array(1.0)
    return {"critical": np.ones(3), "edge": 2 * one, "crossing": one, "typical": one}


if __name__ == "__main__":
    main()
