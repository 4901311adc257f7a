"""The noise kernel matrix by its definition: summed series, four nested loops, no closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracles.enumeration import edge_of_stability, weight_covariance

Array = NDArray[np.float64]


def response_sums(eigenvalues: Array, sgd: Any, terms: int = 100_000) -> Array:
    """Sum over all times of the products of two modes' responses to a unit of gradient noise.

    A unit of noise added to u enters one step as minus learning rate times eigenvalue; the response
    is the change of u by it in later steps. The series ends where its terms are lost in rounding.
    """
    z = -sgd.learning_rate * eigenvalues
    before = np.zeros_like(z)
    total = np.zeros((len(z), len(z)))
    largest = np.abs(z).max()
    for _ in range(terms):
        moved = z + sgd.momentum * (z - before)
        seen = moved if sgd.nesterov else z
        total += np.outer(seen, seen)
        before, z = z, moved - sgd.learning_rate * (eigenvalues + sgd.weight_decay) * seen
        if max(np.abs(z).max(), np.abs(before).max()) < 1e-9 * largest:
            return total
    raise ValueError(f"the series has not converged after {terms} terms")


def noise_kernel(ntk: Array, sgd: Any) -> Array:
    """Noise kernel matrix: variance injected at point j to variance seen at point i, all times."""
    n_data = len(ntk)
    covariance = weight_covariance(n_data, sgd.batch_size, sgd.sampling)
    between = float(covariance[0][1]) if n_data > 1 else 0.0
    own = float(covariance[0][0]) - between
    eigenvalues, vectors = np.linalg.eigh(ntk)
    eigenvalues = np.where(eigenvalues < 1e-12 * eigenvalues.max(), 0.0, eigenvalues)
    free = response_sums(eigenvalues, sgd)
    dressed = np.zeros_like(free)
    for a in range(n_data):
        for b in range(n_data):
            # noise between two points feeds back through the same pair of modes: a geometric series
            dressed[a, b] = free[a, b] / (1 - between * free[a, b])
    kernel = np.zeros((n_data, n_data))
    for i in range(n_data):
        for j in range(n_data):
            for a in range(n_data):
                for b in range(n_data):
                    kernel[i, j] += (
                        own
                        * (vectors[i, a] * vectors[j, a])
                        * dressed[a, b]
                        * (vectors[i, b] * vectors[j, b])
                    )
    return kernel


def noise_kernel_norm(ntk: Array, sgd: Any) -> float:
    """Largest eigenvalue of the noise kernel matrix; inf at and above the deterministic edge."""
    if sgd.learning_rate >= edge_of_stability(ntk, sgd):
        return math.inf
    return float(np.linalg.eigvalsh(noise_kernel(ntk, sgd))[-1])
