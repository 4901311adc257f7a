"""Norms of single points' gradients, without those gradients where all layers are linear."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._torch import torch


def squared_rows_by_signs(at: Linearisation, rng: np.random.Generator) -> FloatArray:
    """Return unbiased estimates of the points' squared row norms, exact for one output each.

    That is the squared gradient of a point's outputs summed with random signs.
    """
    signs = rng.integers(0, 2, (at.n_data, at.n_outputs)) * 2.0 - 1.0
    modules = _linear_modules(at)
    size = max(1, at.block // 2) if modules is None else at.n_data
    found = []
    for k in range(0, at.n_data, size):
        part = slice(k, min(k + size, at.n_data))
        with torch.no_grad():
            rows = torch.as_tensor(signs[part]).to(at.dtype)
            weights = at.factor(part).transposed_times(rows)
        squares = None if modules is None else _of_layers(at, modules, part, weights)
        if squares is None:
            squares = _of_gradients(at, part, weights)
        found.append(np.asarray(squares.to(torch.float64).numpy()))
    return np.concatenate(found)


def _linear_modules(at: Linearisation) -> dict[str, Any] | None:
    """Return the linear layers, by name, if all parameters that count are theirs."""
    modules = {
        name: module
        for name, module in at.net.named_modules(remove_duplicate=False)
        if type(module) is torch.nn.Linear
    }
    theirs = {f"{name}.{kind}" for name in modules for kind in ("weight", "bias")}
    return modules if set(at.params) <= theirs else None


def _of_layers(at: Linearisation, modules: dict[str, Any], part: slice, weights: Any) -> Any:
    """Return the squared norms from inputs and output gradients of layers, or None.

    A layer's weight has the gradient sum_t d_t a_t^T over its T uses of a point (places in a
    sequence), whose squared norm is sum_tu (a_t a_u)(d_t d_u). None where a layer is called twice,
    or parameters are shared.
    """
    seen: dict[str, list[Any]] = {name: [] for name in modules}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            seen[name].append((inputs[0].detach(), output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            outputs = at.net(at.inputs[part]).reshape(-1, at.n_outputs)
            total = (outputs * weights).sum()
            used = [name for name in modules if len(seen[name]) == 1]
            tensors = {id(tensor) for tensor in at.net.parameters()}
            count = sum(len(list(module.parameters())) for module in modules.values())
            if len(used) < len(modules) or len(tensors) < count:
                return None
            slopes = torch.autograd.grad(total, [seen[name][0][1] for name in used])
    finally:
        for handle in handles:
            handle.remove()
    squares = torch.zeros(len(weights), dtype=at.dtype)
    for name, slope in zip(used, slopes, strict=True):
        given = seen[name][0][0]
        points = len(weights)
        if len(given) != points:
            return None
        a, d = (x.reshape(points, -1, x.shape[-1]) for x in (given, slope))
        if f"{name}.weight" in at.params:
            squares += ((a @ a.transpose(1, 2)) * (d @ d.transpose(1, 2))).sum((1, 2))
        if f"{name}.bias" in at.params:
            squares += (d.sum(1) ** 2).sum(1)
    return squares


def _of_gradients(at: Linearisation, part: slice, weights: Any) -> Any:
    """Return the squared norms of gradients that are computed one by one."""

    def signed(params: Any, point: Any, weight: Any) -> Any:
        outputs = torch.func.functional_call(at.net, {**at.fixed, **params}, (point[None],))
        return (outputs.reshape(-1) * weight).sum()

    gradient = torch.func.grad(signed)
    with torch.no_grad():
        each = torch.func.vmap(gradient, (None, 0, 0))(at.params, at.inputs[part], weights)
    return sum((g.flatten(1) ** 2).sum(1) for g in each.values())
