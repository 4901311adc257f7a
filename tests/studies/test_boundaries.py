"""Traced boundaries against exact ones, whatever the start, the threads and the company."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies._tracing import BoundarySpec, trace_unit

# Every statistical assertion fails by chance with probability 1e-7 at most.
ERROR = 1e-7
# Freedom of the scatter around a line through a close-up's values, and where some are left out.
FREEDOM, LEAST = 6, 3
SIZES = (2, 5, 11)
MOMENTA = (-0.3, 0.6)
ENSEMBLE = qm.Ensemble(24, 48)


def ends(found, name="critical_learning_rate"):
    return [found[f"{name}{end}"].values for end in ("", "_low", "_high")]


def errors(low, high):
    """Return standard errors of log learning rates; too large where values were left out."""
    return np.log(high / low) / (2 * stdtrit(FREEDOM, 0.975))


def pooled(score):
    """Return a mean of scores over the largest that is no news."""
    return score.mean() * score.size**0.5 / -stdtrit(LEAST * score.size, ERROR / 2)


def exact(model, sgd, norm="exact"):
    ntk = model.ntk()
    return np.array(
        [
            [
                qm.critical_learning_rate(ntk, replace(sgd, batch_size=b, momentum=m), norm=norm)
                for m in MOMENTA
            ]
            for b in SIZES
        ]
    )


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    "sgd",
    [
        qm.SGD(1.0, 1),
        qm.SGD(1.0, 1, nesterov=True, sampling="with_replacement"),
        qm.SGD(1.0, 1, weight_decay=0.1, sampling="bernoulli"),
    ],
)
def test_mean_square_is_where_exact_k_is_one(sgd):
    model = ENSEMBLE.sample(1)
    found = qm.trace_boundary(model, SIZES, momenta=MOMENTA, sgd=sgd, seed=2)
    assert found.precise.all()
    value, low, high = ends(found)
    assert (high / low < 1.01**2 * (1 + 1e-9)).all()
    assert abs(pooled(np.log(value / exact(model, sgd)) / errors(low, high))) < 1
    np.testing.assert_allclose(found.noise_kernel_norm.sel(norm="exact"), 1, atol=0.05)
    # The negative control: the closure's learning rates, which are larger.
    assert pooled(np.log(value / exact(model, sgd, "finite")) / errors(low, high)) < -1


@pytest.mark.slow
@pytest.mark.statistical
def test_typical_is_where_the_lyapunov_exponent_vanishes():
    model, sizes = ENSEMBLE.sample(1), (4, 8, 12)
    found = qm.trace_boundary(model, sizes, kind="typical", seed=3, rtol=4e-3)
    assert found.precise.all()
    value, low, high = ends(found)

    def growth(rates):
        runs = [
            qm.lyapunov_exponent(model, qm.SGD(float(rate), b), 10_000, replicas=32, seed=4)
            for rate, b in zip(rates, sizes, strict=True)
        ]
        names = ("typical_growth", "typical_growth_standard_error")
        return np.array([[float(run[name]) for run in runs] for name in names])

    (below, _), (here, error), (above, _) = (growth(value * by) for by in (0.95, 1.0, 1.05))
    slope = (above - below) / np.log(1.05 / 0.95)
    assert (slope > 0).all()
    score = (here / slope) / np.hypot(errors(low, high), error / slope)
    assert abs(pooled(score)) < 1
    # The negative control: the mean turns unstable earlier.
    mean = [qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, b), norm="exact") for b in sizes]
    assert pooled(np.log(value / mean) / errors(low, high)) > 1


@pytest.mark.parametrize(
    ("sgd", "rtol"),
    [
        (qm.SGD(1.0, 1), 1e-2),
        (qm.SGD(1.0, 1), 1e-3),
        (qm.SGD(1.0, 1), 0.2),
        (qm.SGD(1.0, 1, 0.9, weight_decay=0.1), 1e-2),
        (qm.SGD(1.0, 1, -0.4, sampling="bernoulli"), 1e-2),
        (qm.SGD(1.0, 1, 0.7, True, sampling="with_replacement"), 1e-2),
    ],
)
def test_deterministic_is_the_edge(sgd, rtol):
    model = ENSEMBLE.sample(1)
    found = qm.trace_boundary(model, SIZES, kind="deterministic", sgd=sgd, rtol=rtol)
    edge = qm.edge_of_stability(model.ntk(), sgd)
    value, low, high = ends(found)
    assert (low < edge).all()
    assert (edge < high).all()
    assert (high / low < (1 + rtol) ** 2 * (1 + 1e-9)).all()
    np.testing.assert_allclose(value**2, low * high)
    assert (low == low[0]).all()
    assert found.precise.all()
    assert found.attrs["replica_steps"] == found.replica_steps[0]
    assert "norm" not in found.dims


def test_full_batches_are_deterministic():
    found = qm.trace_boundary(ENSEMBLE, [24], kind="mean_square", seed=5)
    edge = qm.trace_boundary(ENSEMBLE, [3], kind="deterministic", seed=5)
    for one, other in zip(ends(found), ends(edge), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02)
    assert np.isnan(found.noise_kernel_norm).all()


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["mean_square", "typical"])
@pytest.mark.parametrize("times", [1e-4, 1e5])
def test_a_wrong_start_gives_the_same_answer(kind, times):
    spec = spec_of(kind=kind, batch_sizes=(2, 4, 6, 8), momenta=(0.0,), rtol=0.01, steps=1000)
    model = spec.model()
    far = replace(spec, start=times / float(model.eigensystem[0][0]))
    right, wrong = (
        np.array([trace_unit(one, n, model)[:3] for n in range(4)]).T for one in (spec, far)
    )
    error = np.hypot(errors(*right[1:]), errors(*wrong[1:]))
    assert error.max() < 0.01
    assert (right[0] != wrong[0]).all()  # other runs
    assert abs(pooled(np.log(right[0] / wrong[0]) / error)) < 1


def test_a_wrong_start_gives_the_same_edge():
    spec = spec_of(kind="deterministic")
    edge = qm.edge_of_stability(spec.model().ntk(), spec.sgd)
    for start in (1e-6, 0.01, 100.0, 1e8):
        one = trace_unit(replace(spec, start=start), 0)
        assert one.low < edge < one.high
        assert one.precise


def spec_of(**changed):
    fields = {
        "source": ENSEMBLE, "batch_sizes": (2, 8), "momenta": (0.0, 0.5), "kind": "typical",
        "rtol": 0.03, "sgd": qm.SGD(1.0, 1), "steps": 200, "replicas": 8, "seed": 7,
    }  # fmt: skip
    return BoundarySpec(**fields | changed)


@pytest.mark.parametrize("kind", ["mean_square", "typical", "deterministic"])
def test_same_bits_for_any_number_of_threads(kind):
    def trace(threads):
        return qm.trace_boundary(
            qm.Ensemble(10, 20), [3], kind=kind, momenta=[0.0, 0.5], rtol=0.1, steps=64,
            threads=threads,
        )  # fmt: skip

    one = trace(1)
    assert dict(one.critical_learning_rate.sizes) == {"batch_size": 1, "momentum": 2}
    for threads in (2, 3):  # 3: more than there are units
        assert trace(threads).identical(one)


def test_units_are_pure_functions_that_can_be_sent():
    spec = spec_of()
    found = qm.trace_boundary(
        ENSEMBLE, [2, 8], momenta=[0.0, 0.5], kind="typical", rtol=0.03, steps=200, replicas=8,
        seed=7, threads=1,
    )  # fmt: skip
    sent = pickle.loads(pickle.dumps(spec))
    for index in (3, 0, 2, 1):
        one = pickle.loads(pickle.dumps(trace_unit(sent, index)))
        size, momentum = divmod(index, 2)
        there = found.isel(batch_size=size, momentum=momentum)
        assert one.learning_rate == float(there.critical_learning_rate)
        assert one.replica_steps == int(there.replica_steps)


def test_order_and_company_are_irrelevant():
    options = {"rtol": 0.1, "steps": 64, "kind": "typical"}
    whole = qm.trace_boundary(ENSEMBLE, [9, 2, 3], momenta=[0.5, 0.0], **options)
    assert whole.batch_size.values.tolist() == [2, 3, 9]
    assert qm.trace_boundary(ENSEMBLE, [2, 3, 9], momenta=[0.0, 0.5], **options).identical(whole)
    alone = qm.trace_boundary(ENSEMBLE, [3], sgd=qm.SGD(1.0, 1, 0.5), **options)
    there = whole.sel(batch_size=[3], momentum=0.5, drop=True)
    for name in alone.data_vars:
        np.testing.assert_array_equal(alone[name], there[name], err_msg=str(name))
    assert alone.attrs["momentum"] == 0.5
    other = qm.trace_boundary(ENSEMBLE, [3], seed=1, **options)
    assert float(other.critical_learning_rate[0]) != float(alone.critical_learning_rate[0])


def test_seeds_of_units_differ():
    spec = spec_of(momenta=(-0.5, 0.0, 0.5))
    seeds = {s.seed_of(n) for s in (spec, replace(spec, seed=8)) for n in range(len(spec))}
    assert len(seeds) == 2 * len(spec) == 12


@pytest.mark.slow
def test_precision_costs_runs():
    coarse, fine = (
        qm.trace_boundary(ENSEMBLE, [4], kind="typical", rtol=rtol, seed=8) for rtol in (0.05, 2e-3)
    )
    assert coarse.precise.all()
    assert fine.precise.all()
    assert fine.attrs["replica_steps"] > 1.5 * coarse.attrs["replica_steps"]
    assert int(fine.replicas[0]) > int(coarse.replicas[0]) == 16


@pytest.mark.slow
def test_too_few_steps_are_said():
    lam = np.geomspace(1, 1e-4, 40)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    few = qm.trace_boundary((vectors * lam) @ vectors.T, [1], steps=32, replicas=4)
    assert not few.resolved.any()
    assert not few.precise.any()
    assert int(few.needed_steps[0]) > 32
    edge = qm.trace_boundary(
        np.diag(lam), [1], kind="deterministic", sgd=qm.SGD(1.0, 1, -0.8), steps=32, rtol=1e-3
    )
    assert edge.resolved.all()  # what it says is right
    assert not edge.precise.any()
    assert 32 < int(edge.needed_steps[0]) < 10_000
    _, low, high = ends(edge)
    assert low[0] < qm.edge_of_stability(np.diag(lam), qm.SGD(1.0, 1, -0.8)) < high[0]


@pytest.mark.slow
@pytest.mark.statistical
def test_runs_with_curvature_diverge_above():
    model = qm.Ensemble(8, 16, curvature=0.1).sample(0)
    found = qm.trace_boundary(model, [2], steps=100, rtol=0.02, seed=9).isel(batch_size=0)
    assert bool(found.precise)
    assert "norm" not in found.dims
    _, low, high = ends(found)
    grid = qm.phase_diagram(
        model, [float(low) * 0.98, float(high) * 1.02], [2], steps=100, replicas=4096, seed=10,
        refine=0,
    )  # fmt: skip
    below, above = grid.fraction_diverged.values[:, 0]
    margin = -ndtri(ERROR) / (2 * 4096**0.5)
    assert below < 0.5 - margin
    assert above > 0.5 + margin
    # The negative control: without curvature the boundary is elsewhere.
    linear = qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, 2), norm="exact")
    assert not low < linear < high


def test_full_batches_with_curvature():
    model = qm.Ensemble(8, 16, curvature=0.05).sample(0)
    found = qm.trace_boundary(model, [2, 8], kind="deterministic", steps=100, rtol=0.02)
    value, low, high = ends(found)
    assert found.precise.all()
    assert (low == low[0]).all()
    assert qm.trace_boundary(model, [8], steps=100, rtol=0.02).critical_learning_rate[0] == value[0]
    full = qm.SGD(float(low[0]), 8)
    assert np.isfinite(qm.simulate(model, full, 100, replicas=1).loss).all()
    beyond = qm.simulate(model, replace(full, learning_rate=float(high[0])), 100, replicas=1).loss
    assert not float(beyond[0, -1]) <= 10 * float(beyond[0, 0])


@pytest.mark.parametrize("sampling", ["bernoulli", "with_replacement", "without_replacement"])
def test_batches_that_hold_all_points_are_noise_free(sampling):
    n_data = 1 if sampling == "with_replacement" else 2
    sgd = qm.SGD(1.0, 1, sampling=sampling)
    found = qm.trace_boundary(np.eye(n_data), [n_data], sgd=sgd)
    assert found.precise.all()
    _, low, high = ends(found)
    assert low[0] < 2 < high[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "mean"}, "kind must be one of mean_square, typical, deterministic, got 'mean'"),
        ({"rtol": 0}, "rtol must be a finite number >= 0.0001 and <= 0.5, got 0.0"),
        ({"rtol": 0.6}, "rtol must be"),
        ({"rtol": "1%"}, "rtol must be"),
        ({"momenta": []}, "momenta must hold at least one, got none"),
        ({"momenta": [0.5, 1.0]}, "momenta must be a finite number > -1 and < 1, got 1.0"),
        ({"momenta": [0.5, 0.5]}, "momenta must be different ones"),
        ({"momenta": "high"}, "momenta must be a finite number"),
        ({"batch_sizes": [0]}, "batch_sizes must be an integer between 1 and 24, got 0"),
        ({"batch_sizes": [25]}, "batch_sizes must be an integer between 1 and 24, got 25"),
        ({"sgd": 0.1}, "sgd must be an SGD, got float"),
        ({"steps": 31}, "steps must be an integer between 32 and"),
        ({"replicas": 1}, "replicas must be an integer between 2 and"),
        ({"seed": -1}, "seed must be"),
        ({"precision": "half"}, "precision must be one of"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"source": np.zeros((2, 2)), "batch_sizes": 1}, "the NTK must not vanish"),
        ({"source": 3.0}, "source must be an Ensemble, a QuadraticModel or an NTK"),
        (
            {"source": qm.Ensemble(24, 30, curvature=0.1), "kind": "typical"},
            "kind must be mean_square or deterministic for a model with curvature",
        ),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(InputError) as refusal:
        qm.trace_boundary(**{"source": ENSEMBLE, "batch_sizes": SIZES} | options)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_a_result_says():
    found = qm.trace_boundary(
        ENSEMBLE, [2], kind="typical", rtol=0.1, steps=64, seed=2**64 - 1,
        sgd=qm.SGD(1.0, 5, 0.25, weight_decay=0.01),
    )  # fmt: skip
    wanted = {
        "kind": "boundary", "boundary": "typical", "rtol": 0.1, "confidence": 0.95, "steps": 64,
        "replicas": 16, "seed": str(2**64 - 1), "momentum": 0.25, "weight_decay": 0.01,
        "n_data": 24, "curvature": "None",
    }  # fmt: skip
    assert wanted.items() <= found.attrs.items()
    assert "learning_rate" not in found.attrs
    assert "batch_size" not in found.attrs
    assert found.attrs["replica_steps"] == int(found.replica_steps.sum())
    assert found.critical_learning_rate.attrs["units"] == "1 / NTK eigenvalue"
    assert found.norm.values.tolist() == ["paper", "finite", "exact"]
    assert all("long_name" in v.attrs and "units" in v.attrs for v in found.data_vars.values())
