"""Around the simulated boundaries of a phase diagram: a finer scan, and close-ups."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import CALLER_ONLY, Workers
from quadmodel.model import QuadraticModel
from quadmodel.simulation.growth import GridPoints
from quadmodel.simulation.populations import KINDS
from quadmodel.studies._close_up import (
    POINTS,
    CloseUp,
    Guess,
    close_up,
    guess_from,
    most_replicas,
)
from quadmodel.studies._spec import DiagramSpec, Variables


def finer_scan(
    rates: FloatArray,
    grid: Variables,
    spec: DiagramSpec,
    evaluate: Callable[[GridPoints, str], tuple[Variables, int]],
) -> tuple[Variables, int]:
    """Measure learning rates around the simulated boundaries; NaN where there is none."""
    sizes, count = spec.batch_sizes, spec.refine
    scan_rates = _scan_learning_rates(rates, grid, count)
    found = np.isfinite(scan_rates).all(axis=1)
    scan = {k: np.full((*v.shape[:-2], sizes.size, count), np.nan) for k, v in grid.items()}
    replica_steps = 0
    if count and found.any():
        points = spec.points(
            scan_rates[found].ravel(), np.repeat(sizes[found], count), spec.replicas_of_grid
        )
        on_scan, replica_steps = evaluate(points, "finer scan")
        for name, value in on_scan.items():
            scan[name][..., found, :] = value.reshape(*value.shape[:-1], -1, count)
    return scan | {"learning_rate": scan_rates}, replica_steps


def _scan_learning_rates(rates: FloatArray, grid: Variables, count: int) -> FloatArray:
    """Return, per batch size, learning rates between the columns where growth changes sign."""
    scan = np.full((grid["mean_growth"].shape[1], count), np.nan)
    for j in range(len(scan)):
        brackets = []
        for kind in KINDS:
            growth = grid[f"{kind}_growth"][:, j]
            positive, negative = np.flatnonzero(growth > 0), np.flatnonzero(growth < 0)
            if positive.size and negative.size and negative[0] < positive[-1]:
                brackets.append((max(positive[0] - 1, 0), min(negative[-1] + 1, rates.size - 1)))
        if brackets:
            low, high = min(b[0] for b in brackets), max(b[1] for b in brackets)
            scan[j] = np.geomspace(rates[low], rates[high], count + 2)[1:-1]
    return scan


class _Task(NamedTuple):
    kind: int
    size: int
    guess: Guess


def close_up_crossings(
    model: QuadraticModel,
    rates: FloatArray,
    grid: Variables,
    scan: Variables,
    spec: DiagramSpec,
    pool: Workers,
) -> tuple[dict[str, np.ndarray], int]:
    """Return close-ups of the crossings of mean and typical growth, and the replica-steps taken.

    Arrays are along (kind, batch size), growth and learning rates along the points too; NaN where
    growth does not cross zero inside the scan, or without noise.
    """
    sizes = spec.batch_sizes
    shape = (len(KINDS), sizes.size)
    noisy = ~spec.points(np.ones(sizes.size), sizes, 0).deterministic(model.n_data)
    tasks = [
        _Task(kind, int(j), guess)
        for j in np.flatnonzero(noisy)
        for kind in range(len(KINDS))
        if (guess := _guess(rates, grid, scan, KINDS[kind], int(j))) is not None
    ]

    def work(task: _Task) -> CloseUp:
        return close_up(
            model,
            int(sizes[task.size]),
            spec.sgd,
            task.guess,
            kind=KINDS[task.kind],
            steps=spec.steps,
            replicas=spec.replicas,
            seed=spec.seed,
            # Numbers beyond those of grid and scan.
            first_replica=2 * spec.replicas_of_grid
            + (task.kind * sizes.size + task.size) * most_replicas(spec.replicas),
            pool=CALLER_ONLY,
            precision=spec.precision,
        )

    with progress_bar(len(tasks), what="close-ups", show=spec.progress) as bar:
        found = pool.map(work, tasks, done=bar.update)
    close: dict[str, np.ndarray] = {
        "learning_rate": np.full((*shape, POINTS), np.nan),
        "growth": np.full((*shape, POINTS), np.nan),
        "growth_standard_error": np.full((*shape, POINTS), np.nan),
        "correction": np.zeros(shape),
        "steps": np.zeros(shape, np.int64),
        "replicas": np.zeros(shape, np.int64),
        "settled": np.zeros(shape, bool),
        "needed_steps": np.zeros(shape, np.int64),
    }
    for task, one in zip(tasks, found, strict=True):
        for name, values in close.items():
            values[task.kind, task.size] = getattr(one, name)
    return close, sum(one.replica_steps for one in found)


def _guess(rates: FloatArray, grid: Variables, scan: Variables, kind: str, j: int) -> Guess | None:
    """Return where the scan sees growth cross zero at one batch size; None where it does not."""

    def column(name: str) -> FloatArray:
        return np.concatenate([grid[name][:, j], scan[name][j]])

    x = np.log(np.concatenate([rates, scan["learning_rate"][j]]))
    growth, error = column(f"{kind}_growth"), column(f"{kind}_growth_standard_error")
    return guess_from(x, growth, error)
