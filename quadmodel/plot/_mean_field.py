"""Pictures of mean-field theory: the noise kernel norm along training, and the nonlinear edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError, shown
from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import (
    CYCLE,
    SIMULATION,
    THEORY,
    Line,
    check_axes,
    draw_lines,
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

_NORM = "noise_kernel_norm_finite"
_MARKERS = "osDv^"


@returns_artists
def mean_field(
    pred: xr.Dataset, sim: xr.Dataset | None = None, ax: Axes | None = None
) -> list[Artist]:
    r"""Draw the noise kernel norm along training, as predicted and over simulated runs.

    Parameters
    ----------
    pred : xarray.Dataset
        From :func:`quadmodel.mean_field`.
    sim : xarray.Dataset, optional
        From :func:`quadmodel.simulate`, with the observable `noise_kernel_norm_finite`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        A line per replica, up to where it diverges, and the prediction.

    Raises
    ------
    InputError
        If a Dataset has no such norm along steps.

    Notes
    -----
    Finite-size norm, without unit, against SGD steps; 1 is the edge of the linear model.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: derivations/09-mean-field.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(n_data=100, n_params=200, curvature=0.02)
    >>> pred = qm.mean_field(ensemble, qm.SGD(learning_rate=0.1, batch_size=5), steps=20)
    >>> artists = qm.plot.mean_field(pred)
    >>> artists[0].axes.get_ylabel()
    'noise kernel norm (finite size)'
    """
    check_result("pred", pred, "mean_field()", {_NORM: ("step",), "step": ("step",)})
    if pred[_NORM].ndim != 1:
        raise InputError(
            f"pred must be a Dataset from mean_field(), got one over {shown(pred[_NORM].dims)}"
        )
    if sim is not None:
        runs = {_NORM: ("replica", "step"), "step": ("step",)}
        check_result("sim", sim, "simulate()", runs)
    check_axes(ax)
    ax = ax or new_axes()
    style = {"color": THEORY, "linestyle": "--", "linewidth": 1.8, "zorder": 3}
    lines = []
    if sim is not None:
        norms = sim[_NORM].transpose("replica", "step").values
        label = "simulated, a line per replica" if len(norms) > 1 else "simulated"
        blue = {"color": SIMULATION, "linewidth": 0.8, "alpha": 0.7}
        lines = [Line(label, sim.step.values, norm, blue) for norm in norms]
    lines.append(Line("mean-field theory", pred.step.values, pred[_NORM].values, style))
    every = np.concatenate([line.y for line in lines])
    top = float(np.clip(1.1 * every[np.isfinite(every)].max(initial=0.0), 1.2, 3.0))
    ax.set(xlabel="SGD steps", ylabel="noise kernel norm (finite size)", ylim=(0, top))
    artists: list[Artist] = []
    for n, line in enumerate(lines):
        first = n in (0, len(lines) - 1)
        artists += ax.plot(line.x, line.y, label=line.label if first else None, **line.style)
    ax.axhline(1, color=ink(ax), linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    title(ax, setting(pred.attrs, replicas=None if sim is None else sim.sizes["replica"]))
    legend(ax)
    return artists


@returns_artists
def mean_field_edge(edges: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the initial noise kernel norm at the nonlinear edge over the curvature strength.

    Parameters
    ----------
    edges : xarray.Dataset
        Results of :func:`quadmodel.mean_field_edge`, put together along a coordinate
        `curvature_strength` of yours by :func:`xarray.concat`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        A line per batch size.

    Raises
    ------
    InputError
        If `edges` is of another kind or has no dimension `curvature_strength`.

    Notes
    -----
    Finite-size norm of the initial NTK, without unit, against curvature strength, in the unit of
    the coordinate: models that start above the line diverge. The linear model's edge is 1.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: derivations/09-mean-field.md.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm, xarray as xr
    >>> strengths = xr.DataArray([0.5, 1.0], dims="curvature_strength", name="curvature_strength")
    >>> edges = [
    ...     qm.mean_field_edge(qm.Ensemble(100, 200, curvature=q / 200**0.5), [5], steps=50)
    ...     for q in strengths.values
    ... ]
    >>> artists = qm.plot.mean_field_edge(xr.concat(edges, strengths))
    >>> artists[0].axes.get_ylabel()
    'noise kernel norm (finite size) at the start'
    """
    dims = ("curvature_strength", "batch_size")
    needed = {_NORM: dims, "curvature_strength": dims[:1], "batch_size": dims[1:]}
    check_result("edges", edges, "mean_field_edge() along curvature_strength", needed)
    check_axes(ax)
    ax = ax or new_axes()
    strengths = edges.curvature_strength.values
    units = edges.curvature_strength.attrs.get("units")
    lines = [
        Line(
            f"B = {size}",
            strengths,
            edges[_NORM].sel(batch_size=size).values,
            {
                "color": CYCLE[n % len(CYCLE)],
                "marker": _MARKERS[n % len(_MARKERS)],
                "markersize": 4,
            },
        )
        for n, size in enumerate(edges.batch_size.values)
    ]
    ax.set(
        xlabel="curvature strength" + (f" ({units})" if units and units != "1" else ""),
        ylabel="noise kernel norm (finite size) at the start",
        ylim=(0, 1.1),
    )
    artists = draw_lines(ax, lines)
    ax.axhline(1, color=ink(ax), linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    shown = ("n_data", "n_params", "jacobian", "momentum", "nesterov", "weight_decay", "sampling")
    title(ax, setting({name: edges.attrs[name] for name in shown if name in edges.attrs}))
    legend(ax, title="edge of the nonlinear model")
    return artists
