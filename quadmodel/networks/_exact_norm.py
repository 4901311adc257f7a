"""The exact noise kernel norm from products with the NTK alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks._estimate import Estimate, jackknife
from quadmodel.networks._noise_map import KRYLOV_TOLERANCE, Kernel, NoiseMap, positive
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas

# Data points treated without random signs, over the number of outputs.
_POINTS = 24
# Vectors of random signs per power iteration, and at least and at most in the end: few of them
# leave the standard error itself uncertain, since estimates are skew.
_PROBES, _FEWEST, _MOST = 16, 64, 4096
# Power iterations, at most.
_ITERATIONS = 40
# Share of K that the last iteration may still have changed.
_SETTLED = 2e-3
# What the power iteration is taken to fall short of K by, over the last correction: measured at 4
# to 6 where G has no gap (points alike, flat spectrum), where the shortfall is half a percent.
_SHORT = 5.0


class Space(NamedTuple):
    """Blocks of single points, the blocks of all other points together, and what G makes of them.

    Attributes
    ----------
    points : list of int
        The single points, h of them.
    singles : ndarray, shape (h, C, C)
        Their blocks, of Frobenius norm 1.
    images : ndarray, shape (h, D, C, C)
        G of each of these; exact.
    rest : ndarray, shape (D, C, C)
        Blocks of the other points, of Frobenius norm 1 together.
    """

    points: list[int]
    singles: FloatArray
    images: FloatArray
    rest: FloatArray


class Found(NamedTuple):
    """The largest Ritz value in a space, corrected by its residual."""

    value: float
    correction: float
    x: FloatArray
    image: FloatArray
    weight_of_rest: float


def matrix_free_norm(
    kernel: Kernel, sgd: SGD, relative_error: float, rng: np.random.Generator
) -> Estimate:
    r"""Return the exact noise kernel norm from products with the NTK.

    Notes
    -----
    Power iteration on X, one block per data point, with random estimates of G(X)
    (:class:`NoiseMap`). In every step the points that carry most of X are taken as directions of
    their own, all others as one: the matrix of G between these is exact but for its last diagonal
    entry, which is a mean over random signs, and its largest eigenvalue R, of the Ritz vector X, is
    a lower bound of K in expectation. With the residual r = G(X) - R X of the other points, whose
    square is estimated from pairs of independent estimates, :math:`R + |r|^2/R` (Schwarz's
    quotient) is a better one, and K lies within about :math:`|r|^2/R` of it where the next
    eigenvalue is below R/2. In the end X is fixed and fresh signs are drawn until the standard
    error, from leaving out one group of estimates at a time, is small enough; half of what another
    Krylov step may change and five times the last correction are added to it.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261. M. Hutchinson, Commun. Stat. 19 (1990) 433, for random
       signs; D. Kressner et al., arXiv:1911.10204 for functions of two matrices by Krylov spaces.
    """
    noise = NoiseMap(kernel, sgd, rng)
    if sgd.learning_rate >= formulas.noiseless_edge(noise.largest, sgd):
        return Estimate(math.inf, 0.0)
    if formulas.batch_weight_covariance(sgd, kernel.population)[0] == 0.0 or noise.largest <= 0:
        return Estimate(0.0, 0.0)
    x = positive(np.tile(np.eye(kernel.n_outputs), (kernel.n_data, 1, 1)))
    weight = kernel.squared_norms
    mean: FloatArray | None = None
    for step in range(_ITERATIONS):
        space = _space(noise, x, weight)
        samples = noise.samples(space.rest, _PROBES)
        found = _ritz(space, samples)
        # From the third step on estimates are averaged: X has nearly settled, their noise has not.
        image = found.image / found.value
        mean = image if mean is None or step < 3 else mean + (image - mean) / min(step - 1, 8)
        x = positive(mean)
        weight = np.linalg.norm(x, axis=(1, 2))
        if step >= 8 and found.correction <= _SETTLED * found.value:
            break
    space = _space(noise, x, weight)
    return _final(noise, space, relative_error)


def _space(noise: NoiseMap, x: FloatArray, weight: FloatArray) -> Space:
    """Cut X at the points of the largest weight."""
    kernel = noise.kernel
    count = min(kernel.n_data, max(2, _POINTS // kernel.n_outputs))
    points = [int(i) for i in np.argsort(-weight, kind="stable")[:count]]
    lengths = np.linalg.norm(x[points], axis=(1, 2))
    points = [i for i, length in zip(points, lengths, strict=True) if length > 0]
    singles = x[points] / lengths[lengths > 0][:, None, None]
    rest = x.copy()
    rest[points] = 0.0
    length = np.linalg.norm(rest)
    return Space(points, singles, noise.of_points(singles, points), rest / (length or 1.0))


def _ritz(space: Space, samples: FloatArray) -> Found:
    """Return the largest Ritz value and vector from estimates of G(rest), (n, D, C, C)."""
    mean = samples.mean(0)
    h = len(space.points)
    matrix = np.empty((h + 1, h + 1))
    matrix[:h, :h] = np.einsum("bacd,acd->ab", space.images[:, space.points], space.singles)
    matrix[h, :h] = matrix[:h, h] = np.einsum("aicd,icd->a", space.images, space.rest)
    matrix[h, h] = np.vdot(space.rest, mean)
    values, columns = np.linalg.eigh(0.5 * (matrix + matrix.T))
    value, along = float(values[-1]), columns[:, -1]
    along = along * (1.0 if along.sum() >= 0 else -1.0)
    x = along[h] * space.rest
    x[space.points] = along[:h, None, None] * space.singles
    exact = np.tensordot(along[:h], space.images, 1) - value * x
    # |r|^2 from pairs of different samples, which is unbiased for what their mean estimates.
    n = len(samples)
    residual = exact + along[h] * mean
    noise = along[h] ** 2 * float(np.sum((samples - mean) ** 2)) / (n * (n - 1)) if n > 1 else 0.0
    correction = (float(np.vdot(residual, residual)) - noise) / value
    return Found(value, correction, x, residual + value * x, float(along[h]))


def _final(noise: NoiseMap, space: Space, relative_error: float) -> Estimate:
    """Draw signs until the standard error is at most `relative_error` of the value."""
    samples = noise.samples(space.rest, _FEWEST)
    while True:
        found = _ritz(space, samples)
        # The correction is not negative; an estimate below 0 is noise, and kept for its mean.
        estimate = jackknife(_without_each(space, samples), found.value + found.correction)
        estimate = Estimate(
            estimate.value,
            math.hypot(
                estimate.standard_error,
                0.5 * KRYLOV_TOLERANCE * estimate.value,
                _SHORT * found.correction,
            ),
        )
        settled = estimate.standard_error <= relative_error * estimate.value
        if settled or len(samples) >= _MOST:
            return estimate
        more = len(samples) * ((estimate.standard_error / (relative_error * estimate.value)) ** 2)
        extra = int(np.clip(1.1 * more - len(samples), _PROBES, 3 * len(samples)))
        samples = np.concatenate([samples, noise.samples(space.rest, extra)])


def _without_each(space: Space, samples: FloatArray) -> FloatArray:
    """Return the estimate without each of up to 16 groups of samples."""
    groups = np.array_split(np.arange(len(samples)), 16)
    kept = (np.delete(samples, group, axis=0) for group in groups)
    return np.array([found.value + found.correction for found in (_ritz(space, s) for s in kept)])
