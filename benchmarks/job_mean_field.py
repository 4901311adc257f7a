"""The mean-field theory: its cost against steps, with all of the past and with a coarse one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr

import quadmodel as qm
from benchmarks.report import Result, Table, number, show
from benchmarks.timing import Settings, Spread, seconds_of

N_DATA, MODES, MEMORY, BATCH_SIZES = 400, 40, 60, 12
# Steps with all of the past, and with the coarse one.
WHOLE, COARSE = (100, 200, 400, 1000), (1000, 4000, 20_000)


def mean_field(settings: Settings) -> Result:
    """Time single runs, and the nonlinear edge of twelve batch sizes."""
    result, rows = Result(), []
    lam = np.sort(0.07 + 0.93 * ((np.arange(N_DATA) + 0.5) / N_DATA) ** 2)[::-1]
    model = qm.Ensemble(N_DATA, 2 * N_DATA, jacobian=lam, curvature=(0.03 / 2) ** 0.5)
    sgd = qm.SGD(0.5 * qm.critical_learning_rate(lam, qm.SGD(1.0, 40), norm="paper"), 40)

    def follow(steps: int, memory: int | None) -> xr.Dataset:
        return qm.mean_field(model, sgd, steps, bins=MODES, memory=memory)

    follow(50, None)
    whole, coarse = (WHOLE[:2], COARSE[:1]) if settings.quick else (WHOLE, COARSE)
    found: dict[int, list[float]] = {}
    for steps, memory in [(s, None) for s in whole] + [(s, MEMORY) for s in coarse]:
        rounds = settings.rounds if steps <= 200 else min(settings.rounds, 2)
        rounds = rounds if steps <= 4000 else 1
        seconds = [seconds_of(partial(follow, steps, memory)) for _ in range(rounds)]
        spread = Spread.of(seconds)
        peak = _peak(partial(follow, steps, memory)) if steps <= 1000 else np.nan
        past = "all" if memory is None else f"memory={memory}"
        size = "-" if np.isnan(peak) else f"{peak / 1e6:.0f} MB"
        rows.append((past, str(steps), show(spread) + " s", size))
        if memory is None:
            found[steps] = seconds
            result.measures[f"mean-field.{steps}"] = spread
            result.measures[f"mean-field.{steps}.memory"] = Spread.of([peak / 1e9])
    steps = np.array(list(found), float)
    slope = np.polyfit(np.log(steps), np.log([np.median(v) for v in found.values()]), 1)[0]
    notes = [f"All of the past: seconds grow as steps to the power {slope:.1f}."]
    if not settings.quick:
        notes.append(_off(follow(1000, None), follow(1000, MEMORY)))
    edges = [seconds_of(partial(_edge, model)) for _ in range(min(settings.rounds, 2))]
    result.measures["mean-field.edge"] = Spread.of(edges)
    rows.append((f"edge of {BATCH_SIZES} batch sizes", "-", show(Spread.of(edges)) + " s", "-"))
    title = f"Mean-field theory, {MODES} bins of {N_DATA} modes"
    columns = ("past", "steps", "seconds", "memory")
    result.tables.append(Table(title, columns, rows, " ".join(notes)))
    return result


def _edge(model: qm.Ensemble) -> xr.Dataset:
    sizes = np.unique(np.geomspace(1, N_DATA / 2, BATCH_SIZES).astype(int))
    return qm.mean_field_edge(model, sizes)


def _peak(job: Callable[[], object]) -> float:
    """Return the most memory, in bytes, that arrays of a job took at once."""
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


def _off(whole: xr.Dataset, coarse: xr.Dataset) -> str:
    """Say by how much the coarse past changes a run, and how far its loss had fallen."""
    names = {"loss": "loss", "ntk_trace": "trace", "noise_kernel_norm_finite": "K"}
    off = [
        f"{word} {number(100 * float(np.abs(coarse[name] / whole[name] - 1).max()))} %"
        for name, word in names.items()
    ]
    fallen = float(whole.loss[-1] / whole.loss[0])
    return f"memory={MEMORY} changes 1000 steps by at most: {', '.join(off)}; loss x {fallen:.1g}."
