"""What enters linear layers and the slopes of what leaves them: a gradient is their product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._torch import torch

# Points at once: their activations stay in the processor's cache.
AT_ONCE = 512


class Layer(NamedTuple):
    """A layer's part of the Jacobian: d_ic a_i^T for the weight, d_ic for the bias.

    Attributes
    ----------
    inputs : tensor, shape (D, n)
        What enters the layer, a_i.
    slopes : tensor, shape (D, outputs, m)
        Gradients d_ic of the network's outputs with respect to what leaves it.
    weight, bias : bool
        Which of both counts.
    """

    inputs: Any
    slopes: Any
    weight: bool
    bias: bool


class Use(NamedTuple):
    """A call of a layer: what entered it, which version of that tensor, and what left it."""

    inputs: Any
    version: int
    outputs: Any


@contextmanager
def watched(layers: dict[str, Any]) -> Iterator[dict[str, list[Use]]]:
    """Yield, per layer, the calls of it."""
    seen: dict[str, list[Use]] = {name: [] for name in layers}

    def keep(name: str) -> Any:
        def hook(_: Any, given: Any, output: Any) -> Any:
            entered = given[0].detach()
            # Slopes are taken though no parameter before has any.
            left = output if output.requires_grad else output.detach().requires_grad_()
            seen[name].append(Use(entered, entered._version, left))
            return left.clone()  # which an activation may change in place

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def once_per_point(seen: dict[str, list[Use]], n_points: int) -> bool:
    """Return whether every layer was called once, with all points, and what entered it is there."""
    return all(
        len(uses) == 1
        and len(uses[0].inputs) == n_points
        and uses[0].inputs._version == uses[0].version
        for uses in seen.values()
    )


def slopes_of(outputs: Any, seen: dict[str, list[Use]], weights: Any) -> tuple[Any, ...]:
    """Return the gradients of `weights` times outputs with respect to what leaves the layers."""
    found: tuple[Any, ...] = torch.autograd.grad(
        outputs,
        [uses[0].outputs for uses in seen.values()],
        weights,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return found


def layers_of(at: Linearisation) -> list[Layer] | None:
    """Return the Jacobian's rows by layers; None if it isn't made of linear layers used once."""
    if at.linear_layers is None:
        return None
    found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in at.linear_layers}
    for k in range(0, at.n_data, AT_ONCE):
        part = slice(k, min(k + AT_ONCE, at.n_data))
        targets = None if at.targets is None else at.targets[part]
        with watched(at.linear_layers) as seen:
            outputs = at.net(at.inputs[part]).reshape(-1, at.n_outputs)
            if not once_per_point(seen, len(outputs)):
                return None
            if any(uses[0].inputs.ndim != 2 for uses in seen.values()):
                return None
            factor = at.loss.factor(outputs.detach(), targets)
            slopes = [
                slopes_of(outputs, seen, factor.transposed_times(unit.expand(len(outputs), -1)))
                for unit in torch.eye(at.n_outputs, dtype=at.dtype)
            ]
        for place, (name, uses) in enumerate(seen.items()):
            found[name].append((uses[0].inputs, torch.stack([each[place] for each in slopes], 1)))
    return [
        Layer(
            torch.cat([a for a, _ in parts]),
            torch.cat([d for _, d in parts]),
            f"{name}.weight" in at.params,
            f"{name}.bias" in at.params,
        )
        for name, parts in found.items()
    ]


def kernel_of_layers(layers: list[Layer], kernel: Any) -> None:
    """Add the products of the Jacobian's rows to a kernel (D C, D C): sum_l (a a')(d d')."""
    n_data, n_outputs = layers[0].slopes.shape[:2]
    size = max(1, AT_ONCE // n_outputs)
    for layer in layers:
        if not (layer.weight or layer.bias):
            continue
        flat = layer.slopes.flatten(0, 1)
        for k in range(0, n_data, size):
            part = slice(k, min(k + size, n_data))
            of_inputs = torch.full((), float(layer.bias), dtype=flat.dtype)
            if layer.weight:
                of_inputs = layer.inputs[part] @ layer.inputs.T + of_inputs
                of_inputs = of_inputs[:, None, :, None]
            of_slopes = layer.slopes[part].flatten(0, 1) @ flat.T
            block = of_slopes.reshape(-1, n_outputs, n_data, n_outputs) * of_inputs
            rows = slice(part.start * n_outputs, part.stop * n_outputs)
            kernel[rows] += block.reshape(len(of_slopes), -1).to(torch.float64).numpy()


def squares_of_layers(layers: list[Layer]) -> Any:
    """Return the squared norms of the data points' rows, shape (D,)."""
    squares = torch.zeros(len(layers[0].inputs), dtype=torch.float64)
    for layer in layers:
        of_inputs = torch.full((), float(layer.bias), dtype=torch.float64)
        if layer.weight:
            of_inputs = of_inputs + (layer.inputs.to(torch.float64) ** 2).sum(1)
        squares += of_inputs * (layer.slopes.to(torch.float64) ** 2).sum((1, 2))
    return squares
