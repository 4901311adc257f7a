"""Gauss-Newton matrix, Hessian and their largest eigenvalues beside dense ones."""

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import classes_for, inputs_for, numeric_jacobian, small_net, torch


def numeric_hessian(net, inputs, classes, step=1e-5):
    """Return the Hessian of the mean cross-entropy by central differences of its gradient."""

    def gradient():
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), classes).backward()
        return np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])

    columns = []
    for parameter in net.parameters():
        flat = parameter.detach().view(-1)
        for k in range(len(flat)):
            kept = float(flat[k])
            flat[k] = kept + step
            up = gradient()
            flat[k] = kept - step
            columns.append((up - gradient()) / (2 * step))
            flat[k] = kept
    return np.array(columns)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gauss_newton(chunk_size):
    net, inputs = small_net(3), inputs_for(9)
    dense = numeric_jacobian(net, inputs)
    found = qm.networks.gauss_newton(net, inputs, chunk_size=chunk_size)
    np.testing.assert_allclose(found @ np.eye(dense.shape[1]), dense.T @ dense / 9, atol=1e-8)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_hessian(chunk_size):
    net, inputs, classes = small_net(3), inputs_for(9), classes_for(9, 3)
    dense = numeric_hessian(net, inputs, classes)
    found = qm.networks.hessian(net, inputs, classes, loss="cross_entropy", chunk_size=chunk_size)
    np.testing.assert_allclose(found @ np.eye(len(dense)), dense, atol=1e-7)
    np.testing.assert_allclose(found @ np.ones(len(dense)), dense.sum(1), atol=1e-7)


def test_largest_eigenvalues():
    net, inputs, classes = small_net(3), inputs_for(9), classes_for(9, 3)
    hessian = np.linalg.eigvalsh(numeric_hessian(net, inputs, classes))[-1]
    options = {"loss": "cross_entropy", "tolerance": 1e-9}
    found = qm.networks.largest_eigenvalue(net, inputs, classes, of="hessian", **options)
    assert found.value == pytest.approx(hessian, rel=1e-6)
    kernel = qm.networks.ntk(net, inputs, classes, loss="cross_entropy")
    found = qm.networks.largest_eigenvalue(net, inputs, classes, **options)
    assert found.value == pytest.approx(np.linalg.eigvalsh(kernel)[-1], rel=1e-8)
    assert found.standard_error < 1e-4 * found.value


def test_the_hessian_needs_targets():
    with pytest.raises(ValueError, match="targets must be given"):
        qm.networks.hessian(small_net(), inputs_for(9), None)
    with pytest.raises(ValueError, match="of must be one of gauss_newton, hessian"):
        qm.networks.largest_eigenvalue(small_net(), inputs_for(9), of="fisher")
