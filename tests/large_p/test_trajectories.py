"""large_p_limit() as a function: Datasets, same bits, divergence, bad arguments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.large_p.trajectories import KNOWN, large_p_limit
from tests.assertions import assert_same_bits

ENSEMBLE = qm.Ensemble(6, 40, curvature=0.1)
FULL = qm.SGD(0.02, 2, momentum=0.5, nesterov=True, weight_decay=0.1, sampling="bernoulli")


@pytest.mark.parametrize("names", [None, ["loss", "residual_overlap", "ntk_eigenvalue"]])
def test_dataset_is_laid_out_as_a_simulation(names):
    options = {"replicas": 3, "seed": 2**63, "record_every": 4, "model_index": 5}
    limit = large_p_limit(ENSEMBLE, FULL, 10, observables=names, **options)
    sim = qm.simulate(ENSEMBLE.sample(seed=2**63), FULL, 10, observables=names, **options)
    assert set(limit.variables) == set(sim.variables)
    for name in sim.variables:
        assert limit[name].dims == sim[name].dims
        assert limit[name].attrs == sim[name].attrs
        assert limit[name].dtype == sim[name].dtype
    for name in ("step", "replica", "mode"):
        np.testing.assert_array_equal(limit[name], sim[name])
    assert limit.attrs["kind"] == "large-P limit"
    assert limit.attrs["curvature_strength"] == pytest.approx(0.1 * 40**0.5)
    shared = set(limit.attrs) & set(sim.attrs) - {"kind"}
    assert {"steps", "seed", "model_index", "n_data", "n_params", *FULL.spec()} <= shared
    assert all(limit.attrs[key] == sim.attrs[key] for key in shared)
    # The start is the same model, whatever its curvature.
    np.testing.assert_allclose(limit.loss[:, 0], sim.loss[:, 0], rtol=1e-12)
    limit.to_netcdf()


@pytest.mark.parametrize("covariance", [None, np.diag([1.0, 2.0, 0.5, 1.0, 1.0, 0.0])])
def test_bits_depend_on_no_threads_records_or_neighbours(covariance):
    law = qm.curvature.KroneckerCurvature(covariance, scale=0.1)
    ensemble = replace(ENSEMBLE, curvature=law)
    options = {"seed": 1, "finite_width_draws": 2, "observables": "all"}
    one = large_p_limit(ensemble, FULL, 30, replicas=20, threads=1, record_every=5, **options)
    for threads in (2, 3):
        again = large_p_limit(
            ensemble, FULL, 30, replicas=20, threads=threads, record_every=5, **options
        )
        assert_same_bits(one, again)
    seldom = large_p_limit(ensemble, FULL, 30, replicas=3, record_every=15, **options)
    for name in KNOWN:
        if name != "mode_energy":
            expected = one[name].isel(replica=slice(3), step=slice(None, None, 3))
            np.testing.assert_array_equal(seldom[name], expected)
    assert len(np.unique(one.loss[:, -1])) == 20


def test_a_linear_model_is_simulated_exactly():
    model = qm.Ensemble(6, 10).sample(seed=0)
    for sgd in (qm.SGD(0.1, 2), FULL):
        options = {"replicas": 2, "seed": 3, "record_every": 5, "observables": ["loss"]}
        limit, sim = (
            large_p_limit(model, sgd, 40, **options),
            qm.simulate(model, sgd, 40, **options),
        )
        np.testing.assert_allclose(limit.loss, sim.loss, rtol=1e-9)
        law = qm.curvature.IndependentCurvature(0.0)
        none = large_p_limit(
            replace(model, curvature_law=law), sgd, 40, truncation_order=3, **options
        )
        assert_same_bits(limit, none, attrs=False)


def test_fewer_parameters_than_data_points():
    ensemble = qm.Ensemble(6, 3, curvature=0.05)
    limit = large_p_limit(ensemble, qm.SGD(0.05, 3), 20, seed=0)
    assert np.isfinite(limit.loss).all()
    full = large_p_limit(ensemble, qm.SGD(0.05, 6), 20, seed=0)
    assert full.loss[0, -1] < full.loss[0, 0]


def test_divergence_is_reported_and_freezes_the_run():
    ensemble, sgd = qm.Ensemble(6, 40, curvature=0.5), qm.SGD(0.2, 2)
    limit = large_p_limit(ensemble, sgd, 60, replicas=8, seed=4, record_every=1, observables="all")
    at = limit.divergence_step.values
    assert (at > 0).all()
    for replica, step in enumerate(at):
        run = limit.isel(replica=replica)
        assert np.isfinite(run.loss[:step]).all()
        assert np.isposinf(run.loss[step:]).all()
        assert np.isposinf(run.squared_distance[step:]).all()
        assert np.isnan(run.ntk_eigenvalue[step:]).all()
        assert np.isnan(run.noise_kernel_norm[step:]).all()
    assert np.isposinf(limit.mode_energy[at.min() :]).all()
    last = large_p_limit(ensemble, sgd, 60, replicas=8, seed=4, record_every=59)
    np.testing.assert_array_equal(last.divergence_step, at)
    runs = qm.simulate(ensemble.sample(seed=4), sgd, 60, replicas=8, seed=4)
    assert np.abs(runs.divergence_step.values - at).max() <= 3


def test_divergence_with_momentum_and_decay():
    limit = large_p_limit(
        qm.Ensemble(6, 40, curvature=0.5), qm.SGD(0.3, 2, momentum=0.9, weight_decay=0.1), 80
    )
    assert limit.divergence_step[0] > 0


def test_ensemble_is_sampled_without_its_curvature():
    # A draw of the curvature would take 640 GB.
    many = qm.Ensemble(2, 200_000, jacobian=[1.0, 0.5], curvature=0.5 / 200_000**0.5)
    limit = large_p_limit(many, qm.SGD(0.1, 1), 10, seed=2, finite_width_draws=3)
    assert np.isfinite(limit.loss).all()


def curved(law):
    return replace(ENSEMBLE, curvature=law)


REFUSED = {
    "model": ({"model": np.eye(6)}, "model must be a QuadraticModel or an Ensemble, got ndarray"),
    "sgd": ({"sgd": 0.1}, "sgd must be an SGD, got float"),
    "batch": ({"sgd": qm.SGD(0.1, 7)}, r"batch_size .*n_data=6, got 7"),
    "order": ({"truncation_order": 0}, "truncation_order must be an integer >= 1, got 0"),
    "steps": ({"steps": 0}, "steps must be .* got 0"),
    "replicas": ({"replicas": 0}, "replicas must be .* got 0"),
    "seed": ({"seed": -1}, "seed must be .* got -1"),
    "record_every": ({"record_every": 0}, "record_every must be .* got 0"),
    "draws": ({"finite_width_draws": -1}, "finite_width_draws must be .* got -1"),
    "threads": ({"threads": 0}, "threads must be .* got 0"),
    "observable": ({"observables": ["batch_sharpness"]}, "observables must be .*batch_sharpness"),
    "observables": ({"observables": "loss"}, "observables must be .*'loss'"),
    "low rank": (
        {"model": curved(qm.curvature.RandomLowRankCurvature(2, 0.1))},
        "curvature must have a Kronecker covariance",
    ),
    "parameters": (
        {"model": curved(qm.curvature.KroneckerCurvature(None, np.diag(np.arange(1.0, 41.0))))},
        "parameter_covariance None or the identity",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(wrong, message):
    right = {"model": ENSEMBLE, "sgd": qm.SGD(0.1, 2), "steps": 4}
    with pytest.raises(InputError, match=message) as refusal:
        large_p_limit(**(right | wrong))
    assert "\n" not in str(refusal.value)


def test_a_curvature_without_law_is_refused():
    drawn = ENSEMBLE.sample(seed=0)
    model = qm.QuadraticModel(drawn.residual, drawn.jacobian, drawn.curvature)
    with pytest.raises(InputError, match=r"model must have a curvature_law .* got a model without"):
        large_p_limit(model, qm.SGD(0.1, 2), 4)
    named = replace(model, curvature_law=qm.curvature.IndependentCurvature(0.1))
    limits = [large_p_limit(one, qm.SGD(0.1, 2), 4) for one in (named, drawn)]
    assert_same_bits(*limits)


def test_draws_need_more_parameters_than_data_points():
    with pytest.raises(InputError, match=r"n_params must be above n_data=6 .* got 6"):
        large_p_limit(qm.Ensemble(6, 6, curvature=0.1), qm.SGD(0.1, 2), 4, finite_width_draws=1)


def test_memory_is_refused_before_work_starts():
    with pytest.raises(MemoryError, match=r"the large-P limit needs .* GiB"):
        large_p_limit(qm.Ensemble(30, 60, curvature=0.1), qm.SGD(0.1, 2), 4, truncation_order=12)
    with pytest.raises(MemoryError, match=r"the large-P limit needs .* GiB"):
        large_p_limit(ENSEMBLE, qm.SGD(0.1, 2), 4, truncation_order=400)
