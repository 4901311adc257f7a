"""The trace of the NTK along a training, from a few data points per record."""

from __future__ import annotations

import math

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks._estimate import Estimate, mean_of
from quadmodel.networks._gradient_norms import squared_rows_by_signs
from quadmodel.networks._linearisation import Linearisation

# By default points per gradient that SGD has taken since the last record, and the fewest. A point
# costs about half a gradient: with what a record costs beside, that stays below 5 % of the time.
_SHARE, _FEWEST = 1 / 24, 32
# Share of draws that take all points alike, whatever is known of them: no point counts more than
# the inverse of it, however much it has grown since.
_UNIFORM = 0.2


class SampledTrace:
    r"""The mean of the points' squared row norms, from points drawn anew for every record.

    Points are drawn with replacement and probabilities :math:`p_i` that follow their squared norms
    :math:`y_i` as last measured (of those not measured yet, the mean): the mean of
    :math:`y_i/(Dp_i)` is unbiased for any p, and scatters little where norms change slowly,
    however unequal they are. What is measured once helps all later records.

    References
    ----------
    .. [1] M. Hansen, W. Hurwitz, Ann. Math. Stat. 14 (1943) 333.
    """

    def __init__(
        self, at: Linearisation, population: int, batch_size: int, sample: int | None, seed: int
    ) -> None:
        """Know nothing yet; `population` is the number of points that those of `at` are of."""
        self.at, self.batch_size, self.sample, self.seed = at, batch_size, sample, seed
        self.population = population
        # One gradient is exact where there is one output: nothing is random but the points.
        self.exact = at.n_outputs == 1 and at.n_data == population
        self.known = np.ones(at.n_data)
        self.step, self.found = -1, Estimate(math.nan, math.nan)

    def at_step(self, step: int) -> Estimate:
        """Return the estimate at a step: the same one however often it is asked for."""
        if step != self.step:
            count = self.sample
            if count is None:
                count = max(_FEWEST, int(_SHARE * self.batch_size * (step - self.step)))
            key = np.array([self.seed, step], dtype=np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key))
            self.found = self._of_all(rng) if count >= self.at.n_data else self._of(count, rng)
            self.step = step
        return self.found

    def _of_all(self, rng: np.random.Generator) -> Estimate:
        self.known = squared_rows_by_signs(self.at, rng)
        trace = mean_of(self.known)
        return Estimate(trace.value, 0.0) if self.exact else trace

    def _of(self, count: int, rng: np.random.Generator) -> Estimate:
        n, known = len(self.known), self.known
        mean = float(known.sum()) / n
        # Of what a gradient of zero everywhere leaves nothing is known.
        known = known + _UNIFORM / (1 - _UNIFORM) * mean if mean > 0 else np.ones(n)
        within = known.cumsum()
        drawn = within.searchsorted(within[-1] * rng.random(count), side="right")
        # A point that is drawn twice takes other signs: draws are independent.
        squares = squared_rows_by_signs(self.at, rng, drawn)
        trace = mean_of(squares / known[drawn] * (float(within[-1]) / n))
        if mean > 0:
            self.known *= trace.value / mean
        self.known[drawn] = squares
        if self.at.n_data == self.population:
            return trace
        # The probe is a sample itself.
        of_probe = float(self.known.var()) / n
        return Estimate(trace.value, math.sqrt(trace.standard_error**2 + of_probe))

    def state(self) -> FloatArray:
        """Return everything that later estimates depend on."""
        return np.concatenate([[self.step, *self.found], self.known])

    def put_back(self, state: FloatArray) -> None:
        """Go on from a state."""
        self.step, self.found = int(state[0]), Estimate(*state[1:3].tolist())
        self.known = state[3:].copy()
