"""Observables along a run against differences of the loss and enumeration of all batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import ndtri

import quadmodel as qm
from quadmodel.batches import batch_indices, philox
from quadmodel.simulation import observables
from quadmodel.simulation._kernels.measurement import draw_weights, symmetric_products
from tests.oracles import dense_noise_kernel, enumeration, naive_sgd

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
FAMILY_WISE_ERROR = 1e-6  # of each of the statistical tests, over all its cases together
SAMPLED = 32
KINDS = ("linear", "linear, null space", "dense", "dense, null space", "wide", "low_rank")


def make_model(kind: str, seed: int = 1) -> qm.QuadraticModel:
    n_data, n_params = 5, 7
    if "null space" in kind:
        n_data, n_params = 6, 3
    elif kind == "wide":
        n_data, n_params = 2, 9
    curvature = None if kind.startswith("linear") else 0.2
    if kind == "low_rank":
        curvature = qm.curvature.RandomLowRankCurvature(rank=2, scale=0.5)
    return qm.Ensemble(n_data, n_params, curvature=curvature).sample(seed=seed)


def dense_curvature(model):
    q = model.curvature
    if q is None:
        return np.zeros((model.n_data, model.n_params, model.n_params))
    return q.dense() if isinstance(q, qm.LowRankCurvature) else q


# The oracle knows the residual as a function of the parameters, and takes differences. Residuals
# are polynomials of degree two and losses of degree four: these differences have no truncation
# error, so that steps may be large and nothing is lost to rounding.
STEP = 0.25


class Oracle:
    def __init__(self, model, theta) -> None:
        self.model, self.theta, self.n_data = model, theta, model.n_data
        self.curvature = dense_curvature(model)

    def residual(self, theta):
        quadratic = np.einsum("aij,i,j->a", self.curvature, theta, theta)
        return self.model.residual + self.model.jacobian @ theta + 0.5 * quadratic

    def loss(self, theta, weights) -> float:
        return float(weights @ self.residual(theta) ** 2) / (2 * self.n_data)

    def ntk(self):
        steps = STEP * np.eye(len(self.theta))
        forward, backward = ([self.residual(self.theta + s * d) for d in steps] for s in (1, -1))
        columns = (np.array(forward) - np.array(backward)) / (2 * STEP)
        return columns.T @ columns / self.n_data

    def gradient(self, weights):
        losses = [
            [self.loss(self.theta + k * STEP * unit, weights) for k in (-2, -1, 1, 2)]
            for unit in np.eye(len(self.theta))
        ]
        return np.array(losses) @ [1, -8, 8, -1] / (12 * STEP)

    def bend(self, along, weights) -> float:
        """Second derivative of the loss along a direction."""
        length = float(np.linalg.norm(along))
        at = [self.theta + k * STEP * along / length for k in (-2, -1, 0, 1, 2)]
        losses = np.array([self.loss(point, weights) for point in at])
        return float(length**2 * (losses @ [-1, 16, -30, 16, -1]) / (12 * STEP**2))

    def hessian(self):
        unit, ones = np.eye(len(self.theta)), np.ones(self.n_data)
        h = np.diag([self.bend(u, ones) for u in unit])
        for i, j in itertools.combinations(range(len(unit)), 2):
            both = self.bend(unit[i] + unit[j], ones) - self.bend(unit[i] - unit[j], ones)
            h[i, j] = h[j, i] = both / 4
        return h

    def batch_sharpness(self, batches) -> float:
        """Mean over (chance, weights) of the batches that move at all."""
        moving = [(p, w, self.gradient(w)) for p, w in batches if w.any()]
        chance = sum(p for p, _, _ in moving)
        return sum(p * self.bend(g, w) / (g @ g) for p, w, g in moving) / chance

    def gradient_noise_interaction(self, batches) -> float:
        ones = np.ones(self.n_data)
        full = self.gradient(ones)
        mean = sum(p * self.bend(self.gradient(w), ones) for p, w in batches if w.any())
        return mean / (full @ full)


def sampled_weights(sgd, n_data, seed, model_index, replica, step):
    """Batches for measurement, drawn by the documented rule."""
    random_words = philox(
        *np.array([2**32 - 2, step, replica, model_index], np.uint32),
        *np.array([seed % 2**32, seed >> 32], np.uint32),
    )
    key = int(random_words[0]) + (int(random_words[1]) << 32)
    weights = np.zeros((SAMPLED, n_data))
    for k in range(SAMPLED):
        drawn = batch_indices(n_data, sgd.batch_size, seed=key, step=k, sampling=sgd.sampling)
        np.add.at(weights[k], drawn, n_data / sgd.batch_size)
    return weights


def thetas_of(model, sgd, steps, *, seed, model_index, replica):
    drawn = [
        batch_indices(
            model.n_data, sgd.batch_size, sampling=sgd.sampling,
            seed=seed, model=model_index, replica=replica, step=t,
        ).tolist()
        for t in range(steps)
    ]  # fmt: skip
    return naive_sgd.parameter_space(
        model.residual.tolist(), model.jacobian.tolist(), dense_curvature(model).tolist(), drawn,
        sgd.learning_rate, sgd.batch_size, sgd.momentum, sgd.nesterov, sgd.weight_decay,
    )[0]  # fmt: skip


def naive_values(model, sgd, theta, weights):
    """Return every observable of one run at one step."""
    oracle = Oracle(model, np.array(theta))
    z, ntk = oracle.residual(oracle.theta), oracle.ntk()
    values, vectors = np.linalg.eigh(ntk)
    all_batches = enumeration.batches(model.n_data, sgd.batch_size, sgd.sampling)
    return {
        "loss": z @ z / (2 * model.n_data),
        "squared_distance": oracle.theta @ oracle.theta,
        "ntk_largest_eigenvalue": values[-1],
        "ntk_trace": np.trace(ntk),
        "ntk_eigenvalue": values[::-1],
        "noise_kernel_norm": qm.noise_kernel_norm(ntk, sgd, norm="paper"),
        "noise_kernel_norm_finite": qm.noise_kernel_norm(ntk, sgd, norm="finite"),
        "noise_kernel_norm_exact": dense_noise_kernel.noise_kernel_norm(ntk, sgd),
        "hessian_largest_eigenvalue": np.linalg.eigvalsh(oracle.hessian())[-1],
        "batch_sharpness": oracle.batch_sharpness([(1.0, w) for w in weights]),
        "gradient_noise_interaction": oracle.gradient_noise_interaction(all_batches),
        "residual_overlap": (vectors[:, -1] @ z) ** 2 / (z @ z),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch_size", "momentum", "nesterov", "decay", "sampling"),
    [
        (1, 0.0, False, 0.0, "without_replacement"),
        (2, 0.6, False, 0.1, "without_replacement"),
        (2, 0.0, False, 0.0, "with_replacement"),
        (2, 0.5, True, 0.2, "bernoulli"),
    ],
)
@pytest.mark.kernels
@pytest.mark.parametrize("kind", KINDS)
def test_every_observable(kind, batch_size, momentum, nesterov, decay, sampling):
    model = make_model(kind)
    sgd = qm.SGD(0.05, batch_size, momentum, nesterov, decay, sampling)
    at = {"seed": 2**40 + 7, "model_index": 3}
    for replicas in (1, 3):  # a single replica takes another way through the curvature
        sim = qm.simulate(model, sgd, 6, replicas=replicas, record_every=3, observables="all", **at)
        for replica in {0, replicas - 1}:
            thetas = thetas_of(model, sgd, 6, replica=replica, **at)
            for step in (0, 3, 6):
                weights = sampled_weights(sgd, model.n_data, *at.values(), replica, step)
                found = sim.sel(replica=replica, step=step)
                for name, value in naive_values(model, sgd, thetas[step], weights).items():
                    np.testing.assert_allclose(
                        found[name], value, rtol=1e-7, atol=1e-13, err_msg=name
                    )
    assert set(sim.data_vars) == {
        *observables.OBSERVABLES, "mode_energy_standard_error", "divergence_step"
    }  # fmt: skip


def test_observables_move_apart():
    """Negative control: no two of the observables are the same number in another place."""
    model, sgd = make_model("dense"), qm.SGD(0.05, 2)
    last = qm.simulate(model, sgd, 6, observables="all").isel(replica=0, step=-1)
    scalars = {name: float(last[name]) for name in last.data_vars if last[name].ndim == 0}
    for (a, x), (b, y) in itertools.combinations(scalars.items(), 2):
        assert abs(x - y) > 1e-3 * abs(x), (a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_full_batches(kind):
    """Without noise both sharpnesses are the curvature along the gradient, and K is 0."""
    model = make_model(kind)
    for sampling in ("without_replacement", "bernoulli"):
        sgd = qm.SGD(0.05, model.n_data, sampling=sampling)
        sim = qm.simulate(model, sgd, 4, record_every=2, observables="all")
        assert (sim.noise_kernel_norm_exact == 0).all()
        ones = np.ones(model.n_data)
        for step, theta in enumerate(thetas_of(model, sgd, 4, seed=0, model_index=0, replica=0)):
            oracle = Oracle(model, np.array(theta))
            g = oracle.gradient(ones)
            wanted = oracle.bend(g, ones) / (g @ g)
            for name in ("batch_sharpness", "gradient_noise_interaction"):
                if step in sim.step:
                    assert float(sim[name].sel(step=step)[0]) == pytest.approx(wanted, rel=1e-9)


# --- batch sharpness: the batches --------------------------------------------------------------


@pytest.mark.statistical
def test_batch_sharpness_is_unbiased():
    """Mean over many draws at one point against all batches; mean over mean must fail."""
    cases = list(itertools.product(("linear", "dense"), SCHEMES, (1, 2, 4)))
    bound = -ndtri(FAMILY_WISE_ERROR / (2 * len(cases)))
    told_apart = 0
    for kind, sampling, batch_size in cases:
        model, sgd = make_model(kind), qm.SGD(0.05, batch_size, sampling=sampling)
        sim = qm.simulate(
            model, sgd, 1, replicas=4000, record_every=2, observables=["batch_sharpness"]
        )
        values = sim.batch_sharpness.values[:, 0]
        error = values.std(ddof=1) / np.sqrt(len(values))
        batches = enumeration.batches(5, batch_size, sampling)
        oracle = Oracle(model, np.zeros(7))
        assert abs(values.mean() - oracle.batch_sharpness(batches)) < bound * error
        gradients = [oracle.gradient(w) for _, w in batches]
        forms = [
            oracle.bend(g, w) if w.any() else 0.0
            for g, (_, w) in zip(gradients, batches, strict=True)
        ]
        chances = [p for p, _ in batches]
        wrong = np.dot(chances, forms) / np.dot(chances, [g @ g for g in gradients])
        told_apart += abs(values.mean() - wrong) > bound * error
    assert told_apart > len(cases) // 2


def weights_of(scheme=0, **changed):
    where = {"seed": 5, "model": 1, "replica": 2, "step": 3, **changed}
    weights = np.empty((SAMPLED, 20))
    draw_weights(
        np.uint64(where["seed"]),
        where["model"],
        where["replica"],
        where["step"],
        scheme,
        6,
        weights,
    )
    return weights


@pytest.mark.kernels
@pytest.mark.parametrize("scheme", range(3))
def test_batches_for_measurement_are_a_pure_function_of_their_place(scheme):
    again = weights_of(scheme)
    np.testing.assert_array_equal(weights_of(scheme), again)
    for changed in ({"seed": 6}, {"seed": 5 + 2**32}, {"model": 2}, {"replica": 3}, {"step": 4}):
        assert (weights_of(scheme, **changed) != again).any(axis=1).sum() > 25
    # not those of the steps, and different from each other
    drawn = batch_indices(20, 6, seed=5, model=1, replica=2, step=3, sampling=SCHEMES[scheme])
    of_step = np.bincount(drawn, minlength=20) * 20 / 6
    assert (again != of_step).any(axis=1).sum() > 25
    assert len({tuple(row) for row in again}) > 25


# --- exact noise kernel norm -------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [(0.0, False), *itertools.product((0.9, 0.5, -0.3, -0.7), (False, True))],
)
def test_exact_norm_is_the_predicted_one(momentum, nesterov, sampling, decay):
    values = np.array([2.0, 1.3, 1.3, 0.4, 0.1, 1e-3, 0.0, 0.0])
    vectors = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0]
    ntk = (vectors * values) @ vectors.T
    edge = qm.edge_of_stability(values, qm.SGD(1.0, 1, momentum, nesterov, decay))
    for batch_size, part in itertools.product((1, 3, 8), (0.01, 0.5, 0.99, 1.01)):
        sgd = qm.SGD(part * edge, batch_size, momentum, nesterov, decay, sampling)
        found = observables.exact_noise_kernel_norm(values, vectors, sgd)
        wanted = qm.noise_kernel_norm(ntk, sgd, norm="exact")
        assert np.isinf(wanted) == (part > 1)
        assert found == pytest.approx(wanted, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_exact_norm_along_a_run(kind):
    """At a size where theory and simulation both iterate."""
    curvature = {
        "linear": None,
        "dense": 0.05,
        "low_rank": qm.curvature.RandomLowRankCurvature(rank=1, scale=0.3),
    }[kind]
    model = qm.Ensemble(40, 60, qm.spectra.PowerLaw(1.0), curvature=curvature).sample(seed=2)
    sgd = qm.SGD(0.1, 4, momentum=0.3)
    names = ["noise_kernel_norm_exact", "noise_kernel_norm_finite"]
    sim = qm.simulate(model, sgd, 20, replicas=2, record_every=20, observables=names)
    thetas = thetas_of(model, sgd, 20, seed=0, model_index=0, replica=1)
    for step in (0, 20):
        ntk = model.ntk(np.zeros(60) if kind == "linear" else thetas[step])
        wanted = qm.noise_kernel_norm(ntk, sgd, norm="exact")
        found = sim.sel(replica=1, step=step)
        assert float(found.noise_kernel_norm_exact) == pytest.approx(wanted, rel=1e-8)
        assert found.noise_kernel_norm_exact > 1.001 * found.noise_kernel_norm_finite


# --- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_hessian_of_a_larger_model(kind):
    law = 0.1 if kind == "dense" else qm.curvature.RandomLowRankCurvature(rank=3, scale=0.3)
    for n_data, n_params in ((30, 150), (100, 40)):
        model = qm.Ensemble(n_data, n_params, curvature=law).sample(seed=4)
        sgd = qm.SGD(0.02, 5)
        sim = qm.simulate(
            model, sgd, 10, replicas=2, record_every=10, observables=["hessian_largest_eigenvalue"]
        )
        for step, theta in (
            (0, np.zeros(n_params)),
            (10, thetas_of(model, sgd, 10, seed=0, model_index=0, replica=1)[10]),
        ):
            jacobian, z = model.jacobian_at(theta), model.residual_at(theta)
            curvature = np.einsum("a,aij->ij", z, dense_curvature(model))
            top = np.linalg.eigvalsh((jacobian.T @ jacobian + curvature) / n_data)[-1]
            found = float(sim.hessian_largest_eigenvalue.sel(step=step)[1])
            assert found == pytest.approx(top, rel=1e-9)


@pytest.mark.kernels
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 63])
def test_symmetric_products(n):
    matrices = np.random.default_rng(n).standard_normal((3, n, n))
    matrices += matrices.transpose(0, 2, 1)
    x, out = np.linspace(-1, 2, n), np.full((3, n), np.nan)
    symmetric_products(matrices, x, out)
    np.testing.assert_allclose(out, matrices @ x, rtol=0, atol=1e-13 * n)
