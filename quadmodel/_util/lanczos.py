"""Largest eigenvalue of a symmetric matrix given by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh_tridiagonal

from quadmodel._util.checks import FloatArray

# Norm of the residual at which an eigenvalue counts as found, relative to the largest one.
_TOLERANCE = 1e-9
# Below this a Krylov space is invariant, and what it holds is exact.
_EXHAUSTED = 1e-13
# Ritz values are looked at after every so many products.
_CHECK = 5


def largest_eigenvalue(product: Callable[[FloatArray], FloatArray], start: FloatArray) -> float:
    r"""Return the (algebraically) largest eigenvalue.

    Parameters
    ----------
    product : callable
        Maps a vector of shape (n,) to the symmetric matrix times it.
    start : ndarray, shape (n,)
        First Krylov vector. It must have a part along the top eigenvector.

    Returns
    -------
    float
        Eigenvalue; NaN where products are not finite.

    Notes
    -----
    Lanczos with full reorthogonalisation, and without restarts: at most n products, and no random
    vector where a Krylov space is exhausted (as ARPACK draws them, from a state that the threads of
    a process share). The result is a pure function of the arguments.

    References
    ----------
    .. [1] B. Parlett, "The symmetric eigenvalue problem" (1998), chapter 13.
    """
    n = len(start)
    basis = np.empty((min(n, 32), n))
    diagonal: list[float] = []
    beside: list[float] = []
    vector = start / np.linalg.norm(start)
    for k in range(n):
        if k == len(basis):
            basis = np.concatenate([basis, np.empty((min(n - k, k), n))])
        basis[k] = vector
        found = basis[: k + 1]
        image = product(vector)
        if not np.isfinite(image).all():
            return float("nan")
        diagonal.append(float(vector @ image))
        for _ in range(2):  # once leaves what cancellation has spoiled
            image = image - (found @ image) @ found
        length = float(np.linalg.norm(image))
        scale = max(map(abs, (*diagonal, *beside)))
        exhausted = k + 1 == n or length <= _EXHAUSTED * scale
        if exhausted or (k + 1) % _CHECK == 0:
            top, weights = eigh_tridiagonal(diagonal, beside, select="i", select_range=(k, k))
            if exhausted or length * abs(weights[-1, 0]) <= _TOLERANCE * scale:
                return float(top[0])
        beside.append(length)
        vector = image / length
    raise AssertionError("unreachable: a Krylov space has at most n dimensions")
