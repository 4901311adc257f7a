"""The mean NTK along training, to second order in the curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from quadmodel.curvature import CurvatureLaw, IndependentCurvature, KroneckerCurvature
from quadmodel.ensemble import Ensemble
from quadmodel.simulation.ntk_draws import sample_ntk
from quadmodel.spectra import GivenEigenvalues
from quadmodel.studies._validation._rows import Effort, Row, gentle, mean_row
from quadmodel.theory.prediction import predict
from quadmodel.theory.sharpening import expected_ntk

# Few parameters beyond the data points: what those add, in proportion to their number, is then no
# larger than the other terms.
N_DATA, N_PARAMS = 4, 6
SCALE = 0.003
STEPS = 20
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "independent Q, SGD": ("independent", {}),
    "correlated Q, SGD": ("correlated", {}),
    "independent Q, Nesterov": ("independent", {"momentum": 0.6, "nesterov": True}),
    "correlated Q, heavy ball, decay": ("correlated", {"momentum": 0.6, "weight_decay": 0.2}),
}
_PICKS: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "trace": lambda found: found.ntk_trace,
    "top mode": lambda found: found.ntk_projection.isel(mode=0),
    "bottom mode": lambda found: found.ntk_projection.isel(mode=-1),
}


def laws(seed: int) -> dict[str, CurvatureLaw]:
    """Independent curvature, and one correlated over data and parameters."""
    rng = np.random.default_rng([seed, 1])
    over_data = rng.standard_normal((N_DATA, N_DATA))
    over_parameters = rng.standard_normal((N_PARAMS, N_PARAMS))
    return {
        "independent": IndependentCurvature(SCALE),
        "correlated": KroneckerCurvature(
            over_data @ over_data.T / N_DATA, over_parameters @ over_parameters.T / N_PARAMS, SCALE
        ),
    }


def sharpening(effort: Effort) -> Iterator[Row]:
    """Mean NTK after one, two and many steps, per law of the curvature and optimizer."""
    spectrum = GivenEigenvalues(2.0 / np.arange(1, N_DATA + 1))
    model = Ensemble(N_DATA, N_PARAMS, spectrum).sample(effort.seed)
    for label, (law_name, options) in CASES.items():
        law = laws(effort.seed)[law_name]
        sgd = gentle(model.ntk(), 0.3, 2, **options)
        drawn, mean = [], []
        for steps, every in ((2, 1), (STEPS, STEPS)):
            drawn.append(
                sample_ntk(
                    model,
                    sgd,
                    steps,
                    replicas=effort.ntk_replicas,
                    curvature=law,
                    batch_sequences=2,
                    record_every=every,
                    seed=effort.seed,
                    threads=effort.threads,
                )
            )
            mean.append(expected_ntk(model, sgd, steps, curvature=law, record_every=every))
        for name, pick in _PICKS.items():
            for title, k, weights in (
                ("first difference", 0, {0: -1, 1: 1}),
                ("second difference", 0, {0: 1, 1: -2, 2: 1}),
                (f"change in {STEPS} steps", 1, {0: -1, STEPS: 1}),
            ):
                predicted, values = (
                    sum(w * pick(found[k]).sel(step=step) for step, w in weights.items())
                    for found in (mean, drawn)
                )
                yield mean_row(f"{label}: {title}, {name}", float(predicted), np.asarray(values))
        at_end = drawn[1].isel(step=-1)
        pushed = at_end.ntk_eigenvalue - at_end.ntk_projection
        for mode, name in ((0, "largest"), (N_DATA - 1, "smallest")):
            predicted = float(mean[1].repulsion.isel(step=-1, mode=mode))
            label_of = f"{label}: repulsion of the {name} eigenvalue"
            yield mean_row(label_of, predicted, pushed.isel(mode=mode).values)
        curve = predict(model, sgd, STEPS, curvature=law, record_every=STEPS)
        values = at_end.ntk_eigenvalue.isel(mode=0).values
        predicted = float(curve.ntk_largest_eigenvalue[-1])
        yield mean_row(f"{label}: largest eigenvalue by predict()", predicted, values)


def conservative(effort: Effort) -> Iterator[Row]:
    """Compare what batch noise takes from the growth of the largest eigenvalue."""
    law = GivenEigenvalues(3.0 / np.arange(1, 13))
    model = Ensemble(12, 24, jacobian=law, curvature=0.003).sample(effort.seed)
    small = gentle(model.ntk(), 0.4, 2)
    steps = 40
    drawn, mean = [], []
    for sgd in (small, replace(small, batch_size=12)):
        drawn.append(
            sample_ntk(
                model,
                sgd,
                steps,
                replicas=max(effort.ntk_replicas // 3, 2),
                batch_sequences=24 if sgd is small else 1,
                seed=effort.seed,
                threads=effort.threads,
                record_every=steps,
            ).isel(step=-1)
        )
        mean.append(expected_ntk(model, sgd, steps, record_every=steps).isel(step=-1))
    for name, variable in (("mean", "ntk_eigenvalue"), ("along its mode", "ntk_projection")):
        theory = mean[0][variable][0] - mean[1][variable][0]
        values = drawn[0][variable].isel(mode=0) - drawn[1][variable].isel(mode=0)
        label = f"largest eigenvalue, B = 2 less B = 12, {name}"
        yield mean_row(label, float(theory), values.values)
