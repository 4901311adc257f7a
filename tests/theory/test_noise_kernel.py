"""Noise kernel norm and critical learning rates, against enumeration of every batch."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadmodel as qm
from tests.oracles import dense_noise_kernel, enumeration
from tests.theory._cases import MOMENTA, RECORDS, SCHEMES, random_ntk


def well_conditioned_ntk(seed: int, n_data: int, n_params: int) -> np.ndarray:
    """Return the first draw whose slowest mode is fast enough to sum its response term by term."""
    while True:
        ntk = random_ntk(seed, n_data, n_params)
        eigenvalues = np.linalg.eigvalsh(ntk)[-min(n_data, n_params) :]
        if eigenvalues[0] > 0.02 * eigenvalues[-1]:
            return ntk
        seed += 1000


def circulant_ntk(n_data: int) -> np.ndarray:
    distance = np.minimum(np.arange(n_data), n_data - np.arange(n_data))
    row = np.exp(-0.7 * distance**2)
    return np.array([np.roll(row, shift) for shift in range(n_data)])


def configurations() -> list:
    """Return (name, ntk, sgd): every scheme with every momentum, then larger data sets."""
    found = []
    for number, (sampling, (momentum, nesterov), decay) in enumerate(
        itertools.product(SCHEMES, MOMENTA, (0.0, 0.4))
    ):
        n_params = (6, 2, 3)[number % 3]  # 2 and 3 leave a null space
        n_data, batch_size = 4, 1 + number % 3
        sgd = qm.SGD(1.0, batch_size, momentum, nesterov, decay, sampling)
        found.append((n_data, n_params, sgd))
    for n_data, n_params, batch_size, sampling, momentum, nesterov in (
        (7, 9, 2, "without_replacement", 0.0, False),
        (7, 4, 6, "without_replacement", 0.0, False),
        (6, 12, 3, "with_replacement", 0.0, False),
        (6, 3, 1, "bernoulli", 0.0, False),
        (7, 3, 3, "without_replacement", 0.9, False),
        (6, 4, 2, "bernoulli", 0.5, True),
        (5, 5, 5, "with_replacement", 0.5, False),
        (5, 7, 5, "without_replacement", 0.5, False),
        (5, 7, 4, "without_replacement", -0.6, True),
        (1, 3, 1, "with_replacement", 0.0, False),
        (2, 1, 1, "without_replacement", 0.0, False),
    ):
        sgd = qm.SGD(1.0, batch_size, momentum, nesterov, 0.0, sampling)
        found.append((n_data, n_params, sgd))
    return [
        pytest.param(
            well_conditioned_ntk(100 + number, n_data, n_params),
            sgd,
            id=f"D{n_data}-P{n_params}-B{sgd.batch_size}-{sgd.sampling}"
            f"-mu{sgd.momentum}{'-nesterov' * sgd.nesterov}-rho{sgd.weight_decay}",
        )
        for number, (n_data, n_params, sgd) in enumerate(found)
    ]


CONFIGURATIONS = configurations()


@pytest.mark.parametrize("record", RECORDS)
def test_recorded_values(record):
    ntk = random_ntk(record["seed"], record["n_data"], record["n_params"])
    names = ("learning_rate", "batch_size", "momentum", "nesterov", "weight_decay", "sampling")
    sgd = qm.SGD(**{name: record[name] for name in names})
    close = {"rel": 1e-10, "abs": 0.0}
    assert qm.edge_of_stability(ntk, sgd) == pytest.approx(record["edge_of_stability"], **close)
    assert qm.critical_learning_rate(ntk, sgd, norm="exact") == pytest.approx(
        record["critical_learning_rate_exact"], **close
    )
    for method in ("paper", "finite"):
        if f"K_{method}" in record:
            value = qm.noise_kernel_norm(ntk, sgd, norm=method)
            assert value == pytest.approx(record[f"K_{method}"], **close)
            by_eigenvalues = qm.noise_kernel_norm(np.linalg.eigvalsh(ntk), sgd, norm=method)
            assert by_eigenvalues == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS)
def test_exact_threshold_is_the_enumerated_one(ntk, sgd):
    found = qm.critical_learning_rate(ntk, sgd, norm="exact")
    expected = enumeration.critical_learning_rate(ntk, sgd)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found <= qm.edge_of_stability(ntk, sgd)
    for factor, stable in ((0.97, True), (1.03, False)):
        norm = qm.noise_kernel_norm(
            ntk, replace(sgd, learning_rate=factor * expected), norm="exact"
        )
        assert (norm < 1) is stable


@pytest.mark.parametrize(("momentum", "nesterov"), [*MOMENTA, (-0.4, True), (-0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.4])
def test_edge_is_where_gradient_descent_turns_unstable(momentum, nesterov, weight_decay):
    ntk = random_ntk(3, 5, 4)
    sgd = qm.SGD(1.0, 2, momentum, nesterov, weight_decay)
    expected = enumeration.edge_of_stability(ntk, sgd)
    assert qm.edge_of_stability(ntk, sgd) == pytest.approx(expected, rel=1e-9)
    assert qm.edge_of_stability(np.diag(ntk), sgd) == pytest.approx(
        expected
        * (np.linalg.eigvalsh(ntk)[-1] + weight_decay)
        / (np.diag(ntk).max() + weight_decay),
        rel=1e-9,
    )


@pytest.mark.parametrize(("ntk", "sgd"), [c for c in CONFIGURATIONS if len(c.values[0]) > 1])
def test_norms_against_the_kernel_by_its_definition(ntk, sgd):
    edge = qm.edge_of_stability(ntk, sgd)
    n_data = len(ntk)
    for fraction in (0.15, 0.6, 0.9):
        sgd = replace(sgd, learning_rate=fraction * edge)
        kernel = dense_noise_kernel.noise_kernel(ntk, sgd)
        assert kernel.min() >= -1e-12 * max(1.0, kernel.max())
        exact = qm.noise_kernel_norm(ntk, sgd, norm="exact")
        assert exact == pytest.approx(np.linalg.eigvalsh(kernel)[-1], rel=1e-10, abs=1e-13)
        finite = qm.noise_kernel_norm(ntk, sgd, norm="finite")
        assert finite == pytest.approx(kernel.sum() / n_data, rel=1e-10, abs=1e-13)
        eigenvalues = np.maximum(np.linalg.eigvalsh(ntk), 0.0)
        sums = dense_noise_kernel.response_sums(eigenvalues, sgd)
        paper = (n_data / sgd.batch_size - 1) * np.trace(sums) / n_data
        found = qm.noise_kernel_norm(ntk, sgd, norm="paper")
        assert found == pytest.approx(paper, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("n_data", [30, 80])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, True)])
def test_exact_norm_of_larger_data(n_data, momentum, nesterov):
    # above a few dozen points the root comes from an iterative eigensolver
    ntk = random_ntk(8, n_data, 2 * n_data)
    sgd = qm.SGD(1.0, 3, momentum, nesterov)
    sgd = replace(sgd, learning_rate=qm.critical_learning_rate(ntk, sgd, norm="finite"))
    lam, vectors = np.linalg.eigh(ntk)
    bare = dense_noise_kernel.response_sums(lam, sgd)
    gamma = n_data * (n_data - 3) / (3 * (n_data - 1))
    dressed = bare / (1 + gamma / n_data * bare)
    pairs = np.einsum("ia,ja->ija", vectors, vectors).reshape(n_data**2, n_data)
    kernel = gamma * np.einsum("xa,xa->x", pairs @ dressed, pairs).reshape(n_data, n_data)
    expected = np.linalg.eigvalsh(kernel)[-1]
    assert expected > 1
    assert qm.noise_kernel_norm(ntk, sgd, norm="exact") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "diagonal",
    [np.ones(60), np.linspace(0.9, 1.0, 60), np.repeat([1.0, 2.0], 30), np.arange(60) % 2.0],
    ids=["equal", "clustered", "two values", "half in the null space"],
)
def test_exact_norm_of_orthogonal_data(diagonal):
    # no two points share a mode: each is a one-point problem, and the stiffest decides
    sgd = qm.SGD(0.3, 4, sampling="bernoulli")
    expected = 14 * (0.3 * diagonal / (2 - 0.3 * diagonal)).max()
    found = qm.noise_kernel_norm(np.diag(diagonal), sgd, norm="exact")
    assert found == pytest.approx(expected, rel=1e-10)


def test_wrong_kernels_fail_against_enumeration():
    """Negative control: the tolerance of the tests above tells a wrong formula apart."""
    ntk, sgd = random_ntk(1, 5, 8), qm.SGD(1.0, 2)
    sgd = replace(sgd, learning_rate=enumeration.critical_learning_rate(ntk, sgd))
    kernel = dense_noise_kernel.noise_kernel(ntk, sgd)
    assert np.linalg.eigvalsh(kernel)[-1] == pytest.approx(1, rel=1e-9)
    gamma = 5 * 3 / (2 * 4)
    assert abs(np.linalg.eigvalsh(kernel * (5 / 2) / gamma)[-1] - 1) > 0.1  # gamma = D/B
    for other in SCHEMES[1:]:
        norm = qm.noise_kernel_norm(ntk, replace(sgd, sampling=other), norm="exact")
        assert abs(norm - 1) > 1e-2
    for method in ("paper", "finite"):
        assert abs(qm.noise_kernel_norm(ntk, sgd, norm=method) - 1) > 1e-2
    for wrong in (replace(sgd, momentum=0.01), replace(sgd, weight_decay=0.01)):
        assert abs(qm.noise_kernel_norm(ntk, wrong, norm="exact") - 1) > 1e-4


@st.composite
def problems(draw):
    """Draw an NTK and an SGD below the deterministic edge."""
    n_data = draw(st.integers(2, 12))
    ntk = random_ntk(draw(st.integers(0, 10**6)), n_data, draw(st.integers(1, 20)))
    momentum, nesterov = draw(st.sampled_from(MOMENTA))
    batch_size = draw(st.integers(1, n_data))
    decay = draw(st.sampled_from((0.0, 0.3)))
    sgd = qm.SGD(1.0, batch_size, momentum, nesterov, decay, draw(st.sampled_from(SCHEMES)))
    fraction = draw(st.floats(0.01, 0.99))
    return ntk, replace(sgd, learning_rate=fraction * qm.edge_of_stability(ntk, sgd))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(problems())
def test_finite_size_norm_is_a_lower_bound(problem):
    ntk, sgd = problem
    finite = qm.noise_kernel_norm(ntk, sgd, norm="finite")
    exact = qm.noise_kernel_norm(ntk, sgd, norm="exact")
    assert 0 <= finite <= exact * (1 + 1e-12)
    assert np.isfinite(exact)


def test_the_bound_is_not_an_equality():
    ntk, sgd = random_ntk(2, 6, 4), qm.SGD(0.2, 1)
    finite, exact = (qm.noise_kernel_norm(ntk, sgd, norm=m) for m in ("finite", "exact"))
    assert finite < 0.99 * exact


@pytest.mark.parametrize("n_data", [6, 7, 40])
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_bound_is_reached_by_circulant_ntk(n_data, sampling, momentum, nesterov):
    ntk = circulant_ntk(n_data)
    sgd = qm.SGD(1.0, 2, momentum, nesterov, 0.0, sampling)
    sgd = replace(sgd, learning_rate=0.5 * qm.edge_of_stability(ntk, sgd))
    finite, exact = (qm.noise_kernel_norm(ntk, sgd, norm=m) for m in ("finite", "exact"))
    assert exact == pytest.approx(finite, rel=1e-10)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(problems(), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_norms_do_not_depend_on_units_or_order(problem, scale, seed):
    ntk, sgd = problem
    scaled = replace(
        sgd, learning_rate=sgd.learning_rate / scale, weight_decay=sgd.weight_decay * scale
    )
    order = np.random.default_rng(seed).permutation(len(ntk))
    signs = np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=len(ntk))
    for method in ("paper", "finite", "exact"):
        norm = qm.noise_kernel_norm(ntk, sgd, norm=method)
        close = pytest.approx(norm, rel=1e-8, abs=1e-12)
        assert qm.noise_kernel_norm(scale * ntk, scaled, norm=method) == close
        assert qm.noise_kernel_norm(ntk[np.ix_(order, order)], sgd, norm=method) == close
        assert qm.noise_kernel_norm(signs[:, None] * ntk * signs, sgd, norm=method) == close


def test_only_the_exact_norm_sees_the_eigenvectors():
    ntk, sgd = random_ntk(4, 8, 12), qm.SGD(0.1, 2, momentum=0.3)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    turned = rotation @ ntk @ rotation.T
    turned = 0.5 * (turned + turned.T)
    for method in ("paper", "finite"):
        norm = qm.noise_kernel_norm(ntk, sgd, norm=method)
        assert qm.noise_kernel_norm(turned, sgd, norm=method) == pytest.approx(norm, rel=1e-10)
    exact = qm.noise_kernel_norm(ntk, sgd, norm="exact")
    assert abs(qm.noise_kernel_norm(turned, sgd, norm="exact") / exact - 1) > 1e-4


@pytest.mark.parametrize("norm", ["paper", "finite", "exact"])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_full_batch_has_no_noise_and_the_edge_is_infinite(norm, momentum, nesterov):
    ntk = random_ntk(6, 6, 9)
    sgd = qm.SGD(1.0, 6, momentum, nesterov)
    edge = qm.edge_of_stability(ntk, sgd)
    below, at, above = (replace(sgd, learning_rate=f * edge) for f in (1 - 1e-9, 1.0, 1.5))
    assert qm.noise_kernel_norm(ntk, below, norm=norm) == 0.0
    assert qm.noise_kernel_norm(ntk, at, norm=norm) == math.inf
    assert qm.noise_kernel_norm(ntk, above, norm=norm) == math.inf
    assert qm.critical_learning_rate(ntk, sgd, norm=norm) == edge
    noisy = replace(sgd, batch_size=5)
    critical = qm.critical_learning_rate(ntk, noisy, norm=norm)
    assert 0 < critical < edge
    close_to_edge = replace(noisy, learning_rate=(1 - 1e-9) * edge)
    assert 1 < qm.noise_kernel_norm(ntk, close_to_edge, norm=norm) < math.inf
    assert qm.noise_kernel_norm(ntk, replace(at, batch_size=5), norm=norm) == math.inf


@pytest.mark.parametrize("norm", ["paper", "finite", "exact"])
@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
@pytest.mark.parametrize("sampling", SCHEMES)
def test_norm_grows_with_learning_rate_and_falls_with_batch_size(
    norm, momentum, nesterov, sampling
):
    ntk = random_ntk(7, 6, 5)
    sgd = qm.SGD(1.0, 2, momentum, nesterov, 0.1, sampling)
    edge = qm.edge_of_stability(ntk, sgd)
    rates = edge * np.array([1e-6, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
    norms = [qm.noise_kernel_norm(ntk, replace(sgd, learning_rate=eta), norm=norm) for eta in rates]
    assert np.all(np.diff(norms) > 0)
    by_batch = [
        qm.noise_kernel_norm(ntk, replace(sgd, learning_rate=rates[4], batch_size=b), norm=norm)
        for b in (1, 2, 3, 4, 5)
    ]
    assert np.all(np.diff(by_batch) < 0)


@pytest.mark.parametrize(("momentum", "nesterov"), MOMENTA)
def test_small_learning_rates(momentum, nesterov):
    ntk = random_ntk(9, 40, 70)
    trace = np.trace(ntk)
    eta = 1e-7 / trace
    sgd = qm.SGD(eta, 3, momentum, nesterov)
    limit = eta * trace / (2 * (1 - momentum))
    beta = 3 / 40
    assert qm.noise_kernel_norm(ntk, sgd, norm="paper") == pytest.approx(
        limit * (1 / 3 - 1 / 40), rel=1e-5, abs=0
    )
    gamma = 40 * 37 / (3 * 39)
    finite = qm.noise_kernel_norm(ntk, sgd, norm="finite")
    assert finite == pytest.approx(limit * gamma / 40, rel=1e-5, abs=0)
    assert finite == pytest.approx(limit / 3, rel=2 * beta)
    exact = qm.noise_kernel_norm(ntk, sgd, norm="exact")
    assert finite <= exact < 2 * finite


@pytest.mark.parametrize("norm", ["paper", "finite", "exact"])
@pytest.mark.parametrize("level", [1e-6, 0.3, 1.0, 2.5, 1e3])
def test_level(norm, level):
    ntk = random_ntk(5, 9, 14)
    for sgd in (qm.SGD(1.0, 2), qm.SGD(7.0, 3, momentum=0.8, weight_decay=0.2)):
        critical = qm.critical_learning_rate(ntk, sgd, norm=norm, level=level)
        edge = qm.edge_of_stability(ntk, sgd)
        at, below = (replace(sgd, learning_rate=eta) for eta in (critical, (1 - 1e-9) * edge))
        if critical == edge:  # a batch of fixed size bounds K below the edge: it jumps over level
            assert norm != "paper"
            assert 1 < qm.noise_kernel_norm(ntk, below, norm=norm) < level
        else:
            assert qm.noise_kernel_norm(ntk, at, norm=norm) == pytest.approx(level, rel=1e-7, abs=0)
        default = qm.critical_learning_rate(ntk, sgd, norm=norm)
        assert (critical < default) == (level < 1)
        assert (critical == default) == (level == 1)


def test_critical_learning_rate_ignores_the_given_one():
    ntk = random_ntk(5, 9, 14)
    found = {qm.critical_learning_rate(ntk, qm.SGD(eta, 2)) for eta in (1e-9, 0.1, 1e9)}
    assert len(found) == 1


def test_vanishing_ntk_is_always_stable():
    sgd = qm.SGD(1.0, 1)
    assert qm.edge_of_stability(np.zeros((3, 3)), sgd) == math.inf
    for method in ("paper", "finite", "exact"):
        assert qm.noise_kernel_norm(np.zeros((3, 3)), sgd, norm=method) == 0.0
        assert qm.critical_learning_rate(np.zeros((3, 3)), sgd, norm=method) == math.inf


@pytest.mark.parametrize("template", [None, qm.SGD(0.1, 1, 0.6, True, 0.1, "bernoulli")])
def test_phase_boundaries(template):
    ntk, sizes = random_ntk(11, 7, 9), [1, 3, 6, 7]
    edges = qm.phase_boundaries(ntk, sizes, template)
    plain = qm.SGD(1.0, 1) if template is None else template
    assert edges.batch_size.values.tolist() == sizes
    assert edges.norm.values.tolist() == ["paper", "finite", "exact"]
    assert edges.edge_of_stability.sel(batch_size=3) == qm.edge_of_stability(ntk, plain)
    for method, size in itertools.product(("paper", "finite", "exact"), sizes):
        expected = qm.critical_learning_rate(ntk, replace(plain, batch_size=size), norm=method)
        found = edges.critical_learning_rate.sel(norm=method, batch_size=size)
        assert float(found) == pytest.approx(expected, rel=1e-12)
    assert edges.crossing_batch_size.ndim == 0
    if template is None:
        top = np.linalg.eigvalsh(ntk)[-1]
        assert float(edges.crossing_batch_size) == pytest.approx(np.trace(ntk) / top)
    # where the tangent of K at 0 reaches 1 at the edge; K at B = 1 holds 1 - 1/D of it
    tiny = 1e-9 * qm.edge_of_stability(ntk, plain)
    slow = replace(plain, learning_rate=tiny)
    tangent = qm.noise_kernel_norm(ntk, slow, norm="paper") * 1e9 / (1 - 1 / 7)
    assert float(edges.crossing_batch_size) == pytest.approx(tangent, rel=1e-6)
    assert (edges.critical_learning_rate <= edges.edge_of_stability).all()
    by_eigenvalues = qm.phase_boundaries(np.linalg.eigvalsh(ntk), np.array(sizes), template)
    assert by_eigenvalues.norm.values.tolist() == ["paper", "finite"]
    np.testing.assert_allclose(
        by_eigenvalues.critical_learning_rate, edges.critical_learning_rate[:2], rtol=1e-10
    )


def test_noise_limits_small_batches_and_curvature_large_ones():
    # a few stiff modes above a bulk: both edges meet at tr(Theta)/lambda_max = 40
    eigenvalues = np.concatenate([[1.0], np.full(3900, 0.01)])
    edges = qm.phase_boundaries(eigenvalues, [2, 4000 // 5])
    assert float(edges.crossing_batch_size) == pytest.approx(40)
    ratio = edges.critical_learning_rate.sel(norm="paper") / edges.edge_of_stability
    assert float(ratio[0]) < 0.06
    assert float(ratio[1]) > 0.99


def test_default_norm():
    """Exact from a matrix, finite without; the paper's has no sampling scheme in it."""
    sgd = qm.SGD(1.5, 50, sampling="with_replacement")
    assert qm.noise_kernel_norm(np.eye(50), sgd, norm="paper") == 0.0
    assert qm.noise_kernel_norm(np.eye(50), sgd) > 2.8
    ntk, law = random_ntk(2, 9, 14), qm.spectra.MarchenkoPastur(2.0)
    sgd = qm.SGD(0.1, 2)
    for function in (qm.noise_kernel_norm, qm.critical_learning_rate):
        assert function(ntk, sgd) == function(ntk, sgd, norm="exact")
        lam = np.linalg.eigvalsh(ntk)
        assert function(lam, sgd) == function(lam, sgd, norm="finite")
        assert function(law, sgd, n_data=50) == function(law, sgd, norm="finite", n_data=50)
    assert qm.late_time_rate(ntk, sgd) == qm.late_time_rate(ntk, sgd, norm="exact")
    assert qm.late_time_rate(lam, sgd) == qm.late_time_rate(lam, sgd, norm="finite")
    comment = qm.phase_boundaries(ntk, [1]).norm.attrs["comment"]
    assert "whatever the sampling" in comment
    assert "lower bound" in comment


