"""What all tests share."""

import pytest
import scipy.linalg  # noqa: F401  its BLAS must be loaded to be limited
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread():
    """Keep BLAS to one thread: on a busy machine several of them wait for each other.

    Products of small matrices have been measured to take a hundred times longer then.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
