"""What a phase diagram is asked for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_batch_sizes,
    as_choice,
    as_integer,
    as_learning_rates,
    is_count,
    n_axes,
)
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._stepper import PRECISIONS
from quadmodel.simulation.growth import MIN_STEPS, GridPoints

Variables = dict[str, FloatArray]


@dataclass(frozen=True)
class DiagramSpec:
    """The grid of a phase diagram and how to measure it; every field has been checked.

    `learning_rates` are the values, or how many are to be spread around the edges; `sgd` gives
    momentum, weight decay and sampling scheme.
    """

    learning_rates: int | FloatArray
    batch_sizes: IntArray
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    refine: int
    precision: str

    @property
    def n_rates(self) -> int:
        """Number of learning rates of the grid."""
        given = self.learning_rates
        return given if isinstance(given, int) else given.size

    @property
    def n_measured(self) -> int:
        """Number of replicas of grid and finer scan together, at most."""
        return (self.n_rates + self.refine) * self.batch_sizes.size * self.replicas

    @property
    def replicas_of_grid(self) -> int:
        """Replica numbers that the grid takes at most: three sets per grid point."""
        return 3 * self.n_rates * self.batch_sizes.size * self.replicas

    def points(self, rates: FloatArray, sizes: IntArray, first_replica: int) -> GridPoints:
        """Return grid points, one per pair of learning rate and batch size."""
        return GridPoints(
            rates, sizes, self.sgd, self.steps, self.replicas, self.seed, first_replica,
            self.precision,
        )  # fmt: skip

    def sgd_attributes(self) -> dict[str, Any]:
        """Return what attributes of the result say about SGD."""
        spec = self.sgd.spec()
        del spec["learning_rate"], spec["batch_size"]
        return spec


def as_source(source: Any) -> Ensemble | QuadraticModel:
    """Return an ensemble or a model, which an NTK is turned into."""
    if isinstance(source, Ensemble | QuadraticModel):
        return source
    axes = n_axes("source", source)
    if axes != 2:
        raise InputError(
            "source must be an Ensemble, a QuadraticModel or an NTK of shape (n_data, n_data), "
            f"got {type(source).__name__} with {axes} dimensions"
        )
    return QuadraticModel.from_ntk(source)


def as_spec(
    n_data: int,
    learning_rates: int | Sequence[float] | ArrayLike,
    batch_sizes: int | Sequence[int] | ArrayLike,
    *,
    sgd: SGD | None,
    steps: int,
    replicas: int,
    seed: int,
    refine: int,
    precision: str = "float64",
) -> DiagramSpec:
    """Check what a phase diagram of `n_data` points is asked for."""
    if not isinstance(sgd, SGD | None):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    return DiagramSpec(
        as_integer("learning_rates", learning_rates, low=2, high=100_000)
        if is_count("learning_rates", learning_rates)
        else as_learning_rates(learning_rates),
        as_batch_sizes(batch_sizes, n_data),
        replace(sgd or SGD(1.0, 1), learning_rate=1.0, batch_size=1),
        steps=as_integer("steps", steps, low=MIN_STEPS, high=2**31),
        replicas=as_integer("replicas", replicas, low=2, high=2**20),
        seed=as_integer("seed", seed, low=0, high=2**64 - 1),
        refine=as_integer("refine", refine, low=0, high=1000),
        precision=as_choice("precision", precision, PRECISIONS),
    )
