"""Pictures over learning rate and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, as_choice
from quadmodel._util.results import check_result
from quadmodel.comparison import GRID_OF_GROWTH, critical_noise_kernel_norm
from quadmodel.plot._common import check_axes, new_axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_EDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("K = 1, paper's limit", {"color": "black", "linestyle": ":"}),
    "finite": ("K = 1, finite size", {"color": "black", "linestyle": "--"}),
    "exact": ("K = 1, exact threshold", {"color": "black", "linestyle": "-"}),
}

# Predicted edges, as diagrams hold them beside their axes.
_PREDICTED = {
    "learning_rate": ("learning_rate",),
    "batch_size": ("batch_size",),
    "critical_learning_rate": ("norm", "batch_size"),
    "edge_of_stability": ("batch_size",),
}


def phase_diagram(grid: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the phase diagram: simulated growth under the predicted edges.

    Parameters
    ----------
    grid : xarray.Dataset
        From :func:`quadmodel.phase_diagram`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The coloured grid, the predicted edges (the typical one, thin, where it is predicted), the
        simulated boundary with its 95% interval, and the marks of intermittent grid points.

    Raises
    ------
    InputError
        If `grid` is not a phase diagram.

    Notes
    -----
    Colour: growth rate of the mean loss per step, on a scale that is linear around 0 and
    logarithmic beyond; blue is stable, red unstable. Batch size in data points, learning rate in
    units of 1 / NTK eigenvalue.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3, for the edges.
    """
    from matplotlib.colors import SymLogNorm

    needed = GRID_OF_GROWTH | _PREDICTED | {"phase": ("learning_rate", "batch_size")}
    attributes = ("n_data", "momentum", "weight_decay")
    check_result("grid", grid, "phase_diagram()", needed, attributes)
    check_axes(ax)
    critical = critical_noise_kernel_norm(grid, norm=str(grid.norm.values[-1]))
    ax = ax or new_axes()
    sizes, rates = grid.batch_size.values, grid.learning_rate.values
    growth = grid.mean_growth.transpose("learning_rate", "batch_size").values
    reach = float(np.nanmax(np.abs(growth))) or 1.0
    scale = SymLogNorm(linthresh=min(1e-3, reach / 2), vmin=-reach, vmax=reach)
    mesh = ax.pcolormesh(
        _outlines(sizes), _outlines(rates), growth, cmap="RdBu_r", norm=scale, alpha=0.85
    )
    figure = ax.figure
    figure.colorbar(mesh, ax=ax, label="simulated growth rate of the mean loss (1 / step)")
    plain = not grid.attrs["momentum"] and not grid.attrs["weight_decay"]
    value = r", $\eta\lambda_{\max}$ = 2" if plain else ""
    artists = [mesh, *_edges(grid, ax, f"deterministic edge{value}")]
    typical = grid.get("typical_critical_learning_rate")
    if typical is not None and np.isfinite(typical).any():
        artists += ax.plot(
            sizes, typical, color="#CC79A7", linewidth=0.8, label="typical edge, predicted"
        )
    found = critical.where(np.isfinite(critical.learning_rate), drop=True)
    bars = np.abs(
        np.stack([found.learning_rate_low, found.learning_rate_high]) - found.learning_rate.values
    )
    boundary = ax.errorbar(
        found.batch_size,
        found.learning_rate,
        bars,
        fmt="o",
        markersize=4,
        capsize=2,
        color="black",
        markerfacecolor="white",
        label="simulated boundary (95%)",
    )
    artists += boundary.get_children()
    row, column = np.nonzero(
        grid.phase.transpose("learning_rate", "batch_size").values == "intermittent"
    )
    if row.size:
        crosses: dict[str, Any] = {"marker": "x", "s": 18, "c": "black", "linewidth": 0.8}
        artists.append(ax.scatter(sizes[column], rates[row], label="intermittent", **crosses))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="batch size (data points)",
        ylabel="learning rate (1 / NTK eigenvalue)",
        xlim=_outlines(sizes)[[0, -1]],
        ylim=_outlines(rates)[[0, -1]],
        title=", ".join([f"{grid.attrs['n_data']} data points", *_parameters(grid.attrs)]),
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(loc="lower right", fontsize="small")
    return artists


