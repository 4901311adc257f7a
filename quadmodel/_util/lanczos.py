"""Largest eigenvalue of a symmetric matrix given by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal

from quadmodel._util.checks import FloatArray

# Below this a Krylov space is invariant, and what it holds is exact.
_EXHAUSTED = 1e-13


class Eigenpair(NamedTuple):
    """An eigenvalue and its eigenvector of norm 1."""

    value: float
    vector: FloatArray


def largest_eigenpair(
    product: Callable[[FloatArray], FloatArray],
    start: FloatArray,
    *,
    residual: float = 1e-9,
    error: float = 0.0,
    check_every: int = 5,
) -> Eigenpair:
    r"""Return the (algebraically) largest eigenvalue and its eigenvector.

    Parameters
    ----------
    product : callable
        Maps a vector of shape (n,) to the symmetric matrix times it.
    start : ndarray, shape (n,)
        First Krylov vector. It must have a part along the top eigenvector.
    residual : float, optional
        Norm of the residual at which the pair counts as found, relative to the largest entry of the
        tridiagonal matrix.
    error : float, optional
        Bound on the error of the eigenvalue, relative to that entry too, at which the pair counts
        as found: the squared residual over the gap to the next Ritz value, or the residual.
    check_every : int, optional
        Products between two tests of convergence.

    Returns
    -------
    Eigenpair
        NaN where products are not finite.

    Notes
    -----
    Lanczos with full reorthogonalisation, and without restarts: at most n products, and no random
    vector where a Krylov space is exhausted (as ARPACK draws them, from a state that the threads of
    a process share). The result is a pure function of the arguments.

    References
    ----------
    .. [1] B. Parlett, "The symmetric eigenvalue problem" (1998), section 11.7 for the bounds,
       chapter 13 for the algorithm.
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
            return Eigenpair(float("nan"), np.full(n, np.nan))
        diagonal.append(float(vector @ image))
        for _ in range(2):  # once leaves what cancellation has spoiled
            image = image - (found @ image) @ found
        length = float(np.linalg.norm(image))
        scale = max(map(abs, (*diagonal, *beside)))
        exhausted = k + 1 == n or length <= _EXHAUSTED * scale
        if exhausted or (k + 1) % check_every == 0:
            lowest = max(k - 1, 0) if error else k
            ritz, weights = eigh_tridiagonal(diagonal, beside, select="i", select_range=(lowest, k))
            left = length * abs(float(weights[-1, -1]))
            gap = float(ritz[-1] - ritz[0])
            bound = min(left, left**2 / gap) if gap > 0 else left
            if exhausted or left <= residual * scale or bound <= error * scale:
                return Eigenpair(float(ritz[-1]), weights[:, -1] @ found)
        beside.append(length)
        vector = image / length
    raise AssertionError("unreachable: a Krylov space has at most n dimensions")
