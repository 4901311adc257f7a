"""Minibatch SGD on a network, step by step."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from quadmodel._util.checks import IntArray
from quadmodel.batches import draw_batch
from quadmodel.networks._losses import Loss
from quadmodel.networks._torch import torch
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD

BATCHES = ("independent", "epochs")
# A run has diverged when the loss of a batch passes this multiple of the initial mean loss.
DIVERGENCE_LIMIT = 1e6


class Batches:
    """Batches by number of the step: independent ones, or shuffled epochs."""

    def __init__(self, kind: str, n_data: int, sgd: SGD, seed: int) -> None:
        """Allocate what drawing writes to."""
        self.kind, self.n_data, self.size, self.seed = kind, n_data, sgd.batch_size, seed
        self.scheme = SAMPLING_SCHEMES.index(sgd.sampling)
        self.order, self.swaps = np.arange(n_data), np.empty(n_data, np.int64)
        self.batch = np.empty(n_data, np.int64)
        self.epoch = -1

    def at(self, step: int) -> tuple[IntArray, float]:
        """Return a step's data points, and the weight of each in the mean loss.

        An epoch's last batch may be smaller, and is a mean over its own points, as in PyTorch.
        """
        if self.kind == "epochs":
            epoch, place = divmod(step, math.ceil(self.n_data / self.size))
            if epoch != self.epoch:
                key = np.array([self.seed, epoch], dtype=np.uint64)
                rng = np.random.Generator(np.random.Philox(key=key))
                self.order, self.epoch = rng.permutation(self.n_data), epoch
            points = self.order[place * self.size : (place + 1) * self.size]
            return points, 1 / len(points)
        length = draw_batch(
            np.uint64(self.seed),
            0,
            0,
            step,
            self.scheme,
            self.n_data,
            self.size,
            self.order,
            self.swaps,
            self.batch,
        )
        return self.batch[:length].copy(), 1 / self.size


class Learner(Protocol):
    """What is trained: tensors of parameters, and the gradient of a batch's loss."""

    tensors: list[Any]

    def gradient(self, points: Any, weight: float) -> tuple[float, list[Any]]:
        """Return `weight` times the summed loss of some points, and its gradient."""


class NetworkLearner:
    """A network; its own parameters are what is trained."""

    def __init__(self, net: Any, inputs: Any, targets: Any, loss: Loss, names: list[str]) -> None:
        """Keep the data; `names` are the parameters that are trained."""
        self.net, self.inputs, self.targets, self.loss = net, inputs, targets, loss
        named = dict(net.named_parameters())
        self.tensors = [named[name] for name in names]

    def gradient(self, points: Any, weight: float) -> tuple[float, list[Any]]:
        """Return `weight` times the summed loss of some points, and its gradient."""
        with torch.enable_grad():
            outputs = self.net(self.inputs[points])
            loss = weight * self.loss.value(outputs, self.targets[points]).sum()
            gradients = torch.autograd.grad(loss, self.tensors)
        return float(loss.detach()), list(gradients)


class Descent:
    """A learner under SGD: everything that the next step depends on.

    One step, with v = theta - theta_before: v' = mu v - eta (g + rho phi), theta' = theta + v',
    where the gradient g is taken at phi = theta, or theta + mu v for Nesterov.
    """

    def __init__(self, learner: Learner, sgd: SGD, batches: Batches, limit: float) -> None:
        """Start at rest; batch losses beyond `limit` are divergence."""
        self.learner, self.sgd, self.batches, self.limit = learner, sgd, batches, limit
        self.learning_rate = sgd.learning_rate
        self.velocity = [torch.zeros_like(tensor) for tensor in learner.tensors]
        self.step, self.diverged_at, self.renewed_at = 0, -1, 0
        self.whole = True  # not in the middle of a change

    def advance(self, n_steps: int) -> None:
        """Take steps, up to one after which the loss or the parameters are out of bounds."""
        for _ in range(n_steps):
            if self.diverged_at >= 0:
                return
            loss = self._step(*self.batches.at(self.step))
            self.step += 1
            if not loss < self.limit:  # NaN too
                self.diverged_at = self.step
            self.whole = True
        if not all(torch.isfinite(tensor).all() for tensor in self.learner.tensors):
            self.diverged_at = self.step

    def _step(self, points: IntArray, weight: float) -> float:
        tensors, mu, sgd = self.learner.tensors, self.sgd.momentum, self.sgd
        ahead = mu if sgd.nesterov else 0.0
        with torch.no_grad():
            if ahead:
                self.whole = False
                for tensor, v in zip(tensors, self.velocity, strict=True):
                    tensor.add_(v, alpha=ahead)
            loss, gradients = 0.0, [torch.zeros_like(tensor) for tensor in tensors]
            if len(points):
                loss, gradients = self.learner.gradient(torch.from_numpy(points), weight)
            self.whole = False
            for tensor, v, g in zip(tensors, self.velocity, gradients, strict=True):
                if sgd.weight_decay:
                    g.add_(tensor, alpha=sgd.weight_decay)
                if ahead:
                    tensor.sub_(v, alpha=ahead)
                if mu:
                    v.mul_(mu).sub_(g, alpha=self.learning_rate)
                    tensor.add_(v)
                else:
                    tensor.sub_(g, alpha=self.learning_rate)
        return loss
