"""What the parts of the validation suite share: rows, how much to simulate, models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.optimizer import SGD


@dataclass(frozen=True)
class Row:
    """One comparison: a number that theory predicts and a simulation measures."""

    name: str
    predicted: float
    measured: float
    standard_error: float


@dataclass(frozen=True)
class Effort:
    """How much to simulate.

    `replicas` of linear models; `ntk_replicas` draws of the curvature, and `large_replicas` where
    the model is large; `growth_steps` of populations.
    """

    replicas: int
    ntk_replicas: int
    large_replicas: int
    growth_steps: int
    threads: int | None
    seed: int


def mean_row(name: str, predicted: float, values: FloatArray) -> Row:
    """Return a row whose measurement is a mean of independent values."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5)
    return Row(name, float(predicted), float(np.mean(values)), error)


def gentle(ntk: FloatArray, share: float, batch_size: int, **options: Any) -> SGD:
    """Return SGD whose batch noise is a share of what would make it unstable, roughly.

    Settings don't depend on the theory that they test: a wrong one would change both sides.
    """
    slowness = 1 - float(options.get("momentum", 0.0))
    rate = share * 2 * batch_size * slowness / float(np.trace(ntk))
    return SGD(rate, batch_size, **options)


def ring_ntk(n_data: int, of_frequency: FloatArray) -> FloatArray:
    """Return the NTK of data points on a ring, which depends on their distance alone.

    Given its eigenvalues by frequency. All points have the same mean squared residual if they start
    with the same: there the closure in modes is exact.
    """
    column = np.fft.irfft(of_frequency, n_data)
    point = np.arange(n_data)
    return np.asarray(column[np.abs(point[:, None] - point[None, :])])
