"""Growth of the loss at many (learning rate, batch size) grid points that share one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from quadmodel._util.checks import FloatArray, IntArray, check_memory
from quadmodel._util.threads import Workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._replicas import Replicas, groups, residuals, start_replicas
from quadmodel.simulation._stepper import Stepper, stored_bytes
from quadmodel.simulation.populations import Growth, Part, population_growth

MIN_STEPS = 32
# Replicas per full-batch grid point; without noise they are identical.
_NOISE_FREE = 2
# Losses are computed this often, and runs that have converged are then stepped no more.
WINDOWS = 8
# A run is called diverged if its loss overflowed or ended above this multiple of where it began.
_DIVERGED = 10.0
# Below this multiple of the initial loss a run has converged: the rest is rounding, which begins
# higher where residuals are sums of products in single precision.
CONVERGED = 1e-24
_CONVERGED_IN_SINGLE = 1e-10
# Below this multiple of the loss at which they count as converged, runs are stepped no more.
_STOPPED = 1.0
# Growth of a linear model is measured in an eighth of the steps first, but in so many at least.
_SHORTER, _SHORTEST = 8, 128
# That is enough where it is so many standard errors from zero, and has changed the loss by so many
# factors e since it was first measured.
_CERTAIN, _E_FOLDS = 4.0, 4.0


class Place(NamedTuple):
    """Where grid points stand in a whole grid: their first one's index, and how many there are.

    Those with noise are counted for themselves, too.
    """

    first: int
    total: int
    first_noisy: int
    total_noisy: int


@dataclass(frozen=True)
class GridPoints:
    """Grid points to measure: learning rates and batch sizes, and what they share.

    Both have shape (grid points,). `sgd` gives momentum, weight decay and sampling. Batches are a
    function of (seed, replica, step); every grid point has replica numbers of its own, counted from
    `first_replica`: that of the whole grid, where these points are a part of one, in their `place`.
    """

    learning_rate: FloatArray
    batch_size: IntArray
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    first_replica: int = 0
    precision: str = "float64"
    place: Place | None = None

    def __len__(self) -> int:
        """Return the number of grid points."""
        return len(self.learning_rate)

    def parts(self, pieces: Sequence[slice], n_data: int) -> list[GridPoints]:
        """Cut a whole grid into parts, which have the same runs as in all of it."""
        noisy = np.concatenate([[0], np.cumsum(~self.deterministic(n_data))])
        return [
            replace(
                self,
                learning_rate=self.learning_rate[some],
                batch_size=self.batch_size[some],
                place=Place(some.start, len(self), int(noisy[some.start]), int(noisy[-1])),
            )
            for some in pieces
        ]

    def placed(self, n_data: int) -> Place:
        """Return where these points stand: they are the whole grid unless something else is set."""
        noisy = int((~self.deterministic(n_data)).sum())
        return self.place or Place(0, len(self), 0, noisy)

    def deterministic(self, n_data: int) -> NDArray[np.bool_]:
        """Return which grid points have full batches, so that all their runs are alike."""
        whole = self.sgd.sampling == "without_replacement"
        return np.asarray((self.batch_size == n_data) & whole)

    def recorded(self) -> IntArray:
        """Return the steps at which losses are computed."""
        return np.linspace(0, self.steps, WINDOWS + 1).astype(np.int64)

    def runs(self, n_data: int) -> Runs:
        """Return the runs to take: all replicas, or one where all of them are alike.

        The first replicas of all grid points come first, so that every group of runs holds all
        kinds of grid points.
        """
        point = np.tile(np.arange(len(self)), self.replicas)
        row = np.repeat(np.arange(self.replicas), len(self))
        kept = (row == 0) | ~self.deterministic(n_data)[point]
        point, row = point[kept], row[kept]
        first = self.placed(n_data).first + point
        return Runs(point, row, self.first_replica + first * self.replicas + row)


class Runs(NamedTuple):
    """Of every run: its grid point, its row among that point's replicas, its replica number."""

    point: IntArray
    row: IntArray
    number: IntArray

    def by_point(self, values: NDArray[Any], grid: GridPoints) -> NDArray[Any]:
        """Return an array over runs as one over (grid points, replicas).

        The one run of a deterministic grid point stands for all of its replicas.
        """
        every = np.repeat(values[: len(grid), None], grid.replicas, axis=1)
        every[self.point, self.row] = values
        return every


