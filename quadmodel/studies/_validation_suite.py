"""The validation suite of :func:`quadmodel.validate`: rows of closed form against Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import workers
from quadmodel.comparison import critical_noise_kernel_norm
from quadmodel.curvature import CurvatureLaw, IndependentCurvature, KroneckerCurvature
from quadmodel.ensemble import Ensemble
from quadmodel.large_p.trajectories import large_p_limit
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.lyapunov import lyapunov_exponent
from quadmodel.simulation.ntk_draws import sample_ntk
from quadmodel.simulation.populations import population_growth
from quadmodel.simulation.trajectories import simulate
from quadmodel.spectra import GivenEigenvalues
from quadmodel.studies._edges import power_law_model
from quadmodel.studies.phases import phase_diagram
from quadmodel.theory.moments import late_time_rate, loss_floor
from quadmodel.theory.noise_kernel import critical_learning_rate
from quadmodel.theory.prediction import predict
from quadmodel.theory.sharpening import expected_ntk
from quadmodel.theory.typical import typical_growth

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "with replacement": {"sampling": "with_replacement"},
    "Bernoulli": {"sampling": "bernoulli"},
    "heavy ball": {"momentum": 0.8},
    "Nesterov": {"momentum": 0.8, "nesterov": True},
    "weight decay": {"weight_decay": 0.05},
    "momentum, decay": {"momentum": 0.8, "weight_decay": 0.05},
}


@dataclass(frozen=True)
class Row:
    """One comparison: a number that theory predicts and a simulation measures."""

    name: str
    predicted: float
    measured: float
    standard_error: float


@dataclass(frozen=True)
class Effort:
    """How much to simulate.

    `replicas` of linear models; `ntk_replicas` and, where the model is large or followed at two
    sizes, `large_replicas` with a curvature of their own each.
    """

    replicas: int
    ntk_replicas: int
    large_replicas: int
    growth_steps: int
    threads: int | None
    seed: int


def _mean(name: str, predicted: float, values: FloatArray) -> Row:
    """Return a row whose measurement is a mean of independent values."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5)
    return Row(name, float(predicted), float(np.mean(values)), error)


def _linear(effort: Effort) -> Iterator[Row]:
    """Mean loss and squared residuals along modes, per optimizer and sampling scheme."""
    model = Ensemble(30, 60).sample(effort.seed)
    for name, options in OPTIMIZERS.items():
        sgd = SGD(1.0, 6, **options)
        rate = critical_learning_rate(model.ntk(), sgd, norm="exact", level=0.4)
        sgd = replace(sgd, learning_rate=rate)
        options = {"replicas": effort.replicas, "seed": effort.seed, "threads": effort.threads}
        runs = simulate(model, sgd, 40, record_every=10, **options)
        curve = predict(model, sgd, 40, record_every=10)
        for step in (10, 40):
            yield _mean(
                f"{name}: loss at step {step}",
                float(curve.loss.sel(step=step)),
                runs.loss.sel(step=step).values,
            )
        for mode, what in ((0, "largest"), (29, "smallest")):
            at = {"step": 40, "mode": mode}
            yield Row(
                f"{name}: squared residual along the {what} mode at step 40",
                float(curve.mode_energy.sel(at)),
                float(runs.mode_energy.sel(at)),
                float(runs.mode_energy_standard_error.sel(at)),
            )


def _floor(effort: Effort) -> Iterator[Row]:
    """Loss that remains where the parameters cannot reach the residual."""
    model = Ensemble(40, 20).sample(effort.seed)
    sgd = SGD(1.0, 8)
    rate = critical_learning_rate(model.ntk(), sgd, norm="exact", level=0.4)
    sgd = replace(sgd, learning_rate=rate)
    runs = simulate(
        model,
        sgd,
        600,
        replicas=effort.replicas // 4,
        record_every=10,
        seed=effort.seed,
        threads=effort.threads,
    )
    late = runs.loss.sel(step=slice(400, None)).mean("step").values
    yield _mean("loss floor", loss_floor(model.ntk(), model.residual, sgd, norm="exact"), late)


