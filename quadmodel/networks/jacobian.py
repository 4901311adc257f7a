"""The Jacobian of a network as its products with vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from quadmodel._util.checks import FloatArray
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._torch import torch


def jacobian(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Any = "mse",
    parameters: Any = None,
    chunk_size: int | None = None,
) -> LinearOperator:
    r"""Return the Jacobian of a network's outputs as a linear operator, never formed.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed only by a loss whose curvature depends on them.
    loss : {"mse", "cross_entropy"} or callable, optional
        "mse" leaves the rows as they are. With another loss, whose Hessian with respect to the
        outputs of point i is :math:`H_i = R_i^\top R_i`, they are those of :math:`R_i J_i`. A
        function takes the output and the target of one point.
    parameters : str or callable, optional
        Which parameters count: a pattern of their names, as of file names, or a function from name
        to bool.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator
        Of shape (D C, P), rows in the order of points, then outputs; in double precision, computed
        in the network's. `matvec` takes forward mode, `rmatvec` reverse mode.

    Raises
    ------
    InputError
        If the network is in training mode with dropout or batch normalisation, or the data don't
        fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Both products are exact: nothing is estimated. Their cost is that of about two and three passes
    through the network.

    References
    ----------
    .. [1] A. Griewank, A. Walther, "Evaluating derivatives" (2008), chapter 3: forward and reverse
       mode. B. Pearlmutter, Neural Computation 6 (1994) 147.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(3, 2)
    >>> qm.networks.jacobian(net, torch.ones(5, 3)).shape
    (10, 8)
    """
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )

    def matmat(columns: FloatArray) -> FloatArray:
        with torch.no_grad():
            images = at.push_forward(at.unflatten(np.ascontiguousarray(columns.T)))
        return np.asarray(images.flatten(1).to(torch.float64).numpy().T)

    def rmatmat(columns: FloatArray) -> FloatArray:
        with torch.no_grad():
            return at.flatten(at.pull_back(at.rows_of(np.ascontiguousarray(columns.T)))).T

    return LinearOperator(
        (at.n_rows, at.n_params),
        matvec=lambda v: matmat(np.reshape(v, (-1, 1)))[:, 0],
        rmatvec=lambda v: rmatmat(np.reshape(v, (-1, 1)))[:, 0],
        matmat=matmat,
        rmatmat=rmatmat,
        dtype=np.dtype(np.float64),
    )
