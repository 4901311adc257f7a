"""The exact noise kernel norm of data points with several outputs each."""

from __future__ import annotations

import math

import numpy as np

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import FloatArray
from quadmodel._util.lanczos import largest_eigenpair
from quadmodel.model import ntk_eigensystem
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory._noise import perron


def pair_response(lam: FloatArray, other: FloatArray, sgd: SGD, n_data: int) -> FloatArray:
    r"""Return :math:`\gamma S`, what K is made of, of pairs of NTK eigenvalues.

    Zero for full batches. `n_data` is the number of data points, whatever their outputs.
    """
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    if gamma == 0.0:
        return np.zeros(np.broadcast_shapes(np.shape(lam), np.shape(other)))
    bare = formulas.bare_response(lam, other, sgd)
    return gamma * formulas.dressed_response(bare, gamma, kappa, n_data)


def block_noise_kernel_norm(
    ntk: FloatArray, sgd: SGD, n_outputs: int, tolerance: float = 1e-8
) -> float:
    r"""Return the exact noise kernel norm of an NTK (D C, D C), C outputs per data point.

    Notes
    -----
    The Perron root of :math:`X \mapsto \gamma\,\mathrm{blockdiag}(V[S\circ(V^\top XV)]V^\top)` on
    symmetric matrices X of one C x C block per data point: batches pick points, with all their
    outputs. For C = 1 that is the noise kernel matrix. Lanczos from the identity, which lies inside
    the cone that the map keeps; a product costs four products of DC x DC matrices.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261; checked there against enumeration of all batches
       (tests/theory/test_noise_blocks.py).
    """
    lam, vectors = ntk_eigensystem(ntk, tolerance)
    return block_norm_of_modes(lam, vectors, sgd, n_outputs, len(ntk) // n_outputs)


def block_norm_of_modes(
    lam: FloatArray, vectors: FloatArray, sgd: SGD, n_outputs: int, population: int
) -> float:
    """Return the exact noise kernel norm from eigenvalues (descending) and eigenvectors.

    `population` is the number of data points that batches are drawn from, of which those of the
    NTK are a sample: a sum over all points is one over these, times how many each stands for.
    """
    if sgd.learning_rate >= formulas.noiseless_edge(float(lam[0]), sgd):
        return math.inf
    n_data = len(vectors) // n_outputs
    response = pair_response(lam[:, None], lam[None, :], sgd, population) * (n_data / population)
    if not response.any():
        return 0.0
    if n_outputs == 1:
        with one_blas_thread():
            return perron(vectors, response).value
    blocks = vectors.reshape(n_data, n_outputs, -1)

    def product(flat: FloatArray) -> FloatArray:
        x = flat.reshape(n_data, n_outputs, n_outputs)
        per_mode = vectors.T @ (x @ blocks).reshape(vectors.shape)
        spread = (vectors @ (per_mode * response)).reshape(blocks.shape)
        image = spread @ blocks.transpose(0, 2, 1)
        return np.ravel(0.5 * (image + image.transpose(0, 2, 1)))

    start = np.tile(np.eye(n_outputs), (n_data, 1, 1)).ravel()
    with one_blas_thread():
        return largest_eigenpair(product, start, error=1e-10, residual=0.0, check_every=1).value


def norm_of_modes(lam: FloatArray, sgd: SGD, norm: str, population: int, n_outputs: int) -> float:
    """Return K of "finite" or "paper", the mean of the modes' responses; +inf beyond the edge.

    `population` is the number of data points that batches are drawn from.
    """
    if sgd.learning_rate >= formulas.noiseless_edge(float(lam.max()), sgd):
        return math.inf
    return float(mode_response(lam, sgd, population, norm).sum()) / (population * n_outputs)


def mode_response(lam: FloatArray, sgd: SGD, n_data: int, norm: str) -> FloatArray:
    r"""Return :math:`\gamma S_{\alpha\alpha}`, whose mean is K of "finite" or "paper"."""
    if norm != "paper":
        return pair_response(lam, lam, sgd, n_data)
    gamma, kappa = formulas.paper_weight_covariance(sgd, n_data)
    bare = formulas.bare_response(lam, lam, sgd)
    return gamma * formulas.dressed_response(bare, gamma, kappa, n_data)
