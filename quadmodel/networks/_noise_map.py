"""The noise kernel matrix of a network by products with its NTK, never formed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks import _linearisation
from quadmodel.networks._krylov import Product, ritz_pairs, top_eigenvectors
from quadmodel.optimizer import SGD
from quadmodel.theory._noise_blocks import pair_response

# Eigenvectors of the NTK that are treated exactly, and dimensions of all other Krylov spaces.
_TOP = 12
_STEPS = 80
# Share of a number that another Krylov step may still change.
KRYLOV_TOLERANCE = 1e-3


class Kernel(NamedTuple):
    """The NTK as its products with several vectors (k, D C) at once."""

    product: Product
    n_data: int
    n_outputs: int
    squared_norms: FloatArray  # of the data points' rows, shape (D,)
    # Data points that batches are drawn from, of which those of the NTK are a sample.
    population: int


class NoiseMap:
    r"""Unbiased random estimates of :math:`X \mapsto G(X)`, X of one C x C block per data point.

    With :math:`d = X^{1/2}s` and independent random signs s, :math:`E[dd^\top]` is X. The response
    :math:`V[S\circ(V^\top dd^\top V)]V^\top` to one such vector is a function of the NTK acting on
    both sides of a matrix of rank one (the solution of a Stein equation for plain SGD), which a
    Krylov space of the NTK from d holds. G is linear, so that the mean over s is that of X.

    Two parts of X are averaged over signs exactly: that between the top eigenvectors of the NTK,
    :math:`V_T^\top X V_T`, and that of single data points that carry much of X, by a vector per
    column of :math:`X_i^{1/2}`.
    """

    def __init__(self, kernel: Kernel, sgd: SGD, rng: np.random.Generator) -> None:
        """Find the top eigenvectors."""
        self.kernel, self.sgd, self.rng = kernel, sgd, rng
        n = kernel.n_data * kernel.n_outputs
        self.values, self.vectors, self.largest = top_eigenvectors(kernel.product, n, _TOP, rng)
        self._columns: dict[int, FloatArray] = {}
        each = (len(self.values) + _STEPS) * n * 8
        self.at_once = max(1, _linearisation.MEMORY // (3 * each))

    def response(self, values: FloatArray, others: FloatArray) -> FloatArray:
        """Return gamma S of pairs of eigenvalues, for as many points as the NTK has."""
        at_most = self.largest  # rounding must not carry a Ritz value over the edge
        population = self.kernel.population
        response = pair_response(
            np.clip(values, 0, at_most), np.clip(others, 0, at_most), self.sgd, population
        )
        return response * (self.kernel.n_data / population)

    def of_vectors(self, vectors: FloatArray, x_top: FloatArray | None = None) -> FloatArray:
        """Return the blocks (k, D, C, C) of G(d d^T) for vectors d of shape (k, D C).

        Where `x_top`, shape (r, r), is given, it stands for d d^T between the top eigenvectors.
        """
        points, outputs = self.kernel.n_data, self.kernel.n_outputs
        found = np.empty((len(vectors), points, outputs, outputs))
        for start in range(0, len(vectors), self.at_once):
            some = vectors[start : start + self.at_once]
            ritz = ritz_pairs(
                self.kernel.product,
                some,
                _STEPS,
                without=self.vectors,
                settled=self._injected,
                tolerance=KRYLOV_TOLERANCE,
            )
            along_top = some @ self.vectors.T
            top = len(self.values)
            for k in range(len(some)):
                values = np.concatenate([self.values, ritz.values[k]])
                weights = np.concatenate([along_top[k], ritz.weights[k]])
                per_pair = np.outer(weights, weights)
                if x_top is not None:
                    per_pair[:top, :top] = x_top
                per_pair *= self.response(values[:, None], values[None, :])
                basis = np.concatenate([self.vectors, ritz.vectors[k]]).T
                images = (basis @ per_pair).reshape(points, outputs, -1)
                rows = basis.reshape(points, outputs, -1)
                found[start + k] = images @ rows.transpose(0, 2, 1)
        return 0.5 * (found + found.transpose(0, 1, 3, 2))

    def _injected(self, values: FloatArray, weights: FloatArray) -> FloatArray:
        """Return the Frobenius norm of the response, by which Krylov spaces are judged.

        Its trace settles sooner: the response of two different modes is not smooth at eigenvalue 0.
        """
        per_pair = self.response(values[:, :, None], values[:, None, :])
        per_pair *= weights[:, :, None] * weights[:, None, :]
        return np.asarray(np.sqrt((per_pair**2).sum((1, 2))))

    def of_points(self, blocks: FloatArray, points: list[int]) -> FloatArray:
        """Return G of single blocks (h, C, C) at points, as (h, D, C, C), without signs."""
        outputs, n_data = self.kernel.n_outputs, self.kernel.n_data
        if outputs > 1:
            vectors = np.zeros((len(points), outputs, n_data, outputs))
            for place, i in enumerate(points):
                vectors[place, :, i, :] = root(blocks[place])
            images = self.of_vectors(vectors.reshape(-1, n_data * outputs))
            images = images.reshape(len(points), outputs, n_data, outputs, outputs)
            return np.asarray(images.sum(1))
        new = [i for i in points if i not in self._columns]
        if new:
            units = np.zeros((len(new), n_data))
            units[range(len(new)), new] = 1.0
            self._columns |= dict(zip(new, self.of_vectors(units), strict=True))
        columns = np.array([self._columns[i] for i in points]).reshape(-1, n_data, 1, 1)
        return columns * blocks[:, None]

    def samples(self, x: FloatArray, count: int) -> FloatArray:
        """Return `count` independent estimates of G(x), (count, D, C, C)."""
        signs = self.rng.integers(0, 2, (count, *x.shape[:2])) * 2.0 - 1.0
        vectors = np.einsum("icd,kid->kic", root(x), signs).reshape(count, -1)
        top = self.vectors.reshape(len(self.values), *x.shape[:2])
        x_top = np.einsum("aic,icd,bid->ab", top, x, top, optimize=True)
        return self.of_vectors(vectors, x_top)


def root(x: FloatArray) -> FloatArray:
    """Return the symmetric roots of blocks, whose negative eigenvalues are set to zero."""
    values, vectors = np.linalg.eigh(x)
    scaled = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    return np.asarray(scaled @ np.swapaxes(vectors, -1, -2))


def positive(x: FloatArray) -> FloatArray:
    """Return blocks whose negative eigenvalues are set to zero, of Frobenius norm 1."""
    half = root(x)
    blocks = half @ half
    return np.asarray(blocks / np.linalg.norm(blocks))
