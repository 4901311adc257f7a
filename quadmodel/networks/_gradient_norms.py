"""Norms of single points' gradients, without those gradients where all layers are linear."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel.networks._layers import AT_ONCE, once_per_point, slopes_of, watched
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._torch import torch


def squared_rows_by_signs(
    at: Linearisation, rng: np.random.Generator, points: IntArray | None = None
) -> FloatArray:
    """Return unbiased estimates of squared row norms, exact for one output each.

    That is the squared gradient of a point's outputs summed with random signs; of all points, or
    of those with the numbers `points`.
    """
    points = np.arange(at.n_data) if points is None else points
    signs = np.ones((len(points), at.n_outputs))
    if at.n_outputs > 1:
        signs -= 2.0 * (rng.random(signs.shape) < 0.5)
    size = max(1, at.block // 2) if at.linear_layers is None else AT_ONCE
    found = []
    for k in range(0, len(points), size):
        place = torch.from_numpy(points[k : k + size])
        inputs = at.inputs.index_select(0, place)
        targets = None if at.targets is None else at.targets.index_select(0, place)
        rows = torch.from_numpy(signs[k : k + size]).to(at.dtype)
        squares = None
        if at.linear_layers is not None:
            squares = _of_layers(at, at.linear_layers, inputs, targets, rows)
        if squares is None:
            squares = _of_gradients(at, inputs, targets, rows)
        found.append(np.asarray(squares.to(torch.float64).numpy()))
    return np.concatenate(found)


def _of_layers(
    at: Linearisation, layers: dict[str, Any], inputs: Any, targets: Any, rows: Any
) -> Any:
    """Return the squared norms from inputs and output gradients of layers, or None.

    A layer's weight has the gradient sum_t d_t a_t^T over its T uses of a point (places in a
    sequence), whose squared norm is sum_tu (a_t a_u)(d_t d_u). None where a layer isn't called
    just once.
    """
    with watched(layers) as seen:
        outputs = at.net(inputs).reshape(-1, at.n_outputs)
        if not once_per_point(seen, len(outputs)):
            return None
        # The loss's curvature needs the outputs of the same pass.
        weights = at.loss.factor(outputs.detach(), targets).transposed_times(rows)
        slopes = slopes_of(outputs, seen, weights)
    squares = 0.0
    for (name, uses), d in zip(seen.items(), slopes, strict=True):
        a = uses[0].inputs
        weight, bias = f"{name}.weight" in at.params, f"{name}.bias" in at.params
        if a.ndim == 2:
            of_inputs = (a * a).sum(1) + 1.0 * bias if weight else 1.0 * bias
            squares = squares + of_inputs * (d * d).sum(1)
            continue
        a, d = a.flatten(1, -2), d.flatten(1, -2)
        if weight:
            squares = squares + ((a @ a.transpose(1, 2)) * (d @ d.transpose(1, 2))).sum((1, 2))
        if bias:
            squares = squares + (d.sum(1) ** 2).sum(1)
    return squares


def _of_gradients(at: Linearisation, inputs: Any, targets: Any, rows: Any) -> Any:
    """Return the squared norms of gradients that are computed one by one."""

    def signed(params: Any, point: Any, weight: Any) -> Any:
        outputs = torch.func.functional_call(at.net, {**at.fixed, **params}, (point[None],))
        return (outputs.reshape(-1) * weight).sum()

    gradient = torch.func.grad(signed)
    with torch.no_grad():
        outputs = torch.func.functional_call(at.net, {**at.fixed, **at.params}, (inputs,))
        factor = at.loss.factor(outputs.reshape(len(inputs), -1), targets)
        weights = factor.transposed_times(rows)
        each = torch.func.vmap(gradient, (None, 0, 0))(at.params, inputs, weights)
    return sum((g.flatten(1) ** 2).sum(1) for g in each.values())
