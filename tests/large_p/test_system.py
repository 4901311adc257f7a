"""large_p_limit(): against its recursion, a two-layer network, and direct simulation."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.batches import batch_indices
from quadmodel.large_p import _snapshot, _state, _system
from quadmodel.large_p.trajectories import large_p_limit
from tests.oracles import free_limit, two_layer

CORRELATED = np.array(
    [[1.5, 0.6, -0.3, 0.1], [0.6, 1.0, 0.2, 0.0], [-0.3, 0.2, 0.8, -0.4], [0.1, 0.0, -0.4, 0.7]]
)
SINGULAR = np.outer([1.0, -0.5, 0.3, 0.8], [1.0, -0.5, 0.3, 0.8]) + np.diag([1.0, 0.0, 0.0, 0.0])


def make_model(n_params: int = 30, covariance=None, scale: float = 0.15) -> qm.QuadraticModel:
    law = qm.curvature.KroneckerCurvature(data_covariance=covariance, scale=scale)
    return qm.Ensemble(4, n_params, [2.0, 1.5, 1.0, 0.6], curvature=law).sample(seed=0)


def drawn(sgd: qm.SGD, n_data: int, steps: int, seed: int, replica: int) -> list[list[int]]:
    return [
        batch_indices(
            n_data, sgd.batch_size, seed=seed, replica=replica, step=t, sampling=sgd.sampling
        ).tolist()
        for t in range(steps)
    ]


def recursion(model: qm.QuadraticModel, sgd: qm.SGD, steps: int, order: int, replica: int):
    """The oracle's coefficients along a run, with the Gram matrix and the metric they live in."""
    over_data, _, scale = model.curvature_law.kronecker(model.n_data, model.n_params)
    over_data = np.eye(model.n_data) if over_data is None else over_data
    gram, metric = model.jacobian @ model.jacobian.T, scale**2 * model.n_params * over_data
    path = free_limit.train(
        gram, metric, model.residual, order, drawn(sgd, model.n_data, steps, 3, replica),
        sgd.learning_rate, sgd.batch_size, sgd.momentum, sgd.nesterov, sgd.weight_decay,
    )  # fmt: skip
    return path, gram, metric


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "covariance", [None, CORRELATED, SINGULAR], ids=["independent", "correlated", "singular"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.6, "weight_decay": 0.2, "sampling": "with_replacement"},
        {"momentum": 0.6, "nesterov": True, "weight_decay": 0.2, "sampling": "bernoulli"},
        {"weight_decay": 0.2, "sampling": "bernoulli"},
        {"momentum": -0.3},
    ],
    ids=["plain", "heavy ball", "Nesterov", "weight decay", "negative momentum"],
)
def test_follows_the_recursion(options, covariance, order):
    model, sgd = make_model(covariance=covariance), qm.SGD(0.05, 2, **options)
    limit = large_p_limit(
        model,
        sgd,
        12,
        truncation_order=order,
        replicas=2,
        seed=3,
        record_every=3,
        observables="all",
    )
    assert limit.ntk_trace[0, -1] > 1.01 * limit.ntk_trace[0, 0]
    for replica in range(2):
        path, gram, metric = recursion(model, sgd, 12, order, replica)
        for k, step in enumerate(limit.step.values):
            z = free_limit.residual(path[step], model.residual, gram, metric)
            ntk = free_limit.ntk(path[step], gram, metric)
            values, vectors = np.linalg.eigh(ntk)
            run = limit.isel(replica=replica, step=k)
            near = {"rtol": 1e-10, "atol": 1e-12}
            np.testing.assert_allclose(run.loss, z @ z / 8, **near)
            np.testing.assert_allclose(run.ntk_eigenvalue, values[::-1], **near)
            np.testing.assert_allclose(run.ntk_largest_eigenvalue, values[-1], **near)
            np.testing.assert_allclose(run.ntk_trace, values.sum(), **near)
            overlap = (vectors[:, -1] @ z) ** 2 / (z @ z)
            np.testing.assert_allclose(run.residual_overlap, overlap, rtol=1e-8, atol=1e-12)
            squared = sum(free_limit.inner(x, x, gram, metric) for x in path[step])
            np.testing.assert_allclose(run.squared_distance, squared, **near)
            for name, suffix in [("paper", ""), ("finite", "_finite"), ("exact", "_exact")]:
                expected = qm.noise_kernel_norm(ntk, sgd, norm=name)
                np.testing.assert_allclose(run[f"noise_kernel_norm{suffix}"], expected, rtol=1e-7)


