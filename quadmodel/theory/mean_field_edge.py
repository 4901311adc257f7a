"""mean_field_edge(): the learning rate from which on the nonlinear model diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import InputError, as_batch_size, as_integer, as_list, as_number
from quadmodel._util.results import attributes, variable
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _noise
from quadmodel.theory._inputs import Spectrum
from quadmodel.theory._mean_field import MeanField, Statistics, columns_needed, recent_steps
from quadmodel.theory._mean_field_source import EnsembleLike, Modes, as_modes, bins_of, statistics
from quadmodel.theory.mean_field import DIVERGED, density_of

# In diagrams: equations for modes, relative width of the last bracket, groups of points.
_BINS, _COARSE, _GROUPS = 24, 0.02, 8
# The past is kept as coarse as a decision allows: whole if it is short, finer where modes go on
# oscillating, or where a small loss rises.
_WHOLE, _MEMORY, _FINER, _SMALL = 300, 20, 80, 1e-2
# A loss that has fallen by so much does not come back.
_CONVERGED = 1e-5
# A loss rises at the end if it has grown by so much over the last quarter.
_RISING = 1.001
# Largest eigenvalues that have equations of their own, since they decide the deterministic edge.
_SINGLE = 3
# Steps, in units of the time in which a mean mode relaxes; at least and at most.
_DURATION, _SHORTEST, _LONGEST = 20.0, 100, 2000
# The first bracket, in units of the linear model's edge, and the last.
_LOW, _HIGH, _LOWEST, _HIGHEST = 0.4, 1.2, 1e-3, 4.0
# Around what the batch size before has shown: at most, and in units of the last bracket and of
# what the last change of batch size has done.
_NEAR, _BRACKETS, _CHANGES = 1.2, 2.0, 2.0


def mean_field_edge(
    source: QuadraticModel | EnsembleLike | ArrayLike,
    batch_sizes: Sequence[int] | NDArray[np.integer],
    sgd: SGD | None = None,
    *,
    curvature: CurvatureLaw | float | None = None,
    residual: ArrayLike | None = None,
    n_params: int | None = None,
    ratio: float | None = None,
    bins: int = 24,
    steps: int | None = None,
    rtol: float = 0.01,
) -> xr.Dataset:
    r"""Return the learning rate at which the nonlinear model starts to diverge, per batch size.

    Parameters
    ----------
    source : QuadraticModel, Ensemble, or array_like of shape (n_data, n_data) or (n_data,)
        What is trained, as for :func:`quadmodel.mean_field`.
    batch_sizes : sequence of int
        Batch sizes, between 1 and n_data.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; plain SGD if left out.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; a model's or ensemble's own if left out.
    residual : float or array_like, shape (n_data,), optional
        With an NTK: the initial residual, or the standard deviation of random entries.
    n_params : int, optional
        With an NTK and a curvature: parameters P.
    ratio : float, optional
        P/D, if another than that of the source is meant; ``np.inf`` for many parameters.
    bins : int, optional
        Modes of similar eigenvalues share one equation; about so many equations.
    steps : int, optional
        Steps within which a run diverges or not; by default twenty relaxation times of a mean mode,
        between 100 and 2000.
    rtol : float, optional
        Relative width of the last bracket.

    Returns
    -------
    xarray.Dataset
        `critical_learning_rate` (batch_size), in units of 1 / NTK eigenvalue: the middle, in
        logarithms, of the last bracket, whose ends are `low` and `high`; +inf where no run up to
        four times the linear model's edge diverges. `noise_kernel_norm` (the paper's) and
        `noise_kernel_norm_finite` of the initial NTK at that learning rate: at most about 1, which
        they are without curvature. `steps` (batch_size) of the runs.

    Raises
    ------
    InputError
        If an argument is out of range or a covariance is of another kind.

    Notes
    -----
    A run of :func:`quadmodel.mean_field` counts as diverging if its loss overflows, or still
    rises at its end, faster and faster. Bisection in the logarithm of the learning rate. A run that
    would diverge later than at `steps` is called stable: at the edge, times of divergence are long.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: derivations/09-mean-field.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(n_data=50, n_params=100, curvature=0.3)
    >>> edge = qm.mean_field_edge(ensemble, [5], steps=100, rtol=0.05)
    >>> bool(edge.noise_kernel_norm_finite[0] < 0.95)
    True
    """
    modes = as_modes(source, curvature, residual, n_params)
    template = SGD(1.0, 1) if sgd is None else sgd
    if not isinstance(template, SGD):
        raise InputError(f"sgd must be an SGD, got {type(template).__name__}")
    sizes = as_list("batch_sizes", batch_sizes, lambda size: as_batch_size(size, modes.n_data))
    bins = as_integer("bins", bins)
    steps = None if steps is None else as_integer("steps", steps)
    rtol = as_number("rtol", rtol, least=1e-6, below=1.0)
    density = density_of(modes, ratio)
    search = _Search(modes, modes.in_units(template), density, bins, rtol, steps)
    found = search.edges(sizes)
    unit = modes.unit_of_ntk
    columns = {
        "critical_learning_rate": (
            [f.middle / unit for f in found],
            "learning rate at which the nonlinear model starts to diverge",
            "1 / NTK eigenvalue",
        ),
        "low": ([f.low / unit for f in found], "largest that does not", "1 / NTK eigenvalue"),
        "high": ([f.high / unit for f in found], "smallest that does", "1 / NTK eigenvalue"),
        "noise_kernel_norm": (
            [search.norm(s, f, "paper") for s, f in zip(sizes, found, strict=True)],
            "noise kernel norm (paper) of the initial NTK there",
            "1",
        ),
        "noise_kernel_norm_finite": (
            [search.norm(s, f, "finite") for s, f in zip(sizes, found, strict=True)],
            "noise kernel norm (finite size) of the initial NTK there",
            "1",
        ),
        "steps": ([f.steps for f in found], "steps of a run", "SGD steps"),
    }
    return xr.Dataset(
        {name: variable("batch_size", *column) for name, column in columns.items()},
        coords={"batch_size": variable("batch_size", sizes, units="data points")},
        attrs=attributes(
            "mean-field edge",
            modes.spec | template.spec(),
            curvature_strength=modes.strength_of_source(),
            ratio=math.inf if density == 0 else 1 / density,
            bins=bins,
            rtol=rtol,
        ),
    )


def nonlinear_edges(
    model: QuadraticModel,
    batch_sizes: Sequence[int],
    sgd: SGD,
    *,
    curvature: CurvatureLaw | None = None,
    ratio: float | None = None,
) -> NDArray[np.float64] | None:
    """Return the critical learning rates of a model, with noise levels of groups of points.

    None if the model is linear, or its curvature's law is not known or has another covariance.
    """
    try:
        modes = as_modes(model, curvature, None, None)
    except InputError:
        return None
    if modes.strength == 0:
        return None
    search = _Search(
        modes, modes.in_units(sgd), density_of(modes, ratio), _BINS, _COARSE, None,
        groups=min(_GROUPS, modes.n_data),
    )  # fmt: skip
    found = [edge.middle / modes.unit_of_ntk for edge in search.edges(batch_sizes)]
    return np.where(np.isfinite(found), found, np.nan)


@dataclass(frozen=True)
class _Edge:
    low: float
    high: float
    reference: float  # the linear model's edge
    steps: int

    @property
    def middle(self) -> float:
        return math.sqrt(self.low * self.high)

    @property
    def fraction(self) -> float:
        return self.middle / self.reference if math.isfinite(self.high) else 1.0


@dataclass(frozen=True)
class _Search:
    """Bisection for one source; learning rates in units of the modes."""

    modes: Modes
    template: SGD
    density: float
    bins: int
    rtol: float
    steps: int | None
    groups: int = 1

    def edges(self, batch_sizes: Sequence[int]) -> list[_Edge]:
        """Return the edges of several batch sizes, each begun near the next larger one's.

        Small batches come last, since their runs are longest.
        """
        found: dict[int, _Edge] = {}
        bracket, width, before = (_LOW, _HIGH), math.log(_NEAR), math.nan
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
            for size in sorted(set(batch_sizes), reverse=True):
                found[size] = self.edge(size, bracket)
                near = found[size].fraction
                if near == 1.0:
                    continue
                if math.isfinite(before):
                    change = _CHANGES * abs(math.log(near / before))
                    width = min(change + _BRACKETS * self.rtol, math.log(_NEAR))
                bracket, before = (near * math.exp(-width), near * math.exp(width)), near
        return [found[size] for size in batch_sizes]

    def edge(self, batch_size: int, bracket: tuple[float, float]) -> _Edge:
        """Return the last bracket, from a first one in units of the linear model's edge."""
        sgd = self.template._at(batch_size=batch_size)
        spectrum = Spectrum(self.modes.lam)
        reference = _noise.critical_on_spectrum(spectrum, sgd, "finite")
        steps = self._steps(reference)
        if not math.isfinite(reference):
            return _Edge(math.inf, math.inf, math.inf, steps)
        bins = bins_of(self.modes, self.bins, np.arange(min(_SINGLE, self.modes.n_data)))
        at = sgd._at(learning_rate=reference)
        known = statistics(self.modes, bins, at, self.density, self.groups)
        diverges = partial(_diverges, known, at, steps)
        low, high = bracket
        further = (high / low) ** 2
        while diverges(low):
            low, high = low / min(further, 2.0), low
            further *= further
            if low < _LOWEST:
                return _Edge(0.0, high * reference, reference, steps)
        while not diverges(high):
            low, high = high, high * min(further, 1.5)
            further *= further
            if low > _HIGHEST:
                return _Edge(low * reference, math.inf, reference, steps)
        while high > (1 + self.rtol) * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if diverges(middle) else (middle, high)
        return _Edge(low * reference, high * reference, reference, steps)

    def norm(self, batch_size: int, edge: _Edge, norm: str) -> float:
        """Return K of the initial NTK at an edge."""
        sgd = self.template._at(batch_size=batch_size, learning_rate=edge.middle)
        if not math.isfinite(edge.middle):
            return math.nan
        return _noise.norm_or_infinity(Spectrum(self.modes.lam), sgd, norm)

    def _steps(self, reference: float) -> int:
        if self.steps is not None:
            return self.steps
        per_step = reference * float(self.modes.lam.mean()) / (1 - self.template.momentum)
        wanted = _DURATION / per_step if per_step > 0 else _LONGEST
        return int(np.clip(math.ceil(min(wanted, _LONGEST)), _SHORTEST, _LONGEST))


