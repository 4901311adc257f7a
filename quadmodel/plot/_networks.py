"""Pictures of trained networks: norms along training, where runs end, what tells divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError
from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import CYCLE, check_axes, ink, legend, new_axes, ticks

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_RUNS = ("batch_size", "share", "replica")
# Values beyond this multiple of an edge are drawn at it.
_FAR = 3.0
# Measures, as they stand below an axis.
_SHORT = {
    "noise_kernel_norm_exact": "K,\nexact",
    "noise_kernel_norm_finite": "K,\nfinite D",
    "noise_kernel_norm": "K,\npaper's",
    "scaled_largest_eigenvalue": "$\\eta\\lambda_{\\max}$",
    "scaled_batch_sharpness": "$\\eta$ batch\nsharpness",
    "row_norm_spread": "row\nspread",
}
_EDGES = {"scaled_largest_eigenvalue": 2.0, "scaled_batch_sharpness": 2.0}


def _runs_of(found: xr.Dataset, names: Sequence[str], size: int) -> xr.Dataset:
    """Return some variables of the runs of a batch size, along (run, step)."""
    some = found[[*names, "divergence_step"]].sel(batch_size=size)
    return some.stack(run=("share", "replica")).transpose("run", "step")


@returns_artists
def network_runs(
    found: xr.Dataset, ax: Axes | None = None, *, quantity: str = "noise_kernel_norm_exact"
) -> list[Artist]:
    r"""Draw a quantity along the trainings of a network, a colour per batch size.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.networks.train_grid`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.
    quantity : str, optional
        Name of a variable along steps.

    Returns
    -------
    list of matplotlib.artist.Artist
        A line per run.

    Raises
    ------
    InputError
        If `found` is of another kind or has no such variable.

    Examples
    --------
    >>> import quadmodel as qm, xarray as xr
    >>> dims, runs = ("batch_size", "share", "replica", "step"), [[[[0.3, 0.5]]], [[[0.2, 0.4]]]]
    >>> found = xr.Dataset(
    ...     {
    ...         "noise_kernel_norm_exact": (dims, runs),
    ...         "scaled_largest_eigenvalue": (dims, runs),
    ...         "divergence_step": (dims[:3], [[[-1]], [[-1]]]),
    ...     },
    ...     {"batch_size": [2, 8], "share": [0.5], "replica": [0], "step": [0, 100]},
    ... )  # as qm.networks.train_grid() returns it
    >>> artists = qm.plot.network_runs(found)
    >>> artists[0].axes.get_xlabel()
    'SGD steps'
    """
    needed = {quantity: (*_RUNS, "step"), "divergence_step": _RUNS}
    check_result("found", found, "train_grid()", needed)
    check_axes(ax)
    ax = ax or new_axes()
    edge = _EDGES.get(quantity, 1.0)
    artists: list[Artist] = []
    for n, size in enumerate(found.batch_size.values):
        here = _runs_of(found, [quantity], size)
        for k, (values, gone) in enumerate(
            zip(here[quantity].values, here.divergence_step.values, strict=True)
        ):
            colour = CYCLE[n % len(CYCLE)]
            label = f"B = {size}" if k == 0 else None
            values = np.minimum(values, _FAR * edge)
            artists += ax.plot(found.step, values, color=colour, linewidth=0.9, label=label)
            if gone >= 0:
                last = np.flatnonzero(np.isfinite(values))
                if last.size:
                    place = found.step.values[last[-1]], values[last[-1]]
                    ax.plot(*place, "x", color=colour, markersize=6, clip_on=False)
    ax.axhline(edge, color=ink(ax), linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel=found[quantity].attrs.get("long_name", quantity))
    ax.set_ylim(0, _FAR * edge)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    legend(ax)
    return artists


@returns_artists
def network_outcomes(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the last exact K against the last scaled eigenvalue of every training.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.networks.train_grid`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        Points per batch size: filled for runs that stayed, crosses at the last record before
        divergence for the others.

    Raises
    ------
    InputError
        If `found` is of another kind.

    Examples
    --------
    >>> import quadmodel as qm, xarray as xr
    >>> dims, runs = ("batch_size", "share", "replica", "step"), [[[[0.3, 0.5]]], [[[0.2, 0.4]]]]
    >>> found = xr.Dataset(
    ...     {
    ...         "noise_kernel_norm_exact": (dims, runs),
    ...         "scaled_largest_eigenvalue": (dims, runs),
    ...         "divergence_step": (dims[:3], [[[-1]], [[-1]]]),
    ...     },
    ...     {"batch_size": [2, 8], "share": [0.5], "replica": [0], "step": [0, 100]},
    ... )  # as qm.networks.train_grid() returns it
    >>> artists = qm.plot.network_outcomes(found)
    >>> artists[0].axes.get_ylabel()
    'last noise kernel norm (exact)'
    """
    names = ("scaled_largest_eigenvalue", "noise_kernel_norm_exact")
    needed = dict.fromkeys(names, (*_RUNS, "step")) | {"divergence_step": _RUNS}
    check_result("found", found, "train_grid()", needed)
    check_axes(ax)
    ax = ax or new_axes()
    artists: list[Artist] = []
    for n, size in enumerate(found.batch_size.values):
        here = _runs_of(found, names, size)
        ends = []
        for values in zip(*(here[name].values for name in names), strict=True):
            known = np.flatnonzero(np.isfinite(values[0]))
            last = known[-1] if known.size else 0
            ends.append([min(v[last], _FAR) for v in values])
        x, y = np.array(ends).T
        gone = here.divergence_step.values >= 0
        colour = CYCLE[n % len(CYCLE)]
        artists += ax.plot(x[~gone], y[~gone], "o", color=colour, markersize=5, label=f"B = {size}")
        artists += ax.plot(x[gone], y[gone], "x", color=colour, markersize=7, clip_on=False)
    ax.axhline(1, color=ink(ax), linewidth=0.8)
    ax.axvline(2, color=ink(ax), linewidth=0.8)
    ax.set(
        xlabel=r"last $\eta\lambda_{\max}$",
        ylabel="last noise kernel norm (exact)",
        xlim=(0, _FAR),
        ylim=(0, _FAR),
    )
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    legend(ax, title="crosses: diverged")
    return artists


@returns_artists
def separation(areas: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw how well measures tell runs that diverge, over the steps ahead.

    Parameters
    ----------
    areas : xarray.Dataset
        From :func:`quadmodel.networks.separation`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        Points with their 95 % intervals, a group per measure.

    Raises
    ------
    InputError
        If `areas` is of another kind, or holds no area.

    Examples
    --------
    >>> import quadmodel as qm, xarray as xr
    >>> value = (("measure", "lead"), [[0.9]])
    >>> areas = xr.Dataset(
    ...     {"auc": value, "auc_low": value, "auc_high": value},
    ...     {"measure": ["noise_kernel_norm_exact"], "lead": [0]},
    ... )  # as qm.networks.separation() returns it
    >>> artists = qm.plot.separation(areas)
    >>> artists[0].axes.get_ylabel()
    'area under the ROC curve'
    """
    needed = dict.fromkeys(("auc", "auc_low", "auc_high"), ("measure", "lead"))
    check_result("areas", areas, "separation()", needed)
    if not np.isfinite(areas.auc).any():
        raise InputError("areas must hold runs that diverged and runs that didn't, got one kind")
    check_axes(ax)
    ax = ax or new_axes()
    artists: list[Artist] = []
    place = np.arange(areas.sizes["measure"])
    width = 0.7 / areas.sizes["lead"]
    for n, lead in enumerate(areas.lead.values):
        here = areas.sel(lead=lead)
        bars = np.abs(np.stack([here.auc_low, here.auc_high]) - here.auc.values)
        artists.append(
            ax.errorbar(
                place + (n - (areas.sizes["lead"] - 1) / 2) * width,
                here.auc.values,
                bars,
                fmt="o",
                color=CYCLE[n % len(CYCLE)],
                capsize=3,
                label=f"{lead} steps ahead",
            )[0]
        )
    ax.axhline(0.5, color=ink(ax), linewidth=0.8)
    ax.set_xticks(place, [_SHORT.get(str(n), str(n)) for n in areas.measure.values])
    ax.set(ylabel="area under the ROC curve", ylim=(0, 1.05))
    legend(ax)
    return artists
