"""What all tests share."""

import os
from pathlib import Path

import pytest
import scipy.linalg  # noqa: F401  its BLAS must be loaded to be limited
from threadpoolctl import threadpool_limits

# Processes that compile at the same moment overwrite each other's files in Numba's cache: each of
# pytest-xdist has one of its own.
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cache = os.environ.get("NUMBA_CACHE_DIR", ".pytest_cache/numba")
    os.environ["NUMBA_CACHE_DIR"] = str(Path(_cache).resolve() / _worker)


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread():
    """Keep BLAS to one thread: on a busy machine several of them wait for each other.

    Products of small matrices have been measured to take a hundred times longer then.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
