"""Counter-based batches: a pure function of (seed, model, replica, step).

The generator is Philox4x32-10 with the seed as key and (block, step, replica, model) as counter, so
a batch depends on nothing that was drawn before it: not on threads, order or interruption.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64
from numpy.typing import NDArray

from quadmodel._util.checks import as_choice, as_integer
from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.optimizer import SAMPLING_SCHEMES

# Constants of Philox4x32: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_HALF = np.uint64(32)

WITHOUT_REPLACEMENT, WITH_REPLACEMENT, BERNOULLI = range(len(SAMPLING_SCHEMES))


@njit(inline="always")
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Return four random words of 32 bits for a counter and a key."""
    for _ in range(10):
        p0 = _MULTIPLIER_0 * uint64(c0)
        p1 = _MULTIPLIER_1 * uint64(c2)
        c0, c1, c2, c3 = (
            uint32(uint32(p1 >> _HALF) ^ c1 ^ k0),
            uint32(p1),
            uint32(uint32(p0 >> _HALF) ^ c3 ^ k1),
            uint32(p0),
        )
        k0 = uint32(uint64(k0) + _WEYL_0)
        k1 = uint32(uint64(k1) + _WEYL_1)
    return c0, c1, c2, c3


@compiled
def in_order(n):  # type: ignore[no-untyped-def]
    """Return 0..n-1; `np.arange` takes longer to compile."""
    numbers = np.empty(n, np.int64)
    for i in range(n):
        numbers[i] = i
    return numbers


@compiled
def draw_batch(seed, model, replica, step, scheme, n_data, batch_size, order, swaps, batch):  # type: ignore[no-untyped-def]
    """Write one batch into `batch` and return its length.

    `order` must hold 0..n_data-1 on entry and does so again on return: what the swaps of the
    partial Fisher-Yates shuffle moved is put back, so that the next batch does not depend on this
    one. `swaps`, of length n_data, is written to: random words, then the places that are swapped. A
    random word x picks one of n as (x n) >> 32, which favours some by less than n / 2^32.
    """
    if scheme == WITHOUT_REPLACEMENT and batch_size == n_data:
        for i in range(n_data):
            batch[i] = i
        return n_data
    if scheme == BERNOULLI:
        threshold = (np.int64(batch_size) << 32) // n_data
        _write_random_words(seed, model, replica, step, n_data, swaps)
        count = 0
        for i in range(n_data):
            batch[count] = i
            count += swaps[i] < threshold
        return count
    _write_random_words(seed, model, replica, step, batch_size, swaps)
    if scheme == WITH_REPLACEMENT:
        for i in range(batch_size):
            batch[i] = (swaps[i] * n_data) >> 32
        return batch_size
    for i in range(batch_size):
        swaps[i] = i + ((swaps[i] * (n_data - i)) >> 32)
    for i in range(batch_size):
        j = swaps[i]
        batch[i], order[j] = order[j], order[i]
    for i in range(batch_size):
        order[i], order[swaps[i]] = i, swaps[i]
    return batch_size


@compiled_inner
def _write_random_words(seed, model, replica, step, count, out):  # type: ignore[no-untyped-def]
    """Write the first random words of a (seed, model, replica, step); several blocks at once."""
    k0, k1 = uint32(seed), uint32(seed >> _HALF)
    c1, c2, c3 = uint32(step), uint32(replica), uint32(model)
    for block in range(count // 4):
        w0, w1, w2, w3 = philox(uint32(block), c1, c2, c3, k0, k1)
        out[4 * block] = w0
        out[4 * block + 1] = w1
        out[4 * block + 2] = w2
        out[4 * block + 3] = w3
    if count % 4:
        block = count // 4
        last = philox(uint32(block), c1, c2, c3, k0, k1)
        for k in range(count % 4):
            out[4 * block + k] = last[k]


def batch_indices(
    n_data: int,
    batch_size: int,
    *,
    seed: int,
    replica: int = 0,
    step: int = 0,
    model: int = 0,
    sampling: str = "without_replacement",
) -> NDArray[np.int64]:
    """Return the batch that a simulation uses at a given step.

    Parameters
    ----------
    n_data, batch_size : int
        Data points and batch size (the expected one for Bernoulli sampling).
    seed, replica, step, model : int
        What the batch is a function of; the seed below 2^64, the others below 2^32.
    sampling : {"without_replacement", "with_replacement", "bernoulli"}, optional
        Sampling scheme.

    Returns
    -------
    ndarray of int, shape (length of the batch,)
        Indices of data points, repeated where drawn repeatedly.

    Raises
    ------
    InputError
        If an argument is out of range.

    References
    ----------
    .. [1] J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.

    Examples
    --------
    >>> from quadmodel.batches import batch_indices
    >>> len(set(batch_indices(100, 10, seed=1).tolist()))
    10
    """
    n_data = as_integer("n_data", n_data, high=2**31 - 1)
    batch_size = as_integer("batch_size", batch_size, high=n_data)
    scheme = SAMPLING_SCHEMES.index(as_choice("sampling", sampling, SAMPLING_SCHEMES))
    order, batch = np.arange(n_data), np.empty(n_data, np.int64)
    length = draw_batch(
        np.uint64(as_integer("seed", seed, low=0, high=2**64 - 1)),
        as_integer("model", model, low=0, high=2**32 - 1),
        as_integer("replica", replica, low=0, high=2**32 - 1),
        as_integer("step", step, low=0, high=2**32 - 1),
        scheme,
        n_data,
        batch_size,
        order,
        np.empty(n_data, np.int64),
        batch,
    )
    return batch[:length].copy()
