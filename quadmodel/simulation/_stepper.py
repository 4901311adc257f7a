"""How replicas are handed to the compiled kernels: in groups, or with data points shared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import (
    Workers,
    give_way,
    short_pieces,
    steps_at_once,
    stop_if_asked,
    stretches,
)
from quadmodel.laws.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD
from quadmodel.simulation._kernels import plain, vector_dense, vector_low_rank, vectors
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.arguments import (
    Buffers,
    DenseModel,
    LinearModel,
    LowRankModel,
    Options,
    PackedModel,
    StackedModel,
    Turns,
)
from quadmodel.simulation._kernels.columns import tiled
from quadmodel.simulation._kernels.linear import advance_linear, gathered, workspace
from quadmodel.simulation._kernels.shapes import Shape, current_shape, linear_lanes
from quadmodel.simulation._kernels.turns import ENDED, MORE, turns
from quadmodel.simulation._replicas import Replicas, groups

# A run counts as diverged when its squared norm passes this multiple of its initial scale: far from
# overflow, far above anything that comes back.
DIVERGENCE_LIMIT = {"linear": 1e200, "quadratic": 1e100}
# Linear replicas per group: few enough to stay in the second-level cache, enough for reading the
# columns to pay.
_LINEAR_GROUP = 256
# Above this cost per step, in multiplications, threads split the data points, not the replicas.
_SHARED_FROM = 5e5
# Arrays of gradients that parts of the data points are then added to, replicas per group, and
# chunks that these are cut into.
_SLABS, _SHARED_GROUP, _CHUNKS = 4, 2304, 8
# Replicas per data point from which on vectors across replicas are faster than one after another.
_ACROSS_FROM = 2.0
# Multiplications that drawing a batch and other work on a replica count for, per step.
_AROUND = 1000.0
# Precision of the stored NTK, or Jacobian and curvature, and of products with them.
STORED: dict[str, np.dtype[np.floating]] = {
    "float64": np.dtype(np.float64),
    "mixed": np.dtype(np.float32),
    "float32": np.dtype(np.float32),
}
# Precision of residuals or parameters.
STEPPED = STORED | {"mixed": np.dtype(np.float64)}
# Those in which growth is measured, which takes residuals that shrink without end.
PRECISIONS = ("float64", "mixed")

# NTKs as the kernels read them, as long as their models live: units of a sweep share them.
_ARRANGED: WeakKeyDictionary[QuadraticModel, dict[Any, Any]] = WeakKeyDictionary()

CurvedModel = DenseModel | PackedModel | LowRankModel | StackedModel
Advance = Callable[..., int]


def options_of(sgd: SGD, seed: int, model_index: int = 0) -> Options:
    """Return the options of the kernels; learning rate and batch size belong to the replicas."""
    return Options(
        sgd.momentum,
        sgd.nesterov,
        sgd.weight_decay,
        SAMPLING_SCHEMES.index(sgd.sampling),
        np.uint64(seed),
        model_index,
    )


class Stepper:
    """Advances replicas on one model with one kind of SGD, in parallel threads.

    How the work is cut depends on model and replicas alone, not on the number of threads: sums and
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
        self._options, self._n_data = options_of(sgd, seed, model_index), model.n_data
        curvature, dtype, shape = model.curvature, STORED[precision], current_shape()
        self._linear: LinearModel | None = None
        if curvature is None:
            self._limit = DIVERGENCE_LIMIT["linear"] * max(
                float(model.residual @ model.residual), 1e-100
            )
            self._linear = linear_model(model, precision)
            return
        self._limit = DIVERGENCE_LIMIT["quadratic"]
        self._curved: CurvedModel
        self._alone: Advance | None = None  # for few replicas per data point
        if isinstance(curvature, LowRankCurvature):
            self._advance = (vector_low_rank if shape else plain).advance_low_rank
            self._curved = _low_rank_model(model, curvature, dtype, shape)
            multiplications, self._dtype = 4.0 * curvature.vectors[0].size, dtype
        else:
            self._advance = (vector_dense if shape else plain).advance_dense
            if shape:
                self._alone = vector_dense.advance_dense_alone
            self._curved = _dense_model(model, curvature, precision, shape)
            multiplications, self._dtype = 2.0 * model.n_params**2, STEPPED[precision]
        self._per_point = multiplications
        self._padded = vectors.padded_params(model.n_params, dtype) if shape else model.n_params

    def advance(self, replicas: Replicas, first_step: int, n_steps: int, workers: Workers) -> None:
        """Take `n_steps` steps with every replica, in place."""
        if self._linear is not None:
            self._advance_linear(self._linear, replicas, first_step, n_steps, workers)
        elif float(replicas.batch_size.sum()) * self._per_point < _SHARED_FROM:
            self._advance_groups(replicas, first_step, n_steps, workers)
        else:
            self._share(replicas, first_step, n_steps, workers)

    def _advance_linear(
        self, model: LinearModel, replicas: Replicas, first: int, n_steps: int, workers: Workers
    ) -> None:
        """Let threads step groups of residuals."""
        # Replicas with large batches together, and first: they share matrix products.
        order = np.argsort(-replicas.batch_size, kind="stable")

        def step(rows: slice) -> None:
            which = order[rows]
            cost = which.size * _AROUND + self._n_data * float(replicas.batch_size[which].sum())
            plain = self._options.momentum == 0.0 and self._options.weight_decay == 0.0
            state = gathered(replicas, which, model.padded_length, plain)
            work = workspace(state.batch_size, model.ntk, self._options.scheme)
            diverged_at = replicas.diverged_at[which]
            for start, count in stretches(first, n_steps, cost):
                advance_linear(
                    model, state, work, self._options, self._limit, start, count, diverged_at
                )
            replicas.diverged_at[which] = diverged_at
            replicas.state[which] = state.z[:, : self._n_data]
            if not plain:
                replicas.old[which] = state.z_old[:, : self._n_data]

        workers.map(step, groups(replicas.size, _LINEAR_GROUP))

    def _advance_groups(
        self, replicas: Replicas, first_step: int, n_steps: int, workers: Workers
    ) -> None:
        """Let threads step groups of replicas on all data points."""

        def step(rows: slice) -> None:
            some, buffers = replicas.chosen(rows), self._buffers(rows.stop - rows.start, 1)
            cost = some.size * (_AROUND + 10 * self._padded)
            cost += float(some.batch_size.sum()) * self._per_point
            group = self._group(some, buffers, turns(first_step, n_steps), steps_at_once(cost))
            while group() != ENDED:
                stop_if_asked()

        workers.map(step, groups(replicas.size))

    def _share(self, replicas: Replicas, first_step: int, n_steps: int, workers: Workers) -> None:
        """Let threads share the data points, each with its part of the gradient."""
        every = []
        for rows in groups(replicas.size, _SHARED_GROUP, at_least=_SHARED_GROUP):
            some, buffers = replicas.chosen(rows), self._buffers(rows.stop - rows.start, _SLABS)
            cost = float(some.batch_size.sum()) * self._per_point / _SLABS
            rounds = short_pieces(cost)
            cut = turns(first_step, n_steps, min(some.size, _CHUNKS), _SLABS, rounds)
            every.append(self._group(some, buffers, cut, steps_at_once(cost / rounds)))

        def join(number: int) -> None:
            # Each begins with another group, and helps with the next where it would have to wait.
            left = every[number % len(every) :] + every[: number % len(every)]
            while left:
                for group in tuple(left):
                    while (state := group()) == MORE:
                        stop_if_asked()
                    if state == ENDED:
                        left.remove(group)
                stop_if_asked()
                give_way()

        workers.map(join, range(min(workers.threads, _SLABS * len(every))))

    def _group(
        self, some: Replicas, buffers: Buffers, cut: Turns, at_most: int
    ) -> Callable[[], int]:
        """Return what a thread calls to take its turns with some replicas, a short time each."""
        few = float(some.batch_size.sum()) < _ACROSS_FROM * self._n_data
        advance = self._alone if self._alone and few else self._advance
        arguments = self._curved, some, self._options, self._limit, buffers, cut, at_most
        return partial(advance, *arguments)

    def _buffers(self, count: int, parts: int) -> Buffers:
        """Return what the kernels write to for so many replicas."""
        shape = count + 1, self._padded
        return Buffers(
            aligned_zeros(*shape, dtype=self._dtype),
            np.empty((count, self._n_data), np.int64),
            np.zeros(count, np.int64),
            np.zeros(self._n_data + 1, np.int64),
            np.empty(count * self._n_data, np.int64),
            aligned_zeros(parts, *shape, dtype=self._dtype),
        )


