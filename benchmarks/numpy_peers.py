"""SGD in NumPy, one replica, with the batch's rows only; `scale` is learning rate / batch size."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel import LowRankCurvature, QuadraticModel
from quadmodel._util.checks import FloatArray


def step_of(model: QuadraticModel) -> Any:
    """Return f(state, batch, scale), which takes one step."""
    if model.curvature is None:
        return _Linear(model)
    return _LowRank(model) if isinstance(model.curvature, LowRankCurvature) else _Dense(model)


class _Linear:
    def __init__(self, model: QuadraticModel) -> None:
        self._ntk = model.ntk()

    def __call__(self, z: FloatArray, batch: Any, scale: float) -> Any:
        return z - scale * len(z) * (z[batch] @ self._ntk[batch])


class _Dense:
    def __init__(self, model: QuadraticModel) -> None:
        self._model = model

    def __call__(self, theta: FloatArray, batch: Any, scale: float) -> Any:
        # Row by row: picking the rows of Q out would copy them.
        model: Any = self._model
        curved = np.stack([model.curvature[i] @ theta for i in batch])
        jacobian = model.jacobian[batch]
        z = model.residual[batch] + (jacobian + 0.5 * curved) @ theta
        return theta - scale * (z @ (jacobian + curved))


class _LowRank:
    def __init__(self, model: QuadraticModel) -> None:
        low_rank: Any = model.curvature
        self._stacked = np.concatenate([model.jacobian[:, None], low_rank.vectors], axis=1)
        self._coefficients, self._residual = low_rank.coefficients, model.residual

    def __call__(self, theta: FloatArray, batch: Any, scale: float) -> Any:
        stacked, coefficients = self._stacked[batch], self._coefficients[batch]
        along = stacked @ theta
        bent = coefficients * along[:, 1:]
        z = self._residual[batch] + along[:, 0] + 0.5 * (bent * along[:, 1:]).sum(axis=1)
        weight = np.concatenate([np.ones((len(z), 1)), bent], axis=1) * z[:, None]
        return theta - scale * (weight.reshape(-1) @ stacked.reshape(weight.size, -1))
