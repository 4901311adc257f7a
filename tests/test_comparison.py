"""compare() and critical_noise_kernel_norm() on Datasets of known content."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

import quadmodel as qm
from quadmodel._util.checks import InputError


def simulated(values, name="loss", steps=None):
    """Return a Dataset of runs, (replica, step)."""
    values = np.asarray(values, float)
    steps = np.arange(values.shape[1]) if steps is None else steps
    return xr.Dataset({name: (("replica", "step"), values)}, {"step": steps})


def predicted(values, name="loss", steps=None):
    steps = np.arange(len(values)) if steps is None else steps
    return xr.Dataset({name: ("step", np.asarray(values, float))}, {"step": steps})


# ---- compare

RUNS = np.array([[1.0, 2.0], [3.0, 2.5], [5.0, 4.5], [7.0, 3.0]])
MEAN = RUNS.mean(axis=0)
ERROR = RUNS.std(axis=0, ddof=1) / 2


@pytest.mark.parametrize("z", [0.0, 2.0, -4.0])
def test_known_z(z):
    table = qm.compare(simulated(RUNS), predicted(MEAN - np.array([z, 1.0]) * ERROR))
    np.testing.assert_allclose(table.z, [z, 1.0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(table.measured, MEAN)
    np.testing.assert_allclose(table.standard_error, ERROR)
    np.testing.assert_allclose(table.predicted, MEAN - np.array([z, 1.0]) * ERROR)
    assert table.variable.values.tolist() == ["loss", "loss"]
    assert table.step.values.tolist() == [0, 1]
    assert table.mode.values.tolist() == [-1, -1]
    assert table.attrs["worst"] == pytest.approx(max(abs(z), 1.0))
    assert table.attrs["verdict"] == "agree"


@pytest.mark.parametrize("family_wise_error", [1e-6, 0.05])
@pytest.mark.parametrize("sign", [-1, 1])
def test_verdict_turns_at_the_bound(sign, family_wise_error):
    bound = norm.isf(family_wise_error / 2 / 2)  # two rows, two sides
    for part, verdict in ((0.999, "agree"), (1.001, "disagree")):
        pred = predicted(MEAN - np.array([0.5, sign * part * bound]) * ERROR)
        table = qm.compare(simulated(RUNS), pred, family_wise_error=family_wise_error)
        assert table.attrs["verdict"] == verdict
        assert table.agrees.values.tolist() == [True, verdict == "agree"]
        assert table.attrs["bound"] == pytest.approx(bound, rel=1e-9)
        assert table.attrs["rows"] == 2
        assert table.attrs["family_wise_error"] == family_wise_error


def test_modes_with_their_own_standard_error():
    energy = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    sim = xr.Dataset(
        {
            "mode_energy": (("step", "mode"), energy),
            "mode_energy_standard_error": (("step", "mode"), energy / 10),
        },
        {"step": [0, 5], "mode": [0, 1, 2]},
    )
    shift = np.arange(6.0).reshape(2, 3) / 10
    pred = xr.Dataset(
        {"mode_energy": (("mode", "step"), (energy - shift * energy).T)},
        {"step": [0, 5], "mode": [0, 1, 2]},
    )
    table = qm.compare(sim, pred)
    np.testing.assert_allclose(table.z, np.arange(6.0), atol=1e-12)
    assert table.step.values.tolist() == [0, 0, 0, 5, 5, 5]
    assert table.mode.values.tolist() == [0, 1, 2, 0, 1, 2]


def test_only_common_steps_and_variables_count():
    sim = xr.merge([simulated(RUNS, steps=[0, 4]), simulated(RUNS, "other", steps=[0, 4])])
    table = qm.compare(sim, predicted([9.0, MEAN[1], 9.0], steps=[3, 4, 5]))
    assert table.step.values.tolist() == [4]
    assert table.variable.values.tolist() == ["loss"]
    assert table.attrs["worst"] == 0


@pytest.mark.parametrize(
    ("sim", "pred", "message"),
    [
        (simulated(RUNS[:1]), predicted(MEAN), "at least 2 replicas"),
        (simulated(RUNS), predicted(MEAN, "trace"), "share a variable along step"),
        (simulated(RUNS), predicted(MEAN, steps=[7, 8]), "share steps, got none"),
    ],
)
def test_nothing_to_compare(sim, pred, message):
    with pytest.raises(InputError, match=message):
        qm.compare(sim, pred)


@pytest.mark.parametrize("family_wise_error", [0.0, 1.0, math.nan, "small"])
def test_bad_family_wise_error(family_wise_error):
    with pytest.raises(InputError, match=r"^family_wise_error must be"):
        qm.compare(simulated(RUNS), predicted(MEAN), family_wise_error=family_wise_error)


@pytest.mark.parametrize(
    ("measured", "expected", "agrees"),
    [
        ([math.inf, 1.0], math.inf, True),
        ([math.inf, math.inf], math.inf, True),
        ([math.inf, 1.0], 3.0, False),
        ([2.0, 1.0], math.inf, False),
        ([math.nan, 1.0], 1.0, False),
        ([1.0, 1.0], math.nan, False),
        ([2.0, 2.0], 2.0, True),
        ([2.0, 2.0], 2.0 * (1 + 1e-11), True),  # no spread: equal up to rounding
        ([2.0, 2.0], 2.0 * (1 + 1e-7), False),
        ([0.0, 0.0], 0.0, True),
    ],
)
def test_infinite_missing_and_constant_values(measured, expected, agrees):
    table = qm.compare(simulated(np.array(measured)[:, None]), predicted([expected]))
    assert table.agrees.values.tolist() == [agrees]
    assert table.attrs["verdict"] == ("agree" if agrees else "disagree")


def test_a_noiseless_mode_may_vanish():
    """Rounding is measured against the residual, not against the mode that has just gone."""
    model = qm.QuadraticModel.from_ntk(np.diag([1.0, 0.3, 0.2]), residual=[1.0, 2.0, -1.0])
    rotated = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    model = qm.QuadraticModel.from_ntk(rotated @ model.ntk() @ rotated.T, [1.0, 2.0, -1.0])
    sgd = qm.SGD(1.0, 3)
    table = qm.compare(qm.simulate(model, sgd, 4, replicas=3), qm.predict(model, sgd, 4))
    assert table.attrs["verdict"] == "agree"


# ---- compare with runs of the large-P limit

BATCHES = {"seed": "3", "model_index": 0, "batch_size": 2, "sampling": "without_replacement"}
LIMIT = RUNS + np.array([[0.3, 0.1], [0.2, -0.1], [0.1, 0.0], [0.5, 0.2]])


def runs_of(values, first=0, **attrs):
    """Return runs with the attributes that their batches follow from."""
    numbered = simulated(values).assign_coords(replica=first + np.arange(len(values)))
    return numbered.assign_attrs({**BATCHES, **attrs})


def test_same_batches_are_compared_run_by_run():
    difference = RUNS - LIMIT
    error = difference.std(axis=0, ddof=1) / 2
    table = qm.compare(runs_of(RUNS), runs_of(LIMIT, n_params=9))
    np.testing.assert_allclose(table.measured, MEAN)
    np.testing.assert_allclose(table.predicted, LIMIT.mean(axis=0))
    np.testing.assert_allclose(table.standard_error, error)
    np.testing.assert_allclose(table.z, difference.mean(axis=0) / error)
    assert (table.standard_error < ERROR / 5).all()


def test_replicas_that_only_one_has_are_left_out():
    table = qm.compare(runs_of(RUNS), runs_of(LIMIT[1:3], first=1))
    np.testing.assert_allclose(table.measured, RUNS[1:3].mean(axis=0))
    np.testing.assert_allclose(table.predicted, LIMIT[1:3].mean(axis=0))


@pytest.mark.parametrize("key", BATCHES)
def test_other_batches_are_independent(key):
    table = qm.compare(runs_of(RUNS), runs_of(LIMIT[:3], **{key: "another"}))
    other = LIMIT[:3].std(axis=0, ddof=1) / 3**0.5
    np.testing.assert_allclose(table.measured, MEAN)
    np.testing.assert_allclose(table.predicted, LIMIT[:3].mean(axis=0))
    np.testing.assert_allclose(table.standard_error, np.hypot(ERROR, other))


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (runs_of(LIMIT[:1], seed="4"), "^pred must hold at least 2 replicas for a .*, got 1$"),
        (runs_of(LIMIT[:1]), "^sim must hold at least 2 replicas in common for a .*, got 1$"),
        (runs_of(LIMIT, first=9), "^sim must hold at least 2 replicas in common for a .*, got 0$"),
    ],
)
def test_too_few_runs(pred, message):
    with pytest.raises(InputError, match=message):
        qm.compare(runs_of(RUNS), pred)


@pytest.mark.parametrize("seed", [3, 4])
def test_large_p_limit(seed):
    """Many parameters: what is left is the draw of the curvature, a few percent."""
    ensemble, sgd = qm.Ensemble(4, 1000, [1.0, 0.8, 0.6, 0.4], curvature=0.02), qm.SGD(0.2, 2)
    sim = qm.simulate(ensemble.sample(3), sgd, 10, replicas=30, seed=3)
    limit = qm.large_p_limit(ensemble.sample(3), sgd, 10, replicas=30, seed=seed)
    table = qm.compare(sim, limit)
    assert {"loss", "mode_energy", "ntk_trace", "noise_kernel_norm"} <= set(table.variable.values)
    assert not np.isnan(table.z).any()
    loss = table.where(table.variable == "loss", drop=True)
    np.testing.assert_allclose(loss.measured, loss.predicted, rtol=0.1 if seed == 3 else 1.0)
    late = loss.isel(comparison=-1)
    independent = float(np.hypot(*(x.loss[:, -1].std(ddof=1) / 30**0.5 for x in (sim, limit))))
    if seed == 3:
        assert float(late.standard_error) < 0.2 * independent
    else:
        assert float(late.standard_error) == pytest.approx(independent)


def test_runs_that_diverge_on_both_sides():
    values = np.array([[1.0, np.inf, np.nan], [2.0, 3.0, 4.0]])
    table = qm.compare(runs_of(values), runs_of(values))
    assert table.attrs["verdict"] == "agree"
    one = np.nan_to_num(values, nan=5.0, posinf=5.0)
    for first, second in ((values, one), (one, values)):
        table = qm.compare(runs_of(first), runs_of(second))
        assert table.agrees.values.tolist() == [True, False, False]


# ---- critical_noise_kernel_norm

TRUE_RATE, SLOPE = 0.5, 0.4
RATES = np.geomspace(0.21, 1.2, 9)


def synthetic_grid(n_sizes, noise, *, n_scan=12, seed=0, centre=TRUE_RATE, norm_at=None):
    """Return a grid whose growth is SLOPE log(rate / centre) plus noise, and K its 1.5th power."""
    rng = np.random.default_rng(seed)
    norm_at = norm_at or (lambda rate: (rate / TRUE_RATE) ** 1.5)
    scan = np.tile(np.geomspace(0.38, 0.66, n_scan), (n_sizes, 1))
    grid = np.tile(RATES[:, None], (1, n_sizes))
    data = {}
    for prefix, dims, rate in (
        ("", ("learning_rate", "batch_size"), grid),
        ("scan_", ("batch_size", "scan"), scan),
    ):
        for kind, at in (("mean", centre), ("typical", 1.1 * centre)):
            growth = SLOPE * np.log(rate / at) + noise * rng.standard_normal(rate.shape)
            data[f"{prefix}{kind}_growth"] = (dims, growth)
            data[f"{prefix}{kind}_growth_standard_error"] = (dims, np.full(rate.shape, noise))
        norms = np.array([0.9 * norm_at(rate), norm_at(rate)])
        data[f"{prefix}noise_kernel_norm"] = (("norm", *dims), norms)
    data["scan_learning_rate"] = (("batch_size", "scan"), scan)
    coords = {
        "learning_rate": RATES, "batch_size": np.arange(1, n_sizes + 1), "norm": ["paper", "exact"]
    }  # fmt: skip
    return xr.Dataset(data, coords)


def test_crossing_without_noise():
    grid = synthetic_grid(2, noise=0.0)
    found = qm.critical_noise_kernel_norm(grid)
    # growth is linear in the log learning rate; K is interpolated
    np.testing.assert_allclose(found.learning_rate, TRUE_RATE, rtol=1e-9)
    np.testing.assert_allclose(found.noise_kernel_norm, 1.0, rtol=1e-3)
    assert float(found.pooled_noise_kernel_norm) == pytest.approx(1.0, rel=1e-3)
    typical = qm.critical_noise_kernel_norm(grid, norm="paper", growth="typical")
    np.testing.assert_allclose(typical.learning_rate, 1.1 * TRUE_RATE, rtol=1e-9)
    np.testing.assert_allclose(typical.noise_kernel_norm, 0.9 * 1.1**1.5, rtol=1e-3)
    asked = {"norm": "paper", "growth": "typical", "confidence": 0.95}
    assert typical.attrs == asked | {"unresolved": ""}
    # the interval that remains is the spacing of the points
    points = np.sort(np.log([*RATES, *grid.scan_learning_rate.values[0]]))
    above = np.searchsorted(points, math.log(TRUE_RATE))
    spacing = points[above] - points[above - 1]
    width = np.log(found.learning_rate_high / found.learning_rate_low)
    np.testing.assert_allclose(width, 2 * 1.959964 * spacing / math.sqrt(12), rtol=1e-4)


@pytest.mark.parametrize("offset", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_crossing_at_a_kink(offset):
    """Growth that turns steep at its zero, as at the deterministic edge: the chord alone misses."""
    grid = synthetic_grid(1, noise=0.0)
    points = np.log(grid.scan_learning_rate.values[0])
    middle = np.argmin(np.abs(points - math.log(TRUE_RATE)))
    true = points[middle] + offset * (points[middle + 1] - points[middle])
    for prefix in ("", "scan_"):
        past = np.log(grid[f"{prefix}learning_rate"]) - true
        shape = grid[f"{prefix}mean_growth"].transpose(*grid[f"{prefix}mean_growth"].dims)
        grid[f"{prefix}mean_growth"] = (0 * shape + xr.where(past > 0, 20 * past, past)).transpose(
            *shape.dims
        )
    found = qm.critical_noise_kernel_norm(grid)
    assert float(found.learning_rate_low[0]) < math.exp(true) < float(found.learning_rate_high[0])


def test_crossing_without_a_scan():
    found = qm.critical_noise_kernel_norm(synthetic_grid(1, noise=0.0, n_scan=0))
    assert float(found.learning_rate[0]) == pytest.approx(TRUE_RATE, rel=1e-9)
    scan = synthetic_grid(1, noise=0.0)
    for name in scan.data_vars:
        if str(name).startswith("scan_"):
            scan[name] = scan[name] * math.nan  # as where no column changes sign
    again = qm.critical_noise_kernel_norm(scan)
    assert float(again.learning_rate[0]) == pytest.approx(TRUE_RATE, rel=1e-9)


@pytest.mark.statistical
def test_coverage_of_the_intervals():
    """200 noisy columns; the spacing of the points makes intervals a little too wide."""
    noise = 0.05  # over a spacing of 0.02 in growth: many columns cross zero more than once
    found = qm.critical_noise_kernel_norm(synthetic_grid(200, noise=noise))
    for name, truth in (("learning_rate", TRUE_RATE), ("noise_kernel_norm", 1.0)):
        covered = (found[f"{name}_low"] < truth) & (truth < found[f"{name}_high"])
        assert 0.85 <= float(covered.mean()) <= 1.0
        error = np.log(found[name] / truth)
        half = 0.5 * np.log(found[f"{name}_high"] / found[f"{name}_low"])
        assert float(np.abs(error).mean()) > 0.1 * float(half.mean())  # and not far too wide
    pooled = found.pooled_noise_kernel_norm
    assert float(found.pooled_noise_kernel_norm_low) < float(pooled)
    assert float(pooled) == pytest.approx(1.0, abs=0.05)
    # negative control: intervals of a tenth of the error don't cover
    grid = synthetic_grid(200, noise=noise, seed=1)
    for name in grid.data_vars:
        if str(name).endswith("standard_error"):
            grid[name] = grid[name] / 10
    narrow = qm.critical_noise_kernel_norm(grid)
    covered = (narrow.learning_rate_low < TRUE_RATE) & (narrow.learning_rate_high > TRUE_RATE)
    assert float(covered.mean()) < 0.85


def test_confidence_widens_the_interval():
    grid = synthetic_grid(1, noise=0.02)
    low, high = (qm.critical_noise_kernel_norm(grid, confidence=c) for c in (0.5, 0.999))
    assert float(high.learning_rate_low[0]) < float(low.learning_rate_low[0])
    assert float(low.learning_rate_high[0]) < float(high.learning_rate_high[0])
    assert float(low.learning_rate[0]) == float(high.learning_rate[0])


@pytest.mark.parametrize("centre", [1e-3, 1e3], ids=["above everywhere", "below everywhere"])
def test_no_crossing_inside_the_grid(centre):
    found = qm.critical_noise_kernel_norm(synthetic_grid(2, noise=0.0, centre=centre))
    numbers = [name for name in found.data_vars if name != "resolved"]
    assert all(np.isnan(found[name]).all() for name in numbers)
    assert not found.resolved.any()


def test_deterministic_edge_only():
    """K that jumps from 0 to infinity has no value at the crossing; the learning rate has."""
    jump = synthetic_grid(2, 0.0, norm_at=lambda rate: np.where(rate < TRUE_RATE, 0.0, np.inf))
    found = qm.critical_noise_kernel_norm(jump)
    np.testing.assert_allclose(found.learning_rate, TRUE_RATE, rtol=1e-9)
    assert np.isnan(found.noise_kernel_norm).all()
    assert np.isnan(found.pooled_noise_kernel_norm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "finite"}, "^norm must be one of paper, exact"),
        ({"growth": "median"}, "^growth must be"),
        ({"confidence": 1.0}, "^confidence must be"),
        ({"confidence": 0.0}, "^confidence must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        qm.critical_noise_kernel_norm(synthetic_grid(1, 0.0), **options)


def test_not_a_phase_diagram():
    with pytest.raises(InputError, match=r"^grid must be a Dataset from phase_diagram\(\)"):
        qm.critical_noise_kernel_norm(predicted([1.0]))
