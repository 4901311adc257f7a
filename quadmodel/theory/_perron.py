"""Largest eigenvalue of the noise kernel matrix, and where it takes a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray

# Below this size the matrix is built whole.
_SMALL = 24
# From this size on the first iterations are in single precision.
_LARGE = 500
_TOLERANCE = 1e-12
# Lanczos vectors, after which it starts again from the best.
_ROOM = 40


class Perron(NamedTuple):
    """Largest eigenvalue and its vector, which is nonnegative, of norm 1."""

    root: float
    vector: FloatArray


def noise_kernel_product(
    vectors: FloatArray, response: FloatArray, energies: FloatArray
) -> FloatArray:
    """Return the noise kernel matrix, without its factor gamma, times a vector of energies."""
    per_mode = vectors.T @ (np.ravel(energies)[:, None] * vectors)
    per_mode *= response
    result: FloatArray = np.einsum("ia,ia->i", vectors @ per_mode, vectors)
    return result


def rayleigh(vectors: FloatArray, response: FloatArray, energies: FloatArray) -> float:
    """Return the Rayleigh quotient of the noise kernel matrix at a vector of norm 1.

    One matrix product; next to an eigenvector its error is the square of the vector's.
    """
    per_mode = vectors.T @ (energies[:, None] * vectors)
    return float(np.vdot(per_mode * per_mode, response))


def perron(
    vectors: FloatArray,
    response: FloatArray,
    start: FloatArray | None = None,
    *,
    residual: float | None = None,
) -> Perron:
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
        How far the vector may be from being one, relative to the eigenvalue. By default the vector
        is as good as the eigenvalue needs it to be.

    Returns
    -------
    Perron
        The eigenvalue to a relative error of 1e-12.

    Notes
    -----
    .. math:: \textstyle\sum_{\alpha\beta} V_{i\alpha}V_{j\alpha}S_{\alpha\beta}V_{i\beta}V_{j\beta}

    Lanczos; from the uniform vector its first value is the finite-size K. One product costs two
    matrix products; no :math:`D^2\times D^2` matrix is formed. Large problems are iterated in
    single precision first: that leaves an error of the vector of about 1e-5, whose square is left
    in the eigenvalue, and double precision does the rest.

    References
    ----------
    .. [1] B. Parlett, "The symmetric eigenvalue problem" (1998), section 11.7, for the bound by the
       squared residual over the gap, and chapter 13.
    """
    n_data = len(vectors)
    if n_data <= _SMALL:
        product = partial(noise_kernel_product, vectors, response)
        matrix = np.column_stack([product(unit) for unit in np.eye(n_data)])
        values, columns = np.linalg.eigh(0.5 * (matrix + matrix.T))
        return Perron(float(values[-1]), np.abs(columns[:, -1]))
    guess = np.ones(n_data) if start is None else np.maximum(start, 0.0)
    # Else points that share no mode with the guess may never be seen.
    guess = guess + 1e-8 * guess.max()
    scale = float(response.max())
    if not 0 < scale < np.inf:
        return Perron(scale, guess / np.linalg.norm(guess))
    scaled = response / scale
    if n_data >= _LARGE:
        single = partial(
            noise_kernel_product, vectors.astype(np.float32), scaled.astype(np.float32)
        )
        guess = _lanczos(lambda d: single(d.astype(np.float32)), guess, 1e-9, 1e-5).vector
    product = partial(noise_kernel_product, vectors, scaled)
    goal = (_TOLERANCE, 0.0) if residual is None else (0.0, residual)
    found = _lanczos(product, guess, *goal)
    return Perron(found.root * scale, found.vector)


def _lanczos(
    product: Callable[[FloatArray], FloatArray], start: FloatArray, tolerance: float, coarse: float
) -> Perron:
    """Iterate until the value is good to `tolerance`, or its residual is below `coarse` of it."""
    vector = start
    while True:
        basis = np.zeros((_ROOM, len(start)))
        basis[0] = vector / np.linalg.norm(vector)
        projected = np.zeros((_ROOM, _ROOM))
        for k in range(min(_ROOM, len(start))):
            moved = np.asarray(product(basis[k]), dtype=np.float64)
            # Against all before, twice: orthogonal to rounding.
            along = basis[: k + 1] @ moved
            moved = moved - along @ basis[: k + 1]
            moved = moved - (basis[: k + 1] @ moved) @ basis[: k + 1]
            projected[k, k], rest = along[k], float(np.linalg.norm(moved))
            values, columns = np.linalg.eigh(projected[: k + 1, : k + 1])
            root, residual = float(values[-1]), rest * abs(float(columns[-1, -1]))
            gap = root - float(values[-2]) if k else 0.0
            error = min(residual, residual**2 / gap if gap > 0 else residual)
            vector = np.abs(columns[:, -1] @ basis[: k + 1])
            if error <= tolerance * root or residual <= coarse * root:
                return Perron(root, vector)
            if k + 1 < _ROOM:
                basis[k + 1] = moved / rest
                projected[k, k + 1] = projected[k + 1, k] = rest


def root_in_log(
    value_and_slope: Callable[[float], tuple[float, float]],
    guess: float,
    edge: float,
    level: float,
) -> float:
    """Return where a growing function reaches a level, or `edge` if it stays below up to there.

    Newton's method in the logarithms, which the function returns the slope in, inside a bracket
    that every evaluation narrows.
    """
    low, high, x = 0.0, edge, min(guess, 0.5 * edge)
    last = edge * (1 - 1e-14)
    while True:
        value, slope = value_and_slope(x)
        excess = math.log(value / level) if 0 < value < math.inf else math.inf
        if abs(excess) <= 1e-13:
            return x
        low, high = (low, x) if excess > 0 else (x, high)
        if x == last and excess < 0:
            return edge
        useful = 0 < slope < math.inf and excess < math.inf
        step = excess / slope if useful else math.inf
        moved = x * math.exp(-step) if step > -700 else math.inf
        if abs(moved - x) <= 1e-15 * x:
            return x
        if not low < moved < high:
            # At the edge: does it jump over the level there?
            moved = last if high == edge and moved >= edge else (low + high) / 2
        if moved in (low, high):
            return x
        x = moved
