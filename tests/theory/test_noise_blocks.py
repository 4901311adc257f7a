"""Exact K of points with several outputs: its threshold against enumeration of all batches."""

from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory._noise_blocks import block_noise_kernel_norm, norm_of_modes
from tests.oracles import enumeration

SETTINGS = [
    qm.SGD(1.0, 2),
    qm.SGD(1.0, 1, sampling="with_replacement"),
    qm.SGD(1.0, 2, sampling="bernoulli", momentum=0.5),
]


def kernel_of(n_data, n_outputs, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n_data * n_outputs, 12))
    rows *= np.linspace(0.5, 1.5, len(rows))[:, None]
    return rows @ rows.T / n_data


def growth(kernel, sgd, n_outputs):
    """Return the factor per step of the second moment, of points with all their outputs."""
    n_data = len(kernel) // n_outputs
    lam, vectors = enumeration.range_of(kernel)
    total = 0.0
    for p, w in enumeration.batches(n_data, sgd.batch_size, sgd.sampling):
        per_row = np.repeat(w, n_outputs)
        gradient = lam[:, None] * (vectors.T @ (per_row[:, None] * vectors))
        step = enumeration.step_matrix(gradient, sgd)
        total = total + p * np.kron(step, step)
    return float(np.abs(np.linalg.eigvals(total)).max())


@pytest.mark.parametrize("sgd", SETTINGS, ids=lambda sgd: sgd.sampling)
def test_norm_is_1_where_the_second_moment_stops_shrinking(sgd):
    kernel = kernel_of(4, 2)
    low, high = 1e-3, qm.edge_of_stability(kernel, sgd) * (1 - 1e-9)
    for _ in range(40):
        middle = 0.5 * (low + high)
        norm = block_noise_kernel_norm(kernel, replace(sgd, learning_rate=middle), 2)
        low, high = (middle, high) if norm < 1 else (low, middle)
    assert growth(kernel, replace(sgd, learning_rate=low * (1 - 1e-4)), 2) < 1
    assert growth(kernel, replace(sgd, learning_rate=high * (1 + 1e-4)), 2) > 1
    # A negative control: rows as points of their own have another threshold.
    alone = qm.noise_kernel_norm(kernel, replace(sgd, learning_rate=low))
    assert abs(alone - 1) > 1e-2


def test_one_output_is_the_noise_kernel_norm():
    kernel, sgd = kernel_of(8, 1), qm.SGD(0.1, 3, momentum=0.3)
    assert block_noise_kernel_norm(kernel, sgd, 1) == pytest.approx(
        qm.noise_kernel_norm(kernel, sgd), rel=1e-9
    )


def test_full_batches_and_the_edge():
    kernel = kernel_of(4, 2)
    assert block_noise_kernel_norm(kernel, qm.SGD(1e-3, 4), 2) == 0
    assert block_noise_kernel_norm(kernel, qm.SGD(10.0, 2), 2) == np.inf


@pytest.mark.parametrize("norm", ["finite", "paper"])
@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_norms_of_modes_are_means_over_points_and_outputs(norm, n_outputs):
    """C copies of an NTK, as C outputs that share nothing: the K of one of them."""
    ntk, sgd = kernel_of(8, 1), qm.SGD(0.05, 3, momentum=0.3)
    lam = np.tile(np.linalg.eigvalsh(ntk), n_outputs)
    assert norm_of_modes(lam, sgd, norm, 8, n_outputs) == pytest.approx(
        qm.noise_kernel_norm(ntk, sgd, norm=norm), rel=1e-9
    )
