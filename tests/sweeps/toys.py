"""Units that compute little, for tests of the engine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from quadmodel.sweeps._parcel import Job
from quadmodel.sweeps.running import as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import run_sweep


def double(source):
    return source, 2 * np.asarray(source)


class Square(NamedTuple):
    number: int
    # What happens on the way: a file that says whether it has happened already.
    trouble: str = ""
    marks: str = ""

    def compute(self, kept: Any, pool: Any):
        _, doubled = kept
        if self.trouble:
            mark = Path(self.marks) / f"{self.number}"
            seen = mark.exists()
            mark.touch()
            if self.trouble == "always":
                raise ValueError(f"{self.number} is unlucky")
            if self.trouble == "once" and not seen:
                raise ValueError(f"{self.number} is unlucky at first")
            if self.trouble == "memory":
                raise MemoryError("no memory for it")
            if self.trouble == "interrupt" and not seen:
                raise KeyboardInterrupt
            if self.trouble == "die" and not seen:
                os._exit(1)
            if self.trouble == "slow":
                time.sleep(0.02)
        rng = np.random.default_rng([self.number])
        value = rng.standard_normal(3) + doubled.ravel()[0]
        return {
            "square": np.array(self.number**2),
            "value": value,
            "process": np.array(os.getpid()),
        }


def sweep(count=10, *, source=1.0, trouble=None, marks="", specification=None, **running):
    """Run a sweep of two stages; `trouble` says what happens in which unit of the first."""
    trouble = trouble or {}
    first = [Square(n, trouble.get(n, ""), str(marks)) for n in range(count)]
    job = Job(double, source, double(source))
    processes = set()

    def flow(run):
        found = run.run("first stage", first)
        second = [Square(int(record["square"])) for record in found]
        after = run.run("second", second, lambda record: int(record["square"] % 2))
        processes.update(int(record["process"]) for record in after)
        values = np.stack([record["value"] for record in found + after])
        names = np.array([f"unit {n}" for n in range(len(values))])
        return xr.Dataset({"value": (("unit", "part"), values), "name": ("unit", names)})

    manifest = Manifest(
        "toy", {"count": count, "sgd": {"momentum": 0.0}, "seed": 3, **(specification or {})},
        {"first stage": count, "second": count},
    )  # fmt: skip
    found = run_sweep(manifest, job, as_how(running), flow)
    return found, processes
