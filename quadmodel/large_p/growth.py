"""Growth of the loss on a grid of learning rates and batch sizes, in the large-P limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, check_memory
from quadmodel._util.threads import Workers, available_cores
from quadmodel.ensemble import Ensemble
from quadmodel.large_p._snapshot import Snapshot
from quadmodel.large_p._state import (
    Replicas,
    advance,
    bytes_needed,
    components,
    start_replicas,
    update_of,
)
from quadmodel.large_p._system import System, law_of, model_at_start, system_from
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._replicas import groups
from quadmodel.simulation.growth import CONVERGED, WINDOWS, GridPoints, Measurement, growth_of_runs

# Pieces of work, at most; a thread holds the coefficients of one run at a time.
_PIECES = 4096


def system_of(
    source: Ensemble | QuadraticModel, seed: int, truncation_order: int
) -> tuple[QuadraticModel, System]:
    """Return the model at the start, and what drives its large-P limit.

    An ensemble is sampled with `seed`, without drawing its curvature; of a model's curvature the
    law is used. Raises InputError if there is no curvature, or none whose limit is known, and
    MemoryError if it can be told beforehand that not even one run fits in memory.
    """
    law = law_of(source, "source")
    if law is not None:
        _check_one_run(source, law, truncation_order)
    model = model_at_start(source, seed)
    system = system_from(model, law, truncation_order)
    if system.curvature_strength == 0.0:
        raise InputError(
            "source must have curvature for the large-P limit, got a linear model, which is the "
            "same for every P"
        )
    return model, system


def _check_one_run(
    source: Ensemble | QuadraticModel, law: CurvatureLaw, truncation_order: int
) -> None:
    """Raise MemoryError where one run, its size known from shapes alone, doesn't fit in memory."""
    n_data, n_params = source.n_data, source.n_params
    if law.kronecker(n_data, n_params)[0] is not None:
        return  # a data index has as many values as a matrix has rank
    rank = 1  # at least: that of a given Jacobian is found out later
    if isinstance(source, Ensemble):
        spectrum: Any = source.jacobian
        rank = max(1, int(np.count_nonzero(spectrum.eigenvalues(n_data, n_params))))
    shapes = System(
        np.broadcast_to(0.0, (n_data, rank)), np.zeros(n_data), np.empty((n_data, 0)), True, 1.0,
        n_params, truncation_order,
    )  # fmt: skip
    check_memory("the large-P limit", bytes_needed(shapes, SGD(1.0, 1), 1, 1, 0))


def check_runs(system: System, sgd: SGD, n_runs: int, threads: int | None) -> None:
    """Raise MemoryError unless records of so many runs, and a run per thread, fit in memory."""
    count = min(threads or available_cores(), n_runs)
    need = bytes_needed(system, sgd, count, count, 0)
    check_memory("the large-P limit", need + 8.0 * n_runs * (4 * WINDOWS + 8))


def measure_growth_in_limit(system: System, points: GridPoints, pool: Workers) -> Measurement:
    """Run every grid point in the large-P limit and measure how its loss grows.

    Growth, divergence and final losses follow the rules for a quadratic model of
    :func:`quadmodel.simulation.growth.measure_growth`, from runs with its batches. Runs are
    followed one by one, so that memory holds the coefficients of one run per thread; those that
    have diverged or converged are stepped no more. See derivations/08-large-p.md.
    """
    runs = points.runs(len(system.residual))
    count = runs.point.size
    losses, diverged_at = np.empty((count, WINDOWS + 1)), np.empty(count, np.int64)
    pieces = groups(count, -(-count // _PIECES), at_least=1)

    def follow(piece: slice) -> None:
        for n in range(*piece.indices(count)):
            point = runs.point[n]
            sgd = points.sgd._at(
                learning_rate=float(points.learning_rate[point]),
                batch_size=int(points.batch_size[point]),
            )
            losses[n], diverged_at[n] = _follow(system, sgd, points, runs.number[n])

    pool.map(follow, pieces)
    loss = runs.by_point(losses, points)
    growth = growth_of_runs(loss, runs.by_point(diverged_at, points), points.recorded())
    steps = np.full(len(points), points.steps)
    return Measurement.of(growth, steps, loss, count * points.steps)


def _follow(system: System, sgd: SGD, points: GridPoints, replica: int) -> tuple[FloatArray, int]:
    """Return the losses of one run at the recorded steps, and the step of its divergence."""
    state = start_replicas(system, sgd, np.array([replica]))
    update, recorded = update_of(sgd, points.seed), points.recorded()
    losses = np.full(recorded.size, _loss(system, sgd, state, 0))
    for k in range(1, recorded.size):
        before, step = int(recorded[k - 1]), int(recorded[k])
        advance(system, update, state, slice(None), before, step - before)
        losses[k:] = _loss(system, sgd, state, step)
        if not CONVERGED * losses[0] < losses[k] < np.inf:
            break
    return losses, int(state.diverged_at[0])


def _loss(system: System, sgd: SGD, state: Replicas, step: int) -> float:
    if state.diverged_at[0] >= 0:
        return np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        loss = Snapshot(system, sgd, components(system, sgd, state, 0, step)).loss
    return loss if np.isfinite(loss) else np.inf
