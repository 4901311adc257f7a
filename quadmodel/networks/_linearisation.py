"""A network around its present parameters: products with its Jacobian, in chunks of data points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_integer, shown
from quadmodel.networks._losses import as_loss
from quadmodel.networks._torch import torch

# Bytes that one batch of tangents, gradients or rows of the Jacobian may take.
MEMORY = 2**29
Tensors = dict[str, Any]


class Linearisation:
    r"""Outputs, losses and Jacobian of a network at data points.

    Rows of the Jacobian are :math:`R_i J_i`, with :math:`R_i^\top R_i` the Hessian of the loss of
    point i with respect to its outputs: the identity for squared errors. Vectors are NumPy arrays
    of double precision at the door and tensors of the network's precision inside; several vectors
    go through the network at once.

    Parameters
    ----------
    net : torch.nn.Module
        Must treat data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), or None
        Targets; None where nothing depends on them.
    loss : str or callable
        See `as_loss`.
    parameters : str, callable or None
        Which parameters count, by their names: a pattern as of file names, or a function.
    chunk_size : int or None
        Data points that go through the network at once; all of them by default.
    """

    def __init__(
        self,
        net: Any,
        inputs: Any,
        targets: Any = None,
        *,
        loss: Any = "mse",
        parameters: Any = None,
        chunk_size: int | None = None,
    ) -> None:
        """Check everything once."""
        self.net = _as_net(net)
        self.loss = as_loss(loss)
        self.params, self.fixed = _split(net, parameters)
        self.dtype = next(iter(self.params.values())).dtype
        self.inputs = self._as_tensor("inputs", inputs)
        self.n_data = len(self.inputs)
        self.targets = self._as_targets(targets)
        chunk = self.n_data if chunk_size is None else as_integer("chunk_size", chunk_size)
        self.chunks = [slice(k, min(k + chunk, self.n_data)) for k in range(0, self.n_data, chunk)]
        self.n_params = sum(v.numel() for v in self.params.values())
        with torch.no_grad():
            first = self._outputs(self.params, slice(0, 1))
        if first.ndim < 1 or len(first) != 1:
            raise InputError(
                "net must return one output per data point, got shape "
                f"{tuple(first.shape)} for one point"
            )
        self.loss.check(first, self.targets)
        # The network's precision decides how far from positive an NTK may be by rounding.
        self.tolerance = 1e-8 if self.dtype.itemsize == 8 else 2e-4
        self.n_outputs = first[0].numel()
        self.n_rows = self.n_data * self.n_outputs
        self.block = max(1, MEMORY // (self.n_params * self.dtype.itemsize))
        self._factors: dict[tuple[int, int], Any] = {}

    def _as_tensor(self, name: str, value: Any) -> Any:
        """Return data as a tensor; floats take the network's precision."""
        try:
            tensor = torch.as_tensor(value).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} must be a tensor or array: {shown(str(error))}") from None
        if tensor.ndim < 1 or not len(tensor):
            raise InputError(
                f"{name} must have an axis of data points first, got shape {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            return tensor
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} must hold finite numbers, got some that aren't")
        return tensor.to(self.dtype)

    def _as_targets(self, targets: Any) -> Any:
        if targets is None:
            return None
        tensor = self._as_tensor("targets", targets)
        if len(tensor) != self.n_data:
            raise InputError(
                f"targets must have one entry per data point, {self.n_data}, got {len(tensor)}"
            )
        return tensor

    def rounded(self, kernel: FloatArray) -> Any:
        """Return an NTK in the network's precision, by which its rounding is judged."""
        return kernel if self.dtype.itemsize == 8 else kernel.astype(np.float32)

    @cached_property
    def linear_layers(self) -> dict[str, Any] | None:
        """The linear layers by name, if all parameters that count are theirs, of one layer each."""
        layers = {
            name: module
            for name, module in self.net.named_modules(remove_duplicate=False)
            if type(module) is torch.nn.Linear
        }
        theirs = {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}
        tensors = [id(tensor) for layer in layers.values() for tensor in layer.parameters()]
        if not set(self.params) <= theirs or len(set(tensors)) < len(tensors):
            return None
        return layers

    # ---- the network as a function of its parameters

    def _outputs(self, params: Tensors, part: slice) -> Any:
        return torch.func.functional_call(self.net, {**self.fixed, **params}, (self.inputs[part],))

    def of_chunk(self, part: slice) -> Callable[[Tensors], Any]:
        """Return the function from parameters to outputs, (points, outputs), of a chunk."""

        def flat(params: Tensors) -> Any:
            return self._outputs(params, part).reshape(-1, self.n_outputs)

        return flat

    def factor(self, part: slice) -> Any:
        """Return the factor of the loss's Hessians of a chunk."""
        place = part.start, part.stop
        if place not in self._factors:
            with torch.no_grad():
                outputs = self._outputs(self.params, part)
            targets = None if self.targets is None else self.targets[part]
            self._factors[place] = self.loss.factor(outputs, targets)
        return self._factors[place]

    def forget(self) -> None:
        """Forget what was computed at parameters that the network has left since."""
        self._factors.clear()

    def losses(self, params: Tensors, part: slice) -> Any:
        """Return the losses, shape (points,), of some data points."""
        return self.loss.value(self._outputs(params, part), self.targets[part])

    # ---- vectors of parameters

    def flatten(self, tensors: Tensors) -> FloatArray:
        """Return tensors of shape (k, ...) as an array (k, n_params)."""
        flat = torch.cat([tensors[name].flatten(1) for name in self.params], 1)
        return np.asarray(flat.to(torch.float64).numpy())

    def unflatten(self, vectors: FloatArray) -> Tensors:
        """Return an array (k, n_params) as tensors of shape (k, ...)."""
        rest = torch.as_tensor(vectors).to(self.dtype)
        parts = rest.split([v.numel() for v in self.params.values()], 1)
        return {
            name: part.reshape(-1, *value.shape)
            for (name, value), part in zip(self.params.items(), parts, strict=True)
        }

    def rows_of(self, array: FloatArray) -> Any:
        """Return an array (k, n_rows) as a tensor (k, D, outputs)."""
        return torch.as_tensor(array).to(self.dtype).reshape(-1, self.n_data, self.n_outputs)

    def blocks(self, count: int) -> Iterator[slice]:
        """Yield parts of `count` vectors that fit in memory."""
        for start in range(0, count, self.block):
            yield slice(start, min(start + self.block, count))

    # ---- products; all take and return several vectors

    def pull_back(self, rows: Any) -> Tensors:
        """Return the products of the transposed Jacobian with rows (k, D, outputs)."""
        total: Tensors = {}
        for part in self.chunks:
            _, back = torch.func.vjp(self.of_chunk(part), self.params)
            found = torch.func.vmap(back)(self.factor(part).transposed_times(rows[:, part]))[0]
            total = {name: total[name] + g for name, g in found.items()} if total else found
        return total

    def push_forward(self, tangents: Tensors) -> Any:
        """Return the products of the Jacobian with tangents (k, ...), of shape (k, D, outputs)."""
        found = []
        for part in self.chunks:
            function = self.of_chunk(part)
            images = torch.func.vmap(
                lambda v, function=function: torch.func.jvp(function, (self.params,), (v,))[1]
            )(tangents)
            found.append(self.factor(part).times(images))
        return torch.cat(found, 1)

    def ntk_product(self, rows: FloatArray) -> FloatArray:
        r"""Return :math:`\Theta` = J J^T / D times rows, shape (k, n_rows)."""
        result = np.empty(rows.shape)
        with torch.no_grad():
            for part in self.blocks(len(rows)):
                image = self.push_forward(self.pull_back(self.rows_of(rows[part])))
                result[part] = image.flatten(1).to(torch.float64).numpy() / self.n_data
        return _finite(result)

    def gauss_newton_product(self, vectors: FloatArray) -> FloatArray:
        """Return J^T J / D times vectors, shape (k, n_params)."""
        result = np.empty(vectors.shape)
        with torch.no_grad():
            for part in self.blocks(len(vectors)):
                image = self.pull_back(self.push_forward(self.unflatten(vectors[part])))
                result[part] = self.flatten(image) / self.n_data
        return _finite(result)

    def gradient(self, points: Any = None) -> FloatArray:
        """Return the gradient of the mean loss over all or some (an index array) data points."""
        return _finite(sum(self._each(points, lambda f: torch.func.grad(f)(self.params))))

    def hessian_product(self, vectors: FloatArray, points: Any = None) -> FloatArray:
        """Return the Hessian of the mean loss of all or some points times (k, n_params)."""
        result = np.empty(vectors.shape)
        for block in self.blocks(len(vectors)):
            tangents = self.unflatten(vectors[block])

            def product(f: Callable[[Tensors], Any], tangents: Tensors = tangents) -> Tensors:
                def one(v: Tensors) -> Tensors:
                    image: Tensors = torch.func.jvp(torch.func.grad(f), (self.params,), (v,))[1]
                    return image

                found: Tensors = torch.func.vmap(one)(tangents)
                return found

            result[block] = sum(self._each(points, product, many=True))
        return _finite(result)

    def _each(
        self, points: Any, what: Callable[[Any], Tensors], many: bool = False
    ) -> Iterator[FloatArray]:
        """Yield, chunk by chunk, what is made of the part of the mean loss there."""
        if points is None:
            parts: list[Any] = list(self.chunks)
            count = self.n_data
        else:
            size = self.chunks[0].stop
            parts = [points[k : k + size] for k in range(0, len(points), size)]
            count = len(points)
        for part in parts:
            found = what(lambda params, part=part: self.losses(params, part).sum() / count)
            tensors = found if many else {name: g[None] for name, g in found.items()}
            flat = self.flatten({name: g.detach() for name, g in tensors.items()})
            yield flat if many else flat[0]


