"""Pictures of K and the largest eigenvalue along training: over steps, and against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError
from quadmodel._util.results import check_result
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import (
    GREEN,
    ORANGE,
    PURPLE,
    SIMULATION,
    THEORY,
    check_axes,
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

_EIGENVALUE = "ntk_largest_eigenvalue"
# Noise kernel norms of a run, the most complete first: what they are called, how they look.
_NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "noise_kernel_norm_exact": ("exact", {"color": SIMULATION}),
    "noise_kernel_norm_finite": ("finite D", {"color": ORANGE, "linestyle": "--"}),
    "noise_kernel_norm": ("paper's limit", {"color": PURPLE, "linestyle": ":"}),
}
# Where plain SGD with full batches turns unstable.
_EDGE = 2.0
# Values beyond so many times the edge are out of the picture.
_FAR = 2.0


@returns_artists
def network(run: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw the noise kernel norm and the largest NTK eigenvalue along training.

    Parameters
    ----------
    run : xarray.Dataset
        From :func:`quadmodel.simulate` or a network that was tracked: `ntk_largest_eigenvalue` and
        at least one of `noise_kernel_norm`, `noise_kernel_norm_finite`, `noise_kernel_norm_exact`
        over (replica, step) or step. NaN where nothing was measured.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        For every quantity a line per replica, and a band of two standard errors where `run` has
        them.

    Raises
    ------
    InputError
        If `run` is of another kind or does not know its learning rate.

    Notes
    -----
    K, without unit, is unstable above 1; :math:`\eta\lambda_{\max}`, without unit, above 2 for
    plain SGD. Both edges are drawn, the second one without momentum and weight decay only.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 5.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=10, n_params=20, curvature=0.05).sample(seed=0)
    >>> run = qm.simulate(model, qm.SGD(learning_rate=0.05, batch_size=2), steps=20, replicas=1)
    >>> artists = qm.plot.network(run)
    >>> artists[0].axes.get_xlabel()
    'SGD steps'
    """
    norms, rate = _checked(run)
    check_axes(ax)
    ax = ax or new_axes()
    scaled = rate * run[_EIGENVALUE]
    lines = [(f"K, {_NORMS[name][0]}", run[name], name, _NORMS[name][1], 1.0) for name in norms]
    style = {"color": THEORY, "linestyle": "-"}
    lines.append((r"$\eta\lambda_{\max}$ of the NTK", scaled, _EIGENVALUE, style, rate))
    drawn = [_seen(values) for _, values, *_ in lines]
    every = np.concatenate([values[np.isfinite(values)] for values in drawn])
    least = 1.1 * _EDGE if _plain(run) else 1.2
    top = min(max(1.1 * every.max(initial=0.0), least), _FAR * _EDGE)
    ax.set(xlabel="SGD steps", ylabel=r"K and $\eta\lambda_{\max}$ (no units)", ylim=(0, top))
    artists: list[Artist] = []
    steps = run.step.values
    for (label, _, name, look, scale), values in zip(lines, drawn, strict=True):
        for n, replica in enumerate(values):
            at = np.isfinite(replica)
            text = label if n == 0 else None
            artists += ax.plot(steps[at], replica[at], label=text, linewidth=1.4, **look)
        if len(values) == 1 and f"{name}_standard_error" in run:
            artists += _band(ax, run, name, scale, values[0], look["color"])
    artists += _edges(ax, run)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    title(ax, setting(run.attrs, replicas=run.sizes.get("replica")))
    legend(ax)
    return artists


