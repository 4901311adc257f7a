"""Compiled loops of measuring: batches drawn beside those of a run, products with the curvature.

A run uses the Philox counters (block, step, replica, model), with blocks below 2^29, under the key
that is its seed; redrawing of populations uses the block 2^32 - 1. The block 2^32 - 2 gives, for a
step of a replica, the key under which its batches for measurement are drawn: they are a pure
function of (seed, model, replica, step) as well, and share no counter with any run of that seed.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from quadmodel._util.compiled import compiled
from quadmodel.batches import draw_batch, philox
from quadmodel.simulation._kernels.sums import no_sums, total
from quadmodel.simulation._kernels.vectors import BYTES, fma, load, spread, store


@compiled
def draw_weights(seed, model, replica, step, scheme, batch_size, weights):
    """Fill `weights`, shape (batches, n_data), with the weights of one batch per row."""
    n_batches, n_data = weights.shape
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batch = np.empty(n_data, np.int64)
    low, high, _, _ = philox(
        uint32(0xFFFFFFFE),
        uint32(step),
        uint32(replica),
        uint32(model),
        uint32(seed),
        uint32(seed >> uint64(32)),
    )
    key = (uint64(high) << uint64(32)) | uint64(low)
    weights.fill(0.0)
    for k in range(n_batches):
        length = draw_batch(key, 0, 0, k, scheme, n_data, batch_size, order, swaps, batch)
        for i in range(length):
            weights[k, batch[i]] += n_data / batch_size


@compiled
def symmetric_products(matrices, x, out):
    """Write the products of symmetric matrices with one vector into the rows of `out`.

    The time goes into reading the matrices: only their lower triangles are, four rows at a time.
    """
    n, width = len(x), BYTES // x.itemsize
    flat, products = matrices.reshape(-1), out.reshape(-1)
    even = n - n % width
    for a in range(len(matrices)):
        q, y, base = matrices[a], out[a], a * n
        y.fill(0.0)
        for block in range(0, even, width):
            for i in range(block, block + width, 4):
                _four_rows(flat, base * n + i * n, n, x, i, block, products, base)
            for row in range(block, block + width):
                for k in range(block, block + width):
                    y[row] += q[row, k] * x[k]
        for i in range(even, n):
            for k in range(i):
                y[k] += x[i] * q[i, k]
                y[i] += q[i, k] * x[k]
            y[i] += q[i, i] * x[i]


@compiled
def _four_rows(flat, at, stride, x, i, n_columns, y, base):
    """Use four rows of a matrix, from `at` on, for the products of rows and of columns.

    A number of columns that is one of whole vectors.
    """
    width = BYTES // x.itemsize
    x0, x1, x2, x3 = spread(x[i]), spread(x[i + 1]), spread(x[i + 2]), spread(x[i + 3])
    y0 = y1 = y2 = y3 = no_sums(x)
    for k in range(0, n_columns, width):
        q0, q1 = load(flat, at + k), load(flat, at + stride + k)
        q2, q3 = load(flat, at + 2 * stride + k), load(flat, at + 3 * stride + k)
        own, column = load(x, k), load(y, base + k)
        y0, y1, y2, y3 = fma(q0, own, y0), fma(q1, own, y1), fma(q2, own, y2), fma(q3, own, y3)
        column = fma(q1, x1, fma(q0, x0, column))
        store(y, base + k, fma(q3, x3, fma(q2, x2, column)))
    y[base + i] += total(y0)
    y[base + i + 1] += total(y1)
    y[base + i + 2] += total(y2)
    y[base + i + 3] += total(y3)
