"""What an estimator returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray


class Estimate(NamedTuple):
    """A number and its standard error.

    Attributes
    ----------
    value : float
        The estimate.
    standard_error : float
        Its standard error over the random draws of the estimator; 0 where nothing is drawn. Each
        function says what else is in it.

    Examples
    --------
    >>> from quadmodel.networks import Estimate
    >>> value, standard_error = Estimate(0.91, 0.02)
    >>> value + 2 * standard_error < 1
    True
    """

    value: float
    standard_error: float


def mean_of(samples: FloatArray) -> Estimate:
    """Return the mean of independent samples with its standard error."""
    count = len(samples)
    mean = float(samples.sum()) / count
    if count < 2:
        return Estimate(mean, math.nan)
    away = samples - mean
    return Estimate(mean, math.sqrt(float(away @ away) / (count * (count - 1))))


def jackknife(parts: FloatArray, whole: float) -> Estimate:
    """Return `whole` with the standard error from its values without one group each."""
    count = len(parts)
    variance = (count - 1) / count * float(np.sum((parts - parts.mean()) ** 2))
    return Estimate(whole, math.sqrt(variance))
