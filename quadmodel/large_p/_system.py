"""What drives SGD in the large-P limit: the model at the start and the law of its curvature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError
from quadmodel.ensemble import Ensemble
from quadmodel.large_p._kernel import Limit
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel, ntk_eigensystem


@dataclass(frozen=True)
class System:
    """Initial model and statistics of its curvature, in orthonormal coordinates.

    `jacobian` is square up to null modes. Data indices of basis states count the columns of
    `mixing` R, where R R^T = C is the curvature covariance of the data points, or the data points
    themselves where these are `independent` (R = 1). `curvature_strength` is q = sigma sqrt(P).
    """

    jacobian: FloatArray
    residual: FloatArray
    mixing: FloatArray
    independent: bool
    curvature_strength: float
    n_params: int
    truncation_order: int

    @property
    def n_indices(self) -> int:
        """Number of values of a data index."""
        return len(self.residual) if self.independent else int(self.mixing.shape[1])

    @property
    def sizes(self) -> list[int]:
        """Number of basis states of every order, from 0 to the truncation order."""
        rank = int(self.jacobian.shape[1])
        return [rank * self.n_indices**n for n in range(self.truncation_order + 1)]

    @property
    def arrays(self) -> Limit:
        """What compiled code takes."""
        return Limit(
            self.jacobian,
            self.residual,
            self.mixing,
            self.independent,
            self.curvature_strength,
            self.truncation_order,
        )

    def mixed(self, indexed: FloatArray) -> FloatArray:
        """Return R times an array along its first axis, from data indices to data points."""
        return indexed if self.independent else self.mixing @ indexed

    @cached_property
    def covariance(self) -> FloatArray:
        """Curvature covariance C of the data points."""
        return np.eye(len(self.residual)) if self.independent else self.mixing @ self.mixing.T


def law_of(source: Any, name: str) -> CurvatureLaw | None:
    """Return the law of a source's curvature, None without curvature, or raise InputError."""
    if isinstance(source, Ensemble):
        law: Any = source.curvature
        return law  # type: ignore[no-any-return]
    if not isinstance(source, QuadraticModel):
        raise InputError(
            f"{name} must be a QuadraticModel or an Ensemble, got {type(source).__name__}"
        )
    if source.curvature_law is None and source.curvature is not None:
        raise InputError(
            f"{name} must have a curvature_law for the large-P limit, got a model without"
        )
    return source.curvature_law


def model_at_start(source: Ensemble | QuadraticModel, seed: int) -> QuadraticModel:
    """Return the model to start from; an ensemble is sampled without drawing its curvature."""
    return replace(source, curvature=None).sample(seed) if isinstance(source, Ensemble) else source


def system_from(model: QuadraticModel, law: CurvatureLaw | None, truncation_order: int) -> System:
    """Return the system of a model; without curvature basis states have no data indices."""
    n_data, n_params = model.n_data, model.n_params
    lam, vectors = model.eigensystem
    jacobian = np.ascontiguousarray((vectors * np.sqrt(n_data * lam))[:, lam > 0])
    nothing = np.empty((n_data, 0))
    over_data, over_parameters, scale = (
        (None, None, 0.0) if law is None else law.kronecker(n_data, n_params)
    )
    if over_parameters is not None and not np.array_equal(over_parameters, np.eye(n_params)):
        raise InputError(
            "curvature must have parameter_covariance None or the identity for the large-P limit, "
            f"got {law!r}"
        )
    if scale == 0.0 or (over_data is not None and not over_data.any()):
        return System(jacobian, model.residual, nothing, False, 0.0, n_params, 1)
    independent = over_data is None or np.array_equal(over_data, np.eye(n_data))
    mixing = nothing
    if over_data is not None and not independent:
        variances, axes = ntk_eigensystem(over_data)
        mixing = np.ascontiguousarray((axes * np.sqrt(variances))[:, variances > 0])
    strength = scale * n_params**0.5
    return System(
        jacobian, model.residual, mixing, independent, strength, n_params, truncation_order
    )
