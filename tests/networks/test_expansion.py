"""Networks as quadratic models: arrays, products and trainings that agree."""

import copy

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import classes_for, inputs_for, numeric_jacobian, small_net, torch


def targets_for(n_data, seed=3):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal((n_data, 1)))


def moved(net, direction, length):
    """Return a network moved along a direction of its parameters."""
    other, place = copy.deepcopy(net), 0
    with torch.no_grad():
        for parameter in other.parameters():
            part = direction[place : place + parameter.numel()]
            parameter += length * torch.as_tensor(part).reshape(parameter.shape)
            place += parameter.numel()
    return other


def test_arrays_are_the_derivatives():
    net, inputs, targets = small_net(), inputs_for(9), targets_for(9)
    model = qm.networks.quadratic_model(net, inputs, targets)
    with torch.no_grad():
        residual = (net(inputs) - targets).numpy()[:, 0]
    np.testing.assert_allclose(model.residual, residual, atol=1e-12)
    np.testing.assert_allclose(model.jacobian, numeric_jacobian(net, inputs), atol=1e-8)
    direction = np.random.default_rng(0).standard_normal(model.n_params)
    step = 1e-4
    ahead, behind = (numeric_jacobian(moved(net, direction, h), inputs) for h in (step, -step))
    np.testing.assert_allclose(
        model.curvature @ direction, (ahead - behind) / (2 * step), atol=1e-4
    )
    # Third order is what is left, an eighth of it at half the length.
    left = []
    for length in (0.04, 0.02):
        with torch.no_grad():
            there = (moved(net, direction, length)(inputs) - targets).numpy()[:, 0]
        left.append(np.abs(there - model.residual_at(length * direction)).max())
    assert left[1] == pytest.approx(left[0] / 8, rel=0.2)


def test_the_expansion_trains_as_its_arrays_do():
    net, inputs, targets = small_net(), inputs_for(9), targets_for(9)
    model = qm.networks.quadratic_model(net, inputs, targets)
    sgd = qm.SGD(0.2, 3, momentum=0.5)
    found = qm.networks.side_by_side(
        net, inputs, targets, sgd, 40, seed=4, record_every=10, theory=False
    )
    names = ("loss", "ntk_trace", "ntk_largest_eigenvalue", "noise_kernel_norm_exact")
    for trained, arrays in (
        ("quadratic", model),
        ("linear", qm.QuadraticModel(model.residual, model.jacobian)),
    ):
        wanted = qm.simulate(arrays, sgd, 40, seed=4, record_every=10, observables=names)
        for name in names:
            np.testing.assert_allclose(
                found[name].sel(trained=trained), wanted[name][0], rtol=1e-7, err_msg=name
            )


def test_network_and_expansion_part():
    net, inputs, targets = small_net(), inputs_for(9), targets_for(9)
    other = copy.deepcopy(net)
    sgd = qm.SGD(0.4, 3)
    found = qm.networks.side_by_side(net, inputs, targets, sgd, 400, record_every=20)
    tracked = qm.networks.track(other, inputs, targets, sgd, 400, probe=qm.networks.Probe(every=20))
    np.testing.assert_allclose(found.loss.sel(trained="network"), tracked.loss[0], rtol=1e-9)
    parted = found.parting_step.to_series()
    assert parted["network"] == -1
    assert 0 < parted["linear"] <= parted["quadratic"] or parted["quadratic"] == -1
    # The theory begins at the network's own loss, NTK and K.
    start = found.sel(trained="network").isel(step=0)
    assert found.mean_field_loss[0] == pytest.approx(float(start.loss), rel=1e-6)
    assert found.mean_field_ntk_trace[0] == pytest.approx(float(start.ntk_trace), rel=1e-6)
    assert found.attrs["curvature_strength"] > 0


def test_other_losses_by_products():
    from quadmodel.networks._expansion import ExpandedLearner
    from quadmodel.networks._linearisation import Linearisation

    net, inputs, classes = small_net(3), inputs_for(9), classes_for(9, 3)
    at = Linearisation(net, inputs, classes, loss="cross_entropy")
    learner = ExpandedLearner(at, 2)
    with torch.no_grad():
        for tensor in learner.tensors:
            tensor += 0.1 * torch.randn(tensor.shape, generator=torch.manual_seed(1)).double()
    points = torch.tensor([1, 4, 4])
    value, gradient = learner.gradient(points, 1 / 3)
    # The gradient is the derivative of the value along each parameter.
    step = 1e-6
    for tensor, slope in zip(learner.tensors, gradient, strict=True):
        flat = tensor.view(-1)
        flat[0] += step
        up = learner.gradient(points, 1 / 3)[0]
        flat[0] -= 2 * step
        down = learner.gradient(points, 1 / 3)[0]
        flat[0] += step
        assert slope.flatten()[0] == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-9)
    assert value > 0
    found = qm.networks.side_by_side(
        net, inputs, classes, qm.SGD(0.5, 3), 10, loss="cross_entropy", record_every=10
    )
    first = found.isel(step=0)
    np.testing.assert_allclose(first.loss, first.loss[0])
    np.testing.assert_allclose(first.noise_kernel_norm_exact, first.noise_kernel_norm_exact[0])
    assert "mean_field_loss" not in found


def test_what_is_refused():
    with pytest.raises(ValueError, match="net must have one output per data point"):
        qm.networks.quadratic_model(small_net(3), inputs_for(9), np.zeros((9, 3)))
    with pytest.raises(ValueError, match="tolerance must be"):
        qm.networks.side_by_side(
            small_net(), inputs_for(9), targets_for(9), qm.SGD(0.1, 2), 5, tolerance=0
        )
