"""Sums of columns of the NTK, which are the steps of the linear model.

The NTK is cut into tiles: a tile of all columns fits in the second-level cache, eight vectors of
sums stay in registers while the columns of one replica are added, and the replicas take their turn
at one tile. Replicas with many columns add those of one block of data points after another, for
which the tile's part stays in the nearest cache. Without the compiler whole columns are added to
whole residuals. Every element is a sum of its own: results are the same bits for any width.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import config

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.vectors import PIECE, add_multiple, add_to, zeros_like

# Vectors per tile, and per tile of what is left.
_LARGE, _SMALL = 8, 4
_ONE, _LARGE_SUMS, _SMALL_SUMS = (0,), (0,) * _LARGE, (0,) * _SMALL
# Data points per block: so many rows of a large tile are as large as the nearest cache.
BLOCK = 96


class Terms(NamedTuple):
    """What is to be added to every replica: sums of columns, listed by blocks of data points.

    Column picked[k], times coefficient[k] unit[a], is added to replica a, for
    begin[b, a] <= k < begin[b, a + 1] in every block b.
    """

    begin: IntArray
    picked: IntArray
    coefficient: FloatArray
    unit: FloatArray


def tiled(ntk, lanes):
    """Return the NTK as `add_columns` wants it, and the length of a residual in doubles.

    Columns stay in the precision of `ntk`, of shape (n_data, n_data). Tiles come one after another,
    flat, each with a row per data point. The length is n_data rounded up to an odd number of cache
    lines: elements of all replicas that are used together would fall into a few sets of the cache
    if it were a power of two. Without `lanes` columns stay whole.
    """
    n_data = len(ntk)
    if not lanes:
        return np.ascontiguousarray(ntk).reshape(-1), n_data
    width = PIECE * len(lanes) // ntk.itemsize
    order = -(-n_data // (_SMALL * width)) * _SMALL * width
    wide = np.zeros((n_data, order), ntk.dtype)
    wide[:, :n_data] = ntk
    full = order - order % (_LARGE * width)
    ends = [*range(0, full, _LARGE * width), *range(full, order, _SMALL * width)]
    cuts = zip(ends, [*ends[1:], order], strict=True)
    columns = aligned_zeros(n_data * order, dtype=ntk.dtype)
    for first, last in cuts:
        columns[first * n_data : last * n_data] = wide[:, first:last].ravel()
    return columns, (-(-order // 8) | 1) * 8


@compiled
def add_columns_in_tiles(columns, lanes, n_data, terms, z):
    """Add the columns of `terms` to the replicas, rows of `z`; `columns` are in tiles."""
    width = PIECE * len(lanes) // columns.itemsize
    order = len(columns) // n_data
    full = order - order % (_LARGE * width)
    for first in range(0, full, _LARGE * width):
        _add_tile(_LARGE_SUMS, columns, lanes, n_data, first, terms, z)
    for first in range(full, order, _SMALL * width):
        _add_tile(_SMALL_SUMS, columns, lanes, n_data, first, terms, z)


@compiled_inner
def _add_tile(like, columns, lanes, n_data, first, terms, z):
    """Add a tile of the columns: elements `first` on, as many vectors as the tuple `like` is long.

    The tuple's length is part of its type, so that the compiler unrolls the loops over it.
    """
    begin, picked, coefficient, unit = terms
    count, length = z.shape
    tile, flat = len(like) * (PIECE * len(lanes) // columns.itemsize), z.reshape(-1)
    for block in range(len(begin)):
        if begin[block, 0] == begin[block, count]:
            continue
        for a in range(count):
            k, last = begin[block, a], begin[block, a + 1]
            if k == last:
                continue
            sums = zeros_like(_ONE, like, lanes, columns)
            while k < last:
                row = first * n_data + picked[k] * tile
                sums = add_multiple(sums, coefficient[k], columns, row)
                k += 1
            add_to(flat, a * length + first, z.dtype.type(unit[a]), sums)


def add_whole_columns(columns, lanes, n_data, terms, z):
    """Add the columns of `terms` to the replicas; `columns` are an NTK, flat."""
    begin, picked, coefficient, unit = terms
    whole = columns.reshape(n_data, n_data)
    for block in range(len(begin)):
        for a in range(len(z)):
            for k in range(begin[block, a], begin[block, a + 1]):
                z[a] += coefficient[k] * unit[a] * whole[picked[k]]


add_columns = add_whole_columns if config.DISABLE_JIT else add_columns_in_tiles
