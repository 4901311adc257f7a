"""Statistics on two Datasets: standard errors, z-scores, verdicts, critical points."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from scipy.optimize import isotonic_regression
from scipy.special import ndtri

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_number

# Values that rounding alone separates; used where a measurement has no spread.
_ROUNDING = 1e-9
_RESAMPLES = 400
# What the batches of a run are a function of, beside its replica and the step.
_BATCHES = ("seed", "model_index", "batch_size", "sampling")


def compare(sim: xr.Dataset, pred: xr.Dataset, *, family_wise_error: float = 1e-6) -> xr.Dataset:
    r"""Compare a simulation with a prediction, value by value.

    Parameters
    ----------
    sim : xarray.Dataset
        From :func:`quadmodel.simulate`: variables with a `replica` dimension, or with a companion
        named ``..._standard_error``.
    pred : xarray.Dataset
        From :func:`quadmodel.predict`: variables of the same names; or from
        :func:`quadmodel.large_p_limit`, with runs of its own. Steps that only one of the two has
        are left out.
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

    Runs of the large-P limit see the batches of a simulation with the same seed, model index, batch
    size and sampling scheme. Then what both have in common is compared run by run: the standard
    error is that of the mean difference, and replicas that only one of the two has are left out.
    With other batches the standard errors of both means add in quadrature. The draw of the
    curvature, of which simulated runs share one, moves them by about :math:`P^{-1/2}`: that is in
    the difference, but in no standard error. What is NaN on both sides (after divergence) agrees.

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
            f"sim and pred must share a variable along step, got {list(sim)} and {list(pred)}"
        )
    pred = pred[[n for n in pred.data_vars if str(n).removesuffix("_standard_error") in names]]
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


def _rows(name: str, sim: xr.Dataset, pred: xr.Dataset, paired: bool) -> dict[str, np.ndarray]:
    """Return predicted, measured, standard error and z of one variable, flattened."""
    measured, error = _mean(name, sim)
    runs = "replica" in pred.dims
    predicted = pred[name]
    if runs:
        predicted, its_error = _mean(name, pred)
        with np.errstate(over="ignore", invalid="ignore"):
            if paired and "replica" in sim[name].dims:
                error = _error(sim[name] - pred[name])
            else:
                error = (error**2 + its_error**2) ** 0.5
    predicted = predicted.transpose(*measured.dims)
    m, p, s = (
        np.asarray(a.values, dtype=np.float64)
        for a in (measured, predicted, error.transpose(*measured.dims))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = m - p
        # Relative to the value, and to the variable's largest one: a mode may pass through zero.
        largest = np.abs(m[np.isfinite(m)]).max(initial=0.0)
        rounding = np.maximum(_ROUNDING * np.maximum(np.abs(m), np.abs(p)), 1e-12 * largest)
        z = np.where(np.isfinite(gap) & (np.abs(gap) <= rounding), 0.0, gap / s)
    same = (m == p) | (runs & np.isnan(m) & np.isnan(p))
    z = np.where(same, 0.0, np.where(np.isnan(z), np.inf, z))
    at = {dim: measured.coords[dim].values for dim in measured.dims}
    mesh = np.meshgrid(*at.values(), indexing="ij")
    index = {dim: grid.ravel() for dim, grid in zip(at, mesh, strict=True)}
    return {
        "variable": np.full(m.size, name),
        "step": index["step"],
        "mode": index.get("mode", np.full(m.size, -1)),
        "predicted": p.ravel(),
        "measured": m.ravel(),
        "standard_error": s.ravel(),
        "z": z.ravel(),
    }


def _mean(name: str, runs: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the mean over replicas and its standard error, or what stands there for them."""
    value = runs[name]
    if "replica" not in value.dims:
        return value, runs[f"{name}_standard_error"]
    return value.mean("replica", skipna=False), _error(value)


def _error(value: xr.DataArray) -> xr.DataArray:
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
    Growth rates of the grid's column and of its finer scan are made monotone in the learning rate
    (weighted isotonic regression); the crossing is interpolated linearly in log learning
    rate. Its standard error adds in quadrature the spread over 400 redraws of the growth rates from
    their standard errors, and the spacing of the points around the crossing over
    :math:`\sqrt{12}`. Near the deterministic edge growth has a kink at the threshold: where the
    line through the two points above crosses later, by more than two spreads, the middle of both
    is taken and half their distance added to the error. K is interpolated in the same points; the
    pooled value weighs log K by 1/variance.

    References
    ----------
    .. [1] R. Barlow et al., "Statistical inference under order restrictions" (1972).
    """
    as_choice("growth", growth, ("mean", "typical"))
    confidence = as_number("confidence", confidence, above=0.0, below=1.0)
    for name in ("mean_growth", "noise_kernel_norm", "scan_learning_rate"):
        if name not in grid:
            raise InputError(f"grid must come from phase_diagram(), got no variable {name!r}")
    as_choice("norm", norm, tuple(str(m) for m in grid.norm.values))
    width = float(ndtri(0.5 + confidence / 2))
    columns = []
    for b in grid.batch_size.values:
        x, g, s, k = _column(grid.sel(batch_size=b, norm=norm), growth)
        root, error = _crossing(x, g, s)
        at = root + width * error * np.array([0.0, -1.0, 1.0])
        columns.append([*np.exp(at), *_norm_at(at, x, k)])
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


def _column(cell: xr.Dataset, growth: str) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return log learning rates, growth, its error and K of one batch size, grid and scan."""

    def both(coarse: str, fine: str) -> FloatArray:
        return np.concatenate([cell[coarse].values, cell[fine].values])

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
    root, from_above = _monotone_root(x, growth, weight)
    if math.isnan(root):
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    noise = error * rng.standard_normal((_RESAMPLES, x.size))
    redrawn = np.array([_monotone_root(x, growth + n, weight)[0] for n in noise])
    above = min(int(np.searchsorted(x, root)), x.size - 1)
    spacing = x[above] - x[max(above - 1, 0)]
    spread = float(np.nanstd(redrawn)) if np.isfinite(redrawn).any() else math.nan
    # A kink: the points above lead to a later crossing than the chord, by more than noise would.
    kink = from_above - root if from_above - root > 2 * spread else 0.0
    return root + kink / 2, math.hypot(spread, spacing / math.sqrt(12), kink / 2)


def _monotone_root(x: FloatArray, growth: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Return the crossing by the chord, and by the line through the two points above it."""
    level = isotonic_regression(growth, weights=weight).x
    above = int(np.searchsorted(level, 0.0))
    if above == 0 or above == level.size:
        return math.nan, math.nan
    below = above - 1
    chord = x[below] - level[below] * (x[above] - x[below]) / (level[above] - level[below])
    line = chord
    if above + 1 < level.size and level[above + 1] > level[above]:
        slope = (level[above + 1] - level[above]) / (x[above + 1] - x[above])
        line = min(max(x[above] - level[above] / slope, x[below]), x[above])
    return float(chord), float(line)


def _norm_at(at: FloatArray, x: FloatArray, norm: FloatArray) -> FloatArray:
    """Interpolate K in log learning rate; K/(1+K) is bounded where K is not."""
    if np.isnan(at).any() or not np.any((norm > 0) & np.isfinite(norm)):
        return np.full(3, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        bounded = np.where(np.isinf(norm), 1.0, norm / (1 + norm))
        y = np.interp(at, x, bounded)
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
