"""Around the simulated boundaries of a phase diagram: a finer scan, and close-ups."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import Workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.populations import KINDS
from quadmodel.studies._close_up import POINTS, Guess, close_up, guess_from, most_replicas
from quadmodel.studies._spec import DiagramSpec, Variables
from quadmodel.sweeps._records import Record
from quadmodel.theory._inputs import NORMS, Spectrum
from quadmodel.theory._noise import norms_along


class HasModel(Protocol):
    """A model with its spectrum."""

    model: QuadraticModel
    spectrum: Spectrum


def scan_learning_rates(rates: FloatArray, grid: Variables, count: int) -> FloatArray:
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


class CloseUpUnit(NamedTuple):
    """A close-up of one crossing: of a kind of growth, at a batch size."""

    kind: str
    sgd: SGD
    guess: Guess
    steps: int
    replicas: int
    seed: int
    first_replica: int
    precision: str

    def compute(self, kept: HasModel, pool: Workers) -> Record:
        """Follow runs around the crossing until it is known, and set K beside it."""
        found = close_up(
            kept.model, self.sgd.batch_size, self.sgd, self.guess, kind=self.kind,
            steps=self.steps, replicas=self.replicas, seed=self.seed,
            first_replica=self.first_replica, pool=pool, precision=self.precision,
        )  # fmt: skip
        norms = np.array(
            [norms_along(kept.spectrum, self.sgd, found.learning_rate, norm) for norm in NORMS]
        )
        return {name: np.asarray(value) for name, value in vars(found).items()} | {
            "noise_kernel_norm": norms
        }


def close_ups(
    n_data: int, rates: FloatArray, grid: Variables, scan: Variables, spec: DiagramSpec, run: Any
) -> tuple[dict[str, np.ndarray], int]:
    """Return close-ups of the crossings of mean and typical growth, and the replica-steps taken.

    Arrays are along (kind, batch size), growth, learning rates and K along the points too. NaN, and
    K 0, where growth does not cross zero inside the scan, or without noise.
    """
    sizes = spec.batch_sizes
    shape = (len(KINDS), sizes.size)
    noisy = ~spec.points(np.ones(sizes.size), sizes, 0).deterministic(n_data)
    places = [(kind, int(j)) for j in np.flatnonzero(noisy) for kind in range(len(KINDS))]
    units: dict[tuple[int, int], CloseUpUnit] = {}
    for kind, j in places:
        guess = _guess(rates, grid, scan, KINDS[kind], j)
        if guess is not None:
            # Numbers beyond those of grid and scan.
            first = 2 * spec.replicas_of_grid
            first += (kind * sizes.size + j) * most_replicas(spec.replicas)
            units[kind, j] = CloseUpUnit(
                KINDS[kind], spec.sgd._at(batch_size=int(sizes[j])), guess, spec.steps,
                spec.replicas, spec.seed, first, spec.precision,
            )  # fmt: skip
    close: dict[str, np.ndarray] = {
        "learning_rate": np.full((*shape, POINTS), np.nan),
        "growth": np.full((*shape, POINTS), np.nan),
        "growth_standard_error": np.full((*shape, POINTS), np.nan),
        "correction": np.zeros(shape),
        "steps": np.zeros(shape, np.int64),
        "replicas": np.zeros(shape, np.int64),
        "settled": np.zeros(shape, bool),
        "needed_steps": np.zeros(shape, np.int64),
        "noise_kernel_norm": np.zeros((len(NORMS), *shape, POINTS)),
    }
    replica_steps = 0
    for place, record in zip(units, run("close-ups", list(units.values())), strict=True):
        if record is None:
            continue
        for name, values in close.items():
            if name == "noise_kernel_norm":
                values[:, place[0], place[1]] = record[name]
            else:
                values[place] = record[name]
        replica_steps += int(record["replica_steps"])
    return close, replica_steps


def _guess(rates: FloatArray, grid: Variables, scan: Variables, kind: str, j: int) -> Guess | None:
    """Return where the scan sees growth cross zero at one batch size; None where it does not."""

    def column(name: str) -> FloatArray:
        return np.concatenate([grid[name][:, j], scan[name][j]])

    x = np.log(np.concatenate([rates, scan["learning_rate"][j]]))
    growth, error = column(f"{kind}_growth"), column(f"{kind}_growth_standard_error")
    return guess_from(x, growth, error)
