"""Replicas in the large-P limit: coefficients of basis states, and how they are advanced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.threads import steps_at_once, stretches
from quadmodel.large_p import _kernel
from quadmodel.large_p._system import System
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD
from quadmodel.simulation._stepper import DIVERGENCE_LIMIT


@dataclass
class Replicas:
    """A row per replica: coefficients, those one step before if there is momentum, and a step.

    `current` holds, per first data index, the step that a row of the highest order has reached.
    """

    coefficients: FloatArray
    previous: FloatArray
    current: IntArray
    replica_number: IntArray
    diverged_at: IntArray

    def arrays(self, rows: slice) -> _kernel.Coefficients:
        """Return some replicas as compiled code takes them."""
        return _kernel.Coefficients(
            self.coefficients[rows],
            self.previous[rows],
            self.current[rows],
            self.replica_number[rows],
            self.diverged_at[rows],
        )


def start_replicas(system: System, sgd: SGD, replica_number: IntArray) -> Replicas:
    """Put every replica at the initial parameters."""
    n_states, count = sum(system.sizes), len(replica_number)
    return Replicas(
        np.zeros((count, n_states)),
        np.zeros((count, n_states if sgd.momentum else 0)),
        np.zeros((count, system.n_indices), np.int64),
        replica_number,
        np.full(count, -1, dtype=np.int64),
    )


def bytes_needed(system: System, sgd: SGD, replicas: int, threads: int, draws: int) -> float:
    """Return the memory of replicas, and of stepping and measuring them."""
    n_states, n_data = float(min(sum(system.sizes), 10**300)), len(system.residual)
    copies = 2.0 if sgd.momentum else 1.0
    return 8.0 * (
        replicas * (copies * n_states + system.n_indices)
        + threads * (copies * n_states + n_states + (12.0 + 8.0 * draws) * n_data**2)
    )


def update_of(sgd: SGD, seed: int = 0, model_index: int = 0) -> _kernel.Update:
    """Return the coefficients of a step and the stream of its batches."""
    extrapolation = sgd.momentum if sgd.nesterov else 0.0
    decay = sgd.learning_rate * sgd.weight_decay
    return _kernel.Update(
        sgd.learning_rate,
        sgd.batch_size,
        extrapolation,
        1.0 + sgd.momentum - decay * (1.0 + extrapolation),
        -sgd.momentum + decay * extrapolation,
        SAMPLING_SCHEMES.index(sgd.sampling),
        np.uint64(seed),
        model_index,
        DIVERGENCE_LIMIT["quadratic"],
    )


def advance(
    system: System, update: _kernel.Update, state: Replicas, rows: slice, step: int, n_steps: int
) -> None:
    """Take steps from `step` on with some replicas, in place."""
    first, last, _ = rows.indices(len(state.diverged_at))
    *lower, highest = system.sizes
    active = update.batch_size / system.n_indices if system.independent else 1.0
    cost = 1000.0 + 4.0 * (highest * active + len(lower) * sum(lower))
    # Replica by replica where one step with all of them would take long.
    together = last - first if steps_at_once(cost * (last - first)) > 1 else 1
    for replica in range(first, last, max(together, 1)):
        some = state.arrays(slice(replica, min(replica + together, last)))
        for start, count in stretches(step, n_steps, cost * together):
            _kernel.advance(system.arrays, update, some, start, count)


def components(
    system: System, sgd: SGD, state: Replicas, replica: int, step: int
) -> list[FloatArray]:
    """Return a replica's coefficients of every order, with rows by first data index, at a step."""
    coefficients, sizes = state.coefficients[replica], system.sizes
    if sgd.momentum or sgd.weight_decay:
        # Rows of the highest order are updated lazily: work on an up-to-date copy.
        coefficients, lower = coefficients.copy(), sum(sizes[:-1])
        previous = state.previous[replica][lower:].copy()
        _kernel.bring_up_to_date(
            coefficients[lower:], previous, state.current[replica], step, update_of(sgd)
        )
    lowest, *others = np.split(coefficients, np.cumsum(sizes)[:-1])
    rows = (tau.reshape(system.n_indices, n) for tau, n in zip(others, sizes, strict=False))
    return [lowest, *rows]
