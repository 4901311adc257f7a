"""Replicas in lockstep: state, and how groups of them are handed to the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  Numba's np.dot uses it; it must be there to be limited
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quadmodel._validation import FloatArray
from quadmodel.model import LowRankCurvature, QuadraticModel
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD
from quadmodel.simulation import _kernels

IntArray = NDArray[np.int64]

# A run counts as diverged when its squared norm passes this multiple of its initial scale: far from
# overflow, far above anything that comes back.
_LIMIT = {"linear": 1e200, "quadratic": 1e100}


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
    """Advances lanes on one model with one kind of SGD; groups run in parallel threads.

    Groups are fixed by the number of lanes, not of threads: a matrix product may round differently
    with its shape, and results must be the same bits for any number of threads.
    """

    def __init__(self, model: QuadraticModel, sgd: SGD, *, seed: int, model_index: int = 0) -> None:
        """Choose the kernel and its fixed arguments."""
        self._arrays: tuple[Any, ...]
        self._kernel: Any
        if model.curvature is None:
            self._kernel = _kernels.advance_linear
            self._arrays = (model.ntk(), model.residual)
            self._limit = _LIMIT["linear"] * max(float(model.residual @ model.residual), 1e-100)
        else:
            self._limit = _LIMIT["quadratic"]
            if isinstance(model.curvature, LowRankCurvature):
                self._kernel = _kernels.advance_low_rank
                low_rank = model.curvature
                self._arrays = (low_rank.coefficients, low_rank.vectors)
            else:
                self._kernel = _kernels.advance_dense
                self._arrays = (model.curvature,)
            self._arrays += (model.jacobian, model.residual)
        self._options = (
            sgd.momentum,
            sgd.nesterov,
            sgd.weight_decay,
            SAMPLING_SCHEMES.index(sgd.sampling),
            np.uint64(seed),
            model_index,
        )

    def advance(self, lanes: Lanes, first_step: int, n_steps: int, workers: Workers) -> None:
        """Take `n_steps` steps with every lane, in place."""

        def work(rows: slice) -> None:
            self._kernel(
                *self._arrays,
                lanes.state[rows],
                lanes.old[rows],
                lanes.learning_rate[rows],
                lanes.batch_size[rows],
                lanes.replica[rows],
                lanes.diverged_at[rows],
                *self._options,
                first_step,
                n_steps,
                self._limit,
            )

        workers.map(work, groups(len(lanes.replica)))


def groups(n_lanes: int) -> list[slice]:
    """Cut lanes into about four groups of 8 to 1024."""
    size = min(max(-(-n_lanes // 4), 8), 1024)
    return [slice(first, min(first + size, n_lanes)) for first in range(0, n_lanes, size)]


class Workers:
    """A pool of threads; the compiled kernels and BLAS release the interpreter lock."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        """Wrap a pool."""
        self._pool = pool

    def map(self, work: Callable[[slice], Any], slices: list[slice]) -> list[Any]:
        """Run `work` on every slice and return the results in order."""
        return list(self._pool.map(work, slices))


@contextmanager
def workers(threads: int | None) -> Iterator[Workers]:
    """Open a pool of `threads` (all available cores if None), with BLAS kept to one thread each."""
    count = threads or numba.get_num_threads()
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        yield Workers(pool)
