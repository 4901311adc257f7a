"""The spectrum of a network's curvature, smoothed."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, as_choice, as_integer, as_number
from quadmodel._util.results import attributes, variable
from quadmodel.networks import _linearisation
from quadmodel.networks._krylov import ritz_pairs
from quadmodel.networks._linearisation import Linearisation, need_targets
from quadmodel.networks.eigenvalue import CURVATURES

# Gaussians are spread over so many standard deviations beyond the extreme Ritz values.
_MARGIN = 4.0


def spectral_density(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    of: str = "gauss_newton",
    width: float | None = None,
    points: int = 400,
    probes: int = 8,
    steps: int = 60,
    loss: Any = "mse",
    parameters: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    r"""Return the eigenvalue density of the Gauss-Newton matrix or the Hessian, with its error.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed by the Hessian, and by a loss whose curvature depends on them.
    of : {"gauss_newton", "hessian"}, optional
        Whose eigenvalues, all P of them.
    width : float, optional
        Standard deviation of the Gaussian that every eigenvalue is smoothed to; by default a
        fiftieth of the range of Ritz values.
    points : int, optional
        Eigenvalues at which the density is given.
    probes : int, optional
        Random vectors, at least 2.
    steps : int, optional
        Dimensions of each one's Krylov space, of vectors of P numbers.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    seed : int, optional
        Of the random vectors.

    Returns
    -------
    xarray.Dataset
        `density` (eigenvalue), which integrates to 1, and its `standard_error`.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Stochastic Lanczos quadrature: with a random vector v of independent normal entries, Ritz
    values and squared weights are the Gauss quadrature of v's spectral measure, whose mean over v
    is the density. Weights are normalised per vector, which biases by a share of order 1/P.
    Details below the distance of Ritz values, about the range over `steps`, are those of the
    quadrature: choose `width` no smaller.

    References
    ----------
    .. [1] L. Lin, Y. Saad, C. Yang, SIAM Review 58 (2016) 34; B. Ghorbani, S. Krishnan, Y. Xiao,
       arXiv:1901.10159.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> found = qm.networks.spectral_density(net, torch.eye(2), width=0.1)
    >>> round(float(found.density.integrate("eigenvalue")), 3)
    1.0
    """
    as_choice("of", of, CURVATURES)
    points = as_integer("points", points, low=2, high=10**6)
    probes = as_integer("probes", probes, low=2)
    steps = as_integer("steps", steps, low=2)
    width = None if width is None else as_number("width", width, above=0.0)
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    if of == "hessian":
        need_targets(targets)
    at = Linearisation(net, inputs, targets, loss=loss, parameters=parameters)
    product = at.gauss_newton_product if of == "gauss_newton" else at.hessian_product
    at_once = max(1, _linearisation.MEMORY // (3 * 8 * steps * at.n_params))
    measures: list[tuple[FloatArray, FloatArray]] = []
    for start in range(0, probes, at_once):
        vectors = rng.standard_normal((min(at_once, probes - start), at.n_params))
        ritz = ritz_pairs(product, vectors, steps)
        shares = ritz.weights**2 / (ritz.weights**2).sum(1, keepdims=True)
        measures += zip(ritz.values, shares, strict=True)
    low = min(float(values.min()) for values, _ in measures)
    high = max(float(values.max()) for values, _ in measures)
    if width is None:
        width = (high - low) / 50 or max(abs(high), 1.0) / 50
    grid = np.linspace(low - _MARGIN * width, high + _MARGIN * width, points)
    smooth = np.array(
        [
            np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) @ shares
            for values, shares in measures
        ]
    ) / (width * np.sqrt(2 * np.pi))
    units = "1 / learning rate"
    return xr.Dataset(
        {
            "density": variable("eigenvalue", smooth.mean(0), "eigenvalue density"),
            "standard_error": variable(
                "eigenvalue", smooth.std(0, ddof=1) / np.sqrt(probes), "its standard error"
            ),
        },
        coords={"eigenvalue": variable("eigenvalue", grid, "eigenvalue", units)},
        attrs=attributes(
            "spectral density",
            {"n_data": at.n_data, "n_params": at.n_params},
            of=of,
            width=width,
            probes=probes,
            steps=steps,
            seed=seed,
        ),
    )
