"""Curvature along the gradients of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_integer
from quadmodel.batches import batch_indices
from quadmodel.networks._estimate import Estimate, mean_of
from quadmodel.networks._linearisation import Linearisation, need_targets
from quadmodel.optimizer import SGD


def batch_sharpness(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    *,
    batches: int = 64,
    loss: Any = "mse",
    parameters: Any = None,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Return the mean curvature of a batch's loss along its own gradient.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points, those that batches are drawn from.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    sgd : SGD
        Batch size and sampling scheme; nothing else of it matters.
    batches : int, optional
        Batches that are drawn, at least 2.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    seed : int, optional
        Of the batches, which are those of :func:`quadmodel.simulate` at this seed.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    Estimate
        In units of 1 / learning rate.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit, or a batch's gradient vanishes.
    ImportError
        Without PyTorch.

    Notes
    -----
    :math:`E_B[g_B^\top H_B g_B/|g_B|^2]` with gradient and Hessian of the batch's mean loss,
    without weight decay: the mean over independent batches, unbiased. Reported to stay near 2 over
    the learning rate in training.

    References
    ----------
    .. [1] A. Andreyev, P. Beneventano, arXiv:2412.20553.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> points, sgd = 2 * torch.eye(2), qm.SGD(0.1, 1)
    >>> round(qm.networks.batch_sharpness(net, points, torch.ones(2, 1), sgd).value, 3)
    4.0
    """
    at, drawn = _at_batches(net, inputs, targets, sgd, batches, seed, loss, parameters, chunk_size)
    found = []
    for points in drawn:
        # A Bernoulli batch's loss is its sum over the expected number of points.
        share = len(points) / sgd.batch_size
        gradient = at.gradient(points)
        square = float(gradient @ gradient)
        if square == 0:
            raise InputError("net must have batch gradients that differ from 0, got one that is 0")
        along = gradient @ at.hessian_product(gradient[None], points)[0]
        found.append(share * float(along) / square)
    return mean_of(np.array(found))


def gradient_noise_interaction(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    *,
    batches: int = 64,
    loss: Any = "mse",
    parameters: Any = None,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Return the mean curvature of the loss along batch gradients, over the squared gradient.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points, those that batches are drawn from.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    sgd : SGD
        Batch size and sampling scheme; nothing else of it matters.
    batches : int, optional
        Batches that are drawn, at least 2.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    seed : int, optional
        Of the batches, which are those of :func:`quadmodel.simulate` at this seed.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    Estimate
        In units of 1 / learning rate; about 2 over the learning rate wherever the mean loss of
        plain SGD is stationary.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit, or the gradient vanishes.
    ImportError
        Without PyTorch.

    Notes
    -----
    :math:`E_B[g_B^\top Hg_B]/|\nabla L|^2` with the Hessian of the whole mean loss, without weight
    decay: a step changes the loss by
    :math:`-\eta|\nabla L|^2 + \tfrac{\eta^2}2 E_B[g_B^\top Hg_B]` to second order. The numerator is
    a mean over independent batches, unbiased; the denominator is exact.

    References
    ----------
    .. [1] A. Andreyev, P. Beneventano, arXiv:2412.20553, section on gradient-noise interaction.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> points, sgd = 2 * torch.eye(2), qm.SGD(0.1, 2)
    >>> round(qm.networks.gradient_noise_interaction(net, points, torch.ones(2, 1), sgd).value, 3)
    2.0
    """
    at, drawn = _at_batches(net, inputs, targets, sgd, batches, seed, loss, parameters, chunk_size)
    whole = at.gradient()
    square = float(whole @ whole)
    if square == 0:
        raise InputError("net must have a gradient that differs from 0, got one that is 0")
    along: list[float] = []
    pending: list[FloatArray] = []
    for points in drawn:
        pending.append(len(points) / sgd.batch_size * at.gradient(points))
        if len(pending) == at.block:
            along += _along(at, pending)
            pending = []
    along += _along(at, pending)
    return mean_of(np.array(along) / square)


def _along(at: Linearisation, gradients: list[FloatArray]) -> list[float]:
    if not gradients:
        return []
    each = np.array(gradients)
    curved: list[float] = np.einsum("kp,kp->k", each, at.hessian_product(each)).tolist()
    return curved


def _at_batches(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    batches: int,
    seed: int,
    loss: Any,
    parameters: Any,
    chunk_size: int | None,
) -> tuple[Linearisation, Iterator[Any]]:
    """Check everything; return the network and its batches, empty ones left out."""
    batches = as_integer("batches", batches, low=2, high=2**31)
    as_integer("seed", seed, low=0, high=2**64 - 1)
    need_targets(targets)
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    sgd.check_batch_size(at.n_data)
    drawn = (
        batch_indices(at.n_data, sgd.batch_size, seed=seed, step=k, sampling=sgd.sampling)
        for k in range(batches)
    )
    return at, (points for points in drawn if len(points))
