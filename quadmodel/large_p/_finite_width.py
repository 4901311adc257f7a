"""NTKs of finitely many parameters, drawn around that of the large-P limit."""

from __future__ import annotations

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.large_p._system import System


def draw_ntks(
    system: System,
    ntk: FloatArray,
    squared_distance: float,
    moved: FloatArray,
    draws: int,
    rng: np.random.Generator,
) -> FloatArray:
    r"""Draw NTKs of P parameters, :math:`J = A + \sigma|\theta|C^{1/2}N`, around that of the limit.

    `squared_distance` is :math:`|\theta|^2`, `moved` is :math:`z - z_0 = A\theta`. N is standard
    normal, but of variance 2 along :math:`\theta`, as Q's diagonal is. The limit's NTK holds the
    mean :math:`q^2|\theta|^2C/D` of the Gaussian part already; should it not (far from the start),
    the Gaussian part is made smaller, so that the mean stays what it is.
    """
    n_data, covariance = len(ntk), system.covariance
    if not squared_distance > 0.0:
        return ntk[None]
    along = moved / np.sqrt(n_data * squared_distance)
    others = ntk - np.outer(along, along)
    size = system.curvature_strength**2 * squared_distance / n_data
    values, vectors = np.linalg.eigh(others)
    whitened = vectors / np.sqrt(np.maximum(values, 1e-300 + 1e-14 * values[-1]))
    most = float(np.linalg.eigvalsh(whitened.T @ covariance @ whitened)[-1])
    size = min(size, 1.0 / most)
    fixed = np.concatenate([along[:, None], _root(others - size * covariance)], axis=1)
    normal = rng.standard_normal((draws, n_data, n_data + 1))
    normal[:, :, 0] *= np.sqrt(2.0)
    rest = _wishart_root(rng, draws, n_data, system.n_params - n_data - 1)
    root = np.sqrt(size / system.n_params) * _root(covariance)
    close, far = fixed + root @ normal, root @ rest
    return np.asarray(close @ close.transpose(0, 2, 1) + far @ far.transpose(0, 2, 1))


def _wishart_root(rng: np.random.Generator, draws: int, n: int, columns: int) -> FloatArray:
    """Return X such that X X^T is distributed as for normal X with that many columns (Bartlett)."""
    if columns < n:
        return rng.standard_normal((draws, n, columns))
    root = np.tril(rng.standard_normal((draws, n, n)), -1)
    root[:, range(n), range(n)] = np.sqrt(rng.chisquare(columns - np.arange(n), (draws, n)))
    return root


def _root(matrix: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
