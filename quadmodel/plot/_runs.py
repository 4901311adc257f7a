"""Pictures of training, loss and sharpening beside their predictions; and of a spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError, as_integer
from quadmodel._util.results import check_result
from quadmodel.model import QuadraticModel
from quadmodel.plot._common import SIMULATION, THEORY, check_axes, new_axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


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
    InputError
        If a Dataset has no loss along steps, or the first one no replicas.
    """
    check_result("sim", sim, "simulate()", {"loss": ("replica", "step"), "step": ("step",)})
    if pred is not None:
        check_result("pred", pred, "predict()", {"loss": ("step",), "step": ("step",)})
    check_axes(ax)
    ax = ax or new_axes()
    low, middle, high = sim.loss.quantile([0.1, 0.5, 0.9], "replica").transpose("quantile", ...)
    artists: list[Artist] = [
        ax.fill_between(
            sim.step, low, high, color=SIMULATION, alpha=0.2, label="10% to 90% of replicas"
        )
    ]
    artists += ax.plot(sim.step, middle, color=SIMULATION, ls=":", label="median replica")
    artists += ax.plot(
        sim.step, sim.loss.mean("replica"), color=SIMULATION, label="mean of replicas"
    )
    if pred is not None:
        predicted = pred.loss.mean("replica") if "replica" in pred.loss.dims else pred.loss
        artists += ax.plot(pred.step, predicted, color=THEORY, ls="--", label="predicted mean")
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
        If `pred` is not from :func:`quadmodel.expected_ntk` or has no such mode.

    Notes
    -----
    Change of :math:`v_\alpha^\top\Theta v_\alpha` in units of 1 / learning rate, against SGD
    steps.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.
    """
    parts = ("progressive", "conservative", "diffusive", "ntk_projection")
    check_result("pred", pred, "expected_ntk()", dict.fromkeys(parts, ("step", "mode")))
    if sim is not None:
        runs = ("replica", "step", "mode")
        check_result("sim", sim, "sample_ntk()", {"ntk_projection": runs})
    check_axes(ax)
    mode = as_integer("mode", mode, low=0, high=pred.sizes["mode"] - 1)
    ax = ax or new_axes()
    at = pred.isel(mode=mode)
    artists: list[Artist] = []
    colours = {"progressive": "#009E73", "conservative": "#0072B2", "diffusive": "#CC79A7"}
    for name, colour in colours.items():
        artists += ax.plot(at.step, at[name], color=colour, linestyle="--", label=name)
    grown = at.ntk_projection - at.ntk_projection.isel(step=0)
    artists += ax.plot(at.step, grown, color=THEORY, label="sum: closed form")
    if sim is not None:
        values = sim.ntk_projection.isel(mode=mode)
        values = values - values.isel(step=0)
        # Nothing is drawn where a replica has diverged: there is no mean to show.
        values = values.where(np.isfinite(values))
        error = 2 * values.std("replica", ddof=1, skipna=False) / values.sizes["replica"] ** 0.5
        bars = ax.errorbar(
            values.step,
            values.mean("replica", skipna=False),
            error,
            fmt="o",
            markersize=3,
            capsize=2,
            color=SIMULATION,
            label="simulated (2 standard errors)",
        )
        artists += bars.get_children()
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set(xlabel="SGD steps", ylabel="growth of the NTK along the mode (1 / learning rate)")
    ax.legend()
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
    InputError
        If `model` is no model.
    """
    if not isinstance(model, QuadraticModel):
        raise InputError(f"model must be a QuadraticModel, got a {type(model).__name__}")
    check_axes(ax)
    ax = ax or new_axes()
    eigenvalues = model.eigensystem[0]
    positive = eigenvalues[eigenvalues > 0]
    artists: list[Artist] = list(
        ax.plot(np.arange(1, positive.size + 1), positive, ".", color=SIMULATION)
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rank",
        ylabel="NTK eigenvalue (1 / learning rate)",
        title=f"{positive.size} of {eigenvalues.size} eigenvalues are not zero",
    )
    return artists
