"""Late-time rate and loss floor, against dense linear algebra over all batches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import moments
from tests.oracles import enumeration
from tests.theory._cases import MOMENTA, RECORDS, SCHEMES, random_ntk


def configurations() -> list:
    """Return every scheme with every momentum; null space and weight decay by turns."""
    return [
        pytest.param(
            random_ntk(200 + number, 4, n_params := (6, 2, 3, 5)[number % 4]),
            qm.SGD(1.0, 1 + number % 3, momentum, nesterov, decay, sampling),
            id=f"P{n_params}-B{1 + number % 3}-{sampling}-mu{momentum}"
            f"{'-nesterov' * nesterov}-rho{decay}",
        )
        for number, (sampling, (momentum, nesterov), decay) in enumerate(
            itertools.product(SCHEMES, MOMENTA, (0.0, 0.4))
        )
    ]


CONFIGURATIONS = configurations()


@pytest.mark.parametrize("record", RECORDS)
def test_recorded_spectral_radius(record):
    ntk = random_ntk(record["seed"], record["n_data"], record["n_params"])
    names = ("learning_rate", "batch_size", "momentum", "nesterov", "weight_decay", "sampling")
    sgd = qm.SGD(**{name: record[name] for name in names})
    rate = qm.late_time_rate(ntk, sgd, norm="exact")
    assert rate == pytest.approx(record["spectral_radius"], rel=1e-10)


@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS)
def test_exact_rate_is_the_spectral_radius(ntk, sgd):
    edge = qm.edge_of_stability(ntk, sgd)
    for fraction in (0.05, 0.4, 0.8, 0.99):
        sgd = replace(sgd, learning_rate=fraction * edge)
        expected = enumeration.spectral_radius(ntk, sgd)
        rate = qm.late_time_rate(ntk, sgd, norm="exact")
        assert rate == pytest.approx(expected, rel=1e-9)
        for method in ("finite", "exact"):
            stable = qm.noise_kernel_norm(ntk, sgd, norm=method) < 1
            assert (qm.late_time_rate(ntk, sgd, norm=method) < 1) == stable


@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS[::3])
def test_exact_rate_above_the_edge(ntk, sgd):
    edge = qm.edge_of_stability(ntk, sgd)
    for factor in (1.3, 10.0):
        sgd = replace(sgd, learning_rate=factor * edge)
        expected = enumeration.spectral_radius(ntk, sgd)
        assert expected > 1
        assert qm.late_time_rate(ntk, sgd, norm="exact") == pytest.approx(expected, rel=1e-9)
        assert qm.late_time_rate(ntk, sgd) > 1


@pytest.mark.parametrize("norm", ["finite", "exact"])
@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS[::5])
def test_rate_is_one_at_the_critical_learning_rate(ntk, sgd, norm):
    critical = qm.critical_learning_rate(ntk, sgd, norm=norm)
    rate = qm.late_time_rate(ntk, replace(sgd, learning_rate=critical), norm=norm)
    assert rate == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_closure_rate_of_plain_sgd_is_an_eigenvalue(sampling, fraction):
    n_data, batch_size = 9, 2
    lam = np.linalg.eigvalsh(random_ntk(3, n_data, 12))
    eta = fraction * 2 / lam[-1]
    covariance = np.array(enumeration.weight_covariance(n_data, batch_size, sampling), dtype=float)
    # p' = (1 - eta lam)^2 p + eta^2 lam^2 [own (mean p) + between (sum p - p) / D ...], V^2 = 1/D
    between = covariance[0, 1]
    own = covariance[0, 0] - between
    noise = own / n_data * np.ones((n_data, n_data)) + between * np.eye(n_data)
    step = np.diag((1 - eta * lam) ** 2) + eta**2 * lam[:, None] ** 2 * noise
    expected = np.abs(np.linalg.eigvals(step)).max()
    sgd = qm.SGD(eta, batch_size, sampling=sampling)
    assert qm.late_time_rate(lam, sgd) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("norm", ["finite", "exact"])
def test_full_batch_rate_is_that_of_the_slowest_mode(momentum, nesterov, norm):
    ntk = random_ntk(12, 5, 8)
    sgd = qm.SGD(0.1, 5, momentum, nesterov, 0.05)
    expected = enumeration.deterministic_radius(ntk, sgd) ** 2
    assert qm.late_time_rate(ntk, sgd, norm=norm) == pytest.approx(expected, rel=1e-10)


def test_rates_of_larger_data():
    # high dimension: the closure is close to the exact recursion below the edge, less so above
    ntk = random_ntk(150, 150, 300)
    sgd = qm.SGD(1.0, 10)
    rates = {}
    for level in (0.53, 1.43):
        critical = qm.critical_learning_rate(ntk, sgd, norm="finite", level=level)
        at = replace(sgd, learning_rate=critical)
        rates[level] = [qm.late_time_rate(ntk, at, norm=m) for m in ("finite", "exact")]
    assert rates[0.53][0] == pytest.approx(0.987, abs=3e-3)
    assert rates[0.53][1] == pytest.approx(rates[0.53][0], abs=2e-4)
    assert rates[1.43][0] == pytest.approx(1.169, abs=0.02)
    assert rates[1.43][1] == pytest.approx(1.196, abs=0.03)
    assert rates[1.43][1] > rates[1.43][0] + 0.005


@pytest.mark.parametrize("norm", ["finite", "exact"])
def test_rate_and_floor_do_not_depend_on_units(norm):
    ntk, residual = random_ntk(4, 6, 4), np.arange(1.0, 7.0)
    sgd = qm.SGD(0.05, 2, 0.4, True, 0.1)
    scaled = replace(sgd, learning_rate=0.05 / 37, weight_decay=3.7)
    rate = qm.late_time_rate(ntk, sgd, norm=norm)
    assert qm.late_time_rate(37 * ntk, scaled, norm=norm) == pytest.approx(rate, rel=1e-9)
    floor = qm.loss_floor(ntk, residual, sgd, norm=norm)
    assert 0 < floor < math.inf
    assert qm.loss_floor(37 * ntk, residual, scaled, norm=norm) == pytest.approx(floor, rel=1e-9)
    doubled = qm.loss_floor(ntk, 2 * residual, sgd, norm=norm)
    assert doubled == pytest.approx(4 * floor, rel=1e-10)


@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS)
def test_exact_floor_is_the_fixed_point_over_all_batches(ntk, sgd):
    residual = np.random.default_rng(7).normal(size=len(ntk))
    critical = qm.critical_learning_rate(ntk, sgd, norm="exact")
    for fraction in (0.2, 0.85):
        sgd = replace(sgd, learning_rate=fraction * critical)
        expected = enumeration.stationary_loss(ntk, residual, sgd)
        floor = qm.loss_floor(ntk, residual, sgd, norm="exact")
        assert floor == pytest.approx(expected, rel=1e-9, abs=1e-14)
        if sgd.weight_decay > 0 or np.linalg.matrix_rank(ntk) < len(ntk):
            assert floor > 1e-3
        else:
            assert floor == 0.0
    unstable = replace(sgd, learning_rate=1.01 * critical)
    assert qm.loss_floor(ntk, residual, unstable, norm="exact") == math.inf
    assert enumeration.stationary_loss(ntk, residual, unstable) == math.inf


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("sampling", SCHEMES)
def test_closure_floor_of_a_null_space(momentum, nesterov, sampling):
    ntk = random_ntk(5, 12, 7)
    residual = np.random.default_rng(8).normal(size=12)
    sgd = qm.SGD(1.0, 3, momentum, nesterov, 0.0, sampling)
    critical = qm.critical_learning_rate(ntk, sgd, norm="finite")
    sgd = replace(sgd, learning_rate=0.5 * critical)
    vectors = np.linalg.eigh(ntk)[1][:, :5]
    lost = float(np.sum((vectors.T @ residual) ** 2)) / 24
    floor = qm.loss_floor(ntk, residual, sgd, norm="finite")
    if momentum == 0:  # u = z: the whole loss is amplified
        norm = qm.noise_kernel_norm(ntk, sgd, norm="finite")
        if sampling == "bernoulli":
            assert floor == pytest.approx(lost / (1 - norm), rel=1e-10)
    long_run = qm.predict(_with_ntk(ntk, residual), sgd, steps=6000, method="modes")
    assert floor == pytest.approx(float(long_run.loss[-1]), rel=1e-8)
    assert floor > lost * 1.01
    unstable = replace(sgd, learning_rate=1.01 * critical)
    assert qm.loss_floor(ntk, residual, unstable, norm="finite") == math.inf


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("norm", ["finite", "exact"])
def test_floor_with_weight_decay_is_the_end_of_a_long_run(momentum, nesterov, norm):
    ntk = random_ntk(6, 12, 7)
    residual = np.random.default_rng(9).normal(size=12)
    sgd = qm.SGD(1.0, 3, momentum, nesterov, 0.2)
    critical = qm.critical_learning_rate(ntk, sgd, norm="exact")
    sgd = replace(sgd, learning_rate=0.5 * critical)
    long_run = qm.predict(
        _with_ntk(ntk, residual), sgd, steps=2500, method={"finite": "modes"}.get(norm, norm)
    )
    floor = qm.loss_floor(ntk, residual, sgd, norm=norm)
    assert floor == pytest.approx(float(long_run.loss[-1]), rel=1e-8)


def test_closure_floor_is_close_to_the_exact_one():
    ntk = random_ntk(80, 80, 40)
    residual = np.random.default_rng(81).normal(size=80)
    sgd = qm.SGD(1.0, 8)
    critical = qm.critical_learning_rate(ntk, sgd, norm="finite", level=0.4)
    sgd = replace(sgd, learning_rate=critical)
    floors = [qm.loss_floor(ntk, residual, sgd, norm=m) for m in ("finite", "exact")]
    assert floors[0] == pytest.approx(floors[1], rel=0.03)
    assert floors[0] != pytest.approx(floors[1], rel=1e-6)


@pytest.mark.parametrize("norm", ["finite", "exact"])
def test_floor_where_everything_can_be_learnt(norm):
    residual = np.ones(4)
    assert qm.loss_floor(random_ntk(1, 4, 9), residual, qm.SGD(0.01, 1), norm=norm) == 0.0
    # without gradient there is no noise: the loss stays
    assert qm.loss_floor(np.zeros((4, 4)), residual, qm.SGD(0.01, 1), norm=norm) == 0.5
    assert qm.late_time_rate(np.zeros((4, 4)), qm.SGD(0.01, 1), norm=norm) == 1.0


@pytest.mark.parametrize("amplitude", [1e-150, 1e-80, 1e78, 1e145])
def test_exact_floor_is_proportional_to_the_squared_residual(amplitude):
    ntk, residual = random_ntk(7, 30, 12), np.random.default_rng(3).normal(size=30)
    for level in (0.5, 1 - 1e-9):
        sgd = qm.SGD(1.0, 3)
        sgd = replace(sgd, learning_rate=qm.critical_learning_rate(ntk, sgd, level=level))
        floor = qm.loss_floor(ntk, residual, sgd)
        scaled = qm.loss_floor(ntk, amplitude * residual, sgd) / amplitude / amplitude
        assert scaled == pytest.approx(floor, rel=1e-12 / (1 - level))


def test_conjugate_gradients_that_do_not_converge_are_replaced(monkeypatch):
    ntk, residual = random_ntk(7, 12, 5), np.arange(12.0)
    sgd = qm.SGD(0.02, 3, 0.4, True, 0.1)
    expected = qm.loss_floor(ntk, residual, sgd)
    for failure in (1, -1):
        monkeypatch.setattr(moments, "cg", lambda *a, failure=failure, **k: (np.ones(12), failure))
        assert qm.loss_floor(ntk, residual, sgd) == pytest.approx(expected, rel=1e-11)
    monkeypatch.setattr(moments, "cg", lambda *a, **k: (np.ones(12), 0))
    assert qm.loss_floor(ntk, residual, sgd) != pytest.approx(expected, rel=1e-3)


def test_bad_arguments():
    ntk, sgd = random_ntk(1, 4, 5), qm.SGD(0.1, 2)
    residual = np.ones(4)
    for method in ("paper", "modes", 1):
        with pytest.raises(ValueError, match="norm"):
            qm.late_time_rate(ntk, sgd, norm=method)
        with pytest.raises(ValueError, match="norm"):
            qm.loss_floor(ntk, residual, sgd, norm=method)
    with pytest.raises(ValueError, match=r"ntk.*matrix"):
        qm.late_time_rate(np.ones(4), sgd, norm="exact")
    with pytest.raises(ValueError, match="ntk"):
        qm.loss_floor(np.ones(4), residual, sgd)
    for bad in (np.ones(3), np.ones((4, 1)), [1.0, np.nan, 1.0, 1.0], np.ones(4, dtype=complex)):
        with pytest.raises(ValueError, match="residual"):
            qm.loss_floor(ntk, bad, sgd)
    for bad in (np.triu(ntk), -ntk, np.where(ntk > 0, np.nan, ntk), np.ones((4, 3))):
        with pytest.raises(ValueError, match="ntk"):
            qm.late_time_rate(bad, sgd)
        with pytest.raises(ValueError, match="ntk"):
            qm.loss_floor(bad, residual, sgd)
    too_large = qm.SGD(0.1, 5)
    with pytest.raises(ValueError, match="batch_size"):
        qm.late_time_rate(ntk, too_large)
    with pytest.raises(ValueError, match="batch_size"):
        qm.loss_floor(ntk, residual, too_large)


def _with_ntk(ntk: np.ndarray, residual: np.ndarray) -> qm.QuadraticModel:
    return qm.QuadraticModel.from_ntk(ntk, residual)