def _diverges(known: Statistics, reference: SGD, steps: int, fraction: float) -> bool:
    """Whether a run diverges at a fraction of the reference's learning rate."""
    at = reference._at(learning_rate=fraction * reference.learning_rate)
    if formulas.beyond_floats(float(known.lam.max()), at):
        return True
    start = float(known.weight @ known.energy)
    memory = _memory(known, at, steps)
    diverged, least = _run(known, at, steps, memory)
    # What a coarse past does not resolve may rise.
    if diverged and least < _SMALL * start and memory < min(_FINER, steps):
        diverged, _ = _run(known, at, steps, _FINER)
    return diverged


def _memory(known: Statistics, sgd: SGD, steps: int) -> int:
    """Return how many steps of the past are to be kept one by one."""
    kept = max(_MEMORY, recent_steps(float(known.lam.max()), sgd))
    return steps if steps <= _WHOLE or kept > _FINER else math.ceil(kept)


def _run(known: Statistics, sgd: SGD, steps: int, memory: int) -> tuple[bool, float]:
    """Return whether a run diverges, and its smallest loss."""
    start = float(known.weight @ known.energy)
    solver = MeanField(known, sgd, columns_needed(steps, memory))
    levels: list[float] = []
    for step in range(steps + 1):
        solver.step(measure=False)
        if not solver.level <= DIVERGED * start:
            return True, min(levels, default=start)
        levels.append(solver.level)
        if solver.level < _CONVERGED * start:
            return False, solver.level
        if step % (memory // 2) == 0:
            solver.merge(memory)
    early, middle, late = (levels[int(share * steps)] for share in (0.5, 0.75, 1.0))
    rises = late > _RISING * middle and late - middle > middle - early
    return rises, min(levels)
