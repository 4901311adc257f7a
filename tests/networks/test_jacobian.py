"""Jacobian and NTK of small networks against central differences of the outputs."""

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import (
    GivenJacobian,
    classes_for,
    inputs_for,
    numeric_jacobian,
    small_net,
    torch,
)


def softmax_roots(net, inputs):
    """Return symmetric roots of diag(p) - p p^T, shape (D, C, C)."""
    with torch.no_grad():
        scores = net(inputs).numpy()
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    hessians = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]
    values, vectors = np.linalg.eigh(hessians)
    return vectors * np.sqrt(np.maximum(values, 0))[:, None] @ vectors.transpose(0, 2, 1)


def weighted(roots, rows):
    """Return R_i J_i of all points."""
    n, c, _ = roots.shape
    return (roots @ rows.reshape(n, c, -1)).reshape(n * c, -1)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_products_are_those_of_the_jacobian(n_outputs, chunk_size):
    net, inputs = small_net(n_outputs), inputs_for(9)
    dense = numeric_jacobian(net, inputs)
    found = qm.networks.jacobian(net, inputs, chunk_size=chunk_size)
    assert found.shape == dense.shape
    np.testing.assert_allclose(found @ np.eye(dense.shape[1]), dense, atol=1e-8)
    np.testing.assert_allclose(found.T @ np.eye(len(dense)), dense.T, atol=1e-8)


def test_forward_and_reverse_mode_are_adjoint():
    net, inputs = small_net(3), inputs_for(9)
    product = qm.networks.jacobian(net, inputs, classes_for(9, 3), loss="cross_entropy")
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(product.shape[0]), rng.standard_normal(product.shape[1])
    assert u @ (product @ v) == pytest.approx(v @ (product.T @ u), rel=1e-12)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_ntk(n_outputs, chunk_size):
    net, inputs = small_net(n_outputs), inputs_for(9)
    dense = numeric_jacobian(net, inputs)
    found = qm.networks.ntk(net, inputs, chunk_size=chunk_size)
    np.testing.assert_allclose(found, dense @ dense.T / 9, atol=1e-8)


def test_ntk_of_groups_of_parameters(monkeypatch):
    # So little memory that every tensor is a group of its own and points come one by one.
    net, inputs = small_net(3), inputs_for(9)
    whole = qm.networks.ntk(net, inputs)
    monkeypatch.setattr("quadmodel.networks._linearisation.MEMORY", 200)
    np.testing.assert_allclose(qm.networks.ntk(net, inputs), whole, rtol=1e-12, atol=1e-14)


def test_rows_are_weighted_by_the_curvature_of_the_loss():
    net, inputs, classes = small_net(3), inputs_for(9), classes_for(9, 3)
    rows = weighted(softmax_roots(net, inputs), numeric_jacobian(net, inputs))
    # Factors of the same Hessian differ by a rotation per point, which leaves J^T J as it is.
    product = qm.networks.jacobian(net, inputs, classes, loss="cross_entropy")
    dense = product @ np.eye(product.shape[1])
    np.testing.assert_allclose(dense.T @ dense, rows.T @ rows, atol=1e-8)
    kernel = qm.networks.ntk(net, inputs, classes, loss="cross_entropy")
    np.testing.assert_allclose(kernel, dense @ dense.T / 9, atol=1e-12)


def test_a_loss_of_ones_own_is_the_same_loss():
    net, inputs, classes = small_net(3), inputs_for(9), classes_for(9, 3)

    def loss(output, target):
        return torch.logsumexp(output, 0) - output.gather(0, target[None])[0]

    own = qm.networks.ntk(net, inputs, classes, loss=loss)
    known = qm.networks.ntk(net, inputs, classes, loss="cross_entropy")
    np.testing.assert_allclose(np.linalg.eigvalsh(own), np.linalg.eigvalsh(known), atol=1e-12)


def test_parameters_are_chosen_by_name():
    net, inputs = small_net(), inputs_for(9)
    dense = numeric_jacobian(net, inputs)
    last = qm.networks.ntk(net, inputs, parameters="2.*")
    np.testing.assert_allclose(last, dense[:, -8:] @ dense[:, -8:].T / 9, atol=1e-8)
    first = qm.networks.ntk(net, inputs, parameters=lambda name: name.startswith("0."))
    np.testing.assert_allclose(first + last, dense @ dense.T / 9, atol=1e-8)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_row_norms(chunk_size):
    net, inputs = small_net(3), inputs_for(9)
    dense = numeric_jacobian(net, inputs).reshape(9, -1)
    found = qm.networks.row_norms(net, inputs, chunk_size=chunk_size)
    np.testing.assert_allclose(found, np.linalg.norm(dense, axis=1), atol=1e-8)


