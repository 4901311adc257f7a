"""The mean NTK along training, to second order in the curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray
from quadmodel.ensemble import Ensemble
from quadmodel.laws.curvature import CurvatureLaw, IndependentCurvature, KroneckerCurvature
from quadmodel.simulation.ntk_draws import sample_ntk
from quadmodel.simulation.trajectories import simulate
from quadmodel.spectra import GivenEigenvalues
from quadmodel.studies._validation._rows import Effort, Row, gentle, mean_row
from quadmodel.theory.prediction import predict
from quadmodel.theory.sharpening import expected_ntk

# Few parameters beyond the data points: what those add, in proportion to their number, is then no
# larger than the other terms.
N_DATA, N_PARAMS = 4, 6
SCALE = 0.003
_SPECTRUM = GivenEigenvalues(2.0 / np.arange(1, N_DATA + 1))
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
    model = Ensemble(N_DATA, N_PARAMS, _SPECTRUM).sample(effort.seed)
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
                theory, values = (
                    sum(w * pick(found[k]).sel(step=step) for step, w in weights.items())
                    for found in (mean, drawn)
                )
                yield mean_row(f"{label}: {title}, {name}", float(theory), np.asarray(values))
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


def response(effort: Effort) -> Iterator[Row]:
    """Mean NTK with full batches, where the mean over curvature is a sum over its directions.

    To second order the mean of what a run does is the sum of second differences along the
    independent directions of the curvature. Nothing is random; the error is that of the finite size
    of the differences.
    """
    model = Ensemble(N_DATA, N_PARAMS, _SPECTRUM).sample(effort.seed)
    size = 1e-3
    names = ("ntk_trace", "ntk_eigenvalue")
    for label, (law_name, options) in CASES.items():
        law = laws(effort.seed)[law_name]
        sgd = replace(gentle(model.ntk(), 0.3, 2, **options), batch_size=N_DATA)

        def changed(curvature: FloatArray | None, model: Any = model, sgd: Any = sgd) -> FloatArray:
            bent = replace(model, curvature=curvature)
            run = simulate(bent, sgd, STEPS, record_every=STEPS, observables=names, seed=1)
            end = run.isel(replica=0, step=-1)
            return np.append(end.ntk_eigenvalue.values, float(end.ntk_trace))

        straight, found = changed(None), np.zeros(1 + N_DATA)
        for direction in _directions(law):
            both = changed(size * direction) + changed(-size * direction)
            found += both / 2 - straight
        found *= (SCALE / size) ** 2
        mean = expected_ntk(model, sgd, STEPS, curvature=law, record_every=STEPS)
        both = np.column_stack([mean.ntk_eigenvalue, mean.ntk_trace])
        predicted = both[-1] - both[0]
        what = [f"eigenvalue {k + 1}" for k in range(N_DATA)] + ["trace"]
        for name, theory, value in zip(what, predicted, found, strict=True):
            title = f"{label}, full batches: change in {STEPS} steps, {name}"
            yield Row(title, float(theory), float(value), 2e-4 * float(np.abs(found).max()))


def _directions(law: CurvatureLaw) -> Iterator[FloatArray]:
    """Yield symmetric curvatures whose random multiples add up to a draw, up to its scale."""
    of_data, of_parameters, _ = law.kronecker(N_DATA, N_PARAMS)
    data = np.eye(N_DATA) if of_data is None else np.linalg.cholesky(of_data)
    parameters = np.eye(N_PARAMS) if of_parameters is None else np.linalg.cholesky(of_parameters)
    for point, (p, q) in product(range(N_DATA), combinations_with_replacement(range(N_PARAMS), 2)):
        outer = np.outer(parameters[:, p], parameters[:, q])
        symmetric = outer + outer.T if p != q else 2**0.5 * outer
        yield np.multiply.outer(data[:, point], symmetric)


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