def _parameters(attrs: dict[Any, Any]) -> list[str]:
    """Return what is known of the parameters: nothing of those of an NTK."""
    if "limit" not in attrs:
        return [f"{attrs['n_params']} parameters"] if "n_params" in attrs else []
    limit = f"large-P limit (order {attrs['truncation_order']})"
    return [limit, f"q = {attrs['curvature_strength']:.3g}"]


def sharpening_diagram(
    grid: xr.Dataset, ax: Axes | None = None, *, quantity: str = "simulated_growth"
) -> list[Artist]:
    r"""Draw the growth of the largest NTK eigenvalue over learning rate and batch size.

    Parameters
    ----------
    grid : xarray.Dataset
        From :func:`quadmodel.sharpening_diagram`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.
    quantity : {"simulated_growth", "predicted_growth"}, optional
        What the colour stands for.

    Returns
    -------
    list of matplotlib.artist.Artist
        The coloured grid and the predicted edges.

    Raises
    ------
    InputError
        If `grid` is not a sharpening diagram, or there is no such quantity.

    Notes
    -----
    Red: the eigenvalue grows, as a share of its initial value; blue: it shrinks; grey: a replica
    diverged, or second order in the curvature does not hold. Colours saturate at the largest growth
    that is predicted without batch noise, at the largest batch size; where nothing is predicted
    there, at the largest predicted growth, and without any prediction at the largest simulated one.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.
    """
    plane = ("learning_rate", "batch_size")
    needed = {"simulated_growth": plane, "predicted_growth": plane} | _PREDICTED
    check_result("grid", grid, "sharpening_diagram()", needed)
    check_axes(ax)
    as_choice("quantity", quantity, ("simulated_growth", "predicted_growth"))
    ax = ax or new_axes()
    values = grid[quantity].transpose("learning_rate", "batch_size").values
    reach = _growth_without_noise(grid)
    ax.set_facecolor("0.8")
    mesh = ax.pcolormesh(
        _outlines(grid.batch_size.values),
        _outlines(grid.learning_rate.values),
        np.where(np.isfinite(values), values, np.nan),
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
    )
    label = grid[quantity].attrs["long_name"]
    ax.figure.colorbar(mesh, ax=ax, label=f"{label} (share)", extend="both")
    artists = [mesh, *_edges(grid, ax, "deterministic edge")]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="batch size (data points)",
        ylabel="learning rate (1 / NTK eigenvalue)",
    )
    ax.legend(fontsize="small")
    return artists


def _growth_without_noise(grid: xr.Dataset) -> float:
    """Return the growth at which colours saturate, in absolute value."""
    predicted = grid.predicted_growth
    for some in (predicted.isel(batch_size=-1), predicted, grid.simulated_growth):
        sizes = np.abs(some.values[np.isfinite(some.values)])
        if sizes.max(initial=0.0) > 0.0:
            return float(sizes.max())
    return 1.0


def _edges(grid: xr.Dataset, ax: Any, deterministic: str) -> list[Artist]:
    """Draw the learning rates at which the noise kernel norms are 1, and the deterministic edge."""
    artists: list[Artist] = []
    for name in grid.norm.values:
        label, style = _EDGES[str(name)]
        line = grid.critical_learning_rate.sel(norm=name)
        artists += ax.plot(grid.batch_size, line, label=label, **style)
    style = {"color": "#009E73", "linestyle": "-."}
    artists += ax.plot(grid.batch_size, grid.edge_of_stability, label=deterministic, **style)
    return artists


def _outlines(centres: FloatArray) -> FloatArray:
    """Return the geometric midpoints between grid points, and one more on either side."""
    log = np.log(np.asarray(centres, dtype=np.float64))
    if log.size == 1:
        log = np.append(log, log + 0.7)
        log -= 0.35
        return np.asarray(np.exp(log))
    middle = 0.5 * (log[1:] + log[:-1])
    ends = [2 * log[0] - middle[0]], [2 * log[-1] - middle[-1]]
    return np.asarray(np.exp(np.concatenate([ends[0], middle, ends[1]])))
