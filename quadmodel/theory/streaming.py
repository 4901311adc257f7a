"""ntk_from_jacobian(): the NTK of a Jacobian that is read in pieces, or that is only products."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import FloatArray, InputError, check_memory, check_symmetric
from quadmodel._util.files import map_array

# Bytes of a block of columns in double precision.
_BLOCK_BYTES = 2.0**28
# Columns of a product with an operator.
_AT_ONCE = 64
# How far products with an operator may be from symmetric: they may be in single precision.
TOLERANCE = 2e-4


def ntk_from_jacobian(jacobian: Any) -> FloatArray:
    r"""Return the neural tangent kernel of a Jacobian, which is read in pieces.

    Parameters
    ----------
    jacobian : array_like, path or LinearOperator, shape (n_data, n_params)
        Jacobian of the residuals by the parameters: an array, a memory map, an array of zarr (or
        whatever else has a shape and gives columns by ``jacobian[:, first:last]``), the path of a
        ``.npy`` file, or a ``scipy.sparse.linalg.LinearOperator`` with products by it and by its
        transpose, which may be computed anywhere.

    Returns
    -------
    ndarray, shape (n_data, n_data)
        :math:`\Theta = JJ^\top/D` in units of 1 / learning rate, in double precision.

    Raises
    ------
    InputError
        If the Jacobian has not two axes, or entries that are not finite real numbers, or if its
        file can't be mapped.
    MemoryError
        If the NTK and a block of columns don't fit in memory; before anything is read.

    Notes
    -----
    The sum :math:`\sum_b J_b J_b^\top` over blocks of columns, of 256 MiB each in double precision:
    D² products per column and :math:`16 D^2` bytes besides a block, whatever the number of
    parameters. From an operator it takes D products of either kind. The result is the same bits for
    any number of threads.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2, for the NTK.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> jacobian = np.random.default_rng(0).standard_normal((4, 1000))
    >>> ntk = qm.ntk_from_jacobian(jacobian)
    >>> bool(np.allclose(ntk, jacobian @ jacobian.T / 4))
    True
    """
    if isinstance(jacobian, LinearOperator):
        return _by_products(jacobian)
    if isinstance(jacobian, str | os.PathLike):
        jacobian = map_array(jacobian, "jacobian")
    source = jacobian if hasattr(jacobian, "shape") else np.asarray(jacobian)
    if len(source.shape) != 2 or 0 in source.shape:
        raise InputError(f"jacobian must have two axes, got shape {tuple(source.shape)}")
    if np.dtype(source.dtype).kind not in "fiu":
        raise InputError(f"jacobian must hold real numbers, got {source.dtype}")
    n_data = int(source.shape[0])
    check_memory("the NTK", 16.0 * n_data**2 + 2 * _BLOCK_BYTES)
    found = np.zeros((n_data, n_data), order="F")
    with one_blas_thread():
        for block in _blocks(source):
            found = blas.dsyrk(1.0, block.T, beta=1.0, c=found, trans=1, lower=1, overwrite_c=1)
    return _mirrored(found) / n_data


def _blocks(source: Any) -> Iterator[FloatArray]:
    """Yield blocks of columns in double precision; whole chunks of a source that has them."""
    n_data, n_params = source.shape
    width = max(1, int(_BLOCK_BYTES / (8 * n_data)))
    chunks = getattr(source, "chunks", None)
    if chunks and isinstance(chunks[-1], int):
        width = max(width // chunks[-1], 1) * chunks[-1]
    for first in range(0, n_params, width):
        last = min(first + width, n_params)
        block = np.ascontiguousarray(source[:, first:last], dtype=np.float64)
        if not np.isfinite(block).all():
            raise InputError(
                f"jacobian must be finite, got others in columns {first} to {last - 1}"
            )
        yield block


def _mirrored(lower: FloatArray) -> FloatArray:
    """Copy the lower triangle of a matrix to the upper one, in place."""
    for k in range(len(lower)):
        lower[k, k + 1 :] = lower[k + 1 :, k]
    return lower.T  # in C's order


def _by_products(jacobian: Any) -> FloatArray:
    def columns(units: FloatArray) -> Any:
        return jacobian.matmat(jacobian.rmatmat(units))

    ntk = matrix_of("jacobian", columns, jacobian.shape[0])
    ntk /= jacobian.shape[0]
    return ntk


def matrix_of(name: str, product: Any, size: int) -> FloatArray:
    """Return the symmetric matrix that an operator multiplies by, column by column."""
    check_memory("the NTK", 24.0 * size**2)
    found = np.empty((size, size))
    for first in range(0, size, _AT_ONCE):
        units: NDArray[np.float64] = np.zeros((size, min(_AT_ONCE, size - first)))
        units[first + np.arange(units.shape[1]), np.arange(units.shape[1])] = 1.0
        found[:, first : first + units.shape[1]] = np.asarray(product(units), np.float64)
    if not np.isfinite(found).all():
        raise InputError(f"{name} must be finite, got products that are not")
    check_symmetric(name, found, TOLERANCE)
    symmetric: FloatArray = 0.5 * (found + found.T)
    return symmetric
