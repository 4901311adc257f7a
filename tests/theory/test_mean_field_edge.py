"""mean_field_edge(): limits, units, and which runs of the nonlinear model diverge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.theory import mean_field_edge as module

LAM = np.sort(0.07 + 0.93 * ((np.arange(100) + 0.5) / 100) ** 2)[::-1]


def edge(strength, batch_sizes, **options):
    ensemble = qm.Ensemble(100, 200, jacobian=LAM, curvature=(strength / 2) ** 0.5 or None)
    return qm.mean_field_edge(ensemble, batch_sizes, **options)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True, "weight_decay": 0.05}]
)
def test_without_curvature_it_is_that_of_the_linear_model(options):
    sgd = qm.SGD(1.0, 1, **options)
    found = edge(0.0, [20, 100], sgd=sgd)
    assert found.noise_kernel_norm_finite[0] == pytest.approx(1, abs=0.02)
    # Full batches: the deterministic edge.
    assert found.critical_learning_rate[1] == pytest.approx(
        qm.edge_of_stability(LAM, sgd), rel=0.025
    )


def test_it_falls_with_the_curvature_and_with_the_batch_size():
    """Values of batch size 4 and 20 at three strengths: from an independent implementation."""
    norms = np.array([edge(q, [4, 20]).noise_kernel_norm_finite for q in (0.01, 0.03, 0.08)])
    np.testing.assert_allclose(norms, [[0.87, 0.84], [0.76, 0.70], [0.62, 0.54]], atol=0.016)


def test_units():
    one = qm.mean_field_edge(LAM, [20], curvature=0.1, n_params=200)
    other = qm.mean_field_edge(1e120 * LAM, [20], curvature=1e119, n_params=200)
    assert other.critical_learning_rate[0] * 1e120 == pytest.approx(
        float(one.critical_learning_rate[0]), rel=1e-6
    )
    assert other.noise_kernel_norm[0] == pytest.approx(float(one.noise_kernel_norm[0]), rel=1e-6)


def test_bracket():
    found = edge(0.03, [20], rtol=0.05).isel(batch_size=0)
    assert found.low < found.critical_learning_rate < found.high <= 1.05 * found.low
    finer = float(edge(0.03, [20]).critical_learning_rate[0])
    assert finer == pytest.approx(float(found.critical_learning_rate), rel=0.04)


def test_momentum_lowers_the_rate_and_not_the_norm():
    plain, heavy = edge(0.03, [4]), edge(0.03, [4], sgd=qm.SGD(1.0, 1, momentum=0.7))
    ratio = heavy.critical_learning_rate / plain.critical_learning_rate
    assert float(ratio[0]) == pytest.approx(0.3, abs=0.06)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("strength", "batch_size"), [(0.01, 4), (0.08, 20)])
def test_which_runs_diverge(strength, batch_size):
    """Of 16 runs of two draws: at most 2 below the edge, at least 12 above it; none in between."""
    ensemble = qm.Ensemble(100, 200, jacobian=LAM, curvature=(strength / 2) ** 0.5)
    rate = float(qm.mean_field_edge(ensemble, [batch_size]).critical_learning_rate[0])
    share = []
    for factor in (0.85, 1.15):
        diverged = 0
        for seed in range(2):
            model = ensemble.sample(seed)
            sgd = qm.SGD(factor * rate, batch_size)
            runs = qm.simulate(
                model, sgd, 300, replicas=8, seed=seed, observables=("loss",), record_every=300
            )
            diverged += int((runs.divergence_step >= 0).sum())
        share.append(diverged)
    assert share[0] <= 2
    assert share[1] >= 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [0]}, "batch_sizes must be an integer between 1 and 100, got 0"),
        ({"batch_sizes": []}, "batch_sizes must hold at least one"),
        ({"sgd": "SGD"}, "sgd must be an SGD, got str"),
        ({"rtol": 0.0}, "rtol must be a finite number"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"n_params": None}, "n_params must be given"),
    ],
)
def test_bad_input(options, message):
    arguments = {"batch_sizes": [4], "curvature": 0.1, "n_params": 200} | options
    with pytest.raises(InputError, match=message):
        qm.mean_field_edge(LAM, **arguments)


@pytest.mark.parametrize("name", ["plain", "aligned"])
def test_a_coarse_past_changes_little(name):
    lam = np.arange(1, 61) ** -0.5
    lam /= lam.mean()
    sgd = qm.SGD(1.0, 3)
    sgd = replace(sgd, learning_rate=qm.critical_learning_rate(lam, sgd, level=0.3))
    strength = {"plain": 0.05, "aligned": 1.5}[name]
    law = qm.curvature.KroneckerCurvature(
        np.diag(lam) if name == "aligned" else None, scale=(strength / 2) ** 0.5
    )
    model = qm.QuadraticModel(np.ones(60), np.diag(np.sqrt(60 * lam)) @ np.eye(60, 120), None, law)
    exact, coarse, coarser = (
        qm.mean_field(model, sgd, 300, memory=memory, bins=20) for memory in (None, 100, 20)
    )
    for variable, tolerance in (("ntk_trace", 1e-4), ("loss", 1e-2)):
        near, far = (np.abs(run[variable] / exact[variable] - 1).max() for run in (coarse, coarser))
        assert near < tolerance
        assert far > near


@pytest.mark.slow
def test_coarse_past_does_not_hide_overshooting_modes():
    """Where the largest mode changes sign at every step, averages over two steps would hide it.

    The control: they do, and runs are then said to diverge below the deterministic edge.
    """
    lam = np.arange(1, 401) ** -0.7
    ensemble = qm.Ensemble(400, 800, jacobian=lam / lam.mean(), curvature=0.15**0.5)
    arguments = {"steps": 231, "rtol": 0.02, "bins": 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WHOLE", 100)
        found = qm.mean_field_edge(ensemble, [100], **arguments)
        patch.setattr(module, "_memory", lambda known, sgd, steps: 10_000)
        whole = qm.mean_field_edge(ensemble, [100], **arguments)
        patch.setattr(module, "_memory", lambda known, sgd, steps: 20)
        patch.setattr(module, "_FINER", 20)
        coarse = qm.mean_field_edge(ensemble, [100], **arguments)
    np.testing.assert_allclose(found.low, whole.low, rtol=1e-12)
    assert coarse.high.item() < 0.98 * whole.low.item()
