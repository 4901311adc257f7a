"""Pictures over learning rate and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, as_choice
from quadmodel._util.results import check_result
from quadmodel.comparison import GRID_OF_GROWTH, critical_noise_kernel_norm
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._cells import cell_size, edges, fill, hatch, mark, on_plane, prepare
from quadmodel.plot._common import check_axes, legend, new_axes, number, title
from quadmodel.plot._setting import setting

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Predicted edges, as diagrams hold them beside their axes.
_PREDICTED = {
    "learning_rate": ("learning_rate",),
    "batch_size": ("batch_size",),
    "critical_learning_rate": ("norm", "batch_size"),
    "edge_of_stability": ("batch_size",),
}


@returns_artists
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
        The coloured grid, the predicted edges inside it (those that coincide drawn once), the
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

    Lines K = 1 by three norms: of the whole second moment (exact), of its closure in modes (finite
    D), in the paper's limit of high dimension; for quadratic models of the initial NTK. Boundaries
    are hollow, and cells hatched, where the grid says that growth is not settled. The legend stands
    below the axes if the figure has a layout engine, like ``layout="constrained"``.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3, for the edges.

    Examples
    --------
    >>> import quadmodel as qm
    >>> grid = qm.phase_diagram(qm.Ensemble(20, 40), 6, [1, 4], steps=64, replicas=4, refine=0)
    >>> artists = qm.plot.phase_diagram(grid)
    >>> artists[0].axes.get_xlabel()
    'batch size (data points)'
    """
    needed = GRID_OF_GROWTH | _PREDICTED | {"phase": ("learning_rate", "batch_size")}
    attributes = ("n_data", "momentum", "weight_decay")
    check_result("grid", grid, "phase_diagram()", needed, attributes)
    check_axes(ax)
    critical = critical_noise_kernel_norm(grid, norm=str(grid.norm.values[-1]))
    ax = ax or new_axes()
    x, y = prepare(ax, grid)
    growth = on_plane(grid.mean_growth)
    artists: list[Artist] = [_growth_mesh(ax, x, y, growth)]
    if "settled" in grid and set(grid.settled.dims) == {"learning_rate", "batch_size"}:
        artists += hatch(ax, x, y, ~on_plane(grid.settled).astype(bool), "growth not settled")
    plain = not grid.attrs["momentum"] and not grid.attrs["weight_decay"]
    value = r", $\eta\lambda_{\max}$ = 2" if plain else ""
    artists += edges(grid, ax, f"deterministic edge{value}")
    size = cell_size(ax, x, y)
    artists += _boundary(ax, grid, critical, markersize=float(np.clip(0.45 * size, 1.5, 5.5)))
    crosses = {"marker": "x", "s": float(np.clip(0.25 * size, 1.0, 4.0)) ** 2, "linewidth": 0.9}
    intermittent = on_plane(grid.phase) == "intermittent"
    artists += mark(ax, x, y, intermittent, "intermittent", share=0.16, color="black", **crosses)
    title(ax, setting(grid.attrs))
    legend(ax)
    return artists