def test_single_precision_comes_back_in_double():
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    kernel = qm.networks.ntk(GivenJacobian(rows), torch.arange(6))
    assert kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, rows @ rows.T / 6, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    inputs, net = inputs_for(9), small_net(3)
    with pytest.raises(ValueError, match="net must be"):
        qm.networks.ntk(lambda x: x, inputs)
    with pytest.raises(ValueError, match=r"got none of 0\.weight, 0\.bias"):
        qm.networks.ntk(net, inputs, parameters="layer.*")
    with pytest.raises(ValueError, match="loss must be one of mse, cross_entropy or a function"):
        qm.networks.ntk(net, inputs, loss="hinge")
    with pytest.raises(ValueError, match="targets must have one entry per data point, 9, got 8"):
        qm.networks.ntk(net, inputs, classes_for(8, 3), loss="cross_entropy")
    with pytest.raises(ValueError, match="targets must be classes 0 to 2"):
        qm.networks.ntk(net, inputs, classes_for(9, 3) + 1, loss="cross_entropy")
    with pytest.raises(ValueError, match="targets must have the shape of net's outputs"):
        qm.networks.ntk(net, inputs, np.zeros((9, 2)))
    with pytest.raises(ValueError, match="loss must be convex"):
        qm.networks.ntk(net, inputs, inputs[:, :3], loss=lambda f, y: -((f - y) ** 2).sum())
    with pytest.raises(ValueError, match="inputs must hold finite numbers"):
        qm.networks.ntk(net, inputs / 0)


@pytest.mark.parametrize("layer", ["dropout", "batch normalisation"])
def test_networks_that_tie_data_points_are_refused(layer):
    extra = torch.nn.Dropout(0.5) if layer == "dropout" else torch.nn.BatchNorm1d(3)
    net = torch.nn.Sequential(small_net(3), extra.double())
    with pytest.raises(ValueError, match=r"call net.eval\(\)"):
        qm.networks.ntk(net, inputs_for(9))
    assert qm.networks.ntk(net.eval(), inputs_for(9)).shape == (27, 27)


class Changing(torch.nn.Module if torch else object):
    """Layers whose outputs, or inputs after use, are changed in place."""

    def __init__(self, *, late):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)
        self.late = late

    def forward(self, points):
        hidden = torch.nn.functional.relu_(self.first(points))
        outputs = self.last(hidden)
        if self.late:
            hidden *= 0  # the layer's input is gone
        return outputs


@pytest.mark.parametrize("kind", ["plain", "frozen", "half frozen", "in place", "too late", "deaf"])
@pytest.mark.parametrize("parameters", [None, "*bias", "first.weight"])
def test_kernels_by_layers_are_those_by_rows(kind, parameters, monkeypatch):
    from quadmodel.networks import _layers
    from quadmodel.networks._gradient_norms import squared_rows_by_signs
    from quadmodel.networks._linearisation import Linearisation
    from quadmodel.networks.ntk import kernel_of, norms_of

    torch.manual_seed(0)
    net = Changing(late=kind == "too late").double()
    if kind == "plain":
        net.forward = lambda points: net.last(torch.tanh(net.first(points)))
    if kind == "deaf":  # outputs that don't depend on a layer
        net.forward = lambda points: net.last(0 * torch.tanh(net.first(points)).detach() + 1)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(kind != "frozen" and (kind != "half frozen" or "last" in name))
    monkeypatch.setattr(_layers, "AT_ONCE", 5)
    inputs, classes = inputs_for(8), classes_for(8, 2)

    def at():
        return Linearisation(net, inputs, classes, loss="cross_entropy", parameters=parameters)

    def rng():
        return np.random.default_rng(0)

    assert (_layers.layers_of(at()) is None) == (kind == "too late")
    if kind == "too late":
        return
    by_layers = kernel_of(at()), norms_of(at()), squared_rows_by_signs(at(), rng())
    monkeypatch.setattr(Linearisation, "linear_layers", None)
    by_rows = kernel_of(at()), norms_of(at()), squared_rows_by_signs(at(), rng())
    for found, wanted in zip(by_layers, by_rows, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-14)
