"""Measurement of many (learning rate, batch size) cells that share one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from quadmodel._util.checks import FloatArray, IntArray, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import Workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation import observables
from quadmodel.simulation._replicas import Lanes, Stepper, groups, start_lanes, stored_bytes
from quadmodel.simulation.populations import Growth, population_growth

MIN_STEPS = 32
# Members of the populations of deterministic cells.
_QUIET = 2
# Losses are looked at this often, and runs that have converged are then left where they are.
WINDOWS = 8
# A run is called diverged if its loss overflowed or ended above this multiple of where it began.
DIVERGED = 10.0
# Below this multiple of the initial loss a run has converged: the rest is rounding, which begins
# higher where residuals are sums of products in single precision.
CONVERGED = 1e-24
_CONVERGED_IN_SINGLE = 1e-10
# Below this multiple of that, runs are stepped no more.
_STOPPED = 1.0


@dataclass(frozen=True)
class Cells:
    """Cells to measure: learning rates and batch sizes, shape (cells,), and what they share.

    `sgd` gives momentum, weight decay and sampling. Batches are a function of (seed, replica,
    step); every cell has replica numbers of its own, counted from `first_replica`.
    """

    learning_rate: FloatArray
    batch_size: IntArray
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    first_replica: int = 0
    precision: str = "float64"

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.learning_rate)

    def deterministic(self, n_data: int) -> NDArray[np.bool_]:
        """Return which cells have full batches, so that all their runs are alike."""
        whole = self.sgd.sampling == "without_replacement"
        return np.asarray((self.batch_size == n_data) & whole)


@dataclass(frozen=True)
class Measurement:
    """Growth rates per step of the mean and of the typical log loss, and how runs end."""

    mean: Growth
    typical: Growth
    fraction_diverged: FloatArray
    final_loss: FloatArray
    replica_steps: int

    def variables(self) -> dict[str, FloatArray]:
        """Return the arrays, shape (cells,), by the names that results use."""
        return {
            "mean_growth": self.mean.rate,
            "mean_growth_standard_error": self.mean.standard_error,
            "typical_growth": self.typical.rate,
            "typical_growth_standard_error": self.typical.standard_error,
            "fraction_diverged": self.fraction_diverged,
            "final_loss": self.final_loss,
        }


def measure_cells(
    model: QuadraticModel, cells: Cells, pool: Workers, *, what: str = "cells", show: bool = False
) -> Measurement:
    r"""Simulate every cell and measure how its loss grows.

    Parameters
    ----------
    model : QuadraticModel
        The model that all cells share.
    cells : Cells
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
        Arrays of shape (cells,).

    Raises
    ------
    MemoryError
        If the runs don't fit in memory.

    Notes
    -----
    *Runs.* Plain runs from the model's initial parameters give the fraction diverged (overflow, or
    a final loss above ten times the initial one) and the median final loss. Cells with full batches
    are deterministic: one run stands for all. Runs that have diverged or converged at one of eight
    looks are stepped no more; converged are those whose loss is below 1e-24 of its start, or 1e-10
    where curvature is in single precision.

    *Growth, linear model.* See :func:`quadmodel.simulation.populations.population_growth`.

    *Growth, quadratic model.* The recursion depends on size, so the plain runs are used: a run's
    growth is that of its log loss over the second half of the steps, or up to its divergence or
    convergence. Typical growth is the median over replicas; growth of the mean is the log of the
    mean of exp(growth x window), per step, with a window of steps/32: a single diverging run
    among many makes it positive.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2, for the dynamics.
    """
    lanes, cell, row = _start_runs(model, cells)
    linear = model.curvature is None
    members = np.where(cells.deterministic(model.n_data), _QUIET, cells.replicas)
    total = (cell.size + (2 * int(members.sum()) if linear else 0)) * cells.steps
    with progress_bar(total, what=what, show=show) as bar:
        recorded = np.linspace(0, cells.steps, WINDOWS + 1).astype(np.int64)
        stepper = Stepper(model, cells.sgd, seed=cells.seed, precision=cells.precision)
        losses = np.full((cell.size, recorded.size), model.loss())
        running = np.ones(cell.size, dtype=bool)
        converged = _converged(model, cells.precision)
        for k in range(1, recorded.size):
            n_steps = int(recorded[k] - recorded[k - 1])
            moved = lanes.chosen(running)
            stepper.advance(moved, int(recorded[k - 1]), n_steps, pool)
            lanes.put_back(running, moved)
            losses[:, k] = losses[:, k - 1]
            losses[running, k] = np.concatenate(
                pool.map(partial(_losses, model, moved), groups(len(moved.replica)))
            )
            bar.update(cell.size * n_steps)
            running &= lanes.alive & (losses[:, k] > _STOPPED * converged * model.loss())
            if not running.any():
                losses[:, k + 1 :] = losses[:, k, None]
                bar.update(cell.size * int(cells.steps - recorded[k]))
                break
        # Back to cells x replicas; the one run of a deterministic cell stands for all of it.
        loss = np.repeat(losses[: len(cells), None], cells.replicas, axis=1)
        diverged_at = np.repeat(lanes.diverged_at[: len(cells), None], cells.replicas, axis=1)
        loss[cell, row], diverged_at[cell, row] = losses, lanes.diverged_at
        if linear:
            mean, typical = _growth_of_populations(model, cells, pool, bar.update)
        else:
            mean, typical = growth_of_runs(loss, diverged_at, recorded, converged)
    ended = loss[:, :, -1]
    diverged = ~(ended <= DIVERGED * model.loss())
    return Measurement(mean, typical, diverged.mean(axis=1), np.median(ended, axis=1), total)


def _start_runs(model: QuadraticModel, cells: Cells) -> tuple[Lanes, IntArray, IntArray]:
    """Return lanes with the cell and the replica of each, one replica for deterministic cells.

    They go replica by replica, so that every group of lanes holds all kinds of cells.
    """
    cell = np.tile(np.arange(len(cells)), cells.replicas)
    row = np.repeat(np.arange(cells.replicas), len(cells))
    kept = (row == 0) | ~cells.deterministic(model.n_data)[cell]
    cell, row = cell[kept], row[kept]
    width = model.n_data if model.curvature is None else 5 * model.n_params + 2 * model.n_data
    runs = 8.0 * cell.size * (2 * width + WINDOWS)
    check_memory("the runs", runs + stored_bytes(model, cells.precision))
    number = cells.first_replica + cell * cells.replicas + row
    lanes = start_lanes(model, cells.learning_rate[cell], cells.batch_size[cell], number)
    return lanes, cell, row


def _losses(model: QuadraticModel, lanes: Lanes, rows: slice) -> FloatArray:
    loss = np.full(len(lanes.replica[rows]), np.inf)
    alive = lanes.alive[rows]
    with np.errstate(over="ignore", invalid="ignore"):
        z = observables.residuals(model, lanes.state[rows][alive])
        loss[alive] = np.einsum("na,na->n", z, z) / (2 * model.n_data)
    return np.where(np.isfinite(loss), loss, np.inf)


def _converged(model: QuadraticModel, precision: str) -> float:
    """Return the multiple of the initial loss below which a run has converged."""
    single = precision != "float64" and model.curvature is not None
    return _CONVERGED_IN_SINGLE if single else CONVERGED


def _growth_of_populations(
    model: QuadraticModel, cells: Cells, pool: Workers, advance: Callable[[int], object]
) -> tuple[Growth, Growth]:
    """Return the growth of a linear model; two replicas, without noise, for deterministic cells."""
    rates = np.empty((2, 2, len(cells)))
    deterministic = cells.deterministic(model.n_data)
    first = cells.first_replica + len(cells) * cells.replicas
    for chosen, replicas in ((~deterministic, cells.replicas), (deterministic, _QUIET)):
        if chosen.any():
            growth = population_growth(
                model,
                cells.learning_rate[chosen],
                cells.batch_size[chosen],
                cells.sgd,
                steps=cells.steps,
                replicas=replicas,
                seed=cells.seed,
                first_replica=first,
                pool=pool,
                precision=cells.precision,
                advance=advance,
            )
            rates[:, :, chosen] = [[g.rate, g.standard_error] for g in growth]
    return Growth(*rates[0]), Growth(*rates[1])


def growth_of_runs(
    loss: FloatArray, diverged_at: IntArray, recorded: IntArray, converged: float = CONVERGED
) -> tuple[Growth, Growth]:
    """Return growth of the mean and of the typical loss from losses (cells, replicas, records)."""
    steps, replicas = int(recorded[-1]), loss.shape[1]
    middle = (recorded.size - 1) // 2
    floor = converged * loss[:, :, :1]
    explosion = np.log(1e100) - np.log(loss[:, :, 0])
    with np.errstate(invalid="ignore"):
        log_loss = np.log(np.maximum(loss, floor))
        growth = (log_loss[:, :, -1] - log_loss[:, :, middle]) / (steps - recorded[middle])
    # Converged before the second half, or diverged: the average up to that moment.
    converged_at = recorded[np.argmax(loss <= floor, axis=2)]
    early = loss[:, :, middle] <= floor[:, :, 0]
    growth[early] = np.log(converged) / converged_at[early]
    blown = (diverged_at >= 0) | ~np.isfinite(loss[:, :, -1])
    growth[blown] = explosion[blown] / np.where(diverged_at >= 0, diverged_at, steps)[blown]
    window = steps / 32
    mean = (logsumexp(growth * window, axis=1) - np.log(replicas)) / window
    weight = np.exp((growth - mean[:, None]) * window)
    # 1.2533 = sqrt(pi/2): standard error of a median over that of a mean, for a normal law.
    return (
        Growth(mean, weight.std(axis=1, ddof=1) / window / replicas**0.5),
        Growth(np.median(growth, axis=1), 1.2533 * growth.std(axis=1, ddof=1) / replicas**0.5),
    )