@dataclass(frozen=True)
class Measurement:
    """Growth rates per step of the mean and of the typical log loss, and how runs end.

    `growth_steps` is how many steps the growth rates are from, shape (grid points,).
    """

    mean: Growth
    typical: Growth
    growth_steps: IntArray
    fraction_diverged: FloatArray
    final_loss: FloatArray
    replica_steps: int

    def variables(self) -> dict[str, FloatArray]:
        """Return the arrays, shape (grid points,), by the names that results use."""
        return {
            "mean_growth": self.mean.rate,
            "mean_growth_standard_error": self.mean.standard_error,
            "typical_growth": self.typical.rate,
            "typical_growth_standard_error": self.typical.standard_error,
            "fraction_diverged": self.fraction_diverged,
            "final_loss": self.final_loss,
            "growth_steps": self.growth_steps.astype(float),
        }

    @classmethod
    def of(
        cls,
        growth: tuple[Growth, Growth],
        growth_steps: IntArray,
        loss: FloatArray,
        replica_steps: int,
    ) -> Measurement:
        """Return growth and how runs end; `loss` has shape (grid points, replicas, records)."""
        ended = loss[:, :, -1]
        diverged = ~(ended <= _DIVERGED * loss[:, :, 0])
        final = np.median(ended, axis=1)
        return cls(*growth, growth_steps, diverged.mean(axis=1), final, replica_steps)


def measure_growth(
    model: QuadraticModel,
    grid: GridPoints,
    pool: Workers,
    stepper: Stepper | None = None,
) -> Measurement:
    r"""Simulate every grid point and measure how its loss grows.

    Raises MemoryError if the runs don't fit in memory. `stepper` is what :func:`stepper_of`
    returns, where the caller has it.

    Notes
    -----
    *Runs.* Plain runs from the model's initial parameters give the fraction diverged (overflow, or
    a final loss above ten times the initial one) and the median final loss. Grid points with full
    batches are deterministic: one run stands for all. The loss is computed eight times, and runs
    that have then diverged or converged are stepped no more; converged are those whose loss is
    below 1e-24 of its start, or 1e-10 where curvature is in single precision.

    *Growth, linear model.* See :func:`quadmodel.simulation.populations.population_growth`. It is
    measured in an eighth of the steps first, and once more in all of them where that leaves a
    doubt: where the mean's or the typical growth is within four standard errors of zero, has
    changed the loss by less than :math:`e^4` in the second half of the steps, or is a decay that
    has not settled.

    *Growth, quadratic model.* The recursion depends on size, so the plain runs are used: a run's
    growth is that of its log loss over the second half of the steps, or up to its divergence or
    convergence. Typical growth is the median over replicas; growth of the mean is the log of the
    mean of exp(growth x window), per step, with a window of steps/32: a single diverging run
    among many makes it positive.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2, for the dynamics.
    """
    linear = model.curvature is None
    runs = grid.runs(model.n_data)
    width = model.n_data if linear else 5 * model.n_params + 2 * model.n_data
    held = 8.0 * runs.point.size * (2 * width + WINDOWS)
    if stepper is None:
        held += stored_bytes(model, grid.precision)
    check_memory("the runs", held)
    replicas = start_replicas(
        model, grid.learning_rate[runs.point], grid.batch_size[runs.point], runs.number
    )
    stepper = stepper or stepper_of(model, grid)
    losses, replica_steps = _step_runs(model, grid, replicas, stepper, pool)
    loss = runs.by_point(losses, grid)
    growth_steps = np.full(len(grid), grid.steps)
    if linear:
        growth, growth_steps, more = _growth_of_populations(model, grid, pool)
        replica_steps += more
    else:
        diverged_at = runs.by_point(replicas.diverged_at, grid)
        converged = _converged(model, grid.precision)
        growth = growth_of_runs(loss, diverged_at, grid.recorded(), converged)
    return Measurement.of(growth, growth_steps, loss, replica_steps)


def stepper_of(model: QuadraticModel, grid: GridPoints) -> Stepper:
    """Return what steps the runs of a grid and of all its parts."""
    return Stepper(model, grid.sgd, seed=grid.seed, precision=grid.precision)


