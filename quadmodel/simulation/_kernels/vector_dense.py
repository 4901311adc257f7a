"""Compiled loops for dense curvature, with vectors across replicas, or along Q for one replica.

They take the steps of `plain`, the oracle of these. Q is stored once for both triangles, in double
or single precision; residuals are in double precision, parameters and gradients too unless single
precision is asked for. With vectors across replicas what a replica computes depends neither on its
neighbours nor on how wide vectors are.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.simulation._kernels.aligned import aligned, aligned_zeros
from quadmodel.simulation._kernels.plain import rows_of_part
from quadmodel.simulation._kernels.sums import dot, fused, no_sums, total
from quadmodel.simulation._kernels.turns import in_turns
from quadmodel.simulation._kernels.vector_blocks import both_ways, gather, one_way, scatter
from quadmodel.simulation._kernels.vectors import (
    PIECE,
    add,
    fma,
    load,
    loads_like,
    padded_params,
    spread,
    store,
    stores,
    zeros_like,
)

# Rows of Q per block: all sizes of `Shape.dense_rows` divide it.
BLOCK = 8
# Columns of Q per panel.
_PANEL = 128
_ONE = (0,)


def packed(curvature, jacobian, dtype, jacobian_dtype=np.float64):
    """Return Q with both triangles stored once, shape (n_data, elements), and J padded to it."""
    n_data, n_params = jacobian.shape
    order = padded_params(n_params, dtype)
    wide = aligned_zeros(n_data, order, dtype=jacobian_dtype)
    wide[:, :n_params] = jacobian
    stored = aligned_zeros(n_data, _packed_size(order), dtype=dtype)
    pack_symmetric(curvature, order, stored)
    return stored, wide


def packed_bytes(n_data, n_params, dtype):
    """Return the size of both arrays of `packed`."""
    order = padded_params(n_params, dtype)
    return n_data * (dtype.itemsize * _packed_size(order) + 8 * order)


def _packed_size(order):
    """Return how many elements are stored: blocks of eight rows and 8, 16, ... columns."""
    blocks = order // BLOCK
    return BLOCK * BLOCK * blocks * (blocks + 1) // 2


@compiled
def pack_symmetric(matrices, order, stored):
    """Write one triangle of each: panels of columns in blocks of eight rows, column by column."""
    n = matrices.shape[1]
    for i in range(len(matrices)):
        place = 0
        for left in range(0, order, _PANEL):
            for first in range(left, order, BLOCK):
                for column in range(left, min(first + BLOCK, left + _PANEL)):
                    for row in range(first, first + BLOCK):
                        inside = row < n and column < n
                        stored[i, place] = matrices[i, row, column] if inside else 0.0
                        place += 1


@compiled
def symmetric_product(packed, at, point, product, order, lanes, rows):
    """Write Q point, for as many vectors side by side as a vector has elements, to `product`.

    As many sums and points as `rows` is long stay in registers while as many rows of a block are
    read; off the diagonal every element of Q is used for its row and for its column. What belongs
    to the columns of a panel stays in the nearest cache.
    """
    width = PIECE * len(lanes) // packed.itemsize
    for left in range(0, order, _PANEL):
        for first in range(left, order, BLOCK):
            last = min(first, left + _PANEL)
            diagonal = BLOCK if first < left + _PANEL else 0
            for row in range(0, BLOCK, len(rows)):
                place = (first + row) * width
                own = loads_like(rows, lanes, point, place, width)
                sums = loads_like(rows, lanes, product, place, width)
                if left == 0:
                    sums = zeros_like(_ONE, rows, lanes, packed)
                element = at + row
                for column in range(left, last):
                    sums, transposed = both_ways(
                        sums, own, packed, element,
                        load(lanes, point, column * width), load(lanes, product, column * width),
                    )  # fmt: skip
                    store(product, column * width, transposed)
                    element += BLOCK
                for column in range(first, first + diagonal):
                    sums = one_way(sums, packed, element, load(lanes, point, column * width))
                    element += BLOCK
                stores(product, place, width, sums)
            at += BLOCK * (last - left + diagonal)


@compiled
def symmetric_product_alone(packed, at, point, product, order, sums, lanes):
    """Write Q point for one vector to `product`; `lanes` are those of a block's rows.

    A column of a block is a vector: it is added to the sums of the block's rows, which stay in
    registers, and to those of its own column, a vector each in `sums`, from the nearest cache.
    """
    for k in range(order):
        product[k] = 0.0
    zero = no_sums(lanes, packed)
    for left in range(0, order, _PANEL):
        for k in range(0, BLOCK * _PANEL, BLOCK):
            store(sums, k, zero)
        for first in range(left, order, BLOCK):
            last = min(first, left + _PANEL)
            own = load(lanes, point, first)
            a, b, c, d = load(lanes, product, first), zero, zero, zero
            for column in range(left, last, 4):
                place = (column - left) * BLOCK
                q0, q1 = load(lanes, packed, at), load(lanes, packed, at + BLOCK)
                q2, q3 = load(lanes, packed, at + 2 * BLOCK), load(lanes, packed, at + 3 * BLOCK)
                a, b = (
                    fma(q0, spread(lanes, point[column]), a),
                    fma(q1, spread(lanes, point[column + 1]), b),
                )
                c, d = (
                    fma(q2, spread(lanes, point[column + 2]), c),
                    fma(q3, spread(lanes, point[column + 3]), d),
                )
                store(sums, place, fma(q0, own, load(lanes, sums, place)))
                place += BLOCK
                store(sums, place, fma(q1, own, load(lanes, sums, place)))
                place += BLOCK
                store(sums, place, fma(q2, own, load(lanes, sums, place)))
                place += BLOCK
                store(sums, place, fma(q3, own, load(lanes, sums, place)))
                at += 4 * BLOCK
            if first < left + _PANEL:
                for column in range(first, first + BLOCK):
                    a = fma(load(lanes, packed, at), spread(lanes, point[column]), a)
                    at += BLOCK
            store(product, first, add(add(a, b), add(c, d)))
        for column in range(left, min(left + _PANEL, order)):
            product[column] += total(load(lanes, sums, (column - left) * BLOCK))


@compiled_inner
def dense_rows(model, buffers, part, parts):
    """Add the gradients of a part of the data points to the replicas that drew them.

    `model` is a PackedModel. As many replicas as a vector has elements are taken together: Q_i
    serves them from the nearest cache, and residual and gradient follow before the next replicas.

    Notes
    -----
    z = z_0 + J_i phi + Q_i(phi, phi) / 2 and g += z (J_i + Q_i phi), as in `plain`.
    """
    packed, jacobian, residual, lanes, rows, _ = model
    pointer, entries, point = buffers.pointer, buffers.entries, buffers.point
    order, width = point.shape[1], PIECE * len(lanes) // packed.itemsize
    rows_of_q, rows_of_j = packed.reshape(-1), jacobian.reshape(-1)
    at_point, at_gradient = aligned(order * width, packed), aligned(order * width, packed)
    points, gradients = (
        point.reshape(-1),
        buffers.gradients[part * len(buffers.gradients) // parts].reshape(-1),
    )
    filler, places, z = len(point) - 1, np.empty(width, np.int64), np.empty(width, point.dtype)
    curved = np.empty(width, packed.dtype)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        for first in range(pointer[i], pointer[i + 1], width):
            count = min(width, pointer[i + 1] - first)
            for a in range(width):
                places[a] = (entries[first + a] if a < count else filler) * order
            for k in range(0, order, width):
                gather(lanes, points, places, k, at_point)
            start = i * packed.shape[1]
            symmetric_product(rows_of_q, start, at_point, at_gradient, order, lanes, rows)
            even = odd = no_sums(lanes, packed)
            for k in range(0, order * width, 2 * width):
                even = fma(load(lanes, at_point, k), load(lanes, at_gradient, k), even)
                after = k + width
                odd = fma(load(lanes, at_point, after), load(lanes, at_gradient, after), odd)
            store(curved, 0, add(even, odd))
            for a in range(count):
                straight = dot(jacobian[i], point[entries[first + a]])
                z[a] = residual[i] + straight + 0.5 * curved[a]
            z[count:] = 0.0
            for k in range(0, order, width):
                scatter(lanes, gradients, places, k, at_gradient, rows_of_j, i * order, z)


@compiled_inner
def dense_rows_alone(model, buffers, part, parts):
    """Do what `dense_rows` does one replica at a time: for few replicas per data point."""
    packed, jacobian, residual, _, _, column = model
    pointer, entries, point = buffers.pointer, buffers.entries, buffers.point
    gradient, order = buffers.gradients[part * len(buffers.gradients) // parts], point.shape[1]
    rows_of_q = packed.reshape(-1)
    x, y = aligned(order, packed), aligned(order, packed)
    sums = aligned(BLOCK * _PANEL, packed)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        row = jacobian[i]
        for entry in range(pointer[i], pointer[i + 1]):
            theta, g = point[entries[entry]], gradient[entries[entry]]
            for k in range(order):
                x[k] = theta[k]
            symmetric_product_alone(rows_of_q, i * packed.shape[1], x, y, order, sums, column)
            z = point.dtype.type(residual[i] + dot(row, theta) + 0.5 * dot(x, y))
            for k in range(order):
                g[k] = fused(z, row[k] + y[k], g[k])


advance_dense = in_turns(dense_rows)
advance_dense_alone = in_turns(dense_rows_alone)
