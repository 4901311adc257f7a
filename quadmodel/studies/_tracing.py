"""One boundary: the critical learning rate at one batch size and momentum, by simulation alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.crossing import interval_of_line
from quadmodel._util.threads import CALLER_ONLY, Workers
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.growth import GridPoints, measure_growth
from quadmodel.simulation.populations import Growth, population_growth
from quadmodel.studies._bracket import (
    Bracket,
    SequentialTest,
    doubled,
    full_batch_bracket,
    narrowed,
)
from quadmodel.studies._close_up import POINTS, CloseUp, Guess, close_up, guess_from, most_replicas

KINDS = ("mean_square", "typical", "deterministic")
CONFIDENCE = 0.95
# Steps of close-ups and noise-free runs: up to so many times what was asked for.
_LONGEST = 16
# Runs that look for the bracket, and standard errors of growth that decide its sign.
_SHORT, _MEMBERS, _CLEAR = 128, 64, 3.0
# Steps of the scan, in units of the time in which growth rises e-fold in the learning rate.
_SCANNED = 16.0
# Half the width of a close-up's learning rates that the precision asked for may widen it to: growth
# in it is a straight line still.
_COARSEST = 0.01
_SCANS, _CLOSE_UPS = 6, 5
# Close-ups aim at this share of the half width asked for; what has not settled for want of
# replicas has so many times as many next. At most so many times the replicas asked for, and
# populations of so many bytes.
_AIM, _MORE, _MOST, _BYTES = 0.8, 4.0, 256, 2.0**28
# Most runs of a test, in replicas asked for.
_TESTED = 64


@dataclass(frozen=True)
class BoundarySpec:
    """What is traced; every field has been checked. A unit is a batch size and a momentum.

    `sgd` gives Nesterov, weight decay and sampling scheme; `momenta` take the place of its
    momentum. `start` is the learning rate that brackets are looked for from: 1 over the largest
    NTK eigenvalue if None. Answers don't depend on it but for their noise.
    """

    source: Ensemble | QuadraticModel
    batch_sizes: tuple[int, ...]
    momenta: tuple[float, ...]
    kind: str
    rtol: float
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    precision: str = "float64"
    start: float | None = None

    def __len__(self) -> int:
        """Return the number of units, momenta of a batch size together."""
        return len(self.batch_sizes) * len(self.momenta)

    def specification(self) -> dict[str, Any]:
        """Return all fields but the source, as JSON has them."""
        of_sgd = self.sgd.spec()
        del of_sgd["learning_rate"], of_sgd["batch_size"], of_sgd["momentum"]
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        del own["source"]
        return {**own, "sgd": of_sgd}

    def unit(self, index: int) -> SGD:
        """Return SGD with the batch size and the momentum of a unit."""
        size, momentum = divmod(index, len(self.momenta))
        sgd = replace(self.sgd, momentum=self.momenta[momentum])
        return sgd._at(batch_size=self.batch_sizes[size])

    def seed_of(self, index: int) -> int:
        """Return the seed of a unit: a function of seed, batch size and momentum alone."""
        sgd = self.unit(index)
        (bits,) = np.array([sgd.momentum + 0.0]).view(np.uint64)  # -0.0 becomes 0.0
        (drawn,) = np.random.SeedSequence([self.seed, sgd.batch_size, int(bits)]).generate_state(
            1, np.uint64
        )
        return int(drawn)

    def model(self) -> QuadraticModel:
        """Return the model, which an ensemble is sampled for."""
        return self.source.sample(self.seed) if isinstance(self.source, Ensemble) else self.source


class Traced(NamedTuple):
    """The critical learning rate of a unit, its interval, and the runs that it took.

    NaN where there is none. `steps` and `replicas` are those of the last runs.
    """

    learning_rate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    resolved: bool = False
    precise: bool = False
    needed_steps: int = 0
    steps: int = 0
    replicas: int = 0
    replica_steps: int = 0


def trace_unit(
    spec: BoundarySpec,
    index: int,
    model: QuadraticModel | None = None,
    pool: Workers = CALLER_ONLY,
) -> Traced:
    """Return the critical learning rate of one unit: a pure function of `spec` and `index`.

    `model` is what ``spec.model()`` returns, where the caller has it. Neither it nor the number of
    threads, nor what other units there are, changes the result.
    """
    model = spec.model() if model is None else model
    sgd, kind = spec.unit(index), spec.kind
    if kind == "deterministic" or noise_free(sgd, model.n_data):
        sgd = replace(sgd._at(batch_size=model.n_data), sampling="without_replacement")
    start = math.log(spec.start or 1 / float(model.eigensystem[0][0]))
    runs = _Runs(model, sgd, spec, spec.seed_of(index), pool)
    if model.curvature is not None:
        return _trace_divergence(runs, start)
    if noise_free(sgd, model.n_data):
        return _trace_full_batches(runs, start)
    return _trace_growth(runs, start)


def noise_free(sgd: SGD, n_data: int) -> bool:
    """Return whether every batch holds every data point once."""
    return sgd.batch_size == n_data and (sgd.sampling != "with_replacement" or n_data == 1)


@dataclass
class _Runs:
    """Runs of one unit, with replica numbers that are used once, and a count of their steps."""

    model: QuadraticModel
    sgd: SGD
    spec: BoundarySpec
    seed: int
    pool: Workers
    taken: int = field(default=0, init=False)
    replica_steps: int = field(default=0, init=False)

    @property
    def longest(self) -> int:
        """The most steps of a run."""
        return _LONGEST * self.spec.steps

    @property
    def half(self) -> float:
        """Half the width in log learning rate that is asked for."""
        return math.log1p(self.spec.rtol)

    def numbers(self, count: int) -> int:
        """Return the first of so many replica numbers."""
        self.taken += count
        return self.taken - count

    def growth(self, x: FloatArray, steps: int, replicas: int) -> Growth:
        """Return growth at log learning rates: of the mean, or of a typical run."""
        kind = "typical" if self.spec.kind != "mean_square" else "mean"
        self.replica_steps += x.size * steps * replicas
        (found,) = population_growth(
            self.model, np.exp(x), np.full(x.size, self.sgd.batch_size), self.sgd, steps=steps,
            replicas=replicas, seed=self.seed, first_replica=self.numbers(x.size * replicas),
            pool=self.pool, precision=self.spec.precision, kinds=(kind,),
        )  # fmt: skip
        return found

    def diverged(self, x: float, runs: int) -> int:
        """Return how many of so many new runs of a quadratic model diverge."""
        points = GridPoints(
            np.array([math.exp(x)]), np.array([self.sgd.batch_size]), self.sgd, self.spec.steps,
            runs, self.seed, self.numbers(runs), self.spec.precision,
        )  # fmt: skip
        found = measure_growth(self.model, points, self.pool)
        self.replica_steps += found.replica_steps
        return round(float(found.fraction_diverged[0]) * runs)

    def close_up(self, guess: Guess, replicas: int, before: CloseUp | None) -> CloseUp:
        """Return a close-up around a guess, or one that goes on from another."""
        spec = self.spec
        found = close_up(
            self.model, self.sgd.batch_size, self.sgd, guess,
            kind="mean" if spec.kind == "mean_square" else "typical", steps=spec.steps,
            replicas=replicas, seed=self.seed,
            first_replica=self.numbers(most_replicas(replicas)), pool=self.pool,
            precision=spec.precision, before=before,
        )  # fmt: skip
        self.replica_steps += found.replica_steps
        return found


# ---- the linear model with noise


def _trace_growth(runs: _Runs, start: float) -> Traced:
    """Return where growth crosses zero, by close-ups with more and more replicas."""
    guess = _guess(runs, start)
    if guess is None:
        return Traced(needed_steps=runs.spec.steps, replica_steps=runs.replica_steps)
    of_scan = guess.at + 1.96 * guess.standard_error * np.array([0.0, -1.0, 1.0])
    replicas, before = runs.spec.replicas, None
    held = int(_BYTES / (POINTS * 32 * runs.model.n_data))
    most = max(replicas, min(_MOST * replicas, held))
    for _ in range(_CLOSE_UPS):
        one = runs.close_up(guess, replicas, before)
        ends = _interval(one)
        resolved = one.settled and ends is not None
        if not resolved and one.needed_steps > runs.spec.steps:
            break
        half = math.inf if ends is None else float(ends[2] - ends[1]) / 2
        if resolved and half <= runs.half:
            break
        more = (half / (_AIM * runs.half)) ** 2 if resolved else _MORE
        replicas = min(math.ceil(more * one.replicas), most)
        if replicas <= one.replicas:
            break
        before = None if ends is None else one
    if ends is None:
        ends = of_scan
    elif not resolved:
        ends = np.array([ends[0], min(ends[1], of_scan[1]), max(ends[2], of_scan[2])])
    value, low, high = (float(rate) for rate in np.exp(ends))
    return Traced(
        value,
        low,
        high,
        resolved=resolved,
        precise=resolved and half <= runs.half,
        needed_steps=max(one.needed_steps, runs.spec.steps),
        steps=one.steps,
        replicas=one.replicas,
        replica_steps=runs.replica_steps,
    )


def _interval(one: CloseUp) -> FloatArray | None:
    """Return where a close-up's growth crosses zero, and the interval's ends; None if nowhere."""
    if not np.isfinite(one.growth).all():
        return None
    x = np.log(one.learning_rate)
    return interval_of_line(x, one.growth, one.growth_standard_error, one.correction, CONFIDENCE)


def _guess(runs: _Runs, start: float) -> Guess | None:
    """Return where growth crosses zero, from a bracket by doubling and a scan of it."""
    bracket = doubled(lambda x: _sign(runs, x), start)
    if math.isnan(bracket.low):
        return None
    low, high = bracket.low, bracket.high
    growth = runs.growth(np.array([low, high]), _SHORT, _MEMBERS).rate
    slope = max(float(growth[1] - growth[0]) / (high - low), 1e-9)
    slope = slope if math.isfinite(slope) else 1.0
    for _ in range(_SCANS):
        x = np.linspace(low, high, POINTS)
        steps = min(max(math.ceil(_SCANNED / slope), _SHORT), runs.longest)
        found = runs.growth(x, steps, _MEMBERS)
        guess = guess_from(x, found.rate, found.standard_error)
        if guess is not None:
            return guess._replace(coarseness=min(runs.half, _COARSEST))
        positive = found.rate > 0
        if positive.all():
            low, high = low - 1.0, low + 0.2
        elif not positive.any():
            low, high = high - 0.2, high + 1.0
        slope /= 2.0
    return None


def _sign(runs: _Runs, x: float) -> int:
    """Return the sign of growth, with more and longer runs where it is not clear; 0 if it stays."""
    for doubling in range(3):
        steps = min(_SHORT << doubling, max(runs.longest, _SHORT))
        found = runs.growth(np.array([x]), steps, _MEMBERS << doubling)
        rate, error = float(found.rate[0]), float(found.standard_error[0])
        if not math.isfinite(rate) or abs(rate) > _CLEAR * error:
            return int(np.sign(rate))
    return 0


# ---- full batches, and runs that diverge


def _trace_full_batches(runs: _Runs, start: float) -> Traced:
    """Return the edge above which full batches diverge."""

    def grow(x: FloatArray, steps: int) -> FloatArray:
        return runs.growth(x, steps, 2).rate

    bracket, steps = full_batch_bracket(grow, start, runs.half, runs.longest)
    needed = math.ceil(bracket.needed_steps / _LONGEST)
    return _between(bracket, runs, steps, 2, needed)


def _trace_divergence(runs: _Runs, start: float) -> Traced:
    """Return where half of the runs of a quadratic model diverge."""
    spec, alike = runs.spec, noise_free(runs.sgd, runs.model.n_data)
    replicas = 1 if alike else spec.replicas

    def of_one(x: float) -> int:
        return 1 if runs.diverged(x, 2) else -1

    decide: Callable[[float], int] = of_one
    if not alike:
        decide = SequentialTest(runs.diverged, replicas, _TESTED * replicas, alpha=1 - CONFIDENCE)
    bracket = doubled(decide, start)
    if not math.isnan(bracket.low):
        bracket = narrowed(decide, bracket, runs.half)
    return _between(bracket, runs, spec.steps, replicas, 0)


def _between(bracket: Bracket, runs: _Runs, steps: int, replicas: int, needed: int) -> Traced:
    """Return what a bracket says."""
    found = not math.isnan(bracket.low)
    precise = found and bracket.half <= runs.half * (1 + 1e-9)
    return Traced(
        math.exp((bracket.low + bracket.high) / 2) if found else math.nan,
        math.exp(bracket.low) if found else math.nan,
        math.exp(bracket.high) if found else math.nan,
        resolved=found,
        precise=precise,
        needed_steps=max(needed, runs.spec.steps),
        steps=steps,
        replicas=replicas,
        replica_steps=runs.replica_steps,
    )
