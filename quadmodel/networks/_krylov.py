"""Krylov spaces of a symmetric operator from many vectors at once, and its top eigenvectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray

# Products with several vectors: maps (k, n) to (k, n).
Product = Callable[[FloatArray], FloatArray]
# Below this fraction of the operator's scale a Krylov space is exhausted, in single precision too.
_EXHAUSTED = 1e-6
# A Ritz vector counts as an eigenvector from this residual on, relative to the top eigenvalue.
_CONVERGED = 1e-3


class Ritz(NamedTuple):
    """Ritz pairs of Krylov spaces, one space per first vector.

    Attributes
    ----------
    values : ndarray, shape (k, m)
        Ritz values.
    weights : ndarray, shape (k, m)
        Components of the first vector along the Ritz vectors.
    vectors : ndarray, shape (k, m, n)
        Ritz vectors of norm 1.
    residuals : ndarray, shape (k, m)
        Norms of the residuals of the Ritz pairs.
    """

    values: FloatArray
    weights: FloatArray
    vectors: FloatArray
    residuals: FloatArray


def ritz_pairs(
    product: Product,
    starts: FloatArray,
    steps: int,
    *,
    without: FloatArray | None = None,
    settled: Callable[[FloatArray, FloatArray], FloatArray] | None = None,
    tolerance: float = 1e-3,
    check_every: int = 2,
) -> Ritz:
    r"""Return the Ritz pairs of the Krylov spaces of several first vectors.

    Parameters
    ----------
    product : callable
        Products of the symmetric operator with several vectors.
    starts : ndarray, shape (k, n)
        First vectors.
    steps : int
        Most dimensions of a space.
    without : ndarray, shape (r, n), optional
        Orthonormal vectors that are projected out.
    settled : callable, optional
        Maps Ritz values and weights, (k, m), to numbers (k,): spaces grow until none of these has
        changed by more than `tolerance` of itself in `check_every` steps.
    tolerance : float, optional
        See `settled`.
    check_every : int, optional
        Steps between two looks.

    Returns
    -------
    Ritz
        Of exhausted spaces, further values, weights and vectors are zero.

    References
    ----------
    .. [1] G. Golub, G. Meurant, "Matrices, moments and quadrature" (2010), chapters 4 and 7; full
       reorthogonalisation.
    """
    count, n = starts.shape
    steps = min(steps, n - (0 if without is None else len(without)))
    basis = np.zeros((count, max(steps, 1), n))
    tridiagonal = np.zeros((count, max(steps, 1), max(steps, 1)))
    vector = _projected(starts, without)
    lengths = np.linalg.norm(vector, axis=1)
    # What is left of a vector within the projected space is rounding.
    lengths[lengths < _EXHAUSTED * np.linalg.norm(starts, axis=1)] = 0.0
    first = lengths.copy()
    vector = _scaled(vector, lengths)
    scale = np.zeros(count)
    before = None
    k = 0
    for k in range(max(steps, 1)):
        basis[:, k] = vector
        image = _projected(product(vector), without)
        tridiagonal[:, k, k] = np.einsum("kn,kn->k", vector, image)
        found = basis[:, : k + 1]
        for _ in range(2):
            overlap = np.einsum("kmn,kn->km", found, image)
            image = image - np.einsum("km,kmn->kn", overlap, found)
        lengths = np.linalg.norm(image, axis=1)
        scale = np.maximum(scale, np.maximum(np.abs(tridiagonal[:, k, k]), lengths))
        lengths[lengths <= _EXHAUSTED * scale] = 0.0
        if not lengths.any():
            break
        if settled is not None and (k + 1) % check_every == 0:
            values, columns = np.linalg.eigh(tridiagonal[:, : k + 1, : k + 1])
            now = settled(values, first[:, None] * columns[:, 0, :])
            if before is not None and (np.abs(now - before) <= tolerance * np.abs(now)).all():
                break
            before = now
        if k + 1 < steps:
            tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = lengths
            vector = _scaled(image, lengths)
    values, columns = np.linalg.eigh(tridiagonal[:, : k + 1, : k + 1])
    vectors = np.einsum("kma,kmn->kan", columns, basis[:, : k + 1])
    residuals = lengths[:, None] * np.abs(columns[:, -1, :])
    return Ritz(values, first[:, None] * columns[:, 0, :], vectors, residuals)


def top_eigenvectors(
    product: Product, n: int, count: int, rng: np.random.Generator, steps: int = 40
) -> tuple[FloatArray, FloatArray, float]:
    """Return converged top eigenvalues (r,), eigenvectors (r, n), and the largest Ritz value."""
    ritz = ritz_pairs(product, rng.standard_normal((1, n)), steps, settled=_top, tolerance=1e-5)
    values, vectors, residuals = ritz.values[0], ritz.vectors[0], ritz.residuals[0]
    largest = float(values[-1])
    order = np.argsort(values)[::-1][:count]
    kept = [a for a in order if values[a] > 0 and residuals[a] <= _CONVERGED * largest]
    kept = [a for a in kept if np.linalg.norm(vectors[a]) > 0.5]  # not beyond an exhausted space
    return values[kept], vectors[kept], largest


def _top(values: FloatArray, weights: FloatArray) -> FloatArray:
    return np.asarray(values[:, -1])


def _projected(vectors: FloatArray, without: FloatArray | None) -> FloatArray:
    if without is None or not len(without):
        return vectors
    return vectors - (vectors @ without.T) @ without


def _scaled(vectors: FloatArray, lengths: FloatArray) -> FloatArray:
    return np.where(lengths[:, None] > 0, vectors / np.where(lengths > 0, lengths, 1)[:, None], 0.0)
