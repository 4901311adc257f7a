"""State of replicas that are stepped together, and the groups they are cut into."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel.laws.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel
from quadmodel.simulation._kernels.arguments import AnyFloats

DOUBLE: np.dtype[np.floating] = np.dtype(np.float64)


class Replicas(NamedTuple):
    """Replicas that share one model: one row per replica.

    The state of a linear model is its residual, that of a quadratic one its parameters. `number`
    stands for the replica in the random stream; `diverged_at` is the step after which its state
    was frozen, or -1.
    """

    state: AnyFloats
    old: AnyFloats  # states one step before
    learning_rate: FloatArray
    batch_size: IntArray
    number: IntArray
    diverged_at: IntArray

    @property
    def size(self) -> int:
        """How many replicas there are."""
        return len(self.number)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which replicas have not diverged."""
        return self.diverged_at < 0

    def chosen(self, which: NDArray[np.bool_] | IntArray | slice) -> Replicas:
        """Return some replicas: views of a slice, copies by a mask or by their rows."""
        return Replicas(*(array[which] for array in self))  # type: ignore[arg-type]

    def put_back(self, which: NDArray[np.bool_] | IntArray, moved: Replicas) -> None:
        """Write back what has changed in a copy of some replicas."""
        self.state[which], self.old[which] = moved.state, moved.old
        self.diverged_at[which] = moved.diverged_at


def start_replicas(
    model: QuadraticModel,
    learning_rate: FloatArray,
    batch_size: IntArray,
    number: IntArray,
    dtype: np.dtype[np.floating] = DOUBLE,
) -> Replicas:
    """Put every replica at the model's initial parameters."""
    count = len(number)
    state: AnyFloats
    if model.curvature is None:
        state = np.tile(model.residual.astype(dtype), (count, 1))
    else:
        state = np.zeros((count, model.n_params), dtype)
    return Replicas(
        state,
        state.copy(),
        np.ascontiguousarray(learning_rate, dtype=np.float64),
        np.ascontiguousarray(batch_size, dtype=np.int64),
        np.ascontiguousarray(number, dtype=np.int64),
        np.full(count, -1, dtype=np.int64),
    )


def residuals(model: QuadraticModel, states: AnyFloats) -> FloatArray:
    """Return the residuals, shape (replicas, n_data), of replicas from their states."""
    state = np.asarray(states, np.float64)
    if model.curvature is None:
        return state
    z: FloatArray = model.residual + state @ model.jacobian.T
    if isinstance(model.curvature, LowRankCurvature):
        along = np.einsum("ark,nk->nar", model.curvature.vectors, state, optimize=True)
        z += 0.5 * np.einsum("ar,nar->na", model.curvature.coefficients, along**2)
        return z
    for i, matrix in enumerate(model.curvature):
        z[:, i] += 0.5 * np.einsum("nk,nk->n", state @ matrix, state)
    return z


def groups(count: int, at_most: int = 1024, *, at_least: int = 8) -> list[slice]:
    """Cut replicas into about four groups."""
    size = min(max(-(-count // 4), at_least), at_most)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