def linear_model(
    model: QuadraticModel, precision: str, start: FloatArray | None = None
) -> LinearModel:
    """Return what the linear kernels read; weight decay pulls to `start`, by default z_0."""
    known, lanes = _ARRANGED.setdefault(model, {}), linear_lanes()
    if (precision, lanes) not in known:
        ntk = np.asarray(model.ntk(), STORED[precision])
        known[precision, lanes] = *tiled(ntk, lanes), ntk
    columns, padded_length, ntk = known[precision, lanes]
    start = model.residual if start is None else start
    return LinearModel(columns, lanes, padded_length, ntk, start)


def _low_rank_model(
    model: QuadraticModel, curvature: LowRankCurvature, dtype: np.dtype, shape: Shape | None
) -> LowRankModel | StackedModel:
    if shape:
        rows = vector_low_rank.stacked(curvature.vectors, model.jacobian, dtype)
        together = vector_low_rank.blocks_of(rows.shape[1])
        return StackedModel(
            rows, curvature.coefficients, model.residual,
            shape.low_rank, shape.low_rank_replicas, *together,
        )  # fmt: skip
    u, jacobian = np.asarray(curvature.vectors, dtype), np.asarray(model.jacobian, dtype)
    return LowRankModel(u, curvature.coefficients, jacobian, model.residual)


def _dense_model(
    model: QuadraticModel, curvature: FloatArray, precision: str, shape: Shape | None
) -> DenseModel | PackedModel:
    dtype, stepped = STORED[precision], STEPPED[precision]
    if shape:
        packed, jacobian = vector_dense.packed(curvature, model.jacobian, dtype, stepped)
        column = (0,) * (vector_dense.BLOCK * dtype.itemsize // vectors.PIECE)
        return PackedModel(packed, jacobian, model.residual, shape.dense, shape.dense_rows, column)
    jacobian = np.asarray(model.jacobian, stepped)
    return DenseModel(np.asarray(curvature, dtype), jacobian, model.residual)


def stored_bytes(model: QuadraticModel, precision: str = "float64") -> float:
    """Return what a stepper keeps beside the model, in bytes."""
    dtype, curvature, by_vectors = STORED[precision], model.curvature, current_shape() is not None
    copied = precision != "float64"
    if curvature is None:
        return float(dtype.itemsize * (copied + 1) * model.n_data**2)
    if isinstance(curvature, LowRankCurvature):
        size = curvature.vectors.size + model.jacobian.size
        return float(dtype.itemsize * size * (by_vectors or copied))
    if by_vectors:
        return float(vector_dense.packed_bytes(model.n_data, model.n_params, dtype))
    return float(dtype.itemsize * curvature.size * copied)
