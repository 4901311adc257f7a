"""mean_field(): against its equations as written, the linear theory, simulation, and its claims."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.theory import _formulas as formulas
from quadmodel.theory._information_plus_noise import InformationPlusNoise
from quadmodel.theory._mean_field import MeanField, Statistics
from tests.oracles import mean_field as oracle

# The function hides its module.
module = importlib.import_module("quadmodel.theory.mean_field")

OPTIMIZERS = {
    "plain": {},
    "heavy ball": {"momentum": 0.6},
    "Nesterov": {"momentum": 0.6, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "all": {"momentum": -0.3, "nesterov": True, "weight_decay": 0.2},
}
LAM = np.array([1.0, 0.4, 0.1, 0.0])


def known(*, strength=0.3, density=0.5) -> Statistics:
    return Statistics(
        lam=LAM,
        weight=np.array([0.1, 0.3, 0.4, 0.2]),
        energy=np.array([2.0, 1.0, 0.5, 0.7]),
        over_data=np.array([1.6, 1.2, 0.8, 0.7]) / 0.98,
        n_data=20,
        strength=strength,
        density=density,
    )


def as_written(given: Statistics, sgd: qm.SGD, steps: int):
    """Return loss and squared distance where the gradient is taken, from the oracle."""
    gamma, kappa = formulas.batch_weight_covariance(sgd, given.n_data)
    modes = list(zip(given.lam, given.weight, given.energy, given.over_data, strict=True))
    loss, distance, *_ = oracle.solve(
        modes,
        steps,
        rate=sgd.learning_rate,
        momentum=sgd.momentum,
        ahead=sgd.momentum if sgd.nesterov else 0.0,
        decay=sgd.weight_decay,
        noise=(gamma, kappa / given.n_data),
        strength=given.strength,
        density=given.density,
    )
    return loss, distance


def at_gradient(given: Statistics, sgd: qm.SGD, steps: int):
    solver = MeanField(given, sgd, steps + 1)
    losses = []
    for _ in range(steps + 1):
        solver.step(measure=False)
        losses.append(solver.level / 2)
    return np.array(losses), np.diagonal(solver.shared["C"]).copy()


@pytest.mark.parametrize("density", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_written(name, density):
    sgd = qm.SGD(0.25, 4, **OPTIMIZERS[name])
    given = known(density=density)
    loss, distance = as_written(given, sgd, 9)
    found = at_gradient(given, sgd, 9)
    assert found[0] == pytest.approx(loss, rel=1e-11)
    assert found[1] == pytest.approx(distance, rel=1e-11, abs=1e-14)
    # Negative control: at this strength the nonlinear terms are seen.
    linear = at_gradient(known(strength=0.0), sgd, 9)[0]
    assert np.abs(linear / loss - 1).max() > 1e-3


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "bernoulli"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_linear_limit_is_the_closure(name, sampling):
    model = qm.Ensemble(30, 40, jacobian=qm.spectra.PowerLaw(0.7)).sample(0)
    sgd = qm.SGD(1.0, 3, sampling=sampling, **OPTIMIZERS[name])
    rate = 0.8 * qm.critical_learning_rate(model.ntk(), sgd, norm="finite")
    sgd = replace(sgd, learning_rate=rate)
    found = qm.mean_field(model, sgd, 30, record_every=5)
    closure = qm.predict(model, sgd, 30, method="modes", record_every=5)
    for variable in ("loss", "mode_energy", "noise_kernel_norm", "noise_kernel_norm_finite"):
        np.testing.assert_allclose(found[variable], closure[variable], rtol=1e-10)


def test_one_group_per_point_is_the_exact_recursion_where_points_are_independent():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((24, 48)) * np.exp(0.5 * rng.standard_normal(24))[:, None]
    model = qm.QuadraticModel(np.ones(24), rows)
    sgd = qm.SGD(0.012, 3, momentum=0.5, nesterov=True, sampling="bernoulli")
    exact = qm.predict(model, sgd, 30, record_every=5).loss.values
    one, four, every = (
        qm.mean_field(model, sgd, 30, record_every=5, groups=n).loss.values for n in (1, 4, 24)
    )
    np.testing.assert_allclose(every, exact, rtol=1e-10)
    assert abs(four[-1] / exact[-1] - 1) < 0.6 * abs(one[-1] / exact[-1] - 1)


def test_bins_change_little():
    ensemble = qm.Ensemble(200, 400, jacobian=qm.spectra.PowerLaw(0.7), curvature=0.03)
    sgd = qm.SGD(0.5, 20)
    coarse, fine = (qm.mean_field(ensemble, sgd, 40, bins=n).loss for n in (40, 200))
    np.testing.assert_allclose(coarse, fine, rtol=5e-3)


@pytest.mark.statistical
@pytest.mark.slow
def test_simulation():
    """Loss, distance and NTK trace of 8 models at four steps: |z| < 5.6 in 12 (2.6e-7 in all).

    The theory's own error, of order 1/D, is allowed for: 3 % of loss and distance, 0.4 % of the
    trace. The control: a curvature that is 10 % too strong is seen in the trace.
    """
    lam = np.sort(0.07 + 0.93 * ((np.arange(120) + 0.5) / 120) ** 2)[::-1]
    sgd = qm.SGD(1.0, 12)
    sgd = replace(sgd, learning_rate=qm.critical_learning_rate(lam, sgd, level=0.5))
    scale = (0.03 / 2) ** 0.5
    ensemble = qm.Ensemble(120, 240, jacobian=lam, curvature=scale)
    found = []
    for seed in range(8):
        model = ensemble.sample(seed)
        runs = qm.simulate(model, sgd, 20, replicas=8, seed=seed, record_every=5)
        theory = [
            qm.mean_field(model, sgd, 20, record_every=5, curvature=size)
            for size in (None, 1.1 * scale)
        ]
        found.append([(runs.mean("replica") / t).isel(step=slice(1, None)) for t in theory])
    for name, allowed in (("loss", 0.03), ("squared_distance", 0.03), ("ntk_trace", 0.004)):
        right, wrong = (np.array([pair[k][name].values for pair in found]) for k in (0, 1))
        error = np.hypot(right.std(axis=0, ddof=1) / 8**0.5, allowed / 5.6)
        assert np.abs((right.mean(axis=0) - 1) / error).max() < 5.6, name
    assert np.abs((wrong.mean(axis=0) - 1) / error).max() > 5.6


@settings(max_examples=8, deadline=None)
@given(st.integers(-140, 140), st.integers(-70, 70), st.sampled_from(list(OPTIMIZERS)))
def test_units(of_ntk, of_residual, name):
    ntk, residual = 10.0**of_ntk, 10.0**of_residual
    lam = np.geomspace(1, 0.1, 12)
    options = OPTIMIZERS[name]
    decay = options.get("weight_decay", 0.0)

    def solve(a, b):
        sgd = qm.SGD(0.2 / a, 3, **(options | {"weight_decay": decay * a}))
        return qm.mean_field(
            lam * a,
            sgd,
            12,
            residual=np.ones(12) * b,
            curvature=0.2 * a / b,
            n_params=24,
            record_every=6,
        )

    one, other = solve(1.0, 1.0), solve(ntk, residual)
    np.testing.assert_allclose(other.loss / residual**2, one.loss, rtol=1e-9)
    np.testing.assert_allclose(other.ntk_trace / ntk, one.ntk_trace, rtol=1e-9)
    np.testing.assert_allclose(
        other.noise_kernel_norm_finite, one.noise_kernel_norm_finite, rtol=1e-7
    )


def test_divergence_is_a_result():
    ensemble = qm.Ensemble(50, 100, curvature=0.1)
    found = qm.mean_field(ensemble, qm.SGD(0.6, 2), 200)
    at = found.attrs["divergence_step"]
    assert 0 < at < 200
    assert np.isinf(found.loss[found.step >= at]).all()
    assert np.isnan(found.ntk_trace[found.step >= at]).all()
    assert np.isfinite(found.loss[found.step < at]).all()
    calm = qm.mean_field(ensemble, qm.SGD(0.01, 2), 200)
    assert calm.attrs["divergence_step"] == -1
    assert np.isfinite(calm.loss).all()


def test_two_time():
    ensemble = qm.Ensemble(20, 40, curvature=0.05)
    found = qm.mean_field(ensemble, qm.SGD(0.1, 4), 10, also=["two_time"], record_every=1)
    overlap = found.displacement_correlation.values
    np.testing.assert_allclose(np.diagonal(overlap), found.squared_distance, rtol=1e-12)
    assert np.array_equal(overlap, overlap.T)
    assert np.all(np.triu(found.parameter_response.values) == 0)
    assert found.parameter_response.values[1, 0] == pytest.approx(1.0, abs=0.2)


def test_unreachable_residual():
    """More points than parameters: the theory keeps what no parameter can remove."""
    lam = np.append(np.linspace(1, 0.3, 20), np.zeros(10))
    sgd = qm.SGD(0.1, 30)
    found = qm.mean_field(lam, sgd, 400, curvature=1e-3, n_params=20)
    assert float(found.loss[-1]) == pytest.approx(10 / 60, rel=0.01)


@pytest.mark.parametrize("memory", [None, 10])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_heavy_mode(name, aligned, memory):
    """Labels along the top mode: its eigenvalue moves on its own.

    As in the limit of many parameters, which treats all data points one by one: full batches, at
    second order in the curvature, so that what other modes do to this one is not seen.
    """
    lam = np.append(2.0, np.linspace(1, 0.1, 15))
    linear = qm.Ensemble(16, 64, jacobian=lam).sample(0)
    vectors = linear.eigensystem[1]
    over_data = vectors * lam / lam.mean() @ vectors.T if aligned else np.eye(16)
    law = qm.curvature.KroneckerCurvature(over_data, scale=(0.01 / 4) ** 0.5)
    drawn = law.sample(np.random.default_rng(0), 16, 64)
    residual = vectors @ np.append(2.0, np.full(15, 0.02))
    model = qm.QuadraticModel(residual, linear.jacobian, drawn, law)
    sgd = qm.SGD(0.15, 16, **OPTIMIZERS[name])
    found = qm.mean_field(model, sgd, 60, ratio=np.inf, record_every=15, memory=memory)
    limit = qm.large_p_limit(model, sgd, 60, truncation_order=2, record_every=15)
    moved = found.ntk_largest_eigenvalue.values[1:] - 2
    expected = limit.ntk_largest_eigenvalue.isel(replica=0).values[1:] - 2
    np.testing.assert_allclose(moved, expected, rtol=2e-4 if memory is None else 0.02)
    # The control: without its own motion, which Nesterov's momentum nearly cancels here.
    shift = found.attrs["curvature_strength"] ** 2 * found.squared_distance.values[1:]
    top = 2 / lam.mean() if aligned else 1.0
    assert np.abs(moved / (top * shift) - 1).min() > (0.005 if name == "Nesterov" else 0.2)


@pytest.mark.parametrize("memory", [None, 10])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_of_points_that_are_alike_are_one(name, memory):
    """Eigenvectors with entries of one size, curvature included."""
    vectors = hadamard(16) / 4
    ntk = (vectors * np.linspace(1, 0.1, 16)) @ vectors.T
    sgd = qm.SGD(0.4, 4, **OPTIMIZERS[name])

    def loss(groups, matrix=ntk):
        found = qm.mean_field(
            matrix, sgd, 40, curvature=0.1, n_params=32, groups=groups, memory=memory
        )
        return found.loss.values

    np.testing.assert_allclose(loss(5), loss(1), rtol=1e-9)
    # The control: points that are not alike.
    uneven = qm.Ensemble(16, 32, jacobian=np.linspace(1, 0.1, 16)).sample(1).ntk()
    assert np.abs(loss(5, uneven) / loss(1, uneven) - 1).max() > 0.002


def test_merging_keeps_sums_over_the_past():
    """Of every function of two steps, in bins and of followed modes, and of their variances."""
    sgd = qm.SGD(0.2, 4, momentum=0.3)
    solver = MeanField(known(), sgd, 80, follow=np.array([0, 2]), keep=True)
    for _ in range(50):
        solver.step(measure=False)

    def arrays():
        return {
            **solver.shared,
            **{f"response {k}": one for k, one in enumerate(solver.responses)},
            **{f"own response {k}": one for k, one in enumerate(solver.followed_responses)},
            **{f"own overlap {k}": one for k, one in enumerate(solver.followed_overlaps)},
        }

    def sums():
        n = solver.columns
        width = solver.width[:n]
        found = {name: width @ one[:n, :n] @ width for name, one in arrays().items()}
        found |= {f"noise {k}": one[:n] @ width**2 for k, one in enumerate(solver.noise)}
        return found | {
            f"shared {k}": one[:n] @ width**2 for k, one in enumerate(solver.shared_noise)
        }

    before = sums()
    assert all(value != 0 for name, value in before.items() if not name.startswith("shared"))
    solver.merge(10)
    n = solver.columns
    assert n < 40
    assert solver.width[:n].sum() == 50
    assert sums() == pytest.approx(before, rel=1e-12)
    for name, one in arrays().items():
        assert not one[n:].any(), name
        assert not one[:, n:].any(), name


@pytest.mark.parametrize("groups", [1, 24])
def test_coarse_past_of_groups(groups):
    """Uneven points: a coarse past changes less than the groups do."""
    model = qm.Ensemble(24, 48, jacobian=np.linspace(1, 0.1, 24)).sample(2)
    sgd = qm.SGD(0.4, 4, sampling="bernoulli")
    whole, coarse = (
        qm.mean_field(model, sgd, 60, record_every=10, groups=groups, memory=m).loss.values
        for m in (None, 10)
    )
    np.testing.assert_allclose(coarse, whole, rtol=0.02)
    other = qm.mean_field(model, sgd, 60, record_every=10, groups=25 - groups).loss.values
    assert np.abs(other / whole - 1).max() > 0.05


def test_coarse_past_keeps_what_overshooting_modes_need(monkeypatch):
    """Close to the deterministic edge the fastest mode changes sign at every step.

    The control: averages over two steps would hide it.
    """
    lam = np.arange(1, 101) ** -0.7
    ensemble = qm.Ensemble(100, 200, jacobian=lam, curvature=0.03)
    sgd = qm.SGD(0.97 * 2, 50)
    whole = qm.mean_field(ensemble, sgd, 240, record_every=20).loss
    seen = whole > 1e-4 * whole[0]
    found = qm.mean_field(ensemble, sgd, 240, record_every=20, memory=20).loss
    np.testing.assert_allclose(found[seen], whole[seen], rtol=0.01)
    monkeypatch.setattr(module, "recent_steps", lambda largest, sgd: 0.0)
    hidden = qm.mean_field(ensemble, sgd, 240, record_every=20, memory=20).loss
    assert np.abs(hidden / whole - 1)[seen].max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "ntk"}, "ntk must hold real numbers"),
        ({"source": np.ones((3, 2))}, "ntk must be"),
        ({"source": qm.spectra.PowerLaw(1.0)}, "source must be an Ensemble with this law"),
        ({"memory": 5}, "memory must be an integer >= 10, got 5"),
        ({"memory": 50, "also": "two_time"}, "memory must be left out with two_time"),
        ({"also": ["ntk"]}, "also must be one of ntk_density, two_time, got 'ntk'"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"sgd": 3}, "sgd must be an SGD, got int"),
        ({"sgd": qm.SGD(0.1, 9)}, "batch_size must be between 1 and n_data=4, got 9"),
        ({"n_params": None}, "n_params must be given"),
        ({"n_params": 2}, "n_params must be an integer >= 4, got 2"),
        ({"ratio": 0.5}, "ratio must be a finite number >= 1, got 0.5"),
        ({"bins": 0}, "bins must be an integer >= 1, got 0"),
        ({"groups": 2}, "groups must be 1 where the eigenvectors"),
        ({"residual": [1.0, 2.0]}, r"residual must have shape \(4\), got \(2,\)"),
        ({"curvature": qm.curvature.RandomLowRankCurvature(2, 0.1)}, "Kronecker covariance"),
        (
            {"curvature": qm.curvature.KroneckerCurvature(np.diag([1.0, 2, 3, 4]) + 0.1)},
            "commutes with the NTK",
        ),
        (
            {
                "curvature": qm.curvature.KroneckerCurvature(
                    None, np.diag(np.arange(1.0, 9)), scale=0.1
                )
            },
            "uncorrelated between parameters",
        ),
        ({"source": qm.Ensemble(4, 8), "n_params": 8}, "n_params must be left out"),
    ],
)
def test_bad_input(changes, message):
    arguments = {
        "source": np.array([1.0, 0.5, 0.2, 0.1]), "sgd": qm.SGD(0.1, 2), "steps": 4,
        "curvature": 0.1, "n_params": 8,
    } | changes  # fmt: skip
    source, sgd, steps = (arguments.pop(name) for name in ("source", "sgd", "steps"))
    with pytest.raises(InputError, match=message) as caught:
        qm.mean_field(source, sgd, steps, **arguments)
    assert "\n" not in str(caught.value)


def noisy(seed, e, density, n_data=300, flat=False):
    rng = np.random.default_rng(seed)
    lam = np.sort(rng.uniform(0.1, 1, n_data))[::-1].copy()
    c = np.ones(n_data) if flat else rng.uniform(0.2, 2, n_data)
    c /= c.mean()
    n_params = int(n_data / density)
    lam[n_params:] = 0.0
    root = np.zeros((n_data, n_params))
    np.fill_diagonal(root, np.sqrt(n_data * lam))
    noise = rng.standard_normal(root.shape) * np.sqrt(e * density * c)[:, None]
    law = InformationPlusNoise(lam, np.full(n_data, 1 / n_data), c, e, density)
    return law, np.linalg.eigvalsh((root + noise) @ (root + noise).T / n_data)


@pytest.mark.parametrize(("e", "density"), [(0.05, 0.5), (0.4, 0.9), (2.0, 0.2)])
def test_spectrum_of_the_ntk(e, density):
    """Against one large matrix: its eigenvalues fluctuate by about D^(-2/3) at the edge."""
    law, eigenvalues = noisy(1, e, density)
    assert law.mean == pytest.approx(eigenvalues.mean(), rel=0.02)
    assert law.edge == pytest.approx(eigenvalues[-1], rel=0.04)
    x = 1.1 * law.edge
    assert law.stieltjes(x) == pytest.approx(np.mean(1 / (x - eigenvalues)), rel=0.02)
    bounded = law.analytic_between(-np.inf, x)
    smooth = bounded.average(lambda lam: lam / (x - lam))
    assert smooth == pytest.approx(x * law.stieltjes(x) - 1, rel=1e-6)
    assert law.average(lambda lam: lam + 0j) == pytest.approx(law.mean, rel=1e-8)
    assert law.edge > 1.02 * (law.lam[0] + 0.5 * e * law.over_data.min())


@pytest.mark.parametrize("density", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("decay", [0.003, 0.03, 0.3])
@pytest.mark.parametrize("e", [0.01, 1.0])
def test_averages_keep_out_the_pole_of_weight_decay(e, decay, density):
    """Against one large matrix, with eigenvalues down to zero; the control: the pole inside."""
    law, eigenvalues = noisy(2, e, density, flat=True)

    def share(lam):
        return decay / (lam + decay)

    expected = share(np.maximum(eigenvalues, 0)).mean()
    found = law.analytic_between(-decay, np.inf).average(share)
    assert found == pytest.approx(expected, rel=0.03)
    if decay < 0.04 * law.edge:
        assert law.average(share) != pytest.approx(expected, rel=0.03)


def smoothed(eigenvalues, x, width):
    return np.mean(width / np.pi / ((x[:, None] - eigenvalues) ** 2 + width**2), axis=1)


@pytest.mark.parametrize(("e", "density"), [(1e-6, 0.5), (0.05, 0.5), (0.4, 0.9), (2.0, 0.2)])
def test_smoothed_density(e, density):
    """Against one large matrix, whose eigenvalues hardly fluctuate; the control: other noise."""
    law, eigenvalues = noisy(1, e, density)
    x = np.linspace(0, 1.2 * law.edge, 100)
    width = 0.03 * law.edge
    expected = smoothed(eigenvalues, x, width)
    noises = (e, 1.5 * e + 0.1)
    found = [replace(law, noise=e).smoothed_density(x, width) for e in noises]
    right, wrong = (np.abs(one - expected).mean() / expected.mean() for one in found)
    assert right < 0.02
    assert wrong > 0.06


@pytest.mark.parametrize("ratio", [2.0, np.inf])
def test_density_along_training(ratio):
    """That of the recorded eigenvalues of runs, smoothed alike, while the trace grows by a third.

    In the limit of many parameters the spectrum is narrower: the control.
    """
    lam = np.sort(0.07 + 0.93 * ((np.arange(100) + 0.5) / 100) ** 2)[::-1]
    model = qm.Ensemble(100, 200, jacobian=lam, curvature=0.2).sample(3)
    sgd = qm.SGD(0.3, 10)
    found = qm.mean_field(model, sgd, 40, ratio=ratio, also="ntk_density", record_every=20)
    names = ("ntk_eigenvalue", "ntk_trace")
    runs = qm.simulate(model, sgd, 40, replicas=16, record_every=20, observables=names)
    assert float(found.ntk_trace[-1] / found.ntk_trace[0]) > 1.3
    x, width = found.eigenvalue.values, found.attrs["density_half_width"]
    off = []
    for step in (0, 20, 40):
        of_runs = runs.ntk_eigenvalue.sel(step=step).transpose("replica", "mode").values
        expected = np.mean([smoothed(one, x, width) for one in of_runs], axis=0)
        off.append(np.abs(found.ntk_density.sel(step=step) - expected).mean() / expected.mean())
    assert off[0] < 1e-6
    if np.isinf(ratio):
        assert min(off[1:]) > 0.1
    else:
        assert max(off[1:]) < 0.05
    whole = np.trapezoid(found.ntk_density.values, x, axis=1)
    assert ((whole > 0.9) & (whole < 1.0)).all()
