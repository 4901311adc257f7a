"""Linear methods with memory, by brute force: parameters move, and every batch is visited.

    theta_{t+1} = sum_k past_k theta_{t-k} - eta (J^T W_t z(phi) / D + decay phi)
    phi = sum_k point_k theta_{t-k},   z(theta) = z0 + J theta

No moment of the weights, recursion of the residual or closed form of a series is used here. What is
called exact takes integers and fractions, and rounds no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracles.enumeration import batches, range_of

Exact = NDArray[Any]  # dtype=object
Rationals = Sequence[Fraction | int]
Draws = Sequence[tuple[Fraction, Sequence[Fraction]]]  # (probability, weights) of every batch
Moments = tuple[list[Exact], dict[tuple[int, int], Exact]]


def enumerated_moments(
    jacobian: Exact,
    residual: Exact,
    start: Sequence[Exact],
    past: Rationals,
    point: Rationals,
    learning_rate: Fraction,
    decay: Fraction,
    draws: Draws,
    steps: int,
) -> Iterator[Moments]:
    """Yield the exact moments after 0 to `steps` steps: E z_{t-k}, and E z_{t-k} z_{t-l}^T.

    `start` holds the parameters at t = 0, -1, -2, ...; `residual` is that at theta = 0.
    """
    n_data = len(jacobian)
    paths = [(Fraction(1), list(start))]
    for t in range(steps + 1):
        seen = [(p, [residual + jacobian @ theta for theta in thetas]) for p, thetas in paths]
        ages = range(len(start))
        yield (
            [sum(p * z[k] for p, z in seen) for k in ages],
            {(k, m): sum(p * np.outer(z[k], z[m]) for p, z in seen) for k in ages for m in ages},
        )
        if t == steps:
            return
        moved = []
        for p, thetas in paths:
            phi = sum(c * theta for c, theta in zip(point, thetas, strict=True))
            propagated = sum(c * theta for c, theta in zip(past, thetas, strict=True))
            u = residual + jacobian @ phi
            for q, w in draws:
                gradient = jacobian.T @ (np.array(w, dtype=object) * u) / n_data + decay * phi
                moved.append((p * q, [propagated - learning_rate * gradient, *thetas[:-1]]))
        paths = moved


def recursion(past: Rationals, point: Rationals, x: Any) -> list[Any]:
    """Return the coefficients of z_t, z_{t-1}, ... in the next z of a mode without noise."""
    return [p - x * c for p, c in zip(past, point, strict=True)]


def partial_sum(
    first: Rationals, second: Rationals, seen: Rationals, growth: Fraction, terms: int
) -> Fraction:
    """Return the sum over n < `terms` of r^(-n-1) h_n h'_n exactly, step by step.

    h_n is what `seen` shows of the history n steps after a unit impulse, for two recursions.
    """
    states = [[Fraction(1)] + [Fraction(0)] * (len(seen) - 1) for _ in (first, second)]
    total = Fraction(0)
    for n in range(terms):
        h, h_other = (sum(c * z for c, z in zip(seen, state, strict=True)) for state in states)
        total += h * h_other / growth ** (n + 1)
        states = [
            [sum(a * z for a, z in zip(coefficients, state, strict=True)), *state[:-1]]
            for coefficients, state in zip((first, second), states, strict=True)
        ]
    return total


def whole_sum(first: Rationals, second: Rationals, seen: Rationals, growth: Fraction) -> Fraction:
    """Return that sum over all n, exactly, from the sums X_kl over z_{n-k} z'_{n-l} r^(-n-1).

    Shifted by a step they satisfy r X_00 = 1 + sum a_k a'_l X_kl, r X_0l = sum a_k X_k,l-1,
    r X_k0 = sum a'_l X_k-1,l and r X_kl = X_k-1,l-1: one equation per unknown.
    """
    size = len(seen)
    rows = []
    for k in range(size):
        for m in range(size):
            row = {(k, m): Fraction(growth)}
            earlier = [(i, a) for i, a in enumerate(first)] if k == 0 else [(k - 1, 1)]
            other = [(j, a) for j, a in enumerate(second)] if m == 0 else [(m - 1, 1)]
            for i, a in earlier:
                for j, b in other:
                    row[i, j] = row.get((i, j), Fraction(0)) - a * b
            flat = [row.get((i, j), Fraction(0)) for i in range(size) for j in range(size)]
            rows.append([*flat, Fraction(k == m == 0)])
    solution = _solved(rows)
    return sum(
        (p * q * solution[k * size + m] for k, p in enumerate(seen) for m, q in enumerate(seen)),
        Fraction(0),
    )


def _solved(rows: list[list[Fraction]]) -> list[Fraction]:
    """Gauss-Jordan elimination; the last entry of a row is its right-hand side."""
    count = len(rows)
    for n in range(count):
        pivot = next(k for k in range(n, count) if rows[k][n] != 0)
        rows[n], rows[pivot] = rows[pivot], rows[n]
        rows[n] = [v / rows[n][n] for v in rows[n]]
        for k in range(count):
            if k != n:
                factor = rows[k][n]
                rows[k] = [v - factor * w for v, w in zip(rows[k], rows[n], strict=True)]
    return [row[-1] for row in rows]


def spectral_radius(
    ntk: NDArray[np.float64],
    past: Sequence[float],
    point: Sequence[float],
    learning_rate: float,
    decay: float,
    batch_size: int,
    sampling: str,
) -> float:
    """Return the growth factor of the second moment per step, on the range of the NTK.

    From the mean of kron(A, A) over the steps A on (z_t, z_{t-1}, ...) of all batches.
    """
    eigenvalues, vectors = range_of(ntk)
    rank, memory = len(eigenvalues), len(past)
    mean = np.zeros(((rank * memory) ** 2,) * 2)
    for probability, w in batches(len(ntk), batch_size, sampling):
        gradient = eigenvalues[:, None] * (vectors.T @ (w[:, None] * vectors)) + decay * np.eye(
            rank
        )
        step = np.eye(rank * memory, k=-rank)
        step[:rank] = np.hstack(
            [
                p * np.eye(rank) - learning_rate * c * gradient
                for p, c in zip(past, point, strict=True)
            ]
        )
        mean += probability * np.kron(step, step)
    return float(np.abs(np.linalg.eigvals(mean)).max())


def deterministic_radius(past: Sequence[float], point: Sequence[float], x: float) -> float:
    """Return the growth factor per step of a mode without noise, x its eta (lambda + rho)."""
    return float(np.abs(np.roots([1.0, *(-a for a in recursion(past, point, x))])).max())
