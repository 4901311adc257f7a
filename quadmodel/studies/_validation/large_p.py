"""The limit of many parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from quadmodel.large_p.trajectories import large_p_limit
from quadmodel.laws.curvature import IndependentCurvature
from quadmodel.model import QuadraticModel
from quadmodel.simulation.trajectories import simulate
from quadmodel.studies._edges import power_law_model
from quadmodel.studies._validation._rows import Effort, Row, gentle, mean_row


def large_p(effort: Effort) -> Iterator[Row]:
    """Loss and NTK in the limit of many parameters, from simulations at P and at 2P.

    A truncation order equal to the number of steps leaves nothing out of the limit. Simulations
    deviate from it by order 1/P; twice the mean at 2P less the mean at P has no such term.
    """
    n_data, n_params, steps, curvature_strength = 4, 400, 6, 0.8
    start = power_law_model(n_data, n_data, effort.seed)
    sgd = gentle(start.ntk(), 0.25, 2)
    names = ("loss", "ntk_trace", "ntk_largest_eigenvalue")
    options: dict[str, Any] = {
        "seed": effort.seed, "threads": effort.threads, "record_every": steps, "observables": names
    }  # fmt: skip
    law = IndependentCurvature(curvature_strength / n_data**0.5)
    with_law = replace(start, curvature_law=law)
    limit = large_p_limit(with_law, sgd, steps, truncation_order=steps, **options)
    runs = []
    for size in (n_params, 2 * n_params):
        law = IndependentCurvature(curvature_strength / size**0.5)
        jacobian = np.pad(start.jacobian, ((0, 0), (0, size - n_data)))
        for draw in range(effort.large_replicas):
            rng = np.random.default_rng([effort.seed, size, draw])
            model = QuadraticModel(start.residual, jacobian, law.sample(rng, n_data, size))
            runs.append(simulate(model, sgd, steps, **options))
    for name in names:
        values = np.array([float(run[name][0, -1]) for run in runs]).reshape(2, -1)
        label = limit[name].attrs["long_name"]
        predicted = float(limit[name][0, -1])
        yield mean_row(
            f"large-P limit: {label} at step {steps}", predicted, 2 * values[1] - values[0]
        )
