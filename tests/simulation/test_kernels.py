"""The compiled kernels against plain loops that are given the same batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.batches import batch_indices
from tests.oracles import naive_sgd

pytestmark = pytest.mark.kernels
SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
KINDS = ("linear", "dense", "low_rank")
MOMENTA = [(0.0, False), *itertools.product((0.8, -0.4), (False, True))]
N_DATA, N_PARAMS, STEPS, SEED, INDEX = 5, 6, 12, 2**40 + 3, 6


def make_model(kind: str, n_data: int = N_DATA, n_params: int = N_PARAMS) -> qm.QuadraticModel:
    rng = np.random.default_rng(n_data)
    residual, jacobian = rng.normal(size=n_data), rng.normal(size=(n_data, n_params))
    if kind == "linear":
        return qm.QuadraticModel(residual, jacobian)
    low_rank = qm.LowRankCurvature(
        0.3 * rng.normal(size=(n_data, 2)), rng.normal(size=(n_data, 2, n_params))
    )
    return qm.QuadraticModel(
        residual, jacobian, low_rank if kind == "low_rank" else low_rank.dense()
    )


def batches_of(model: qm.QuadraticModel, sgd: qm.SGD, replica: int, steps: int = STEPS) -> list:
    return [
        batch_indices(
            model.n_data, sgd.batch_size, seed=SEED, model=INDEX, replica=replica, step=t,
            sampling=sgd.sampling,
        ).tolist()
        for t in range(steps)
    ]  # fmt: skip


def options_of(sgd: qm.SGD) -> tuple:
    return sgd.learning_rate, sgd.batch_size, sgd.momentum, sgd.nesterov, sgd.weight_decay


def naive_residuals(model: qm.QuadraticModel, sgd: qm.SGD, replicas: int, steps: int = STEPS):
    """Return the residuals of plain loops in parameter space, (replicas, steps + 1, n_data)."""
    q = model.curvature.dense() if isinstance(model.curvature, qm.LowRankCurvature) else (
        model.curvature
    )  # fmt: skip
    curvature = None if q is None else q.tolist()
    return np.array(
        [
            naive_sgd.parameter_space(
                model.residual.tolist(), model.jacobian.tolist(), curvature,
                batches_of(model, sgd, replica, steps), *options_of(sgd),
            )[1]
            for replica in range(replicas)
        ]
    )  # fmt: skip


def run(model: qm.QuadraticModel, sgd: qm.SGD, replicas: int, steps: int = STEPS):
    return qm.simulate(
        model,
        sgd,
        steps,
        replicas=replicas,
        seed=SEED,
        model_index=INDEX,
        record_every=1,
        threads=1,
    )


def check(model: qm.QuadraticModel, sgd: qm.SGD, replicas: int, steps: int = STEPS) -> None:
    """Compare losses run by run, and mean squared residuals per mode with their standard errors."""
    sim = run(model, sgd, replicas, steps)
    z = naive_residuals(model, sgd, replicas, steps)
    loss = (z**2).sum(axis=2) / (2 * model.n_data)
    np.testing.assert_allclose(sim.loss, loss, rtol=1e-11)
    vectors = np.linalg.eigh(model.ntk())[1][:, ::-1]
    squared = (z @ vectors) ** 2
    scale = squared.max()
    np.testing.assert_allclose(sim.mode_energy, squared.mean(axis=0), rtol=1e-9, atol=1e-10 * scale)
    if replicas > 1:
        error = squared.std(axis=0, ddof=1) / replicas**0.5
        np.testing.assert_allclose(
            sim.mode_energy_standard_error, error, rtol=1e-9, atol=1e-8 * scale
        )


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_takes_the_steps_of_plain_loops(kind, sampling, momentum, nesterov):
    for number, decay in enumerate((0.0, 0.5)):
        sgd = qm.SGD(0.08, 2 + number, momentum, nesterov, decay, sampling)
        check(make_model(kind), sgd, replicas=3)


@pytest.mark.parametrize("replicas", [1, 4, 8, 9, 11, 16, 33, 41])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_replicas(kind, replicas):
    sgd = qm.SGD(0.1, 3, 0.5, True, 0.1, "with_replacement")
    check(make_model(kind), sgd, replicas, steps=6)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 8, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size(kind, batch_size, sampling):
    """Columns are taken four at a time; one point may be drawn more often than there are runs."""
    check(make_model(kind, 9, 10), qm.SGD(0.05, batch_size, sampling=sampling), replicas=1)


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_low_rank_is_dense_of_the_same(momentum, nesterov):
    sgd = qm.SGD(0.08, 2, momentum, nesterov, 0.2)
    low_rank, dense = (run(make_model(kind), sgd, replicas=10) for kind in ("low_rank", "dense"))
    for name in low_rank.data_vars:
        np.testing.assert_allclose(low_rank[name], dense[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_params", [3, 8])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("sampling", SCHEMES)
def test_function_space_is_parameter_space_without_curvature(
    sampling, momentum, nesterov, n_params
):
    sgd = qm.SGD(0.08, 2, momentum, nesterov, 0.3, sampling)
    linear = make_model("linear", 6, n_params)
    flat = qm.QuadraticModel(linear.residual, linear.jacobian, np.zeros((6, n_params, n_params)))
    by_residual, by_parameters = run(linear, sgd, replicas=10), run(flat, sgd, replicas=10)
    for name in by_residual.data_vars:
        np.testing.assert_allclose(
            by_residual[name], by_parameters[name], rtol=1e-9, atol=1e-12, err_msg=str(name)
        )
    drawn = batches_of(linear, sgd, replica=0)
    z = naive_sgd.function_space(
        linear.residual.tolist(), linear.ntk().tolist(), drawn, *options_of(sgd)
    )
    np.testing.assert_allclose(by_residual.loss[0], (np.array(z) ** 2).sum(axis=1) / 12, rtol=1e-11)


def test_seed_and_model_index_reach_the_batches():
    model, sgd = make_model("linear"), qm.SGD(0.1, 2)
    plain = run(model, sgd, replicas=2).loss.values
    for changed in ({"seed": SEED + 2**33}, {"model_index": INDEX + 1}):
        changed = {"seed": SEED, "model_index": INDEX, **changed}
        other = qm.simulate(model, sgd, STEPS, replicas=2, **changed).loss.values
        assert (other[:, 1:] != plain[:, 1:]).all()
    assert (plain[0, 1:] != plain[1, 1:]).all()
