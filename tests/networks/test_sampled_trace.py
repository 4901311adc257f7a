"""The trace of the NTK from few points per record: unbiased, with honest standard errors."""

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import GivenJacobian, classes_for, inputs_for, small_net, torch

# Assertions on a random estimate: each holds but for 1e-8 (5.7 standard errors), below 1e-6 in all.
SIGMAS = 5.7
DRAWS = 300


def sampled(at, sample, seed=0, population=None, batch_size=4):
    from quadmodel.networks._sampled_trace import SampledTrace

    return SampledTrace(at, population or at.n_data, batch_size, sample, seed)


def linearisation(*args, **options):
    from quadmodel.networks._linearisation import Linearisation

    return Linearisation(*args, **options)


def growing_rows(n_data=400):
    """Return row norms, which differ from each other, at three steps."""
    rng = np.random.default_rng(0)
    norms = [np.exp(0.5 * rng.standard_normal(n_data))]
    for _ in range(2):
        norms.append(1.4 * norms[-1] * np.exp(0.15 * rng.standard_normal(n_data)))
    return norms


@pytest.mark.statistical
def test_records_of_moving_rows():
    norms = growing_rows()
    nets = [linearisation(GivenJacobian(row[:, None]), torch.arange(400)) for row in norms]
    found = []
    for seed in range(DRAWS):
        trace = sampled(nets[0], None, seed)
        trace.sample = 400
        found.append([trace.at_step(0)])
        trace.sample = 40
        for step in (1, 2):
            trace.at = nets[step]
            found[-1].append(trace.at_step(step))
    found = np.array(found)
    assert (found[:, 0, 1] == 0).all()
    for step, row in enumerate(norms):
        exact = (row**2).mean()
        assert found[0, 0, 0] == pytest.approx((norms[0] ** 2).mean())
        if step:
            values, errors = found[:, step].T
            scatter = values.std(ddof=1)
            assert abs(values.mean() - exact) < SIGMAS * scatter / DRAWS**0.5
            # Within what 300 draws allow; a negative control, 10 % off, is found out.
            assert 0.75 < (errors**2).mean() ** 0.5 / scatter < 1.35
            assert abs(values.mean() - 1.1 * exact) > SIGMAS * scatter / DRAWS**0.5
            # Points taken all alike would leave more than twice the error.
            alike = (row**2).std() / 40**0.5
            assert scatter < 0.5 * alike


@pytest.mark.statistical
def test_first_records_and_random_signs():
    net, inputs, classes = small_net(3), inputs_for(60), classes_for(60, 3)
    at = linearisation(net, inputs, classes, loss="cross_entropy")
    exact = (qm.networks.row_norms(net, inputs, classes, loss="cross_entropy") ** 2).mean()
    found = np.array([sampled(at, 15, seed).at_step(0) for seed in range(DRAWS)])
    scatter = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - exact) < SIGMAS * scatter / DRAWS**0.5
    assert abs(found[:, 0].mean() - 1.2 * exact) > SIGMAS * scatter / DRAWS**0.5
    assert 0.75 < (found[:, 1] ** 2).mean() ** 0.5 / scatter < 1.5


def test_how_many_points():
    at = linearisation(GivenJacobian(growing_rows()[0][:, None]), torch.arange(400))
    whole = (growing_rows()[0] ** 2).mean()
    trace = sampled(at, None, batch_size=16)
    first = trace.at_step(0)
    assert first.standard_error > 0
    assert trace.at_step(0) is first
    assert trace.at_step(50) != first  # other points
    # One per 24 of 16 times 600 gradients are all there are.
    assert trace.at_step(650) == pytest.approx((whole, 0.0))
    # A probe that is a sample itself is not exact.
    assert sampled(at, 400, population=500).at_step(0).standard_error > 0
    assert sampled(linearisation(GivenJacobian(np.zeros((9, 1))), torch.arange(9)), 4).at_step(
        0
    ) == (0.0, 0.0)
    with pytest.raises(ValueError, match="sample must be"):
        qm.networks.Probe(sample=1)


def test_rules_see_all_points():
    inputs, targets = inputs_for(60), torch.zeros(60, 1).double()
    name = "noise_kernel_norm_trace"
    errors = []
    for rate in (qm.HoldK(0.2, norm="trace", every=5), 0.1):
        probe = qm.networks.Probe(every=5, observables=(name,))
        run = qm.networks.track(small_net(), inputs, targets, qm.SGD(rate, 3), 10, probe=probe)
        errors.append(run[f"{name}_standard_error"].values)
    assert (errors[0] == 0).all()
    assert (errors[1] > 0).all()
