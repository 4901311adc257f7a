"""The large-P limit by its recursion, as it stands: dense arrays, every basis state.

T[l] has l axes of data indices and a last one, all of length D; <X, Y> contracts data indices by
M = q^2 C and the last axis by G0. Nothing here is shared with the package; batches are lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Coefficients = list[Array]


def nothing(n_data: int, truncation_order: int) -> Coefficients:
    """Return the coefficients at the initial parameters."""
    return [np.zeros((n_data,) * (n + 1)) for n in range(truncation_order + 1)]


def inner(x: Array, y: Array, gram: Array, metric: Array) -> float:
    """Return <x, y>."""
    for axis in range(y.ndim):
        matrix = gram if axis == y.ndim - 1 else metric
        y = np.moveaxis(np.tensordot(matrix, y, axes=(1, axis)), 0, axis)
    return float(np.sum(x * y))


def residual(t: Coefficients, start: Array, gram: Array, metric: Array) -> Array:
    """Return z."""
    z = start + gram @ t[0]
    for higher, lower in zip(t[1:], t[:-1], strict=True):
        mixed = np.tensordot(metric, higher, axes=(1, 0))
        z = z + np.array([inner(row, lower, gram, metric) for row in mixed])
    return np.asarray(z)


def jacobian(t: Coefficients, metric: Array) -> list[Coefficients]:
    """Return the row w_a of every data point."""
    n_data, rows = len(t[0]), []
    for a in range(n_data):
        w = nothing(n_data, len(t) - 1)
        w[0][a] = 1.0
        for n in range(len(t)):
            if n > 0:
                w[n][a] += t[n - 1]
            if n + 1 < len(t):
                w[n] += np.tensordot(metric[a], t[n + 1], axes=(0, 0))
        rows.append(w)
    return rows


def ntk(t: Coefficients, gram: Array, metric: Array) -> Array:
    """Return Theta."""
    rows = jacobian(t, metric)
    products = [
        [sum(inner(x, y, gram, metric) for x, y in zip(v, w, strict=True)) for w in rows]
        for v in rows
    ]
    return np.array(products) / len(rows)


def ntk_by_differences(t: Coefficients, start: Array, gram: Array, metric: Array) -> Array:
    """Return Theta from central differences of z in an orthonormal basis: exact for a quadratic."""
    factors = [np.linalg.cholesky(m) for m in (gram, metric)]
    columns = []
    for n, order in enumerate(t):
        for index in np.ndindex(order.shape):
            direction = np.zeros(order.shape)
            direction[index] = 1.0
            for axis in range(order.ndim):  # unit vectors of <,>: columns of inverse roots
                back = np.linalg.inv(factors[0 if axis == order.ndim - 1 else 1]).T
                direction = np.moveaxis(np.tensordot(back, direction, axes=(1, axis)), 0, axis)
            ends = [
                residual(
                    [w + s * direction if m == n else w for m, w in enumerate(t)],
                    start,
                    gram,
                    metric,
                )
                for s in (0.5, -0.5)
            ]
            columns.append(ends[0] - ends[1])
    rows = np.array(columns).T
    return np.asarray(rows @ rows.T / len(start))


def train(
    gram: Array,
    metric: Array,
    start: Array,
    truncation_order: int,
    batches: Sequence[Sequence[int]],
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[Coefficients]:
    """Return the coefficients before the first step and after every one."""
    n_data = len(start)
    now = old = nothing(n_data, truncation_order)
    path = [now]
    for batch in batches:
        moved = [momentum * (x - y) for x, y in zip(now, old, strict=True)]
        seen = [x + m for x, m in zip(now, moved, strict=True)] if nesterov else now
        weights = np.bincount(np.asarray(batch, dtype=int), minlength=n_data) / batch_size
        weighted = weights * residual(seen, start, gram, metric)
        rows = jacobian(seen, metric)
        gradient = [
            sum(p * w[n] for p, w in zip(weighted, rows, strict=True)) for n in range(len(rows[0]))
        ]
        old, now = (
            now,
            [
                x + m - learning_rate * (g + weight_decay * s)
                for x, m, g, s in zip(now, moved, gradient, seen, strict=True)
            ],
        )
        path.append(now)
    return path
