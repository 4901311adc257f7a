"""Pictures of training at the stochastic edge of stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray
from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import (
    CYCLE,
    Line,
    check_axes,
    ink,
    legend,
    new_axes,
    seen,
    ticks,
    title,
)
from quadmodel.plot._setting import setting

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Markers of the outcomes that large_p_edge() tells apart.
_OUTCOMES = {
    "stayed below": "o",
    "turned back": "v",
    "ended above": "^",
    "still training": "D",
    "diverged": "x",
}

# Height of the row of runs without a finite norm, as a share of the axes.
_TOP_ROW = 0.95
# Starts that have a tick each.
_MOST_TICKS = 7


@returns_artists
def persistent_edge(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the exact noise kernel norm of models that train at the stochastic edge.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.persistent_edge`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        A line per replica, one colour per curvature strength; then a dashed line per curvature
        strength for the mean-field prediction, if `found` holds one.

    Raises
    ------
    InputError
        If `found` is of another kind.

    Notes
    -----
    Exact noise kernel norm, without unit, against SGD steps; 1 is the edge. Crosses end runs that
    diverged. Dashed: the finite-size norm of mean-field theory, the exact one's lower bound.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261; see :func:`quadmodel.persistent_edge`.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.persistent_edge([0.5], replicas=1, n_data=10, n_params=20, steps=50)
    >>> artists = qm.plot.persistent_edge(found)
    >>> artists[0].axes.get_ylabel()
    'noise kernel norm (exact)'
    """
    runs = ("curvature_strength", "replica", "step")
    needed = {"scaled_largest_eigenvalue": runs, "noise_kernel_norm_exact": runs}
    check_result("found", found, "persistent_edge()", needed | {runs[0]: runs[:1]})
    check_axes(ax)
    ax = ax or new_axes()
    artists: list[Artist] = []
    strengths = found.curvature_strength.values
    norms = found.noise_kernel_norm_exact.transpose("curvature_strength", "replica", "step").values
    ended = found.divergence_step.transpose("curvature_strength", "replica").values >= 0
    top = float(np.clip(1.1 * norms[np.isfinite(norms)].max(initial=0.0), 1.6, 3.0))
    for n, (strength, colour) in enumerate(zip(strengths, _colours(len(strengths)), strict=True)):
        label: str | None = f"q = {strength:g}"
        for norm, diverged in zip(norms[n], ended[n], strict=True):
            finite = np.isfinite(norm)
            line = (finite[1:] & finite[:-1]).any()
            style = {"color": colour, "linewidth": 0.9}
            artists += ax.plot(found.step, norm, label=label if line else None, **style)
            label = None if line else label
            if diverged and finite.any():
                last = np.flatnonzero(finite)[-1]
                # Runs without a line have a cross only, which is called by their strength.
                ax.plot(
                    found.step[last],
                    min(norm[last], top),
                    "x",
                    color=colour,
                    markersize=6,
                    clip_on=False,
                    label=label,
                )
                label = None
    artists += _mean_field_lines(ax, found, _colours(len(strengths)), top)
    if ended.any():
        ax.plot([], [], "x", color=ink(ax), label="diverged")
    ax.axhline(1, color=ink(ax), linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel="noise kernel norm (exact)", ylim=(0, top))
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    started = f"K = {found.attrs['initial_norm']:g} (paper) at the start"
    parts = [*setting(found.attrs, replicas=found.sizes["replica"]), started]
    title(ax, [part for part in parts if part])
    legend(ax, title="curvature strength")
    return artists


def _mean_field_lines(ax: Axes, found: xr.Dataset, colours: list[Any], top: float) -> list[Artist]:
    """Draw the predicted noise kernel norms, as far as they are there and in sight."""
    name = "mean_field_noise_kernel_norm_finite"
    if name not in found:
        return []
    steps = found.step.values
    norms = found[name].transpose("curvature_strength", "step").values
    lines = [
        Line("", steps, norm, {"color": colour})
        for norm, colour in zip(norms, colours, strict=True)
    ]
    drawn = [line for line in lines if seen(line, (0.0, top))]
    artists: list[Artist] = []
    for line in drawn:
        artists += ax.plot(steps, line.y, linestyle="--", linewidth=1.8, zorder=3, **line.style)
    if drawn:
        ax.plot([], [], "--", color=ink(ax), label="mean-field theory (finite norm)")
    return artists


def _colours(count: int) -> list[Any]:
    """Return as many colours: those of all pictures, or shades where these don't suffice."""
    if count <= len(CYCLE):
        return list(CYCLE[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](share) for share in np.linspace(0.0, 0.9, count)]


