"""Sums of columns of the NTK, which are the steps of the linear model.

Where the processor has wide vectors the NTK is cut into tiles: a tile of all columns fits in the
second-level cache, eight vectors of sums stay in registers while the columns of one replica are
added, and the replicas take their turn at one tile. Replicas with many columns add those of one
block of data points after another, for which the tile's part stays in the nearest cache. On other
processors whole columns are added to whole residuals.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.compiled import compiled
from quadmodel.simulation._kernels import vectors as _vectors
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.sums import fused
from quadmodel.simulation._kernels.vectors import BYTES, add_multiple, add_to, zeros_like

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


def tiled(ntk, in_tiles=_vectors.AVAILABLE):
    """Return the NTK as `add_columns` wants it, and the length of a residual in doubles.

    Columns stay in the precision of `ntk`, of shape (n_data, n_data). Tiles come one after another,
    flat, each with a row per data point. The length is n_data rounded up to an odd number of cache
    lines: elements of all replicas that are used together would fall into a few sets of the cache
    if it were a power of two.
    """
    n_data = len(ntk)
    if not in_tiles:
        return np.ascontiguousarray(ntk).reshape(-1), n_data
    width = BYTES // ntk.itemsize
    order = -(-n_data // (_SMALL * width)) * _SMALL * width
    wide = np.zeros((n_data, order), ntk.dtype)
    wide[:, :n_data] = ntk
    full = order - order % (_LARGE * width)
    ends = [*range(0, full, _LARGE * width), *range(full, order, _SMALL * width)]
    cuts = zip(ends, [*ends[1:], order], strict=True)
    columns = aligned_zeros(n_data * order, dtype=ntk.dtype)
    for first, last in cuts:
        columns[first * n_data : last * n_data] = wide[:, first:last].ravel()
    return columns, (order // 8 | 1) * 8


@compiled
def add_columns_in_tiles(columns, n_data, terms, z):
    """Add the columns of `terms` to the replicas, rows of `z`; `columns` are in tiles."""
    width = BYTES // columns.itemsize
    order = len(columns) // n_data
    full = order - order % (_LARGE * width)
    for first in range(0, full, _LARGE * width):
        _add_tile(_LARGE_SUMS, columns, n_data, first, terms, z)
    for first in range(full, order, _SMALL * width):
        _add_tile(_SMALL_SUMS, columns, n_data, first, terms, z)


@compiled
def _add_tile(like, columns, n_data, first, terms, z):
    """Add a tile of the columns: elements `first` on, as many vectors as the tuple `like` is long.

    The tuple's length is part of its type, so that the compiler unrolls the loops over it.
    """
    begin, picked, coefficient, unit = terms
    count, length = z.shape
    tile, flat = len(like) * (BYTES // columns.itemsize), z.reshape(-1)
    for block in range(len(begin)):
        if begin[block, 0] == begin[block, count]:
            continue
        for a in range(count):
            k, last = begin[block, a], begin[block, a + 1]
            if k == last:
                continue
            sums = zeros_like(_ONE, like, columns)
            while k < last:
                row = first * n_data + picked[k] * tile
                sums = add_multiple(sums, coefficient[k], columns, row)
                k += 1
            add_to(flat, a * length + first, unit[a], sums)


@compiled
def add_whole_columns(columns, n_data, terms, z):
    """Add the columns of `terms` to the replicas; `columns` are an NTK, flat.

    Four columns are added at a time, while a residual is in the nearest cache.
    """
    begin, picked, coefficient, unit = terms
    for block in range(len(begin)):
        for a in range(len(z)):
            k, last, own = begin[block, a], begin[block, a + 1], z[a]
            while k + 4 <= last:
                c0, c1, c2, c3 = coefficient[k : k + 4] * unit[a]
                i0, i1, i2, i3 = picked[k : k + 4] * n_data
                for j in range(n_data):
                    left = fused(c0, columns[i0 + j], c1 * columns[i1 + j])
                    right = fused(c2, columns[i2 + j], c3 * columns[i3 + j])
                    own[j] += left + right
                k += 4
            while k < last:
                c0, i0 = coefficient[k] * unit[a], picked[k] * n_data
                for j in range(n_data):
                    own[j] = fused(c0, columns[i0 + j], own[j])
                k += 1


add_columns = add_columns_in_tiles if _vectors.AVAILABLE else add_whole_columns
