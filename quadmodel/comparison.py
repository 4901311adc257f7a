"""Statistics on two Datasets: standard errors, z-scores, verdicts, critical points."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import ndtri

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_number, shown
from quadmodel._util.crossing import interval_of_line, monotone_crossing
from quadmodel._util.results import check_result
from quadmodel._util.tables import Comparison, Critical

# Relative difference of two values that is taken for rounding.
_ROUNDING = 1e-9
# Attributes that determine, with the number of a replica and a step, the batch of that step.
_BATCHES = ("seed", "model_index", "batch_size", "sampling")

_PLANE, _LINE = ("learning_rate", "batch_size"), ("batch_size",)
# What results of phase_diagram() hold that are asked for their critical points.
GRID_OF_GROWTH = {
    "learning_rate": ("learning_rate",),
    "batch_size": ("batch_size",),
    "norm": ("norm",),
    "noise_kernel_norm": ("norm", *_PLANE),
    "scan_noise_kernel_norm": ("norm", *_LINE),
    "scan_learning_rate": _LINE,
    **{
        f"{part}{growth}_growth{end}": _LINE if part else _PLANE
        for part in ("", "scan_")
        for growth in ("mean", "typical")
        for end in ("", "_standard_error")
    },
}


def compare(sim: xr.Dataset, pred: xr.Dataset, *, family_wise_error: float = 1e-6) -> xr.Dataset:
    r"""Compare a simulation with a prediction, value by value.

    Parameters
    ----------
    sim : xarray.Dataset
        From :func:`quadmodel.simulate`: variables with a `replica` dimension, or with a companion
        named ``..._standard_error``.
    pred : xarray.Dataset
        From :func:`quadmodel.predict`: variables of the same names; or from
        :func:`quadmodel.large_p_limit`, with replicas of its own. Steps that only one of the two
        has are left out.
    family_wise_error : float, optional
        Probability, inside (0, 1), that a right prediction is called wrong anywhere.

    Returns
    -------
    xarray.Dataset
        One row (dimension `comparison`) per variable, step and mode: `predicted`, `measured`,
        `standard_error`, `z` and `agrees`, with coordinates `variable`, `step`, `mode` (-1: not
        resolved). Attributes `bound` (largest allowed \|z\|), `worst` (largest found) and `verdict`
        ("agree" or "disagree"). `.to_dataframe()` gives it as a table.

    Raises
    ------
    InputError
        If the two have no variable or no step in common, or one of them has a single replica.

    Notes
    -----
    z = (measured - predicted) / standard error over replicas; the bound is the two-sided normal
    quantile of family_wise_error / rows (Bonferroni), which holds for dependent rows as well.
    Values without spread agree if they are equal to a relative 1e-9. A mean that overflowed agrees
    with an infinite prediction only.

    Replicas of the large-P limit see the batches of a simulation with the same seed, model index,
    batch size and sampling scheme. Then they are compared in pairs: the standard error is that of
    the mean difference, and replicas that only one of the two has are left out. With other batches
    the standard errors of both means add in quadrature. All simulated replicas share one draw of
    the curvature, which shifts them by about :math:`P^{-1/2}`: the difference contains this shift,
    no standard error does. What is NaN on both sides (after divergence) agrees.

    References
    ----------
    .. [1] Bonferroni's inequality.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=10, n_params=20).sample(seed=0)
    >>> sgd = qm.SGD(learning_rate=0.05, batch_size=5)
    >>> sim = qm.simulate(model, sgd, steps=10, replicas=200)
    >>> qm.compare(sim, qm.predict(model, sgd, steps=10)).attrs["verdict"]
    'agree'
    """
    family_wise_error = as_number("family_wise_error", family_wise_error, above=0.0, below=1.0)
    check_result("sim", sim, "simulate()", {"step": ("step",)})
    check_result("pred", pred, "predict()", {"step": ("step",)})
    names = [
        str(name)
        for name in sim.data_vars
        if name in pred.data_vars
        and "step" in sim[name].dims
        and "step" in pred[name].dims
        and not str(name).endswith("_standard_error")
    ]
    if not names:
        raise InputError(
            "sim and pred must share a variable along step, "
            f"got {shown(list(sim), 200)} and {shown(list(pred), 200)}"
        )
    pred = pred[[n for n in pred.data_vars if str(n).removesuffix("_standard_error") in names]]
    sim, pred, paired = _aligned(sim, pred)
    columns = [_rows(name, sim, pred, paired) for name in names]
    joined = {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}
    rows = joined["z"].size
    bound = float(-ndtri(family_wise_error / rows / 2))
    worst = float(np.max(np.abs(joined["z"])))
    joined["agrees"] = np.abs(joined["z"]) <= bound
    coordinates = ("variable", "step", "mode")
    return Comparison(
        {k: ("comparison", v) for k, v in joined.items() if k not in coordinates},
        coords={k: ("comparison", joined[k]) for k in coordinates},
        attrs={
            "bound": bound,
            "worst": worst,
            "rows": rows,
            "family_wise_error": family_wise_error,
            "verdict": "agree" if worst <= bound else "disagree",
        },
    )


def _aligned(sim: xr.Dataset, pred: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, bool]:
    """Return both on their common steps and, if they saw the same batches, replicas; whether so."""
    paired = all(key in sim.attrs and sim.attrs[key] == pred.attrs.get(key) for key in _BATCHES)
    if paired and "replica" in sim.coords and "replica" in pred.coords:
        sim, pred = xr.align(sim, pred, join="inner", exclude={"mode", "step"})
    for which, runs in (("sim", sim), ("pred", pred)):
        if runs.sizes.get("replica", 2) < 2:
            shared = " in common" if paired and "replica" in pred.coords else ""
            raise InputError(
                f"{which} must hold at least 2 replicas{shared} for a standard error, "
                f"got {runs.sizes['replica']}"
            )
    sim, pred = xr.align(sim, pred, join="inner", exclude={"mode", "replica"})
    if sim.sizes["step"] == 0:
        raise InputError("sim and pred must share steps, got none in common")
    return sim, pred, paired


def _rows(name: str, sim: xr.Dataset, pred: xr.Dataset, paired: bool) -> dict[str, np.ndarray]:
    """Return predicted, measured, standard error and z of one variable, flattened."""
    measured, error = _mean_and_error(name, sim)
    random = "replica" in pred.dims
    predicted = pred[name]
    if random:
        predicted, error_of_prediction = _mean_and_error(name, pred)
        with np.errstate(over="ignore", invalid="ignore"):
            if paired and "replica" in sim[name].dims:
                error = _standard_error(sim[name] - pred[name])
            else:
                error = (error**2 + error_of_prediction**2) ** 0.5
    m, p, s = (
        np.asarray(a.transpose(*measured.dims).values, dtype=np.float64)
        for a in (measured, predicted, error)
    )
    mesh = np.meshgrid(*(measured.coords[dim].values for dim in measured.dims), indexing="ij")
    index = {dim: grid.ravel() for dim, grid in zip(measured.dims, mesh, strict=True)}
    return {
        "variable": np.full(m.size, name),
        "step": index["step"],
        "mode": index.get("mode", np.full(m.size, -1)),
        "predicted": p.ravel(),
        "measured": m.ravel(),
        "standard_error": s.ravel(),
        "z": _z_scores(m, p, s, nan_agrees=random).ravel(),
    }


def _z_scores(m: FloatArray, p: FloatArray, s: FloatArray, *, nan_agrees: bool) -> FloatArray:
    """Return (measured - predicted) / standard error; 0 where they agree up to rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = m - p
        # Relative to the value, and to the variable's largest one: a mode may pass through zero.
        largest = np.abs(m[np.isfinite(m)]).max(initial=0.0)
        rounding = np.maximum(_ROUNDING * np.maximum(np.abs(m), np.abs(p)), 1e-12 * largest)
        z = np.where(
            np.isfinite(difference) & (np.abs(difference) <= rounding), 0.0, difference / s
        )
    same = (m == p) | (nan_agrees & np.isnan(m) & np.isnan(p))
    return np.where(same, 0.0, np.where(np.isnan(z), np.inf, z))


