"""Compiled loops for curvature of low rank, with vectors along the parameters.

They take the steps of `plain`, the oracle of these. The vectors u, parameters and gradients are in
double or single precision together, residuals in double precision. What a replica computes doesn't
depend on its neighbours, but on how wide vectors are: sums have as many parts.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel._util.compiled import compiled_inner
from quadmodel.simulation._kernels.aligned import aligned, aligned_zeros
from quadmodel.simulation._kernels.plain import rows_of_part
from quadmodel.simulation._kernels.sums import total as sum_of
from quadmodel.simulation._kernels.turns import in_turns
from quadmodel.simulation._kernels.vectors import (
    PIECE,
    add_pairs,
    add_rows,
    fetch,
    load,
    loads_like,
    numbers_like,
    padded_params,
    spreads_like,
    stores,
    zeros_like,
)

# Bytes of a row, and replicas, that are taken together: twice that stretch of J_i and of all u_ir
# is held in the second-level cache.
_STRETCH, _REPLICAS = 32768, 32
_ONE = (0,)
# Rows that are taken together, at most.
_MOST = 5


def blocks_of(n_rows):
    """Return how many rows of a data point are taken together, and how many of those left.

    As tuples, whose lengths the compiler unrolls loops over. All sums or weights of a block fit in
    registers.
    """
    most = (0,) * min(n_rows, _MOST)
    return most, (0,) * (n_rows % len(most)) or most


def stacked(vectors, jacobian, dtype):
    """Return J_i and the vectors u_ir of each data point, one below the other, padded.

    The shape is (n_data, 1 + rank, order).
    """
    n_data, rank, n_params = vectors.shape
    rows = aligned_zeros(n_data, 1 + rank, padded_params(n_params, dtype), dtype=dtype)
    rows[:, 0, :n_params], rows[:, 1:, :n_params] = jacobian, vectors
    return rows


@compiled_inner
def low_rank_rows(model, buffers, part, parts):
    """Add the gradients of a part of the data points to the replicas that drew them.

    `model` is a StackedModel. A stretch of all rows of a data point is held in the second-level
    cache while the replicas take their turns, some at a time, all in registers: for their products
    with phi first, then for the gradients. Meanwhile the rows of the data point that comes next are
    asked for: `prefetch` holds the element to prefetch next, and where these rows end.

    Notes
    -----
    z = z_0 + J_i phi + sum_r s_ir (u_ir phi)^2 / 2 and
    g += z J_i + sum_r z s_ir (u_ir phi) u_ir, as in `plain`.
    """
    rows, coefficients, residual, lanes, replicas, most, rest = model
    shape = lanes, replicas, most, rest
    pointer, entries = buffers.pointer, buffers.entries
    points, gradients = (
        buffers.point.reshape(-1),
        buffers.gradients[part * len(buffers.gradients) // parts].reshape(-1),
    )
    order, flat, width = (
        buffers.point.shape[1],
        rows.reshape(-1),
        PIECE * len(lanes) // rows.itemsize,
    )
    n_rows, stretch = rows.shape[1], _STRETCH // rows.itemsize
    places, weight = np.empty(_REPLICAS, np.int64), np.empty(n_rows * _REPLICAS, rows.dtype)
    sums = aligned(n_rows * _REPLICAS * width, rows)
    prefetch = np.zeros(2, np.int64)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        if pointer[i] == pointer[i + 1]:
            continue
        following = i + 1
        while following < last_row - 1 and pointer[following] == pointer[following + 1]:
            following += 1
        following = min(following, len(rows) - 1)
        prefetch[0], prefetch[1] = following * n_rows * order, (following + 1) * n_rows * order
        for start in range(pointer[i], pointer[i + 1], _REPLICAS):
            count = min(_REPLICAS, pointer[i + 1] - start)
            for a in range(count):
                places[a] = entries[start + a] * order
            sums.fill(0.0)
            for first in range(0, order, stretch):
                piece = flat, i * n_rows * order, order, first, min(first + stretch, order)
                _all_rows(True, shape, n_rows, count, piece, points, places, sums, prefetch)
            _write_weights(shape, n_rows, count, sums, residual[i], coefficients[i], weight)
            for first in range(0, order, stretch):
                piece = flat, i * n_rows * order, order, first, min(first + stretch, order)
                _all_rows(False, shape, n_rows, count, piece, gradients, places, weight, prefetch)


# Rows and replicas are taken in blocks: as many rows as `most` is long while there are so many,
# then as many as `rest` is; as many replicas as `shapes` says, then one.


@njit(inline="always")
def _place_of_sums(row, rows, replica):
    """Return which vector of sums a block of `rows` rows begins with, by its first row and replica.

    A block's sums follow each other, the replicas of its first row first.
    """
    return row * _REPLICAS + replica * rows


@compiled_inner
def _all_rows(products, shape, n_rows, count, piece, vectors, places, numbers, prefetch):
    """Multiply a stretch of all rows with that of all replicas, or add the rows to it.

    For `products`, `vectors` are points and `numbers` the vectors of sums that the products are
    added to; else they are gradients and the weights of the rows. (Functions that take a compiled
    function as an argument can't be kept on disk.)
    """
    lanes, replicas, most, rest = shape
    row = 0 * n_rows  # a plain 0 is a type of its own, for which `_some_rows` is compiled once more
    while n_rows - row >= len(most):
        _some_rows(
            most, products, lanes, replicas, row, count, piece, vectors, places, numbers, prefetch
        )
        row += len(most)
    if row < n_rows:
        _some_rows(
            rest, products, lanes, replicas, row, count, piece, vectors, places, numbers, prefetch
        )


@compiled_inner
def _some_rows(
    like, products, lanes, replicas, row, count, piece, vectors, places, numbers, prefetch
):
    """Do what `_all_rows` says for as many rows as the tuple `like` is long."""
    a = 0
    while count - a >= len(replicas):
        if products:
            _add_products(like, replicas, lanes, row, a, piece, vectors, places, numbers, prefetch)
        else:
            _add_gradients(like, replicas, lanes, row, a, piece, vectors, places, numbers, prefetch)
        a += len(replicas)
    while a < count:
        if products:
            _add_products(like, _ONE, lanes, row, a, piece, vectors, places, numbers, prefetch)
        else:
            _add_gradients(like, _ONE, lanes, row, a, piece, vectors, places, numbers, prefetch)
        a += 1


@njit(inline="always")
def _next_to_fetch(first, last, otherwise, prefetch):
    """Return the element to prefetch next; `otherwise`, in cache, if all has been asked for."""
    element, count = prefetch[0], 2 * (last - first)
    prefetch[0] = element + count
    return element if element + count <= prefetch[1] else otherwise


@njit(inline="always")
def _add_products(like, replicas, lanes, row, a, piece, points, places, sums, prefetch):
    """Add the products of some rows with some replicas, as many as the tuples are long, to sums."""
    rows, at, order, first, last = piece
    width = PIECE * len(lanes) // rows.itemsize
    place = _place_of_sums(row, len(like), a) * width
    own = numbers_like(replicas, places, a)
    found = loads_like(zeros_like(like, replicas, lanes, rows), lanes, sums, place, width)
    element = _next_to_fetch(first, last, at + first, prefetch)
    for k in range(first, last, width):
        fetch(lanes, rows, element + 2 * (k - first))
        some = loads_like(like, lanes, rows, at + row * order + k, order)
        found = add_pairs(found, some, points, own, k)
    stores(sums, place, width, found)


@njit(inline="always")
def _add_gradients(like, replicas, lanes, row, a, piece, gradients, places, weight, prefetch):
    """Add some rows, times their weights, to the gradients of some replicas."""
    rows, at, order, first, last = piece
    own = numbers_like(replicas, places, a)
    weights = spreads_like(like, replicas, lanes, weight, row * _REPLICAS + a, _REPLICAS)
    element = _next_to_fetch(first, last, at + first, prefetch)
    for k in range(first, last, PIECE * len(lanes) // rows.itemsize):
        fetch(lanes, rows, element + 2 * (k - first))
        some = loads_like(like, lanes, rows, at + row * order + k, order)
        add_rows(gradients, own, k, some, weights)


@compiled_inner
def _write_weights(shape, n_rows, count, sums, residual, coefficients, weight):
    """Write what J_i and each u_ir are multiplied by in the gradient of each replica.

    These are z and z s_ir (u_ir phi), z being the replica's residual at data point i.
    """
    _add_up(shape, n_rows, count, sums, weight)
    for a in range(count):
        z = residual + weight[a]
        for r in range(len(coefficients)):
            z += 0.5 * coefficients[r] * weight[(r + 1) * _REPLICAS + a] ** 2
        weight[a] = z
        for r in range(len(coefficients)):
            weight[(r + 1) * _REPLICAS + a] *= z * coefficients[r]


@njit(inline="always")
def _add_up(shape, n_rows, count, sums, total):
    """Add up the elements of every vector of sums."""
    lanes, together, most, rest = shape
    width = PIECE * len(lanes) // sums.itemsize
    row = 0
    while row < n_rows:
        rows, first = len(most) if n_rows - row >= len(most) else len(rest), 0
        while first < count:
            replicas = len(together) if count - first >= len(together) else 1
            for r in range(rows):
                for a in range(replicas):
                    place = _place_of_sums(row, rows, first) + r * replicas + a
                    vector = load(lanes, sums, place * width)
                    total[(row + r) * _REPLICAS + first + a] = sum_of(vector)
            first += replicas
        row += rows


advance_low_rank = in_turns(low_rank_rows)
