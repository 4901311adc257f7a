"""simulate(): Datasets, same bits, divergence, observables along a run, bad arguments."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.batches import batch_indices
from quadmodel.simulation import observables
from quadmodel.simulation._kernels import shapes
from tests.assertions import assert_same_bits
from tests.oracles import naive_sgd

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
PER_RUN = (
    "squared_distance",
    "loss", "ntk_largest_eigenvalue", "ntk_trace", "noise_kernel_norm", "noise_kernel_norm_finite"
)  # fmt: skip


def make_model(kind: str, n_data: int = 6, n_params: int = 8) -> qm.QuadraticModel:
    curvature = {
        "linear": None,
        "dense": 0.1,
        "low_rank": qm.curvature.RandomLowRankCurvature(rank=2, scale=0.3),
    }
    return qm.Ensemble(n_data, n_params, curvature=curvature[kind]).sample(seed=1)


@pytest.mark.parametrize("kind", ["linear", "dense"])
def test_layout(kind):
    model, sgd = make_model(kind), qm.SGD(0.1, 2, momentum=0.5, sampling="bernoulli")
    sim = qm.simulate(model, sgd, steps=10, replicas=3, seed=2**63, record_every=4, model_index=5)
    assert {name: sim[name].dims for name in sim.data_vars} == {
        **dict.fromkeys(PER_RUN, ("replica", "step")),
        "mode_energy": ("step", "mode"),
        "mode_energy_standard_error": ("step", "mode"),
        "divergence_step": ("replica",),
    }
    assert sim.step.values.tolist() == [0, 4, 8, 10]
    assert sim.replica.values.tolist() == [0, 1, 2]
    assert sim.mode.values.tolist() == list(range(6))
    assert (sim.divergence_step == -1).all()
    assert all({"long_name", "units"} <= set(sim[name].attrs) for name in sim.data_vars)
    assert sim.attrs == {
        "kind": "simulation", "steps": 10, "seed": str(2**63), "model_index": 5,
        "precision": "float64", "vector_bytes": shapes.vector_bytes(),
        "quadmodel_version": qm.__version__, "n_data": 6, "n_params": 8,
        **model.spec(with_curvature=True), "learning_rate": 0.1,
        "batch_size": 2, "momentum": 0.5, "nesterov": 0, "weight_decay": 0.0,
        "sampling": "bernoulli",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "steps", "record_every", "recorded"),
    [
        ("linear", 7, None, range(8)),
        ("dense", 7, None, range(8)),
        ("dense", 120, None, range(0, 121, 2)),
        ("linear", 7, 3, [0, 3, 6, 7]),
        ("linear", 7, 7, [0, 7]),
        ("linear", 7, 8, [0, 7]),
    ],
)
def test_recorded_steps(kind, steps, record_every, recorded):
    sim = qm.simulate(make_model(kind), qm.SGD(0.05, 2), steps, record_every=record_every)
    assert sim.step.values.tolist() == list(recorded)


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_records_do_not_depend_on_how_often_they_are_taken(kind):
    model, sgd = make_model(kind), qm.SGD(0.1, 2, 0.6, True, 0.1)
    often = qm.simulate(model, sgd, 10, replicas=9, record_every=1)
    seldom = qm.simulate(model, sgd, 10, replicas=9, record_every=5)
    assert_same_bits(often.sel(step=seldom.step), seldom)


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_same_bits(kind):
    """Whatever the number of threads, and again; some of the runs diverge on the way."""
    model = make_model(kind)
    sgd = qm.SGD(5.0 if kind == "linear" else 0.35, 2, sampling="with_replacement")
    runs = [
        qm.simulate(model, sgd, 400, replicas=41, seed=8, record_every=25, threads=threads)
        for threads in (1, 2, 3, 1)
    ]
    assert (runs[0].divergence_step >= 0).any()
    assert np.isnan(runs[0].ntk_trace).any()
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


def test_linear_run_does_not_depend_on_the_number_of_replicas():
    model, sgd = make_model("linear"), qm.SGD(0.3, 2, 0.4)
    many = qm.simulate(model, sgd, 30, replicas=45)
    for replicas in (1, 3, 8, 10):
        few = qm.simulate(model, sgd, 30, replicas=replicas)
        np.testing.assert_array_equal(few.loss, many.loss[:replicas])


@pytest.mark.parametrize("kind", ["linear", "dense"])
def test_full_batch_gives_identical_replicas(kind):
    for sampling in ("without_replacement", "bernoulli"):
        sgd = qm.SGD(0.1, 6, sampling=sampling)
        sim = qm.simulate(make_model(kind), sgd, 20, replicas=4)
        # the order of a batch is random, and with it the rounding of its sum
        np.testing.assert_allclose(sim.loss, np.tile(sim.loss[:1], (4, 1)), rtol=1e-12)
        assert float(sim.mode_energy_standard_error.max()) < 1e-12
    noisy = qm.simulate(
        make_model(kind), qm.SGD(0.1, 6, sampling="with_replacement"), 20, replicas=4
    )
    assert float(noisy.loss[:, -1].std()) > 1e-6


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_divergence(kind):
    model = make_model(kind)
    far = 20 * qm.edge_of_stability(model.ntk(), qm.SGD(1.0, 1))
    sim = qm.simulate(model, qm.SGD(far, 3), steps=300, replicas=10, record_every=1)
    at = sim.divergence_step.values
    assert ((at > 0) & (at < 300)).all()
    assert len(set(at.tolist())) > 1 or kind != "linear"  # quadratic runs explode within few steps
    after = sim.step.values >= at[:, None]
    loss = sim.loss.values
    assert not np.isnan(loss).any()
    assert np.isposinf(loss[after]).all()
    assert np.isfinite(loss[~after]).all()
    for name in ("ntk_largest_eigenvalue", "ntk_trace"):
        np.testing.assert_array_equal(np.isnan(sim[name]), after)
    for name in ("noise_kernel_norm", "noise_kernel_norm_finite"):
        assert np.isnan(sim[name].values[after]).all()
        assert np.isposinf(sim[name].values[~after & (sim.step.values == 0)]).all()
    some = sim.step.values >= at.min()
    assert np.isposinf(sim.mode_energy.values[some]).all()
    assert np.isnan(sim.mode_energy_standard_error.values[some]).all()
    assert np.isfinite(sim.mode_energy.values[~some]).all()


def test_divergence_leaves_the_others_alone():
    """Runs of one group share matrix products; some of it explode, the others go on."""
    model, sgd = make_model("dense"), qm.SGD(0.4, 2)
    sim = qm.simulate(model, sgd, steps=40, replicas=8, record_every=1)
    diverged = sim.divergence_step.values >= 0
    assert 0 < diverged.sum() < 8
    assert np.isfinite(sim.loss.values[~diverged]).all()
    assert np.isfinite(sim.ntk_trace.values[~diverged]).all()
    for replica in np.flatnonzero(~diverged):
        thetas = naive_thetas(model, sgd, 40, replica)
        np.testing.assert_allclose(sim.loss[replica], [model.loss(t) for t in thetas], rtol=1e-8)


def test_divergence_between_two_records_is_noticed():
    far = qm.SGD(500.0, 3)
    sim = qm.simulate(make_model("linear"), far, steps=300, replicas=2, record_every=299)
    early = qm.simulate(make_model("linear"), far, steps=300, replicas=2, record_every=400)
    assert early.step.values.tolist() == [0, 300]
    np.testing.assert_array_equal(early.divergence_step, sim.divergence_step)
    assert (early.divergence_step > 0).all()
    assert np.isfinite(early.loss[:, 0]).all()
    assert np.isposinf(early.loss[:, 1]).all()


def naive_thetas(model, sgd, steps, replica, seed=0):
    drawn = [
        batch_indices(
            model.n_data, sgd.batch_size, seed=seed, replica=replica, step=t, sampling=sgd.sampling
        ).tolist()
        for t in range(steps)
    ]
    q = model.curvature
    dense = q.dense() if isinstance(q, qm.LowRankCurvature) else q
    return naive_sgd.parameter_space(
        model.residual.tolist(), model.jacobian.tolist(), dense.tolist(), drawn,
        sgd.learning_rate, sgd.batch_size, sgd.momentum, sgd.nesterov, sgd.weight_decay,
    )[0]  # fmt: skip


def check_observables(model, sgd, replicas, steps) -> None:
    """Compare NTK and noise kernel norms along runs with those of plain loops."""
    sim = qm.simulate(model, sgd, steps, replicas=replicas, record_every=1)
    for replica in {0, replicas - 1}:
        thetas = naive_thetas(model, sgd, steps, replica)
        kernels = [model.ntk(theta) for theta in thetas]
        expected = {
            "loss": [model.loss(theta) for theta in thetas],
            "ntk_largest_eigenvalue": [np.linalg.eigvalsh(ntk)[-1] for ntk in kernels],
            "ntk_trace": [np.trace(ntk) for ntk in kernels],
            "noise_kernel_norm": [qm.noise_kernel_norm(ntk, sgd, norm="paper") for ntk in kernels],
            "noise_kernel_norm_finite": [
                qm.noise_kernel_norm(ntk, sgd, norm="finite") for ntk in kernels
            ],
        }
        for name, values in expected.items():
            np.testing.assert_allclose(sim[name][replica], values, rtol=1e-9, err_msg=name)
        assert np.ptp(expected["ntk_trace"]) > 1e-3 * expected["ntk_trace"][0]


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.5, True)])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_observables_along_a_quadratic_run(kind, momentum, nesterov, sampling):
    sgd = qm.SGD(0.1, 2, momentum, nesterov, 0.05, sampling)
    check_observables(make_model(kind), sgd, replicas=10, steps=8)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_observables_with_a_null_space(kind, momentum):
    """Eigenvalues of the NTK that are zero up to rounding are zero."""
    check_observables(make_model(kind, 8, 4), qm.SGD(0.1, 2, momentum), replicas=10, steps=8)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [(0.0, False), *itertools.product((0.9, 0.5, -0.3, -0.7), (False, True))],
)
def test_measured_norms_are_predicted_ones(momentum, nesterov, sampling, decay):
    lam = np.array([2.0, 1.3, 0.4, 0.1, 1e-3, 0.0, 0.0])
    edge = qm.edge_of_stability(lam, qm.SGD(1.0, 1, momentum, nesterov, decay))
    for batch_size, part in itertools.product((1, 3, 7), (0.01, 0.5, 0.99, 1.01, 3.0)):
        sgd = qm.SGD(part * edge, batch_size, momentum, nesterov, decay, sampling)
        paper, finite = observables.noise_kernel_norms(
            lam[None], np.array([sgd.learning_rate]), np.array([float(batch_size)]), sgd
        )
        assert paper.shape == finite.shape == (1,)
        for found, method in ((paper, "paper"), (finite, "finite")):
            expected = qm.noise_kernel_norm(lam, sgd, norm=method)
            assert np.isinf(expected) == (part > 1)
            assert found[0] == pytest.approx(expected, rel=1e-8, abs=1e-14)


def test_progress_and_default_threads_change_nothing(capsys):
    model, sgd = make_model("linear"), qm.SGD(0.1, 2)
    plain = qm.simulate(model, sgd, 10, replicas=9, threads=1)
    assert_same_bits(plain, qm.simulate(model, sgd, 10, replicas=9, progress=True))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": np.eye(3)}, "^model must be a QuadraticModel, got ndarray"),
        ({"sgd": 0.1}, "^sgd must be an SGD, got float"),
        ({"sgd": qm.SGD(0.1, 7)}, "^batch_size must be between 1 and n_data=6, got 7"),
        ({"steps": 0}, "^steps must be"),
        ({"steps": 2.0}, "^steps must be"),
        ({"steps": 2**32}, "^steps must be"),
        ({"replicas": 0}, "^replicas must be"),
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**64}, "^seed must be"),
        ({"model_index": -1}, "^model_index must be"),
        ({"model_index": 2**32}, "^model_index must be"),
        ({"record_every": 0}, "^record_every must be"),
        ({"threads": 0}, "^threads must be"),
    ],
)
def test_bad_input(changed, message):
    arguments = {"model": make_model("linear"), "sgd": qm.SGD(0.1, 2), "steps": 3, **changed}
    with pytest.raises(InputError, match=message):
        qm.simulate(**arguments)


def test_refuses_what_does_not_fit_in_memory(monkeypatch):
    model, sgd = make_model("linear"), qm.SGD(0.1, 2)
    # 1000 replicas x 1001 records x 5 variables of 8 bytes
    needed = 1000 * 1001 * 5 * 8
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed))
    with pytest.raises(MemoryError, match=r"the simulation needs .* GiB are free"):
        qm.simulate(model, sgd, 1000, replicas=1000)
    qm.simulate(model, sgd, 100, replicas=1000)
