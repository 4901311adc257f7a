"""A rule for the learning rate, followed by every replica on its own."""

from __future__ import annotations

import numpy as np

from quadmodel._util.checks import IntArray
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD, HoldK
from quadmodel.simulation import observables
from quadmodel.simulation._replicas import Replicas
from quadmodel.simulation._snapshots import Snapshots

# Norms that can be held here, and the names of what is measured for them.
MEASURED = {
    "exact": "noise_kernel_norm_exact",
    "finite": "noise_kernel_norm_finite",
    "paper": "noise_kernel_norm",
}


def first_learning_rate(model: QuadraticModel, sgd: SGD, rule: HoldK) -> float:
    """Return the learning rate at which K of the initial NTK is at the target."""
    values, vectors = model.eigensystem

    def norm_at(rate: float) -> float:
        at = sgd._at(learning_rate=rate)
        if rule.norm == "exact":
            return observables.exact_noise_kernel_norm(values, vectors, at)
        one = np.ones(1)
        norms = observables.noise_kernel_norms(values[None], rate * one, at.batch_size * one, at)
        return float(norms[("paper", "finite").index(rule.norm)][0])

    trace = float(values.sum())
    return rule.settled(norm_at, 2 * sgd.batch_size * rule.target / trace if trace > 0 else 1.0)


def with_renewals(recorded: IntArray, rule: HoldK | None) -> IntArray:
    """Return the steps before which something is to be done: records and renewals."""
    if rule is None:
        return recorded
    return np.unique(np.concatenate([recorded, np.arange(0, recorded[-1], rule.every)]))


def renew(rule: HoldK, replicas: Replicas, snapshots: Snapshots, step: int) -> None:
    """Renew the learning rates of all that have not diverged, in place."""
    for rows, snapshot in snapshots.take(replicas, step):
        norms = np.broadcast_to(getattr(snapshot, MEASURED[rule.norm]), rows.shape)
        for row, norm in zip(rows, norms, strict=True):
            rate = float(replicas.learning_rate[row])
            replicas.learning_rate[row] = rule.renewed(rate, float(norm))
