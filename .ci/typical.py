"""Where typical_growth() says that it holds: `python .ci/typical.py [SETTINGS] [SEED]`.

Settings are drawn at random and measured with lyapunov_exponent(); the table says how often the
prediction holds as its docstring promises, where it is flagged valid and where it is not.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

import quadmodel as qm
from quadmodel import spectra
from quadmodel.eigenvectors import Localised
from quadmodel.optimizer import SAMPLING_SCHEMES

REPLICAS = 32
# Replica-steps times variance per step at which half the variance is known to about 6 %.
TARGET = 1000.0
SECONDS = 8.0  # at most about so long per setting, on one core


class Setting(NamedTuple):
    """A random setting."""

    kind: str
    level: float
    ntk: np.ndarray
    sgd: qm.SGD


def draw(generator: np.random.Generator) -> Setting:
    """Return a random setting: 4 to 200 points, exact K from 0.8 to 1.3."""
    while True:
        n_data = round(math.exp(generator.uniform(math.log(4), math.log(200))))
        kinds = ("independent", "almost orthogonal", "power law", "spread", "outliers")
        kind = str(generator.choice(kinds, p=(0.3, 0.1, 0.2, 0.25, 0.15)))
        n_params, law = n_data, None
        if kind == "independent":
            n_params = max(2, round(n_data * generator.uniform(0.7, 4)))
        elif kind == "almost orthogonal":
            n_params = n_data * 100
        elif kind == "power law":
            law = np.arange(1.0, n_data + 1) ** -generator.uniform(0.5, 1.5)
        elif kind == "spread":
            law = np.exp(generator.uniform(-generator.uniform(0.1, 7), 0, n_data))
        else:
            n_params = 2 * n_data
            law = spectra.Outliers(generator.uniform(4, 20, generator.integers(1, 4)))
        vectors = None
        if generator.random() < 0.2 and n_data >= 8:
            vectors = Localised(generator.uniform(0.15, 0.5), generator.uniform(0.3, 1))
        given = {} if law is None else {"jacobian": law}
        model = qm.Ensemble(n_data, n_params, eigenvectors=vectors, **given).sample(
            int(generator.integers(2**32))
        )
        ntk, momentum, nesterov, decay = model.ntk(), 0.0, False, 0.0
        if generator.random() < 0.5:
            momentum, nesterov = generator.uniform(-0.3, 0.9), bool(generator.random() < 0.5)
        if generator.random() < 0.2:
            decay = generator.uniform(0, 0.1) * np.trace(ntk) / n_data
        sgd = qm.SGD(
            1.0,
            round(math.exp(generator.uniform(0, math.log(max(1, n_data // 2))))),
            momentum,
            nesterov,
            decay, str(generator.choice(SAMPLING_SCHEMES)),
        )  # fmt: skip
        level = generator.uniform(0.8, 1.3)
        rate = qm.critical_learning_rate(ntk, sgd, norm="exact", level=level)
        if rate < qm.edge_of_stability(ntk, sgd):
            return Setting(kind, level, ntk, replace(sgd, learning_rate=rate))


def measure(setting: Setting, variance: float, relaxation: float) -> tuple[float, float]:
    """Return the measured typical growth and its standard error."""
    per_step = 2e-7 * len(setting.ntk) ** 0.6 * setting.sgd.batch_size**0.4
    steps = max(TARGET / (REPLICAS * max(variance, 1e-9)), 20 * relaxation, 1000)
    steps = int(min(steps, SECONDS / (REPLICAS * per_step)))
    found = qm.lyapunov_exponent(
        setting.ntk, setting.sgd, steps, replicas=REPLICAS, burn_in=steps // 4
    )
    return float(found.typical_growth), float(found.typical_growth_standard_error)
