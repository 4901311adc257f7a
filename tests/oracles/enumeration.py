"""Exact linear SGD by enumeration: every batch is visited, none of its moments is known.

Nothing here uses a moment of the batch weights, a noise kernel or a response sum. Arguments are
plain numbers and arrays, and an optimizer with the fields of `quadmodel.SGD`, of which nothing else
is used: this file shares no formula with the package.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NULL = 1e-10  # eigenvalues below this fraction of the largest are the null space


def rational_batches(
    n_data: int, batch_size: int, sampling: str
) -> list[tuple[Fraction, tuple[Fraction, ...]]]:
    """List all batches as (probability, weights), in exact arithmetic."""
    weight = Fraction(n_data, batch_size)
    return [
        (probability, tuple(weight * counts[i] for i in range(n_data)))
        for probability, counts in _drawn(n_data, batch_size, sampling)
    ]


def _drawn(n_data: int, batch_size: int, sampling: str) -> Iterator[tuple[Fraction, Counter[int]]]:
    """Yield every batch as (probability, how often each point was drawn)."""
    points = range(n_data)
    if sampling == "without_replacement":
        subsets = list(itertools.combinations(points, batch_size))
        for subset in subsets:
            yield Fraction(1, len(subsets)), Counter(subset)
    elif sampling == "with_replacement":
        for multiset in itertools.combinations_with_replacement(points, batch_size):
            counts = Counter(multiset)
            orders = math.factorial(batch_size)
            for count in counts.values():
                orders //= math.factorial(count)
            yield Fraction(orders, n_data**batch_size), counts
    elif sampling == "bernoulli":
        drawn = Fraction(batch_size, n_data)
        for size in range(n_data + 1):
            for subset in itertools.combinations(points, size):
                yield drawn**size * (1 - drawn) ** (n_data - size), Counter(subset)
    else:
        raise ValueError(f"sampling: {sampling}")


def batches(n_data: int, batch_size: int, sampling: str) -> list[tuple[float, Array]]:
    """List all batches as (probability, weight vector); weights have mean 1."""
    return [
        (float(probability), np.array([float(w) for w in weights]))
        for probability, weights in rational_batches(n_data, batch_size, sampling)
        if probability > 0
    ]


def weight_covariance(n_data: int, batch_size: int, sampling: str) -> list[list[Fraction]]:
    """Covariance matrix of the weights, in exact arithmetic."""
    drawn = rational_batches(n_data, batch_size, sampling)
    mean = [sum((p * w[i] for p, w in drawn), Fraction(0)) for i in range(n_data)]
    return [
        [
            sum((p * w[i] * w[j] for p, w in drawn), Fraction(0)) - mean[i] * mean[j]
            for j in range(n_data)
        ]
        for i in range(n_data)
    ]


def range_of(ntk: Array) -> tuple[Array, Array]:
    """Positive eigenvalues of `ntk` and their eigenvectors, in columns."""
    eigenvalues, vectors = np.linalg.eigh(ntk)
    kept = eigenvalues > NULL * eigenvalues.max()
    return eigenvalues[kept], vectors[:, kept]


def step_matrix(gradient: Array, sgd: Any) -> Array:
    """Matrix of one step on the pair (z_t, z_{t-1}), without the weight-decay force towards z_0.

    `gradient` is the matrix that the step multiplies with u_t: Theta W, in some basis.
    """
    n = len(gradient)
    one, zero = np.eye(n), np.zeros((n, n))
    # z_t + mu (z_t - z_{t-1})
    moved = np.hstack([(1 + sgd.momentum) * one, -sgd.momentum * one])
    seen = moved if sgd.nesterov else np.hstack([one, zero])  # u_t
    upper = moved - sgd.learning_rate * (gradient + sgd.weight_decay * one) @ seen
    return np.vstack([upper, np.hstack([one, zero])])


def _steps_on_range(ntk: Array, sgd: Any) -> tuple[Array, Array]:
    """Probabilities and step matrices of all batches, in the eigenbasis of the range."""
    eigenvalues, vectors = range_of(ntk)
    drawn = batches(len(ntk), sgd.batch_size, sgd.sampling)
    steps = [
        step_matrix(eigenvalues[:, None] * (vectors.T @ (w[:, None] * vectors)), sgd)
        for _, w in drawn
    ]
    return np.array([p for p, _ in drawn]), np.array(steps)


def _mean_kronecker(probabilities: Array, steps: Array) -> Array:
    """Return the mean of kron(A, A) over the steps A."""
    count, n, _ = steps.shape
    flat = steps.reshape(count, n * n)
    products = (flat.T @ (probabilities[:, None] * flat)).reshape(n, n, n, n)  # i j k l
    return products.transpose(0, 2, 1, 3).reshape(n * n, n * n)


def second_moment_operator(ntk: Array, sgd: Any) -> Array:
    """Matrix of the second moment of (z_t, z_{t-1}), on the range of the NTK, in one step."""
    return _mean_kronecker(*_steps_on_range(ntk, sgd))


def _radius(matrix: Array) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def spectral_radius(ntk: Array, sgd: Any) -> float:
    """Growth factor of the second moment per step, by a dense eigensolver."""
    return _radius(second_moment_operator(ntk, sgd))


def deterministic_radius(ntk: Array, sgd: Any) -> float:
    """Growth factor of the mean of z per step: gradient descent on all data."""
    return _radius(step_matrix(np.diag(range_of(ntk)[0]), sgd))


def first_crossing(
    growth: Callable[[float], float], start: float, factor: float = 1.25, tolerance: float = 1e-13
) -> float:
    """First learning rate at which `growth` reaches 1: scan upwards, then bisect."""
    low = start
    if growth(low) >= 1:
        raise ValueError("unstable at the start of the scan")
    while growth(low * factor) < 1:
        low *= factor
    high = low * factor
    while high - low > tolerance * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if growth(middle) < 1:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def critical_learning_rate(ntk: Array, sgd: Any) -> float:
    """Learning rate at which the second moment stops shrinking; stable below."""
    start = 1e-2 / (np.linalg.eigvalsh(ntk)[-1] + sgd.weight_decay)
    return first_crossing(
        lambda eta: spectral_radius(ntk, replace(sgd, learning_rate=eta)),
        float(start * min(1.0, 1 - abs(sgd.momentum))),
    )


def edge_of_stability(ntk: Array, sgd: Any) -> float:
    """Learning rate at which the mean of z stops shrinking."""
    start = 1e-2 / (np.linalg.eigvalsh(ntk)[-1] + sgd.weight_decay)
    return first_crossing(
        lambda eta: deterministic_radius(ntk, replace(sgd, learning_rate=eta)), float(start)
    )


def second_moments(ntk: Array, residual: Array, sgd: Any, steps: int) -> Iterator[Array]:
    """Yield E[z_t z_t^T] at steps 0 to `steps`, from (z_t, z_{t-1}, z_0) over all batches.

    With z_0 in the state, weight decay is a linear map too and nothing needs a basis.
    """
    n_data = len(ntk)
    maps = []
    for p, w in batches(n_data, sgd.batch_size, sgd.sampling):
        whole = np.eye(3 * n_data)
        whole[: 2 * n_data, : 2 * n_data] = step_matrix(ntk * w, sgd)
        whole[:n_data, 2 * n_data :] = sgd.learning_rate * sgd.weight_decay * np.eye(n_data)
        maps.append((p, whole))
    state = np.tile(np.asarray(residual, dtype=float), 3)
    second = np.outer(state, state)
    yield second[:n_data, :n_data]
    for _ in range(steps):
        second = sum(p * (whole @ second @ whole.T) for p, whole in maps)
        yield second[:n_data, :n_data]


def mean_loss(ntk: Array, residual: Array, sgd: Any, steps: int) -> Array:
    """Mean loss at steps 0 to `steps`."""
    moments = second_moments(ntk, residual, sgd, steps)
    return np.array([np.trace(moment) / (2 * len(ntk)) for moment in moments])


def stationary_loss(ntk: Array, residual: Array, sgd: Any) -> float:
    """Limit of the mean loss, from the dense linear fixed point; inf where there is none."""
    n_data = len(ntk)
    eigenvalues, vectors = range_of(ntk)
    rank = len(eigenvalues)
    reached = vectors.T @ residual
    unreached = residual - vectors @ reached
    probabilities, steps = _steps_on_range(ntk, sgd)
    if _radius(_mean_kronecker(probabilities, steps)) >= 1:
        return math.inf
    # one step: s -> A s + b, with b from the part of the residual in the null space and from the
    # weight-decay force towards z_0
    shifts = np.zeros((len(steps), 2 * rank))
    drawn = batches(n_data, sgd.batch_size, sgd.sampling)
    for shift, (_, w) in zip(shifts, drawn, strict=True):
        shift[:rank] = sgd.learning_rate * sgd.weight_decay * reached
        shift[:rank] -= sgd.learning_rate * eigenvalues * (vectors.T @ (w * unreached))
    one = np.eye(2 * rank)
    mean = np.linalg.solve(
        one - np.einsum("n,nij->ij", probabilities, steps), probabilities @ shifts
    )
    moved = steps @ mean
    source = np.einsum("n,ni,nj->ij", probabilities, moved, shifts)
    source = source + source.T + np.einsum("n,ni,nj->ij", probabilities, shifts, shifts)
    operator = np.eye((2 * rank) ** 2) - _mean_kronecker(probabilities, steps)
    second = np.linalg.solve(operator, source.ravel()).reshape(2 * rank, 2 * rank)
    return float(np.trace(second[:rank, :rank]) + unreached @ unreached) / (2 * n_data)
