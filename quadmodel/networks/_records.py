"""What is measured along a training, and on which data points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_integer,
    as_list,
    as_number,
    shown,
)
from quadmodel._util.lanczos import largest_eigenpair
from quadmodel._util.results import recorded_steps
from quadmodel.batches import batch_indices
from quadmodel.model import ntk_eigensystem
from quadmodel.networks._bounds import bound
from quadmodel.networks._estimate import Estimate, mean_of
from quadmodel.networks._exact_norm import matrix_free_norm
from quadmodel.networks._gradient_norms import squared_rows_by_signs
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._losses import CrossEntropy, Loss, SquaredError
from quadmodel.networks._noise_map import Kernel
from quadmodel.networks._torch import torch
from quadmodel.networks.ntk import kernel_of, norms_of
from quadmodel.optimizer import SGD
from quadmodel.simulation.observables import OBSERVABLES, Observable
from quadmodel.theory._noise_blocks import block_norm_of_modes, norm_of_modes

_SAME = (
    "loss",
    "squared_distance",
    "ntk_largest_eigenvalue",
    "ntk_trace",
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "noise_kernel_norm_exact",
    "hessian_largest_eigenvalue",
    "batch_sharpness",
)
LABELS = {name: OBSERVABLES[name] for name in _SAME} | {
    "accuracy": Observable("share of data points that are classified right", "1"),
    "noise_kernel_norm_trace": Observable("noise kernel norm (bound by the trace)", "1"),
    "row_norm_spread": Observable("standard deviation of the logarithm of row norms", "1"),
    "learning_rate": Observable("learning rate", "1 / NTK eigenvalue"),
}
DEFAULT = (
    "loss",
    "accuracy",
    "ntk_largest_eigenvalue",
    "ntk_trace",
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "noise_kernel_norm_exact",
    "row_norm_spread",
    "batch_sharpness",
)
# Those that have a standard error of their own over random vectors.
RANDOM = (
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "noise_kernel_norm_exact",
    "noise_kernel_norm_trace",
    "batch_sharpness",
)
# What is recorded of the norms that a rule may hold.
HELD_AS = {
    "exact": "noise_kernel_norm_exact",
    "finite": "noise_kernel_norm_finite",
    "paper": "noise_kernel_norm",
    "trace": "noise_kernel_norm_trace",
}
# Kernels up to so many rows are formed; batches per value of batch sharpness; points that go
# through the network at once where only outputs are wanted.
_DENSE, _BATCHES, _AT_ONCE = 1500, 32, 1024
_FAR = 2**32 - 1  # a step whose batches no training draws


@dataclass(frozen=True)
class Probe:
    """When to measure along a training, what, and on which data points.

    Parameters
    ----------
    every : int or sequence of int, optional
        Steps between two records, the first and the last step included; or the steps themselves.
    points : int, optional
        Data points that the NTK's and the Hessian's quantities are measured on: all, if there are
        no more, else a random subset that stays the same. Loss and accuracy are those of all data.
    observables : sequence of str, or "all", optional
        What to record, by the names that :func:`track` lists.
    seed : int, optional
        Of the subset and of random vectors.
    relative_error : float, optional
        Standard error over random vectors, as a share of K, where the NTK is not formed.
    chunk_size : int, optional
        Data points that go through the network at once; all of the probe's by default.
    sample : int, optional
        Draws of points, anew for every record, that `noise_kernel_norm_trace` comes from; the
        number of points and above for all of them. By default one per 24 gradients that SGD has
        taken since the last record, at least 32: below 5 % of the time of most trainings; all of
        them where a rule holds K by the trace.

    Raises
    ------
    InputError
        If a value lies outside its range.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.networks.Probe(every=100, observables=("loss", "noise_kernel_norm_trace")).points
    1000
    """

    every: int | Sequence[int] = 50
    points: int = 1000
    observables: Sequence[str] | str = DEFAULT
    seed: int = 0
    relative_error: float = 0.03
    chunk_size: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        """Check every field once."""
        put = object.__setattr__  # the dataclass is frozen
        if np.ndim(self.every):
            steps = as_list("every", self.every, lambda n: as_integer("every", n, low=0))
            put(self, "every", tuple(sorted(set(steps))))
        else:
            put(self, "every", as_integer("every", self.every))
        as_integer("points", self.points)
        names: Any = tuple(LABELS) if self.observables == "all" else self.observables
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise InputError(f'observables must be "all" or a sequence, got {shown(names)}')
        for name in names:
            if name not in LABELS:
                raise InputError(
                    f"observables must be among {', '.join(LABELS)}; got {shown(name)}"
                )
        put(self, "observables", tuple(name for name in LABELS if name in names))
        as_integer("seed", self.seed, low=0, high=2**64 - 1)
        as_number("relative_error", self.relative_error, above=0.0, most=1.0)
        if self.sample is not None:
            as_integer("sample", self.sample, low=2)

    def steps(self, first: int, last: int) -> IntArray:
        """Return the steps of records from `first` to `last`."""
        if isinstance(self.every, int):
            found = recorded_steps(last, self.every)
        else:
            found = np.array([*self.every, last], dtype=np.int64)
        return np.unique(np.clip(found, first, last))

    def subset(self, n_data: int) -> IntArray:
        """Return the data points, ascending."""
        if self.points >= n_data:
            return np.arange(n_data)
        return np.sort(batch_indices(n_data, self.points, seed=self.seed, step=_FAR))


class Snapshot:
    """A network at one step; what is measured are attributes, computed when asked for."""

    def __init__(
        self,
        at: Linearisation,
        everything: Linearisation,
        sgd: SGD,
        probe: Probe,
        start: list[Any],
        trace: Callable[[], Estimate] | None = None,
    ) -> None:
        """Keep the network around its present parameters: on the probe's points, and on all.

        `trace` estimates the mean squared row norm; without it all points of the probe do.
        """
        self.at, self.everything, self.sgd, self.probe = at, everything, sgd, probe
        self.start, self.trace = start, trace
        at.forget()

    def value(self, name: str) -> Estimate:
        """Return an observable; standard error 0 where nothing is drawn."""
        found = getattr(self, name)
        return found if isinstance(found, Estimate) else Estimate(float(found), 0.0)

    @property
    def learning_rate(self) -> float:
        """The present learning rate."""
        return self.sgd.learning_rate

    @cached_property
    def _of_outputs(self) -> tuple[float, float]:
        """Mean loss and accuracy on all data."""
        every, loss, right = self.everything, 0.0, 0.0
        with torch.no_grad():
            for k in range(0, every.n_data, _AT_ONCE):
                part = slice(k, k + _AT_ONCE)
                outputs = every.net(every.inputs[part])
                loss += float(
                    every.loss.value(outputs, every.targets[part]).sum(dtype=torch.float64)
                )
                right += count_right(every.loss, outputs, every.targets[part])
        return loss / every.n_data, right / every.n_data

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self._of_outputs[0]

    @property
    def accuracy(self) -> float:
        """Share of points that are classified right."""
        return self._of_outputs[1]

    @property
    def squared_distance(self) -> float:
        """Squared distance from the initial parameters."""
        moved = zip(self.at.params.values(), self.start, strict=True)
        return sum(float(((now - then).to(torch.float64) ** 2).sum()) for now, then in moved)

    @cached_property
    def _dense(self) -> bool:
        return bool(self.at.n_rows <= _DENSE)

    @cached_property
    def _kernel(self) -> FloatArray:
        return kernel_of(self.at, self.probe.chunk_size)

    @cached_property
    def _modes(self) -> tuple[FloatArray, FloatArray]:
        return ntk_eigensystem(self._kernel, self.at.tolerance)

    @cached_property
    def _row_norms(self) -> FloatArray:
        if "_kernel" in self.__dict__:
            per_row = np.diag(self._kernel).reshape(self.at.n_data, -1).sum(1)
            return np.asarray(np.sqrt(per_row * self.at.n_data))
        return norms_of(self.at, self.probe.chunk_size)

    @cached_property
    def _products(self) -> Kernel:
        at = self.at
        squares = self._row_norms**2
        return Kernel(at.ntk_product, at.n_data, at.n_outputs, squares, self.everything.n_data)

    @property
    def ntk_largest_eigenvalue(self) -> float:
        """Largest eigenvalue of the NTK."""
        if self._dense:
            return float(self._modes[0][0])
        start = np.random.default_rng(self.probe.seed).standard_normal(self.at.n_rows)
        return largest_eigenpair(
            lambda v: self.at.ntk_product(v[None])[0],
            start,
            residual=1e-3,
            error=1e-3,
            check_every=2,
        ).value

    @property
    def hessian_largest_eigenvalue(self) -> float:
        """Largest eigenvalue of the loss's Hessian."""
        start = np.random.default_rng(self.probe.seed).standard_normal(self.at.n_params)
        product = self.at.hessian_product
        return largest_eigenpair(
            lambda v: product(v[None])[0], start, residual=1e-3, error=1e-3, check_every=2
        ).value

    @property
    def ntk_trace(self) -> float:
        """Trace of the NTK."""
        return float((self._row_norms**2).mean())

    @property
    def row_norm_spread(self) -> float:
        """Standard deviation of the logarithm of row norms."""
        norms = self._row_norms
        return float(np.std(np.log(norms[norms > 0]))) if (norms > 0).any() else math.nan

    def norm_of_modes(self, norm: str, sgd: SGD) -> Estimate:
        """Return K of "finite" or "paper"; `sgd` may have another learning rate."""
        at, population = self.at, self.everything.n_data
        outputs = at.n_outputs - int(at.loss.flat)
        if not self._dense:
            rng = np.random.default_rng(self.probe.seed)
            return bound(self._products, sgd, norm, outputs, self.probe.relative_error, rng)
        return Estimate(norm_of_modes(self._modes[0], sgd, norm, population, outputs), 0.0)

    @cached_property
    def noise_kernel_norm(self) -> Estimate:
        """Noise kernel norm, "paper"."""
        return self.norm_of_modes("paper", self.sgd)

    @cached_property
    def noise_kernel_norm_finite(self) -> Estimate:
        """Noise kernel norm, "finite"."""
        return self.norm_of_modes("finite", self.sgd)

    @cached_property
    def noise_kernel_norm_exact(self) -> Estimate:
        """Noise kernel norm, "exact"."""
        population = self.everything.n_data
        if self._dense:
            norm = block_norm_of_modes(*self._modes, self.sgd, self.at.n_outputs, population)
            return Estimate(norm, 0.0)
        rng = np.random.default_rng(self.probe.seed)
        return matrix_free_norm(self._products, self.sgd, self.probe.relative_error, rng)

    @cached_property
    def noise_kernel_norm_trace(self) -> Estimate:
        """Bound of "finite" by the trace: all modes alike, since the response is convex.

        The trace comes from one gradient per point, of its outputs with random signs.
        """
        if self.trace is None:
            rng = np.random.default_rng(self.probe.seed)
            trace = mean_of(squared_rows_by_signs(self.at, rng))
        else:
            trace = self.trace()
        outputs = self.at.n_outputs - int(self.at.loss.flat)
        modes, population = self.at.n_data * outputs, self.everything.n_data
        alike = np.array([trace.value / modes])
        value = modes * norm_of_modes(alike, self.sgd, "finite", population, outputs)
        error = trace.standard_error / trace.value * value if value else 0.0
        return Estimate(value, error)

    @cached_property
    def batch_sharpness(self) -> Estimate:
        """Mean curvature of batches along their own gradients, over batches of all data."""
        at, found = self.everything, []
        for k in range(_BATCHES):
            points = batch_indices(
                at.n_data,
                self.sgd.batch_size,
                seed=self.probe.seed,
                step=_FAR - 1 - k,
                sampling=self.sgd.sampling,
            )
            if not len(points):
                continue
            gradient = at.gradient(points)
            square = float(gradient @ gradient)
            if square > 0:
                share = len(points) / self.sgd.batch_size
                curved = gradient @ at.hessian_product(gradient[None], points)[0]
                found.append(share * float(curved) / square)
        return mean_of(np.array(found)) if found else Estimate(math.nan, math.nan)


def count_right(loss: Loss, outputs: Any, targets: Any) -> float:
    """Return how many points are classified right; NaN where the loss has no classes."""
    if isinstance(loss, CrossEntropy):
        return float((outputs.argmax(1) == targets).sum())
    if not isinstance(loss, SquaredError):
        return math.nan
    outputs = outputs.flatten(1)
    targets = targets.reshape(outputs.shape)
    if outputs.shape[1] == 1:
        return float((outputs.sign() == targets.sign()).sum())
    return float((outputs.argmax(1) == targets.argmax(1)).sum())
