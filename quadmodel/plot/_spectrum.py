"""The spectrum of an NTK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.checks import FloatArray, as_array, n_axes, tolerance_of
from quadmodel.model import QuadraticModel, clean_eigenvalues, ntk_eigensystem
from quadmodel.plot._artists import returns_artists
from quadmodel.plot._common import SIMULATION, check_axes, log_limits, new_axes, ticks, title

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


@returns_artists
def spectrum(model: QuadraticModel | ArrayLike, ax: Axes | None = None) -> list[Artist]:
    """Draw the eigenvalues of an NTK in descending order.

    Parameters
    ----------
    model : QuadraticModel, or array_like of shape (n_data, n_data) or (n_data,)
        A model, whose initial NTK it is; an NTK; or all its eigenvalues.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    list of matplotlib.artist.Artist
        The points.

    Raises
    ------
    InputError
        If `model` is neither a model nor an NTK.

    Examples
    --------
    >>> import quadmodel as qm
    >>> artists = qm.plot.spectrum(qm.Ensemble(n_data=10, n_params=20).sample(seed=0))
    >>> artists[0].axes.get_xlabel()
    'rank'
    """
    eigenvalues = _eigenvalues(model)
    check_axes(ax)
    ax = ax or new_axes()
    positive = eigenvalues[eigenvalues > 0]
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="rank",
        ylabel="NTK eigenvalue (1 / learning rate)",
        xlim=(0.9, 1.1 * max(positive.size, 1)),
        ylim=log_limits([positive]),
    )
    artists: list[Artist] = list(
        ax.plot(np.arange(1, positive.size + 1), positive, ".", color=SIMULATION)
    )
    ticks(ax.xaxis, whole=True)
    ticks(ax.yaxis)
    title(ax, [], f"{positive.size} of {eigenvalues.size} eigenvalues are not zero")
    return artists


def _eigenvalues(model: QuadraticModel | ArrayLike) -> FloatArray:
    """Return eigenvalues in descending order, rounding noise set to zero."""
    if isinstance(model, QuadraticModel):
        return model.eigensystem[0]
    if n_axes("model", model) == 1:
        values = as_array("model", model, (None,))
        return clean_eigenvalues(np.sort(values)[::-1], tolerance_of(model))
    return ntk_eigensystem(as_array("model", model, (None, None)), tolerance_of(model))[0]