@pytest.mark.parametrize("covariance", [None, CORRELATED], ids=["independent", "correlated"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ntk_is_that_of_its_own_jacobian(order, covariance):
    model, sgd = make_model(covariance=covariance), qm.SGD(0.1, 2)
    path, gram, metric = recursion(model, sgd, 8, order, 0)
    system = _system.system_from(model, model.curvature_law, order)
    state = _state.start_replicas(system, sgd, np.arange(1))
    _state.advance(system, _state.update_of(sgd, 3), state, slice(0, 1), 0, 8)
    components = _state.components(system, sgd, state, 0, 8)
    found = _snapshot.Snapshot(system, sgd, components).ntk
    expected = free_limit.ntk_by_differences(path[-1], model.residual, gram, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)
    assert not np.allclose(found, model.ntk(), rtol=0.05)


@pytest.mark.parametrize("covariance", [None, CORRELATED], ids=["independent", "correlated"])
def test_order_one_is_a_two_layer_linear_network(covariance):
    model = make_model(covariance=covariance)
    sgd = qm.SGD(0.05, 2, momentum=0.4, weight_decay=0.1)
    limit = large_p_limit(
        model,
        sgd,
        25,
        truncation_order=1,
        seed=3,
        record_every=1,
        observables=["loss", "ntk_eigenvalue"],
    )
    metric = 0.15**2 * 30 * (np.eye(4) if covariance is None else covariance)
    path = two_layer.train(
        model.jacobian, metric, model.residual, drawn(sgd, 4, 25, 3, 0), 0.05, 0.4, 0.1
    )
    np.testing.assert_allclose(limit.loss[0], [loss for loss, _ in path], rtol=1e-10)
    expected = [np.linalg.eigvalsh(kernel)[::-1] for _, kernel in path]
    np.testing.assert_allclose(limit.ntk_eigenvalue[0], expected, rtol=1e-10)


def direct_run(jacobian, start, curvature, batches, learning_rate):
    """Loss and trace of the NTK before the first step and after every one, from parameters."""
    n_data, width = jacobian.shape
    theta, found = np.zeros(curvature.shape[-1]), []
    for batch in [*batches, []]:
        moved = curvature @ theta
        z = start + jacobian @ theta[:width] + 0.5 * moved @ theta
        moved[:, :width] += jacobian
        found.append((z @ z / (2 * n_data), np.sum(moved**2) / n_data))
        theta = theta - learning_rate * moved[batch].T @ z[batch] / max(len(batch), 1)
    return np.array(found)


@pytest.mark.statistical
def test_first_steps_are_exact():
    """Direct runs with Q and -Q at P = 96 and 192, extrapolated to infinite P, up to step 3."""
    rng, n_data, q, eta = np.random.default_rng(101), 3, 3.0, 0.4
    frame = np.linalg.qr(rng.standard_normal((n_data, n_data)))[0]
    jacobian, start = frame * np.sqrt([4.5, 3.0, 1.5]), np.array([2.0, -1.5, 1.0])
    sgd = qm.SGD(eta, 2)
    batches = drawn(sgd, n_data, 3, 4, 0)
    means, errors = [], []
    for n_params, n in ((96, 600), (192, 1000)):
        pairs = []
        for _ in range(n):
            draw = rng.standard_normal((n_data, n_params, n_params))
            draw += draw.transpose(0, 2, 1).copy()
            draw *= q / np.sqrt(2 * n_params)
            both = [direct_run(jacobian, start, s * draw, batches, eta) for s in (1, -1)]
            pairs.append(np.mean(both, axis=0))
        means.append(np.mean(pairs, axis=0))
        errors.append(np.std(pairs, axis=0) / np.sqrt(len(pairs)))
    estimate = 2 * means[1] - means[0]
    error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    law = qm.curvature.IndependentCurvature(q / 3**0.5)
    model = qm.QuadraticModel(start, jacobian, curvature_law=law)
    off = {}
    for order in (1, 2, 3):
        limit = large_p_limit(model, sgd, 3, truncation_order=order, seed=4, record_every=1)
        found = np.stack([limit.loss[0], limit.ntk_trace[0]], axis=1)
        off[order] = np.abs(found - estimate)[1:] / error[1:]
        exact = [off[order][: order + 1, 0], off[order][:order, 1]]  # the loss is for L + 1 steps
        assert max(values.max() for values in exact) < 3.5  # 11 values: 0.5 % by chance
    assert off[1][1, 1] > 6  # one order less misses the trace after 2 steps,
    assert off[2][2, 1] > 6  # and after 3,
    assert off[1][2, 0] > 6  # and the loss after 3
    assert estimate[3, 1] > 5 * estimate[0, 1]


def curved_model(n_params: int, draw: int, covariance=None, q: float = 1.0) -> qm.QuadraticModel:
    """Eight points, one Jacobian and residual; only the curvature is drawn."""
    rng = np.random.default_rng(5)
    frame, start = np.linalg.qr(rng.standard_normal((8, 8)))[0], rng.standard_normal(8)
    jacobian = np.zeros((8, n_params))
    jacobian[:, :8] = frame * np.sqrt(8 * np.linspace(1.5, 0.5, 8))
    law = qm.curvature.KroneckerCurvature(covariance, scale=q / n_params**0.5)
    curvature = law.sample(np.random.default_rng((draw, n_params)), 8, n_params)
    start *= 1.8 * 8**0.5 / np.linalg.norm(start)
    return qm.QuadraticModel(start, jacobian, curvature, law)


SHORT = ("loss", "ntk_trace", "mode_energy")


def relative_errors(limit, model, sgd, steps):
    """Errors of the trace and of the residual (along modes) at the last step of a direct run."""
    run = qm.simulate(model, sgd, steps, seed=3, record_every=steps, observables=SHORT)
    trace = float((limit.ntk_trace / run.ntk_trace)[0, -1]) - 1
    here, there = (np.sqrt(found.mode_energy[-1].values) for found in (run, limit))
    return trace, float(np.linalg.norm(here - there) / np.linalg.norm(there))


@pytest.mark.slow
@pytest.mark.statistical
def test_direct_runs_converge_to_the_limit():
    """With the same batches errors fall as P^(-1/2); curvature that is off by 10 % is seen."""
    sgd, steps = qm.SGD(0.1, 2), 24
    draws = {64: 200, 128: 100, 256: 64, 512: 48, 1024: 16}
    options = {"truncation_order": 3, "seed": 3, "record_every": steps, "observables": SHORT}
    limit = large_p_limit(curved_model(64, 0), sgd, steps, **options)
    law = qm.curvature.IndependentCurvature(1.1**0.5 / 8)
    wrong = large_p_limit(replace(curved_model(64, 0), curvature_law=law), sgd, steps, **options)
    assert limit.ntk_trace[0, -1] > 1.25 * limit.ntk_trace[0, 0]
    rms, median, traces = [], [], {}
    for n_params, n in draws.items():
        found = [relative_errors(limit, curved_model(n_params, d), sgd, steps) for d in range(n)]
        trace, residual = np.transpose(found)
        rms.append(np.sqrt(np.mean(trace**2)))
        median.append(np.median(residual))
        traces[n_params] = trace
    weight = np.sqrt(list(draws.values()))
    for errors in (rms, median):
        slope = np.polyfit(np.log(list(draws)), np.log(errors), 1, w=weight)[0]
        assert abs(slope + 0.5) < 0.1
    assert rms[-1] < 0.014  # 1 % at P = 2048
    at_512 = traces[512]
    error = at_512.std() / np.sqrt(at_512.size)
    assert abs(at_512.mean()) < 3 * error
    off = (1 + at_512) * float(wrong.ntk_trace[0, -1] / limit.ntk_trace[0, -1]) - 1
    assert abs(off.mean()) > 6 * error


@pytest.mark.slow
@pytest.mark.statistical
def test_correlated_curvature_and_nesterov_converge_too():
    rng = np.random.default_rng(2)
    factor = rng.standard_normal((8, 2))
    covariance = factor @ factor.T / 2
    sgd = qm.SGD(0.03, 2, momentum=0.6, nesterov=True, weight_decay=0.1, sampling="bernoulli")
    options = {"truncation_order": 3, "seed": 3, "record_every": 24, "observables": SHORT}
    models = [curved_model(512, d, covariance) for d in range(24)]
    limit = large_p_limit(models[0], sgd, 24, **options)
    found = np.array([relative_errors(limit, model, sgd, 24)[0] for model in models])
    error = found.std() / np.sqrt(found.size)
    assert error < 0.005
    assert abs(found.mean()) < 3 * error
    law = qm.curvature.IndependentCurvature(512**-0.5)
    plain = large_p_limit(replace(models[0], curvature_law=law), sgd, 24, **options)
    off = (1 + found) * float(plain.ntk_trace[0, -1] / limit.ntk_trace[0, -1]) - 1
    assert abs(off.mean()) > 6 * error


@pytest.mark.parametrize(
    ("q", "growth", "trace", "loss"), [(1.0, 1.28, 0.025, 0.003), (5 / 3, 1.8, 0.2, 0.01)]
)
def test_orders_converge_geometrically(q, growth, trace, loss):
    """Until the trace has doubled each order changes a tenth of what the last did, or less."""
    model, sgd = curved_model(16, 0, q=q), qm.SGD(0.1, 2)
    runs = [
        large_p_limit(
            model, sgd, 24, truncation_order=order, seed=3, record_every=1, observables=SHORT
        )
        for order in (1, 2, 3, 4)
    ]
    assert float(runs[-1].ntk_trace.max() / runs[-1].ntk_trace[0, 0]) == pytest.approx(growth, 0.05)
    for name, largest in [("ntk_trace", trace), ("loss", loss)]:
        changes = [
            float(np.abs(b[name] - a[name]).max() / a[name][0, 0])
            for a, b in itertools.pairwise(runs)
        ]
        assert largest / 3 < changes[0] < largest
        assert changes[1] < 0.1 * changes[0]
        assert changes[2] < 0.1 * changes[1]


@pytest.mark.statistical
def test_draws_at_finite_width_restore_level_repulsion():
    sgd, steps, n = qm.SGD(0.1, 2), 24, 100
    options = {"seed": 3, "record_every": steps, "observables": ["ntk_eigenvalue"]}
    runs = np.array(
        [
            qm.simulate(curved_model(64, d, q=0.7), sgd, steps, **options).ntk_eigenvalue[0, -1]
            for d in range(n)
        ]
    )
    mean, error = runs.mean(axis=0), runs.std(axis=0) / n**0.5
    model = curved_model(64, 0, q=0.7)
    bare = large_p_limit(model, sgd, steps, truncation_order=3, **options).ntk_eigenvalue[0, -1]
    drawn = large_p_limit(model, sgd, steps, truncation_order=3, finite_width_draws=4000, **options)
    assert np.abs((drawn.ntk_eigenvalue[0, -1] - mean) / error).max() < 3.5
    assert np.abs((bare - mean) / error)[[0, -1]].min() > 6
    # Beyond the limit the draws' trace has the 1/P part of the Gaussian one, and nothing else.
    np.testing.assert_allclose(drawn.ntk_eigenvalue[0, -1].sum(), bare.sum(), rtol=0.01)
