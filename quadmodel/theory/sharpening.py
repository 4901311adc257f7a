"""The mean NTK along training, to second order in the curvature: sharpening and its three parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, IntArray, as_integer, check_memory
from quadmodel._util.results import (
    Variable,
    attributes,
    count_records,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory import _recursion
from quadmodel.theory._inputs import check_sgd

# Steps whose source terms are kept until they are summed by one matrix product.
_BLOCK = 64
# Relative size of the mean square change of the Jacobian beyond which second order is not trusted.
VALID_BELOW = 0.1
CHANGE_NAME = "mean square change of the Jacobian by diffusion"


def expected_ntk(
    model: QuadraticModel,
    sgd: SGD,
    steps: int,
    *,
    curvature: CurvatureLaw | float | None = None,
    record_every: int | None = None,
) -> xr.Dataset:
    r"""Predict the mean NTK along training, over batches and curvature.

    Parameters
    ----------
    model : QuadraticModel
        Jacobian (of full row rank) and residual at the start. Its own draw of the curvature is not
        used, only the law.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    curvature : CurvatureLaw or float, optional
        Law of the curvature, with Kronecker covariance; a number is short for
        ``IndependentCurvature(number)``. By default the model's own `curvature_law`.
    record_every : int, optional
        Steps between two entries of the result; by default about fifty entries.

    Returns
    -------
    xarray.Dataset
        `ntk` (step, row, column), its mean, and `ntk_trace` (step). Per eigenvector of the initial
        NTK, (step, mode): `ntk_projection`, the mean :math:`v_\alpha^\top\Theta v_\alpha`;
        `progressive`, `conservative` and `diffusive`, the parts of its change by the mean dynamics,
        by the batches' noise and by the random walk of the Jacobian; `repulsion`, the
        shift of an ordered eigenvalue by the fluctuations between its mode and the others;
        `ntk_eigenvalue`, the mean ordered eigenvalue, `ntk_projection` plus `repulsion`; `mixing`,
        the mean square share of the other eigenvectors in an eigenvector, without unit; all others
        in units of an NTK eigenvalue. `relative_change` (step): mean square change of
        the Jacobian by diffusion over its own square. Second order is trusted while it is below
        the attribute `valid_below`, and `ntk_eigenvalue` of a mode only while its `mixing` is
        small too.

    Raises
    ------
    InputError
        If an argument is out of range, no law is known, its covariance is of another kind, or the
        Jacobian has not full row rank.
    MemoryError
        If the records don't fit in memory.

    Notes
    -----
    With the linear model's moments at the point of the gradient,
    :math:`X_s = E[z_s(z_s-z_0)^\top]`, :math:`Y_s = E[(z_s-z_0)(z_s-z_0)^\top]`, and plain SGD with
    independent entries,

    .. math:: D(E\Theta_t - \Theta_0) = -\frac{\eta\sigma^2}{D}\sum_{s<t}
              [\tau_nX_s + X_sR^n + R^nY_s + \text{transpose}]
              + \sigma^2(P+1)\,E|\theta_t|^2\,I,
              \quad \tau_n = P - D + \mathrm{tr}R^n,\; R = I - \eta\Theta,\; n = t-1-s

    exact for every D, P, B and t up to terms of fourth order in the curvature. Momentum replaces
    :math:`R^n` by the optimizer's response n steps later.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md; the first two steps: arXiv:2404.19261, section 4.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=20, n_params=60, curvature=0.02).sample(seed=0)
    >>> mean = qm.expected_ntk(model, qm.SGD(learning_rate=0.1, batch_size=5), steps=40)
    >>> bool((mean.conservative.isel(step=-1, mode=0) < 0).item())
    True
    """
    if not isinstance(model, QuadraticModel):
        raise InputError(f"model must be a QuadraticModel, got {type(model).__name__}")
    check_sgd(sgd, model.n_data)
    steps = as_integer("steps", steps)
    if record_every is None:
        record_every = max(1, steps // 50)
    record_every = as_integer("record_every", record_every)
    law = law_of(model, curvature)
    statistics = curvature_statistics(model, law)
    n_data, n_records = model.n_data, count_records(steps, record_every)
    need = numbers_needed(n_data, n_records) + n_records * n_data**2
    check_memory("the expected NTK", 8.0 * need)
    recorded = recorded_steps(steps, record_every)
    with np.errstate(over="ignore", invalid="ignore"):
        changes = list(ntk_changes(statistics, model, sgd, recorded))
    attrs = attributes(
        "prediction",
        model.spec() | sgd.spec(),
        curvature_order=2,
        curvature=repr(law),
        valid_below=VALID_BELOW,
    )
    return _dataset(model, changes, recorded, attrs)


def _dataset(
    model: QuadraticModel, changes: list[Change], recorded: IntArray, attrs: dict[str, Any]
) -> xr.Dataset:
    """Return the labelled result of `expected_ntk`."""
    unit = "1 / learning rate"
    lam, vectors = model.eigensystem
    mean = np.stack([vectors @ (np.diag(lam) + c.total) @ vectors.T for c in changes])

    def per_mode(name: str, values: list[FloatArray], units: str = unit) -> Variable:
        return variable(("step", "mode"), np.stack(values), name, units)

    return xr.Dataset(
        {
            "ntk": variable(("step", "row", "column"), mean, "NTK", unit),
            "ntk_projection": per_mode(
                "NTK along its initial eigenvectors", [lam + np.diagonal(c.total) for c in changes]
            ),
            "progressive": per_mode(
                "change of the NTK by the mean dynamics",
                [np.diagonal(c.progressive) for c in changes],
            ),
            "conservative": per_mode(
                "change of the NTK by the batches' noise",
                [np.diagonal(c.conservative) for c in changes],
            ),
            "diffusive": per_mode(
                "change of the NTK by the Jacobian's random walk",
                [np.diagonal(c.diffusive) for c in changes],
            ),
            "repulsion": per_mode(
                "change of the eigenvalue by fluctuations", [c.repulsion for c in changes]
            ),
            "ntk_eigenvalue": per_mode(
                "eigenvalue of the NTK", [c.eigenvalues(lam) for c in changes]
            ),
            "mixing": per_mode(
                "mean square share of other eigenvectors", [c.mixing for c in changes], "1"
            ),
            "ntk_trace": variable(
                "step", np.trace(mean, axis1=1, axis2=2), "trace of the NTK", unit
            ),
            "relative_change": variable(
                "step", [c.relative_change for c in changes], CHANGE_NAME, "1"
            ),
        },
        coords={
            "step": step_coordinate(recorded),
            **{name: np.arange(model.n_data) for name in ("mode", "row", "column")},
        },
        attrs=attrs,
    )


@dataclass(frozen=True)
class Statistics:
    r"""What is needed of curvature and Jacobian, in the eigenbasis of the NTK.

    :math:`\sigma^2C` and S are the curvature's covariances over data and parameters, and
    :math:`J^+` is the pseudoinverse of the Jacobian J.
    """

    lam: FloatArray  # eigenvalues of the NTK
    over_data: FloatArray  # sigma^2 C
    outer: FloatArray  # J S J^T
    inner: FloatArray  # J^+T S J^+
    inner_twice: FloatArray  # J^+T S^2 J^+
    skew: FloatArray  # N = J S J^+
    twice: FloatArray  # J S^2 J^+
    trace: float  # tr S
    unit: bool = False  # whether S is the unit matrix, and so are skew and twice


class Change(NamedTuple):
    """Mean change of the NTK at one time, in the eigenbasis of the initial one."""

    progressive: FloatArray
    conservative: FloatArray
    diffusive: FloatArray
    repulsion: FloatArray
    mixing: FloatArray
    relative_change: float

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


def law_of(model: QuadraticModel, curvature: CurvatureLaw | float | None) -> CurvatureLaw:
    """Return the law to predict with."""
    if curvature is None:
        if model.curvature_law is None:
            raise InputError("curvature must be given for a model that has no law, got None")
        return model.curvature_law
    return curvature if isinstance(curvature, CurvatureLaw) else IndependentCurvature(curvature)


def curvature_statistics(model: QuadraticModel, law: CurvatureLaw) -> Statistics:
    """Return the statistics of a law around a model's initial parameters; checks the rank."""
    n_data, n_params = model.n_data, model.n_params
    over_data, over_parameters, scale = law.kronecker(n_data, n_params)
    lam, vectors = model.eigensystem
    if lam[-1] <= 0:
        raise InputError(
            f"jacobian must have full row rank n_data={n_data}, got {np.count_nonzero(lam)}"
        )
    unit = np.eye(n_data)
    data = unit if over_data is None else vectors.T @ over_data @ vectors
    rows = vectors.T @ model.jacobian
    inverse = rows / (n_data * lam)[:, None]  # J^+ transposed
    if over_parameters is None:
        outer, inner = np.diag(n_data * lam), np.diag(1 / (n_data * lam))
        return Statistics(
            lam, scale**2 * data, outer, inner, inner, unit, unit, float(n_params), unit=True
        )
    once, twice = inverse @ over_parameters, inverse @ over_parameters @ over_parameters
    return Statistics(
        lam,
        scale**2 * data,
        rows @ over_parameters @ rows.T,
        once @ inverse.T,
        twice @ inverse.T,
        rows @ once.T,
        rows @ twice.T,
        float(np.trace(over_parameters)),
    )


