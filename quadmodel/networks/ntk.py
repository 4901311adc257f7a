"""The neural tangent kernel of a network, and the norms of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, check_memory
from quadmodel.networks import _linearisation
from quadmodel.networks._layers import kernel_of_layers, layers_of, squares_of_layers
from quadmodel.networks._linearisation import Linearisation, Tensors
from quadmodel.networks._torch import torch

# Fewer data points at once than these are slow: parameters are cut then.
_FEWEST = 8


def ntk(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Any = "mse",
    parameters: Any = None,
    chunk_size: int | None = None,
) -> FloatArray:
    r"""Return the neural tangent kernel of a network, for all pairs of points and outputs.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed only by a loss whose curvature depends on them.
    loss : {"mse", "cross_entropy"} or callable, optional
        As for :func:`jacobian`: rows are weighted by a root of the loss's Hessian.
    parameters : str or callable, optional
        Which parameters count, by their names.
    chunk_size : int, optional
        Data points whose rows are held at once; by default as many as take half a GiB.

    Returns
    -------
    ndarray, shape (D C, D C)
        :math:`\Theta = JJ^\top/D` in units of 1 / learning rate and double precision, computed in
        the network's. Rows in the order of points, then outputs.

    Raises
    ------
    InputError
        If the network is in training mode with dropout or batch normalisation, or the data don't
        fit.
    MemoryError
        If the kernel itself does not fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Rows of the Jacobian are computed for chunks of data points and groups of parameters (whole
    tensors), multiplied and thrown away: neither :math:`DP` nor :math:`P^2` numbers are held, but
    two chunks of rows, of which chunks other than the first are computed again for every chunk
    before them.

    Where all parameters that count are those of linear layers, each used once per point, no rows
    are computed: a layer with inputs a and output slopes d has the kernel
    :math:`(a_i\cdot a_j)(d_i\cdot d_j)` (plus :math:`d_i\cdot d_j` for a bias), which takes
    :math:`D^2` times its widths in place of their product.

    References
    ----------
    .. [1] A. Jacot, F. Gabriel, C. Hongler, arXiv:1806.07572; R. Novak, J. Sohl-Dickstein,
       S. Schoenholz, arXiv:2206.08720, for ways to compute it.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(3, 1, bias=False)
    >>> qm.networks.ntk(net, torch.eye(3)).round(3)
    array([[0.333, 0.   , 0.   ],
           [0.   , 0.333, 0.   ],
           [0.   , 0.   , 0.333]])
    """
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    return kernel_of(at, chunk_size)


def kernel_of(at: Linearisation, chunk_size: int | None = None) -> FloatArray:
    """Return the neural tangent kernel."""
    check_memory("the neural tangent kernel", 8.0 * at.n_rows**2)
    kernel = np.zeros((at.n_rows, at.n_rows))
    layers = layers_of(at)
    if layers is not None:
        kernel_of_layers(layers, kernel)
        kernel /= at.n_data
        # Its blocks are rounded on their own.
        return 0.5 * (kernel + kernel.T)
    for names in _groups(at):
        chunks = _chunks(at, names, chunk_size)
        for place, first in enumerate(chunks):
            rows = _rows(at, names, first)
            for second in chunks[place:]:
                others = rows if second == first else _rows(at, names, second)
                product = sum(rows[name] @ others[name].T for name in names)
                block = product.to(torch.float64).numpy() / at.n_data
                here, there = _of_points(at, first), _of_points(at, second)
                kernel[here, there] += block
                if second != first:
                    kernel[there, here] += block.T
    return kernel


def row_norms(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Any = "mse",
    parameters: Any = None,
    chunk_size: int | None = None,
) -> FloatArray:
    r"""Return the norm of every data point's part of the Jacobian.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed only by a loss whose curvature depends on them.
    loss : {"mse", "cross_entropy"} or callable, optional
        As for :func:`jacobian`: rows are weighted by a root of the loss's Hessian.
    parameters : str or callable, optional
        Which parameters count, by their names.
    chunk_size : int, optional
        Data points whose rows are held at once; by default as many as take half a GiB.

    Returns
    -------
    ndarray, shape (D,)
        :math:`|J_i|_F`, in units of 1 / sqrt(learning rate).

    Raises
    ------
    InputError
        If the network is in training mode with dropout or batch normalisation, or the data don't
        fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Where they differ, exact K lies above the other norms: the noise of the points with large rows
    feeds itself. Their spread is the standard deviation of their logarithms. Their mean square is
    the trace of the neural tangent kernel, and of the Gauss-Newton matrix.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261; per-sample gradients by ``torch.func.vmap``.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> qm.networks.row_norms(net, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    array([5., 1.])
    """
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    return norms_of(at, chunk_size)


def norms_of(at: Linearisation, chunk_size: int | None = None) -> FloatArray:
    """Return the norms of the data points' rows."""
    layers = layers_of(at)
    if layers is not None:
        return np.asarray(np.sqrt(squares_of_layers(layers).numpy()))
    squares = np.zeros(at.n_data)
    for names in _groups(at):
        for part in _chunks(at, names, chunk_size):
            rows = _rows(at, names, part)
            per_row = sum((rows[name].to(torch.float64) ** 2).sum(1) for name in names)
            squares[part] += per_row.reshape(-1, at.n_outputs).sum(1).numpy()
    return np.asarray(np.sqrt(squares))


def _rows(at: Linearisation, names: list[str], part: slice) -> Tensors:
    """Return the Jacobian's rows of some points, per tensor of parameters: (points C, size)."""
    chosen = {name: at.params[name] for name in names}
    fixed = {**at.fixed, **{k: v for k, v in at.params.items() if k not in chosen}}

    def outputs(params: Tensors, point: Any) -> Any:
        found = torch.func.functional_call(at.net, {**fixed, **params}, (point[None],))
        return found.reshape(-1)

    with torch.no_grad():
        per_point = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))(
            chosen, at.inputs[part]
        )
        factor = at.factor(part)
        rows = {}
        for name, each in per_point.items():
            # The factor acts on the outputs, which it takes last.
            turned = each.flatten(2).permute(2, 0, 1)
            rows[name] = factor.times(turned).permute(1, 2, 0).flatten(0, 1)
    return rows


def _of_points(at: Linearisation, part: slice) -> slice:
    return slice(part.start * at.n_outputs, part.stop * at.n_outputs)


def _groups(at: Linearisation) -> Iterator[list[str]]:
    """Yield groups of parameters of which the rows of a few data points fit into memory."""
    most = _linearisation.MEMORY / (_FEWEST * at.n_outputs * at.dtype.itemsize)
    names: list[str] = []
    size = 0
    for name, value in at.params.items():
        if names and size + value.numel() > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += value.numel()
    yield names


def _chunks(at: Linearisation, names: list[str], chunk_size: int | None) -> list[slice]:
    """Return chunks of data points; two chunks of rows are held."""
    size = sum(at.params[name].numel() for name in names) * at.n_outputs * at.dtype.itemsize
    points = max(1, _linearisation.MEMORY // (2 * size)) if chunk_size is None else chunk_size
    return [slice(k, min(k + points, at.n_data)) for k in range(0, at.n_data, points)]
