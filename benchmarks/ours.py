"""quadmodel's own programs: its stepper on a grid of learning rates and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import quadmodel as qm
from benchmarks.timing import Program
from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import workers
from quadmodel.batches import batch_indices
from quadmodel.simulation._replicas import Replicas, start_replicas
from quadmodel.simulation._stepper import STEPPED, STORED, Stepper

SEED = 7
# The name that programs of ours begin with.
NAME = "quadmodel"
# Steps after which replicas start anew: numbers that have converged are slow or are not stepped.
_FRESH = 20_000


@dataclass(frozen=True)
class Grid:
    """Learning rates times batch sizes, with so many replicas at each grid point."""

    learning_rates: FloatArray
    batch_sizes: NDArray[np.int64]
    replicas: int

    def __len__(self) -> int:
        """Return the number of replicas at all grid points together."""
        return self.learning_rates.size * self.batch_sizes.size * self.replicas

    @property
    def per_replica(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Learning rate and batch size of each, the first replicas of all grid points first."""
        rates = np.repeat(self.learning_rates, self.batch_sizes.size)
        sizes = np.tile(self.batch_sizes, self.learning_rates.size)
        return np.tile(rates, self.replicas), np.tile(sizes, self.replicas)

    def describe(self) -> str:
        """Return its numbers in words."""
        return (
            f"{self.learning_rates.size} learning rates x {self.batch_sizes.size} batch sizes "
            f"({self.batch_sizes[0]} to {self.batch_sizes[-1]}) x {self.replicas} replicas"
        )


def stable_grid(model: qm.QuadraticModel, rates: int, sizes: int, replicas: int) -> Grid:
    """Return a grid on which no run diverges, whatever its batch size: every replica works."""
    critical = qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, 1), norm="finite")
    batch_sizes = np.unique(np.geomspace(1, model.n_data, sizes).round().astype(np.int64))
    return Grid(critical * np.geomspace(0.03, 0.3, rates), batch_sizes, replicas)


def precisions() -> list[str]:
    """Return the precisions that the stepper offers."""
    return list(STORED)


def start(
    model: qm.QuadraticModel, rates: FloatArray, sizes: NDArray[np.int64], precision: str
) -> tuple[Stepper, Replicas]:
    """Return a stepper of plain SGD, and replicas with the numbers 0, 1, ..."""
    stepper = Stepper(model, qm.SGD(1.0, 1), seed=SEED, precision=precision)
    return stepper, _fresh(model, rates, sizes, precision)


def _fresh(
    model: qm.QuadraticModel, rates: FloatArray, sizes: NDArray[np.int64], precision: str
) -> Replicas:
    return start_replicas(model, rates, sizes, np.arange(rates.size), STEPPED[precision])


def program(
    model: qm.QuadraticModel,
    rates: FloatArray,
    sizes: NDArray[np.int64],
    steps: int,
    threads: int,
    precision: str = "float64",
) -> Program:
    """Return the program that takes `steps` more steps with every replica, in replica-steps."""
    stepper, replicas = start(model, rates, sizes, precision)
    taken = 0

    def run() -> None:
        nonlocal replicas, taken
        if taken >= _FRESH:
            replicas, taken = _fresh(model, rates, sizes, precision), 0
        with workers(threads) as pool:
            stepper.advance(replicas, taken, steps, pool)
        taken += steps
        if not replicas.alive.all():
            raise RuntimeError("a replica diverged: less work would be done than is counted")

    return Program(NAME, precision, run, float(rates.size * steps))


def drawn_rows(n_data: int, batch_size: int, replicas: int, steps: int) -> NDArray[np.int32]:
    """Return the batches that replicas 0, 1, ... take, shape (replicas, steps, batch_size)."""
    return np.array(
        [
            [batch_indices(n_data, batch_size, seed=SEED, replica=r, step=t) for t in range(steps)]
            for r in range(replicas)
        ],
        dtype=np.int32,
    )


def drawn_masks(n_data: int, sizes: NDArray[np.int64], steps: int) -> NDArray[np.bool_]:
    """Return batches as masks, a batch size per replica, shape (steps, replicas, n_data)."""
    masks = np.zeros((steps, sizes.size, n_data), dtype=bool)
    for t in range(steps):
        for replica, size in enumerate(sizes.tolist()):
            batch = batch_indices(n_data, size, seed=SEED, replica=replica, step=t)
            masks[t, replica, batch] = True
    return masks