@returns_artists
def large_p_edge(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw where the noise kernel norm ends against where it started, in the large-P limit.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.large_p_edge`; select ``curvature_strength=[q]`` to draw one.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The points of every batch size and outcome: one colour per batch size, one marker per
        outcome.

    Raises
    ------
    InputError
        If `found` is of another kind.

    Notes
    -----
    The paper's norm, without unit; 1 is the edge, and a linear model stays on the dotted line of
    its start. Runs of one start stand side by side, by batch size and replica. Replicas without a
    finite norm at the end, which have diverged or lie beyond the deterministic edge, are shown at
    the top.

    References
    ----------
    .. [1] derivations/08-large-p.md; goes beyond arXiv:2404.19261.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.large_p_edge([0.4, 4.0], [2], [0.5], n_data=10, steps=200, replicas=1)
    >>> artists = qm.plot.large_p_edge(found)
    >>> artists[0].axes.get_ylabel()
    'noise kernel norm (paper) at the end'
    """
    dims = ("batch_size", "initial_norm", "replica")
    needed = {"batch_size": dims[:1], "initial_norm": dims[1:2]}
    check_result("found", found, "large_p_edge()", needed | {"final_norm": dims, "outcome": dims})
    check_axes(ax)
    ax = ax or new_axes()
    artists: list[Artist] = []
    sizes = found.batch_size.values
    runs = found.transpose("batch_size", "initial_norm", "replica", ...)
    # Runs of one start lie side by side, so that none hides another.
    starts, places, width = _side_by_side(found)
    end, outcome = (runs[name].values.reshape(places.shape) for name in ("final_norm", "outcome"))
    _limit(ax, starts, width, end)
    colours = _colours(len(sizes))
    for n, colour in enumerate(colours):
        for name, marker in _OUTCOMES.items():
            for finite in (True, False):
                drawn = (outcome[n] == name) & (np.isfinite(end[n]) == finite)
                if not drawn.any():
                    continue
                # Without a finite norm: a row at the top, above the data.
                where: dict[str, Any] = {} if finite else {"transform": ax.get_xaxis_transform()}
                height = end[n][drawn] if finite else np.full(drawn.sum(), _TOP_ROW)
                style = {"color": colour, "markersize": 5, "fillstyle": "none"}
                artists += ax.plot(places[n][drawn], height, marker, **style, **where)
    ax.hlines(
        starts, starts / width, starts * width, color="grey", linestyle=":", label="at the start"
    )
    ax.axhline(1, color=ink(ax), linewidth=0.8)
    for size, colour in zip(sizes, colours, strict=True):
        ax.plot([], [], "s", color=colour, label=f"B = {size}")
    for name in (name for name in _OUTCOMES if (outcome == name).any()):
        ax.plot([], [], _OUTCOMES[name], color=ink(ax), fillstyle="none", label=name)
    strengths = ", ".join(f"{strength:g}" for strength in np.atleast_1d(found.curvature_strength))
    title(ax, [*setting(found.attrs, replicas=found.sizes["replica"]), f"q = {strengths}"])
    legend(ax)
    return artists


def _side_by_side(found: xr.Dataset) -> tuple[FloatArray, FloatArray, float]:
    """Return starts, where runs are drawn (batch size, start, run), and half a group's width."""
    starts = found.initial_norm.values
    ratio = float(np.min(starts[1:] / starts[:-1])) if starts.size > 1 else 1.5
    width = min(ratio, 1.5) ** 0.35
    n_sizes, n_runs = found.sizes["batch_size"], found.sizes["replica"]
    n_runs *= found.sizes.get("curvature_strength", 1)
    share = (np.arange(n_sizes * n_runs) + 0.5) / (n_sizes * n_runs)
    offsets = (width ** (2 * share - 1)).reshape(n_sizes, 1, n_runs)
    return starts, starts[None, :, None] * offsets, width


def _limit(ax: Axes, starts: FloatArray, width: float, end: FloatArray) -> None:
    """Set scales, limits, labels and ticks, with space above for runs without a finite norm."""
    from matplotlib.ticker import FixedLocator, NullLocator

    reached = np.concatenate([starts, end[np.isfinite(end) & (end > 0)]])
    low, high = 0.8 * reached.min(), 1.2 * max(reached.max(), 1.0)
    room = 1.0 if np.isfinite(end).all() else (high / low) ** 0.15
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="noise kernel norm (paper) at the start",
        ylabel="noise kernel norm (paper) at the end",
        xlim=(starts[0] / width**1.5, starts[-1] * width**1.5),
        ylim=(low, high * room),
    )
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    if starts.size <= _MOST_TICKS:
        ax.xaxis.set_major_locator(FixedLocator(list(starts)))
        ax.xaxis.set_minor_locator(NullLocator())
