"""Parts of the mean-field theory one by one: quickly, so that a wrong one is named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.theory import _mean_field, _mean_field_source, mean_field_edge
from quadmodel.theory import mean_field as module
from quadmodel.theory._information_plus_noise import InformationPlusNoise
from quadmodel.theory._mean_field_source import Modes, _in_units, as_modes, bins_of, statistics


def modes_of(lam, energy=None, residual=None, over_data=None, strength=0.01):
    lam = np.asarray(lam, float)
    energy = np.ones(lam.size) if energy is None else np.asarray(energy, float)
    over_data = np.ones(lam.size) if over_data is None else np.asarray(over_data, float)
    return Modes(lam, None, energy, residual, over_data, strength, 2.0 * lam.size, {})


# ---- units


@settings(deadline=None)
@given(
    st.floats(-140, 140), st.floats(-70, 70), st.booleans(),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
)  # fmt: skip
def test_units_are_powers_of_two_near_the_largest(of_ntk, of_residual, known, values):
    lam = np.sort(values)[::-1] * 10.0**of_ntk
    size = np.array(values) * 10.0**of_residual
    residual = -size if known else None
    root = 10.0 ** (of_ntk - of_residual) / 8
    found = _in_units(modes_of(lam, size**2, residual, strength=root))
    for unit, largest in ((found.unit_of_ntk, lam.max()), (found.unit_of_residual, size.max())):
        assert math.frexp(unit)[0] == 0.5
        assert 0.5 <= largest / unit < 1
    assert np.array_equal(found.lam * found.unit_of_ntk, lam)
    np.testing.assert_allclose(found.energy * found.unit_of_residual**2, size**2, rtol=1e-12)
    assert found.strength_of_source() == pytest.approx(root, rel=1e-12)
    if known:
        assert np.array_equal(found.residual * found.unit_of_residual, residual)
    else:
        assert found.residual is None


@pytest.mark.parametrize("residual", [None, np.zeros(3)])
def test_units_without_a_residual(residual):
    found = _in_units(modes_of([3.0, 1.0, 0.0], np.zeros(3), residual))
    assert (found.unit_of_residual, found.unit_of_ntk) == (1.0, 4.0)
    assert not found.energy.any()
    assert _in_units(modes_of([1e-200], [1e200], strength=1e300)).strength == math.inf


def test_densities_and_functions_of_two_steps_in_other_units():
    lam, options = np.geomspace(1, 0.2, 12), {"n_params": 24, "record_every": 2}
    also = ["two_time", "ntk_density"]

    def solve(of_ntk, of_residual):
        return qm.mean_field(
            lam * of_ntk, qm.SGD(0.3 / of_ntk, 3), 4, residual=np.full(12, of_residual),
            curvature=0.2 * of_ntk / of_residual, also=also, **options,
        )  # fmt: skip

    one, other = solve(1.0, 1.0), solve(1024.0, 8.0)
    units = {
        "displacement_correlation": 64 / 1024,
        "residual_correlation": 64,
        "ntk_residual_correlation": 64 * 1024,
        "parameter_response": 1,
        "residual_response": 1,
        "ntk_density": 1 / 1024,
    }
    shared = sorted(set(one.data_vars) & set(units))
    assert "ntk_density" in shared
    two_time = [name for name in one.data_vars if "later_step" in one[name].dims]
    assert len(two_time) == 5
    for name in shared:
        np.testing.assert_allclose(other[name], one[name] * units[name], rtol=1e-9, err_msg=name)
    assert set(two_time) <= set(units), two_time
    np.testing.assert_allclose(other.eigenvalue, one.eigenvalue * 1024, rtol=1e-12)
    for found in (one, other):
        assert float(found.eigenvalue[0]) == 0
        top = float(found.ntk_largest_eigenvalue.max())
        assert float(found.eigenvalue[-1]) == pytest.approx(1.1 * top)
        inside = found.ntk_density.isel(step=-1).integrate("eigenvalue")
        assert float(inside) == pytest.approx(1, abs=0.05)


# ---- the past


@pytest.mark.parametrize(
    ("rate", "momentum", "left"),
    [
        (1.6, 0.0, 0.6),  # one step multiplies the mode by 1 - rate
        (1.2, 0.0, 0.2),
        (1.9, 0.81, 0.9),  # momentum: pairs of complex multipliers
        (1.02, 0.0, 0.02),
    ],
)
def test_recent_steps_are_those_that_overshooting_takes_to_decay(rate, momentum, left):
    for unit in (1.0, 2.0**40):
        found = _mean_field.recent_steps(unit, qm.SGD(rate / unit, 1, momentum))
        assert left**found == pytest.approx(_mean_field._DECAYED, rel=1e-9)


def test_recent_steps_none_or_all():
    assert _mean_field.recent_steps(1.0, qm.SGD(0.99, 1)) == 0
    assert _mean_field.recent_steps(1.0, qm.SGD(0.9, 1, 0.9)) == 0
    assert _mean_field.recent_steps(1.0, qm.SGD(1.9999, 1)) == math.inf
    assert _mean_field.recent_steps(1.0, qm.SGD(2.5, 1)) == math.inf
    assert 0 < _mean_field.recent_steps(1.0, qm.SGD(1.2, 1, -0.1)) < 10
    most = _mean_field._DECAYED ** (1 / _mean_field._MOST_RECENT)
    assert math.isfinite(_mean_field.recent_steps(1.0, qm.SGD(1 + 0.999 * most, 1)))
    assert _mean_field.recent_steps(1.0, qm.SGD(1 + 1.001 * most, 1)) == math.inf


@pytest.mark.parametrize("memory", [4, 20, 60])
@pytest.mark.parametrize("steps", [1, 3, 50, 199, 2000, 20_000])
def test_columns_needed_are_never_exceeded_and_seldom_left(memory, steps):
    width, most = np.zeros(0), 0
    for step in range(steps + 1):
        width = np.append(width, 1.0)
        most = max(most, width.size)
        if step % (memory // 2) == 0:
            starts = _mean_field._mergeable(width, memory)
            width = np.add.reduceat(width, starts)
    assert width.sum() == steps + 1
    needed = _mean_field.columns_needed(steps, memory)
    assert most <= needed <= min(steps + 1, 4 * most)
    assert _mean_field.columns_needed(steps, None) == steps + 1


# ---- bins and groups


def widest_first(lam, over_data, count, alone):
    """Return bins as sets of modes: the bin that spreads most is cut in the middle."""
    slow = _mean_field_source._SLOW * sum(lam) / len(lam)
    place = [
        (math.log(x + slow) if lam[0] > 0 else x, math.log(1 + c))
        for x, c in zip(lam, over_data, strict=True)
    ]
    bins = [{k for k in range(len(lam)) if lam[k] > 0 and k not in alone},
            {k for k in range(len(lam)) if lam[k] == 0 and k not in alone}]  # fmt: skip
    bins = [b for b in bins if b] + [{k} for k in alone]

    def ends(members, axis):
        along = [place[k][axis] for k in members]
        return min(along), max(along)

    def spread(members):
        reach = max(high - low for low, high in (ends(members, axis) for axis in (0, 1)))
        return reach * reach * len(members)

    while len(bins) < count and max(map(spread, bins)) > 1e-20:
        widest = max(bins, key=spread)
        axis = max((0, 1), key=lambda x: ends(widest, x)[1] - ends(widest, x)[0])
        low, high = ends(widest, axis)
        upper = {k for k in widest if place[k][axis] > (low + high) / 2}
        bins.remove(widest)
        bins += [upper, widest - upper]
    return sorted(bins, key=min)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12), st.integers(0, 3))
def test_bins(seed, n_data, count, n_alone):
    rng = np.random.default_rng(seed)
    lam = np.sort(10.0 ** rng.uniform(-3, 1, n_data))[::-1]
    lam[n_data - n_data // 4 :] = 0
    over_data = rng.gamma(2, 0.5, n_data)
    alone = np.arange(min(n_alone, n_data))
    found = bins_of(modes_of(lam, over_data=over_data), count, alone)
    assert [set(np.flatnonzero(found == k).tolist()) for k in range(found.max() + 1)] == (
        widest_first(lam.tolist(), over_data.tolist(), count, alone.tolist())
    )


def test_bins_of_equal_and_of_no_eigenvalues():
    assert bins_of(modes_of(np.ones(6)), 4, np.arange(0)).tolist() == [0] * 6
    assert bins_of(modes_of(np.zeros(3)), 4, np.arange(0)).tolist() == [0] * 3
    assert bins_of(modes_of(np.ones(4)), 1, np.arange(2)).tolist() == [0, 1, 2, 2]


def test_statistics_are_means_over_bins():
    lam, energy = np.array([4.0, 2.0, 1.0, 0.0]), np.array([8.0, 4.0, 1.0, 3.0])
    modes, bins = modes_of(lam, energy), np.array([0, 1, 1, 2])
    known = statistics(modes, bins, qm.SGD(0.1, 2), 0.5, 1)
    np.testing.assert_allclose(known.lam, [4, 1.5, 0])
    np.testing.assert_allclose(known.energy, [8, 2.5, 3])
    np.testing.assert_allclose(known.weight, [0.25, 0.5, 0.25])


@pytest.mark.parametrize("size", [1.0, 0.25, 9.0])
def test_curvature_that_parameters_share_equally(size):
    plain = as_modes(qm.Ensemble(6, 8, curvature=0.3), None, None, None)
    law = qm.curvature.KroneckerCurvature(parameter_covariance=size * np.eye(8), scale=0.3)
    found = as_modes(qm.Ensemble(6, 8, curvature=law), None, None, None)
    assert found.strength_of_source() == pytest.approx(plain.strength_of_source() * size)
    crooked = size * np.eye(8)
    crooked[0, 1] = crooked[1, 0] = 1e-4 * size
    law = qm.curvature.KroneckerCurvature(parameter_covariance=crooked, scale=0.3)
    with pytest.raises(InputError, match="uncorrelated between parameters"):
        as_modes(qm.Ensemble(6, 8, curvature=law), None, None, None)


# ---- the noise kernel norm of a spectrum


@pytest.mark.parametrize("norm", ["paper", "finite"])
@pytest.mark.parametrize(
    "sgd",
    [
        qm.SGD(0.4, 3),
        qm.SGD(0.4, 3, momentum=0.5, nesterov=True),
        qm.SGD(0.4, 3, weight_decay=0.1, sampling="with_replacement"),
    ],
)
def test_norm_of_a_spectrum(norm, sgd):
    """Without noise or with many parameters that of shifted eigenvalues; else of a large draw."""
    lam, over_data = np.array([2.0, 1.0, 0.6, 0.1]), np.array([0.5, 2.0, 1.0, 0.5])
    weight, n_data = np.full(4, 0.25), 400
    ntk, along = np.repeat(lam, 100), np.repeat(over_data, 100)

    def of(noise, density):
        law = InformationPlusNoise(lam, weight, over_data, noise, density)
        return module.noise_kernel_norm_of(law, n_data, sgd, norm)

    def right(eigenvalues):
        return qm.noise_kernel_norm(eigenvalues, sgd, norm=norm)

    assert of(0.0, 0.7) == pytest.approx(right(ntk), rel=1e-9)
    assert of(0.5, 0.0) == pytest.approx(right(ntk + 0.5 * along), rel=1e-9)
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        n_params = 2 * n_data
        known = np.zeros((n_data, n_params))
        known[np.arange(n_data), np.arange(n_data)] = np.sqrt(ntk * n_data)
        noise = rng.standard_normal((n_data, n_params)) * np.sqrt(0.5 * 0.3 * along)[:, None]
        found.append(right(np.linalg.eigvalsh((known + noise) @ (known + noise).T / n_data)))
    assert of(0.3, 0.5) == pytest.approx(np.mean(found), rel=0.01)
    assert abs(right(ntk) / np.mean(found) - 1) > 0.05


def test_norm_beyond_the_edge_of_the_spectrum():
    law = InformationPlusNoise(np.ones(1), np.ones(1), np.ones(1), 0.1, 0.5)
    low, high = (
        module.noise_kernel_norm_of(law, 100, qm.SGD(x * 2 / law.edge, 99), "paper")
        for x in (0.999, 1.001)
    )
    assert np.isfinite(low)
    assert high == math.inf


# ---- the search for the edge


class Counted:
    """Runs that diverge above a known fraction of the linear edge."""

    def __init__(self, fractions):
        self.fractions, self.calls = fractions, 0

    def __call__(self, known, at, steps, fraction):
        self.calls += 1
        return fraction > self.fractions[at.batch_size]


def search(monkeypatch, fractions, rtol=0.01, **options):
    counted = Counted(fractions)
    monkeypatch.setattr(mean_field_edge, "_diverges", counted)
    modes = modes_of(np.geomspace(1, 0.1, 20))
    options = {"template": qm.SGD(1.0, 1), "steps": 10} | options
    return counted, mean_field_edge._Search(
        modes, density=0.5, bins=8, rtol=rtol, groups=1, **options
    )


@pytest.mark.parametrize("bracket", [(0.4, 1.2), (0.003, 0.00301), (3.0, 3.02), (0.5, 0.7)])
@pytest.mark.parametrize("right", [0.0021, 0.04, 0.6, 1.0, 3.7])
def test_any_bracket_finds_the_edge(bracket, right, monkeypatch):
    counted, one = search(monkeypatch, {4: right})
    found = one.edge(4, bracket)
    assert found.low < right * found.reference <= found.high <= 1.01 * found.low * (1 + 1e-12)
    assert found.low < found.middle < found.high
    assert found.fraction == pytest.approx(right, rel=0.01)
    assert counted.calls < 35
    assert found.reference == pytest.approx(
        qm.critical_learning_rate(np.geomspace(1, 0.1, 20), qm.SGD(1.0, 4), norm="finite"), rel=1e-6
    )


def test_no_edge(monkeypatch):
    counted, one = search(monkeypatch, {4: 0.0, 5: 100.0})
    assert one.edge(4, (0.4, 1.2)).low == 0
    beyond = one.edge(5, (0.4, 1.2))
    assert beyond.high == math.inf
    assert beyond.fraction == 1
    assert counted.calls < 40


def test_neighbours_are_found_faster(monkeypatch):
    fractions = {size: 0.7 * size**-0.05 for size in (1, 2, 3, 5, 8, 12, 20)}
    counted, all_of_them = search(monkeypatch, fractions, rtol=0.002)
    found = all_of_them.edges([2, 20, 1, 8, 3, 5, 12, 2])
    together, counted.calls = counted.calls, 0
    for size, edge in zip([2, 20, 1, 8, 3, 5, 12, 2], found, strict=True):
        assert edge.fraction == pytest.approx(fractions[size], rel=0.002)
    for size in fractions:
        all_of_them.edge(size, (0.4, 1.2))
    assert together < 0.8 * counted.calls


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_runs_last_until_the_mean_mode_has_decayed(momentum, monkeypatch):
    _, one = search(monkeypatch, {}, steps=None, template=qm.SGD(1.0, 1, momentum))
    mean = np.geomspace(1, 0.1, 20).mean()
    rate = 0.1
    wanted = mean_field_edge._DURATION * (1 - momentum) / (rate * mean)
    assert one._steps(rate) == math.ceil(wanted)
    assert one._steps(1e-9) == one._steps(0.0) == mean_field_edge._LONGEST
    assert one._steps(50.0) == mean_field_edge._SHORTEST
    assert search(monkeypatch, {})[1]._steps(1e-9) == 10


@pytest.mark.parametrize(
    ("diverged", "least", "steps", "finer"),
    [
        (True, 0.009, 1000, True),
        (True, 0.02, 1000, False),
        (False, 0.001, 1000, False),
        (True, 0.001, 200, False),  # nothing is merged
    ],
)
def test_what_rises_from_little_is_run_again_with_a_finer_past(
    diverged, least, steps, finer, monkeypatch
):
    modes = modes_of([1.0, 0.5], [3.0, 1.0])
    known = statistics(modes, np.arange(2), qm.SGD(0.1, 1), 0.5, 1)
    memories = []

    def run(known, sgd, n_steps, memory):
        assert n_steps == steps
        assert sgd.learning_rate == pytest.approx(0.05)
        memories.append(memory)
        return (diverged, 2.0 * least) if len(memories) == 1 else (False, 0.0)

    monkeypatch.setattr(mean_field_edge, "_run", run)
    found = mean_field_edge._diverges(known, qm.SGD(0.1, 1), steps, 0.5)
    first = steps if steps <= 300 else mean_field_edge._MEMORY
    assert memories == [first] + finer * [mean_field_edge._FINER]
    assert found == (diverged and not finer)
    assert mean_field_edge._diverges(known, qm.SGD(0.1, 1), steps, 1e300)


def test_edges_of_a_model_in_other_units(monkeypatch):
    model = qm.Ensemble(10, 20, curvature=0.05).sample(0)
    other = qm.QuadraticModel(
        8 * model.residual, 16 * model.jacobian, 32 * np.asarray(model.curvature)
    )
    monkeypatch.setattr(mean_field_edge, "_LONGEST", 100)
    law = qm.curvature.IndependentCurvature
    sgd = qm.SGD(1.0, 1)
    one = mean_field_edge.nonlinear_edges(model, [10, 5], sgd)
    # phi = phi' / 16 is the same function of the other model, but for its residual's unit.
    scaled = mean_field_edge.nonlinear_edges(other, [10, 5], sgd, curvature=law(0.05 * 32))
    assert np.all(one > 0)
    np.testing.assert_allclose(scaled * 256, one, rtol=1e-9)
    linear = replace(model, curvature=None, curvature_law=None)
    assert mean_field_edge.nonlinear_edges(linear, [5], sgd) is None
    Counted_inf = Counted({10: math.inf, 5: math.inf})
    monkeypatch.setattr(mean_field_edge, "_diverges", Counted_inf)
    assert np.isnan(mean_field_edge.nonlinear_edges(model, [10, 5], sgd)).all()