@returns_artists
def trajectory(run: xr.Dataset, ax: Axes | None = None) -> list[Artist]:
    r"""Draw how training moves between the edges: K against the largest NTK eigenvalue.

    Parameters
    ----------
    run : xarray.Dataset
        As for :func:`network`; of several noise kernel norms the most complete is drawn: exact
        before finite before the paper's.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        A path per replica, the points where they start and end, and the edges.

    Raises
    ------
    InputError
        If `run` is of another kind or does not know its learning rate.

    Notes
    -----
    Both axes have no units. Stable is the rectangle below K = 1 and, without momentum and weight
    decay, left of :math:`\eta\lambda_{\max} = 2`: noise limits what leaves it at the top, the
    largest eigenvalue what leaves it on the right.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, sections 3 and 4.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=10, n_params=20, curvature=0.05).sample(seed=0)
    >>> run = qm.simulate(model, qm.SGD(learning_rate=0.05, batch_size=2), steps=20, replicas=2)
    >>> artists = qm.plot.trajectory(run)
    >>> artists[0].axes.get_ylabel()
    'noise kernel norm K (finite D)'
    """
    norms, rate = _checked(run)
    check_axes(ax)
    ax = ax or new_axes()
    x, y = _seen(rate * run[_EIGENVALUE]), _seen(run[norms[0]])
    finite = np.isfinite(x) & np.isfinite(y)
    right = min(1.1 * x[finite].max(initial=_EDGE), _FAR * _EDGE)
    top = min(1.1 * y[finite].max(initial=1.0), _FAR)
    ax.set(
        xlabel=r"$\eta\lambda_{\max}$ of the NTK (no units)",
        ylabel=f"noise kernel norm K ({_NORMS[norms[0]][0]})",
        xlim=(0, right),
        ylim=(0, top),
    )
    artists: list[Artist] = []
    marks: dict[str, Any] = {"color": SIMULATION, "markersize": 6, "linestyle": ""}
    for n, (across, up, at) in enumerate(zip(x, y, finite, strict=True)):
        if not at.any():
            continue
        across, up, first = across[at], up[at], n == 0
        artists += ax.plot(across, up, color=SIMULATION, linewidth=1.0, alpha=0.6)
        label = "start" if first else None
        artists += ax.plot(across[:1], up[:1], "o", fillstyle="none", label=label, **marks)
        artists += ax.plot(across[-1:], up[-1:], "s", label="end" if first else None, **marks)
    artists += _edges(ax, run, across=True)
    for axis in (ax.xaxis, ax.yaxis):
        ticks(axis)
    title(ax, setting(run.attrs, replicas=run.sizes.get("replica")))
    legend(ax)
    return artists


def _checked(run: xr.Dataset) -> tuple[list[str], Any]:
    """Return the noise kernel norms that a run has, the most complete first, and its rate."""
    maker = "simulate() or a tracked network"
    check_result("run", run, maker, {_EIGENVALUE: ("step",), "step": ("step",)})
    norms = [name for name in _NORMS if name in run and "step" in run[name].dims]
    if not norms:
        raise InputError(f"run must be a Dataset from {maker}, got one without 'noise_kernel_norm'")
    if "learning_rate" in run:
        return norms, run.learning_rate
    if "learning_rate" not in run.attrs:
        raise InputError(f"run must be a Dataset from {maker}, got one without 'learning_rate'")
    return norms, float(run.attrs["learning_rate"])


def _seen(values: xr.DataArray) -> FloatArray:
    """Return values per replica and step, NaN where they are infinite."""
    if "replica" not in values.dims:
        values = values.expand_dims("replica")
    array = np.asarray(values.transpose("replica", "step").values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _band(
    ax: Axes, run: xr.Dataset, name: str, scale: Any, middle: FloatArray, colour: str
) -> list[Artist]:
    """Draw two standard errors around a line."""
    error = _seen(2 * scale * run[f"{name}_standard_error"])[0]
    at = np.isfinite(middle) & np.isfinite(error)
    if not (error[at] > 0).any():
        return []
    low, high = (middle - error)[at], (middle + error)[at]
    style: dict[str, Any] = {"color": colour, "alpha": 0.25, "linewidth": 0}
    return [ax.fill_between(run.step.values[at], low, high, **style)]


def _edges(ax: Axes, run: xr.Dataset, *, across: bool = False) -> list[Artist]:
    """Draw where K is 1 and, for plain SGD, where the largest eigenvalue is 2."""
    artists: list[Artist] = [
        ax.axhline(1, color=ink(ax), linewidth=0.9, label="K = 1, stochastic edge")
    ]
    label = r"$\eta\lambda_{\max}$ = 2, deterministic edge"
    style: dict[str, Any] = {"color": GREEN, "linewidth": 2.0, "label": label}
    if _plain(run):
        artists.append((ax.axvline if across else ax.axhline)(_EDGE, **style))
    return artists


def _plain(run: xr.Dataset) -> bool:
    """Say whether the largest eigenvalue's edge is that of plain SGD."""
    return not run.attrs.get("momentum") and not run.attrs.get("weight_decay")
