"""Pictures: take a Dataset and an Axes, return artists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._validation import FloatArray, InputError, as_choice, as_integer
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

# Markers of limit_edge()'s fates.
_FATES = {
    "stayed below": "o",
    "turned back": "v",
    "ended above": "^",
    "still training": "D",
    "diverged": "x",
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
        The cells, the lines (that of the typical edge, thin, where it is predicted), the simulated
        boundary with its 95% interval, and the marks of intermittent cells.

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
        xlim=_cell_edges(sizes)[[0, -1]],
        ylim=_cell_edges(rates)[[0, -1]],
        title=f"{grid.attrs['n_data']} data points, {_parameters(grid.attrs)}",
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(loc="lower right", fontsize="small")
    return artists


def _parameters(attrs: dict[Any, Any]) -> str:
    if "limit" not in attrs:
        return f"{attrs['n_params']} parameters"
    return f"large-P limit (level {attrs['level']}), q = {attrs['curvature_strength']:.3g}"


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
        predicted = pred.loss.mean("replica") if "replica" in pred.loss.dims else pred.loss
        artists += ax.plot(pred.step, predicted, color=_THEORY, ls="--", label="predicted mean")
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.legend(fontsize="small")
    return artists


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
        If `pred` is not of that kind or has no such mode.

    Notes
    -----
    Change of :math:`v_\alpha^\top\Theta v_\alpha` in units of 1 / learning rate, against SGD
    steps.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.
    """
    if "conservative" not in pred or "mode" not in pred.dims:
        raise InputError("pred must be of expected_ntk(), got another Dataset")
    mode = as_integer("mode", mode, low=0, high=pred.sizes["mode"] - 1)
    ax = _axes(ax)
    at = pred.isel(mode=mode)
    artists: list[Artist] = []
    colours = {"progressive": "#009E73", "conservative": "#0072B2", "diffusive": "#CC79A7"}
    for name, colour in colours.items():
        artists += ax.plot(at.step, at[name], color=colour, linestyle="--", label=name)
    grown = at.ntk_projection - at.ntk_projection.isel(step=0)
    artists += ax.plot(at.step, grown, color=_THEORY, label="sum: closed form")
    if sim is not None:
        values = sim.ntk_projection.isel(mode=mode)
        values = values - values.isel(step=0)
        # Nothing is drawn where a run has diverged: there is no mean to show.
        values = values.where(np.isfinite(values))
        error = 2 * values.std("replica", ddof=1, skipna=False) / values.sizes["replica"] ** 0.5
        bars = ax.errorbar(
            values.step,
            values.mean("replica", skipna=False),
            error,
            fmt="o",
            markersize=3,
            capsize=2,
            color=_SIMULATION,
            label="simulated (2 standard errors)",
        )
        artists += bars.get_children()
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel="growth of the NTK along the mode (1 / learning rate)")
    ax.legend()
    return artists


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
        The cells and the lines.

    Raises
    ------
    InputError
        If `grid` is not a sharpening diagram, or there is no such quantity.

    Notes
    -----
    Red grows, blue shrinks, as a share of the initial eigenvalue; grey: diverged, or beyond what
    second order in the curvature can say. Colours saturate at the growth without batch noise (where
    it is not predicted, at the largest that is, else at the largest that was simulated).

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.
    """
    if "simulated_growth" not in grid:
        raise InputError("grid must be of sharpening_diagram(), got another Dataset")
    as_choice("quantity", quantity, ("simulated_growth", "predicted_growth"))
    ax = _axes(ax)
    values = grid[quantity].transpose("learning_rate", "batch_size").values
    reach = _growth_without_noise(grid)
    ax.set_facecolor("0.8")
    cells = ax.pcolormesh(
        _cell_edges(grid.batch_size.values),
        _cell_edges(grid.learning_rate.values),
        np.where(np.isfinite(values), values, np.nan),
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
    )
    label = grid[quantity].attrs["long_name"]
    ax.figure.colorbar(cells, ax=ax, label=f"{label} (share)", extend="both")
    artists: list[Artist] = [cells]
    for name in grid.norm.values:
        text, style = _EDGES[str(name)]
        line = grid.critical_learning_rate.sel(norm=name)
        artists += ax.plot(grid.batch_size, line, label=text, **style)
    artists += ax.plot(
        grid.batch_size,
        grid.edge_of_stability,
        color="#009E73",
        linestyle="-.",
        label="deterministic edge",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="batch size (data points)",
        ylabel="learning rate (1 / NTK eigenvalue)",
    )
    ax.legend(fontsize="small")
    return artists


def _growth_without_noise(grid: xr.Dataset) -> float:
    """Return the largest growth at the largest batch size, or what may stand for it."""
    predicted = grid.predicted_growth
    for some in (predicted.isel(batch_size=-1), predicted, grid.simulated_growth):
        sizes = np.abs(some.values[np.isfinite(some.values)])
        if sizes.max(initial=0.0) > 0.0:
            return float(sizes.max())
    return 1.0


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
    ax = _axes(ax)
    artists: list[Artist] = []
    for n, strength in enumerate(found.strength.values):
        for run in range(found.sizes["run"]):
            norm = found.noise_kernel_norm_exact.isel(strength=n, run=run)
            label = f"q = {strength:g}" if run == 0 else None
            artists += ax.plot(norm.step, norm, color=f"C{n}", linewidth=0.9, label=label)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel="noise kernel norm (exact)", ylim=(0, 1.6))
    ax.legend(title="curvature strength")
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


def limit_edge(found: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw where the noise kernel norm ends against where it started, in the large-P limit.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`quadmodel.limit_edge`; select ``strength=[q]`` to draw one curvature strength.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The points of every batch size and fate, one colour per batch size and one marker per fate.

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
    if "initial_norm" not in found.dims or "fate" not in found:
        raise InputError("found must be of limit_edge(), got another Dataset")
    ax = _axes(ax)
    artists: list[Artist] = []
    seen: dict[str, None] = {}
    for n, size in enumerate(found.batch_size.values):
        at = found.sel(batch_size=size)
        start, end, fate = (
            values.values.ravel()
            for values in xr.broadcast(at.initial_norm, at.final_norm, at.fate)
        )
        for name, marker in _FATES.items():
            for finite in (True, False):
                drawn = (fate == name) & (np.isfinite(end) == finite)
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
    for name in (name for name in _FATES if name in seen):
        ax.plot([], [], _FATES[name], color="black", fillstyle="none", label=name)
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # covers no run
    return artists


def _ticks(*mantissas: int) -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=mantissas)


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
