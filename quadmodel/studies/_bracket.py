"""Brackets of a boundary in log learning rate, by verdicts: full batches, and runs that diverge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, betaln

from quadmodel._util.checks import FloatArray

_DOUBLING = math.log(2.0)
# Doublings of the learning rate, up and down, after which the boundary is given up.
_FARTHEST = 60
# Learning rates of a round of narrowing.
_POINTS = 8
# Growth of the log loss, over the half of the steps that is measured, that says unstable; and what
# one width above the boundary is given steps for: the difference leaves time to overtake.
_GROWN, _GIVEN = 5.0, 30.0
_SHORTEST = 128
# Share of a bracket that is too wide for it to become narrower.
_COARSE = 0.4
# Growth per step beyond which it is as good as infinite.
_FAST = 100.0


class Bracket(NamedTuple):
    """Log learning rates below and above a boundary; NaN where there is none."""

    low: float
    high: float
    needed_steps: int = 0  # what is wanted to make it narrower, if that is more than there were

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


NO_BRACKET = Bracket(math.nan, math.nan)


def doubled(decide: Callable[[float], int], start: float) -> Bracket:
    """Return a bracket by doubling or halving the learning rate from `start` on.

    `decide` says -1 below the boundary, 1 above it, 0 where it can't tell: such points are passed.
    """
    at, ends = start, {}
    verdict = decide(start)
    for way in (-1, 1) if verdict >= 0 else (1,):
        at = start
        for _ in range(_FARTHEST):
            if verdict:
                ends[verdict] = at
            if len(ends) == 2 or verdict == way:
                break
            at += way * _DOUBLING
            verdict = decide(at)
        if len(ends) == 2:
            return Bracket(ends[-1], ends[1])
        verdict = 0
    return NO_BRACKET


def full_batch_bracket(
    grow: Callable[[FloatArray, int], FloatArray], start: float, half: float, longest: int
) -> tuple[Bracket, int]:
    """Return a bracket of the linear model's edge of full batches, and the steps of its last runs.

    `grow` returns the growth rate per step over the second half of so many steps, at log learning
    rates.

    Notes
    -----
    Without noise, growth by :math:`e^5` over half the steps is proof: the loss of a decaying run
    falls. The other verdict is good to a width w: at one width above the edge the loss would have
    grown by :math:`e^{30}` over half the steps, so that the growing mode, were it as small as
    :math:`e^{-25}` of the loss, would have shown. Below the lowest learning rate that grows, the
    bracket reaches down by one more width. Steps are counted from a slope of growth over log
    learning rate that is smaller than that at the edge, since growth above it is concave: that of
    a chord from the low end, or of a secant between learning rates whose growth is relaxed.
    """
    first = doubled(lambda x: _first_verdict(float(grow(np.array([x]), _SHORTEST)[0])), start)
    if math.isnan(first.low):
        return first, _SHORTEST
    low, high, steps = first.low - (first.high - first.low), first.high, _SHORTEST
    growth, slope = float(grow(np.array([high]), _SHORTEST)[0]), 0.0
    while high - low > 2 * half:
        slope = max(slope, min(growth, _FAST) / (high - low))
        least = 2 * _GIVEN / (slope * longest)  # the width that the most steps are good for
        if least > _COARSE * (high - low):
            return Bracket(low, high, math.ceil(2 * _GIVEN / (half * slope))), steps
        width = max((high - low) / (_POINTS + 1), half, least)
        steps = max(math.ceil(2 * _GIVEN / (width * slope)), _SHORTEST)
        x = np.linspace(low, high, _POINTS + 2)[1:-1]
        rates = grow(x, steps)
        above = np.flatnonzero(rates * (steps / 2) > _GROWN)
        last = int(above[0]) - 1 if above.size else x.size - 1
        if last >= 0:
            low = max(low, float(x[last]) - width)
        if above.size:
            high, growth = float(x[above[0]]), float(rates[above[0]])
        relaxed = np.flatnonzero(rates * (steps / 2) > _GIVEN)
        if relaxed.size > 1 and np.isfinite(rates[relaxed]).all():
            slope = max(slope, float((np.diff(rates[relaxed]) / np.diff(x[relaxed])).max()))
    return Bracket(low, high), steps


def _first_verdict(growth: float) -> int:
    """Return a verdict on the shortest runs.

    Twice as far above the edge growth is at most twice as large, as it is concave: what has not
    grown by what runs are given lies no further above it than below what has grown by twice that.
    """
    grown = growth * (_SHORTEST / 2)
    return 1 if grown > 2 * _GIVEN else -1 if not grown > _GIVEN else 0


@dataclass
class SequentialTest:
    r"""Say whether the share of runs that diverge is below or above one half.

    Notes
    -----
    Wald's likelihood ratio, mixed uniformly over all shares on the other side of one half: under
    any share that is not there it is a supermartingale, so that it exceeds :math:`1/\alpha` at any
    time with probability :math:`\alpha` at most (Ville). Runs are doubled until one of the two
    ratios does, or there are too many. The k-th test has :math:`\alpha/(k(k+1))`, which adds up to
    :math:`\alpha`, whatever is tested.

    References
    ----------
    .. [1] A. Wald, "Sequential analysis" (1947).
    .. [2] J. Ville, "Étude critique de la notion de collectif" (1939).
    """

    diverged: Callable[[float, int], int]  # of so many new runs at a log learning rate
    first: int
    most: int
    alpha: float
    tests: int = field(default=0, init=False)

    def __call__(self, x: float) -> int:
        """Return -1, 1, or 0 where `most` runs don't tell."""
        self.tests += 1
        wanted = math.log(self.tests * (self.tests + 1) / self.alpha)
        runs, diverged, more = 0, 0, self.first
        while True:
            diverged += self.diverged(x, more)
            runs += more
            if log_evidence(diverged, runs) > wanted:
                return 1
            if log_evidence(runs - diverged, runs) > wanted:
                return -1
            if runs >= self.most:
                return 0
            more = min(runs, self.most - runs)


def log_evidence(successes: int, trials: int) -> float:
    """Return the log likelihood ratio of a share above one half against one half."""
    a, b = successes + 1.0, trials - successes + 1.0
    # The mean over shares p in (1/2, 1) of p^k (1 - p)^(n - k), over 2^-n.
    above = float(betainc(b, a, 0.5))
    if above == 0.0:
        return -math.inf
    return math.log(2.0 * above) + float(betaln(a, b)) + trials * _DOUBLING


def narrowed(decide: Callable[[float], int], bracket: Bracket, half: float) -> Bracket:
    """Return the bracket narrowed by bisection until it is so narrow, or nothing more is decided.

    Around points that are not decided, both ends are narrowed by themselves.
    """
    low, high = bracket.low, bracket.high
    unclear: tuple[float, float] | None = None  # where nothing was decided, between the two
    tolerance = half / 8
    while high - low > 2 * half:
        if unclear is None:
            at = (low + high) / 2
        elif unclear[0] - low >= max(high - unclear[1], tolerance):
            at = (low + unclear[0]) / 2
        elif high - unclear[1] >= tolerance:
            at = (unclear[1] + high) / 2
        else:
            break
        verdict = decide(at)
        if verdict < 0:
            low = at
        elif verdict > 0:
            high = at
        else:
            unclear = (at, at) if unclear is None else (min(unclear[0], at), max(unclear[1], at))
        # Runs at one learning rate may contradict those at another, rarely: the later ones count.
        if unclear is not None and not low < unclear[0] <= unclear[1] < high:
            unclear = None
        if low >= high:
            return NO_BRACKET
    return Bracket(low, high)
