"""Statistics on two Datasets: standard errors, z-scores, verdicts, critical points."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy.optimize import isotonic_regression
from scipy.special import ndtri

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_number, shown
from quadmodel._util.results import check_result

# Relative difference of two values that is taken for rounding.
_ROUNDING = 1e-9
# Redraws of the growth rates for the standard error of their crossing.
_REDRAWS = 400
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
    return xr.Dataset(
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
        grid, or where only the deterministic edge is crossed and K jumps from 0. Numbers
        `pooled_noise_kernel_norm` with ``_low`` and ``_high``: the mean over batch sizes.

    Raises
    ------
    InputError
        If `grid` is not a phase diagram or lacks the norm.

    Notes
    -----
    Growth rates of the grid and of its finer scan are made monotone in the learning rate (weighted
    isotonic regression [1]_); the crossing is interpolated linearly in log learning rate. Its
    standard error adds in quadrature the spread over 400 redraws of the growth rates from their
    standard errors, and the spacing of the points around the crossing over :math:`\sqrt{12}`.

    Near the deterministic edge the slope of the growth rate jumps upwards: it is convex, lies below
    the chord of the two points around the crossing, and above the line extrapolated from the two
    points above it. So it crosses zero between the two lines, and on the second one if it is
    linear on both sides of the kink and still negative there. If the second line crosses later by
    more than two spreads, the middle of both crossings is taken, and half their distance is added
    to the error in quadrature.

    K is interpolated between the same points; the pooled value is the mean of log K weighted by
    1/variance.

    References
    ----------
    .. [1] R. Barlow et al., "Statistical inference under order restrictions" (1972).
    """
    as_choice("growth", growth, ("mean", "typical"))
    confidence = as_number("confidence", confidence, above=0.0, below=1.0)
    check_result("grid", grid, "phase_diagram()", GRID_OF_GROWTH)
    as_choice("norm", norm, tuple(str(m) for m in grid.norm.values))
    width = float(ndtri(0.5 + confidence / 2))
    columns = []
    for b in grid.batch_size.values:
        x, growth_rate, error, k = _column(grid.sel(batch_size=b, norm=norm), growth)
        crossing, crossing_error = _crossing(x, growth_rate, error)
        interval = crossing + width * crossing_error * np.array([0.0, -1.0, 1.0])
        columns.append([*np.exp(interval), *_norm_at(interval, x, k)])
    names = [
        f"{name}{end}"
        for name in ("learning_rate", "noise_kernel_norm")
        for end in ("", "_low", "_high")
    ]
    table = dict(zip(names, np.array(columns).T, strict=True))
    units = {"learning_rate": "1 / NTK eigenvalue", "noise_kernel_norm": "1"}
    value, low, high = (table[n] for n in names[3:])
    pooled = _pool(value, low, high, width)
    return xr.Dataset(
        {
            n: ("batch_size", v, {"units": units[n.split("_low")[0].split("_high")[0]]})
            for n, v in table.items()
        }
        | {
            f"pooled_noise_kernel_norm{end}": ((), v, {"units": "1"})
            for end, v in zip(("", "_low", "_high"), pooled, strict=True)
        },
        coords={"batch_size": grid.batch_size},
        attrs={"norm": norm, "growth": growth, "confidence": confidence},
    )


def _column(
    column: xr.Dataset, growth: str
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return log learning rates, growth, its error and K of one batch size, grid and scan."""

    def both(coarse: str, fine: str) -> FloatArray:
        return np.concatenate([column[coarse].values, column[fine].values])

    x = np.log(both("learning_rate", "scan_learning_rate"))
    g = both(f"{growth}_growth", f"scan_{growth}_growth")
    s = both(f"{growth}_growth_standard_error", f"scan_{growth}_growth_standard_error")
    k = both("noise_kernel_norm", "scan_noise_kernel_norm")
    order = np.argsort(x)
    order = order[np.isfinite(x[order]) & np.isfinite(g[order])]
    return x[order], g[order], s[order], k[order]


def _crossing(x: FloatArray, growth: FloatArray, error: FloatArray) -> tuple[float, float]:
    """Return where growth crosses zero, and the standard error of that place."""
    if x.size < 2:
        return math.nan, math.nan
    weight = 1 / np.maximum(error, 1e-12) ** 2
    by_chord, by_extrapolation = _monotone_crossings(x, growth, weight)
    if math.isnan(by_chord):
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    noise = error * rng.standard_normal((_REDRAWS, x.size))
    redrawn = np.array([_monotone_crossings(x, growth + n, weight)[0] for n in noise])
    right = min(int(np.searchsorted(x, by_chord)), x.size - 1)
    spacing = x[right] - x[max(right - 1, 0)]
    spread = float(np.nanstd(redrawn)) if np.isfinite(redrawn).any() else math.nan
    # Growth that is convex, as at a kink, crosses zero between these two: it lies below its chord
    # and above the line through two points further up. Take the middle, and half the gap as error.
    gap = by_extrapolation - by_chord
    if gap <= 2 * spread:  # no more than noise explains
        gap = 0.0
    return by_chord + gap / 2, math.hypot(spread, spacing / math.sqrt(12), gap / 2)


def _monotone_crossings(
    x: FloatArray, growth: FloatArray, weight: FloatArray
) -> tuple[float, float]:
    """Return where the chord crosses zero, and where the line through the two points above does."""
    y = isotonic_regression(growth, weights=weight).x
    right = int(np.searchsorted(y, 0.0))
    if right == 0 or right == y.size:
        return math.nan, math.nan
    left = right - 1
    by_chord = x[left] - y[left] * (x[right] - x[left]) / (y[right] - y[left])
    by_extrapolation = by_chord
    if right + 1 < y.size and y[right + 1] > y[right]:
        slope = (y[right + 1] - y[right]) / (x[right + 1] - x[right])
        by_extrapolation = min(max(x[right] - y[right] / slope, x[left]), x[right])
    return float(by_chord), float(by_extrapolation)


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
