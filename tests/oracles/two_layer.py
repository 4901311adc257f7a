"""A linear network of two layers, trained by SGD on its own parameters; nothing else.

Outputs are start + W x with a first layer x, from 0, and a second W = J + E; E moves q^2 times as
fast as x, in the metric C over data points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def train(
    jacobian: Array,
    metric: Array,
    start: Array,
    batches: Sequence[Sequence[int]],
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> list[tuple[float, Array]]:
    """Return loss and NTK before the first step and after every one; `metric` is q^2 C."""
    n_data, n_params = jacobian.shape
    first, second = np.zeros(n_params), jacobian.copy()
    speed_first, speed_second = np.zeros(n_params), np.zeros_like(second)
    path = []
    for batch in [*batches, None]:
        z = start + second @ first
        kernel = second @ second.T + metric * (first @ first)
        path.append((float(z @ z) / (2 * n_data), kernel / n_data))
        if batch is None:
            break
        slope_first, slope_second = weight_decay * first, weight_decay * (second - jacobian)
        for a in batch:
            slope_first = slope_first + second[a] * z[a] / len(batch)
            slope_second = slope_second + np.outer(metric[:, a], first) * z[a] / len(batch)
        speed_first = momentum * speed_first - learning_rate * slope_first
        speed_second = momentum * speed_second - learning_rate * slope_second
        first, second = first + speed_first, second + speed_second
    return path
