"""What simulate() records: names, labels, bits, divergence, memory."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.simulation import _measurement, observables, trajectories
from tests.assertions import assert_same_bits

ALL = tuple(observables.OBSERVABLES)
DEFAULT = (
    "loss", "squared_distance", "ntk_largest_eigenvalue", "ntk_trace", "noise_kernel_norm",
    "noise_kernel_norm_finite", "mode_energy",
)  # fmt: skip
ALWAYS = {"divergence_step"}


def make_model(kind: str, n_data: int = 6, n_params: int = 8) -> qm.QuadraticModel:
    curvature = {
        "linear": None,
        "dense": 0.1,
        "low_rank": qm.curvature.RandomLowRankCurvature(rank=2, scale=0.3),
    }
    return qm.Ensemble(n_data, n_params, curvature=curvature[kind]).sample(seed=1)


def with_error(names) -> set[str]:
    return {*names, *(["mode_energy_standard_error"] if "mode_energy" in names else [])}


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_names_and_labels(kind):
    model, sgd = make_model(kind), qm.SGD(0.1, 2)
    plain = qm.simulate(model, sgd, 4, replicas=2, record_every=2)
    assert set(plain.data_vars) == with_error(DEFAULT) | ALWAYS
    full = qm.simulate(model, sgd, 4, replicas=2, record_every=2, observables="all")
    assert set(full.data_vars) == with_error(ALL) | ALWAYS
    for name in full.data_vars:
        assert full[name].attrs["long_name"]
        assert full[name].attrs["units"]
        dims = {
            "ntk_eigenvalue": ("replica", "step", "mode"),
            "mode_energy": ("step", "mode"),
            "mode_energy_standard_error": ("step", "mode"),
            "divergence_step": ("replica",),
        }.get(name, ("replica", "step"))
        assert full[name].dims == dims
        assert np.isfinite(full[name]).all()
    assert full.batch_sharpness.attrs["sampled_batches"] == 32
    per_learning_rate = {n for n in full.data_vars if full[n].units == "1 / learning rate"}
    assert per_learning_rate == {
        "ntk_largest_eigenvalue", "ntk_trace", "ntk_eigenvalue", "hessian_largest_eigenvalue",
        "batch_sharpness", "gradient_noise_interaction",
    }  # fmt: skip
    np.testing.assert_array_equal(full.ntk_eigenvalue[:, :, 0], full.ntk_largest_eigenvalue)
    assert (full.ntk_eigenvalue.diff("mode") <= 0).all()
    assert (full.squared_distance[:, 0] == 0).all()


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_a_variable_has_the_same_bits_whatever_else_is_recorded(kind, replicas):
    model, sgd = make_model(kind), qm.SGD(0.1, 2, 0.3)
    run = {"replicas": replicas, "record_every": 5}
    full = qm.simulate(model, sgd, 10, observables="all", **run)
    for name in ALL:
        one = qm.simulate(model, sgd, 10, observables=[name], **run)
        assert set(one.data_vars) == with_error([name]) | ALWAYS
        np.testing.assert_array_equal(one[name], full[name], err_msg=name)
    nothing = qm.simulate(model, sgd, 10, observables=(), **run)
    assert set(nothing.data_vars) == ALWAYS
    pair = qm.simulate(model, sgd, 10, observables=("ntk_trace", "loss", "loss"), **run)
    assert set(pair.data_vars) == {"loss", "ntk_trace"} | ALWAYS


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_records_do_not_depend_on_how_often_they_are_taken(kind):
    model, sgd = make_model(kind), qm.SGD(0.1, 2, 0.6, True, 0.1)
    often, seldom = (
        qm.simulate(model, sgd, 10, replicas=9, record_every=k, observables="all") for k in (1, 5)
    )
    assert_same_bits(often.sel(step=seldom.step), seldom)


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_same_bits_for_any_number_of_threads(kind, monkeypatch):
    """With work in as many parts and blocks of replicas as there can be; some runs diverge."""
    monkeypatch.setattr(_measurement, "_PART", 1.0)
    monkeypatch.setattr(_measurement, "_BLOCK_BYTES", 1.0)
    model = make_model(kind)
    sgd = qm.SGD(5.0 if kind == "linear" else 0.35, 2, sampling="with_replacement")
    runs = [
        qm.simulate(
            model, sgd, 200, replicas=21, seed=8, record_every=25, threads=n, observables="all"
        )
        for n in (1, 2, 3, 1)
    ]
    assert (runs[0].divergence_step >= 0).any()
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


def test_parts_and_blocks_hold_everything_once():
    for n, parts in ((0, 0), (1, 1), (5, 5), (21, 3), (7, 2)):
        cut = _measurement.cut(n, parts)
        assert [i for piece in cut for i in range(n)[piece]] == list(range(n))
        assert len(cut) == parts
        assert max((len(range(n)[p]) for p in cut), default=0) <= -(-n // max(parts, 1))


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_blocks_and_parts_change_rounding_only(kind, monkeypatch):
    model, sgd = make_model(kind, 12, 10), qm.SGD(0.05, 3)
    run = {"replicas": 21, "record_every": 10, "observables": "all"}
    whole = qm.simulate(model, sgd, 10, **run)
    monkeypatch.setattr(_measurement, "_PART", 1.0)
    monkeypatch.setattr(_measurement, "_BLOCK_BYTES", 1.0)
    cut = qm.simulate(model, sgd, 10, **run)
    for name in whole.data_vars:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-8, atol=1e-16, err_msg=name)


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_divergence(kind):
    """On the way there, numbers may be huge, but are numbers; after it, +inf or NaN."""
    model = make_model(kind)
    far = 20 * qm.edge_of_stability(model.ntk(), qm.SGD(1.0, 1))
    run = {"steps": 300, "replicas": 10, "record_every": 1, "observables": "all"}
    sim = qm.simulate(model, qm.SGD(far, 3), **run)
    at = sim.divergence_step.values
    assert ((at > 0) & (at < 300)).all()
    after = sim.step.values >= at[:, None]
    for name in ALL:
        values = sim[name].values
        if name == "mode_energy":
            assert np.isposinf(values[sim.step.values >= at.min()]).all()
        elif name in ("loss", "squared_distance"):
            np.testing.assert_array_equal(np.isposinf(values), after)
            assert np.isfinite(values[~after]).all()
        else:
            assert np.isnan(values[after]).all()
            assert not np.isnan(values[~after]).any()
            if "noise_kernel" not in name:
                assert np.isfinite(values[~after]).all()
    assert (sim.noise_kernel_norm_exact.values[:, 0] == np.inf).all()


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_nothing_left_to_learn(kind):
    """Ratios over a vanishing residual are NaN, without a warning; everything else is there."""
    model = make_model(kind)
    solved = qm.QuadraticModel(np.zeros(6), model.jacobian, model.curvature)
    sim = qm.simulate(solved, qm.SGD(0.1, 2), 2, replicas=2, record_every=1, observables="all")
    undefined = {"batch_sharpness", "gradient_noise_interaction", "residual_overlap"}
    for name in ALL:
        assert np.isnan(sim[name]).all() == (name in undefined), name
        assert np.isfinite(sim[name]).all() == (name not in undefined), name
    assert (sim.loss == 0).all()
    assert (sim.squared_distance == 0).all()


def test_empty_batches_do_not_count():
    """Bernoulli batches of one expected point among three are empty 8 times out of 27."""
    model = qm.QuadraticModel([1.0, 2.0, -1.0], np.diag([1.0, 2.0, 3.0]))
    sgd = qm.SGD(0.1, 1, sampling="bernoulli")
    sim = qm.simulate(model, sgd, 1, replicas=50, observables=["batch_sharpness"])
    # a single point with weight 3 and g along its row: w J^2 / D
    assert (sim.batch_sharpness[:, 0] >= 1.0).all()
    assert (sim.batch_sharpness[:, 0] <= 9.0).all()


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("loss", "'loss'"),
        ("All", "'All'"),
        (["loss", "sharpness"], "'sharpness'"),
        (["loss", 3], "3"),
        ([["loss"]], r"\['loss'\]"),
        (3, "3"),
        ({"loss"}, r"\{'loss'\}"),
    ],
)
def test_unknown_names_are_refused_before_any_work(value, got, monkeypatch):
    def no_work(*_):
        raise AssertionError("work has begun")

    monkeypatch.setattr(trajectories, "start_replicas", no_work)
    monkeypatch.setattr(trajectories, "check_memory", no_work)
    with pytest.raises(InputError, match=rf"^observables must be .*loss.*; got {got}$") as caught:
        qm.simulate(make_model("linear"), qm.SGD(0.1, 2), 3, observables=value)
    assert "\n" not in str(caught.value)


def free(monkeypatch, available) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_memory_of_spectra(monkeypatch):
    """Every eigenvalue of every replica at every step is what fills memory."""
    model, sgd = make_model("linear"), qm.SGD(0.1, 2)
    free(monkeypatch, 100 * 1001 * 6 * 8)  # replicas, records, modes, bytes
    run = {"steps": 1000, "replicas": 100}
    qm.simulate(model, sgd, **run, observables=["ntk_largest_eigenvalue"])
    with pytest.raises(MemoryError, match=r"the simulation needs .* GiB are free"):
        qm.simulate(model, sgd, **run, observables=["ntk_eigenvalue"])


@pytest.mark.parametrize(
    ("name", "bytes_per_replica"),
    [
        ("hessian_largest_eigenvalue", 300**2 * 8),
        ("gradient_noise_interaction", 300**2 * 8),
        ("batch_sharpness", 32 * 300 * 8),
    ],
)
def test_memory_of_measuring(name, bytes_per_replica, monkeypatch):
    model, sgd = make_model("dense", 3, 300), qm.SGD(0.01, 2)
    free(monkeypatch, 8 * (bytes_per_replica + 3 * 300 * 8))
    run = {"steps": 1, "replicas": 8}
    with pytest.raises(MemoryError):
        qm.simulate(model, sgd, **run, observables=[name])
    monkeypatch.undo()
    qm.simulate(model, sgd, **run, observables=[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_memory_is_foreseen(kind, monkeypatch):
    """What a run allocates at most is below what was checked for, and not far below."""
    model, sgd = make_model(kind, 20, 200), qm.SGD(0.01, 3)
    asked = []
    monkeypatch.setattr(trajectories, "check_memory", lambda _, n_bytes: asked.append(n_bytes))
    run = {"steps": 3, "replicas": 100, "record_every": 1, "observables": "all", "threads": 2}
    qm.simulate(model, sgd, **run)  # compiles
    tracemalloc.start()
    try:
        qm.simulate(model, sgd, **run)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < asked[-1] < 8 * peak
