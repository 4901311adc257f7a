"""How often typical_growth() holds where it says so: `python .ci/typical.py [SETTINGS] [SEED]`.

Draws settings at random (4 to 200 data points, exact K from 0.8 to 1.3), measures each with
lyapunov_exponent(), and prints how many predictions are as close as the docstring promises, among
those flagged valid and among the others. Exits with 1 where less than 99 % of the flagged ones are.
About a second per setting on one core.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import xarray as xr

import quadmodel as qm
from quadmodel import spectra
from quadmodel.laws.eigenvectors import Localised
from quadmodel.optimizer import SAMPLING_SCHEMES

ACCURACY = 1 / 3  # what the docstring promises
SIZES = (4, 10, 20, 50, 100, 200)
HEAD = (
    "data points", "settings", "hold", "valid", "valid, hold", "not valid, hold", "not measured",
)  # fmt: skip
REPLICAS = 32
# Replica-steps times variance per step at which half the variance is known to about 6 %.
TARGET = 1000.0
SECONDS = 5.0  # at most about so long per setting, on one core


class Setting(NamedTuple):
    """A random setting."""

    ntk: np.ndarray
    sgd: qm.SGD


class Outcome(NamedTuple):
    """What became of one."""

    n_data: int
    valid: bool
    error: float  # of the prediction, in units of what the promise is relative to
    standard_error: float  # of the measurement, likewise
    measured: bool  # whether the run was long against the relaxation

    @property
    def holds(self) -> bool:
        """Whether the prediction is as close as promised, or as far as can be told."""
        return self.error <= max(ACCURACY, 3 * self.standard_error)


def draw(generator: np.random.Generator) -> Setting:
    """Return a random setting; its learning rate is that of a random exact K."""
    while True:
        ntk = draw_ntk(generator)
        n_data, momentum, nesterov, decay = len(ntk), 0.0, False, 0.0
        if generator.random() < 0.5:
            momentum, nesterov = generator.uniform(-0.3, 0.9), bool(generator.random() < 0.5)
        if generator.random() < 0.2:
            decay = generator.uniform(0, 0.1) * np.trace(ntk) / n_data
        sgd = qm.SGD(
            1.0,
            round(math.exp(generator.uniform(0, math.log(max(1, n_data // 2))))),
            momentum,
            nesterov,
            decay,
            str(generator.choice(SAMPLING_SCHEMES)),
        )
        level = generator.uniform(0.8, 1.3)
        rate = qm.critical_learning_rate(ntk, sgd, level=level)
        if rate < qm.edge_of_stability(ntk, sgd):  # else K jumps over the level there
            return Setting(ntk, replace(sgd, learning_rate=rate))


def draw_ntk(generator: np.random.Generator) -> np.ndarray:
    """Return an NTK of a random size, spectrum and localisation."""
    n_data = round(math.exp(generator.uniform(math.log(SIZES[0]), math.log(SIZES[-1]))))
    kinds = ("independent", "almost orthogonal", "power law", "spread", "outliers")
    kind = str(generator.choice(kinds, p=(0.3, 0.1, 0.2, 0.25, 0.15)))
    n_params, law = 2 * n_data, None
    if kind == "independent":
        n_params = max(2, round(n_data * generator.uniform(0.7, 4)))
    elif kind == "almost orthogonal":
        n_params = n_data * 100
    elif kind == "power law":
        law = np.arange(1.0, n_data + 1) ** -generator.uniform(0.5, 1.5)
    elif kind == "spread":
        law = np.exp(generator.uniform(-generator.uniform(0.1, 7), 0, n_data))
    else:
        law = spectra.Outliers(generator.uniform(4, 20, generator.integers(1, 4)))
    vectors = None
    if generator.random() < 0.2 and n_data >= 8:
        vectors = Localised(generator.uniform(0.15, 0.5), generator.uniform(0.3, 1))
    given = {} if law is None else {"jacobian": law}
    ensemble = qm.Ensemble(n_data, n_params, eigenvectors=vectors, **given)
    return ensemble.sample(int(generator.integers(2**32))).ntk()


def measure(setting: Setting, predicted: xr.Dataset) -> Outcome:
    """Simulate a setting and compare."""
    n_data, sgd = len(setting.ntk), setting.sgd
    variance = float(predicted.one_step_variance)
    relaxation = float(predicted.relaxation_steps + predicted.memory_steps)
    per_step = 2e-7 * n_data**0.6 * sgd.batch_size**0.4
    steps = max(TARGET / (REPLICAS * max(variance, 1e-9)), 20 * relaxation, 1000)
    steps = int(min(steps, SECONDS / (REPLICAS * per_step)))
    found = qm.lyapunov_exponent(setting.ntk, sgd, steps, replicas=REPLICAS, burn_in=steps // 4)
    unit = max(abs(float(predicted.mean_growth)), variance / 2) or 1.0
    return Outcome(
        n_data,
        bool(predicted.valid),
        abs(float(predicted.typical_growth - found.typical_growth)) / unit,
        float(found.typical_growth_standard_error) / unit,
        steps >= 5 * relaxation,
    )


def table(outcomes: list[Outcome]) -> str:
    """Return counts per number of data points and in all."""
    lines = ["{:>12}{:>10}{:>8}{:>8}{:>13}{:>17}{:>14}".format(*HEAD)]
    ranges = [*itertools.pairwise(SIZES), (SIZES[0], SIZES[-1])]
    for low, high in ranges:
        here = [o for o in outcomes if low <= o.n_data < high + (high == SIZES[-1])]
        known = [o for o in here if o.measured]
        valid = [o for o in known if o.valid]
        held, good = sum(o.holds for o in known), sum(o.holds for o in valid)
        lines.append(
            f"{f'{low} to {high}':>12}{len(known):>10}{held:>8}{len(valid):>8}"
            f"{good:>13}{held - good:>17}{len(here) - len(known):>14}"
        )
    return "\n".join(lines)


def main(count: int, seed: int) -> int:
    """Print the table; return 1 where the flag is wrong too often."""
    generator = np.random.default_rng(seed)
    outcomes = []
    while len(outcomes) < count:
        setting = draw(generator)
        outcomes.append(measure(setting, qm.typical_growth(*setting)))
    print(table(outcomes))
    valid = [o for o in outcomes if o.valid and o.measured]
    rate = sum(o.holds for o in valid) / max(len(valid), 1)
    print(f"of those flagged valid, {100 * rate:.1f} % hold within {ACCURACY:.2f} or 3 errors")
    return int(rate < 0.99)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*[*given, *(300, 0)[len(given) :]]))
