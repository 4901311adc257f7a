"""The mean change of the NTK to second order in the curvature, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory import _recursion
from quadmodel.theory._curvature import Statistics

# Steps whose source terms are kept until they are summed by one matrix product.
_BLOCK = 64


class Change(NamedTuple):
    """Mean change of the NTK at one time, in the eigenbasis of the initial one."""

    progressive: FloatArray
    conservative: FloatArray
    diffusive: FloatArray
    repulsion: FloatArray
    mixing: FloatArray

    @property
    def total(self) -> FloatArray:
        """Change of the mean matrix."""
        return self.progressive + self.conservative + self.diffusive

    def eigenvalues(self, lam: FloatArray) -> FloatArray:
        """Mean ordered eigenvalues."""
        return lam + np.diagonal(self.total) + self.repulsion


def numbers_needed(n_data: int, n_records: int) -> int:
    """Return how many numbers are held at a time."""
    return (12 * n_records + 2 * _BLOCK + 20) * n_data**2


def ntk_changes(known: Statistics, sgd: SGD, recorded: IntArray) -> Iterator[Change]:
    """Yield the mean change of the NTK at the recorded steps, in its own unit."""
    sgd = known.in_units(sgd)
    sums = _SourceSums(known, sgd, recorded)
    wanted = set(recorded.tolist())
    moments = _recursion.exact_moments(
        known.lam, known.vectors, known.residual, sgd, displaced=True
    )
    at_records: list[tuple[_Sums, FloatArray]] = []
    for step, now in zip(range(int(recorded[-1]) + 1), moments, strict=False):
        if step in wanted:
            at_records.append((sums.now, now.second))
        sums.add(now)
    for (summed, displaced), trace_sum in zip(at_records, sums.trace_sums(), strict=True):
        change = _change(known, sgd, summed, trace_sum, displaced)
        *of_ntk, mixing = change
        yield Change._make([*(known.unit_of_ntk * part for part in of_ntk), mixing])


class _Sums(NamedTuple):
    """Sums over earlier steps s of source terms and responses R_n to them, n steps later.

    With u the residual at the gradient of step s, X_s = E u (u - z_0)^T and
    Y_s = E (u - z_0) (u - z_0)^T; first axis: their parts from the mean of u and from its noise.
    """

    unconstrained: FloatArray  # X_s times the response of parameters that no data point constrains
    data_response: FloatArray  # X_s N^T R_n
    displacement: FloatArray  # R_n N Y_s


class _SourceSums:
    """Accumulates the source terms of all steps, each with the optimizer's response since."""

    def __init__(self, statistics: Statistics, sgd: SGD, recorded: IntArray) -> None:
        self._statistics = statistics
        n_data = len(statistics.lam)
        self._a, self._b = formulas.mode_recursion(statistics.lam, sgd)
        free = formulas.mode_recursion(np.zeros(1), sgd)
        self._free = float(free[0][0]), float(free[1][0])
        zero = np.zeros((2, n_data, n_data))
        self.now = self._old = _Sums(zero, zero, zero)
        self._recorded = recorded
        self._traces = self._response_traces(int(recorded[-1]))
        self._pending: list[FloatArray] = []
        self._first_pending = 0
        self._trace_sums = np.zeros((len(recorded), 2 * n_data * n_data))

    def _response_traces(self, steps: int) -> FloatArray:
        """Return tr(N R_n) for n = 0, 1, ..."""
        traces = np.empty(max(steps, 1))
        own = np.diagonal(self._statistics.skew)
        response, before = np.ones_like(self._a), np.zeros_like(self._a)
        for n in range(len(traces)):
            traces[n] = own @ response
            response, before = self._a * response - self._b * before, response
        return traces

    def add(self, moments: _recursion.Moments) -> None:
        """Propagate the sums by a step and add this step's source terms."""
        start, away = self._statistics.residual, moments.mean_at_gradient
        squared = np.outer(away, away)
        noise = moments.second_at_gradient - squared
        mixed = np.stack([np.outer(start + away, away), noise])
        displaced = np.stack([squared, noise])
        known, (a, b), (a0, b0) = self._statistics, (self._a, self._b), self._free
        now, old = self.now, self._old
        following = _Sums(
            mixed + a0 * now.unconstrained - b0 * old.unconstrained,
            (mixed if known.unit else mixed @ known.skew.T)
            + now.data_response * a
            - old.data_response * b,
            (displaced if known.unit else known.skew @ displaced)
            + a[:, None] * now.displacement
            - b[:, None] * old.displacement,
        )
        self.now, self._old = following, now
        self._pending.append(mixed.ravel())
        if len(self._pending) == _BLOCK:
            self._flush()

    def _flush(self) -> None:
        """Add the pending X_s to the records after them, weighted by the trace of the response."""
        steps = self._first_pending + np.arange(len(self._pending))
        since = np.subtract.outer(self._recorded - 1, steps)
        weights = np.where(since >= 0, self._traces[np.maximum(since, 0)], 0.0)
        pending = np.stack(self._pending)
        finite = np.asarray(np.isfinite(pending).all(axis=1))
        # What has overflowed must not reach the records before it, as 0 times infinity.
        self._trace_sums += weights @ np.where(finite[:, None], pending, 0.0)
        beyond = np.where(finite, False, since >= 0).any(axis=1)
        self._trace_sums[np.flatnonzero(beyond)] = np.nan
        self._first_pending += len(self._pending)
        self._pending.clear()

    def trace_sums(self) -> FloatArray:
        """Return the sum of tr(N R_n) X_s at every record."""
        if self._pending:
            self._flush()
        n_data = len(self._a)
        return self._trace_sums.reshape(-1, 2, n_data, n_data)


