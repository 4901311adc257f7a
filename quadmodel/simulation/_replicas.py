"""Replicas in lockstep: state, and how groups of them are handed to the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.threads import Workers
from quadmodel.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD
from quadmodel.simulation._kernels import linear as _linear_kernels
from quadmodel.simulation._kernels import plain as _kernels
from quadmodel.simulation._kernels import vector as _vector_kernels
from quadmodel.simulation._kernels import vectors as _vectors
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.columns import tiled

# Compiled functions know more about their arguments than mypy does.
_LINEAR: Any = _linear_kernels
_BY_VECTORS: Any = _vector_kernels
_BY_LOOPS: Any = _kernels

# A run counts as diverged when its squared norm passes this multiple of its initial scale: far from
# overflow, far above anything that comes back.
DIVERGENCE_LIMIT = {"linear": 1e200, "quadratic": 1e100}
# Operations per step from which on threads share the data points instead of the lanes, and parts.
_SHARED, _PARTS = 3e6, 4
# How NTK, or Jacobian and curvature, are kept, and their products.
STORED: dict[str, Any] = {"float64": np.dtype(np.float64), "mixed": np.dtype(np.float32)}
PRECISIONS = tuple(STORED)


@dataclass
class Lanes:
    """Replicas that share one model: one row per replica.

    The state of a linear model is its residual, that of a quadratic one its parameters.
    """

    state: FloatArray
    old: FloatArray
    learning_rate: FloatArray
    batch_size: IntArray
    replica: IntArray
    diverged_at: IntArray

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which lanes have not diverged."""
        return self.diverged_at < 0

    def chosen(self, which: NDArray[Any]) -> Lanes:
        """Return a copy of some lanes, by a mask or by their numbers."""
        return Lanes(*(getattr(self, field.name)[which] for field in fields(self)))

    def put_back(self, which: NDArray[Any], moved: Lanes) -> None:
        """Write back what has changed in a copy of some lanes."""
        for name in ("state", "old", "diverged_at"):
            getattr(self, name)[which] = getattr(moved, name)

    def rows(self, rows: slice) -> tuple[Any, ...]:
        """Return some lanes as the kernels take them."""
        return (
            self.state[rows],
            self.old[rows],
            self.learning_rate[rows],
            self.batch_size[rows],
            self.replica[rows],
            self.diverged_at[rows],
        )


def start_lanes(
    model: QuadraticModel, learning_rate: FloatArray, batch_size: IntArray, replica: IntArray
) -> Lanes:
    """Put every lane at the model's initial parameters."""
    n = len(replica)
    if model.curvature is None:
        state = np.tile(model.residual, (n, 1))
    else:
        state = np.zeros((n, model.n_params))
    return Lanes(
        state,
        state.copy(),
        np.ascontiguousarray(learning_rate, dtype=np.float64),
        np.ascontiguousarray(batch_size, dtype=np.int64),
        np.ascontiguousarray(replica, dtype=np.int64),
        np.full(n, -1, dtype=np.int64),
    )


