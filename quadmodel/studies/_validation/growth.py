"""Late-time growth of the linear model: of the mean loss and of the typical one, and edges."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import workers
from quadmodel.comparison import critical_noise_kernel_norm
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.lyapunov import lyapunov_exponent
from quadmodel.simulation.populations import population_growth
from quadmodel.simulation.trajectories import simulate
from quadmodel.studies._validation._rows import Effort, Row, ring_ntk
from quadmodel.studies._validation.moments import OPTIMIZERS
from quadmodel.studies.phases import phase_diagram
from quadmodel.theory.moments import late_time_rate
from quadmodel.theory.noise_kernel import critical_learning_rate, edge_of_stability
from quadmodel.theory.typical import typical_growth

# About where the mean loss turns unstable; what is simulated doesn't depend on the theory that it
# is set beside.
_RATES_OF_A_MATRIX = {
    "SGD": 0.5634,
    "with replacement": 0.4659,
    "heavy ball": 0.194,
    "Nesterov": 0.2483,
    "weight decay": 0.5716,
    "Nesterov, decay": 0.3156,
}
_RATES_ON_A_RING = {
    ("SGD", "finite"): 0.9817,
    ("Nesterov, decay", "finite"): 0.5545,
    ("Bernoulli", "paper"): 0.9692,
}
_NEAR = np.array([0.96, 1.0, 1.04, 0.6])
# Of 12 points: in smaller batches the mean hangs on rarer runs than a population has.
_BATCH = 4
# Populations per learning rate: the standard error of one is from 16 blocks of steps, too few for
# the far tail of a normal distribution.
_POPULATIONS = 8


def rate(effort: Effort) -> Iterator[Row]:
    """Growth of the mean loss per step on both sides of its edge, and the edge between them."""
    rng = np.random.default_rng(7)  # the same for every seed
    jacobian = rng.standard_normal((12, 24)) / 2**0.5
    ntk = jacobian @ jacobian.T / 12
    for name, near in _RATES_OF_A_MATRIX.items():
        yield from _growth(ntk, OPTIMIZERS[name], near, name, "exact", effort)
    ring = ring_ntk(12, np.array([1.0, 0.8, 0.3, 0.9, 0.5, 0.7, 0.4]))
    for (name, norm), near in _RATES_ON_A_RING.items():
        yield from _growth(ring, OPTIMIZERS[name], near, name, norm, effort)


def _growth(
    ntk: FloatArray, options: dict[str, Any], near: float, name: str, norm: str, effort: Effort
) -> Iterator[Row]:
    rates = near * _NEAR
    model = QuadraticModel.from_ntk(ntk)
    with workers(effort.threads) as pool:
        mean, _ = population_growth(
            model,
            np.repeat(rates, _POPULATIONS),
            np.full(rates.size * _POPULATIONS, _BATCH),
            SGD(1.0, _BATCH, **options),
            steps=effort.growth_steps,
            replicas=48,
            seed=effort.seed,
            first_replica=0,
            pool=pool,
        )
    growth = mean.rate.reshape(-1, _POPULATIONS).mean(axis=1)
    squares = (mean.standard_error**2).reshape(-1, _POPULATIONS)
    error = np.sqrt(squares.mean(axis=1) / _POPULATIONS)
    if norm != "paper":
        for k, side in ((3, "far below"), (0, "below"), (2, "above")):
            predicted = late_time_rate(ntk, SGD(rates[k], _BATCH, **options), norm=norm)
            label = f"log growth of the mean loss ({norm}), {name}, {side} the edge"
            yield Row(label, float(np.log(predicted)), float(growth[k]), float(error[k]))
    growth, error, rates = growth[:3], error[:3], rates[:3]
    found = _zero(growth, rates)
    moved = [_zero(growth + shift, rates) - found for shift in np.diag(error)]
    predicted = critical_learning_rate(ntk, SGD(1.0, _BATCH, **options), norm=norm)
    spread = float(np.linalg.norm(moved))
    yield Row(f"critical learning rate ({norm}), {name}", predicted, found, spread)


def _zero(growth: FloatArray, rates: FloatArray) -> float:
    """Return the learning rate without growth: a parabola through three points."""
    at = np.polynomial.Polynomial.fit(growth, rates, 2)
    return float(at(0.0))


def edge(effort: Effort) -> Iterator[Row]:
    """Growth per step without batch noise at the deterministic edge: none.

    Nothing is random there; the error is that of rounding and of a finite time.
    """
    ntk = np.diag([1.0, 0.4])
    model = QuadraticModel.from_ntk(ntk, [1.0, 1.0])
    for momentum, nesterov in product((0.0, 0.5, -0.6), (False, True)):
        options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1}
        at = edge_of_stability(ntk, SGD(1.0, 2, **options))
        runs = simulate(model, SGD(at, 2, **options), 400, seed=effort.seed)
        energy = runs.mode_energy.isel(mode=0).values
        # Weight decay keeps the residual away from zero: what shrinks or grows is its motion.
        early, late = energy[100:200].std(), energy[300:400].std()
        kind = "Nesterov" if nesterov else "heavy ball"
        label = f"log growth at the edge of stability, {kind}, momentum {momentum}"
        yield Row(label, 0.0, float(np.log(late / early)) / 200, 2e-4)
    for learning_rate in (0.1, 2.5):  # roots of the recursion that are real, of both signs
        sgd = SGD(learning_rate, 2, 0.3)
        predicted = float(np.log(late_time_rate(ntk, sgd, norm="exact")))
        losses = simulate(model, sgd, 150, seed=effort.seed).loss.values[0]
        label = f"log growth of the loss, full batches, learning rate {learning_rate}"
        yield Row(label, predicted, float(np.log(losses[150] / losses[100])) / 50, 1e-4)


def one_step(effort: Effort) -> Iterator[Row]:
    r"""Mean and variance of one step of the log loss, over batches and normal residuals.

    On a ring whose NTK is a projection on three modes: all of them are alike, so that normal
    residuals in its range have the stationary direction, and the loss is the quadratic form whose
    mean grows by r from every state. Means over residuals are exact: the variance is a polynomial
    of fourth degree in them, and quadrature with three nodes per direction is good to the fifth.
    """
    for n_data, frequencies, sampling, batch_size in (
        (8, (0, 1), "without_replacement", 2),
        (8, (0, 1), "without_replacement", 5),
        (8, (0, 1), "with_replacement", 2),
        (8, (0, 1), "bernoulli", 2),
        (3, (1,), "without_replacement", 1),
        (3, (1,), "without_replacement", 2),
    ):
        of_frequency = np.isin(np.arange(n_data // 2 + 1), frequencies).astype(float)
        ntk = ring_ntk(n_data, of_frequency)
        sgd = SGD(0.7, batch_size, sampling=sampling)
        mean, variance, spreads = _measure_step(ntk, sgd, effort)
        found = typical_growth(ntk, sgd)
        at = f"{sampling.replace('_', ' ')}, {batch_size} of {n_data} points"
        label = f"log growth of the mean loss in a step, {at}"
        yield Row(label, float(found.mean_growth), float(np.log(mean)), spreads[0] / mean)
        label = f"variance of the log loss in a step, {at}"
        yield Row(label, float(found.one_step_variance), variance, spreads[1])


def _measure_step(
    ntk: FloatArray, sgd: SGD, effort: Effort
) -> tuple[float, float, tuple[float, float]]:
    """Return mean and relative variance of a step's factor on the loss, with standard errors."""
    nodes, weights = np.sqrt([3.0, 0.0, 3.0]) * [-1, 0, 1], np.array([1, 4, 1]) / 6
    n_data, dimension = len(ntk), int(np.rint(np.trace(ntk)))
    reached = np.linalg.eigh(ntk)[1][:, -dimension:]
    mean = variance = 0.0
    parts = []
    for number, index in enumerate(product(range(3), repeat=dimension)):
        start, weight = nodes[list(index)], float(np.prod(weights[list(index)]))
        runs = simulate(
            QuadraticModel.from_ntk(ntk, reached @ start),
            sgd,
            1,
            replicas=effort.replicas,
            observables=["loss"],
            seed=effort.seed,
            model_index=number,
            threads=effort.threads,
        )
        squared = 2 * n_data * runs.loss.sel(step=1).values
        away = squared - squared.mean()
        mean += weight * squared.mean() / dimension
        variance += weight * (away**2).mean()
        parts.append((weight, away, away**2 - (away**2).mean()))
    scale = mean**2 * dimension * (dimension + 2)  # r^2 E |z|^4
    of_mean = [w * a / dimension for w, a, _ in parts]
    of_variance = [
        w * b / scale - 2 * variance / scale * w * a / dimension / mean for w, a, b in parts
    ]
    spreads = [
        float(np.sqrt(sum(np.mean(v**2) for v in values) / effort.replicas))
        for values in (of_mean, of_variance)
    ]
    return float(mean), float(variance / scale), (spreads[0], spreads[1])


