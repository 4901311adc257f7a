"""Second moments of the linear model: loss along training and what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.trajectories import simulate
from quadmodel.spectra import GivenEigenvalues
from quadmodel.studies._validation._rows import Effort, Row, gentle, mean_row, ring_ntk
from quadmodel.theory.moments import loss_floor
from quadmodel.theory.noise_kernel import noise_kernel_norm, phase_boundaries
from quadmodel.theory.prediction import predict

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "with replacement": {"sampling": "with_replacement"},
    "Bernoulli": {"sampling": "bernoulli"},
    "heavy ball": {"momentum": 0.8},
    "Nesterov": {"momentum": 0.8, "nesterov": True},
    "weight decay": {"weight_decay": 0.2},
    "momentum, decay": {"momentum": 0.8, "weight_decay": 0.2},
    "Nesterov, decay": {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
}
_RING = np.array([1.0, 0.8, 0.3, 0.9, 0.5, 0.7, 0.4])  # by frequency, for 12 points


def linear(effort: Effort) -> Iterator[Row]:
    """Mean loss and squared residuals along modes, per optimizer and sampling scheme."""
    model = Ensemble(10, 20).sample(effort.seed)
    for name, options in OPTIMIZERS.items():
        yield from _curve(model, f"{name}: ", options, effort, "exact")


def closure(effort: Effort) -> Iterator[Row]:
    """Compare the closure in modes where it is exact: points on a ring, alike from the start."""
    model = QuadraticModel.from_ntk(ring_ntk(12, _RING), np.ones(12))
    for name in ("SGD", "Nesterov, decay"):
        yield from _curve(model, f"closure, {name}: ", OPTIMIZERS[name], effort, "modes")


def _curve(
    model: QuadraticModel, label: str, options: dict[str, Any], effort: Effort, method: str
) -> Iterator[Row]:
    sgd = gentle(model.ntk(), 0.3, 2, **options)
    sampled: dict[str, Any] = {
        "replicas": effort.replicas,
        "seed": effort.seed,
        "threads": effort.threads,
    }
    runs = simulate(model, sgd, 20, record_every=5, **sampled)
    found = predict(model, sgd, 20, record_every=5, method=method)
    for step in (5, 20):
        yield mean_row(
            f"{label}loss at step {step}",
            float(found.loss.sel(step=step)),
            runs.loss.sel(step=step).values,
        )
    for mode, what in ((0, "largest"), (model.n_data - 1, "smallest")):
        at = {"step": 20, "mode": mode}
        yield Row(
            f"{label}squared residual along the {what} mode at step 20",
            float(found.mode_energy.sel(at)),
            float(runs.mode_energy.sel(at)),
            float(runs.mode_energy_standard_error.sel(at)),
        )


def floor(effort: Effort) -> Iterator[Row]:
    """Loss that remains where parameters cannot reach the residual or decay towards the start."""
    model = Ensemble(12, 6).sample(effort.seed)
    for name in ("SGD", "weight decay", "momentum, decay", "Nesterov", "Nesterov, decay"):
        sgd = gentle(model.ntk(), 0.3, 3, **OPTIMIZERS[name])
        predicted = loss_floor(model.ntk(), model.residual, sgd, norm="exact")
        yield mean_row(f"loss floor, {name}", predicted, _late(model, sgd, effort))
    unreached = np.resize([1.0, -1.0], 12)
    ring = ring_ntk(12, np.append(_RING[:-1], 0.0))
    for name, residual in (("SGD", unreached), ("Nesterov, decay", np.ones(12))):
        sgd = gentle(ring, 0.3, 3, **OPTIMIZERS[name])
        predicted = loss_floor(ring, residual, sgd, norm="finite")
        late = _late(QuadraticModel.from_ntk(ring, residual), sgd, effort)
        yield mean_row(f"loss floor of the closure, {name}", predicted, late)


def norms(effort: Effort) -> Iterator[Row]:
    """Noise kernel norms by the floor that they imply, 1 / (1 - K) of what is out of reach.

    Paper's norm has no sampling scheme in it; it is exact for Bernoulli batches on a ring.
    """
    eigenvalues = np.append(_RING[:-1], 0.0)
    ring = ring_ntk(12, eigenvalues)
    model = QuadraticModel.from_ntk(ring, np.resize([1.0, -1.0], 12))
    each = np.sort(np.concatenate([eigenvalues, eigenvalues[1:-1]]))
    law = GivenEigenvalues(each)
    for norm, sampling, momentum in (
        ("paper", "bernoulli", 0.0),
        ("paper", "bernoulli", 0.8),
        ("finite", "without_replacement", 0.0),
        ("finite", "with_replacement", 0.8),
        ("exact", "without_replacement", 0.8),
    ):
        sgd = gentle(ring, 0.4, 2, sampling=sampling, momentum=momentum)
        late = _late(model, sgd, effort)
        of = f"{norm}, {sampling.replace('_', ' ')}, momentum {momentum}"
        value = noise_kernel_norm(ring, sgd, norm=norm)
        yield _by_floor(f"noise kernel norm by the floor, {of}", value, late)
        if norm != "exact":
            value = noise_kernel_norm(law, sgd, norm=norm, n_data=12)
            yield _by_floor(f"the same of the spectral law, {of}", value, late)


def crossing(effort: Effort) -> Iterator[Row]:
    """Batch size where both edges meet if K were as it is at small learning rates.

    There K is in proportion to the learning rate; measured by two floors, extrapolated to none.
    """
    eigenvalues = np.append(_RING[:-1], 0.0)
    model = QuadraticModel.from_ntk(ring_ntk(12, eigenvalues), np.resize([1.0, -1.0], 12))
    slopes = []
    for rate in (0.04, 0.02):
        sgd = SGD(rate, 1, 0.4, sampling="bernoulli")
        floor = _by_floor("", 1.0, _late(model, sgd, effort))
        per_rate = 12 / 11 / rate  # over gamma / D
        slopes.append((floor.measured * per_rate, floor.standard_error * per_rate))
    edge = 2 * 1.4 / eigenvalues.max()
    yield Row(
        "batch size where both edges meet",
        float(phase_boundaries(model.ntk(), [1], SGD(1.0, 1, 0.4)).crossing_batch_size),
        edge * (2 * slopes[1][0] - slopes[0][0]),
        edge * float(np.hypot(2 * slopes[1][1], slopes[0][1])),
    )


def _by_floor(name: str, norm: float, late: FloatArray) -> Row:
    measured = mean_row(name, norm, late)
    floor = measured.measured
    return Row(name, norm, 1 - 0.5 / floor, 0.5 * measured.standard_error / floor**2)


def _late(model: QuadraticModel, sgd: SGD, effort: Effort) -> FloatArray:
    """Return the mean late loss of every run."""
    runs = simulate(
        model,
        sgd,
        600,
        replicas=effort.replicas // 4,
        record_every=10,
        observables=["loss"],
        seed=effort.seed,
        threads=effort.threads,
    )
    late: FloatArray = runs.loss.sel(step=slice(300, None)).mean("step").values
    return late
