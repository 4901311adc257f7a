"""Noise kernel norm of a spectral law, against quadrature and large random matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from tests.oracles import dense_noise_kernel, enumeration
from tests.theory._cases import MOMENTA, random_ntk


def marchenko_pastur_nodes(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for its averages: lambda = 1 + q + 2 sqrt(q) cos(t), trapezoids in t."""
    angle = (np.arange(160) + 0.5) * np.pi / 160
    nodes = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(angle)
    return nodes, 2 * ratio * np.sin(angle) ** 2 / nodes / 160


@pytest.mark.parametrize("ratio", [0.3, 4.0])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_norm_of_a_law_is_an_average_over_it(ratio, momentum, nesterov, weight_decay):
    law = qm.spectra.MarchenkoPastur(ratio)
    nodes, weights = marchenko_pastur_nodes(ratio)
    assert weights.sum() == pytest.approx(min(ratio, 1), rel=1e-12)  # the rest sits at zero
    sgd = qm.SGD(1.0, 12, momentum, nesterov, weight_decay)
    edge = qm.edge_of_stability(law, sgd)
    assert edge == pytest.approx(
        enumeration.edge_of_stability(np.eye(1) * (1 + np.sqrt(ratio)) ** 2, sgd)
    )
    for fraction in (0.2, 0.95):
        sgd = replace(sgd, learning_rate=fraction * edge)
        sums = np.diag(dense_noise_kernel.response_sums(nodes, sgd))
        paper = qm.noise_kernel_norm(law, sgd, norm="paper", n_data=90)
        assert paper == pytest.approx((90 / 12 - 1) * weights @ sums, rel=1e-9)
        gamma = 90 * 78 / (12 * 89)
        finite = qm.noise_kernel_norm(law, sgd, norm="finite", n_data=90)
        expected = gamma * weights @ (sums / (1 + gamma / 90 * sums))
        assert finite == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("eta", [3.7e-12, 1e-4, 0.1, 0.2])
def test_norm_of_a_law_by_its_self_consistent_resolvent(ratio, eta):
    # the resolvent 1/(x - lambda) of J J^T/D averages to m with m = 1/(x - q/(1 - m)), and
    # lambda/(2 - eta lambda) = (q m/(1 - m))/eta at x = 2/eta
    law, x = qm.spectra.MarchenkoPastur(ratio), 2 / eta
    m = 1 / x
    for _ in range(2000):
        m = 1 / (x - ratio / (1 - m))
    expected = 19 * ratio * m / (1 - m)
    norm = qm.noise_kernel_norm(law, qm.SGD(eta, 5), norm="paper", n_data=100)
    assert norm == pytest.approx(expected, rel=1e-7, abs=0)
    assert law.stieltjes(x) == pytest.approx(m, rel=1e-10)


@pytest.mark.parametrize("norm", ["paper", "finite"])
def test_large_random_matrices_approach_the_law(norm):
    law = qm.spectra.MarchenkoPastur(2.0)
    errors = []
    for n_data, draws in ((40, 16), (320, 4)):
        sgd = qm.SGD(0.2, n_data // 10, momentum=0.2)
        limit = qm.noise_kernel_norm(law, sgd, norm=norm, n_data=n_data)
        norms = [
            qm.noise_kernel_norm(
                np.linalg.eigvalsh(random_ntk(seed, n_data, 2 * n_data)), sgd, norm=norm
            )
            for seed in range(draws)
        ]
        errors.append(np.sqrt(np.mean((np.array(norms) / limit - 1) ** 2)))
        at_one = qm.critical_learning_rate(law, sgd, norm=norm, n_data=n_data)
        value = qm.noise_kernel_norm(
            law, replace(sgd, learning_rate=at_one), norm=norm, n_data=n_data
        )
        assert value == pytest.approx(1, rel=1e-8)
    assert errors[1] < errors[0] / 3  # fluctuations and bias fall as 1/D: expect a factor of 8
    assert errors[1] < 0.01
    wrong = qm.noise_kernel_norm(qm.spectra.MarchenkoPastur(2.1), sgd, norm=norm, n_data=n_data)
    assert abs(wrong / limit - 1) > 3 * errors[1]


def test_sampling_corrections_vanish_in_high_dimension():
    law = qm.spectra.MarchenkoPastur(2.0)
    gaps = []
    for n_data in (100, 1000, 10_000):
        sgd = qm.SGD(0.2, n_data // 10)
        paper, finite = (
            qm.noise_kernel_norm(law, sgd, norm=m, n_data=n_data) for m in ("paper", "finite")
        )
        gaps.append(finite / paper - 1)
        assert qm.noise_kernel_norm(
            law, replace(sgd, sampling="bernoulli"), norm="finite", n_data=n_data
        ) == pytest.approx(paper, rel=1e-12)
    assert abs(gaps[0]) < 0.05
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 10, rtol=0.2)


def test_bad_laws():
    law, sgd = qm.spectra.MarchenkoPastur(2.0), qm.SGD(0.1, 3)
    for function in (qm.noise_kernel_norm, qm.critical_learning_rate):
        with pytest.raises(ValueError, match="n_data"):
            function(law, sgd)
        for n_data in (0, -1, 2.5, True, "10"):
            with pytest.raises(ValueError, match="n_data"):
                function(law, sgd, n_data=n_data)
        with pytest.raises(ValueError, match="batch_size"):
            function(law, sgd, n_data=2)
        with pytest.raises(ValueError, match=r"ntk.*matrix"):
            function(law, sgd, n_data=10, norm="exact")
    with pytest.raises(ValueError, match="sgd"):
        qm.edge_of_stability(law, 0.1)
