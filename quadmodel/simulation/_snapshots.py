"""Snapshots of running replicas: observables are attributes, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.lanczos import largest_eigenpair
from quadmodel.optimizer import SAMPLING_SCHEMES
from quadmodel.simulation import observables
from quadmodel.simulation._kernels.measurement import draw_weights
from quadmodel.simulation._measurement import (
    PRODUCTS,
    SAMPLED_BATCHES,
    ConstantNTK,
    MeasurementContext,
    NTKs,
    batch_forms,
    contraction,
    cut,
    jacobians,
    replicas_together,
)
from quadmodel.simulation._replicas import Replicas


class Snapshots:
    """Takes snapshots of all replicas, a few at a time."""

    def __init__(self, context: MeasurementContext) -> None:
        """Keep what all snapshots share: the NTK itself, where the model is linear."""
        self._context = context
        self._constant: ConstantNTK | None = None

    def _constant_at(self, learning_rate: float) -> ConstantNTK:
        """Return the NTK of a linear model, with norms at a learning rate all replicas share."""
        if self._constant is None or self._constant.learning_rate[0] != learning_rate:
            self._constant = ConstantNTK(self._context, learning_rate)
        return self._constant

    def take(self, replicas: Replicas, step: int) -> Iterator[tuple[IntArray, Snapshot]]:
        """Yield snapshots of the replicas that have not diverged, with the rows of these."""
        alive = np.flatnonzero(replicas.alive)
        for part in cut(alive.size, -(-alive.size // replicas_together(self._context.model))):
            rows = alive[part]
            state = np.asarray(replicas.state[rows], np.float64)
            view = self._context, state, replicas.number[rows], step
            rates = replicas.learning_rate[rows]
            if self._context.model.curvature is None:
                yield rows, _LinearSnapshot(*view, self._constant_at(float(rates[0])))
            else:
                yield rows, _QuadraticSnapshot(*view, rates)


class Snapshot:
    """Some replicas at one step; arrays have shape (replicas,), or (1,) where all are alike."""

    def __init__(
        self,
        context: MeasurementContext,
        residual: FloatArray,
        ntks: NTKs,
        number: IntArray,
        step: int,
    ) -> None:
        """Keep what everything is computed from."""
        self._context, self._residual, self._ntks = context, residual, ntks
        self._number, self._step = number, step

    @property
    def loss(self) -> FloatArray:
        """Mean squared residual over two."""
        return _squared(self._residual) / (2 * self._context.model.n_data)

    @cached_property
    def _projection(self) -> FloatArray:
        """Residuals along the eigenvectors of the initial NTK."""
        residual, vectors = self._residual, self._context.model.eigensystem[1]
        parts = self._context.in_parts(lambda p: residual[p] @ vectors, len(residual), vectors.size)
        return np.concatenate(parts)

    def mode_energy_moments(self) -> tuple[FloatArray, FloatArray, int]:
        """Return sum, scatter about the mean and number of the replicas' squared projections."""
        squared = self._projection**2
        total = squared.sum(axis=0)
        with np.errstate(over="ignore"):  # a run on its way to divergence
            scatter = ((squared - total / len(squared)) ** 2).sum(axis=0)
        return total, scatter, len(squared)

    @property
    def ntk_eigenvalue(self) -> FloatArray:
        """All NTK eigenvalues, in descending order along a last axis."""
        return self._ntks.eigenvalues

    @property
    def ntk_largest_eigenvalue(self) -> FloatArray:
        """Largest NTK eigenvalue."""
        return self._ntks.eigenvalues[:, 0]

    @property
    def ntk_trace(self) -> FloatArray:
        """Sum of the NTK eigenvalues."""
        return np.asarray(self._ntks.eigenvalues.sum(axis=1))

    @property
    def noise_kernel_norm(self) -> FloatArray:
        """Noise kernel norm, "paper"."""
        return self._ntks.norms[0]

    @property
    def noise_kernel_norm_finite(self) -> FloatArray:
        """Noise kernel norm, "finite"."""
        return self._ntks.norms[1]

    @property
    def noise_kernel_norm_exact(self) -> FloatArray:
        """Noise kernel norm, "exact"."""
        return self._ntks.exact_norm

    @property
    def hessian_largest_eigenvalue(self) -> FloatArray:
        """Largest eigenvalue of the Hessian of the loss; without curvature that of the NTK."""
        return self._ntks.eigenvalues[:, 0]

    @cached_property
    def _direction(self) -> FloatArray:
        """Residuals over their largest entries: their squares don't overflow or vanish."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._residual / np.abs(self._residual).max(axis=1, keepdims=True))

    @property
    def residual_overlap(self) -> FloatArray:
        """Share of the squared residual along the top eigenvector of the present NTK."""
        top = self._ntks.eigensystem[1][:, :, :1]
        along = np.matmul(self._direction[:, None], top)[:, 0, 0]
        return np.asarray(along**2 / _squared(self._direction))

    @property
    def gradient_noise_interaction(self) -> FloatArray:
        """Mean of g H g over all batches, over the squared gradient.

        Exact, from the moments of the batch weights: E w_a w_b = 1 + mutual, E w_a^2 = 1 + own.
        """
        sgd, n_data = self._context.sgd, self._context.model.n_data
        own, mutual = observables.weight_moments(sgd.sampling, n_data, float(sgd.batch_size))
        z, jacobian, ntk = self._direction, self._ntks.jacobian, self._ntks.ntk
        gradient = np.matmul(z[:, None], jacobian)[:, 0] / n_data
        full = _squared(np.matmul(jacobian, gradient[:, :, None])[:, :, 0])
        single = np.einsum("nab,nab->na", ntk, ntk)
        curved = self._forms_of_residual(gradient)
        if curved is not None:
            full, single = full + curved[0], single + curved[1] / n_data**2
        mean = (1 + mutual) * full + (own - mutual) * (z**2 * single).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(mean / (n_data * _squared(gradient)))

    @property
    def batch_sharpness(self) -> FloatArray:
        """Mean of g H g / g g over sampled batches, with gradient and Hessian of the batch."""
        n, n_data = self._residual.shape
        weights, direction, jacobian = self._weights(), self._direction, self._ntks.jacobian
        gradient = np.empty((*weights.shape[:2], jacobian.shape[2]))
        form = np.empty(weights.shape[:2])

        def work(part: slice) -> None:
            some = jacobian if len(jacobian) == 1 else jacobian[part]
            gradient[part] = (weights[part] * direction[part, None]) @ some / n_data
            mapped = gradient[part] @ some.transpose(0, 2, 1)
            form[part] = np.einsum("nka,nka->nk", weights[part], mapped**2)

        self._context.in_parts(work, n, 2 * weights.shape[1] * jacobian[0].size)
        curved = self._forms_of_batches(weights, gradient)
        if curved is not None:
            form += curved
        squared = n_data * np.einsum("nki,nki->nk", gradient, gradient)
        moving = squared > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(moving, form / squared, 0.0)
            return np.asarray(ratio.sum(axis=1) / moving.sum(axis=1))

    def _weights(self) -> FloatArray:
        """Return weights of batches drawn for measurement, shape (replicas, batches, n_data)."""
        context, sgd = self._context, self._context.sgd
        n, n_data = self._residual.shape
        own, _ = observables.weight_moments(sgd.sampling, n_data, float(sgd.batch_size))
        if own == 0:  # all batches are full
            return np.ones((n, 1, n_data))
        weights = np.empty((n, SAMPLED_BATCHES, n_data))
        scheme = SAMPLING_SCHEMES.index(sgd.sampling)
        for some, number in zip(weights, self._number, strict=True):
            draw_weights(
                np.uint64(context.seed),
                context.model_index,
                number,
                self._step,
                scheme,
                sgd.batch_size,
                some,
            )
        return weights

    def _forms_of_residual(self, gradient: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """Return the forms of sum_a z_a Q_a at the gradients and at the rows of the Jacobians."""
        return None

    def _forms_of_batches(self, weights: FloatArray, gradient: FloatArray) -> FloatArray | None:
        """Return the forms of sum_a w_a z_a Q_a at batch gradients, shape (replicas, batches)."""
        return None


class _LinearSnapshot(Snapshot):
    """Replicas of a linear model: their states are residuals."""

    def __init__(
        self,
        context: MeasurementContext,
        state: FloatArray,
        number: IntArray,
        step: int,
        ntks: NTKs,
    ) -> None:
        super().__init__(context, state, ntks, number, step)

    @property
    def squared_distance(self) -> FloatArray:
        """Squared norm of the smallest displacement with that residual.

        Updates stay in the row space of the Jacobian, so that it is the displacement.
        """
        model = self._context.model
        values, vectors = model.eigensystem
        moved = (self._projection - model.residual @ vectors) ** 2
        squared = moved @ np.divide(1 / model.n_data, values, out=0 * values, where=values > 0)
        # where nothing has moved that difference is rounding
        return np.where((self._residual != model.residual).any(axis=1), squared, 0.0)


class _QuadraticSnapshot(Snapshot):
    """Replicas of a quadratic model: their states are parameters."""

    def __init__(
        self,
        context: MeasurementContext,
        state: FloatArray,
        number: IntArray,
        step: int,
        learning_rate: FloatArray,
    ) -> None:
        model, self._jacobian = context.model, jacobians(context, state)
        # z = z_0 + (J_0 + J) theta / 2: so that the curvature is read once for z and J
        change = state @ model.jacobian.T + np.matmul(self._jacobian, state[:, :, None])[:, :, 0]
        ntks = NTKs(context, self._jacobian, learning_rate)
        super().__init__(context, model.residual + 0.5 * change, ntks, number, step)
        self.squared_distance = _squared(state)

    @cached_property
    def _contraction(self) -> Callable[[int, FloatArray], FloatArray]:
        return contraction(self._context, self._residual)

    @property
    def hessian_largest_eigenvalue(self) -> FloatArray:
        """By Lanczos, always from the same vector.

        To start from the eigenvector of the last record would save products, but these are cheap
        beside the pass over the curvature before them; and so a record depends on the parameters
        alone.
        """
        times, jacobian = self._contraction, self._jacobian
        n, n_data, n_params = jacobian.shape
        start = np.random.default_rng(0).standard_normal((n_params,))

        def of_replica(a: int) -> float:
            return largest_eigenpair(
                lambda x: ((jacobian[a] @ x) @ jacobian[a] + times(a, x)) / n_data, start
            ).value

        parts = self._context.in_parts(
            lambda part: [of_replica(a) for a in range(part.start, part.stop)],
            n,
            PRODUCTS * n_params * (2 * n_data + n_params),
        )
        return np.concatenate(parts)

    def _forms_of_residual(self, gradient: FloatArray) -> tuple[FloatArray, FloatArray]:
        times, jacobian = self._contraction, self._jacobian
        n, n_data, n_params = jacobian.shape

        def work(part: slice) -> list[tuple[float, FloatArray]]:
            return [
                (
                    float(gradient[a] @ times(a, gradient[a])),
                    np.einsum("ai,ia->a", jacobian[a], times(a, jacobian[a].T)),
                )
                for a in range(part.start, part.stop)
            ]

        forms = [f for part in self._context.in_parts(work, n, n_data * n_params**2) for f in part]
        at_gradient, at_rows = zip(*forms, strict=True)
        return np.array(at_gradient), np.array(at_rows)

    def _forms_of_batches(self, weights: FloatArray, gradient: FloatArray) -> FloatArray:
        n, batches, n_data = weights.shape
        factor = (weights * self._residual[:, None]).reshape(-1, n_data)
        forms = batch_forms(self._context, factor, gradient.reshape(n * batches, -1))
        return forms.reshape(n, batches)


def _squared(rows: FloatArray) -> FloatArray:
    """Return the squared norms of rows."""
    return np.asarray(np.einsum("na,na->n", rows, rows))
