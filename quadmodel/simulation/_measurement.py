"""What measuring is made of: work in parts, passes over the curvature, NTKs of some replicas.

How sums are cut into parts depends on the model and the number of replicas, never on that of
threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import Workers
from quadmodel.laws.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation import observables
from quadmodel.simulation._kernels.measurement import symmetric_products

# Batches that one value of the batch sharpness is averaged over.
SAMPLED_BATCHES = 32
# As many replicas are measured together as fit into so many bytes, but 8 at least: they share
# passes over the curvature.
_BLOCK_BYTES = 2.0**26
# Work is cut into at most 16 parts of at least this many multiplications, about a millisecond.
_PART = 2.0**22
# Products that Lanczos is expected to take.
PRODUCTS = 64


@dataclass
class MeasurementContext:
    """What all measurements of one simulation share."""

    model: QuadraticModel
    sgd: SGD
    seed: int
    model_index: int
    pool: Workers

    def in_parts(self, work: Callable[[slice], Any], n: int, cost: float) -> list[Any]:
        """Do `work` on slices of n items, of `cost` multiplications each; results in order.

        Not re-entrant: nested calls deadlock, waiting for threads that wait for them.
        """
        parts = cut(n, int(min(n, 16, 1 + n * cost / _PART)))
        return self.pool.map(work, parts) if len(parts) > 1 else [work(part) for part in parts]


def cut(n: int, parts: int) -> list[slice]:
    """Cut n items into slices as even as possible."""
    edges = [n * k // parts for k in range(parts + 1)] if n else []
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def replicas_together(model: QuadraticModel) -> int:
    """Return how many replicas are measured together, whatever the observables."""
    numbers = 4 * SAMPLED_BATCHES * model.n_data
    if model.curvature is not None:
        numbers += model.n_data * (model.n_params + 3 * model.n_data)
        numbers += 2 * SAMPLED_BATCHES * model.n_params
        numbers += model.n_params**2 if isinstance(model.curvature, np.ndarray) else 0
    return int(min(max(_BLOCK_BYTES / (8 * numbers), 8), 1024))


def bytes_needed(model: QuadraticModel, replicas: int, names: Sequence[str]) -> float:
    """Return the memory that measuring takes, beside that of states and records."""
    n_data, n_params = model.n_data, model.n_params
    per_replica, once = 2.0 * n_data, 4.0 * n_data**2
    if "batch_sharpness" in names:
        per_replica += SAMPLED_BATCHES * (4 * n_data + 2 * n_params)
    if "noise_kernel_norm_exact" in names:
        once += 16 * 3 * n_data**2
    if model.curvature is not None:
        per_replica += n_data * (n_params + 3 * n_data)
        if {"hessian_largest_eigenvalue", "gradient_noise_interaction"} & set(names):
            once += 16 * n_params * (PRODUCTS + 2 * n_data)
            per_replica += n_params**2 if isinstance(model.curvature, np.ndarray) else 0
    return 8.0 * (min(replicas_together(model), replicas) * per_replica + once)


def jacobians(context: MeasurementContext, theta: FloatArray) -> FloatArray:
    r"""Return :math:`J_0 + Q(\theta,\cdot)`, shape (replicas, n_data, n_params)."""
    model, n = context.model, len(theta)
    result = np.empty((n, model.n_data, model.n_params))

    def work(points: slice) -> None:
        if isinstance(model.curvature, LowRankCurvature):
            u = model.curvature.vectors[points]
            weight = model.curvature.coefficients[points, None] * (theta @ u.transpose(0, 2, 1))
            result[:, points] = np.matmul(weight, u).transpose(1, 0, 2)
        elif model.curvature is not None:
            if n == 1:
                symmetric_products(model.curvature[points], theta[0], result[0, points])
            else:
                for a in range(points.start, points.stop):
                    result[:, a] = theta @ model.curvature[a]
        result[:, points] += model.jacobian[points]

    context.in_parts(work, model.n_data, n * _cost_of_a_point(model))
    return result


def contraction(
    context: MeasurementContext, residual: FloatArray
) -> Callable[[int, FloatArray], FloatArray]:
    r"""Return the map (a, x) to the product of replica a's :math:`\sum_iz_iQ_i` with x.

    x has shape (n_params,) or (n_params, k).
    """
    model, n = context.model, len(residual)
    if isinstance(model.curvature, LowRankCurvature):
        u = model.curvature.vectors.reshape(-1, model.n_params)
        weight = (residual[:, :, None] * model.curvature.coefficients).reshape(n, -1)
        return lambda a, x: u.T @ (weight[a].reshape(-1, *[1] * (x.ndim - 1)) * (u @ x))
    flat = np.reshape(model.curvature, (model.n_data, -1))  # type: ignore[arg-type]
    total = np.empty((n, flat.shape[1]))

    def work(entries: slice) -> None:
        total[:, entries] = residual @ flat[:, entries]

    context.in_parts(work, flat.shape[1], n * model.n_data)
    matrices = total.reshape(n, model.n_params, model.n_params)
    return lambda a, x: matrices[a] @ x


def batch_forms(
    context: MeasurementContext, factor: FloatArray, direction: FloatArray
) -> FloatArray:
    r"""Return :math:`\sum_af_aQ_a(g,g)` for rows f of `factor` and g of `direction`."""
    model = context.model

    def work(points: slice) -> FloatArray:
        total = np.zeros(len(factor))
        for a in range(points.start, points.stop):
            some = np.flatnonzero(factor[:, a])
            g = direction[some]
            if isinstance(model.curvature, LowRankCurvature):
                along = g @ model.curvature.vectors[a].T
                form = along**2 @ model.curvature.coefficients[a]
            elif model.curvature is not None:
                form = np.einsum("ki,ki->k", g @ model.curvature[a], g)
            total[some] += factor[some, a] * form
        return total

    used = np.count_nonzero(factor) / model.n_data
    parts = context.in_parts(work, model.n_data, used * _cost_of_a_point(model))
    return np.asarray(sum(parts))


def _cost_of_a_point(model: QuadraticModel) -> float:
    """Return the multiplications that one Q_a times a vector takes."""
    width = model.n_params
    if isinstance(model.curvature, LowRankCurvature):
        width = 2 * model.curvature.coefficients.shape[1]
    return float(width * model.n_params)


class NTKs:
    """NTKs from Jacobians of shape (replicas, n_data, any), and what follows from them alone."""

    def __init__(
        self, context: MeasurementContext, jacobian: FloatArray, learning_rate: FloatArray
    ) -> None:
        """Keep the Jacobians and learning rates; all else is computed when it is asked for."""
        self._context, self.jacobian, self.learning_rate = context, jacobian, learning_rate

    @cached_property
    def ntk(self) -> FloatArray:
        """NTKs, shape (replicas, n_data, n_data)."""
        n, n_data, _ = self.jacobian.shape

        def work(part: slice) -> FloatArray:
            jacobian = self.jacobian[part]
            return np.asarray(jacobian @ jacobian.transpose(0, 2, 1) / n_data)

        return np.concatenate(self._context.in_parts(work, n, n_data * self.jacobian[0].size))

    @cached_property
    def eigenvalues(self) -> FloatArray:
        """Eigenvalues, descending, shape (replicas, n_data)."""
        ntk = self.ntk
        cost = 2 * ntk.shape[1] ** 3
        parts = self._context.in_parts(lambda p: np.linalg.eigvalsh(ntk[p]), len(ntk), cost)
        return _clean(np.concatenate(parts)[:, ::-1])

    @cached_property
    def eigensystem(self) -> tuple[FloatArray, FloatArray]:
        """Eigenvalues, and eigenvectors in columns."""
        ntk = self.ntk
        cost = 4 * ntk.shape[1] ** 3
        parts = self._context.in_parts(lambda p: np.linalg.eigh(ntk[p]), len(ntk), cost)
        values, vectors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return _clean(values[:, ::-1]), vectors[:, :, ::-1]

    @cached_property
    def norms(self) -> tuple[FloatArray, FloatArray]:
        """Noise kernel norms: "paper" and "finite"."""
        sgd, lam = self._context.sgd, self.eigenvalues
        size = np.full(len(lam), float(sgd.batch_size))
        return observables.noise_kernel_norms(lam, self.learning_rate, size, sgd)

    @cached_property
    def exact_norm(self) -> FloatArray:
        """Noise kernel norms: "exact"."""
        values, vectors = self.eigensystem

        def work(part: slice) -> list[float]:
            return [
                observables.exact_noise_kernel_norm(
                    lam, v, self._context.sgd._at(learning_rate=float(rate))
                )
                for lam, v, rate in zip(
                    values[part], vectors[part], self.learning_rate[part], strict=True
                )
            ]

        cost = 40 * values.shape[1] ** 3
        return np.concatenate(self._context.in_parts(work, len(values), cost))


class ConstantNTK(NTKs):
    """The NTK of a linear model: one for all replicas and steps.

    In function space any Jacobian with that NTK gives the same results; this one is square.
    """

    def __init__(self, context: MeasurementContext, learning_rate: float) -> None:
        """Take the eigenvalues and eigenvectors from the model."""
        values, vectors = context.model.eigensystem
        jacobian = (vectors * np.sqrt(len(values) * values))[None]
        super().__init__(context, jacobian, np.array([learning_rate]))
        self.eigenvalues = values[None]
        self.eigensystem = values[None], vectors[None]


def _clean(descending: FloatArray) -> FloatArray:
    """Set eigenvalues that are zero up to rounding to zero."""
    rounding = 4 * descending.shape[1] * np.finfo(np.float64).eps * descending[:, :1]
    return np.where(descending > rounding, descending, 0.0)
