"""Compiled loops for curvature on processors with wide vectors.

The same steps as those of `_kernels`, which serves other processors and is the oracle of these.
Dense Q is stored once for both triangles, in double or single precision; parameters, residual and
gradient are in double precision always. What a lane computes doesn't depend on its neighbours.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.simulation._columns import _FAST
from quadmodel.simulation._kernels import apply_gradients, draw_lanes
from quadmodel.simulation._vectors import (
    BYTES,
    add,
    add_pairs,
    add_rows,
    aligned,
    aligned_zeros,
    both_ways,
    fma,
    gather,
    load,
    loads,
    loads_like,
    one_way,
    scatter,
    spread,
    store,
    stores,
    write_totals,
    zeros_like,
)

# Rows of Q per block: their sums and points fill half of the 32 registers.
_BLOCK = 8
_WIDTH = BYTES // 8
# Numbers of lanes and of rows as lengths of tuples, which the compiler unrolls loops over.
_ONE, _TWO, _FOUR, _FIVE, _EIGHT = (0,), (0,) * 2, (0,) * 4, (0,) * 5, (0,) * 8


def packed(curvature, jacobian, dtype):
    """Return Q with both triangles stored once, shape (n_data, elements), and J padded to it."""
    n_data, n_params = jacobian.shape
    order = _padded(n_params, dtype)
    wide = aligned_zeros(n_data, order)
    wide[:, :n_params] = jacobian
    stored = np.empty((n_data, _packed_size(order)), dtype)
    pack_symmetric(curvature, order, stored)
    return stored, wide


def packed_bytes(n_data, n_params, dtype):
    """Return the size of both arrays of `packed`."""
    order = _padded(n_params, dtype)
    return n_data * (dtype.itemsize * _packed_size(order) + 8 * order)


def _padded(n_params, dtype):
    """Return the number of parameters rounded up to whole vectors."""
    width = BYTES // np.dtype(dtype).itemsize
    return -(-n_params // width) * width


def _packed_size(order):
    """Return how many elements are stored: blocks of eight rows and 8, 16, ... columns."""
    blocks = order // _BLOCK
    return _BLOCK * _BLOCK * blocks * (blocks + 1) // 2


@njit(cache=True, nogil=True)
def pack_symmetric(matrices, order, stored):
    """Write one triangle of each in blocks of eight rows, each block column by column."""
    n = matrices.shape[1]
    for i in range(len(matrices)):
        place = 0
        for first in range(0, order, _BLOCK):
            for column in range(first + _BLOCK):
                for row in range(first, first + _BLOCK):
                    inside = row < n and column < n
                    stored[i, place] = matrices[i, row, column] if inside else 0.0
                    place += 1


@njit(cache=True, nogil=True)
def symmetric_product(packed, at, point, product, order, width):
    """Write Q point, for `width` vectors side by side, to `product`.

    Eight sums and eight points stay in registers while a block of eight rows is read; off the
    diagonal every element of Q is used for its row and for its column.
    """
    for first in range(0, order, _BLOCK):
        own = loads(point, first * width, width, 8)
        sums = zeros_like(_ONE, _EIGHT, packed)
        for column in range(first):
            there = column * width
            sums, back = both_ways(sums, own, packed, at, load(point, there), load(product, there))
            store(product, there, back)
            at += _BLOCK
        for column in range(first, first + _BLOCK):
            sums = one_way(sums, packed, at, load(point, column * width))
            at += _BLOCK
        stores(product, first * width, width, sums)


@njit(cache=True, nogil=True, fastmath=_FAST)
def dense_rows(arrays, point, pointer, entries, first_row, last_row, gradient):
    """Add the gradients that some data points have for the lanes that drew them.

    `arrays` are those of `packed` and the residual; lane a, in row a of `point` and `gradient`,
    belongs to data point i if it is in entries[pointer[i] : pointer[i + 1]]; the last row is zero
    and stands in where fewer lanes than a vector's width are left. Q_i serves them from the nearest
    cache, and residual and gradient follow before the next lanes.
    """
    packed, jacobian, residual = arrays
    order, width = point.shape[1], BYTES // packed.itemsize
    rows_of_q, rows_of_j = packed.reshape(-1), jacobian.reshape(-1)
    at_point, at_gradient = aligned(order * width, packed), aligned(order * width, packed)
    points, gradients, nobody = point.reshape(-1), gradient.reshape(-1), len(point) - 1
    places, z = np.empty(width, np.int64), np.empty(width)
    curved = np.empty(width, packed.dtype)
    for i in range(first_row, last_row):
        for first in range(pointer[i], pointer[i + 1], width):
            count = min(width, pointer[i + 1] - first)
            for a in range(width):
                places[a] = (entries[first + a] if a < count else nobody) * order
            for k in range(0, order, width):
                gather(points, places, k, at_point)
            symmetric_product(
                rows_of_q,
                i * packed.shape[1],
                at_point,
                at_gradient,
                order,
                width,
            )
            even = odd = spread(packed.dtype.type(0.0))
            for k in range(0, order * width, 2 * width):
                even = fma(load(at_point, k), load(at_gradient, k), even)
                odd = fma(load(at_point, k + width), load(at_gradient, k + width), odd)
            store(curved, 0, add(even, odd))
            for a in range(count):
                straight, lane = 0.0, entries[first + a]
                for k in range(order):
                    straight += jacobian[i, k] * point[lane, k]
                z[a] = residual[i] + straight + 0.5 * curved[a]
            z[count:] = 0.0
            for k in range(0, order, width):
                scatter(gradients, places, k, at_gradient, rows_of_j, i * order, z)


def stacked(vectors, jacobian):
    """Return J_i and the vectors u_ir of each data point, one below the other, padded.

    The shape is (n_data, 1 + rank, order).
    """
    n_data, rank, n_params = vectors.shape
    order = _padded(n_params, jacobian.dtype)
    rows = aligned_zeros(n_data, 1 + rank, order)
    rows[:, 0, :n_params], rows[:, 1:, :n_params] = jacobian, vectors
    return rows


@njit(cache=True, nogil=True)
def _products(like, lanes, rows, at, order, points, places, found, first):
    """Write the products of rows and lanes, as many as the tuples are long, to `found`."""
    sums = zeros_like(like, lanes, rows)
    for k in range(0, order, _WIDTH):
        sums = add_pairs(sums, loads_like(like, rows, at + k, order), points, places, k)
    write_totals(sums, found, first)


@njit(cache=True, nogil=True)
def _add_weighted(like, lanes, rows, at, order, gradients, places, weights, first):
    """Add rows to the gradients of the lanes, each with its weight."""
    for k in range(0, order, _WIDTH):
        some = loads_like(like, rows, at + k, order)
        add_rows(gradients, places, k, some, weights, first, lanes)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _low_rank_block(lanes, rows, coefficients, residual, points, gradients, places, weight):
    """Add the gradients that one data point has for as many lanes as the tuple is long."""
    rank, width = len(coefficients), len(lanes)
    order, rows = rows.shape[1], rows.reshape(-1)
    fives = (1 + rank) // 5 * 5
    pairs = 1 + rank - (1 + rank - fives) % 2
    for k in range(0, fives, 5):
        _products(_FIVE, lanes, rows, k * order, order, points, places, weight, width * k)
    for k in range(fives, pairs, 2):
        _products(_TWO, lanes, rows, k * order, order, points, places, weight, width * k)
    for k in range(pairs, 1 + rank):
        _products(_ONE, lanes, rows, k * order, order, points, places, weight, width * k)
    for a in range(width):
        z = residual + weight[a]
        for r in range(rank):
            z += 0.5 * coefficients[r] * weight[width * (r + 1) + a] ** 2
        weight[a] = z
        for r in range(rank):
            weight[width * (r + 1) + a] *= z * coefficients[r]
    for k in range(0, fives, 5):
        _add_weighted(_FIVE, lanes, rows, k * order, order, gradients, places, weight, width * k)
    for k in range(fives, pairs, 2):
        _add_weighted(_TWO, lanes, rows, k * order, order, gradients, places, weight, width * k)
    for k in range(pairs, 1 + rank):
        _add_weighted(_ONE, lanes, rows, k * order, order, gradients, places, weight, width * k)


@njit(cache=True, nogil=True)
def low_rank_rows(arrays, point, pointer, entries, first_row, last_row, gradient):
    """Do the same as `dense_rows` for curvature sum_r s_r u_r u_r^T per data point.

    `arrays` are that of `stacked`, the s_r, and the residual. For four lanes at a time, products of
    five rows of J_i and u_ir with all four points stay in registers; then the same rows, still in
    the second-level cache, are added to the gradients.
    """
    rows, coefficients, residual = arrays
    order, nobody = point.shape[1], len(point) - 1
    points, gradients = point.reshape(-1), gradient.reshape(-1)
    places, weight = np.empty(4, np.int64), np.empty(4 * rows.shape[1])
    for i in range(first_row, last_row):
        for first in range(pointer[i], pointer[i + 1], 4):
            count = min(4, pointer[i + 1] - first)
            for a in range(4):
                # Beyond the last lane one that nobody looks at.
                places[a] = (entries[first + a] if a < count else nobody) * order
            own = rows[i], coefficients[i], residual[i], points, gradients, places, weight
            if count == 1:
                _low_rank_block(_ONE, *own)
            else:
                _low_rank_block(_FOUR, *own)


@njit(cache=True, nogil=True)
def advance_dense(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    # As in `_kernels`: only functions with a name of their own are kept compiled on disk.
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        dense_rows(arrays, point, pointer, entries, 0, len(pointer) - 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)


@njit(cache=True, nogil=True)
def advance_low_rank(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        low_rank_rows(arrays, point, pointer, entries, 0, len(pointer) - 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)
