"""Cells of pictures over learning rate and batch size: outlines, hatches, marks, edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray
from quadmodel.plot._common import GREEN, ORANGE, PURPLE, SKY, Line, draw_lines, halo, ticks
from quadmodel.plot._setting import is_linear

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Mask = NDArray[np.bool_]

# What the three norms are, in the order in which their lines lie on one another: where they
# coincide, the upper ones leave gaps that show the lower ones.
_NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("exact", {"color": "black", "linewidth": 2.2}),
    "finite": (
        "finite D",
        {"color": ORANGE, "linewidth": 1.5, "dashes": (3.2, 5.8)},
    ),
    "paper": (
        "paper's limit",
        {"color": "#F0E442", "linewidth": 1.5, "dashes": (0, 5, 1.4, 2.6)},
    ),
}
_TYPICAL = {"color": PURPLE, "linewidth": 1.3, "dashes": (8, 2, 2, 2)}
_NONLINEAR = {"color": SKY, "linewidth": 2.0, "dashes": (1.2, 1.2)}
_DETERMINISTIC = {"color": GREEN, "linewidth": 5.0, "solid_capstyle": "butt"}


def outlines(centres: Any) -> FloatArray:
    """Return the geometric midpoints between grid points, and one more on either side."""
    log = np.log(np.asarray(centres, dtype=np.float64))
    if log.size == 1:
        log = np.append(log, log + 0.7)
        log -= 0.35
        return np.asarray(np.exp(log))
    middle = 0.5 * (log[1:] + log[:-1])
    ends = [2 * log[0] - middle[0]], [2 * log[-1] - middle[-1]]
    return np.asarray(np.exp(np.concatenate([ends[0], middle, ends[1]])))


def prepare(ax: Axes, grid: xr.Dataset) -> tuple[FloatArray, FloatArray]:
    """Give axes the scales, limits, labels and ticks of a grid; return outlines of its cells."""
    x, y = outlines(grid.batch_size.values), outlines(grid.learning_rate.values)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="batch size (data points)",
        ylabel="learning rate (1 / NTK eigenvalue)",
        xlim=x[[0, -1]],
        ylim=y[[0, -1]],
    )
    ticks(ax.xaxis, whole=True)
    ticks(ax.yaxis)
    return x, y


def on_plane(values: xr.DataArray) -> Any:
    """Return values over the grid, learning rates along the rows."""
    return values.transpose("learning_rate", "batch_size").values


def fill(
    ax: Axes, x: FloatArray, y: FloatArray, where: Mask, label: str, **style: Any
) -> list[Artist]:
    """Fill the cells that `where` marks with a colour or, with ``hatch=``, lines."""
    from matplotlib.collections import PolyCollection

    rows, columns = np.nonzero(where)
    if rows.size == 0:
        return []
    left, right, low, high = x[columns], x[columns + 1], y[rows], y[rows + 1]
    corners = np.stack([[left, low], [right, low], [right, high], [left, high]])
    cells = PolyCollection(
        list(corners.transpose(2, 0, 1)), label=label, linewidth=0.0, zorder=1.2, **style
    )
    ax.add_collection(cells, autolim=False)
    return [cells]


def hatch(ax: Axes, x: FloatArray, y: FloatArray, where: Mask, label: str) -> list[Artist]:
    """Hatch the cells that `where` marks."""
    return fill(ax, x, y, where, label, facecolor="none", edgecolor="0.35", hatch="/////")


def cell_size(ax: Axes, x: FloatArray, y: FloatArray) -> float:
    """Return the smallest side of a cell in points, as far as it is known before the layout."""
    box = ax.get_window_extent()
    narrowest, lowest = (np.diff(np.log(ends)).min() / np.ptp(np.log(ends)) for ends in (x, y))
    return float(0.8 * min(narrowest * box.width, lowest * box.height) * 72 / ax.figure.dpi)


def mark(
    ax: Axes, x: FloatArray, y: FloatArray, where: Mask, label: str, *, share: float, **style: Any
) -> list[Artist]:
    """Mark cells, at a share of their width from the left, where columns' centres stay free."""
    rows, columns = np.nonzero(where)
    if rows.size == 0:
        return []
    across = x[columns] ** (1 - share) * x[columns + 1] ** share
    up = np.sqrt(y[rows] * y[rows + 1])
    effects = halo(style.get("linewidth", 0.0))
    return [ax.scatter(across, up, label=label, zorder=2.6, path_effects=effects, **style)]


def edges(grid: xr.Dataset, ax: Axes, deterministic: str) -> list[Artist]:
    """Draw the learning rates at which the noise kernel norms are 1, and the other edges.

    The limits of the axes must have been set. Norms whose lines coincide are drawn once.
    """

    def cased(style: dict[str, Any], colour: str) -> dict[str, Any]:
        return style | {"path_effects": halo(style["linewidth"], colour)}

    def line(label: str, values: xr.DataArray, style: dict[str, Any], zorder: float) -> Line:
        x, y = _across(grid.batch_size.values, values.values)
        return Line(label, x, y, style | {"zorder": zorder})

    present = {str(name) for name in grid.norm.values}
    norms = [
        line(
            label,
            grid.critical_learning_rate.sel(norm=name),
            cased(style, "white" if name == "exact" else "black"),
            2.1 + 0.1 * n,
        )
        for n, (name, (label, style)) in enumerate(_NORMS.items())
        if name in present
    ]
    artists = draw_lines(ax, [line(deterministic, grid.edge_of_stability, _DETERMINISTIC, 2.0)])
    drawn = draw_lines(ax, norms, joined="; ")
    # Where the NTK changes, K does: what is drawn is K of the initial one.
    called = "K = 1" if is_linear(grid.attrs) else "initial K = 1"
    for artist in drawn:
        names = str(artist.get_label()).split("; ")
        artist.set_label(f"{called}, {' = '.join(names)}")
    artists += drawn
    typical = grid.get("typical_critical_learning_rate")
    if typical is not None:
        style = cased(_TYPICAL, "black")
        artists += draw_lines(ax, [line("typical edge, predicted", typical, style, 2.4)])
    nonlinear = grid.get("mean_field_critical_learning_rate")
    if nonlinear is not None:
        style = cased(_NONLINEAR, "black")
        artists += draw_lines(ax, [line("nonlinear edge, mean field", nonlinear, style, 2.5)])
    return artists


def _across(centres: Any, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the points of a line over batch sizes; values without neighbours span their cell."""
    finite = np.isfinite(values)
    padded = np.concatenate([[False], finite, [False]])
    alone = finite & ~padded[:-2] & ~padded[2:]
    ends = outlines(centres)
    x: list[float] = []
    y: list[float] = []
    for n, centre in enumerate(centres):
        places = ends[n : n + 2] if alone[n] else [centre]
        x += [float(place) for place in places]
        y += [float(values[n])] * len(places)
    return np.array(x), np.array(y)
