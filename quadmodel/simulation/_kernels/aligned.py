"""Memory that begins where a vector does: vectors that cross cache lines cost twice."""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from quadmodel._util.compiled import compiled_inner
from quadmodel.simulation._kernels.vectors import BYTES


@compiled_inner
def aligned(count, like):
    """Return zeros that begin where a vector does; vectors that cross cache lines cost twice.

    Flat, of the type of the elements of `like`.
    """
    spare = BYTES // like.itemsize
    memory = np.zeros(count + spare, like.dtype)
    first = (-np.int64(memory.ctypes.data) % BYTES) // like.itemsize
    return memory[first : first + count]


def aligned_zeros(*shape, dtype=np.float64):
    """Return zeros of a shape that begin where a vector does.

    From NumPy, which asks for large pages of memory; Numba does not.
    """
    memory = np.zeros(np.dtype(dtype).itemsize * int(np.prod(shape)) + BYTES, np.uint8)
    first = -memory.ctypes.data % BYTES
    return memory[first : len(memory) - BYTES + first].view(dtype).reshape(shape)
