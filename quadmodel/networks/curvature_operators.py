"""The Gauss-Newton matrix and the Hessian of a network's loss as linear operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from quadmodel._util.checks import FloatArray
from quadmodel.networks._linearisation import Linearisation, need_targets


def gauss_newton(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Any = "mse",
    parameters: Any = None,
    chunk_size: int | None = None,
) -> LinearOperator:
    r"""Return the Gauss-Newton matrix of a network's mean loss, never formed.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed only by a loss whose curvature depends on them.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point: half the squared distance, the cross-entropy of scores, or a function
        of one output and one target.
    parameters : str or callable, optional
        Which parameters count, by their names.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Symmetric positive semidefinite, of shape (P, P), in units of 1 / learning rate.

    Raises
    ------
    InputError
        If the network is in training mode with dropout or batch normalisation, or the data don't
        fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    :math:`\frac1D\sum_i J_i^\top H_i J_i`; its eigenvalues other than 0 are those of the neural
    tangent kernel :func:`ntk` of the same loss. A product is exact.

    References
    ----------
    .. [1] N. Schraudolph, Neural Computation 14 (2002) 1723.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> qm.networks.gauss_newton(net, torch.eye(2)) @ [1.0, 0.0]
    array([0.5, 0. ])
    """
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    return symmetric_operator(at, at.gauss_newton_product)


def hessian(
    net: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Any = "mse",
    parameters: Any = None,
    chunk_size: int | None = None,
) -> LinearOperator:
    r"""Return the Hessian of a network's mean loss, never formed.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Symmetric, of shape (P, P), in units of 1 / learning rate.

    Raises
    ------
    InputError
        If the network is in training mode with dropout or batch normalisation, or the data don't
        fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    A product is the derivative of the gradient in the vector's direction, forward over reverse
    mode, and exact.

    References
    ----------
    .. [1] B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994)
       147.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> qm.networks.hessian(net, torch.eye(2), torch.zeros(2, 1)) @ [1.0, 0.0]
    array([0.5, 0. ])
    """
    need_targets(targets)
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    return symmetric_operator(at, at.hessian_product)


def symmetric_operator(
    at: Linearisation, product: Callable[[FloatArray], FloatArray]
) -> LinearOperator:
    """Return products with vectors of shape (k, P) as an operator on columns."""

    def matmat(columns: FloatArray) -> FloatArray:
        return product(np.ascontiguousarray(columns.T, dtype=np.float64)).T

    def matvec(vector: FloatArray) -> FloatArray:
        return matmat(np.reshape(vector, (-1, 1)))[:, 0]

    return LinearOperator(
        (at.n_params, at.n_params),
        matvec=matvec,
        rmatvec=matvec,
        matmat=matmat,
        rmatmat=matmat,
        dtype=np.dtype(np.float64),
    )
