"""Where a noisy curve that rises with its argument crosses zero, and how well that is known."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import ndtri, stdtrit

from quadmodel._util.checks import FloatArray

# Redraws of the values for the standard error of their crossing.
_REDRAWS = 400


class Crossing(NamedTuple):
    """Where a curve crosses zero, and the standard error of that place; NaN where it does not."""

    at: float
    standard_error: float


NOWHERE = Crossing(math.nan, math.nan)


class LineCrossing(NamedTuple):
    """Where a straight line through noisy values crosses zero.

    Errors come from the `variance` of the values around the line, which has `freedom` degrees of
    freedom.
    """

    at: float
    standard_error: float
    slope: float
    variance: float
    freedom: int
    left_out: int = 0  # values below the crossing that don't belong to the line


# Significance, in standard errors, of a slope that is believed and of a curvature that is not.
_RISING, _BENT = 4.0, 2.5
# Scatter over the values' own errors, beyond which it is not theirs alone.
_SCATTERED = 2.5
# How far beyond the values, in units of their extent, a line may cross zero: its error knows.
_BEYOND = 0.15
# Values that a line is drawn through, at least.
_FEWEST = 5


def rising_line(x: FloatArray, y: FloatArray, error: FloatArray) -> LineCrossing | None:
    r"""Fit a rising line to independent values of equal variance around their crossing.

    `error` is each value's own estimate of its standard error, which the scatter must not undercut:
    the scatter of so few is small by luck at times.

    None if they don't rise significantly, don't cross zero among the `x` or nearby, or are curved
    above it: by a quadratic term, or by a scatter that is 2.5 times what `error` explains.

    Notes
    -----
    Least squares :math:`y = \bar y + s(x-\bar x)`; the crossing :math:`x_0 = \bar x-\bar y/s`
    has, to leading order in the noise, the variance
    :math:`(\sigma/s)^2[1/n + (x_0-\bar x)^2/\sum(x-\bar x)^2]`. Where the values are bent, the
    first ones are left out, at most three: those that lie below the crossing of the others.
    """
    for left_out in range(x.size - _FEWEST + 1):
        least = float(np.median(error[left_out:])) ** 2
        line, slope_error, bend = _line(x[left_out:], y[left_out:], least)
        if line.slope < _RISING * slope_error or abs(bend) > _BENT:
            continue
        if line.variance > _SCATTERED**2 * least:
            continue
        beyond = 0.0 if left_out else _BEYOND * (x[-1] - x[0])
        if line.at > x[-1] + beyond or line.at < x[max(left_out - 1, 0)] - beyond:
            continue
        return line._replace(left_out=left_out)
    return None


def interval_of_line(
    x: FloatArray, y: FloatArray, error: FloatArray, correction: float, confidence: float
) -> FloatArray | None:
    """Return where a rising line through values crosses zero, and both ends of its interval.

    None as for `rising_line`. What `correction`, a part of all values, moves the crossing by counts
    as one more standard error.
    """
    line = rising_line(x, y, error)
    if line is None:
        return None
    # Student's quantile is that of the scatter alone.
    of_scatter = stdtrit(line.freedom, 0.5 + confidence / 2) * line.standard_error
    of_correction = ndtri(0.5 + confidence / 2) * correction / line.slope
    half = math.hypot(float(of_scatter), float(of_correction))
    return line.at + half * np.array([0.0, -1.0, 1.0])


def straightness(
    x: FloatArray, y: FloatArray, error: FloatArray
) -> tuple[LineCrossing, bool, bool]:
    """Return the line through all values, and whether they rise significantly, and are bent."""
    least = float(np.median(error)) ** 2
    line, slope_error, bend = _line(x, y, least)
    bent = abs(bend) > _BENT or line.variance > _SCATTERED**2 * least
    return line, line.slope >= _RISING * slope_error, bent


def _line(x: FloatArray, y: FloatArray, least: float) -> tuple[LineCrossing, float, float]:
    """Return the least-squares line, the error of its slope, and how significantly it is bent."""
    u, mean = x - x.mean(), float(y.mean())
    spread, freedom = float(u @ u), x.size - 2
    slope = float(u @ y) / spread
    rest = y - mean - slope * u
    scatter = float(rest @ rest)
    variance = max(scatter / freedom, least)
    away = -mean / slope if slope != 0 else math.inf
    error = math.sqrt(variance * (1 / x.size + away**2 / spread)) / max(abs(slope), 1e-300)
    square = u**2 - np.mean(u**2) - u * (u**2 @ u) / spread
    size = float(square @ square)
    bend = float(square @ rest) / size
    left = max((scatter - bend**2 * size) / (freedom - 1), least, 1e-300)
    found = LineCrossing(float(x.mean()) + away, error, slope, variance, freedom)
    return found, math.sqrt(variance / spread), bend * math.sqrt(size / left)


def monotone_crossing(x: FloatArray, y: FloatArray, error: FloatArray) -> Crossing:
    r"""Return where values with independent errors, made monotone, cross zero.

    Notes
    -----
    Weighted isotonic regression [1]_, linear between points. The standard error adds in quadrature
    the spread over 400 redraws of the values from their errors, and the spacing of the points
    around the crossing over :math:`\sqrt{12}`.

    Where the slope jumps upwards, as that of a growth rate does near the deterministic edge, the
    curve lies below the chord of the two points around the crossing, and above the line
    extrapolated from the two points above it; it crosses zero between the two lines. If the second
    crosses later by more than two spreads, the middle of both crossings is taken, and half their
    distance is added to the error in quadrature.

    References
    ----------
    .. [1] R. Barlow et al., "Statistical inference under order restrictions" (1972).
    """
    if x.size < 2:
        return NOWHERE
    weight = 1 / np.maximum(error, 1e-12) ** 2
    by_chord, by_extrapolation = _crossings(x, y, weight)
    if math.isnan(by_chord):
        return NOWHERE
    rng = np.random.default_rng(0)
    noise = error * rng.standard_normal((_REDRAWS, x.size))
    redrawn = np.array([_crossings(x, y + n, weight)[0] for n in noise])
    right = min(int(np.searchsorted(x, by_chord)), x.size - 1)
    spacing = x[right] - x[max(right - 1, 0)]
    spread = float(np.nanstd(redrawn)) if np.isfinite(redrawn).any() else math.nan
    gap = by_extrapolation - by_chord
    if gap <= 2 * spread:  # no more than noise explains
        gap = 0.0
    return Crossing(by_chord + gap / 2, math.hypot(spread, spacing / math.sqrt(12), gap / 2))


def _crossings(x: FloatArray, y: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Return where the chord crosses zero, and where the line through the two points above does."""
    y = isotonic_regression(y, weights=weight).x
    right = int(np.searchsorted(y, 0.0))
    if right == 0 or right == y.size:
        return math.nan, math.nan
    left = right - 1
    by_chord = x[left] - y[left] * (x[right] - x[left]) / (y[right] - y[left])
    by_extrapolation = by_chord
    if right + 1 < y.size and y[right + 1] > y[right] and x[right + 1] > x[right]:
        slope = (y[right + 1] - y[right]) / (x[right + 1] - x[right])
        by_extrapolation = min(max(x[right] - y[right] / slope, x[left]), x[right])
    return float(by_chord), float(by_extrapolation)
