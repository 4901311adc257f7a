"""BLAS on one thread: while a function of the theory runs, and not after."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import quadmodel as qm
from quadmodel._util import blas
from quadmodel._util.blas import one_blas_thread
from quadmodel._util.threads import workers
from quadmodel.theory import typical
from tests.theory._cases import random_ntk


@pytest.fixture
def two_threads():
    """BLAS with two threads, which it may have whatever the number of cores."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        yield


def threads():
    return {
        library.get_num_threads()
        for library in blas._libraries().select(user_api="blas").lib_controllers
    }


@pytest.mark.usefixtures("two_threads")
def test_set_back_at_the_end():
    assert threads() == {2}
    with one_blas_thread():
        with one_blas_thread():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert threads() == {2}


FUNCTIONS = {
    "noise_kernel_norm": lambda ntk, sgd: qm.noise_kernel_norm(ntk, sgd),
    "edge_of_stability": lambda ntk, sgd: qm.edge_of_stability(ntk=ntk, sgd=sgd),
    "critical_learning_rate": lambda ntk, sgd: qm.critical_learning_rate(ntk, sgd, level=0.7),
    "phase_boundaries": lambda ntk, sgd: float(
        qm.phase_boundaries(ntk, [3]).critical_learning_rate[-1, 0]
    ),
    "late_time_rate": lambda ntk, sgd: qm.late_time_rate(ntk, sgd),
    "loss_floor": lambda ntk, sgd: qm.loss_floor(ntk, np.ones(len(ntk)), sgd),
    "typical_growth": lambda ntk, sgd: float(qm.typical_growth(ntk, sgd).typical_growth),
    "typical_critical_learning_rate": lambda ntk, sgd: typical.typical_critical_learning_rate(
        ntk, sgd
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("two_threads")
def test_theory_of_a_matrix(name, monkeypatch):
    """One thread during the diagonalisation, two after it; the same bits with one and two."""
    seen, eigh = set(), np.linalg.eigh

    def watched(matrix):
        seen.update(threads())
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", watched)
    ntk, sgd = random_ntk(3, 110, 70), qm.SGD(0.02, 5, weight_decay=0.01)
    found = FUNCTIONS[name](ntk, sgd)
    assert seen == {1}
    assert threads() == {2}
    with one_blas_thread():
        np.testing.assert_equal(FUNCTIONS[name](ntk, sgd), found)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_each_while_threads_work():
    with workers(2) as pool:
        assert pool.map(lambda _: threads(), range(4)) == [{1}] * 4
    assert threads() == {2}
