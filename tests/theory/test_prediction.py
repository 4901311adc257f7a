"""predict(): curves against the exact mean over all batches, Datasets, bad arguments."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from tests.oracles import enumeration, naive_sgd
from tests.theory._cases import MOMENTA, RECORDS, SCHEMES

NORMS = {
    "noise_kernel_norm": "paper",
    "noise_kernel_norm_finite": "finite",
    "noise_kernel_norm_exact": "exact",
}


def random_model(seed: int, n_data: int, n_params: int) -> qm.QuadraticModel:
    rng = np.random.default_rng(seed)
    return qm.QuadraticModel(rng.normal(size=n_data), rng.normal(size=(n_data, n_params)))


def configurations() -> list:
    """Return every scheme with every momentum; null space and weight decay by turns."""
    return [
        pytest.param(
            random_model(300 + number, 4, n_params := (6, 2, 3, 5)[number % 4]),
            qm.SGD(0.15, 1 + number % 3, momentum, nesterov, decay, sampling),
            id=f"P{n_params}-B{1 + number % 3}-{sampling}-mu{momentum}"
            f"{'-nesterov' * nesterov}-rho{decay}",
        )
        for number, (sampling, (momentum, nesterov), decay) in enumerate(
            itertools.product(SCHEMES, MOMENTA, (0.0, 0.4))
        )
    ]


@pytest.mark.parametrize("record", [r for r in RECORDS if "mean_loss" in r])
def test_recorded_losses(record):
    n_data, seed = record["n_data"], record["seed"]
    jacobian = np.random.default_rng(seed).normal(size=(n_data, record["n_params"]))
    residual = np.random.default_rng(seed + 1000).normal(size=n_data)
    names = ("learning_rate", "batch_size", "momentum", "nesterov", "weight_decay", "sampling")
    sgd = qm.SGD(**{name: record[name] for name in names})
    curve = qm.predict(qm.QuadraticModel(residual, jacobian), sgd, steps=5)
    np.testing.assert_allclose(curve.loss, record["mean_loss"], rtol=1e-10)
    assert float(curve.noise_kernel_norm[0]) == pytest.approx(record["K_paper"], rel=1e-10)
    assert float(curve.noise_kernel_norm_finite[0]) == pytest.approx(record["K_finite"], rel=1e-10)


@pytest.mark.parametrize(("model", "sgd"), configurations())
def test_exact_curve_is_the_mean_over_all_batches(model, sgd):
    steps = 25
    curve = qm.predict(model, sgd, steps)
    expected = enumeration.mean_loss(model.ntk(), model.residual, sgd, steps)
    np.testing.assert_allclose(curve.loss, expected, rtol=1e-10)
    other = {"bernoulli": "with_replacement"}.get(sgd.sampling, "bernoulli")
    wrong = enumeration.mean_loss(  # negative control: the tolerance tells schemes apart
        model.ntk(), model.residual, replace(sgd, sampling=other), steps
    )
    assert np.abs(curve.loss.values / wrong - 1).max() > 1e-4


@pytest.mark.parametrize("n_data", [6, 7])
def test_exact_mode_energies(n_data):
    model = random_model(n_data, n_data, n_data - 2)
    sgd = qm.SGD(0.1, 3, 0.7, True, 0.05)
    curve = qm.predict(model, sgd, steps=8)
    lam, vectors = np.linalg.eigh(model.ntk())
    moments = enumeration.second_moments(model.ntk(), model.residual, sgd, 8)
    # the two null modes are one subspace: compare their sum
    energies = np.array([np.diag(vectors.T @ m @ vectors)[::-1] for m in moments])
    np.testing.assert_allclose(curve.ntk_eigenvalue[0], lam[::-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(curve.mode_energy[:, :-2], energies[:, :-2], rtol=1e-9)
    np.testing.assert_allclose(
        curve.mode_energy[:, -2:].sum("mode"), energies[:, -2:].sum(axis=1), rtol=1e-9
    )


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.6, False), (0.6, True)])
@pytest.mark.parametrize("sampling", SCHEMES)
def test_mean_over_every_run_of_plain_loops(momentum, nesterov, sampling):
    """Three steps in parameter space, all sequences of batches: no moment is formed."""
    model = random_model(17, 3, 2)
    sgd = qm.SGD(0.3, 2, momentum, nesterov, 0.2, sampling)
    options = (sgd.learning_rate, 2, momentum, nesterov, 0.2)
    drawn = []
    for probability, weights in enumeration.batches(3, 2, sampling):
        counts = np.rint(weights * 2 / 3).astype(int)
        drawn.append((probability, [a for a in range(3) for _ in range(counts[a])]))
    expected = np.zeros(4)
    for run in itertools.product(drawn, repeat=3):
        probability = math.prod(p for p, _ in run)
        batches = [batch for _, batch in run]
        jacobian = model.jacobian.tolist()
        _, path = naive_sgd.parameter_space(
            model.residual.tolist(), jacobian, None, batches, *options
        )
        same = naive_sgd.function_space(
            model.residual.tolist(), model.ntk().tolist(), batches, *options
        )
        np.testing.assert_allclose(path, same, rtol=1e-10, atol=1e-12)
        expected += probability * np.sum(np.square(path), axis=1) / 6
    np.testing.assert_allclose(qm.predict(model, sgd, steps=3).loss, expected, rtol=1e-10)


def closure_by_loops(model: qm.QuadraticModel, sgd: qm.SGD, steps: int) -> list[float]:
    """Return the loss where every mode feels the mean noise of all: scalars, one at a time."""
    n_data = model.n_data
    lam, vectors = np.linalg.eigh(model.ntk())
    lam = np.where(lam < 1e-12 * lam[-1], 0.0, lam)
    covariance = enumeration.weight_covariance(n_data, sgd.batch_size, sgd.sampling)
    between = float(covariance[0][1])
    own = float(covariance[0][0]) - between
    seen = np.array([1 + sgd.momentum, -sgd.momentum, 0.0]) if sgd.nesterov else np.eye(3)[0]
    moments, maps = [], []
    for a in range(n_data):
        start = float(vectors[:, a] @ model.residual)
        moments.append(np.outer(3 * [start], 3 * [start]))  # of z_t, z_{t-1}, z_0
        step = np.array([[1 + sgd.momentum, -sgd.momentum, 0.0], [1.0, 0, 0], [0, 0, 1.0]])
        step[0] -= sgd.learning_rate * (lam[a] + sgd.weight_decay) * seen
        step[0, 2] += sgd.learning_rate * sgd.weight_decay
        maps.append(step)
    losses = []
    for _ in range(steps + 1):
        losses.append(sum(m[0, 0] for m in moments) / (2 * n_data))
        energies = [seen @ m @ seen for m in moments]
        total = sum(energies)
        for a in range(n_data):
            moments[a] = maps[a] @ moments[a] @ maps[a].T
            noise = own * total / n_data + between * energies[a]
            moments[a][0, 0] += (sgd.learning_rate * lam[a]) ** 2 * noise
    return losses


@pytest.mark.parametrize(("model", "sgd"), configurations()[::2] + configurations()[1::6])
def test_mode_closure(model, sgd):
    curve = qm.predict(model, sgd, 25, method="modes")
    np.testing.assert_allclose(curve.loss, closure_by_loops(model, sgd, 25), rtol=1e-10)


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_closure_is_exact_for_exchangeable_data(sampling, momentum, nesterov):
    n_data = 8
    row = 1.0 / (1 + np.minimum(np.arange(n_data), n_data - np.arange(n_data)) ** 2)
    ntk = np.array([np.roll(row, shift) for shift in range(n_data)])
    ntk -= 0.5 * np.linalg.eigvalsh(ntk)[0] * np.eye(n_data)
    sgd = qm.SGD(0.15, 3, momentum, nesterov, 0.1, sampling)
    for residual in (np.ones(n_data), (-1.0) ** np.arange(n_data), np.arange(n_data) - 2.0):
        # shifting all data by one place changes nothing, so the mean over shifts is exchangeable
        model = qm.QuadraticModel.from_ntk(ntk, residual)
        exact, modes = (qm.predict(model, sgd, 30, method=m) for m in ("exact", "modes"))
        np.testing.assert_allclose(modes.loss, exact.loss, rtol=1e-9)
        level = np.unique(np.round(exact.ntk_eigenvalue.values[0], 9), return_inverse=True)[1]
        by_level = [
            [curve.mode_energy.values[:, level == k].sum(axis=1) for k in range(5)]
            for curve in (modes, exact)
        ]
        np.testing.assert_allclose(by_level[0], by_level[1], rtol=1e-9, atol=1e-12)
        assert modes.attrs["late_time_rate"] == pytest.approx(
            exact.attrs["late_time_rate"], rel=1e-9
        )
        assert modes.attrs["loss_floor"] == pytest.approx(exact.attrs["loss_floor"], rel=1e-9)
    uneven = random_model(19, n_data, 12)
    exact, modes = (qm.predict(uneven, sgd, 30, method=m) for m in ("exact", "modes"))
    assert np.abs(modes.loss.values / exact.loss.values - 1).max() > 1e-4


def test_closure_is_close_in_high_dimension():
    model = random_model(20, 150, 300)
    sgd = qm.SGD(1.0, 10)
    critical = qm.critical_learning_rate(model.ntk(), sgd, norm="finite", level=0.5)
    sgd = replace(sgd, learning_rate=critical)
    exact, modes = (qm.predict(model, sgd, 60, method=m).loss for m in ("exact", "modes"))
    np.testing.assert_allclose(modes, exact, rtol=0.05)
    assert float(np.abs(modes / exact - 1).max()) > 1e-4


@pytest.mark.parametrize("method", ["exact", "modes"])
def test_full_batch_is_gradient_descent(method):
    model = random_model(21, 5, 3)
    sgd = qm.SGD(0.2, 5, 0.8, True, 0.1)
    path = naive_sgd.function_space(
        model.residual.tolist(), model.ntk().tolist(), 40 * [list(range(5))], 0.2, 5, 0.8, True, 0.1
    )
    curve = qm.predict(model, sgd, 40, method=method)
    np.testing.assert_allclose(curve.loss, np.sum(np.square(path), axis=1) / 10, rtol=1e-9)


@pytest.mark.parametrize("method", ["exact", "modes"])
@pytest.mark.parametrize("n_params", [4, 9])
def test_dataset(method, n_params):
    model = random_model(22, 6, n_params)
    sgd = qm.SGD(0.1, 2, 0.5, True, 0.05, "bernoulli")
    curve = qm.predict(model, sgd, steps=20, method=method)
    assert dict(curve.sizes) == {"step": 21, "mode": 6}
    assert curve.step.values.tolist() == list(range(21))
    assert curve.loss.dims == ("step",)
    assert curve.mode_energy.dims == ("step", "mode")
    np.testing.assert_allclose(curve.mode_energy.sum("mode") / 12, curve.loss, rtol=1e-12)
    assert float(curve.loss[0]) == pytest.approx(model.loss(), rel=1e-12)
    np.testing.assert_allclose(
        curve.ntk_eigenvalue[0], np.linalg.eigvalsh(model.ntk())[::-1], rtol=1e-10, atol=1e-12
    )
    for name, which in NORMS.items():
        assert set(curve[name].dims) <= {"step"}
        norm = qm.noise_kernel_norm(model.ntk(), sgd, norm=which)
        np.testing.assert_allclose(curve[name], norm, rtol=1e-10)
    closure = {"modes": "finite"}.get(method, method)
    assert curve.attrs["late_time_rate"] == pytest.approx(
        qm.late_time_rate(model.ntk(), sgd, norm=closure), rel=1e-12
    )
    assert curve.attrs["loss_floor"] == pytest.approx(
        qm.loss_floor(model.ntk(), model.residual, sgd, norm=closure), rel=1e-12
    )
    for name, value in sgd.spec().items():
        assert curve.attrs[name] == value
    sparse = qm.predict(model, sgd, steps=20, method=method, record_every=7)
    assert sparse.step.values.tolist() == [0, 7, 14, 20]
    np.testing.assert_array_equal(sparse.loss, curve.loss[[0, 7, 14, 20]])
    np.testing.assert_array_equal(sparse.mode_energy, curve.mode_energy[[0, 7, 14, 20]])


@pytest.mark.parametrize("method", ["exact", "modes"])
def test_late_times(method):
    """Below K = 1 the loss falls at the predicted rate to the predicted floor; above it grows."""
    closure = {"modes": "finite"}.get(method, method)
    learnable, stuck = random_model(23, 8, 16), random_model(24, 8, 5)
    template = qm.SGD(1.0, 2, 0.3)
    for level in (0.5, 2.0):
        critical = qm.critical_learning_rate(learnable.ntk(), template, norm=closure, level=level)
        sgd = replace(template, learning_rate=critical)
        curve = qm.predict(learnable, sgd, 1200 if level < 1 else 300, method=method)
        slope = np.diff(np.log(curve.loss.values[-100:]))
        assert np.exp(slope.mean()) == pytest.approx(curve.attrs["late_time_rate"], rel=1e-5)
        assert (curve.attrs["late_time_rate"] < 1) == (level < 1)
    critical = qm.critical_learning_rate(stuck.ntk(), template, norm=closure, level=0.5)
    curve = qm.predict(stuck, replace(template, learning_rate=critical), 2000, method=method)
    assert float(curve.loss[-1]) == pytest.approx(curve.attrs["loss_floor"], rel=1e-8)


@pytest.mark.parametrize("method", ["exact", "modes"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("fast", [False, True])
def test_divergence_is_infinite_and_silent(method, momentum, nesterov, fast):
    model = random_model(25, 6, 9)
    sgd = qm.SGD(50.0, 2, momentum, nesterov, 0.1)
    if not fast:  # many steps where the modes are finite and their sum is not
        critical = qm.critical_learning_rate(model.ntk(), sgd, norm="finite")
        sgd = replace(sgd, learning_rate=1.6 * critical)
    curve = qm.predict(model, sgd, 400 if fast else 12_000, method=method)
    loss = curve.loss.values
    assert not np.isnan(loss).any()
    assert not np.isnan(curve.mode_energy.values).any()
    assert np.isinf(loss[-1])
    first = int(np.argmax(np.isinf(loss)))
    assert np.isinf(loss[first:]).all()
    assert np.all(np.diff(loss[first // 2 : first]) > 0)
    assert curve.attrs["loss_floor"] == math.inf
    assert curve.attrs["late_time_rate"] > 1
    assert not fast or all((curve[name] == math.inf).all() for name in NORMS)


def test_curvature_is_not_used_and_inputs_are_left_alone():
    linear = random_model(26, 4, 5)
    bent = qm.QuadraticModel(linear.residual, linear.jacobian, np.ones((4, 5, 5)))
    before = linear.residual.copy(), linear.jacobian.copy()
    sgd = qm.SGD(0.1, 2)
    np.testing.assert_array_equal(
        qm.predict(bent, sgd, 5).loss.values, qm.predict(linear, sgd, 5).loss.values
    )
    np.testing.assert_array_equal(linear.residual, before[0])
    np.testing.assert_array_equal(linear.jacobian, before[1])


def test_bad_arguments():
    model, sgd = random_model(27, 4, 5), qm.SGD(0.1, 2)
    for steps in (-1, 2.5, True, "3", None, math.nan):
        with pytest.raises(ValueError, match="steps"):
            qm.predict(model, sgd, steps)
    for every in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="record_every"):
            qm.predict(model, sgd, 5, record_every=every)
    for method in ("finite", "paper", None):
        with pytest.raises(ValueError, match="method"):
            qm.predict(model, sgd, 5, method=method)
    with pytest.raises(ValueError, match="batch_size"):
        qm.predict(model, qm.SGD(0.1, 5), 5)
    with pytest.raises(ValueError, match="model"):
        qm.predict(model.ntk(), sgd, 5)
    with pytest.raises(ValueError, match="sgd"):
        qm.predict(model, {"learning_rate": 0.1}, 5)
    for ntk in (np.array([[1.0, 0.5], [0.0, 1.0]]), -np.eye(2), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="ntk"):
            qm.QuadraticModel.from_ntk(ntk, np.ones(2))
    with pytest.raises(ValueError, match="residual"):
        qm.QuadraticModel.from_ntk(np.eye(2), np.ones(3))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_predicted_eigenvectors_are_those_of_the_predicted_ntk(batch_size):
    """Exact K of a predicted NTK is that of its eigenvalues and of the mean NTK's eigenvectors."""
    model = qm.Ensemble(6, 40, curvature=0.05).sample(seed=1)
    critical = qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, batch_size))
    sgd = qm.SGD(0.5 * critical, batch_size, momentum=0.2)
    found, mean = (f(model, sgd, 10).isel(step=-1) for f in (qm.predict, qm.expected_ntk))

    def norm_with(vectors):
        ntk = (vectors * found.ntk_eigenvalue.values) @ vectors.T
        return qm.noise_kernel_norm(0.5 * (ntk + ntk.T), sgd, norm="exact")

    turned, initial = (np.linalg.eigh(m)[1][:, ::-1] for m in (mean.ntk.values, model.ntk()))
    assert norm_with(turned) == pytest.approx(float(found.noise_kernel_norm_exact), rel=1e-9)
    assert norm_with(initial) != pytest.approx(float(found.noise_kernel_norm_exact), rel=1e-5)