def source(
    known: Statistics,
    unconstrained: FloatArray,
    data_response: FloatArray,
    trace_sum: FloatArray,
    displacement: FloatArray,
) -> FloatArray:
    """Return the summed source terms; all sums may have leading axes."""
    sums = unconstrained, data_response, trace_sum, displacement
    if known.unit:
        return np.asarray(
            generated.ntk_source_unit(known.over_data, *sums, len(known.lam), known.trace)
        )
    return np.asarray(
        generated.ntk_source(known.over_data, *sums, known.skew, known.twice, known.trace)
    )


def diffusion(known: Statistics, displaced: FloatArray) -> FloatArray:
    """Return the mean square of the Jacobian's change, from E (z - z_0) (z - z_0)^T."""
    return np.asarray(
        generated.ntk_diffusion(
            known.over_data, known.inner, known.inner_twice, displaced, known.trace
        )
    )


def _change(
    known: Statistics, sgd: SGD, sums: _Sums, trace_sum: FloatArray, displaced: FloatArray
) -> Change:
    """Return the change from the summed source terms and E (z - z_0) (z - z_0)^T at its time."""
    n_data, zero = len(known.lam), np.zeros_like(displaced)
    summed = source(known, sums.unconstrained, sums.data_response, trace_sum, sums.displacement)
    progressive, conservative = (
        generated.ntk_change(part, zero, sgd.learning_rate, n_data) for part in summed
    )
    diffusive = generated.ntk_change(zero, diffusion(known, displaced), sgd.learning_rate, n_data)
    return Change(progressive, conservative, diffusive, *_repulsion(known, displaced))


def fluctuations(known: Statistics, displaced: FloatArray) -> FloatArray:
    """Return the mean square of first order in the curvature between all pairs of modes."""
    fluctuation = displaced if known.unit else known.skew @ displaced @ known.skew.T
    distance = float(np.sum(known.inner * displaced))
    arguments = []
    for matrix in (known.over_data, known.outer, fluctuation):
        own = np.diagonal(matrix)
        arguments += [own[:, None], own[None, :], matrix]
    square = generated.mode_fluctuation(distance, *arguments) / len(known.lam) ** 2
    return np.asarray(np.maximum(square, 0.0))


def _repulsion(known: Statistics, displaced: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return how far fluctuations push eigenvalues apart, and how much eigenvectors mix.

    Modes of the same eigenvalue are pushed apart as well, the earlier one up.
    """
    square = fluctuations(known, displaced)
    np.fill_diagonal(square, 0.0)
    gap = np.abs(known.lam[:, None] - known.lam[None, :])
    order = np.arange(len(gap))
    upwards = np.sign(order[None, :] - order[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = upwards * generated.eigenvalue_shift(gap, square)
        share = square / gap**2
    shift, share = np.where(square > 0, shift, 0.0), np.where(square > 0, share, 0.0)
    # Pairs overrate what many modes of nearly one eigenvalue do: no more than Wigner's semicircle.
    most = 2 * np.sqrt(square.sum(axis=1))
    return np.clip(shift.sum(axis=1), -most, most), share.sum(axis=1)