def ntk_changes(
    statistics: Statistics, model: QuadraticModel, sgd: SGD, recorded: IntArray
) -> Iterator[Change]:
    """Yield the mean change of the NTK at the recorded steps."""
    sums = _SourceSums(statistics, sgd, recorded)
    lam, vectors = model.eigensystem
    start = vectors.T @ model.residual
    wanted = set(recorded.tolist())
    moments = _recursion.exact_moments(lam, vectors, model.residual, sgd)
    at_records: list[tuple[_Sums, FloatArray]] = []
    for step, now in zip(range(int(recorded[-1]) + 1), moments, strict=False):
        if step in wanted:
            away = np.outer(now.mean, start)
            displaced = now.second - away - away.T + np.outer(start, start)
            at_records.append((sums.now, displaced))
        sums.add(now, start)
    for (summed, displaced), trace_sum in zip(at_records, sums.trace_sums(), strict=True):
        yield _change(statistics, sgd, summed, trace_sum, displaced)


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

    def add(self, moments: _recursion.Moments, start: FloatArray) -> None:
        """Propagate the sums by a step and add this step's source terms."""
        mean = moments.mean_at_gradient
        noise = moments.second_at_gradient - np.outer(mean, mean)
        mixed = np.stack([np.outer(mean, mean - start), noise])
        displaced = np.stack([np.outer(mean - start, mean - start), noise])
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
        since = self._recorded[:, None] - 1 - steps
        weights = np.where(since >= 0, self._traces[np.maximum(since, 0)], 0.0)
        self._trace_sums += weights @ np.stack(self._pending)
        self._first_pending += len(self._pending)
        self._pending.clear()

    def trace_sums(self) -> FloatArray:
        """Return the sum of tr(N R_n) X_s at every record."""
        if self._pending:
            self._flush()
        n_data = len(self._a)
        return self._trace_sums.reshape(-1, 2, n_data, n_data)


