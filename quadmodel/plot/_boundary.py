"""Traced boundaries, over a phase diagram or by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import (
    CYCLE,
    GREEN,
    PURPLE,
    check_axes,
    halo,
    ink,
    legend,
    new_axes,
    ticks,
    title,
)
from quadmodel.plot._setting import setting

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Words and colours of kinds: those of the predicted edges.
_KINDS = {
    "mean_square": ("mean square", "black"),
    "typical": ("typical", PURPLE),
    "deterministic": ("full batches", GREEN),
}
_ENDS = ("", "_low", "_high")


@returns_artists
def boundary(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw a traced boundary with its intervals, over a phase diagram if `ax` holds one.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.trace_boundary`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out. Axes that hold something, like a phase diagram,
        keep their scales, limits and title.

    Returns
    -------
    list of matplotlib.artist.Artist
        Marks, bars and lines, per momentum; batch sizes where nothing turns unstable are left out.

    Raises
    ------
    InputError
        If `found` is not a traced boundary.

    Notes
    -----
    Bars are 95% intervals; marks are hollow where they are not resolved. A colour per momentum if
    there are several.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.trace_boundary(qm.Ensemble(10, 20), [1, 4], rtol=0.2)
    >>> artists = qm.plot.boundary(found)
    >>> artists[0].axes.get_ylabel()
    'learning rate (1 / NTK eigenvalue)'
    """
    needed = {f"critical_learning_rate{end}": ("batch_size",) for end in _ENDS}
    needed |= {"batch_size": ("batch_size",), "resolved": ("batch_size",)}
    check_result("found", found, "trace_boundary()", needed, ("boundary",))
    check_axes(ax)
    alone = ax is None or not ax.has_data()
    ax = ax or new_axes()
    if alone:
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="batch size (data points)",
            ylabel="learning rate (1 / NTK eigenvalue)",
        )
    limits = ax.get_xlim(), ax.get_ylim()
    words, colour = _KINDS.get(str(found.attrs["boundary"]), ("simulated", "black"))
    if alone and colour == "black":
        colour = ink(ax)
    artists: list[Artist] = []
    if "momentum" in found.dims:
        for n, momentum in enumerate(found.momentum.values):
            label = f"traced, {words}, momentum {momentum:g}".replace("-", "\N{MINUS SIGN}")
            colour = CYCLE[n % len(CYCLE)]
            artists += _draw(ax, found.sel(momentum=momentum), label, colour)
    else:
        artists += _draw(ax, found, f"traced, {words}", colour)
    if alone:
        ticks(ax.xaxis, whole=True)
        ticks(ax.yaxis)
        title(ax, setting(found.attrs))
    else:
        ax.set(xlim=limits[0], ylim=limits[1])
    legend(ax)
    return artists


def _draw(ax: Axes, found: xr.Dataset, label: str, colour: str) -> list[Artist]:
    """Draw one boundary: a line through all of it, marks and bars."""
    found = found.isel(batch_size=np.isfinite(found.critical_learning_rate.values))
    sizes = found.batch_size.values
    value, low, high = (found[f"critical_learning_rate{end}"].values for end in _ENDS)
    resolved = found.resolved.values.astype(bool)
    artists: list[Artist] = []
    if sizes.size:
        artists += ax.plot(sizes, value, color=colour, linewidth=0.8, zorder=3.1)
    for which, text, face in (
        (resolved, f"{label} (95%)", colour),
        (~resolved, f"{label}, unresolved", ax.get_facecolor()),
    ):
        if which.any():
            bars = np.abs(np.stack([low, high]) - value)[:, which]
            container = ax.errorbar(
                sizes[which],
                value[which],
                bars,
                fmt="D",
                color=colour,
                elinewidth=1.2,
                capsize=2.5,
                markersize=3.5,
                markerfacecolor=face,
                markeredgewidth=0.8,
                zorder=3.2,
                label=text,
                path_effects=halo(0.8),
            )
            artists += container.get_children()
    return artists
