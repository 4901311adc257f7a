"""Measurement of (learning rate, batch size) cells in the large-P limit."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, IntArray, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import Workers, available_cores
from quadmodel.curvature import CurvatureLaw
from quadmodel.ensemble import Ensemble
from quadmodel.large_p import _system as words
from quadmodel.large_p._system import System
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation import growth as runs
from quadmodel.simulation.growth import GridPoints, Measurement

# Pieces of work that the runs are cut into, at most; a thread holds the words of one run at a time.
_PIECES = 4096


def system_of(
    source: Ensemble | QuadraticModel, seed: int, level: int
) -> tuple[QuadraticModel, System]:
    """Return the model at the start, and the words of its large-P limit.

    Parameters
    ----------
    source : Ensemble or QuadraticModel
        An ensemble is sampled with `seed`, without drawing its curvature; of a model's curvature
        the law is used.
    seed : int
        Seed of the model.
    level : int
        Length of the longest words.

    Returns
    -------
    tuple of QuadraticModel and System
        The model and its system.

    Raises
    ------
    InputError
        If there is no curvature, or none whose limit is known.
    MemoryError
        If it can be told beforehand that not even one run fits in memory.
    """
    law: Any = source.curvature if isinstance(source, Ensemble) else source.curvature_law
    if law is not None:
        _check_one_run(source, law, level)
    if isinstance(source, Ensemble):
        model = replace(source, curvature=None).sample(seed)
    else:
        model = source
        if law is None and model.curvature is not None:
            raise InputError(
                "source must have a curvature_law for the large-P limit, got a model without"
            )
    system = words.build(model, law, level)
    if system.strength == 0.0:
        raise InputError(
            "source must have curvature for the large-P limit, got a linear model, which is the "
            "same for every P"
        )
    return model, system


def _check_one_run(source: Ensemble | QuadraticModel, law: CurvatureLaw, level: int) -> None:
    """Raise MemoryError where the words of a run, counted by shapes alone, don't fit in memory."""
    n_data, n_params = source.n_data, source.n_params
    if law.kronecker(n_data, n_params)[0] is not None:
        return  # the number of letters is a matrix's rank
    rank = 1  # at least: that of a given Jacobian is found out later
    if isinstance(source, Ensemble):
        spectrum: Any = source.jacobian
        rank = max(1, int(np.count_nonzero(spectrum.eigenvalues(n_data, n_params))))
    shapes = System(
        np.broadcast_to(0.0, (n_data, rank)), np.zeros(n_data), np.empty((n_data, 0)), True, 1.0,
        n_params, level,
    )  # fmt: skip
    check_memory("the large-P limit", words.bytes_needed(shapes, SGD(1.0, 1), 1, 1, 0))


def check_runs(system: System, sgd: SGD, n_runs: int, threads: int | None) -> None:
    """Raise MemoryError unless so many runs, and the words of one per thread, fit in memory."""
    count = min(threads or available_cores(), n_runs)
    need = words.bytes_needed(system, sgd, count, count, 0)
    check_memory("the large-P limit", need + 8.0 * n_runs * (4 * runs.WINDOWS + 8))


def measure_cells_in_limit(
    system: System, cells: GridPoints, pool: Workers, *, what: str = "cells", show: bool = False
) -> Measurement:
    r"""Run every cell in the large-P limit and measure how its loss grows.

    Parameters
    ----------
    system : System
        The words that all cells share.
    cells : GridPoints
        Learning rates, batch sizes, number of steps and replicas.
    pool : Workers
        Threads.
    what : str, optional
        Label of the progress bar.
    show : bool, optional
        Show the progress bar.

    Returns
    -------
    Measurement
        Arrays of shape (cells,): growth, divergence and final losses by the rules for a quadratic
        model of :func:`quadmodel.simulation.growth.measure_growth`, from runs with its batches.

    Notes
    -----
    Runs are followed one by one, so that memory holds the words of one run per thread. Cells with
    full batches are deterministic: one run stands for all. Runs that have diverged or converged are
    stepped no more.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261.
    """
    n_data = len(system.residual)
    # Replica by replica, so that every piece of work holds all kinds of cells.
    cell = np.tile(np.arange(len(cells)), cells.replicas)
    row = np.repeat(np.arange(cells.replicas), len(cells))
    kept = (row == 0) | ~cells.deterministic(n_data)[cell]
    cell, row = cell[kept], row[kept]
    number = cells.first_replica + cell * cells.replicas + row
    recorded = np.linspace(0, cells.steps, runs.WINDOWS + 1).astype(np.int64)
    losses, diverged_at = np.empty((cell.size, recorded.size)), np.empty(cell.size, np.int64)
    size = -(-cell.size // _PIECES)
    pieces = [slice(first, first + size) for first in range(0, cell.size, size)]
    total, lock = cell.size * cells.steps, Lock()
    with progress_bar(total, what=what, show=show) as bar:

        def follow(piece: slice) -> None:
            for n in range(*piece.indices(cell.size)):
                sgd = replace(
                    cells.sgd,
                    learning_rate=float(cells.learning_rate[cell[n]]),
                    batch_size=int(cells.batch_size[cell[n]]),
                )
                losses[n], diverged_at[n] = _follow(system, sgd, number[n], recorded, cells.seed)
                with lock:
                    bar.update(cells.steps)

        pool.map(follow, pieces)
    # Back to cells x replicas; the one run of a deterministic cell stands for all of it.
    loss = np.repeat(losses[: len(cells), None], cells.replicas, axis=1)
    diverged = np.repeat(diverged_at[: len(cells), None], cells.replicas, axis=1)
    loss[cell, row], diverged[cell, row] = losses, diverged_at
    mean, typical = runs.growth_of_runs(loss, diverged, recorded)
    ended = loss[:, :, -1]
    gone = ~(ended <= runs.DIVERGED * loss[:, :, 0])
    return Measurement(mean, typical, gone.mean(axis=1), np.median(ended, axis=1), total)


def _follow(
    system: System, sgd: SGD, replica: int, recorded: IntArray, seed: int
) -> tuple[FloatArray, int]:
    """Return the losses of one run where they are looked at, and the step of its divergence."""
    lanes = words.start_lanes(system, sgd, 1)
    lanes.replica[:] = replica
    losses = np.full(recorded.size, _loss(system, sgd, lanes, 0))
    for k in range(1, recorded.size):
        before, step = int(recorded[k - 1]), int(recorded[k])
        words.advance(system, sgd, lanes, slice(None), seed, 0, before, step - before)
        losses[k:] = _loss(system, sgd, lanes, step)
        if not runs.CONVERGED * losses[0] < losses[k] < np.inf:
            break
    return losses, int(lanes.diverged_at[0])


def _loss(system: System, sgd: SGD, lanes: words.Lanes, step: int) -> float:
    if lanes.diverged_at[0] >= 0:
        return np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        at = words.words_at(system, sgd, lanes, 0, step)
        loss = words.Snapshot(system, sgd, at, 0, np.random.default_rng).loss
    return loss if np.isfinite(loss) else np.inf