def _step_runs(
    model: QuadraticModel, grid: GridPoints, replicas: Replicas, stepper: Stepper, pool: Workers
) -> tuple[FloatArray, int]:
    """Step the runs to the end, or until they have converged or diverged.

    Returns their losses, and the replica-steps that this took.
    """
    recorded = grid.recorded()
    losses = np.full((replicas.size, recorded.size), model.loss())
    running, replica_steps = np.ones(replicas.size, dtype=bool), 0
    stopped = _STOPPED * _converged(model, grid.precision) * model.loss()
    for k in range(1, recorded.size):
        n_steps = int(recorded[k] - recorded[k - 1])
        moved = replicas.chosen(running)
        stepper.advance(moved, int(recorded[k - 1]), n_steps, pool)
        replicas.put_back(running, moved)
        replica_steps += moved.size * n_steps
        losses[:, k] = losses[:, k - 1]
        losses[running, k] = np.concatenate(
            pool.map(partial(_losses, model, moved), groups(moved.size))
        )
        running &= replicas.alive & (losses[:, k] > stopped)
        if not running.any():
            losses[:, k + 1 :] = losses[:, k, None]
            break
    return losses, replica_steps


def _losses(model: QuadraticModel, replicas: Replicas, rows: slice) -> FloatArray:
    """Return the losses of some replicas; +inf for those that have diverged."""
    some = replicas.chosen(rows)
    alive, loss = some.alive, np.full(some.size, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        z = residuals(model, some.state[alive])
        loss[alive] = np.einsum("na,na->n", z, z) / (2 * model.n_data)
    return np.where(np.isfinite(loss), loss, np.inf)


def _converged(model: QuadraticModel, precision: str) -> float:
    """Return the multiple of the initial loss below which a run has converged."""
    single = precision != "float64" and model.curvature is not None
    return _CONVERGED_IN_SINGLE if single else CONVERGED


def _growth_of_populations(
    model: QuadraticModel, grid: GridPoints, pool: Workers
) -> tuple[tuple[Growth, Growth], IntArray, int]:
    """Return the growth of a linear model, the steps it is from, and the replica-steps taken.

    Two replicas, without noise, at deterministic points.
    """
    rates, steps, replica_steps = np.empty((2, 2, len(grid))), np.full(len(grid), grid.steps), 0
    deterministic, place = grid.deterministic(model.n_data), grid.placed(model.n_data)
    first = grid.first_replica + place.total * grid.replicas
    whole = Part(place.first - place.first_noisy, place.total - place.total_noisy)
    for chosen, replicas, part in (
        (np.flatnonzero(~deterministic), grid.replicas, Part(place.first_noisy, place.total_noisy)),
        (np.flatnonzero(deterministic), _NOISE_FREE, whole),
    ):
        doubtful = np.arange(chosen.size)
        for n_steps in _lengths(grid.steps):
            if not doubtful.size:
                break
            at = chosen[doubtful]
            growth = population_growth(
                model,
                grid.learning_rate[chosen],
                grid.batch_size[chosen],
                grid.sgd,
                steps=n_steps,
                replicas=replicas,
                seed=grid.seed,
                first_replica=first,
                pool=pool,
                precision=grid.precision,
                part=part._replace(chosen=doubtful),
            )
            rates[:, :, at] = [[g.rate, g.standard_error] for g in growth]
            steps[at] = n_steps
            replica_steps += len(growth) * at.size * replicas * n_steps
            doubtful = doubtful[~np.all([_certain(g, n_steps) for g in growth], axis=0)]
    return (Growth(*rates[0]), Growth(*rates[1])), steps, replica_steps


def _lengths(steps: int) -> list[int]:
    """Return how many steps growth is measured in: few at first, if that spares something."""
    short = max(steps // _SHORTER, _SHORTEST)
    return [short, steps] if 2 * short < steps else [steps]


def _certain(growth: Growth, steps: int) -> NDArray[np.bool_]:
    """Return where growth in so many steps leaves no doubt of its sign.

    What shrinks may be followed by what grows, unless it shrinks steadily.
    """
    size = np.abs(growth.rate)
    clear = (size > _CERTAIN * growth.standard_error) & (size * steps / 2 > _E_FOLDS)
    return np.asarray(clear & (growth.settled | (growth.rate > 0)))


def growth_of_runs(
    loss: FloatArray, diverged_at: IntArray, recorded: IntArray, converged: float = CONVERGED
) -> tuple[Growth, Growth]:
    """Return growth of the mean and of the typical loss.

    `loss` has shape (grid points, replicas, records).
    """
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
