r"""How far off second order is: a second pass with the NTK that the first one predicts.

What second order leaves out is feedback: the changed NTK changes the residuals, and these the NTK.
The moments are run again with the NTK :math:`\Theta_0 + \Delta_t \pm N_t`, where :math:`\Delta_t`
is the predicted mean change and :math:`N_t^2` the mean square of its fluctuation of first order,
:math:`(N_t^2)_{\alpha\alpha} = \sum_\beta E(v_\alpha^T\delta\Theta_tv_\beta)^2`. Both signs stand
for all draws of the curvature: their mean has the same first and second moment. How far it moves
the prediction is of the size of the next order. It holds every optimizer and sampling scheme, also
near the edges, where a small change of the NTK is much.

Beside it stands what the impulses :math:`-(\eta/D)(Q\theta_s)^TW_sz_s` add to the squared distance
outside of the Jacobian's row space, which no residual shows:
:math:`(\eta/D)^2\,\mathrm{tr}S^2\,(1-D/P)\,E|\sum_s h_n(C^{1/2}W_sz_s)(S^{1/2}\theta_s)^T|^2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory._curvature import Statistics
from quadmodel.theory._ntk_change import diffusion, fluctuations, source

# Runs side by side: as it was predicted, and with both signs of the fluctuation.
_SIGNS = (0, 1, -1)
# Groups of modes that share a response where only its trace is needed.
_GROUPS = 4


class Doubt(NamedTuple):
    """Estimated error of the mean change of the NTK at one time, in units of the NTK."""

    trace: float
    per_mode: FloatArray


def numbers_needed(n_data: int) -> int:
    """Return how many numbers are held at a time."""
    return 250 * n_data**2


def doubts(known: Statistics, sgd: SGD, recorded: IntArray) -> Iterator[Doubt]:
    """Yield the estimated errors at the recorded steps; inf where the second pass overflows."""
    sgd = known.in_units(sgd)
    runs = _Runs(known, sgd)
    wanted = set(recorded.tolist())
    unknown = Doubt(np.inf, np.full(len(known.lam), np.inf))
    finite = True
    for step in range(int(recorded[-1]) + 1):
        if step in wanted:
            yield runs.doubt() if finite else unknown
        if finite:
            runs.advance()
            finite = runs.finite()


class _Runs:
    """Moments of the residual v = z - z_0 and of y, and sums of source terms, of all runs.

    y is the change of the residual by the parameters alone, at the initial Jacobian: z - z_0 as
    long as the NTK stays the same. First axis of all arrays: runs.
    """

    def __init__(self, known: Statistics, sgd: SGD) -> None:
        self._known, self._sgd = known, sgd
        n_data = len(known.lam)
        a, b = formulas.mode_recursion(np.zeros(1), sgd)
        p, q = formulas.extrapolation(sgd)
        # A residual and, with momentum, the one before: how they follow, and what a gradient sees.
        half = np.array([[a[0], -b[0]], [1.0, 0.0]])
        seen = np.array([p, -q])
        if sgd.momentum == 0.0:
            half, seen = half[:1, :1], seen[:1]
        self._half, self._seen, self._memory = half, seen, len(seen)
        self._follow = np.kron(np.eye(2), half)
        runs, size = len(_SIGNS), 2 * self._memory
        self._mean = np.zeros((runs, size, n_data))
        self._second = np.zeros((runs, size, size, n_data, n_data))
        groups = np.array_split(np.arange(n_data), min(n_data, _GROUPS))
        own = np.diagonal(known.skew)
        self._groups = groups
        self._weights = np.array([own[group].sum() for group in groups])[:, None, None]
        zero = np.zeros((runs, self._memory, n_data, n_data))
        self._unconstrained = self._data_response = self._displacement = zero
        self._by_group = np.zeros((runs, self._memory, len(groups), n_data, n_data))
        self._white = 0.0

    def finite(self) -> bool:
        """Return whether no run has overflowed."""
        return bool(np.isfinite(self._second.sum()))

    def doubt(self) -> Doubt:
        """Return the estimated error now."""
        known, y = self._known, self._memory
        n_data = len(known.lam)
        spread = np.stack([diffusion(known, second[y, y]) for second in self._second])
        driven = -self._sgd.learning_rate / n_data * self._sources()
        error = np.abs(np.diagonal(self._outside()))
        trace = float(error.sum())
        # Part by part: they may cancel in the prediction, but not their errors.
        for part in (spread, driven + np.swapaxes(driven, 1, 2)):
            moved = np.diagonal(0.5 * (part[1] + part[2]) - part[0])
            error = error + np.abs(moved)
            trace += abs(float(moved.sum()))
        error = np.where(np.isfinite(error), error, np.inf) * known.unit_of_ntk / n_data
        trace = trace * known.unit_of_ntk / n_data
        return Doubt(trace if np.isfinite(trace) else np.inf, error)

    def _sources(self) -> FloatArray:
        return source(
            self._known,
            self._unconstrained[:, 0],
            self._data_response[:, 0],
            self._by_group[:, 0].sum(axis=1),
            self._displacement[:, 0],
        )

    def _outside(self) -> FloatArray:
        """Return D times the change by the distance outside of the row space."""
        known, sgd = self._known, self._sgd
        n_data = len(known.lam)
        summed = self._unconstrained[0, 0]
        squared = np.sum(known.over_data * (summed @ known.inner @ summed.T))
        squared += self._white / (1 - sgd.momentum) ** 2
        share = known.trace_twice * max(0.0, 1 - n_data / known.n_params)
        distance = (sgd.learning_rate / n_data) ** 2 * share * squared
        return np.asarray(known.trace * distance * known.over_data)

    def advance(self) -> None:
        """Make a step in all runs."""
        known, sgd, size = self._known, self._sgd, self._memory
        start = known.residual
        # Moments of the residual u where the gradient is taken, with all that is followed.
        mean = start + _combined(self._seen, self._mean[:, :size])
        with_state = _combined(self._seen, self._second[:, :size])
        with_state += start[:, None] * self._mean[:, :, None, :]
        seen = _combined(self._seen, with_state[:, :size]) + mean[:, :, None] * start
        mixed = _combined(self._seen, with_state[:, size:])
        displaced = _combined(self._seen, _combined(self._seen, self._second[:, size:, size:]))
        step = self._steps(displaced[0])
        noise = self._noise(seen)
        self._add_white(noise[0], displaced[0])
        self._add_sources(step, mixed, displaced)
        follow = self._follow
        unchanged = sgd.learning_rate * known.lam
        self._mean = _combined(follow, self._mean)
        self._mean[:, 0] -= (step @ mean[:, :, None])[:, :, 0]
        self._mean[:, size] -= unchanged * mean
        second = np.swapaxes(_combined(follow, self._second), 1, 2)
        second = np.swapaxes(_combined(follow, second), 1, 2)
        kicked = _combined(follow, with_state)
        pushed = {0: step[:, None] @ kicked, size: unchanged[:, None] * kicked}
        for i, moved in pushed.items():
            second[:, i] -= moved
            second[:, :, i] -= np.swapaxes(moved, 2, 3)
        squared = step @ (seen + noise)
        second[:, 0, 0] += squared @ step
        second[:, 0, size] += squared * unchanged
        second[:, size, 0] += np.swapaxes(squared, 1, 2) * unchanged[:, None]
        second[:, size, size] += unchanged[:, None] * (seen + noise) * unchanged
        # Rounding leaves an antisymmetric part, which momentum would amplify without bound.
        self._second = 0.5 * (second + second.transpose(0, 2, 1, 4, 3))

    def _steps(self, displaced: FloatArray) -> FloatArray:
        """Return learning rate times the NTK of every run."""
        known, rate, n_data = self._known, self._sgd.learning_rate, len(self._known.lam)
        predicted = generated.ntk_change(
            self._sources()[0], diffusion(known, displaced), rate, n_data
        )
        spread = np.sqrt(fluctuations(known, displaced).sum(axis=1))
        initial = np.diag(known.lam)
        changes = [sign**2 * predicted + sign * np.diag(spread) for sign in _SIGNS]
        return np.asarray(rate * (initial + np.stack(changes)))

    def _noise(self, seen: FloatArray) -> FloatArray:
        """Return the covariance that the batches add to E u u^T."""
        n_data, vectors = len(self._known.lam), self._known.vectors
        gamma, kappa = formulas.batch_weight_covariance(self._sgd, n_data)
        if gamma == 0:
            return np.zeros_like(seen)
        per_point = np.einsum("ria,ia->ri", vectors @ seen, vectors)
        by_point = vectors.T @ (per_point[:, :, None] * vectors)
        return np.asarray(generated.noise_covariance(seen, by_point, gamma, kappa, n_data))

    def _add_white(self, noise: FloatArray, displaced: FloatArray) -> None:
        """Add this step's batch noise to the squared distance outside of the row space."""
        known, sgd = self._known, self._sgd
        decay = 1 - sgd.learning_rate * sgd.weight_decay / (1 - sgd.momentum)
        self._white *= decay**2
        self._white += float(np.sum(known.over_data * noise) * np.sum(known.inner * displaced))

    def _add_sources(self, step: FloatArray, mixed: FloatArray, displaced: FloatArray) -> None:
        """Propagate the sums of source terms with the NTK of every run, and add this step's."""
        known, half, seen = self._known, self._half, self._seen

        def followed(sums: FloatArray, added: FloatArray, pushed: FloatArray) -> FloatArray:
            following = _combined(half, sums)
            following[:, 0] += added - pushed
            return following

        own = np.diagonal(step, axis1=1, axis2=2)
        by_group = np.stack([own[:, group].mean(axis=1) for group in self._groups], axis=1)
        self._unconstrained = followed(self._unconstrained, mixed, np.zeros_like(mixed))
        self._data_response = followed(
            self._data_response,
            mixed if known.unit else mixed @ known.skew.T,
            _combined(seen, self._data_response) @ step,
        )
        self._displacement = followed(
            self._displacement,
            displaced if known.unit else known.skew @ displaced,
            step @ _combined(seen, self._displacement),
        )
        self._by_group = followed(
            self._by_group,
            self._weights * mixed[:, None],
            by_group[:, :, None, None] * _combined(seen, self._by_group),
        )


def _combined(weights: FloatArray, stacked: FloatArray) -> FloatArray:
    """Return sums over the second axis, weighted by a vector or by the rows of a matrix."""
    if stacked.shape[1] == 1:
        sums = weights.ravel()[0] * stacked
        return np.asarray(sums if weights.ndim == 2 else sums[:, 0])
    flat = weights @ stacked.reshape(*stacked.shape[:2], -1)
    return np.asarray(flat.reshape(len(stacked), *weights.shape[:-1], *stacked.shape[2:]))