@pytest.mark.parametrize(("ntk", "sgd"), CONFIGURATIONS)
def test_default_calls_no_unstable_run_stable(ntk, sgd):
    for fraction in (0.3, 0.6, 0.9):
        at = replace(sgd, learning_rate=fraction * qm.edge_of_stability(ntk, sgd))
        unstable = enumeration.spectral_radius(ntk, at) > 1 + 1e-12
        assert (qm.noise_kernel_norm(ntk, at) > 1) == unstable


@pytest.mark.parametrize("momentum", [-0.4, -0.6, -0.9])
@pytest.mark.parametrize("split", [1e-3, 1e-8, 1e-12, 1e-15])
def test_nearly_equal_modes_at_the_edge_of_the_memory(momentum, split):
    """Nesterov below -1/3: numerator and denominator of the pair sum vanish together there."""
    for distance in (1e-3, 1e-7, 1e-10):
        sgd = qm.SGD((1 - 1 / momentum) * (1 - distance), 2, momentum, True)
        equal = qm.noise_kernel_norm(np.ones(20), sgd)
        near = np.ones(20)
        near[::2] -= split * distance
        assert qm.noise_kernel_norm(near, sgd) == pytest.approx(equal, rel=2 * split + 1e-5)
        vectors = np.linalg.eigh(random_ntk(0, 20, 30))[1]
        exact = qm.noise_kernel_norm((vectors * near) @ vectors.T, sgd)
        identity = qm.noise_kernel_norm(np.eye(20), sgd)
        # what all modes share is a multiple of the identity; pairs off the diagonal count here
        assert exact == pytest.approx(identity, rel=10 * split + 1e-15 * 1e2 / distance)
