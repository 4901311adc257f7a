"""Compiled loops of measuring: batches drawn beside those of a run, products with the curvature.

A run uses the Philox counters (block, step, replica, model), with blocks below 2^29, under the key
that is its seed; redrawing of populations uses the block 2^32 - 1. The block 2^32 - 2 gives, for a
step of a replica, the key under which its batches for measurement are drawn: they are a pure
function of (seed, model, replica, step) as well, and share no counter with any run of that seed.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from quadmodel._util.compiled import compiled
from quadmodel.batches import draw_batch, in_order, philox
from quadmodel.simulation._kernels.sums import four_products, fused


@compiled
def draw_weights(seed, model, replica, step, scheme, batch_size, weights):
    """Fill `weights`, shape (batches, n_data), with the weights of one batch per row."""
    n_batches, n_data = weights.shape
    order, swaps = in_order(n_data), np.empty(n_data, np.int64)
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

    The time goes into reading the matrices: only their lower triangles are, eight rows at a time,
    which stay in cache for their use as columns.
    """
    n = len(x)
    even = n - n % 8
    for a in range(len(matrices)):
        q, y = matrices[a], out[a]
        y.fill(0.0)
        for i in range(0, even, 8):
            q0, q1, q2, q3 = q[i], q[i + 1], q[i + 2], q[i + 3]
            q4, q5, q6, q7 = q[i + 4], q[i + 5], q[i + 6], q[i + 7]
            x0, x1, x2, x3 = x[i : i + 4]
            x4, x5, x6, x7 = x[i + 4 : i + 8]
            four_products(q, i, i, x, y)
            four_products(q, i + 4, i, x, y)
            for k in range(i):
                low = fused(x0, q0[k], fused(x1, q1[k], fused(x2, q2[k], x3 * q3[k])))
                high = fused(x4, q4[k], fused(x5, q5[k], fused(x6, q6[k], x7 * q7[k])))
                y[k] += low + high
            for row in range(i, i + 8):
                for k in range(i, i + 8):
                    y[row] += q[row, k] * x[k]
        for i in range(even, n):
            for k in range(i):
                y[k] += x[i] * q[i, k]
                y[i] += q[i, k] * x[k]
            y[i] += q[i, i] * x[i]
