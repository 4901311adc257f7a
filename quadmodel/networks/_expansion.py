"""A network expanded around some parameters, to first or second order, by products alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks import _linearisation
from quadmodel.networks._linearisation import Linearisation, Tensors
from quadmodel.networks._torch import torch


class ExpandedLearner:
    r"""The expansion :math:`f(\theta_0)+J\delta+\frac12Q(\delta,\delta)`, with the network's loss.

    `tensors` are the parameters themselves, :math:`\theta_0+\delta`. Nothing of size P D is held:
    outputs are nested forward derivatives, gradients a derivative of a gradient.
    """

    def __init__(self, at: Linearisation, order: int) -> None:
        """Begin at the network's present parameters, which are copied."""
        self.at, self.order = at, order
        self.origin = {name: value.clone() for name, value in at.params.items()}
        self.tensors = [value.clone() for value in self.origin.values()]

    def displacement(self) -> Tensors:
        """Return how far the parameters are from the origin."""
        moved = zip(self.origin.items(), self.tensors, strict=True)
        return {name: tensor - start for (name, start), tensor in moved}

    def _function(self, points: Any) -> Any:
        at = self.at

        def outputs(params: Tensors) -> Any:
            return torch.func.functional_call(at.net, {**at.fixed, **params}, (at.inputs[points],))

        return outputs

    def outputs(self, points: Any) -> Any:
        """Return the expanded outputs of some points."""
        function, delta = self._function(points), self.displacement()
        if self.order == 1:
            value, first = torch.func.jvp(function, (self.origin,), (delta,))
            return value + first

        def derivative(params: Tensors) -> Any:
            return torch.func.jvp(function, (params,), (delta,))

        (value, first), (_, second) = torch.func.jvp(derivative, (self.origin,), (delta,))
        return value + first + 0.5 * second

    def gradient(self, points: Any, weight: float) -> tuple[float, list[Any]]:
        """Return `weight` times the summed loss of some points, and its gradient."""
        at, function, delta = self.at, self._function(points), self.displacement()
        outputs = self.outputs(points)

        def loss(outputs: Any) -> Any:
            return weight * at.loss.value(outputs, at.targets[points]).sum()

        slope, value = torch.func.grad_and_value(loss)(outputs)

        def weighted(params: Tensors) -> Any:
            return (function(params) * slope).sum()

        if self.order == 1:
            total = torch.func.grad(weighted)(self.origin)
        else:
            first, second = torch.func.jvp(torch.func.grad(weighted), (self.origin,), (delta,))
            total = {name: first[name] + second[name] for name in first}
        return float(value), [total[name] for name in self.origin]

    def rows(self, part: slice) -> tuple[Any, Any]:
        """Return the rows of J and of Q delta, (points C, P), of some points."""
        at, delta = self.at, self.displacement()

        def of_point(point: Any) -> Any:
            def rows(params: Tensors) -> Tensors:
                def outputs(params: Tensors) -> Any:
                    return torch.func.functional_call(
                        at.net, {**at.fixed, **params}, (point[None],)
                    ).reshape(-1)

                found: Tensors = torch.func.jacrev(outputs)(params)
                return found

            return torch.func.jvp(rows, (self.origin,), (delta,))

        with torch.no_grad():
            found = torch.func.vmap(of_point)(at.inputs[part])
        first, second = (
            torch.cat([each[name].flatten(2) for name in self.origin], 2).flatten(0, 1)
            for each in found
        )
        return first, second

    def every_row(self) -> tuple[FloatArray, FloatArray]:
        """Return the rows of J and of Q delta of all points, in double precision."""
        at = self.at
        size = max(1, _linearisation.MEMORY // (4 * at.n_outputs * at.n_params * at.dtype.itemsize))
        parts = [self.rows(slice(k, k + size)) for k in range(0, at.n_data, size)]
        first, second = (
            torch.cat(each).to(torch.float64).numpy() for each in zip(*parts, strict=True)
        )
        return np.asarray(first), np.asarray(second)
