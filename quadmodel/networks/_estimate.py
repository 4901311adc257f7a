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
    spread = float(np.std(samples, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(np.mean(samples)), spread)


def jackknife(parts: FloatArray, whole: float) -> Estimate:
    """Return `whole` with the standard error from its values without one group each."""
    count = len(parts)
    variance = (count - 1) / count * float(np.sum((parts - parts.mean()) ** 2))
    return Estimate(whole, math.sqrt(variance))
