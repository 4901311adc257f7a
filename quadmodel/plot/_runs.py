"""Pictures of training: loss and sharpening beside their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, as_integer
from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import (
    GREEN,
    ORANGE,
    PURPLE,
    SIMULATION,
    THEORY,
    Line,
    check_axes,
    draw_lines,
    legend,
    log_limits,
    new_axes,
    ticks,
    title,
)
from quadmodel.plot._setting import setting

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


_PARTS: dict[str, dict[str, Any]] = {
    "progressive": {"color": GREEN, "linestyle": "--"},
    "conservative": {"color": ORANGE, "linestyle": "-."},
    "diffusive": {"color": PURPLE, "linestyle": ":", "linewidth": 2.0},
}


@returns_artists
def loss(sim: xr.Dataset, pred: xr.Dataset | None = None, ax: Axes | None = None) -> list[Artist]:
    """Draw the simulated loss, its spread over replicas, and the predicted mean.

    Parameters
    ----------
    sim : xarray.Dataset
        From :func:`quadmodel.simulate`.
    pred : xarray.Dataset, optional
        From :func:`quadmodel.predict`; or from :func:`quadmodel.large_p_limit`, whose mean over
        replicas is drawn.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        Mean and median of the simulation, the band between its 10% and 90% quantiles, and the
        prediction.

    Raises
    ------
    InputError
        If a Dataset has no loss along steps, or the first one no replicas.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=10, n_params=20).sample(seed=0)
    >>> sgd = qm.SGD(learning_rate=0.05, batch_size=5)
    >>> sim = qm.simulate(model, sgd, steps=20, replicas=8)
    >>> artists = qm.plot.loss(sim, qm.predict(model, sgd, steps=20))
    >>> artists[0].axes.get_ylabel()
    'loss'
    """
    check_result("sim", sim, "simulate()", {"loss": ("replica", "step"), "step": ("step",)})
    if pred is not None:
        check_result("pred", pred, "predict()", {"loss": ("step",), "step": ("step",)})
    check_axes(ax)
    ax = ax or new_axes()
    step, losses = sim.step.values, sim.loss.transpose("step", "replica").values
    many = losses.shape[1] > 1
    blue: dict[str, Any] = {"color": SIMULATION}
    low, middle, high = _quantiles(losses)
    lines = [Line("mean of replicas" if many else "the replica", step, _mean(losses), blue)]
    if many:
        lines.append(Line("median replica", step, middle, blue | {"linestyle": ":"}))
    if pred is not None:
        predicted = pred.loss.mean("replica") if "replica" in pred.loss.dims else pred.loss
        style = {"color": THEORY, "linestyle": "--"}
        lines.append(Line("predicted mean", pred.step.values, _shown(predicted.values), style))
    limits = log_limits([low, high, *(line.y for line in lines)])
    ax.set(xlabel="SGD steps", ylabel="loss", yscale="log", ylim=limits)
    artists: list[Artist] = []
    if not np.array_equal(low, high, equal_nan=True):
        band: dict[str, Any] = {"color": SIMULATION, "alpha": 0.2, "linewidth": 0}
        artists.append(ax.fill_between(step, low, high, label="10% to 90% of replicas", **band))
    artists += draw_lines(ax, lines)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    title(ax, setting(sim.attrs, replicas=losses.shape[1]))
    legend(ax)
    return artists


def _shown(values: FloatArray) -> FloatArray:
    """Return what a logarithmic axis can show, NaN for the rest."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _mean(losses: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return _shown(losses.mean(axis=1))


def _quantiles(losses: FloatArray) -> FloatArray:
    """Return the 10%, 50% and 90% quantiles; replicas that have diverged are above all others."""
    worst = np.where(np.isnan(losses), np.inf, losses)
    with np.errstate(invalid="ignore"):
        return _shown(np.quantile(worst, [0.1, 0.5, 0.9], axis=1))


