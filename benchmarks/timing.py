"""Programs timed in alternating rounds, so that a drift of the machine hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What seconds are counted by; `--cpu-time` takes the processor time of all threads together.
clock = time.perf_counter
# Seconds of a call beyond which its compiling does not matter.
_LONG = 20.0


@dataclass(frozen=True)
class Settings:
    """How long to measure, and on how many threads.

    `rounds` alternating rounds, in each of which a program runs for `seconds` at least; `quick`
    asks for smaller jobs.
    """

    rounds: int
    seconds: float
    threads: int
    quick: bool = False


@dataclass(frozen=True)
class Program:
    """Something to be timed: every call of `run` does `work` units of work and waits for it."""

    name: str
    precision: str
    run: Callable[[], object]
    work: float


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Spread:
        """Return the quartiles of some values."""
        return cls(*np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75]).tolist())


@dataclass(frozen=True, eq=False)
class Timing:
    """Units of work per second, one number per round; what the first call took beyond a later."""

    name: str
    precision: str
    compile_seconds: float
    rates: NDArray[np.float64]

    @property
    def rate(self) -> Spread:
        """Units of work per second."""
        return Spread.of(self.rates)

    def over(self, peer: Timing) -> Spread:
        """Return how many times faster this is, round by round."""
        return Spread.of(self.rates / peer.rates)


def count_processor_time() -> None:
    """Count processor time from now on: on a shared machine, waiting for others is left out."""
    global clock
    clock = time.process_time


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = clock()
    run()
    return clock() - began


def alternate(programs: Sequence[Program], settings: Settings) -> list[Timing]:
    """Time programs in turn, after a first call that compiles and a second that warms up.

    Every other round goes backwards, so that nobody always follows the same neighbour. Calls of
    many seconds are warm after the first, in which compiling is lost.
    """
    compiling, repeats = [], []
    for program in programs:
        first = seconds_of(program.run)
        warm = seconds_of(program.run) if first < _LONG else first
        compiling.append(max(first - warm, 0.0))
        repeats.append(max(1, math.ceil(settings.seconds / max(warm, 1e-9))))
    rates = np.empty((len(programs), settings.rounds))
    for turn in range(settings.rounds):
        order = range(len(programs))
        for k in order if turn % 2 == 0 else reversed(order):

            def repeated(k: int = k) -> None:
                for _ in range(repeats[k]):
                    programs[k].run()

            rates[k, turn] = repeats[k] * programs[k].work / seconds_of(repeated)
    return [
        Timing(program.name, program.precision, *each)
        for program, *each in zip(programs, compiling, rates, strict=True)
    ]


def mixture(name: str, parts: Sequence[Sequence[Timing]]) -> tuple[Timing, list[Timing]]:
    """Combine timings of parts that weigh alike, such as batch sizes; each part takes its fastest.

    Returns the timing of the whole, and the chosen ones.
    """
    chosen = [max(part, key=lambda t: t.rate.median) for part in parts]
    rates = len(chosen) / sum(1.0 / t.rates for t in chosen)
    compiling = sum({id(t): t.compile_seconds for t in chosen}.values())
    return Timing(name, chosen[0].precision, compiling, rates), chosen


def fastest(programs: Sequence[Program]) -> Program:
    """Return the program with the highest rate in one call, after one that compiles."""

    def rate(program: Program) -> float:
        program.run()
        return program.work / min(seconds_of(program.run) for _ in range(2))

    return max(programs, key=rate)