def _finite(array: Any) -> FloatArray:
    """Return an array, or raise InputError where a network has overflowed."""
    if not np.isfinite(array).all():
        raise InputError("net must have finite derivatives at inputs, got some that aren't")
    return np.asarray(array, dtype=np.float64)


def need_targets(targets: Any) -> Any:
    """Return targets, or raise InputError where none came."""
    if targets is None:
        raise InputError("targets must be given, got None")
    return targets


def _as_net(net: Any) -> Any:
    if not isinstance(net, torch.nn.Module):
        raise InputError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    for name, module in net.named_modules():
        kind = type(module).__name__
        tied = kind.startswith(("BatchNorm", "SyncBatchNorm")) and (
            module.training or not getattr(module, "track_running_stats", True)
        )
        if tied or (module.training and "Dropout" in kind and getattr(module, "p", 0) > 0):
            raise InputError(
                "net must treat data points one by one and without noise: call net.eval(), got "
                f"{kind} {name!r} in training mode"
            )
    return net


def _split(net: Any, parameters: Any) -> tuple[Tensors, Tensors]:
    """Return the parameters that count, and all other tensors of a network."""
    if parameters is None:
        wanted: Callable[[str], bool] = lambda name: True  # noqa: E731
    elif isinstance(parameters, str):
        wanted = lambda name: fnmatchcase(name, parameters)  # noqa: E731
    elif callable(parameters):
        wanted = parameters
    else:
        raise InputError(
            f"parameters must be a pattern or function of names, got {type(parameters).__name__}"
        )
    everything = {name: value.detach() for name, value in net.named_parameters()}
    chosen = {name: value for name, value in everything.items() if wanted(name)}
    if not chosen:
        known = ", ".join(everything) or "none"
        raise InputError(f"parameters must name some of net's, got none of {known[:200]}")
    if len({value.dtype for value in chosen.values()}) > 1:
        raise InputError("net must have parameters of one precision, got several")
    fixed = {name: value for name, value in everything.items() if name not in chosen}
    return chosen, fixed | {name: value.detach() for name, value in net.named_buffers()}