def _mean_and_error(name: str, runs: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the mean over replicas and its standard error; where they are given, as they are."""
    value = runs[name]
    if "replica" not in value.dims:
        if f"{name}_standard_error" not in runs:
            raise InputError(
                f"{name} must have a dimension 'replica' or a {name}_standard_error beside it, "
                "got neither"
            )
        return value, runs[f"{name}_standard_error"]
    return value.mean("replica", skipna=False), _standard_error(value)


def _standard_error(value: xr.DataArray) -> xr.DataArray:
    """Return the standard error of the mean over replicas."""
    with np.errstate(invalid="ignore"):
        spread = value.std("replica", ddof=1, skipna=False)
    return spread / math.sqrt(value.sizes["replica"])


def critical_noise_kernel_norm(
    grid: xr.Dataset,
    *,
    norm: str = "exact",
    growth: str = "mean",
    confidence: float = 0.95,
) -> xr.Dataset:
    r"""Return the noise kernel norm at which the simulation turns unstable, to be set beside 1.

    Parameters
    ----------
    grid : xarray.Dataset
        From :func:`quadmodel.phase_diagram`.
    norm : {"paper", "finite", "exact"}, optional
        Which noise kernel norm.
    growth : {"mean", "typical"}, optional
        Growth rate of the mean loss (mean-square stability) or of the typical loss.
    confidence : float, optional
        Coverage of the intervals, inside (0, 1).

    Returns
    -------
    xarray.Dataset
        Per batch size `learning_rate` and `noise_kernel_norm`, where the simulated growth rate
        crosses 0, each with ``..._low`` and ``..._high``; NaN where it does not cross inside the
        grid, or where only the deterministic edge is crossed and K jumps from 0. `resolved`: false
        where steps or replicas were too few to tell (`needed_steps` is what to ask for).
        Numbers `pooled_noise_kernel_norm` with ``_low`` and ``_high``: the mean over resolved
        batch sizes. The attribute `unresolved` says in a line which batch sizes need how many
        steps, or more replicas; empty if none does.

    Raises
    ------
    InputError
        If `grid` is not a phase diagram or lacks the norm.

    Notes
    -----
    *Close-up* (linear model). Growth close to its crossing is a straight line in log learning rate,
    and every learning rate has runs of its own: least squares through them, with the error that
    follows from their scatter and Student's quantile
    (``quadmodel/_util/crossing.py``). What the correction for the bias of a logarithm
    moves the crossing by counts as one more standard error, independent of that one.
    Where it has not settled, the interval is widened to hold the scan's crossing as well.

    *Scan* (all other diagrams). Growth rates of the grid and of its finer scan are made monotone in
    the learning rate; the crossing is interpolated, with the error that follows from those of the
    growth rates and from their spacing (``quadmodel/_util/crossing.py``).

    K is interpolated between the same learning rates; the pooled value is the mean of log K
    weighted by 1/variance.

    References
    ----------
    .. [1] E. Fieller, "Some problems in interval estimation" (1954), for the crossing of a line.

    Examples
    --------
    >>> import quadmodel as qm
    >>> grid = qm.phase_diagram(qm.Ensemble(20, 40), 6, [1, 4], steps=64, replicas=8)
    >>> table = qm.critical_noise_kernel_norm(grid)
    >>> bool((table.noise_kernel_norm_low < table.noise_kernel_norm_high).all())
    True
    """
    as_choice("growth", growth, ("mean", "typical"))
    confidence = as_number("confidence", confidence, above=0.0, below=1.0)
    check_result("grid", grid, "phase_diagram()", GRID_OF_GROWTH)
    as_choice("norm", norm, tuple(str(m) for m in grid.norm.values))
    width = float(ndtri(0.5 + confidence / 2))
    columns, resolved, needed = [], [], []
    for b in grid.batch_size.values:
        column = grid.sel(batch_size=b, norm=norm)
        found = _interval(column, growth, confidence)
        columns.append([*np.exp(found.ends), *_norm_at(found.ends, *_norms(column))])
        resolved.append(found.resolved)
        needed.append(found.needed_steps)
    names = [
        f"{name}{end}"
        for name in ("learning_rate", "noise_kernel_norm")
        for end in ("", "_low", "_high")
    ]
    table = dict(zip(names, np.array(columns).T, strict=True))
    units = {"learning_rate": "1 / NTK eigenvalue", "noise_kernel_norm": "1"}
    value, low, high = (table[n] for n in names[3:])
    pooled = _pool(np.where(resolved, value, np.nan), low, high, width)
    return Critical(
        {
            n: ("batch_size", v, {"units": units[n.split("_low")[0].split("_high")[0]]})
            for n, v in table.items()
        }
        | {
            f"pooled_noise_kernel_norm{end}": ((), v, {"units": "1"})
            for end, v in zip(("", "_low", "_high"), pooled, strict=True)
        }
        | {
            "resolved": ("batch_size", resolved, {"units": "1"}),
            "needed_steps": ("batch_size", needed, {"units": "steps"}),
        },
        coords={"batch_size": grid.batch_size},
        attrs={
            "norm": norm,
            "growth": growth,
            "confidence": confidence,
            "unresolved": _unresolved(grid, value, np.array(resolved), needed),
        },
    )


def _unresolved(
    grid: xr.Dataset, value: FloatArray, resolved: NDArray[np.bool_], needed: list[float]
) -> str:
    """Return a line that says which batch sizes need more, and of what; empty if none does."""
    few = np.flatnonzero(np.isfinite(value) & ~resolved)
    if not few.size:
        return ""
    names = ", ".join(str(b) for b in grid.batch_size.values[few])
    had = int(grid.attrs.get("steps", 0))
    steps = int(np.nanmax([had, *np.array(needed)[few]]))
    return f"batch size {names}: " + (f"steps={steps}" if steps > had else "more replicas")


class _Interval(NamedTuple):
    """Crossing of zero in log learning rate, low and high end; NaN where there is none."""

    ends: FloatArray
    resolved: bool
    needed_steps: float = math.nan


def _interval(column: xr.Dataset, growth: str, confidence: float) -> _Interval:
    """Return where the growth of one batch size crosses zero, with its confidence interval."""
    ends = np.array([0.0, -1.0, 1.0])
    by_scan = monotone_crossing(*_growth(column, growth))
    of_scan = by_scan.at + ndtri(0.5 + confidence / 2) * by_scan.standard_error * ends
    close = column.sel(kind=growth) if "close_growth" in column else None
    if close is None or not np.isfinite(close.close_growth.values).any():
        return _Interval(of_scan, bool(np.isfinite(of_scan).all()))
    settled = bool(close.close_settled)
    found = interval_of_line(
        np.log(close.close_learning_rate.values),
        close.close_growth.values,
        close.close_growth_standard_error.values,
        float(close.close_correction),
        confidence,
    )
    if found is None:
        return _Interval(of_scan, False, float(close.close_needed_steps))
    if settled:
        return _Interval(found, True)
    found[1], found[2] = np.fmin(found[1], of_scan[1]), np.fmax(found[2], of_scan[2])
    return _Interval(found, False, float(close.close_needed_steps))


def _growth(column: xr.Dataset, growth: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return log learning rates, growth and its error of one batch size, grid and scan."""
    x, g, s = (
        np.concatenate([column[name].values, column[f"scan_{name}"].values])
        for name in ("learning_rate", f"{growth}_growth", f"{growth}_growth_standard_error")
    )
    order = np.argsort(x)
    order = order[np.isfinite(x[order]) & np.isfinite(g[order])]
    return np.log(x[order]), g[order], s[order]


def _norms(column: xr.Dataset) -> tuple[FloatArray, FloatArray]:
    """Return log learning rates and K of one batch size: grid, scan and close-ups."""
    places = [p for p in ("", "scan_", "close_") if f"{p}noise_kernel_norm" in column]
    x, k = (
        np.concatenate([column[p + name].values.ravel() for p in places])
        for name in ("learning_rate", "noise_kernel_norm")
    )
    order = np.argsort(x)
    order = order[np.isfinite(x[order])]
    return np.log(x[order]), k[order]


def _norm_at(log_rates: FloatArray, x: FloatArray, norm: FloatArray) -> FloatArray:
    """Interpolate K in log learning rate, through K/(1+K), which is bounded where K is not."""
    if np.isnan(log_rates).any() or not np.any((norm > 0) & np.isfinite(norm)):
        return np.full(3, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        bounded = np.where(np.isinf(norm), 1.0, norm / (1 + norm))
        y = np.interp(log_rates, x, bounded)
        return np.where(y >= 1, np.inf, y / (1 - y))


def _pool(
    value: FloatArray, low: FloatArray, high: FloatArray, width: float
) -> tuple[float, float, float]:
    """Return the weighted mean of log K over batch sizes, with its interval."""
    good = np.isfinite(value) & np.isfinite(high) & (low > 0)
    if not good.any():
        return math.nan, math.nan, math.nan
    centre = np.log(value[good])
    error = (np.log(high[good]) - np.log(low[good])) / (2 * width)
    weight = 1 / np.maximum(error, 1e-12) ** 2
    mean = float(np.sum(weight * centre) / weight.sum())
    half = width / math.sqrt(float(weight.sum()))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
