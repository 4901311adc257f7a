r"""Products with the noise kernel matrix, without its factor gamma, from modes and responses.

The matrix is :math:`G_{ij} = \sum_{\alpha\beta} V_{i\alpha}V_{j\alpha}S_{\alpha\beta}
V_{i\beta}V_{j\beta}`; `vectors` are V, `response` is S. Large ones use that both matrices on the
way are symmetric, which halves the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas

from quadmodel._util.checks import FloatArray

# From this size on symmetry pays.
_SYMMETRIC = 300


def noise_kernel_product(
    vectors: FloatArray, response: FloatArray, per_point: FloatArray
) -> FloatArray:
    """Return the noise kernel matrix times squared residuals, in the precision of `vectors`."""
    d = np.ravel(per_point)
    result: FloatArray
    if len(vectors) < _SYMMETRIC:
        per_mode = vectors.T @ (d[:, None] * vectors)
        per_mode *= response
        result = np.einsum("ia,ia->i", vectors @ per_mode, vectors)
        return result
    half = _lower_half(vectors, d)
    half *= response.T
    # diag(V M V^T) = 2 diag(V L V^T), L being the lower triangle with half of the diagonal.
    half[np.diag_indices(len(half))] *= 0.5
    (multiply,) = blas.get_blas_funcs(("trmm",), (half,))
    products = multiply(2.0, half, vectors.T, lower=1, trans_a=1)
    result = np.einsum("ai,ai->i", products, vectors.T)
    return result


def _lower_half(vectors: FloatArray, per_point: FloatArray) -> Any:
    """Return V^T diag(d) V, its lower triangle only and zeros above, in Fortran's order."""
    (update,) = blas.get_blas_funcs(("syrk",), (vectors,))
    weight = np.sqrt(np.abs(per_point)).astype(vectors.dtype)
    found: Any = None
    keywords: dict[str, Any] = {}
    for sign, chosen in ((1.0, per_point > 0), (-1.0, per_point < 0)):
        if chosen.any():
            rows = weight[chosen, None] * vectors[chosen]
            found = update(sign, rows.T, lower=1, **keywords)
            keywords = {"beta": 1.0, "c": found, "overwrite_c": 1}
    return np.zeros_like(vectors, order="F") if found is None else found


def noise_kernel_matrix(vectors: FloatArray, response: FloatArray) -> FloatArray:
    """Return the noise kernel matrix: n_data times the work of a product."""
    units = np.eye(len(vectors))
    matrix = np.column_stack([noise_kernel_product(vectors, response, unit) for unit in units])
    return np.asarray(0.5 * (matrix + matrix.T))


def rayleigh(vectors: FloatArray, response: FloatArray, vector: FloatArray) -> float:
    """Return the Rayleigh quotient of the noise kernel matrix at a vector of norm 1.

    One matrix product; next to an eigenvector its error is the square of the vector's.
    """
    half = _lower_half(vectors, vector)
    # Row by row, in double precision: no array of the matrix's size in between.
    total = 0.0
    for a, (own, weight) in enumerate(zip(half.T, response, strict=True)):
        squares = own[a:].astype(np.float64) ** 2
        total += 2.0 * float(squares @ weight[a:]) - float(squares[0]) * float(weight[a])
    return total
