"""Sums of columns of the NTK, which are the steps of the linear model.

Where the processor has wide vectors the NTK is cut into tiles: a tile of all columns fits in the
second-level cache, eight vectors of sums stay in registers while the columns of one lane are
added, and the lanes take their turn at one tile. Elsewhere whole columns are added to whole lanes.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.simulation import _vectors
from quadmodel.simulation._vectors import BYTES, add_multiple, loads, stores

_FAST = {"contract", "reassoc", "nsz", "arcp"}
_WIDTH = BYTES // 8
# Doubles per tile, and per tile of what is left.
_LARGE, _SMALL = 8 * _WIDTH, 4 * _WIDTH


def tiled(ntk, in_tiles=_vectors.AVAILABLE):
    """Return the NTK as `add_columns` wants it, and the length of a lane.

    Parameters
    ----------
    ntk : ndarray, shape (n_data, n_data)
        Symmetric.
    in_tiles : bool, optional
        Whether for `add_columns_in_tiles` or for `add_whole_columns`.

    Returns
    -------
    ndarray, int
        Tiles one after another, flat, each with a row per data point; and n_data rounded up.
    """
    n_data = len(ntk)
    if not in_tiles:
        return np.ascontiguousarray(ntk).reshape(-1), n_data
    order = -(-n_data // _SMALL) * _SMALL
    wide = np.zeros((n_data, order))
    wide[:, :n_data] = ntk
    full = order - order % _LARGE
    ends = [*range(0, full, _LARGE), *range(full, order, _SMALL)]
    cuts = zip(ends, [*ends[1:], order], strict=True)
    columns = _vectors.aligned_zeros(n_data * order)
    for first, last in cuts:
        columns[first * n_data : last * n_data] = wide[:, first:last].ravel()
    return columns, order


@njit(cache=True, nogil=True)
def add_columns_in_tiles(columns, n_data, begin, picked, coefficient, z):
    """Add coefficient[k] times column picked[k] to lane a, begin[a] <= k < begin[a + 1]."""
    lanes, order = z.shape
    flat = z.reshape(-1)
    full = order - order % _LARGE
    for first in range(0, full, _LARGE):
        for lane in range(lanes):
            here = lane * order + first
            sums = loads(flat, here, _WIDTH, 8)
            for k in range(begin[lane], begin[lane + 1]):
                at = first * n_data + picked[k] * _LARGE
                sums = add_multiple(sums, coefficient[k], columns, at)
            stores(flat, here, _WIDTH, sums)
    for first in range(full, order, _SMALL):
        for lane in range(lanes):
            here = lane * order + first
            sums = loads(flat, here, _WIDTH, 4)
            for k in range(begin[lane], begin[lane + 1]):
                at = first * n_data + picked[k] * _SMALL
                sums = add_multiple(sums, coefficient[k], columns, at)
            stores(flat, here, _WIDTH, sums)


@njit(cache=True, nogil=True, fastmath=_FAST)
def add_whole_columns(columns, n_data, begin, picked, coefficient, z):
    """Do the same with `columns` an NTK, flat: four columns at a time while a lane is in cache."""
    for lane in range(len(z)):
        k, last, own = begin[lane], begin[lane + 1], z[lane]
        while k + 4 <= last:
            c0, c1, c2, c3 = coefficient[k : k + 4]
            i0, i1, i2, i3 = picked[k : k + 4] * n_data
            for j in range(n_data):
                own[j] += (c0 * columns[i0 + j] + c1 * columns[i1 + j]) + (
                    c2 * columns[i2 + j] + c3 * columns[i3 + j]
                )
            k += 4
        while k < last:
            c0, i0 = coefficient[k], picked[k] * n_data
            for j in range(n_data):
                own[j] += c0 * columns[i0 + j]
            k += 1


add_columns = add_columns_in_tiles if _vectors.AVAILABLE else add_whole_columns
