"""Pictures of training at the stochastic edge of stability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.results import check_result
from quadmodel.plot._common import check_axes, new_axes

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
        A line per replica, one colour per curvature strength.

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
    runs = ("curvature_strength", "replica", "step")
    needed = {"scaled_largest_eigenvalue": runs, "noise_kernel_norm_exact": runs}
    check_result("found", found, "persistent_edge()", needed | {runs[0]: runs[:1]})
    check_axes(ax)
    ax = ax or new_axes()
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
    The paper's norm, without unit; 1 is the edge, and a linear model stays on the diagonal.
    Replicas without a finite norm at the end, which have diverged or lie beyond the deterministic
    edge, are shown at the top.

    References
    ----------
    .. [1] derivations/08-large-p.md; goes beyond arXiv:2404.19261.
    """
    runs = ("batch_size", "initial_norm", "replica")
    needed = {"batch_size": runs[:1], "initial_norm": runs[1:2]}
    check_result("found", found, "large_p_edge()", needed | {"final_norm": runs, "outcome": runs})
    check_axes(ax)
    ax = ax or new_axes()
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
                # Without a finite norm: a row above the axes' data, one per batch size.
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
    # Space above for the rows of replicas without a finite norm.
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
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # beside the points
    return artists


def _ticks(*mantissas: int) -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=mantissas)