def typical(effort: Effort) -> Iterator[Row]:
    """Growth of the typical loss where the mean loss hardly grows or decays."""
    shuffled = np.random.default_rng(7).permutation(51)  # the same for every seed
    ntk = ring_ntk(100, np.where(shuffled % 2, 1.0, 0.3))
    # The prediction is of leading order, with an error of 1 to 2 % of the difference between
    # typical and mean growth. Up to this many steps the standard error is larger.
    steps = min(effort.growth_steps, 1000)
    # With more momentum leading order is off by more.
    for sampling, momentum, nesterov, learning_rate in (
        ("without_replacement", 0.0, False, 0.3023),
        ("bernoulli", 0.0, False, 0.3014),
        ("without_replacement", 0.3, False, 0.2183),
        ("without_replacement", 0.3, True, 0.2109),
    ):
        sgd = SGD(learning_rate, 10, momentum, nesterov, sampling=sampling)
        found = lyapunov_exponent(
            ntk,
            sgd,
            steps,
            replicas=min(max(effort.replicas // 16, 2), 1000),
            seed=effort.seed,
            burn_in=min(200, steps // 2),
            threads=effort.threads,
        )
        kind = f", {'Nesterov' if nesterov else 'heavy ball'}" if momentum else ""
        yield Row(
            f"log growth of the typical loss, {sampling.replace('_', ' ')}{kind}",
            float(typical_growth(ntk, sgd).typical_growth),
            float(found.typical_growth),
            float(found.typical_growth_standard_error),
        )


def threshold(effort: Effort) -> Iterator[Row]:
    """Exact noise kernel norm where the phase diagram finds SGD turn unstable."""
    model = Ensemble(60, 120).sample(effort.seed)
    grid = phase_diagram(
        model,
        np.geomspace(0.02, 2.0, 12),
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
