"""Fluctuation of a quadratic form over one step, by visiting every batch.

The form is the adjoint eigenvector of the dense second-moment operator; Gaussian averages are those
of products of two quadratic forms. No formula is shared with the package.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.oracles.enumeration import batches, range_of, rational_batches, step_matrix

Array = NDArray[np.float64]


class OneStep(NamedTuple):
    """Growth factor, both eigenmatrices over the pair (z_t, z_{t-1}), and the variance."""

    growth: float
    moment: Array
    adjoint: Array
    variance: float


def one_step(ntk: Array, sgd: Any) -> OneStep:
    """Variance of l' / r over the batch, relative to l^2, both averaged over Gaussian states.

    Matrices have shape (2 D, 2 D): they are given at the data points, on the range of the NTK.
    """
    eigenvalues, vectors = range_of(ntk)
    rank = len(eigenvalues)
    drawn = [
        (p, step_matrix(eigenvalues[:, None] * (vectors.T @ (w[:, None] * vectors)), sgd))
        for p, w in batches(len(ntk), sgd.batch_size, sgd.sampling)
    ]
    if (
        sgd.momentum == 0.0
    ):  # nothing is remembered: the second half would only double all dimensions
        drawn = [(p, step[:rank, :rank]) for p, step in drawn]
    n = len(drawn[0][1])
    # in row-major order, vec(A M A^T) = kron(A, A) vec(M)
    operator = sum(p * np.kron(step, step) for p, step in drawn)
    growth, moment = _perron(operator, n)
    _, adjoint = _perron(operator.T, n)
    mean_square = _product(adjoint, adjoint, moment)
    variance = -(growth**2) * mean_square
    for p, step in drawn:
        after = step.T @ adjoint @ step
        variance += p * _product(after, after, moment)
    back = np.kron(np.eye(n // rank), vectors)
    return OneStep(
        growth, back @ moment @ back.T, back @ adjoint @ back.T, variance / growth**2 / mean_square
    )


def _perron(operator: Array, n: int) -> tuple[float, Array]:
    values, columns = np.linalg.eig(operator)
    top = int(np.argmax(values.real))
    matrix = columns[:, top].real.reshape(n, n)
    matrix = matrix + matrix.T
    return float(values[top].real), matrix / np.trace(matrix)


def _product(first: Array, second: Array, covariance: Array) -> float:
    """E[(s^T K s)(s^T K' s)] for s ~ N(0, covariance)."""
    a, b = first @ covariance, second @ covariance
    return float(np.trace(a) * np.trace(b) + 2 * np.trace(a @ b))


def weight_fluctuations(n_data: int, batch_size: int, sampling: str, order: int) -> dict:
    """Moments of w - 1 for every choice of `order` data points, in exact arithmetic."""
    drawn = [
        (p, [w - 1 for w in weights])
        for p, weights in rational_batches(n_data, batch_size, sampling)
    ]
    moments = {}
    for points in itertools.product(range(n_data), repeat=order):
        total = Fraction(0)
        for p, x in drawn:
            term = p
            for i in points:
                term *= x[i]
            total += term
        moments[points] = total
    return moments