def _rate(effort: Effort) -> Iterator[Row]:
    """Growth of the mean loss per step, at K below and above 1."""
    model = Ensemble(60, 120).sample(effort.seed)
    for batch_size, level in ((6, 0.8), (6, 1.05), (20, 1.05)):
        sgd = SGD(1.0, batch_size)
        rate = critical_learning_rate(model.ntk(), sgd, norm="exact", level=level)
        sgd = replace(sgd, learning_rate=rate)
        with workers(effort.threads) as pool:
            mean, _ = population_growth(
                model,
                np.array([rate]),
                np.array([batch_size]),
                sgd,
                steps=effort.growth_steps,
                replicas=64,
                seed=effort.seed,
                first_replica=0,
                pool=pool,
            )
        yield Row(
            f"log growth of the mean loss, K = {level}, B = {batch_size}",
            float(np.log(late_time_rate(model.ntk(), sgd, norm="exact"))),
            float(mean.rate[0]),
            float(mean.standard_error[0]),
        )


def _stationary_ntk(n_data: int, seed: int) -> FloatArray:
    """Return the NTK of data points on a ring, which depends on their distance alone.

    Half of its eigenvalues are 1, half 0.3.
    """
    rng = np.random.default_rng([seed, 2])
    frequencies = n_data // 2 + 1
    of_frequency = np.where(rng.permutation(frequencies) < frequencies // 2, 1.0, 0.3)
    column = np.fft.irfft(of_frequency, n_data)
    point = np.arange(n_data)
    return np.asarray(column[np.abs(point[:, None] - point[None, :])])


def _typical(effort: Effort) -> Iterator[Row]:
    """Growth of the typical loss where the mean loss neither grows nor decays."""
    ntk = _stationary_ntk(100, effort.seed)
    # The prediction is of leading order, with an error of 1 to 2 % of the difference between
    # typical and mean growth. Up to this many steps the standard error is larger: 7 %.
    steps = min(effort.growth_steps, 1000)
    for sampling in ("without_replacement", "bernoulli"):
        sgd = SGD(1.0, 10, sampling=sampling)
        rate = critical_learning_rate(ntk, sgd, norm="exact")
        sgd = replace(sgd, learning_rate=rate)
        found = lyapunov_exponent(
            ntk,
            sgd,
            steps,
            replicas=1000,
            seed=effort.seed,
            burn_in=min(100, steps // 2),
            threads=effort.threads,
        )
        yield Row(
            f"log growth of the typical loss, K = 1, {sampling.replace('_', ' ')}",
            float(typical_growth(ntk, sgd).typical_growth),
            float(found.typical_growth),
            float(found.typical_growth_standard_error),
        )


def _threshold(effort: Effort) -> Iterator[Row]:
    """Exact noise kernel norm where simulated SGD turns unstable."""
    model = Ensemble(60, 120).sample(effort.seed)
    grid = phase_diagram(
        model,
        12,
        [2, 6],
        steps=effort.growth_steps,
        replicas=32,
        seed=effort.seed,
        refine=10,
        threads=effort.threads,
    )
    found = critical_noise_kernel_norm(grid)
    for batch_size in (2, 6):
        at = found.sel(batch_size=batch_size)
        width = float(at.noise_kernel_norm_high - at.noise_kernel_norm_low)
        yield Row(
            f"critical noise kernel norm, B = {batch_size}",
            1.0,
            float(at.noise_kernel_norm),
            width / (2 * 1.959964),
        )


def _laws(n_data: int, n_params: int, seed: int) -> dict[str, CurvatureLaw]:
    """Independent curvature, and one correlated over data and parameters."""
    rng = np.random.default_rng([seed, 1])
    over_data = rng.standard_normal((n_data, n_data))
    over_parameters = rng.standard_normal((n_params, n_params))
    return {
        "independent Q": IndependentCurvature(0.005),
        "correlated Q": KroneckerCurvature(
            over_data @ over_data.T / n_data, over_parameters @ over_parameters.T / n_params, 0.005
        ),
    }


def _sharpening(effort: Effort) -> Iterator[Row]:
    """Mean NTK after one, two and many steps, per law of the curvature and optimizer."""
    base = Ensemble(8, 40).sample(effort.seed)
    cases = [("independent Q", "SGD"), ("correlated Q", "SGD"), ("independent Q", "Nesterov")]
    for law_name, optimizer in cases:
        law = _laws(8, 40, effort.seed)[law_name]
        sgd = SGD(1.0, 2, **OPTIMIZERS[optimizer])
        rate = critical_learning_rate(base.ntk(), sgd, norm="exact", level=0.15)
        sgd = replace(sgd, learning_rate=rate)
        drawn = sample_ntk(
            base,
            sgd,
            20,
            replicas=effort.ntk_replicas,
            curvature=law,
            batch_sequences=4,
            record_every=1,
            seed=effort.seed,
            threads=effort.threads,
        )
        mean = expected_ntk(base, sgd, 20, curvature=law, record_every=1)
        label = f"{law_name}, {optimizer}"
        for name, pick in _PICKS.items():
            yield _mean(f"{label}: first difference, {name}", *_difference(mean, drawn, pick, 1))
            yield _mean(f"{label}: second difference, {name}", *_difference(mean, drawn, pick, 2))
            yield _mean(f"{label}: change in 20 steps, {name}", *_change(mean, drawn, pick, 20))


_PICKS: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "trace": lambda found: found.ntk_trace,
    "top mode": lambda found: found.ntk_projection.isel(mode=0),
}


def _difference(
    mean: xr.Dataset, drawn: xr.Dataset, pick: Callable[[xr.Dataset], xr.DataArray], order: int
) -> tuple[float, FloatArray]:
    weights = {1: {0: -1, 1: 1}, 2: {0: 1, 1: -2, 2: 1}}[order]
    theory, values = (
        sum(weight * pick(found).sel(step=step) for step, weight in weights.items())
        for found in (mean, drawn)
    )
    return float(theory), values.values  # type: ignore[union-attr]


def _change(
    mean: xr.Dataset, drawn: xr.Dataset, pick: Callable[[xr.Dataset], xr.DataArray], step: int
) -> tuple[float, FloatArray]:
    theory, values = (
        pick(found).sel(step=step) - pick(found).sel(step=0) for found in (mean, drawn)
    )
    return float(theory), values.values


def _conservative_case(seed: int) -> tuple[QuadraticModel, SGD]:
    """Return a model whose largest eigenvalue batch noise keeps from growing, and its SGD."""
    law = GivenEigenvalues(3.0 / np.arange(1, 61))
    model = Ensemble(60, 240, jacobian=law, curvature=0.003).sample(seed)
    sgd = SGD(1.0, 6)
    rate = critical_learning_rate(model.ntk(), sgd, norm="exact", level=0.5)
    return model, replace(sgd, learning_rate=rate)


def _conservative(effort: Effort) -> Iterator[Row]:
    """Compare what batch noise takes from the growth of the largest eigenvalue."""
    model, small = _conservative_case(effort.seed)
    full = replace(small, batch_size=60)
    steps = 60
    drawn, mean = [], []
    for sgd in (small, full):
        drawn.append(
            sample_ntk(
                model,
                sgd,
                steps,
                replicas=effort.large_replicas,
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
        yield _mean(f"largest eigenvalue, B = 6 less B = 60, {name}", float(theory), values.values)


def _large_p(effort: Effort) -> Iterator[Row]:
    """Loss and NTK in the limit of many parameters, from simulations at P and at 2P.

    A truncation order equal to the number of steps leaves nothing out of the limit. Simulations
    deviate from it by order 1/P; twice the mean at 2P less the mean at P has no such term.
    """
    n_data, n_params, steps, curvature_strength = 4, 400, 6, 0.8
    start = power_law_model(n_data, n_data, effort.seed)
    sgd = SGD(critical_learning_rate(start.ntk(), SGD(1.0, 2), norm="paper", level=0.25), 2)
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
        yield _mean(f"large-P limit: {label} at step {steps}", predicted, 2 * values[1] - values[0])


SUITE: tuple[Callable[[Effort], Iterator[Row]], ...] = (
    _linear,
    _floor,
    _rate,
    _typical,
    _threshold,
    _sharpening,
    _conservative,
    _large_p,
)
