"""Sums of columns of the NTK, which are the steps of the linear model.

Where the processor has wide vectors the NTK is cut into tiles: a tile of all columns fits in the
second-level cache, eight vectors of sums stay in registers while the columns of one lane are
added, and the lanes take their turn at one tile. Lanes with many columns add those of one block of
data points after another, for which the tile's part stays in the nearest cache. Elsewhere whole
columns are added to whole lanes.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.simulation._kernels import vectors as _vectors
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.vectors import BYTES, add_multiple, add_to, zeros_like

_FAST = {"contract", "reassoc", "nsz", "arcp"}
# Vectors per tile, and per tile of what is left.
_LARGE, _SMALL = 8, 4
_ONE, _LARGE_SUMS, _SMALL_SUMS = (0,), (0,) * _LARGE, (0,) * _SMALL
# Data points per block: so many rows of a large tile are as large as the nearest cache.
BLOCK = 96


def tiled(ntk, in_tiles=_vectors.AVAILABLE):
    """Return the NTK as `add_columns` wants it, and the length of a lane.

    Parameters
    ----------
    ntk : ndarray, shape (n_data, n_data)
        Symmetric; columns are kept in its precision, lanes in double precision.
    in_tiles : bool, optional
        Whether for `add_columns_in_tiles` or for `add_whole_columns`.

    Returns
    -------
    ndarray, int
        Tiles one after another, flat, each with a row per data point; and how many doubles a lane
        takes: n_data rounded up to an odd number of cache lines, since elements of all lanes that
        are used together would fall into a few sets of the cache if that were a power of two.
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


@njit(cache=True, nogil=True)
def add_columns_in_tiles(columns, n_data, begin, picked, coefficient, unit, z):
    """Add coefficient[k] times column picked[k], in units of the lane, to the lanes.

    Those of lane a in block b are begin[b, a] <= k < begin[b, a + 1].
    """
    width = BYTES // columns.itemsize
    order = len(columns) // n_data
    full = order - order % (_LARGE * width)
    for first in range(0, full, _LARGE * width):
        _add_tile(_LARGE_SUMS, columns, n_data, first, begin, picked, coefficient, unit, z)
    for first in range(full, order, _SMALL * width):
        _add_tile(_SMALL_SUMS, columns, n_data, first, begin, picked, coefficient, unit, z)


@njit(cache=True, nogil=True)
def _add_tile(like, columns, n_data, first, begin, picked, coefficient, unit, z):
    """Do it for the elements of a tile, as many vectors as the tuple is long."""
    lanes, length = z.shape
    tile, flat = len(like) * (BYTES // columns.itemsize), z.reshape(-1)
    for block in range(len(begin)):
        if begin[block, 0] == begin[block, lanes]:
            continue
        for lane in range(lanes):
            k, last = begin[block, lane], begin[block, lane + 1]
            if k == last:
                continue
            sums = zeros_like(_ONE, like, columns)
            while k < last:
                sums = add_multiple(
                    sums, coefficient[k], columns, first * n_data + picked[k] * tile
                )
                k += 1
            add_to(flat, lane * length + first, unit[lane], sums)


@njit(cache=True, nogil=True, fastmath=_FAST)
def add_whole_columns(columns, n_data, begin, picked, coefficient, unit, z):
    """Do the same with `columns` an NTK, flat: four columns at a time while a lane is in cache."""
    for block in range(len(begin)):
        for lane in range(len(z)):
            k, last, own = begin[block, lane], begin[block, lane + 1], z[lane]
            while k + 4 <= last:
                c0, c1, c2, c3 = coefficient[k : k + 4] * unit[lane]
                i0, i1, i2, i3 = picked[k : k + 4] * n_data
                for j in range(n_data):
                    own[j] += (c0 * columns[i0 + j] + c1 * columns[i1 + j]) + (
                        c2 * columns[i2 + j] + c3 * columns[i3 + j]
                    )
                k += 4
            while k < last:
                c0, i0 = coefficient[k] * unit[lane], picked[k] * n_data
                for j in range(n_data):
                    own[j] += c0 * columns[i0 + j]
                k += 1


add_columns = add_columns_in_tiles if _vectors.AVAILABLE else add_whole_columns
