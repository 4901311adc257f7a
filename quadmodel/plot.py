"""Pictures: take a Dataset and an Axes, return artists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._validation import FloatArray
from quadmodel.compare import critical_noise_kernel_norm

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from quadmodel.model import QuadraticModel

# One colour per quantity in all pictures; distinguishable with colour-blind eyes (Okabe, Ito).
_SIMULATION, _THEORY = "#0072B2", "#D55E00"
_EDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("K = 1, paper's limit", {"color": "black", "linestyle": ":"}),
    "finite": ("K = 1, finite size", {"color": "black", "linestyle": "--"}),
    "exact": ("K = 1, exact threshold", {"color": "black", "linestyle": "-"}),
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
        The cells, the lines, the simulated boundary with its 95% interval, and the marks of
        intermittent cells.

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

    critical = critical_noise_kernel_norm(grid, method=str(grid.norm.values[-1]))
    ax = _axes(ax)
    sizes, rates = grid.batch_size.values, grid.learning_rate.values
    growth = grid.mean_growth.transpose("learning_rate", "batch_size").values
    reach = float(np.nanmax(np.abs(growth))) or 1.0
    scale = SymLogNorm(linthresh=min(1e-3, reach / 2), vmin=-reach, vmax=reach)
    cells = ax.pcolormesh(
        _cell_edges(sizes), _cell_edges(rates), growth, cmap="RdBu_r", norm=scale, alpha=0.85
    )
    figure = ax.figure
    figure.colorbar(cells, ax=ax, label="simulated growth rate of the mean loss (1 / step)")
    artists: list[Artist] = [cells]
    for name in grid.norm.values:
        label, style = _EDGES[str(name)]
        line = grid.critical_learning_rate.sel(norm=name)
        artists += ax.plot(sizes, line, label=label, **style)
    artists += ax.plot(
        sizes,
        grid.edge_of_stability,
        color="#009E73",
        linestyle="-.",
        label=r"deterministic edge, $\eta\lambda_{\max}$ = 2"
        if not grid.attrs["momentum"] and not grid.attrs["weight_decay"]
        else "deterministic edge",
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
        xlim=_cell_edges(sizes)[[0, -1]],
        ylim=_cell_edges(rates)[[0, -1]],
        title=f"{grid.attrs['n_data']} data points, {grid.attrs['n_params']} parameters",
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(loc="lower right", fontsize="small")
    return artists


def loss(sim: xr.Dataset, pred: xr.Dataset | None = None, ax: Axes | None = None) -> list[Artist]:
    """Draw the simulated loss, its spread over replicas, and the predicted mean.

    Parameters
    ----------
    sim : xarray.Dataset
        From :func:`quadmodel.simulate`.
    pred : xarray.Dataset, optional
        From :func:`quadmodel.predict`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        Mean and median of the simulation, the band between its 10% and 90% quantiles, and the
        prediction.

    Raises
    ------
    AttributeError
        If a Dataset has no loss.
    """
    ax = _axes(ax)
    low, middle, high = sim.loss.quantile([0.1, 0.5, 0.9], "replica").transpose("quantile", ...)
    artists: list[Artist] = [
        ax.fill_between(
            sim.step, low, high, color=_SIMULATION, alpha=0.2, label="10% to 90% of runs"
        )
    ]
    artists += ax.plot(sim.step, middle, color=_SIMULATION, ls=":", label="median run")
    artists += ax.plot(sim.step, sim.loss.mean("replica"), color=_SIMULATION, label="mean of runs")
    if pred is not None:
        artists += ax.plot(pred.step, pred.loss, color=_THEORY, ls="--", label="predicted mean")
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.legend(fontsize="small")
    return artists


def spectrum(model: QuadraticModel, ax: Axes | None = None) -> list[Artist]:
    """Draw the eigenvalues of the initial NTK in descending order.

    Parameters
    ----------
    model : QuadraticModel
        The model.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The points.

    Raises
    ------
    AttributeError
        If `model` has no eigensystem.
    """
    ax = _axes(ax)
    eigenvalues = model.eigensystem[0]
    positive = eigenvalues[eigenvalues > 0]
    artists: list[Artist] = list(
        ax.plot(np.arange(1, positive.size + 1), positive, ".", color=_SIMULATION)
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rank",
        ylabel="NTK eigenvalue (1 / learning rate)",
        title=f"{positive.size} of {eigenvalues.size} eigenvalues are not zero",
    )
    return artists


def _axes(ax: Axes | None) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 5), layout="constrained")[1]


def _cell_edges(centres: FloatArray) -> FloatArray:
    """Return the geometric midpoints between cells, and one more on either side."""
    log = np.log(np.asarray(centres, dtype=np.float64))
    if log.size == 1:
        log = np.append(log, log + 0.7)
        log -= 0.35
        return np.asarray(np.exp(log))
    middle = 0.5 * (log[1:] + log[:-1])
    ends = [2 * log[0] - middle[0]], [2 * log[-1] - middle[-1]]
    return np.asarray(np.exp(np.concatenate([ends[0], middle, ends[1]])))