def _linear_limits(values: Sequence[FloatArray]) -> tuple[float, float]:
    """Return limits of a linear axis that holds 0, with a margin."""
    every = np.concatenate([np.ravel(some) for some in values])
    every = every[np.isfinite(every)]
    low, high = min(0.0, every.min(initial=0.0)), max(0.0, every.max(initial=0.0))
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


@returns_artists
def sharpening(
    pred: xr.Dataset, sim: xr.Dataset | None = None, ax: Axes | None = None, *, mode: int = 0
) -> list[Artist]:
    r"""Draw the three parts of an eigenvalue's growth, and simulation over their sum.

    Parameters
    ----------
    pred : xarray.Dataset
        From :func:`quadmodel.expected_ntk`.
    sim : xarray.Dataset, optional
        From :func:`quadmodel.sample_ntk`, drawn with two standard errors.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.
    mode : int, optional
        Eigenvector of the initial NTK, 0 for the largest eigenvalue.

    Returns
    -------
    list of matplotlib.artist.Artist
        The lines, and the error bars of the simulation.

    Raises
    ------
    InputError
        If `pred` is not from :func:`quadmodel.expected_ntk` or has no such mode.

    Notes
    -----
    Change of :math:`v_\alpha^\top\Theta v_\alpha` in units of 1 / learning rate, against SGD
    steps.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(6, 20, qm.spectra.PowerLaw(1.0), curvature=0.005).sample(seed=0)
    >>> pred = qm.expected_ntk(model, qm.SGD(learning_rate=0.2, batch_size=2), steps=10)
    >>> artists = qm.plot.sharpening(pred)
    >>> artists[0].axes.get_xlabel()
    'SGD steps'
    """
    parts = ("progressive", "conservative", "diffusive", "ntk_projection")
    check_result("pred", pred, "expected_ntk()", dict.fromkeys(parts, ("step", "mode")))
    if sim is not None:
        runs = ("replica", "step", "mode")
        check_result("sim", sim, "sample_ntk()", {"ntk_projection": runs})
    check_axes(ax)
    mode = as_integer("mode", mode, low=0, high=pred.sizes["mode"] - 1)
    ax = ax or new_axes()
    at = pred.isel(mode=mode)
    step = at.step.values
    grown = at.ntk_projection - at.ntk_projection.isel(step=0)
    lines = [Line("sum: closed form", step, grown.values, {"color": THEORY, "linewidth": 2.2})]
    for name, style in _PARTS.items():
        lines.append(Line(name, step, at[name].values, style))
    reach = [line.y for line in lines]
    drawn: dict[str, Any] = {
        "color": SIMULATION,
        "fmt": "o",
        "markersize": 4,
        "capsize": 2,
        "zorder": 3,
    }
    if sim is not None:
        values = sim.ntk_projection.isel(mode=mode)
        # Nothing is drawn where a replica has diverged: there is no mean to show.
        values = (values - values.isel(step=0)).where(np.isfinite(values))
        mean = values.mean("replica", skipna=False)
        error = 2 * values.std("replica", ddof=1, skipna=False) / values.sizes["replica"] ** 0.5
        reach += [(mean - error).values, (mean + error).values]
    ax.set(
        xlabel="SGD steps",
        ylabel="NTK growth (1 / learning rate)",
        ylim=_linear_limits(reach),
    )
    ax.axhline(0, color="grey", linewidth=0.8, zorder=0.5)
    artists = draw_lines(ax, lines)
    if sim is not None and np.isfinite(mean).any():
        label = "simulated (2 standard errors)"
        bars = ax.errorbar(values.step, mean, error, label=label, **drawn)
        artists += bars.get_children()
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    sampled = [] if sim is None else setting({}, replicas=values.sizes["replica"])
    title(ax, [*setting(pred.attrs), *sampled, f"along mode {mode}"])
    legend(ax)
    return artists
