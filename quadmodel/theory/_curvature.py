"""Statistics of curvature and Jacobian that the mean NTK is predicted from, in units of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from quadmodel._util.checks import FloatArray, InputError
from quadmodel.laws.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD


@dataclass(frozen=True)
class Statistics:
    r"""What is needed of curvature, Jacobian and residual, in the eigenbasis of the NTK.

    :math:`\sigma^2C` and S are the curvature's covariances over data and parameters, and
    :math:`J^+` is the pseudoinverse of the Jacobian J. Units are powers of two near the largest
    eigenvalue and the largest residual, so that no square of them over- or underflows and scaling a
    model changes no digit.
    """

    unit_of_ntk: float
    lam: FloatArray  # eigenvalues of the NTK
    vectors: FloatArray
    residual: FloatArray  # at the start, along the eigenvectors
    n_params: int
    over_data: FloatArray  # sigma^2 C
    outer: FloatArray  # J S J^T
    inner: FloatArray  # J^+T S J^+
    inner_twice: FloatArray  # J^+T S^2 J^+
    skew: FloatArray  # N = J S J^+
    twice: FloatArray  # J S^2 J^+
    trace: float  # tr S
    trace_twice: float  # tr S^2
    unit: bool  # whether S is the unit matrix, and so are skew and twice

    def in_units(self, sgd: SGD) -> SGD:
        """Return the optimizer with learning rate and weight decay in units of these."""
        limits = np.finfo(np.float64)
        scaled = sgd.learning_rate * self.unit_of_ntk
        return replace(
            sgd,
            learning_rate=float(np.clip(scaled, limits.tiny, limits.max)),
            weight_decay=float(min(sgd.weight_decay / self.unit_of_ntk, limits.max)),
        )


def law_of(model: QuadraticModel, curvature: CurvatureLaw | float | None) -> CurvatureLaw:
    """Return the law to predict with."""
    if curvature is None:
        if model.curvature_law is None:
            raise InputError("curvature must be given for a model that has no law, got None")
        return model.curvature_law
    return curvature if isinstance(curvature, CurvatureLaw) else IndependentCurvature(curvature)


def curvature_statistics(model: QuadraticModel, law: CurvatureLaw) -> Statistics:
    """Return the statistics of a law around a model's initial parameters; checks the rank."""
    n_data, n_params = model.n_data, model.n_params
    over_data, over_parameters, scale = law.kronecker(n_data, n_params)
    lam, vectors = model.eigensystem
    if lam[-1] <= 0:
        raise InputError(
            f"jacobian must have full row rank n_data={n_data}, got {np.count_nonzero(lam)}"
        )
    # An even power, so that its root, the unit of the Jacobian, is a power of two as well.
    root = math.frexp(float(lam[0]))[1] // 2
    of_residual = math.frexp(float(np.abs(model.residual).max()))[1]
    try:
        scale = math.ldexp(scale, of_residual - 2 * root)
    except OverflowError:
        scale = math.inf
    lam, start = np.ldexp(lam, -2 * root), vectors.T @ np.ldexp(model.residual, -of_residual)
    unit = np.eye(n_data)
    data = unit if over_data is None else vectors.T @ over_data @ vectors
    with np.errstate(over="ignore", invalid="ignore"):
        data = np.where(data == 0, 0.0, scale**2 * data) if scale < 1e150 else data * np.inf
    rows = vectors.T @ np.ldexp(model.jacobian, -root)
    known = Statistics(
        unit_of_ntk=math.ldexp(1.0, 2 * root),
        lam=lam,
        vectors=vectors,
        residual=start,
        n_params=n_params,
        over_data=data,
        outer=np.diag(n_data * lam),
        inner=np.diag(1 / (n_data * lam)),
        inner_twice=np.diag(1 / (n_data * lam)),
        skew=unit,
        twice=unit,
        trace=float(n_params),
        trace_twice=float(n_params),
        unit=True,
    )
    if over_parameters is None:
        return known
    inverse = rows / (n_data * lam)[:, None]  # J^+ transposed
    once, twice = inverse @ over_parameters, inverse @ over_parameters @ over_parameters
    return replace(
        known,
        outer=rows @ over_parameters @ rows.T,
        inner=once @ inverse.T,
        inner_twice=twice @ inverse.T,
        skew=rows @ once.T,
        twice=rows @ twice.T,
        trace=float(np.trace(over_parameters)),
        trace_twice=float(np.sum(over_parameters**2)),
        unit=False,
    )
