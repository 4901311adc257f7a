"""Traces, densities and batch sharpness beside dense linear algebra."""

import itertools

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import GivenJacobian, inputs_for, numeric_jacobian, small_net, torch

# Each of some ten assertions on random estimates holds but for 1e-8: 5.7 standard errors.
SIGMAS = 5.7


def power_law_net(n_data=60, n_params=120, decay=0.8):
    """Return a linear network with a falling spectrum, and its rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n_data, n_params)) * np.arange(1.0, n_params + 1) ** -decay
    return GivenJacobian(rows), rows


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["xtrace", "hutchinson"])
def test_trace(method):
    net, rows = power_law_net()
    exact = (rows**2).sum() / 60
    found = np.array(
        [
            qm.networks.trace(net, torch.arange(60), method=method, products=32, seed=seed)
            for seed in range(60)
        ]
    )
    mean, error = found[:, 0].mean(), found[:, 0].std(ddof=1) / 60**0.5
    assert abs(mean - exact) < SIGMAS * error
    # Standard errors are those of the values: within a factor that 60 draws allow.
    assert 0.6 < found[:, 1].mean() / found[:, 0].std(ddof=1) < 1.6
    assert abs(mean - 1.1 * exact) > SIGMAS * error


@pytest.mark.statistical
def test_xtrace_is_the_better_one_where_few_eigenvalues_matter():
    net, _ = power_law_net()
    x, hutchinson = (
        qm.networks.trace(net, torch.arange(60), method=method, products=40)
        for method in ("xtrace", "hutchinson")
    )
    assert x.standard_error < 0.2 * hutchinson.standard_error


def test_trace_of_a_matrix_of_low_rank():
    rows = np.random.default_rng(0).standard_normal((30, 40))
    rows[5:] = 0
    found = qm.networks.trace(GivenJacobian(rows), torch.arange(30), products=20)
    assert found.value == pytest.approx((rows**2).sum() / 30, rel=1e-10)


@pytest.mark.statistical
def test_traces_of_hessian_and_gauss_newton():
    net, inputs = small_net(), inputs_for(9)
    targets = torch.zeros(9, 1).double()
    dense = qm.networks.hessian(net, inputs, targets) @ np.eye(50)
    found = qm.networks.trace(net, inputs, targets, of="hessian", products=60)
    assert abs(found.value - np.trace(dense)) < SIGMAS * found.standard_error
    found = qm.networks.trace(net, inputs, method="hutchinson", products=200)
    exact = (numeric_jacobian(net, inputs) ** 2).sum() / 9
    assert abs(found.value - exact) < SIGMAS * found.standard_error


@pytest.mark.statistical
def test_density():
    net, inputs = small_net(), inputs_for(9)
    targets = torch.zeros(9, 1).double()
    values = np.linalg.eigvalsh(qm.networks.hessian(net, inputs, targets) @ np.eye(50))
    width = 0.05 * values[-1]
    found = qm.networks.spectral_density(
        net, inputs, targets, of="hessian", width=width, probes=200, points=40
    )
    x = found.eigenvalue.values[:, None]
    wanted = np.exp(-0.5 * ((x - values) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    away = np.abs(found.density.values - wanted)
    # Normalised weights are biased by a share of order 2/P.
    assert (away < SIGMAS * found.standard_error.values + 0.02 * wanted.max()).all()
    assert float(found.density.integrate("eigenvalue")) == pytest.approx(1, abs=1e-3)
    shifted = np.roll(wanted, 4)
    assert (np.abs(found.density.values - shifted) > 0.1 * wanted.max()).any()


def every_batch(net, inputs, targets, size):
    """Return gradient and Gauss-Newton-plus-rest Hessian of all batches, dense."""
    for chosen in itertools.combinations(range(len(inputs)), size):
        part = list(chosen)
        parameters = list(net.parameters())
        loss = 0.5 * ((net(inputs[part]) - targets[part]) ** 2).sum() / size
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in first])
        rows = [
            torch.cat([h.flatten() for h in torch.autograd.grad(g, parameters, retain_graph=True)])
            for g in flat
        ]
        yield flat.detach().numpy(), torch.stack(rows).numpy()


@pytest.mark.statistical
def test_batch_sharpness_and_interaction():
    net, inputs = small_net(width=3), inputs_for(6)
    targets = torch.as_tensor(np.random.default_rng(3).standard_normal((6, 1)))
    sgd = qm.SGD(0.1, 2)
    batches = list(every_batch(net, inputs, targets, 2))
    sharp = np.mean([g @ h @ g / (g @ g) for g, h in batches])
    gradient, hessian = next(every_batch(net, inputs, targets, 6))
    noise = np.mean([g @ hessian @ g for g, _ in batches]) / (gradient @ gradient)
    found = qm.networks.batch_sharpness(net, inputs, targets, sgd, batches=200)
    assert 0 < found.standard_error < 0.1 * found.value
    assert abs(found.value - sharp) < SIGMAS * found.standard_error
    found = qm.networks.gradient_noise_interaction(net, inputs, targets, sgd, batches=200)
    assert 0 < found.standard_error < 0.1 * found.value
    assert abs(found.value - noise) < SIGMAS * found.standard_error
    # Full batches draw nothing.
    full = qm.networks.batch_sharpness(net, inputs, targets, qm.SGD(0.1, 6), batches=2)
    assert full.value == pytest.approx(gradient @ hessian @ gradient / (gradient @ gradient))


def test_what_is_out_of_range():
    net, inputs = small_net(), inputs_for(9)
    with pytest.raises(ValueError, match="products must be below twice"):
        qm.networks.trace(net, inputs)
    with pytest.raises(ValueError, match="method must be one of xtrace, hutchinson"):
        qm.networks.trace(net, inputs, method="exact")
    with pytest.raises(ValueError, match="width must be"):
        qm.networks.spectral_density(net, inputs, width=-1.0)
    with pytest.raises(ValueError, match="targets must be given"):
        qm.networks.batch_sharpness(net, inputs, None, qm.SGD(0.1, 2))
    with pytest.raises(ValueError, match="batches must be"):
        qm.networks.batch_sharpness(net, inputs, np.zeros((9, 1)), qm.SGD(0.1, 2), batches=1)
