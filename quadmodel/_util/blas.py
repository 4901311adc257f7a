"""BLAS kept to one thread, on the number of which the rounding of its products depends."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import scipy.linalg.cython_blas  # noqa: F401  Numba's np.dot uses it; it must be there to be limited
from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    # Finding them takes milliseconds, setting them some ten microseconds.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread in a ``with`` block.

    BLAS has one setting for the whole process. Threads of the caller's own that overlap should be
    within one such block, as those of :mod:`quadmodel._util.threads` are.
    """
    limit: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limit
