"""Bad input to the theory's public functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import quadmodel as qm

BAD_NTK = {
    "not symmetric": np.array([[1.0, 0.5], [0.0, 1.0]]),
    "indefinite": np.array([[1.0, 2.0], [2.0, 1.0]]),
    "negative eigenvalue": np.array([1.0, -0.5]),
    "NaN": np.array([[1.0, np.nan], [np.nan, 1.0]]),
    "infinite": np.array([np.inf, 1.0]),
    "NaN eigenvalue": np.array([np.nan, 1.0]),
    "not square": np.ones((2, 3)),
    "three axes": np.ones((2, 2, 2)),
    "scalar": 1.0,
    "empty": np.array([]),
    "text": np.array(["a", "b"]),
    "complex": np.array([1.0 + 1.0j, 1.0]),
}


@pytest.mark.parametrize("ntk", BAD_NTK.values(), ids=BAD_NTK.keys())
def test_bad_ntk(ntk):
    sgd = qm.SGD(0.1, 1)
    with pytest.raises(ValueError, match="ntk"):
        qm.noise_kernel_norm(ntk, sgd)
    with pytest.raises(ValueError, match="ntk"):
        qm.critical_learning_rate(ntk, sgd)
    with pytest.raises(ValueError, match="ntk"):
        qm.edge_of_stability(ntk, sgd)
    with pytest.raises(ValueError, match="ntk"):
        qm.phase_boundaries(ntk, [1])


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "3", None, math.nan])
def test_bad_batch_size(size):
    with pytest.raises(ValueError, match="batch_size"):
        qm.SGD(0.1, size)


@pytest.mark.parametrize("sizes", [[0], [-1], [6], [2.5], ["3"], [2, 6]])
def test_bad_batch_sizes(sizes):
    with pytest.raises(ValueError, match="batch_size"):
        qm.phase_boundaries(np.ones(5), sizes)


def test_batch_larger_than_the_data():
    sgd = qm.SGD(0.1, 6)
    for function in (qm.noise_kernel_norm, qm.critical_learning_rate):
        with pytest.raises(ValueError, match=r"batch_size.*n_data=5.*got 6"):
            function(np.ones(5), sgd)


@pytest.mark.parametrize("eta", [0, -0.1, math.nan, math.inf, "0.1", True, None, 1j])
def test_bad_learning_rate(eta):
    with pytest.raises(ValueError, match="learning_rate"):
        qm.SGD(eta, 1)


@pytest.mark.parametrize("momentum", [1, -1, 1.5, -2.0, math.nan, math.inf, "0.9"])
def test_bad_momentum(momentum):
    with pytest.raises(ValueError, match="momentum"):
        qm.SGD(0.1, 1, momentum=momentum)


@pytest.mark.parametrize("decay", [-1e-9, math.nan, math.inf, "0"])
def test_bad_weight_decay(decay):
    with pytest.raises(ValueError, match="weight_decay"):
        qm.SGD(0.1, 1, weight_decay=decay)


def test_bad_choices():
    sgd = qm.SGD(0.1, 1)
    with pytest.raises(ValueError, match="sampling"):
        qm.SGD(0.1, 1, sampling="shuffled")
    for function in (qm.noise_kernel_norm, qm.critical_learning_rate):
        for method in ("infinite", 1, ["paper"]):
            with pytest.raises(ValueError, match="norm"):
                function(np.ones(3), sgd, norm=method)
        with pytest.raises(ValueError, match=r"ntk.*matrix"):
            function(np.ones(3), sgd, norm="exact")
        with pytest.raises(ValueError, match="sgd"):
            function(np.ones(3), 0.1)
    with pytest.raises(ValueError, match="sgd"):
        qm.edge_of_stability(np.ones(3), 0.1)
    for level in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="level"):
            qm.critical_learning_rate(np.ones(3), sgd, level=level)