def _growth_mesh(ax: Axes, x: FloatArray, y: FloatArray, growth: FloatArray) -> Artist:
    """Colour cells by growth, around 0 where stability ends, and add a colour bar."""
    from matplotlib.colors import SymLogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    reach = float(np.abs(growth[np.isfinite(growth)]).max(initial=0.0)) or 1.0
    linear = min(1e-3, reach / 2)
    mesh = ax.pcolormesh(
        x,
        y,
        np.ma.masked_invalid(growth),
        cmap="RdBu_r",
        norm=SymLogNorm(linthresh=linear, vmin=-reach, vmax=reach),
        alpha=0.85,
        rasterized=True,
    )
    bar = ax.figure.colorbar(mesh, ax=ax, label="growth of the mean loss (1 / step)")
    powers = np.arange(np.ceil(np.log10(linear) - 1e-9), np.floor(np.log10(reach) + 1e-9) + 1)
    decades = 10.0 ** powers[:: max(1, len(powers) // 5)] if len(powers) else np.array([reach])
    bar.ax.yaxis.set_major_locator(FixedLocator([*-decades[::-1], 0.0, *decades]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(number))
    return mesh


def _boundary(
    ax: Axes, grid: xr.Dataset, critical: xr.Dataset, *, markersize: float
) -> list[Artist]:
    """Draw where simulated growth crosses 0, hollow where that is not resolved."""
    inside = np.isfinite(critical.learning_rate.values)
    resolved = np.ones(inside.size, bool)
    for name, source in (("resolved", critical), ("settled", grid)):
        if name in source and source[name].dims == ("batch_size",):
            resolved &= source[name].values.astype(bool)
    artists: list[Artist] = []
    for which, label, face, rim in (
        (inside & resolved, "simulated boundary (95%)", "black", "white"),
        (inside & ~resolved, "simulated boundary, unresolved", "white", "black"),
    ):
        if not which.any():
            continue
        at = critical.isel(batch_size=which)
        low, high = at.learning_rate_low, at.learning_rate_high
        bars = np.abs(np.stack([low, high]) - at.learning_rate.values)
        container = ax.errorbar(
            at.batch_size.values,
            at.learning_rate.values,
            bars,
            fmt="o",
            color="black",
            ecolor="black",
            elinewidth=1.0,
            capsize=0.6 * markersize,
            markersize=markersize,
            markerfacecolor=face,
            markeredgecolor=rim,
            markeredgewidth=min(0.8, 0.2 * markersize),
            zorder=3,
            label=label,
        )
        artists += container.get_children()
    return artists


@returns_artists
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
        The coloured grid, cells that are grey or hatched, marks and the predicted edges.

    Raises
    ------
    InputError
        If `grid` is not a sharpening diagram, or there is no such quantity.

    Notes
    -----
    Red: the eigenvalue grows, as a share of its initial value; blue, or a dash: it shrinks; dot:
    the measured growth is below two standard errors; grey: a replica diverged; hatched: second
    order in the curvature does not hold, by the grid's `valid` or, without it, for lack of a
    prediction. Lines K = 1 as in :func:`phase_diagram`, of the initial NTK. Colours saturate at the
    largest growth that is predicted without batch noise, at the largest batch size; where nothing
    is predicted there, at the largest predicted growth, and without any prediction at the largest
    simulated one.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(6, 20, qm.spectra.PowerLaw(1.0), curvature=0.005)
    >>> grid = qm.sharpening_diagram(ensemble, [0.1, 0.3], [1, 6], steps=4, replicas=2)
    >>> artists = qm.plot.sharpening_diagram(grid)
    >>> artists[0].axes.get_xlabel()
    'batch size (data points)'
    """
    plane = ("learning_rate", "batch_size")
    needed = {"simulated_growth": plane, "predicted_growth": plane} | _PREDICTED
    check_result("grid", grid, "sharpening_diagram()", needed)
    check_axes(ax)
    as_choice("quantity", quantity, ("simulated_growth", "predicted_growth"))
    from matplotlib.ticker import PercentFormatter

    ax = ax or new_axes()
    x, y = prepare(ax, grid)
    values = on_plane(grid[quantity])
    reach = _growth_without_noise(grid)
    ax.set_facecolor("white")
    mesh = ax.pcolormesh(
        x,
        y,
        np.ma.masked_invalid(values),
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
        rasterized=True,
    )
    label = grid[quantity].attrs["long_name"]
    text = f"{label.partition(' ')[0]} growth (share of the initial value)"
    bar = ax.figure.colorbar(mesh, ax=ax, label=text, extend="both")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    artists: list[Artist] = [mesh]
    if quantity == "simulated_growth":
        artists += _measured(ax, grid, x, y, values)
    artists += hatch(ax, x, y, ~_valid(grid), "second order does not hold")
    artists += edges(grid, ax, "deterministic edge")
    title(ax, setting(grid.attrs), label)
    legend(ax)
    return artists


def _measured(
    ax: Axes, grid: xr.Dataset, x: FloatArray, y: FloatArray, values: FloatArray
) -> list[Artist]:
    """Grey out what diverged; mark what is not significant, and what shrinks, seen in grey too."""
    size = cell_size(ax, x, y)
    artists = fill(ax, x, y, ~np.isfinite(values), "a replica diverged", facecolor="0.7")
    with np.errstate(invalid="ignore"):
        small = np.isfinite(values) & (np.abs(values) < 2 * on_plane(grid.standard_error))
        shrinks = (values < 0) & ~small & np.isfinite(values)
    style: dict[str, Any] = {"color": "black", "share": 0.5}
    artists += mark(
        ax, x, y, small, "below 2 standard errors", s=np.clip(0.15 * size, 0.8, 2.5) ** 2, **style
    )
    artists += mark(
        ax,
        x,
        y,
        shrinks,
        "shrinks",
        marker="_",
        s=np.clip(0.4 * size, 1.5, 7.0) ** 2,
        linewidth=1.0,
        **style,
    )
    return artists


def _valid(grid: xr.Dataset) -> Any:
    """Return where the prediction holds: the grid's own flag, or where there is a prediction."""
    if "valid" in grid:
        return on_plane(grid.valid).astype(bool)
    return np.isfinite(on_plane(grid.predicted_growth))


def _growth_without_noise(grid: xr.Dataset) -> float:
    """Return the growth at which colours saturate, in absolute value."""
    predicted = grid.predicted_growth
    for some in (predicted.isel(batch_size=-1), predicted, grid.simulated_growth):
        sizes = np.abs(some.values[np.isfinite(some.values)])
        if sizes.max(initial=0.0) > 0.0:
            return float(sizes.max())
    return 1.0
