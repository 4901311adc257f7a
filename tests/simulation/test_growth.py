"""Growth rates: populations against theory, redrawing, measured cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student

import quadmodel as qm
from quadmodel._util.threads import workers
from quadmodel.simulation import growth as growth_module
from quadmodel.simulation._kernels.populations import _redraw
from quadmodel.simulation._stepper import Stepper
from quadmodel.simulation.growth import GridPoints, measure_growth
from quadmodel.simulation.populations import population_growth

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
FAMILY_WISE_ERROR = 1e-6
LEVELS = (0.9, 1.0, 1.3)

# scheme, batch size, momentum, Nesterov, weight decay, parameters
SETTINGS = [
    ("without_replacement", 1, 0.0, False, 0.0, 16),
    ("without_replacement", 2, 0.5, False, 0.0, 16),
    ("without_replacement", 4, 0.0, False, 0.0, 5),
    ("with_replacement", 2, 0.0, False, 0.2, 16),
    ("with_replacement", 8, -0.3, True, 0.0, 16),
    ("bernoulli", 1, 0.6, True, 0.1, 16),
    ("bernoulli", 4, 0.0, False, 0.0, 5),
]


def measured_growth(setting, steps=4096, replicas=128, threads=1, seed=3):
    """Return the NTK, the settings at each level of the exact K, and both growths."""
    sampling, batch_size, momentum, nesterov, decay, n_params = setting
    model = qm.Ensemble(8, n_params, qm.spectra.PowerLaw(0.5)).sample(seed=5)
    template = qm.SGD(1.0, batch_size, momentum, nesterov, decay, sampling)
    rates = [
        qm.critical_learning_rate(model.ntk(), template, norm="exact", level=k) for k in LEVELS
    ]
    with workers(threads) as pool:
        mean, typical = population_growth(
            model, np.array(rates), np.full(len(rates), batch_size), template,
            steps=steps, replicas=replicas, seed=seed, first_replica=0, pool=pool,
        )  # fmt: skip
    sgds = [qm.SGD(eta, batch_size, momentum, nesterov, decay, sampling) for eta in rates]
    return model.ntk(), sgds, mean, typical


@pytest.mark.statistical
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_growth_of_the_mean_is_the_late_time_rate(setting):
    ntk, sgds, mean, typical = measured_growth(setting)
    expected = np.array([math.log(qm.late_time_rate(ntk, s, norm="exact")) for s in sgds])
    assert expected[0] < 0 < expected[2]
    assert abs(expected[1]) < 1e-9
    # the error comes from 16 blocks: Student's t, not a normal law
    bound = student.isf(FAMILY_WISE_ERROR / (2 * len(SETTINGS) * len(LEVELS)), df=15)
    assert (np.abs(mean.rate - expected) < bound * mean.standard_error).all()
    # negative control: the errors tell K = 1 from K = 1.3 and K = 0.9
    assert abs(mean.rate[2] - expected[1]) > bound * mean.standard_error[2]
    assert (mean.standard_error < 0.2 * (expected[2] - expected[0])).all()
    # Jensen: the typical loss grows less
    gap = np.hypot(mean.standard_error, typical.standard_error)
    assert (typical.rate < mean.rate - 3 * gap).all()


def test_bits_do_not_depend_on_threads():
    runs = [measured_growth(SETTINGS[1], 64, 8, threads)[2:] for threads in (1, 2)]
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.rate, two.rate)
        np.testing.assert_array_equal(one.standard_error, two.standard_error)
    other = measured_growth(SETTINGS[1], 64, 8, 1, seed=4)[2]
    assert (other.rate != runs[0][0].rate).all()


@pytest.mark.kernels
def test_noiseless_growth_is_that_of_the_slowest_mode():
    """A full batch: the gap to the next mode is wide enough for the discarded half."""
    model = qm.QuadraticModel.from_ntk(np.diag([1.0, 0.5, 0.1]))
    with workers(1) as pool:
        mean, typical = population_growth(
            model, np.array([0.7, 2.2]), np.array([3, 3]), qm.SGD(1.0, 1),
            steps=640, replicas=4, seed=0, first_replica=0, pool=pool,
        )  # fmt: skip
    expected = 2 * np.log([0.93, 1.2])
    np.testing.assert_allclose(mean.rate, expected, rtol=1e-9)
    np.testing.assert_allclose(typical.rate, expected, rtol=1e-9)
    assert (mean.standard_error < 1e-12).all()


def test_long_contraction():
    """Sizes are set back as often as they shrink by hundreds of orders of magnitude."""
    model = qm.QuadraticModel.from_ntk(np.diag([1.0, 0.9, 0.8]))
    for sgd in (qm.SGD(1.0, 1), qm.SGD(1.0, 1, weight_decay=1e-3)):
        with workers(1) as pool:
            mean, typical = population_growth(
                model, np.array([0.9]), np.array([3]), sgd,
                steps=2048, replicas=4, seed=0, first_replica=0, pool=pool,
            )  # fmt: skip
        slowest = 2 * math.log(1 - 0.9 * (0.8 + sgd.weight_decay))
        assert mean.rate[0] == pytest.approx(slowest, rel=1e-6)
        assert typical.rate[0] == pytest.approx(slowest, rel=1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("members", [2, 7, 64])
def test_redrawing_keeps_the_mean_and_everyones_share(members):
    rng = np.random.default_rng(members)
    state, old = rng.normal(size=(2, members, 3)) * rng.pareto(1.0, size=(members, 1))
    squared = (state**2).sum(axis=1)
    count = 4096
    copies, moment, cross = np.zeros(members), np.zeros((3, 3)), np.zeros((3, 3))
    direction = state / np.sqrt(squared)[:, None]
    for k in range(count):
        redrawn, redrawn_old, sizes = state.copy(), old.copy(), squared.copy()
        _redraw(redrawn, redrawn_old, sizes, 0, members, (k + 0.5) / count)
        np.testing.assert_allclose(sizes, squared.mean(), rtol=1e-12)
        np.testing.assert_allclose((redrawn**2).sum(axis=1), squared.mean(), rtol=1e-12)
        source = np.argmax(redrawn @ direction.T, axis=1)
        copies += np.bincount(source, minlength=members)
        np.testing.assert_allclose(  # the iterate before goes with its run
            redrawn_old, old[source] * np.sqrt(squared.mean() / squared[source])[:, None], rtol=1e-9
        )
        moment += redrawn.T @ redrawn
        cross += redrawn.T @ redrawn_old
    # uniform numbers at midpoints integrate the shares up to members / count
    np.testing.assert_allclose(copies / count, members * squared / squared.sum(), atol=4 / count)
    scale = np.abs(state.T @ state).max()
    np.testing.assert_allclose(moment / count, state.T @ state, atol=2e-2 * scale)
    np.testing.assert_allclose(
        cross / count, state.T @ old, atol=2e-2 * np.abs(state.T @ old).max()
    )


def measured(
    learning_rate, batch_size, threads=1, kind=0.05, replicas=8, first_replica=0, steps=128
):
    model = qm.Ensemble(8, 12, curvature=kind).sample(seed=2)
    edge = qm.edge_of_stability(model.ntk(), qm.SGD(1.0, 1))
    grid = GridPoints(
        edge * np.array(learning_rate), np.array(batch_size), qm.SGD(1.0, 1, momentum=0.2),
        steps, replicas, 7, first_replica,
    )  # fmt: skip
    with workers(threads) as pool:
        return model, grid, measure_growth(model, grid, pool)


@pytest.mark.parametrize("kind", [0.05, qm.curvature.RandomLowRankCurvature(2, 0.1)])
def test_grid_points_of_a_quadratic_model(kind):
    model, _, found = measured([0.02, 0.3, 4.0, 4.0], [2, 8, 2, 8], kind=kind)
    assert np.sign(found.mean.rate).tolist() == [-1, -1, 1, 1]
    assert np.sign(found.typical.rate).tolist() == [-1, -1, 1, 1]
    assert found.fraction_diverged.tolist() == [0, 0, 1, 1]
    assert (found.final_loss[:2] < model.loss()).all()
    assert np.isposinf(found.final_loss[2:]).all()
    # Full batches: one run stands for all; and those that diverge stop with a window.
    assert found.replica_steps == (8 + 1) * 128 + (8 + 1) * 128 // 8
    assert found.growth_steps.tolist() == [128] * 4


@pytest.mark.statistical
def test_growth_without_doubt_takes_fewer_steps():
    """The sign of short runs is that of long ones, over settings; what is in doubt is as before."""
    rng, wrong, short_ones = np.random.default_rng(0), 0, 0
    with workers(1) as pool:
        for number in range(12):
            ensemble = qm.Ensemble(16, 32, qm.spectra.PowerLaw(rng.uniform(0, 2)))
            model, size = ensemble.sample(number), int(rng.integers(1, 9))
            sgd = qm.SGD(1.0, size, momentum=rng.choice([0.0, 0.8]))
            critical = qm.critical_learning_rate(model.ntk(), sgd, norm="exact")
            rates = critical * np.geomspace(0.3, 3.0, 9)
            grid = GridPoints(rates, np.full(9, size), sgd, 2048, 8, number)
            found = measure_growth(model, grid, pool)
            whole = population_growth(
                model, rates, grid.batch_size, sgd, steps=2048, replicas=8, seed=number,
                first_replica=9 * 8, pool=pool,
            )  # fmt: skip
            short = found.growth_steps < 2048
            short_ones += short.sum()
            assert set(found.growth_steps.tolist()) <= {256, 2048}
            assert found.replica_steps > 0
            for kind, all_steps in zip(("mean", "typical"), whole, strict=True):
                rate = getattr(found, kind).rate
                np.testing.assert_array_equal(rate[~short], all_steps.rate[~short])
                wrong += (np.sign(rate) != np.sign(all_steps.rate))[short].sum()
    assert 12 <= short_ones < 12 * 9
    assert wrong == 0


def test_full_batch_is_one_run():
    model, grid, found = measured([0.3], [8])
    sgd = qm.SGD(float(grid.learning_rate[0]), 8, momentum=0.2)
    run = qm.simulate(model, sgd, 128, seed=7, record_every=64)
    loss = run.loss.values[0]
    assert found.final_loss[0] == pytest.approx(loss[2], rel=1e-9)
    growth = math.log(loss[2] / loss[1]) / 64
    assert found.typical.rate[0] == pytest.approx(growth, rel=1e-9)
    assert found.mean.rate[0] == pytest.approx(growth, rel=1e-9)
    assert found.mean.standard_error[0] == found.typical.standard_error[0] == 0


def test_growth_of_plain_runs():
    """Typical growth is the median over runs, growth of the mean that of their mean factor."""
    model, grid, found = measured([0.2], [2], replicas=9, first_replica=40)
    sgd = qm.SGD(float(grid.learning_rate[0]), 2, momentum=0.2)
    loss = qm.simulate(model, sgd, 128, replicas=49, seed=7, record_every=64).loss.values[40:]
    growth = np.log(loss[:, 2] / loss[:, 1]) / 64
    factor = np.exp(growth * 4)  # 128 / 32 steps
    assert found.typical.rate[0] == pytest.approx(np.median(growth), rel=1e-9)
    assert found.mean.rate[0] == pytest.approx(math.log(factor.mean()) / 4, rel=1e-9)
    assert found.final_loss[0] == pytest.approx(np.median(loss[:, 2]), rel=1e-9)


def test_converged_runs_do_not_stop_shrinking():
    """Growth of a run that reaches rounding error is that of the way there."""
    model = qm.QuadraticModel([1.0, -1.0], np.eye(2), np.zeros((2, 2, 2)))
    with workers(1) as pool:
        found = measure_growth(
            model, GridPoints(np.array([1.9]), np.array([2]), qm.SGD(1.0, 2), 1024, 2, 0), pool
        )
    assert found.final_loss[0] < 1e-24
    assert 2 * math.log(0.05) <= found.typical.rate[0] < -0.05


def test_bits_of_grid_points_do_not_depend_on_threads():
    where = ([0.05, 0.5, 1.2, 4.0], [1, 3, 8, 8])
    runs = [measured(*where, threads)[2] for threads in (1, 2, 3)]
    for other in runs[1:]:
        for name, values in runs[0].variables().items():
            np.testing.assert_array_equal(values, other.variables()[name], err_msg=name)


@pytest.mark.parametrize(
    ("ntk", "learning_rate", "batch_size"),
    [(np.eye(1), 1.0, 1), (np.eye(4), 1.0, 4), (np.diag([1.0, 0.5]), 1e200, 1)],
    ids=["annihilated", "annihilated by a full batch", "overflowing at once"],
)
def test_sizes_that_cannot_be_set_back(ntk, learning_rate, batch_size):
    """A loss that vanishes or overflows within one step has an infinite growth, never NaN."""
    grid = GridPoints(np.array([learning_rate]), np.array([batch_size]), qm.SGD(1.0, 1), 32, 4, 0)
    with workers(1) as pool:
        found = measure_growth(qm.QuadraticModel.from_ntk(ntk), grid, pool)
    sign = 1 if learning_rate > 2 else -1
    for growth in (found.mean, found.typical):
        assert np.sign(growth.rate[0]) == sign


@pytest.mark.parametrize("kind", [None, 0.05, qm.curvature.RandomLowRankCurvature(2, 0.1)])
def test_converged_runs_need_no_steps(kind, monkeypatch):
    """What is measured is the same whether they are stepped on or not; their loss is rounding."""
    rates, sizes = [0.3, 0.3, 0.9, 4.0], [2, 8, 8, 2]
    steps_taken = []
    advance = Stepper.advance

    def counted(self, replicas, first_step, n_steps, pool):
        steps_taken.append(replicas.size * n_steps)
        advance(self, replicas, first_step, n_steps, pool)

    monkeypatch.setattr(Stepper, "advance", counted)
    found, work = [], []
    for stopped in (1.0, 0.0):
        monkeypatch.setattr(growth_module, "_STOPPED", stopped)
        steps_taken.clear()
        model, _, last = measured(rates, sizes, kind=kind, steps=1600)
        found.append(last)
        work.append(sum(steps_taken))
    assert work[0] < work[1]
    stopping, plain = (one.variables() for one in found)
    lost = stopping.pop("final_loss"), plain.pop("final_loss")
    # A matrix product rounds differently with its number of rows, so that the replicas which are
    # left may be off by rounding: in a residual z, a sum of some n_params terms as large as z_0, by
    # n_params eps |z_0|. The log of the loss in the middle is then off by twice that over |z|, and
    # the growth from there to the loss 1e-24, at which runs count as converged, gives that |z|.
    half, growth = 800, plain["typical_growth"]
    middle = np.exp(np.log(1e-24) - half * np.minimum(growth, 0))  # in units of the initial loss
    rounding = 2 * model.n_params * np.finfo(float).eps / np.sqrt(middle) / half
    assert (rounding < 1e-4 * np.abs(growth)).all()
    for name, values in stopping.items():
        bound = 1e-9 * np.abs(plain[name]) + np.where(growth < 0, rounding, 0.0) + 1e-12
        assert (np.abs(values - plain[name]) <= bound).all(), name
    small = lost[1] < 1e-24 * model.loss()
    assert small.any()
    assert (lost[0][small] <= 1e-24 * model.loss()).all()
    np.testing.assert_allclose(lost[0][~small], lost[1][~small], rtol=1e-9)
