"""mean_field(): loss, NTK and noise kernel norm of the quadratic model, at any batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_choice,
    as_integer,
    as_list,
    as_number,
    check_memory,
)
from quadmodel._util.results import (
    Variable,
    attributes,
    count_records,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel._util.threads import stop_if_asked
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _noise
from quadmodel.theory._information_plus_noise import InformationPlusNoise
from quadmodel.theory._inputs import LimitSpectrum, check_sgd
from quadmodel.theory._mean_field import (
    MeanField,
    Means,
    Statistics,
    columns_needed,
    recent_steps,
)
from quadmodel.theory._mean_field_source import (
    EnsembleLike,
    Modes,
    as_modes,
    bins_of,
    heavy_modes,
    statistics,
)

# What may be asked for besides.
ALSO = ("ntk_density", "two_time")
# Points of a density, its half width as a share of the largest edge, and the most modes behind it.
_POINTS, _WIDTH, _MOST_MODES = 200, 0.01, 1000
# A mean loss so many times the one at the start has diverged.
DIVERGED = 1e8
_TWO_TIME = {
    "displacement_correlation": ("C", "scalar product of two displacements", "parameter^2"),
    "parameter_response": ("u", "mean response of parameters to a force on them", "1"),
    "residual_response": ("G", "mean response of residuals to a force on them", "1"),
    "residual_correlation": ("Z", "mean product of two weighted residuals of a mode", "residual^2"),
    "ntk_residual_correlation": (
        "F", "the same, weighted by the NTK eigenvalue", "residual^2 / learning rate",
    ),
}  # fmt: skip


def mean_field(
    source: QuadraticModel | EnsembleLike | ArrayLike,
    sgd: SGD,
    steps: int,
    *,
    curvature: CurvatureLaw | float | None = None,
    residual: ArrayLike | None = None,
    n_params: int | None = None,
    ratio: float | None = None,
    bins: int = 40,
    groups: int = 1,
    memory: int | None = None,
    record_every: int | None = None,
    also: Sequence[str] = (),
) -> xr.Dataset:
    r"""Predict loss, NTK and noise kernel norm of the nonlinear model, without simulation.

    Parameters
    ----------
    source : QuadraticModel, Ensemble, or array_like of shape (n_data, n_data) or (n_data,)
        A model; an ensemble, whose spectral law is taken at its quantiles; or an NTK or its
        eigenvalues, in units of 1 / learning rate.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; a model's or ensemble's own if left out. Its covariance over data must
        commute with the NTK, that over parameters must be a multiple of the identity.
    residual : float or array_like, shape (n_data,), optional
        With an NTK: the initial residual, or the standard deviation of random entries (1 if left
        out). With eigenvalues: its components along the modes.
    n_params : int, optional
        With an NTK and a curvature: parameters P.
    ratio : float, optional
        P/D, if another than that of the source is meant, at the same curvature strength
        :math:`\hat q^2 = \sigma^2P/D`; ``np.inf`` for the limit of many parameters.
    bins : int, optional
        Modes of similar eigenvalues share one equation; at most so many equations.
    groups : int, optional
        Groups of data points with noise levels of their own, chosen by the Perron vector of the
        noise kernel matrix: they recover the exact noise kernel norm where points are uneven. Needs
        the eigenvectors.
    memory : int, optional
        Recent steps that are kept one by one; older ones are averaged over a share 1/memory of
        their age, so that long runs cost little more than proportionally. All are kept if left out.
        At 100, distances changed by less than 1e-4 and losses by less than 1 %, while these fell
        to 1e-4 of the initial loss. Losses that a coarse past does not resolve may be NaN. More are
        kept, or all, where the fastest mode overshoots at the start and goes on oscillating.
    record_every : int, optional
        Steps between two entries of the result; by default about fifty entries.
    also : sequence of {"ntk_density", "two_time"}, optional
        What else to return, see below.

    Returns
    -------
    xarray.Dataset
        Names as in :func:`quadmodel.simulate`: `loss`, `squared_distance`, `ntk_trace`,
        `ntk_largest_eigenvalue`, `noise_kernel_norm` (the paper's), `noise_kernel_norm_finite`
        (step), `mode_energy` (step, mode). From the step on at which the loss overflows or exceeds
        1e8 times that at the start, loss, energies and distance are +inf and the rest NaN;
        attribute `divergence_step` (-1 if there is none). With "ntk_density": `ntk_density` (step,
        eigenvalue), the density of the NTK's eigenvalues, smoothed by a Cauchy law whose half width
        w is the attribute `density_half_width`: the mean over eigenvalues of
        :math:`(w/\pi)/((x-\lambda)^2+w^2)`. With "two_time", over (later_step, earlier_step):
        `displacement_correlation` C, `parameter_response` u, `residual_response` G,
        `residual_correlation` Z and `ntk_residual_correlation`, where gradients are taken.

    Raises
    ------
    InputError
        If an argument is out of range, the batch is larger than the data, or the curvature's
        covariance is of another kind.
    MemoryError
        If one matrix over pairs of steps per bin does not fit in memory.

    Notes
    -----
    D and P to infinity together, with :math:`\hat q^2`, B/D, P/D and the spectrum fixed. With
    :math:`C(t,s) = E\theta_t\cdot\theta_s`, the weighted residual :math:`\zeta`, its correlation
    Z over modes and the mean response u of parameters to a force, every mode of the NTK obeys

    .. math::
        x_{t+1} &= x_t - \eta\sqrt\lambda\,\zeta_t - \eta\sigma^2C_{tt}x_t + \nu_t +
          \textstyle\sum_{s<t}[\eta^2\hat q^2 Z_{ts}u_{ts} - \eta\sigma^2G_{ts}C_{ts}]\,x_s\\
        z_t &= z_0 + \sqrt\lambda\,x_t - \eta\hat q^2\textstyle\sum_{s<t}C_{ts}u_{ts}\zeta_s
          + \varphi_t

    with :math:`E\nu_t\nu_s = \eta^2\sigma^2Z_{ts}C_{ts}`,
    :math:`E\varphi_t\varphi_s = \sigma^2C_{ts}^2/2`, and batch noise in :math:`\zeta`. Work grows
    as steps cubed times bins, memory as steps squared times bins. Errors are of order 1/D; late
    losses of models with uneven points fall more slowly than one group of points says.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: derivations/09-mean-field.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(n_data=100, n_params=200, curvature=0.02)
    >>> curve = qm.mean_field(ensemble, qm.SGD(learning_rate=0.1, batch_size=10), steps=50)
    >>> bool(curve.ntk_trace[-1] > curve.ntk_trace[0])
    True
    """
    modes = as_modes(source, curvature, residual, n_params)
    check_sgd(sgd, modes.n_data)
    steps = as_integer("steps", steps)
    bins, groups = as_integer("bins", bins), as_integer("groups", groups, high=modes.n_data)
    density = density_of(modes, ratio)
    if not (isinstance(also, list | tuple) and not also):
        also = as_list("also", also, lambda name: as_choice("also", name, ALSO))
    scaled = modes.in_units(sgd)
    memory = _as_memory(memory, "two_time" in also, float(modes.lam[0]), scaled)
    if record_every is None:
        record_every = max(1, steps // 50)
    record_every = as_integer("record_every", record_every)
    capacity = columns_needed(steps, memory)
    check_memory(
        "the mean-field theory",
        8.0 * capacity**2 * (min(bins, modes.n_data) + 20)
        + 16.0 * count_records(steps, record_every) * modes.n_data,
    )
    recorded = recorded_steps(steps, record_every)
    alone = heavy_modes(modes)
    in_bin = bins_of(modes, bins, alone)
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        known = statistics(modes, in_bin, scaled, density, groups)
        solver = MeanField(known, scaled, capacity, follow=in_bin[alone], keep="two_time" in also)
        found, stopped = run(solver, recorded, memory)
        values = _values(modes, in_bin, solver, found, recorded.size)
        if "ntk_density" in also:
            of_bins = bins_of(modes, _MOST_MODES, alone)
            finer = statistics(modes, of_bins, scaled, density, 1)
            values |= _densities(finer, of_bins[alone], found, values, modes.unit_of_ntk)
    coords: dict[str, Any] = {
        "step": step_coordinate(recorded),
        "mode": np.arange(modes.n_data),
    }
    if "two_time" in also:
        values |= _of_pairs(modes, solver, steps)
        for name in ("later_step", "earlier_step"):
            coords[name] = variable(name, np.arange(steps + 1), units="SGD steps")
    attrs = attributes(
        "mean-field theory",
        modes.spec | sgd.spec(),
        curvature_strength=modes.strength_of_source(),
        ratio=math.inf if density == 0 else 1 / density,
        steps=steps,
        bins=known.lam.size,
        groups=groups,
        divergence_step=stopped,
    )
    if "ntk_density" in also:
        coords["eigenvalue"] = _density_grid(values)
        attrs["density_half_width"] = _WIDTH * float(coords["eigenvalue"][1][-1])
    return xr.Dataset(values, coords=coords, attrs=attrs)


def _as_memory(memory: Any, two_time: bool, largest: float, sgd: SGD) -> int | None:
    """Return how many recent steps are kept one by one; None if all of them."""
    if memory is None:
        return None
    memory = as_integer("memory", memory, low=10)
    if two_time:
        raise InputError(f"memory must be left out with two_time, got {memory}")
    recent = recent_steps(largest, sgd)
    return None if math.isinf(recent) else max(memory, math.ceil(recent))


def density_of(modes: Modes, ratio: float | None) -> float:
    """Return D/P, of the source or as asked for."""
    if ratio is None:
        return modes.n_data / modes.n_params
    if isinstance(ratio, float) and ratio == math.inf:
        return 0.0
    rank = np.count_nonzero(modes.lam) / modes.n_data
    return 1 / as_number("ratio", ratio, least=rank)


def run(solver: MeanField, recorded: IntArray, memory: int | None) -> tuple[list[Means], int]:
    """Return the means at recorded steps, up to where they diverge, and the step of that or -1."""
    found: list[Means] = []
    wanted = set(recorded.tolist())
    start = float(solver.known.weight @ solver.known.energy)
    for step in range(int(recorded[-1]) + 1):
        stop_if_asked()
        means = solver.step(measure=step in wanted)
        # Too coarse a past may carry it away to either side.
        if not abs(solver.level) <= DIVERGED * start:
            return found, step
        if memory is not None and step % (memory // 2) == 0:
            solver.merge(memory)
        if means is not None:
            if not np.isfinite(means.squared_residual).all():
                return found, step
            found.append(means)
    return found, -1


def ntk_spectrum(known: Statistics, means: Means, follow: IntArray) -> InformationPlusNoise:
    """Return the spectrum of the NTK at one step."""
    lam = known.lam.copy()
    lam[follow] += means.own_motion
    noise = known.strength * means.squared_distance
    return InformationPlusNoise(
        np.maximum(lam, 0.0), known.weight, known.over_data, noise, known.density
    )


def _values(
    modes: Modes, in_bin: IntArray, solver: MeanField, found: list[Means], n_records: int
) -> dict[str, Variable]:
    """Return what is recorded, labelled and in the units of the source."""
    known, n_data = solver.known, modes.n_data
    energy = np.full((n_records, n_data), np.inf)
    distance = np.full(n_records, np.inf)
    names = ("ntk_largest_eigenvalue", "ntk_trace", "paper", "finite")
    ntk = {name: np.full(n_records, np.nan) for name in names}
    for k, means in enumerate(found):
        own = (means.response_to_start**2)[in_bin] * (modes.energy - known.energy[in_bin])
        energy[k] = means.squared_residual[in_bin] + own
        energy[k][energy[k] < 0] = np.nan  # below what a coarse past resolves
        distance[k] = means.squared_distance
        law = ntk_spectrum(known, means, solver.follow)
        ntk["ntk_largest_eigenvalue"][k] = law.edge
        ntk["ntk_trace"][k] = law.mean * n_data
        for norm in ("paper", "finite"):
            ntk[norm][k] = noise_kernel_norm_of(law, n_data, solver.sgd, norm)
    energy *= modes.unit_of_residual**2
    distance *= modes.unit_of_residual**2 / modes.unit_of_ntk
    of_mode = "mean squared residual along an NTK eigenvector"
    unit = "1 / learning rate"
    return {
        "loss": variable("step", energy.sum(axis=1) / (2 * n_data), "mean loss", "loss"),
        "mode_energy": variable(("step", "mode"), energy, of_mode, "residual^2"),
        "squared_distance": variable(
            "step", distance, "squared distance from the initial parameters", "parameter^2"
        ),
        "ntk_trace": variable(
            "step", ntk["ntk_trace"] * modes.unit_of_ntk, "trace of the NTK", unit
        ),
        "ntk_largest_eigenvalue": variable(
            "step",
            ntk["ntk_largest_eigenvalue"] * modes.unit_of_ntk,
            "largest eigenvalue of the NTK",
            unit,
        ),
        "noise_kernel_norm": variable("step", ntk["paper"], "noise kernel norm (paper)", "1"),
        "noise_kernel_norm_finite": variable(
            "step", ntk["finite"], "noise kernel norm (finite size)", "1"
        ),
    }


def _density_grid(values: dict[str, Variable]) -> Variable:
    """Return the eigenvalues at which densities are given, the same at all steps."""
    top = float(np.nanmax(values["ntk_largest_eigenvalue"][1]))
    grid = np.linspace(0.0, 1.1 * top, _POINTS)
    return variable("eigenvalue", grid, "eigenvalue of the NTK", "1 / learning rate")


def _densities(
    finer: Statistics,
    follow: IntArray,
    found: list[Means],
    values: dict[str, Variable],
    unit: float,
) -> dict[str, Variable]:
    """Return the smoothed density of the NTK's eigenvalues at recorded steps.

    Of all modes rather than bins of them, which would show between the bins.
    """
    grid: FloatArray = _density_grid(values)[1] / unit
    density = np.full((values["ntk_trace"][1].size, grid.size), np.nan)
    for k, means in enumerate(found):
        law = ntk_spectrum(finer, means, follow)
        if np.isfinite(law.edge):
            density[k] = law.smoothed_density(grid, _WIDTH * grid[-1]) / unit
    long_name, dims = "density of the NTK's eigenvalues, smoothed", ("step", "eigenvalue")
    return {"ntk_density": variable(dims, density, long_name, "learning rate")}


def noise_kernel_norm_of(law: InformationPlusNoise, n_data: int, sgd: SGD, norm: str) -> float:
    """Return K of a spectrum of the NTK."""
    if law.noise == 0 or law.density == 0:
        lam = law.lam + law.noise * law.over_data
        return _noise.norm_of_bins(lam, law.weight, n_data, sgd, norm)
    if not np.isfinite(law.edge):
        return math.nan
    edge = formulas.noiseless_edge(law.edge, sgd)
    if sgd.learning_rate >= edge:
        return math.inf
    # Where the learning rate is at the edge of a single eigenvalue.
    critical = edge * (law.edge + sgd.weight_decay) / sgd.learning_rate - sgd.weight_decay
    left = -sgd.weight_decay if sgd.weight_decay > 0 else -math.inf
    law = law.analytic_between(left, critical)
    return _noise.norm_on_spectrum(LimitSpectrum(law, n_data), sgd, norm)


def _of_pairs(modes: Modes, solver: MeanField, steps: int) -> dict[str, Variable]:
    """Return the functions of two steps, zero where responses have no cause."""
    squared, of_ntk = modes.unit_of_residual**2, modes.unit_of_ntk
    units = {"C": squared / of_ntk, "Z": squared, "F": squared * of_ntk, "u": 1.0, "G": 1.0}
    n, values = solver.columns, {}
    for name, (letter, long_name, unit) in _TWO_TIME.items():
        whole = np.full((steps + 1, steps + 1), np.nan)
        whole[:n, :n] = solver.shared[letter][:n, :n] * units[letter]
        values[name] = variable(("later_step", "earlier_step"), whole, long_name, unit)
    return values
