r"""Losses per data point, and factors R of their Hessians H = R^T R with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quadmodel._util.checks import InputError, shown
from quadmodel.networks._torch import torch

LOSSES = ("mse", "cross_entropy")
# A Hessian may be this far from positive semidefinite, relative to its largest eigenvalue.
_NEGATIVE = 1e-4


class Loss:
    """Loss of one data point, with the factor of its Hessian.

    Attributes
    ----------
    flat : int
        Number of directions of the outputs in which the loss has no curvature.
    """

    flat = 0

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise InputError unless targets fit the outputs (1, ...) of the first data point."""

    def value(self, outputs: Any, targets: Any) -> Any:
        """Return the losses, shape (points,), of outputs of shape (points, ...)."""
        raise NotImplementedError

    def factor(self, outputs: Any, targets: Any) -> Factor:
        """Return the factors R of the Hessians at outputs of shape (points, ...)."""
        raise NotImplementedError


class Factor:
    """R of identity Hessians: both products leave rows (..., points, outputs) as they are."""

    def times(self, rows: Any) -> Any:
        """Return R rows."""
        return rows

    def transposed_times(self, rows: Any) -> Any:
        """Return R^T rows."""
        return rows


class SquaredError(Loss):
    r""":math:`|f - y|^2/2` of every data point."""

    def check(self, outputs: Any, targets: Any) -> None:
        """Need as many targets as outputs."""
        if targets is not None and targets[0].numel() != outputs[0].numel():
            raise InputError(
                f"targets must have the shape of net's outputs, {tuple(outputs.shape[1:])} per "
                f"data point, got {tuple(targets.shape[1:])}"
            )

    def value(self, outputs: Any, targets: Any) -> Any:
        """Return half the squared distances."""
        return 0.5 * ((outputs - targets.reshape(outputs.shape)) ** 2).flatten(1).sum(1)

    def factor(self, outputs: Any, targets: Any) -> Factor:
        """Return the identity."""
        return Factor()


class CrossEntropyFactor(Factor):
    r"""R = diag(sqrt p)(I - 1 p^T), so that R^T R = diag(p) - p p^T."""

    def __init__(self, probabilities: Any) -> None:
        """Keep the probabilities, shape (points, outputs)."""
        self.p, self.root = probabilities, probabilities.sqrt()

    def times(self, rows: Any) -> Any:
        """Return R rows."""
        return self.root * (rows - (self.p * rows).sum(-1, keepdim=True))

    def transposed_times(self, rows: Any) -> Any:
        """Return R^T rows."""
        weighted = self.root * rows
        return weighted - self.p * weighted.sum(-1, keepdim=True)


class CrossEntropy(Loss):
    """Cross-entropy of a softmax over the outputs, with classes as targets."""

    flat = 1  # adding a number to all outputs changes nothing

    def check(self, outputs: Any, targets: Any) -> None:
        """Need scores of at least two classes, and a class per data point."""
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise InputError(
                "net must return scores of two or more classes for cross_entropy, got outputs of "
                f"shape {tuple(outputs.shape[1:])} per data point"
            )
        classes = outputs.shape[1]
        if targets is not None and (
            targets.ndim != 1
            or targets.dtype != torch.int64
            or not 0 <= int(targets.min()) <= int(targets.max()) < classes
        ):
            raise InputError(
                f"targets must be classes 0 to {classes - 1} of integers, one per data point, "
                f"got {str(targets.dtype)[6:]} of shape {tuple(targets.shape)}"
            )

    def value(self, outputs: Any, targets: Any) -> Any:
        """Return minus the log-probabilities of the targets."""
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def factor(self, outputs: Any, targets: Any) -> Factor:
        """Return the factor in closed form."""
        return CrossEntropyFactor(torch.softmax(outputs, -1))


class MatrixFactor(Factor):
    """R as matrices, shape (points, outputs, outputs)."""

    def __init__(self, matrices: Any) -> None:
        """Keep the matrices, which are symmetric."""
        self.matrices = matrices

    def times(self, rows: Any) -> Any:
        """Return R rows."""
        return torch.einsum("ncd,...nd->...nc", self.matrices, rows)

    def transposed_times(self, rows: Any) -> Any:
        """Return R^T rows."""
        return self.times(rows)


class CallableLoss(Loss):
    """A function of one output and one target."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        """Keep the function."""
        self.function = function

    def check(self, outputs: Any, targets: Any) -> None:
        """Need targets."""
        if targets is None:
            raise InputError("targets must be given with a loss of your own, got None")

    def value(self, outputs: Any, targets: Any) -> Any:
        """Return the function's values."""
        values = torch.func.vmap(self.function)(outputs, targets)
        if values.ndim != 1:
            raise InputError(
                "loss must return one number per data point, got values of shape "
                f"{tuple(values.shape[1:])}"
            )
        return values

    def factor(self, outputs: Any, targets: Any) -> Factor:
        """Return the symmetric roots of the Hessians."""
        n = len(outputs)
        hessians = torch.func.vmap(torch.func.hessian(self.function))(outputs, targets)
        values, vectors = torch.linalg.eigh(hessians.reshape(n, outputs[0].numel(), -1))
        lowest, highest = float(values.min()), float(values.max())
        if lowest < -_NEGATIVE * max(highest, 0.0):
            raise InputError(
                "loss must be convex in the outputs, got a Hessian with the eigenvalue "
                f"{lowest:.3g} (largest {highest:.3g})"
            )
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        return MatrixFactor(root @ vectors.transpose(1, 2))


def as_loss(loss: Any) -> Loss:
    """Return the loss of a name or function, or raise InputError."""
    if isinstance(loss, Loss):
        return loss
    if callable(loss) and not isinstance(loss, type):
        return CallableLoss(loss)
    if loss == "mse":
        return SquaredError()
    if loss == "cross_entropy":
        return CrossEntropy()
    raise InputError(
        f"loss must be one of {', '.join(LOSSES)} or a function of an output and a target, "
        f"got {shown(loss)}"
    )