class Stepper:
    """Advances lanes on one model with one kind of SGD, in parallel threads.

    How the work is cut depends on model and lanes alone, not on the number of threads: sums and
    matrix products may round differently with their extent, and results must be the same bits.
    """

    def __init__(
        self,
        model: QuadraticModel,
        sgd: SGD,
        *,
        seed: int,
        model_index: int = 0,
        precision: str = "float64",
    ) -> None:
        """Choose the kernels and arrange what they read."""
        self._linear = model.curvature is None
        limit = DIVERGENCE_LIMIT["linear"] * max(float(model.residual @ model.residual), 1e-100)
        self._options = (
            sgd.momentum,
            sgd.nesterov,
            sgd.weight_decay,
            SAMPLING_SCHEMES.index(sgd.sampling),
            np.uint64(seed),
            model_index,
            limit if self._linear else DIVERGENCE_LIMIT["quadratic"],
        )
        self._n_data, self._padded = model.n_data, model.n_params
        self._arrays: tuple[Any, ...]
        curvature, jacobian = model.curvature, model.jacobian
        if curvature is None:
            ntk = np.asarray(model.ntk(), STORED[precision])
            self._arrays = (*tiled(ntk), ntk, model.residual)
            return
        kernels = _BY_VECTORS if _vectors.AVAILABLE else _BY_LOOPS
        dtype = STORED[precision]
        # Of points and gradients.
        self._dtype = dtype if isinstance(curvature, LowRankCurvature) else np.dtype(np.float64)
        if isinstance(curvature, LowRankCurvature):
            self._rows, self._advance = kernels.low_rank_rows, kernels.advance_low_rank
            vectors = np.asarray(curvature.vectors, dtype)
            self._arrays = (vectors, curvature.coefficients, np.asarray(jacobian, dtype))
            self._operations = 4.0 * curvature.vectors[0].size
            if _vectors.AVAILABLE:
                rows = _BY_VECTORS.stacked(curvature.vectors, jacobian, dtype)
                self._arrays = (rows, curvature.coefficients)
                self._padded = rows.shape[2]
        else:
            self._rows, self._advance = kernels.dense_rows, kernels.advance_dense
            self._arrays = (np.asarray(curvature, dtype), jacobian)
            self._operations = 2.0 * model.n_params**2
            if _vectors.AVAILABLE:
                self._arrays = _BY_VECTORS.packed(curvature, jacobian, dtype)
                self._padded = self._arrays[1].shape[1]
        self._arrays += (model.residual,)

    def advance(self, lanes: Lanes, first_step: int, n_steps: int, workers: Workers) -> None:
        """Take `n_steps` steps with every lane, in place."""
        count = len(lanes.replica)
        if self._linear:
            # Lanes with large batches together, and first: they share matrix products.
            order = np.argsort(-lanes.batch_size, kind="stable")
            options = (*self._options[:-1], first_step, n_steps, self._options[-1])

            def step_linear(rows: slice) -> None:
                which = order[rows]
                _LINEAR.advance_linear(
                    *self._arrays,
                    lanes.state,
                    lanes.old,
                    lanes.learning_rate[which],
                    lanes.batch_size[which],
                    lanes.replica[which],
                    lanes.diverged_at,
                    which,
                    *options,
                )

            # So few that they stay in the second-level cache, so many that reading columns pays.
            workers.map(step_linear, groups(count, 256))
        elif float(lanes.batch_size.sum()) * self._operations < _SHARED:

            def step(rows: slice) -> None:
                some, room = lanes.rows(rows), self._room(rows.stop - rows.start, 1)
                self._advance(self._arrays, some, self._options, room, first_step, n_steps)

            workers.map(step, groups(count, 1024))
        else:
            self._share(lanes, first_step, n_steps, workers)

    def _share(self, lanes: Lanes, first_step: int, n_steps: int, workers: Workers) -> None:
        """Take steps in which threads share the data points, each with its part of the gradient."""
        every = [
            (lanes.rows(rows), self._room(rows.stop - rows.start, _PARTS))
            for rows in groups(len(lanes.replica), 2304, at_least=2304)
        ]
        parts = [(group, part) for group in range(len(every)) for part in range(_PARTS)]

        def begin(group: int, step: int) -> None:
            some, room = every[group]
            if step > first_step:
                _BY_LOOPS.apply_gradients(some, self._options, step - 1, room[-1])
            if step < first_step + n_steps:
                _BY_LOOPS.draw_lanes(some, self._options, step, *room[:-1])

        def add(task: tuple[int, int]) -> None:
            group, part = task
            point, _, _, pointer, entries, gradients = every[group][1]
            self._rows(self._arrays, point, pointer, entries, part, _PARTS, gradients[part])

        for step in range(first_step, first_step + n_steps + 1):
            workers.map(partial(begin, step=step), range(len(every)))
            if step < first_step + n_steps:
                workers.map(add, parts)

    def _room(self, count: int, parts: int) -> tuple[Any, ...]:
        """Return arrays that the kernels write to."""
        shape = count + 1, self._padded
        return (
            aligned_zeros(*shape, dtype=self._dtype),
            np.empty((count, self._n_data), np.int64),
            np.zeros(count, np.int64),
            np.zeros(self._n_data + 1, np.int64),
            np.empty(count * self._n_data, np.int64),
            aligned_zeros(parts, *shape, dtype=self._dtype),
        )


def stored_bytes(model: QuadraticModel, precision: str = "float64") -> float:
    """Return what a stepper keeps beside the model, in bytes."""
    dtype, curvature = STORED[precision], model.curvature
    copied = precision != "float64"
    if curvature is None:
        tiles = _vectors.AVAILABLE
        return float(dtype.itemsize * (copied + tiles) * model.n_data**2)
    if isinstance(curvature, LowRankCurvature):
        size = curvature.vectors.size + model.jacobian.size
        return float(dtype.itemsize * size * (_vectors.AVAILABLE or copied))
    if _vectors.AVAILABLE:
        return float(_BY_VECTORS.packed_bytes(*model.jacobian.shape, dtype))
    return float(dtype.itemsize * curvature.size * copied)


def groups(n_lanes: int, at_most: int = 1024, *, at_least: int = 8) -> list[slice]:
    """Cut lanes into about four groups."""
    size = min(max(-(-n_lanes // 4), at_least), at_most)
    return [slice(first, min(first + size, n_lanes)) for first in range(0, n_lanes, size)]
