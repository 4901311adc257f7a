"""Zero of an increasing function: Newton's method, or the secant method, kept inside a bracket."""

from __future__ import annotations

import math
from collections.abc import Callable


def newton_in_bracket(
    function: Callable[[float], tuple[float, float]],
    guess: float,
    low: float,
    high: float,
    *,
    step_tolerance: float,
    value_tolerance: float = 0.0,
) -> float:
    """Return the zero of an increasing function.

    Parameters
    ----------
    function : callable
        Maps x to the value, which may be infinite, and the slope. Where the slope is NaN, the chord
        through the last two points takes its place.
    guess : float
        First point, strictly inside the bracket.
    low, high : float
        The function is negative at `low` and positive at `high`, which may be infinite; it is
        called strictly in between.
    step_tolerance : float
        Length of a step, or of the bracket, at which the search ends.
    value_tolerance : float, optional
        Absolute value of the function at which the search ends.

    Returns
    -------
    float
        The point at which `function` was called last.

    Notes
    -----
    Every evaluation narrows the bracket. A step that leaves it, or that is longer than half the
    step before the last one, is replaced by bisection, or by doubling towards an infinite end.

    References
    ----------
    .. [1] W. Press et al., "Numerical Recipes" (2007), section 9.4, rtsafe.
    """
    x, before = guess, (math.nan, math.nan)
    last = earlier = math.inf  # lengths of the last two steps
    while True:
        value, slope = function(x)
        if abs(value) <= value_tolerance:
            return x
        low, high = (x, high) if value < 0 else (low, x)
        if math.isnan(slope):
            slope = (value - before[1]) / (x - before[0]) if x != before[0] else math.nan
        step = -value / slope if 0 < slope < math.inf else math.nan
        if abs(step) <= step_tolerance or high - low <= step_tolerance:
            return x
        if not (low < x + step < high and abs(step) <= earlier / 2):
            if math.isinf(low) or math.isinf(high):
                step = math.copysign(max(1.0, abs(x)), -value)
            else:
                step = (low + high) / 2 - x
        if not low < x + step < high:  # neighbouring numbers
            return x
        before, x = (x, value), x + step
        last, earlier = abs(step), last
