"""Networks with convolutions and attention: their Jacobian, NTK and K beside plain autograd."""

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import torch


def plain_jacobian(net, inputs):
    """Return the Jacobian (D C, P) by one backward pass per output."""
    rows = []
    parameters = list(net.parameters())
    for point in inputs:
        for output in net(point[None]).flatten():
            gradients = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]).numpy())
    return np.array(rows)


def image_net(kind):
    """Return a network of double precision, six points of its inputs, and its outputs."""
    from quadmodel.networks import models

    torch.manual_seed(0)
    if kind == "resnet":
        net, shape, outputs = models.resnet18(2, channels=1, width=8), (6, 1, 8, 8), 2
    elif kind == "vit":
        net = models.vision_transformer(3, image_size=8, patch=4, width=8, depth=1)
        shape, outputs = (6, 1, 8, 8), 3
    elif kind == "convolution":
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3), torch.nn.GELU(), torch.nn.AvgPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(27, 2),
        )  # fmt: skip
        shape, outputs = (6, 1, 8, 8), 2
    else:
        net = models.character_model(7, context=5, width=8, depth=1)
        return net.double(), torch.randint(7, (6, 5)), 7
    return net.double(), torch.randn(shape).double(), outputs


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["convolution", "resnet", "vit", "characters"])
def test_jacobian_ntk_and_norm(kind):
    net, inputs, outputs = image_net(kind)
    dense = plain_jacobian(net, inputs)
    product = qm.networks.jacobian(net, inputs)
    some = np.random.default_rng(0).standard_normal((dense.shape[1], 2))
    scale = np.abs(dense @ some).max()
    np.testing.assert_allclose(product @ some, dense @ some, atol=1e-8 * scale)
    others = np.random.default_rng(1).standard_normal((len(dense), 2))
    np.testing.assert_allclose(product.T @ others, dense.T @ others, atol=1e-8 * scale)
    kernel = qm.networks.ntk(net, inputs)
    np.testing.assert_allclose(kernel, dense @ dense.T / 6, atol=1e-8 * np.abs(kernel).max())
    classes = torch.arange(6) % outputs
    sgd = qm.SGD(0.3 / np.linalg.eigvalsh(kernel)[-1], 2)
    for loss in ("mse", "cross_entropy"):
        targets = classes if loss == "cross_entropy" else None
        exact = qm.networks.noise_kernel_norm(net, inputs, targets, sgd, loss=loss)
        finite = qm.networks.noise_kernel_norm(net, inputs, targets, sgd, loss=loss, norm="finite")
        assert 0 < finite.value <= exact.value * (1 + 1e-9)
    if kind in ("convolution", "vit"):  # products of the other two take seconds
        exact = qm.networks.noise_kernel_norm(net, inputs, None, sgd)
        free = qm.networks.noise_kernel_norm(
            net, inputs, None, sgd, method="matrix_free", relative_error=0.05
        )
        assert abs(free.value - exact.value) < 5.7 * free.standard_error


@pytest.mark.parametrize("kind", ["resnet", "vit", "characters"])
def test_data_points_are_treated_one_by_one(kind):
    net, inputs, _ = image_net(kind)
    with torch.no_grad():
        every = net(inputs)
        single = torch.cat([net(point[None]) for point in inputs])
    np.testing.assert_allclose(every, single, atol=1e-12)


@pytest.mark.slow
def test_training_and_layers_of_their_own():
    net, inputs, outputs = image_net("vit")
    classes = torch.arange(6) % outputs
    probe = qm.networks.Probe(every=20)
    found = qm.networks.track(
        net, inputs, classes, qm.SGD(0.1, 2), 40, loss="cross_entropy", probe=probe
    )
    assert found.loss[0, -1] < found.loss[0, 0]
    assert np.isfinite(found.noise_kernel_norm_exact).all()
    sgd = qm.SGD(0.01, 2)
    layers = [
        qm.networks.noise_kernel_norm(net, inputs, None, sgd, parameters=f"{part}*").value
        for part in ("embedding", "layers.0", "scores")
    ]
    whole = qm.networks.noise_kernel_norm(net, inputs, None, sgd).value
    assert 0 < max(layers) < whole


def test_sizes_that_do_not_fit():
    from quadmodel.networks import models

    with pytest.raises(ValueError, match="width // heads must be"):
        models.character_model(7, width=9, heads=2)
    with pytest.raises(ValueError, match="activation must be one of"):
        models.fully_connected(3, 1, activation="sine")
    with pytest.raises(ValueError, match="width must be an integer >= 8"):
        models.resnet18(2, width=4)
    assert len(models.fully_connected(3, 1, depth=3)) == 8
