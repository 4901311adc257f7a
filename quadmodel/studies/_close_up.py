"""A close-up of where simulated growth crosses zero, at one batch size of the linear model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.crossing import (
    LineCrossing,
    monotone_crossing,
    rising_line,
    straightness,
)
from quadmodel._util.threads import Workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.populations import population_growth

# Learning rates of a close-up: enough for a line, its errors, and a test that it is one.
POINTS = 8
_ROUNDS = 14
# Rounds of one that goes on from another.
_AGAIN = 6
# Steps in units of the time in which the loss grows e-fold per e-fold of the learning rate: the
# dynamics' own unit, whatever batch size and spectrum. Relaxation takes some tens of it. Rounds
# that look for the place make do with the share.
_DURATION, _LOOKING = 250.0, 0.25
# Never fewer steps; and up to so many times what was asked for.
_SHORTEST, _LONGEST = 128, 16
# Replicas of a population that carries a mean: at least, at most.
_FEWEST, _MOST = 32, 1024
# Correction for the bias of a logarithm, as a relative learning rate, above which more replicas are
# taken: it is good to leading order only. With no more replicas to take, one that is somewhat
# larger makes the interval wide; beyond that, the crossing is not settled.
_TOLERATED, _WIDENING = 0.01, 0.04
# Half the width in learning rate, in standard errors of the crossing: wide enough for the slope to
# be seen in every round, since lines that are believed by luck have too small an error.
_HALF_WIDTH = 10.0
# The whole width at most: farther away from the crossing growth bends, where slow modes begin to
# take part in the noise, or the deterministic edge is near.
_WIDEST = 35.0
# Of the window: its half where growth was bent in it. And what more runs narrow it to at most, as
# the errors that say so are themselves known badly.
_NEARER, _LEAST_SHRINKING = 0.3, 0.5


class Guess(NamedTuple):
    """Where a first scan sees the crossing, in log learning rate, and the growth around it."""

    at: float
    standard_error: float
    slope: float
    low: float  # the ends of the scan
    high: float
    coarseness: float = 0.0  # half a width that learning rates need not be closer than


def guess_from(x: FloatArray, growth: FloatArray, error: FloatArray) -> Guess | None:
    """Return where growth at log learning rates `x` crosses zero; None where it does not."""
    order = np.argsort(x)
    order = order[np.isfinite(x[order]) & np.isfinite(growth[order])]
    x, growth, error = x[order], growth[order], error[order]
    crossing = monotone_crossing(x, growth, error)
    above = np.flatnonzero(x > crossing.at)[:3]
    if not above.size or not crossing.standard_error > 0:
        return None
    slope = max(float(np.mean(growth[above] / (x[above] - crossing.at))), 1e-9)
    return Guess(*crossing, slope, float(x[0]), float(x[-1]))


@dataclass(frozen=True)
class CloseUp:
    """Growth at learning rates around its crossing, each from runs of its own.

    `correction` is the part of the growth that corrects for the bias of a logarithm.
    """

    learning_rate: FloatArray
    growth: FloatArray
    growth_standard_error: FloatArray
    correction: float
    steps: int
    replicas: int
    settled: bool
    needed_steps: int  # what to ask for
    replica_steps: int


class _Window(NamedTuple):
    """Log learning rates to measure, and the runs to do so with."""

    low: float
    high: float
    steps: int
    replicas: int

    def learning_rates(self) -> FloatArray:
        """Return the logarithms of the learning rates."""
        return np.linspace(self.low, self.high, POINTS)


def close_up(
    model: QuadraticModel,
    batch_size: int,
    sgd: SGD,
    guess: Guess,
    *,
    kind: str,
    steps: int,
    replicas: int,
    seed: int,
    first_replica: int,
    pool: Workers,
    precision: str = "float64",
    before: CloseUp | None = None,
) -> CloseUp:
    r"""Measure growth so near to its crossing that it rises as a straight line there.

    `before` is a close-up to go on from, with other `replicas`: the next round may be the last.

    Notes
    -----
    Eight learning rates within some standard errors of the crossing, each with runs of its own. A
    round is repeated, at most fourteen times, at other learning rates or with more runs, until

    - growth rises significantly and, from its crossing upwards, without significant curvature: what
      lies below may be a plateau, where a slow mode outlives the noise;
    - steps times the slope of growth over log learning rate, :math:`T\,dg/d\log\eta`, is at least
      250. In the linear model 1 - K is growth in units of that slope, to leading order, so that its
      inverse is the time in which directions relax;
    - for the mean, the correction below moves the crossing by less than 1 %; else more replicas are
      taken, up to 1024, with which 4 % are accepted;
    - all of them lie within 35 standard errors of each other, or within four times the guess's
      `coarseness`;
    - the crossing agrees with that of the round before within three standard errors.

    Otherwise it is not settled, and `needed_steps` says how many to ask for.

    What a population's loss grows by in n steps, :math:`e^G`, has the growth of the mean as its
    expectation, whatever the number of replicas; but :math:`E\,G` falls short of its logarithm by
    :math:`\mathrm{Var}(G)/2`, to leading order. The variance is that of the eight around their
    line. What the correction moves the crossing by counts as an error of it, too.
    """
    longest, carried = _LONGEST * steps, kind == "mean"
    fewest = max(replicas, _FEWEST) if carried else replicas
    done, replica_steps = 0, 0
    line: LineCrossing | None = None
    slope, correction, settled, final = guess.slope, 0.0, False, False
    half = 0.5 * _HALF_WIDTH * guess.standard_error
    window = _Window(guess.at - half, guess.at + half, steps, fewest)
    if before is not None and (line := _line_of(before, carried)) is not None:
        final, slope = True, line.slope
        ahead = window._replace(steps=min(math.ceil(_DURATION / slope), longest))
        window = _around(line, _window_of(before), ahead, guess.coarseness)
    for _ in range(_ROUNDS if before is None else _AGAIN):
        needed = math.ceil(max(_DURATION / slope, _SHORTEST))
        asked = needed if final else max(math.ceil(_LOOKING * needed), _SHORTEST)
        window = window._replace(steps=min(asked, longest))
        x = window.learning_rates()
        (found,) = population_growth(
            model, np.exp(x), np.full(POINTS, batch_size), sgd, steps=window.steps,
            replicas=window.replicas, seed=seed, first_replica=first_replica + done, pool=pool,
            precision=precision, kinds=(kind,),
        )  # fmt: skip
        done += POINTS * window.replicas
        replica_steps += POINTS * window.replicas * window.steps
        growth = found.rate - found.correction
        if not np.isfinite(growth).all():  # residuals annihilated, or exploding in one step
            break
        previous, line = line, rising_line(x, growth, found.standard_error)
        if line is None:
            window, slope = _elsewhere(window, growth, found.standard_error, guess, slope)
            final = final and bool((growth < 0).any() and (growth > 0).any())
            continue
        slope = line.slope
        if carried:
            line, correction = _corrected(line, window.steps)
        rare = correction > _TOLERATED * slope and window.replicas < _MOST
        enough = window.steps * slope >= 0.7 * _DURATION or window.steps == _SHORTEST
        near = window.high - window.low < max(_WIDEST * line.standard_error, 4 * guess.coarseness)
        done_with = near and not rare and (enough or window.steps == longest)
        if final and done_with and _agree(line, previous):
            settled = enough and correction <= _WIDENING * slope
            break
        final = True
        ahead = window._replace(steps=min(math.ceil(max(_DURATION / slope, _SHORTEST)), longest))
        if rare:
            ahead = ahead._replace(replicas=min(2 * window.replicas, _MOST))
        window = _around(line, window, ahead, guess.coarseness)
    needed = max(steps, math.ceil(_DURATION / slope / _LONGEST))
    return CloseUp(
        np.exp(x),
        growth + correction,
        found.standard_error,
        correction,
        window.steps,
        window.replicas,
        settled,
        needed,
        replica_steps,
    )


def _window_of(one: CloseUp) -> _Window:
    """Return the learning rates and the runs of a close-up."""
    x = np.log(one.learning_rate)
    return _Window(float(x[0]), float(x[-1]), one.steps, one.replicas)


def _line_of(one: CloseUp, carried: bool) -> LineCrossing | None:
    """Return the line through a close-up, with what the correction adds to its error."""
    growth, error = one.growth - one.correction, one.growth_standard_error
    line = rising_line(np.log(one.learning_rate), growth, error)
    return line if line is None or not carried else _corrected(line, one.steps)[0]


def most_replicas(replicas: int) -> int:
    """Return how many replicas, with batches of their own, a close-up has at most."""
    return _ROUNDS * POINTS * max(_MOST, replicas)


def _corrected(line: LineCrossing, steps: int) -> tuple[LineCrossing, float]:
    """Return the line lifted by half the variance of a run's growth over half its steps.

    The shift is added to the error: tails make it as large as what it leaves out, at times.
    """
    correction = 0.5 * line.variance * (steps / 2)
    shift = correction / line.slope
    error = math.hypot(line.standard_error, shift)
    return line._replace(at=line.at - shift, standard_error=error), correction


def _agree(line: LineCrossing, before: LineCrossing | None) -> bool:
    """Whether two rounds see the same crossing."""
    if before is None:
        return False
    return abs(line.at - before.at) < 3 * math.hypot(line.standard_error, before.standard_error)


def _around(line: LineCrossing, window: _Window, ahead: _Window, least: float) -> _Window:
    """Return the window of the runs ahead, around the crossing of a line.

    Above it where there was a kink below; as wide as the error expected of more runs asks for,
    and at least so wide.
    """
    below, above = (1.0, 1.0) if line.left_out == 0 else (0.3, 1.7)
    runs = window.steps * window.replicas / (ahead.steps * ahead.replicas)
    error = line.standard_error * min(max(math.sqrt(runs), _LEAST_SHRINKING), 1.0)
    width, reach = window.high - window.low, max(_HALF_WIDTH * error, least)
    return ahead._replace(
        low=line.at - min(below * reach, width), high=line.at + min(above * reach, width)
    )


def _elsewhere(
    window: _Window, growth: FloatArray, error: FloatArray, guess: Guess, slope: float
) -> tuple[_Window, float]:
    """Return a window where growth may be seen to rise straight through zero, and its slope."""
    x, width = window.learning_rates(), window.high - window.low
    line, rises, bent = straightness(x, growth, error)
    low, high = window.low, window.high
    clear = growth > 2 * error
    first = x.size - int(np.argmin(clear[::-1])) if not clear.all() else 0  # clear from here on
    if rises and not bent:  # a line that crosses outside
        centre = min(max(line.at, low - width), high + width)
        low, high = centre - width / 2, centre + width / 2
    elif clear.all():
        low, high = low - 2 * width, high - 0.5 * width
    elif not clear.any() and (growth < 0).all():
        low, high = low + 0.5 * width, high + 2 * width
    elif bent and first < x.size:  # nearer to where growth begins to be clearly positive
        last = min(first + 1, x.size - 1)
        slope = max(float((growth[last] - growth[first - 1]) / (x[last] - x[first - 1])), 1e-9)
        centre = (x[first - 1] + x[first]) / 2
        low, high = centre - _NEARER * width, centre + _NEARER * width
    else:  # lost in noise
        low, high = low - 0.5 * width, high + 0.5 * width
    return window._replace(low=max(low, guess.low - 1), high=min(high, guess.high + 1)), slope
