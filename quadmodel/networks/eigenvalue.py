"""The largest eigenvalue of a network's curvature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from quadmodel._util.checks import InputError, as_choice, as_integer, as_number
from quadmodel._util.lanczos import largest_eigenpair
from quadmodel.networks._linearisation import Linearisation, need_targets

CURVATURES = ("gauss_newton", "hessian")


class Eigenvalue(NamedTuple):
    """An eigenvalue, and a bound on its distance from the operator's next one.

    Attributes
    ----------
    value : float
        Rayleigh quotient of the Lanczos vector.
    standard_error : float
        Norm of its residual: an eigenvalue lies within it. Not a statistical error.
    """

    value: float
    standard_error: float


def largest_eigenvalue(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    of: str = "gauss_newton",
    loss: Any = "mse",
    parameters: Any = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Eigenvalue:
    r"""Return the largest eigenvalue of the Gauss-Newton matrix or the Hessian: the sharpness.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed by the Hessian, and by a loss whose curvature depends on them.
    of : {"gauss_newton", "hessian"}, optional
        Whose eigenvalue. That of the Gauss-Newton matrix is the neural tangent kernel's, too.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    tolerance : float, optional
        Bound on the error of the eigenvalue, relative to the largest entry of the tridiagonal
        matrix, at which Lanczos stops.
    seed : int, optional
        Of the first vector.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    Eigenvalue
        `value`, and in `standard_error` the norm of the residual: an eigenvalue lies within it.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Lanczos with full reorthogonalisation. For the Gauss-Newton matrix it works on vectors of D C
    numbers, for the Hessian on vectors of P, of which it keeps one per step.

    References
    ----------
    .. [1] B. Parlett, "The symmetric eigenvalue problem" (1998), chapter 13; J. Cohen et al.,
       arXiv:2103.00065, for what sharpness does in training.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> found = qm.networks.largest_eigenvalue(net, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> round(found.value, 4)
    2.0
    """
    as_choice("of", of, CURVATURES)
    tolerance = as_number("tolerance", tolerance, above=0.0, below=1.0)
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    if of == "hessian":
        need_targets(targets)
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    product = at.ntk_product if of == "gauss_newton" else at.hessian_product
    n = at.n_rows if of == "gauss_newton" else at.n_params
    pair = largest_eigenpair(
        lambda v: product(v[None])[0],
        rng.standard_normal(n),
        residual=tolerance,
        error=tolerance,
        check_every=2,
    )
    if not np.isfinite(pair.value):
        raise InputError("net must have finite derivatives at inputs, got some that aren't")
    residual = product(pair.vector[None])[0] - pair.value * pair.vector
    return Eigenvalue(pair.value, float(np.linalg.norm(residual)))
