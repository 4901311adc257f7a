"""sharpening_diagram(): growth of the largest NTK eigenvalue over learning rate and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_batch_sizes,
    as_integer,
    as_learning_rates,
    check_memory,
    is_count,
)
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import Workers, as_threads, stop_if_asked
from quadmodel.ensemble import Ensemble
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.ntk_draws import check_draws, growth_of_pair
from quadmodel.sweeps._parcel import Job, keep_as_sent
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.running import Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import RunsStages, cut, run_sweep, unit_size
from quadmodel.theory import sharpening
from quadmodel.theory._curvature import Statistics, curvature_statistics, law_of
from quadmodel.theory.noise_kernel import edge_of_stability, phase_boundaries

_PLANE = ("learning_rate", "batch_size")
_SHARE = "1 (share of the initial eigenvalue)"
_LABELS = {
    "predicted_growth": ("predicted growth of the largest NTK eigenvalue", _SHARE),
    "simulated_growth": ("simulated growth of the largest NTK eigenvalue", _SHARE),
    "standard_error": ("standard error", _SHARE),
    "conservative": ("predicted part of batch noise in the growth", _SHARE),
    "relative_error": ("estimated relative error of the change of the NTK's trace", "1"),
    "valid": ("whether second order holds for the largest NTK eigenvalue", None),
}
_PREDICTED = ("predicted_growth", "conservative", "relative_error", "valid")
# Multiplications that the forecast of a grid point counts for.
_FORECAST = 2.0**26


def sharpening_diagram(
    source: Ensemble | QuadraticModel,
    learning_rates: int | Sequence[float] | FloatArray = 12,
    batch_sizes: int | Sequence[int] | NDArray[np.integer] = 8,
    *,
    sgd: SGD | None = None,
    steps: int = 60,
    replicas: int = 12,
    batch_sequences: int = 2,
    curvature: CurvatureLaw | float | None = None,
    seed: int = 0,
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Map the mean growth of the largest NTK eigenvalue over learning rate and batch size.

    Parameters
    ----------
    source : Ensemble or QuadraticModel
        Jacobian and residual at the start (an ensemble's first model of this seed).
    learning_rates : int or sequence of float, optional
        How many, spread below the deterministic edge; or different values, in 1 / NTK eigenvalue.
    batch_sizes : int or sequence of int, optional
        How many, spread from 1 to the number of data points; or different values.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; plain SGD if left out.
    steps : int, optional
        SGD steps over which the eigenvalue grows.
    replicas : int, optional
        Antithetic pairs of curvature draws, at least 2; all grid points share them.
    batch_sequences : int, optional
        Sequences of batches per curvature draw.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; by default that of `source`.
    seed : int, optional
        Seed of the model, the curvatures and the batches, below 2**64.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        Over (learning_rate, batch_size): `predicted_growth`; `simulated_growth` and its
        `standard_error`, +inf where a replica diverged; `conservative`, what batch noise adds to
        the prediction; `relative_error`, the estimated error of the predicted change of the trace,
        and `valid`, whether second order in the curvature holds for the growth, as
        `eigenvalue_valid` of :func:`quadmodel.expected_ntk` says. Predictions are NaN where
        `relative_error` is not below the attribute `valid_below`.
        Growth is a share of the initial largest eigenvalue. Over (norm, batch_size) and batch_size:
        `critical_learning_rate` and `edge_of_stability`.

    Raises
    ------
    InputError
        If an argument is out of range or no law of the curvature is known.
    MemoryError
        If the draws of the curvature or the growths don't fit in memory.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4; derivations/06-expected-ntk.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(n_data=8, n_params=30, curvature=0.01)
    >>> growth = qm.sharpening_diagram(ensemble, 3, [1, 8], steps=10, replicas=4)
    >>> dict(growth.simulated_growth.sizes)
    {'learning_rate': 3, 'batch_size': 2}
    """
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    if not isinstance(source, Ensemble | QuadraticModel):
        raise InputError(
            f"source must be an Ensemble or a QuadraticModel, got {type(source).__name__}"
        )
    # Steps and replicas are counters of 32 bits where batches are drawn.
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, low=2, high=2**32 - 1)
    batch_sequences = as_integer("batch_sequences", batch_sequences, high=2**20)
    how = as_how(running)
    template = SGD(1.0, 1) if sgd is None else sgd
    if not isinstance(template, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    if isinstance(source, Ensemble):
        # Of the curvature only the law is needed, not a draw.
        law_of_source = source.curvature
        model = replace(source, curvature=None).sample(seed)
        # The law of the curvature may be another one, and is named beside these.
        described = {name: text for name, text in source.spec().items() if name != "curvature"}
        curvature = law_of_source if curvature is None else curvature
    else:
        model, described = source, {"model": repr(source)}
    law = law_of(model, curvature)
    statistics = curvature_statistics(model, law)
    sizes = as_batch_sizes(batch_sizes, model.n_data)
    edge = edge_of_stability(model.ntk(), template)
    rates = _as_rates(learning_rates, edge)
    boundaries = phase_boundaries(model.ntk(), sizes, template)
    n_points = rates.size * sizes.size
    check_memory("the growths", 32.0 * replicas * n_points)
    check_draws(model, law, n_points, batch_sequences, min(as_threads(how.threads), replicas))
    kept = Kept(model, law, statistics, template, steps, batch_sequences, seed)
    grid = np.repeat(rates, sizes.size), np.tile(sizes, rates.size)
    pieces = cut(n_points, unit_size(n_points, _FORECAST))

    def flow(sweep: RunsStages) -> xr.Dataset:
        pairs = sweep.run("pairs", [PairUnit(pair, *grid) for pair in range(replicas)])
        growth = np.stack([record["growth"] for record in pairs]).reshape(-1, *plane)
        units = [ForecastUnit(grid[0][some], grid[1][some], edge) for some in pieces]
        forecasts = sweep.run("forecasts", units)
        predicted: dict[str, NDArray[Any]] = {
            name: np.concatenate([record[name] for record in forecasts]).reshape(plane)
            for name in _PREDICTED
        }
        simulated = _simulated(growth / float(model.eigensystem[0][0]))
        return _dataset(rates, sizes, predicted | simulated, boundaries).assign_attrs(attrs)

    plane = rates.size, sizes.size
    options = {name: value for name, value in template.spec().items() if name not in _PLANE}
    attrs = attributes(
        "sharpening diagram",
        described | model.spec() | options,
        steps=steps,
        replicas=replicas,
        batch_sequences=batch_sequences,
        curvature=repr(law),
        valid_below=sharpening.VALID_BELOW,
        seed=seed,
    )
    asked = {**attrs, "learning_rates": rates.tolist(), "batch_sizes": sizes.tolist()}
    expected = {"pairs": replicas, "forecasts": len(pieces)}
    manifest = Manifest("sharpening diagram", asked, expected)
    return run_sweep(manifest, Job(keep_as_sent, kept, kept, nbytes=model.nbytes), how, flow)


class Kept(NamedTuple):
    """What a worker keeps; it is sent to it as it is."""

    model: QuadraticModel
    law: CurvatureLaw
    statistics: Statistics
    sgd: SGD
    steps: int
    batch_sequences: int
    seed: int


class PairUnit(NamedTuple):
    """An antithetic pair of curvature draws, at all grid points."""

    pair: int
    learning_rate: FloatArray
    batch_size: IntArray

    def compute(self, kept: Kept, pool: Workers) -> Record:
        """Simulate how much the largest NTK eigenvalue grows."""
        growth = growth_of_pair(
            kept.model,
            kept.law,
            kept.sgd,
            self.learning_rate,
            self.batch_size,
            steps=kept.steps,
            batch_sequences=kept.batch_sequences,
            seed=kept.seed,
            pair=self.pair,
        )
        return {"growth": growth}


class ForecastUnit(NamedTuple):
    """Some grid points, and the deterministic edge."""

    learning_rate: FloatArray
    batch_size: IntArray
    edge: float

    def compute(self, kept: Kept, pool: Workers) -> Record:
        """Predict the growth, and how far second order holds."""
        predicted, conservative, relative = np.full((3, len(self.learning_rate)), np.nan)
        valid = np.zeros(predicted.shape, dtype=bool)
        lam = kept.model.eigensystem[0]
        for n, rate in enumerate(self.learning_rate.tolist()):
            stop_if_asked()
            if rate >= self.edge:
                continue
            sgd = replace(kept.sgd, learning_rate=rate, batch_size=int(self.batch_size[n]))
            (last,) = sharpening.forecasts(kept.statistics, sgd, np.array([kept.steps]))
            relative[n] = last.relative_error
            if last.valid:
                eigenvalues = last.change.eigenvalues(lam)
                valid[n] = last.eigenvalue_valid[np.argmax(eigenvalues)]
                conservative[n] = last.change.conservative[0, 0] / lam[0]
                predicted[n] = (eigenvalues.max() - lam[0]) / lam[0]
        return dict(zip(_PREDICTED, (predicted, conservative, relative, valid), strict=True))


def _as_rates(given: int | Sequence[float] | FloatArray, edge: float) -> FloatArray:
    """Return learning rates, spread below the deterministic edge if counted."""
    if is_count("learning_rates", given):
        count = as_integer("learning_rates", given, high=100_000)
        return np.geomspace(edge / 20, 0.95 * edge, count)
    return as_learning_rates(given, least=1)


def _simulated(growth: FloatArray) -> dict[str, FloatArray]:
    """Return mean and standard error over replicas; +inf where one of them diverged."""
    mean = growth.mean(axis=0)
    with np.errstate(invalid="ignore"):
        error = growth.std(axis=0, ddof=1) / len(growth) ** 0.5
    error = np.where(np.isfinite(mean), error, np.inf)
    return {"simulated_growth": mean, "standard_error": error}


def _dataset(
    rates: FloatArray, sizes: IntArray, grid: dict[str, NDArray[Any]], boundaries: xr.Dataset
) -> xr.Dataset:
    """Label predictions and measurements."""
    edges = ("critical_learning_rate", "edge_of_stability")
    return xr.Dataset(
        {name: variable(_PLANE, grid[name], *label) for name, label in _LABELS.items()}
        | {name: boundaries[name] for name in edges},
        coords={
            "learning_rate": variable(_PLANE[:1], rates, "learning rate", "1 / NTK eigenvalue"),
            "batch_size": variable(_PLANE[1:], sizes, "batch size", "data points"),
        },
    )