def _change(
    statistics: Statistics, sgd: SGD, sums: _Sums, trace_sum: FloatArray, displaced: FloatArray
) -> Change:
    """Return the change from the summed source terms and E (z - z_0) (z - z_0)^T at its time."""
    known, n_data = statistics, len(statistics.lam)
    zero = np.zeros_like(displaced)
    by_source = []
    for part in range(2):
        terms = (
            sums.unconstrained[part],
            sums.data_response[part],
            trace_sum[part],
            sums.displacement[part],
        )
        if known.unit:
            source = generated.ntk_source_unit(known.over_data, *terms, n_data, known.trace)
        else:
            source = generated.ntk_source(
                known.over_data, *terms, known.skew, known.twice, known.trace
            )
        by_source.append(generated.ntk_change(source, zero, sgd.learning_rate, n_data))
    diffusion = generated.ntk_diffusion(
        known.over_data, known.inner, known.inner_twice, displaced, known.trace
    )
    diffusive = generated.ntk_change(zero, diffusion, sgd.learning_rate, n_data)
    repulsion, mixing = _repulsion(known, displaced)
    relative = float(np.trace(diffusive) / known.lam.sum())
    return Change(by_source[0], by_source[1], diffusive, repulsion, mixing, relative)


def _repulsion(statistics: Statistics, displaced: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return how far fluctuations push eigenvalues apart, and how much eigenvectors mix."""
    known, n_data = statistics, len(statistics.lam)
    fluctuation = displaced if known.unit else known.skew @ displaced @ known.skew.T
    distance = float(np.sum(known.inner * displaced))
    arguments = []
    for matrix in (known.over_data, known.outer, fluctuation):
        own = np.diagonal(matrix)
        arguments += [own[:, None], own[None, :], matrix]
    square = generated.mode_fluctuation(distance, *arguments) / n_data**2
    square = np.maximum(square, 0.0)
    np.fill_diagonal(square, 0.0)
    gap = known.lam[:, None] - known.lam[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.sign(gap) * generated.eigenvalue_shift(np.abs(gap), square)
        share = square / gap**2
    shift, share = np.where(square > 0, shift, 0.0), np.where(square > 0, share, 0.0)
    return shift.sum(axis=1), share.sum(axis=1)
