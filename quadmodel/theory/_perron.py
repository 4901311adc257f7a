"""Largest eigenvalue of the noise kernel matrix."""

from __future__ import annotations

from functools import partial

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.lanczos import Eigenpair, largest_eigenpair

# Below this size the matrix is built whole.
_SMALL = 24
# From this size on the first iterations are in single precision.
_LARGE = 500
_TOLERANCE = 1e-12


def noise_kernel_product(
    vectors: FloatArray, response: FloatArray, per_point: FloatArray
) -> FloatArray:
    """Return the noise kernel matrix, without its factor gamma, times squared residuals."""
    per_mode = vectors.T @ (np.ravel(per_point)[:, None] * vectors)
    per_mode *= response
    result: FloatArray = np.einsum("ia,ia->i", vectors @ per_mode, vectors)
    return result


def rayleigh(vectors: FloatArray, response: FloatArray, vector: FloatArray) -> float:
    """Return the Rayleigh quotient of the noise kernel matrix at a vector of norm 1.

    One matrix product; next to an eigenvector its error is the square of the vector's.
    """
    per_mode = vectors.T @ (vector[:, None] * vectors)
    return float(np.vdot(per_mode * per_mode, response))


def perron(
    vectors: FloatArray,
    response: FloatArray,
    start: FloatArray | None = None,
    *,
    residual: float | None = None,
) -> Eigenpair:
    r"""Return the largest eigenvalue of the noise kernel matrix, without its factor gamma.

    Parameters
    ----------
    vectors : ndarray, shape (n_data, modes)
        Eigenvectors V of the NTK, in columns.
    response : ndarray, shape (modes, modes)
        Nonnegative response S of the pairs of modes.
    start : ndarray, shape (n_data,), optional
        A nonnegative guess of the eigenvector; uniform by default.
    residual : float, optional
        Norm of the vector's residual, relative to the eigenvalue, at which it is good enough. By
        default the vector is as good as the eigenvalue needs it to be.

    Returns
    -------
    Eigenpair
        The eigenvalue to a relative error of 1e-12, and its vector, which is nonnegative.

    Notes
    -----
    .. math:: \textstyle\sum_{\alpha\beta} V_{i\alpha}V_{j\alpha}S_{\alpha\beta}V_{i\beta}V_{j\beta}

    Lanczos; from the uniform vector its first value is the finite-size K. One product costs two
    matrix products; no :math:`D^2\times D^2` matrix is formed. Large problems are iterated in
    single precision first: that leaves an error of the vector of about 1e-5, whose square is left
    in the eigenvalue, and double precision does the rest.
    """
    n_data = len(vectors)
    if n_data <= _SMALL:
        product = partial(noise_kernel_product, vectors, response)
        matrix = np.column_stack([product(unit) for unit in np.eye(n_data)])
        values, columns = np.linalg.eigh(0.5 * (matrix + matrix.T))
        return Eigenpair(float(values[-1]), np.abs(columns[:, -1]))
    guess = np.ones(n_data) if start is None else np.maximum(start, 0.0)
    # A Krylov space never leaves the data points that share modes with its first vector.
    guess = guess + 1e-8 * guess.max()
    scale = float(response.max())
    if not 0 < scale < np.inf:
        return Eigenpair(scale, guess / np.linalg.norm(guess))
    scaled = response / scale
    if n_data >= _LARGE:
        rough = partial(noise_kernel_product, vectors.astype(np.float32), scaled.astype(np.float32))
        _, guess = largest_eigenpair(
            lambda d: rough(d.astype(np.float32)).astype(np.float64),
            guess,
            error=1e-9,
            residual=1e-5,
            check_every=1,
        )
        guess = np.abs(guess)
    root, vector = largest_eigenpair(
        partial(noise_kernel_product, vectors, scaled),
        guess,
        error=_TOLERANCE if residual is None else 0.0,
        residual=residual or 0.0,
        check_every=1,
    )
    return Eigenpair(root * scale, np.abs(vector))
