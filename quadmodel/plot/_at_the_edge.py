"""Pictures of runs at the stochastic edge of stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError
from quadmodel.plot._common import axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Markers of large_p_edge()'s outcomes.
_OUTCOMES = {
    "stayed below": "o",
    "turned back": "v",
    "ended above": "^",
    "still training": "D",
    "diverged": "x",
}


def persistent_edge(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the exact noise kernel norm of runs that train at the stochastic edge.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.persistent_edge`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        A line per run, one colour per curvature strength.

    Raises
    ------
    InputError
        If `found` is of another kind.

    Notes
    -----
    Exact noise kernel norm, without unit, against SGD steps; 1 is the edge.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261; see :func:`quadmodel.persistent_edge`.
    """
    if "scaled_largest_eigenvalue" not in found:
        raise InputError("found must be of persistent_edge(), got another Dataset")
    ax = axes(ax)
    artists: list[Artist] = []
    for n, strength in enumerate(found.curvature_strength.values):
        for replica in range(found.sizes["replica"]):
            norm = found.noise_kernel_norm_exact.isel(curvature_strength=n, replica=replica)
            label = f"q = {strength:g}" if replica == 0 else None
            artists += ax.plot(norm.step, norm, color=f"C{n}", linewidth=0.9, label=label)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel="noise kernel norm (exact)", ylim=(0, 1.6))
    ax.legend(title="curvature strength")
    return artists


def large_p_edge(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw where the noise kernel norm ends against where it started, in the large-P limit.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.large_p_edge`; select
        ``curvature_strength=[q]`` to draw one curvature strength.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The points of every batch size and outcome, one colour per batch size and one marker per
        outcome.

    Raises
    ------
    InputError
        If `found` is of another kind.

    Notes
    -----
    The paper's norm, without unit; 1 is the edge, and a linear model stays on the diagonal. Runs
    without a finite norm at the end are shown at the top: diverged, or beyond the deterministic
    edge.

    References
    ----------
    .. [1] derivations/08-large-p.md; goes beyond arXiv:2404.19261.
    """
    if "initial_norm" not in found.dims or "outcome" not in found:
        raise InputError("found must be of large_p_edge(), got another Dataset")
    ax = axes(ax)
    artists: list[Artist] = []
    seen: dict[str, None] = {}
    for n, size in enumerate(found.batch_size.values):
        at = found.sel(batch_size=size)
        start, end, outcome = (
            values.values.ravel()
            for values in xr.broadcast(at.initial_norm, at.final_norm, at.outcome)
        )
        for name, marker in _OUTCOMES.items():
            for finite in (True, False):
                drawn = (outcome == name) & (np.isfinite(end) == finite)
                if not drawn.any():
                    continue
                seen[name] = None
                # Rows above the data, one per batch size, for what has no place among them.
                where: dict[str, Any] = {} if finite else {"transform": ax.get_xaxis_transform()}
                height = end[drawn] if finite else np.full(drawn.sum(), 0.97 - 0.03 * n)
                artists += ax.plot(
                    start[drawn],
                    height,
                    marker,
                    color=f"C{n}",
                    markersize=6,
                    fillstyle="none",
                    **where,
                )
    start = found.initial_norm.values
    ax.plot(start[[0, -1]], start[[0, -1]], color="grey", linewidth=0.8, linestyle=":")
    ax.axhline(1, color="black", linewidth=0.8)
    norms = [found.initial_norm.values, found.final_norm.values]
    reached = np.concatenate([values[np.isfinite(values)] for values in norms])
    # Space above for the rows of what has diverged.
    low, high = 0.8 * reached.min(), 1.2 * max(reached.max(), 1.0)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="noise kernel norm (paper) at the start",
        ylabel="noise kernel norm (paper) at the end",
        ylim=(low, high * (high / low) ** 0.2),
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(_ticks(1, 2, 5))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    for n, size in enumerate(found.batch_size.values):
        ax.plot([], [], "s", color=f"C{n}", label=f"B = {size}")
    for name in (name for name in _OUTCOMES if name in seen):
        ax.plot([], [], _OUTCOMES[name], color="black", fillstyle="none", label=name)
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # covers no run
    return artists


def _ticks(*mantissas: int) -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=mantissas)
