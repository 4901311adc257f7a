"""Compiled loops for dense curvature on processors with wide vectors.

They take the steps of `plain`, which serves other processors and is the oracle of these. Q is
stored once for both triangles, in double or single precision; parameters, residual and gradient are
in double precision always. What a replica computes doesn't depend on its neighbours.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from quadmodel._util.compiled import compiled
from quadmodel.simulation._kernels.aligned import aligned, aligned_zeros
from quadmodel.simulation._kernels.plain import apply_gradients, draw_batches, rows_of_part
from quadmodel.simulation._kernels.sums import dot
from quadmodel.simulation._kernels.vector_blocks import both_ways, gather, one_way, scatter
from quadmodel.simulation._kernels.vectors import (
    BYTES,
    add,
    fma,
    load,
    loads,
    padded_params,
    spread,
    store,
    stores,
    zeros_like,
)

# Rows of Q per block: their sums and points fill half of the 32 registers.
_BLOCK = 8
# Columns of Q per panel.
_PANEL = 128
# Tuples whose lengths are numbers of rows: the compiler unrolls loops over them.
_ONE, _EIGHT = (0,), (0,) * 8


def packed(curvature, jacobian, dtype):
    """Return Q with both triangles stored once, shape (n_data, elements), and J padded to it."""
    n_data, n_params = jacobian.shape
    order = padded_params(n_params, dtype)
    wide = aligned_zeros(n_data, order)
    wide[:, :n_params] = jacobian
    stored = np.empty((n_data, _packed_size(order)), dtype)
    pack_symmetric(curvature, order, stored)
    return stored, wide


def packed_bytes(n_data, n_params, dtype):
    """Return the size of both arrays of `packed`."""
    order = padded_params(n_params, dtype)
    return n_data * (dtype.itemsize * _packed_size(order) + 8 * order)


def _packed_size(order):
    """Return how many elements are stored: blocks of eight rows and 8, 16, ... columns."""
    blocks = order // _BLOCK
    return _BLOCK * _BLOCK * blocks * (blocks + 1) // 2


@compiled
def pack_symmetric(matrices, order, stored):
    """Write one triangle of each: panels of columns in blocks of eight rows, column by column."""
    n = matrices.shape[1]
    for i in range(len(matrices)):
        place = 0
        for left in range(0, order, _PANEL):
            for first in range(left, order, _BLOCK):
                for column in range(left, min(first + _BLOCK, left + _PANEL)):
                    for row in range(first, first + _BLOCK):
                        inside = row < n and column < n
                        stored[i, place] = matrices[i, row, column] if inside else 0.0
                        place += 1


@compiled
def symmetric_product(packed, at, point, product, order, width):
    """Write Q point, for `width` vectors side by side, to `product`.

    Eight sums and eight points stay in registers while a block of eight rows is read; off the
    diagonal every element of Q is used for its row and for its column. What belongs to the columns
    of a panel stays in the nearest cache.
    """
    for left in range(0, order, _PANEL):
        for first in range(left, order, _BLOCK):
            own = loads(point, first * width, width, 8)
            sums = loads(product, first * width, width, 8)
            if left == 0:
                sums = zeros_like(_ONE, _EIGHT, packed)
            for column in range(left, min(first, left + _PANEL)):
                place = column * width
                sums, transposed = both_ways(
                    sums, own, packed, at, load(point, place), load(product, place)
                )
                store(product, place, transposed)
                at += _BLOCK
            if first < left + _PANEL:
                for column in range(first, first + _BLOCK):
                    sums = one_way(sums, packed, at, load(point, column * width))
                    at += _BLOCK
            stores(product, first * width, width, sums)


@compiled
def dense_rows(model, buffers, part, parts):
    """Add the gradients of a part of the data points to the replicas that drew them.

    `model` is a DenseModel from `packed`. As many replicas as a vector has elements are taken
    together: Q_i serves them from the nearest cache, and residual and gradient follow before the
    next replicas.

    Notes
    -----
    z = z_0 + J_i phi + Q_i(phi, phi) / 2 and g += z (J_i + Q_i phi), as in `plain`.
    """
    packed, jacobian, residual = model.curvature, model.jacobian, model.residual
    pointer, entries, point = buffers.pointer, buffers.entries, buffers.point
    order, width = point.shape[1], BYTES // packed.itemsize
    rows_of_q, rows_of_j = packed.reshape(-1), jacobian.reshape(-1)
    at_point, at_gradient = aligned(order * width, packed), aligned(order * width, packed)
    points, gradients = (
        point.reshape(-1),
        buffers.gradients[part * len(buffers.gradients) // parts].reshape(-1),
    )
    filler, places, z = len(point) - 1, np.empty(width, np.int64), np.empty(width)
    curved = np.empty(width, packed.dtype)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        for first in range(pointer[i], pointer[i + 1], width):
            count = min(width, pointer[i + 1] - first)
            for a in range(width):
                places[a] = (entries[first + a] if a < count else filler) * order
            for k in range(0, order, width):
                gather(points, places, k, at_point)
            start = i * packed.shape[1]
            symmetric_product(rows_of_q, start, at_point, at_gradient, order, width)
            even = odd = spread(packed.dtype.type(0.0))
            for k in range(0, order * width, 2 * width):
                even = fma(load(at_point, k), load(at_gradient, k), even)
                odd = fma(load(at_point, k + width), load(at_gradient, k + width), odd)
            store(curved, 0, add(even, odd))
            for a in range(count):
                straight = dot(jacobian[i], point[entries[first + a]])
                z[a] = residual[i] + straight + 0.5 * curved[a]
            z[count:] = 0.0
            for k in range(0, order, width):
                scatter(gradients, places, k, at_gradient, rows_of_j, i * order, z)


@compiled
def advance_dense(model, replicas, options, limit, buffers, first_step, n_steps):
    """Take many steps with some replicas; the gradients have one part."""
    for step in range(first_step, first_step + n_steps):
        draw_batches(replicas, options, step, buffers)
        dense_rows(model, buffers, 0, 1)
        apply_gradients(replicas, options, limit, step, buffers.gradients)
