"""Compiled loops for curvature on processors with wide vectors.

The same steps as those of `_kernels`, which serves other processors and is the oracle of these.
Dense Q is stored once for both triangles, in double or single precision; parameters, residual and
gradient are in double precision always. What a lane computes doesn't depend on its neighbours.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.simulation._kernels.aligned import aligned, aligned_zeros
from quadmodel.simulation._kernels.columns import _FAST
from quadmodel.simulation._kernels.plain import apply_gradients, draw_lanes, rows_of_part
from quadmodel.simulation._kernels.vector_blocks import both_ways, gather, one_way, scatter
from quadmodel.simulation._kernels.vectors import (
    BYTES,
    add,
    add_pairs,
    add_rows,
    fetch,
    fma,
    load,
    loads,
    loads_like,
    numbers_like,
    spread,
    spreads_like,
    store,
    stores,
    zeros_like,
)

# Rows of Q per block: their sums and points fill half of the 32 registers.
_BLOCK = 8
# Columns of Q per panel.
_PANEL = 128
# Of low rank: bytes of a row, and lanes, that are taken together.
_STRETCH, _LANES = 32768, 32
# Cache lines asked for with each vector.
_FETCHED = 2
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


@njit(cache=True, nogil=True)
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
                there = column * width
                sums, back = both_ways(
                    sums, own, packed, at, load(point, there), load(product, there)
                )
                store(product, there, back)
                at += _BLOCK
            if first < left + _PANEL:
                for column in range(first, first + _BLOCK):
                    sums = one_way(sums, packed, at, load(point, column * width))
                    at += _BLOCK
            stores(product, first * width, width, sums)


@njit(cache=True, nogil=True, fastmath=_FAST)
def dense_rows(arrays, point, pointer, entries, part, parts, gradient):
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
    first_row, last_row = rows_of_part(pointer, part, parts)
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


def stacked(vectors, jacobian, dtype):
    """Return J_i and the vectors u_ir of each data point, one below the other, padded.

    The shape is (n_data, 1 + rank, order).
    """
    n_data, rank, n_params = vectors.shape
    rows = aligned_zeros(n_data, 1 + rank, _padded(n_params, dtype), dtype=dtype)
    rows[:, 0, :n_params], rows[:, 1:, :n_params] = jacobian, vectors
    return rows


@njit(cache=True, nogil=True)
def low_rank_rows(arrays, point, pointer, entries, part, parts, gradient):
    """Do the same as `dense_rows` for curvature sum_r s_r u_r u_r^T per data point.

    `arrays` are that of `stacked`, the s_r, and the residual; `point` and `gradient` are in the
    precision of the rows. Twice a stretch of J_i and of all u_ir is held in the second-level cache
    while the lanes take their turns, four at a time, all in registers: for their products, and for
    the gradients. Meanwhile the rows of the point that comes next are asked for: `ahead` says from
    which element on, and where they end.
    """
    rows, coefficients, residual = arrays
    order, width = point.shape[1], BYTES // rows.itemsize
    flat, points, gradients = rows.reshape(-1), point.reshape(-1), gradient.reshape(-1)
    n_rows, stretch = rows.shape[1], _STRETCH // rows.itemsize
    places, weight = np.empty(_LANES, np.int64), np.empty(n_rows * _LANES, rows.dtype)
    sums = aligned(n_rows * _LANES * width, rows)
    ahead = np.zeros(2, np.int64)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        if pointer[i] == pointer[i + 1]:
            continue
        following = i + 1
        while following < last_row - 1 and pointer[following] == pointer[following + 1]:
            following += 1
        following = min(following, len(rows) - 1)
        ahead[0], ahead[1] = following * n_rows * order, (following + 1) * n_rows * order
        for start in range(pointer[i], pointer[i + 1], _LANES):
            count = min(_LANES, pointer[i + 1] - start)
            for a in range(count):
                places[a] = entries[start + a] * order
            sums.fill(0.0)
            for first in range(0, order, stretch):
                piece = flat, i * n_rows * order, order, first, min(first + stretch, order)
                _add_products(n_rows, count, piece, points, places, sums, ahead)
            _write_weights(n_rows, count, sums, residual[i], coefficients[i], weight)
            for first in range(0, order, stretch):
                piece = flat, i * n_rows * order, order, first, min(first + stretch, order)
                _add_gradients(n_rows, count, piece, gradients, places, weight, ahead)


@njit(cache=True, nogil=True)
def _add_products(n_rows, count, piece, points, places, sums, ahead):
    """Add the products of a stretch of all rows with that of all lanes to vectors of sums."""
    # `_add_gradients` goes the same way; compiled code that takes the work to do as an argument
    # can't be kept on disk.
    row = 0
    while row + 5 <= n_rows:
        _add_some_products(_FIVE, row, count, piece, points, places, sums, ahead)
        row += 5
    while row + 2 <= n_rows:
        _add_some_products(_TWO, row, count, piece, points, places, sums, ahead)
        row += 2
    if row < n_rows:
        _add_some_products(_ONE, row, count, piece, points, places, sums, ahead)


@njit(cache=True, nogil=True)
def _add_some_products(like, row, count, piece, points, places, sums, ahead):
    """Do it for as many rows as the tuple is long: for four lanes at a time all in registers."""
    lane = 0
    while lane + 4 <= count:
        _products(like, _FOUR, row, lane, piece, points, places, sums, ahead)
        lane += 4
    while lane < count:
        _products(like, _ONE, row, lane, piece, points, places, sums, ahead)
        lane += 1


@njit(inline="always")
def _rows_to_fetch(first, last, close, ahead):
    """Return where to ask for rows meanwhile: what is close, if all has been asked for."""
    here, count = ahead[0], _FETCHED * (last - first)
    ahead[0] = here + count
    return here if here + count <= ahead[1] else close


@njit(inline="always")
def _products(like, lanes, row, lane, piece, points, places, sums, ahead):
    """Add the products of some rows with some lanes, as many as the tuples are long, to sums."""
    rows, at, order, first, last = piece
    width = BYTES // rows.itemsize
    # A row's sums lie together, those of rows and lanes that are taken together too.
    place = (row * _LANES + lane * len(like)) * width
    own = numbers_like(lanes, places, lane)
    found = loads_like(zeros_like(like, lanes, rows), sums, place, width)
    here = _rows_to_fetch(first, last, at + first, ahead)
    for k in range(first, last, width):
        fetch(rows, here + _FETCHED * (k - first), _FETCHED)
        some = loads_like(like, rows, at + row * order + k, order)
        found = add_pairs(found, some, points, own, k)
    stores(sums, place, width, found)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _write_weights(n_rows, count, sums, residual, coefficients, weight):
    """Write what J_i and each u_ir are multiplied by in the gradient of each lane.

    These are z and z s_r (u_r theta), z being the residual there.
    """
    width = BYTES // sums.itemsize
    row = 0
    while row < n_rows:
        left = n_rows - row
        together = 5 if left >= 5 else min(left, 2)
        for lane in range(count):
            # As they were written: four lanes at a time, then one by one.
            fours = count - count % 4
            lanes, first = (4, lane - lane % 4) if lane < fours else (1, lane)
            for r in range(together):
                place = row * _LANES + first * together + r * lanes + lane - first
                total = 0.0
                for k in range(width):
                    total += sums[place * width + k]
                weight[(row + r) * _LANES + lane] = total
        row += together
    for lane in range(count):
        z = residual + weight[lane]
        for r in range(len(coefficients)):
            z += 0.5 * coefficients[r] * weight[(r + 1) * _LANES + lane] ** 2
        weight[lane] = z
        for r in range(len(coefficients)):
            weight[(r + 1) * _LANES + lane] *= z * coefficients[r]


@njit(cache=True, nogil=True)
def _add_gradients(n_rows, count, piece, gradients, places, weight, ahead):
    """Add a stretch of all rows to that of the gradients of all lanes."""
    row = 0
    while row + 5 <= n_rows:
        _add_some_gradients(_FIVE, row, count, piece, gradients, places, weight, ahead)
        row += 5
    while row + 2 <= n_rows:
        _add_some_gradients(_TWO, row, count, piece, gradients, places, weight, ahead)
        row += 2
    if row < n_rows:
        _add_some_gradients(_ONE, row, count, piece, gradients, places, weight, ahead)


@njit(cache=True, nogil=True)
def _add_some_gradients(like, row, count, piece, gradients, places, weight, ahead):
    """Do it for as many rows as the tuple is long; their weights stay in registers."""
    lane = 0
    while lane + 4 <= count:
        _gradients(like, _FOUR, row, lane, piece, gradients, places, weight, ahead)
        lane += 4
    while lane < count:
        _gradients(like, _ONE, row, lane, piece, gradients, places, weight, ahead)
        lane += 1


@njit(inline="always")
def _gradients(like, lanes, row, lane, piece, gradients, places, weight, ahead):
    """Add some rows to the gradients of some lanes; their weights stay in registers."""
    rows, at, order, first, last = piece
    own = numbers_like(lanes, places, lane)
    weights = spreads_like(like, lanes, weight, row * _LANES + lane, _LANES)
    here = _rows_to_fetch(first, last, at + first, ahead)
    for k in range(first, last, BYTES // rows.itemsize):
        fetch(rows, here + _FETCHED * (k - first), _FETCHED)
        some = loads_like(like, rows, at + row * order + k, order)
        add_rows(gradients, own, k, some, weights)


@njit(cache=True, nogil=True)
def advance_dense(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    # As in `_kernels`: only functions with a name of their own are kept compiled on disk.
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        dense_rows(arrays, point, pointer, entries, 0, 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)


@njit(cache=True, nogil=True)
def advance_low_rank(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        low_rank_rows(arrays, point, pointer, entries, 0, 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)
