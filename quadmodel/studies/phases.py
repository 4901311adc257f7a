"""phase_diagram(): learning rate against batch size, theory and simulation side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_batch_sizes,
    as_choice,
    as_integer,
    as_learning_rates,
    is_count,
    n_axes,
)
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import Workers, workers
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._stepper import PRECISIONS
from quadmodel.simulation.growth import MIN_STEPS, GridPoints, Measurement, measure_growth
from quadmodel.theory._inputs import NORMS, Spectrum
from quadmodel.theory._noise import norm_or_infinity
from quadmodel.theory.noise_kernel import phase_boundaries
from quadmodel.theory.typical import typical_critical_on_spectrum

PHASES = ("stable", "intermittent", "stochastically unstable", "deterministically unstable")
# Predicted phase where the mean loss grows and the theory does not say what a typical one does.
UNDECIDED = "undecided"

_LABELS = {
    "mean_growth": ("growth rate of the mean loss", "1 / step"),
    "mean_growth_standard_error": ("standard error of the mean's growth rate", "1 / step"),
    "typical_growth": ("growth rate of the typical loss", "1 / step"),
    "typical_growth_standard_error": ("standard error of the typical growth rate", "1 / step"),
    "fraction_diverged": ("fraction of replicas that diverged", "1"),
    "final_loss": ("median final loss", "loss"),
    "noise_kernel_norm": ("noise kernel norm", "1"),
    "learning_rate": ("learning rate", "1 / NTK eigenvalue"),
}


def phase_diagram(
    source: Ensemble | QuadraticModel | ArrayLike,
    learning_rates: int | Sequence[float] | ArrayLike = 24,
    batch_sizes: int | Sequence[int] | ArrayLike = 12,
    *,
    sgd: SGD | None = None,
    steps: int = 1000,
    replicas: int = 16,
    seed: int = 0,
    refine: int = 12,
    precision: str = "float64",
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Predict and simulate the stability of SGD on a grid of learning rates and batch sizes.

    Parameters
    ----------
    source : Ensemble, QuadraticModel, or array_like of shape (n_data, n_data)
        What to train: an ensemble is sampled with `seed`; an array is taken as an NTK.
    learning_rates : int or sequence of float, optional
        Learning rates, in units of 1 / NTK eigenvalue; or how many, spread evenly in the logarithm
        around both edges.
    batch_sizes : int or sequence of int, optional
        Batch sizes; or how many, spread evenly in the logarithm from 1 to n_data.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; its learning rate and batch size are not used.
    steps : int, optional
        SGD steps per replica, at least 32.
    replicas : int, optional
        Replicas per grid point, at least 2.
    seed : int, optional
        Seed of the model and of all batches, below 2**64.
    refine : int, optional
        Learning rates of a second, finer scan per batch size, between the columns where the
        simulated growth rates change sign; 0 for none.
    precision : {"float64", "mixed"}, optional
        As for :func:`quadmodel.simulate`.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        On (learning_rate, batch_size): `noise_kernel_norm` (also along `norm`: paper, finite,
        exact), `mean_growth`, `typical_growth` (per step, of the log loss) and their
        ``..._standard_error``, `fraction_diverged`, `final_loss` (median), `phase` and
        `predicted_phase`. Per batch size, predicted: `critical_learning_rate` (along `norm`),
        `typical_critical_learning_rate` (NaN where it does not hold), `edge_of_stability`; and the
        measurements of the finer scan, ``scan_...`` along `scan`. One number for the whole
        diagram: `crossing_batch_size`.

    Raises
    ------
    InputError
        If an argument is out of range.
    MemoryError
        If model or replicas don't fit in memory.

    Notes
    -----
    The phases, from the simulated growth rates:

    - *stable*: the mean loss does not grow;
    - *intermittent*: the mean loss grows while the typical loss shrinks, since a few replicas carry
      the mean;
    - *stochastically unstable*: both grow, below the deterministic edge;
    - *deterministically unstable*: unstable, at or above it.

    Predicted, they lie between the exact K = 1, the learning rate where
    :func:`quadmodel.typical_growth` turns positive, and the deterministic edge; "undecided" is what
    lies above K = 1 where the typical growth can't be predicted.

    A plain mean over replicas would be decided by a few of them, and its standard error would be
    too small. Growth of a linear model is therefore measured in two ways. The typical growth is the
    mean, over independent replicas, of the growth of their log loss in the second half of the
    steps, after their directions have relaxed in the first; every step scales parameters back to
    size 1. The growth of the mean loss is that of a population of replicas, redrawn in proportion
    to their losses whenever fewer than half of them carry the mean, which leaves the mean's
    expectation as it is; 16 blocks of steps give the standard error and the correction for the bias
    of a logarithm (:func:`quadmodel.simulation.populations.population_growth`). Growth of a
    quadratic model is that of independent replicas over the second half of their steps, or up to
    their divergence or convergence (:func:`quadmodel.simulation.growth.measure_growth`).

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.

    Examples
    --------
    >>> import quadmodel as qm
    >>> grid = qm.phase_diagram(qm.Ensemble(20, 40), 6, 3, steps=64, replicas=4)
    >>> dict(grid.mean_growth.sizes)
    {'learning_rate': 6, 'batch_size': 3}
    """
    checked = as_source(source)
    spec = as_spec(
        checked.n_data,
        learning_rates,
        batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=replicas,
        seed=seed,
        refine=refine,
        precision=precision,
        threads=threads,
        progress=progress,
    )
    model = checked.sample(spec.seed) if isinstance(checked, Ensemble) else checked
    described = checked.spec() if isinstance(checked, Ensemble) else {"model": repr(checked)}
    described |= model.spec(with_curvature=True)
    return stability_diagram(model, partial(measure_growth, model), spec, described)


@dataclass(frozen=True)
class DiagramSpec:
    """The grid of a phase diagram and how to measure it; every field has been checked.

    `learning_rates` are the values, or how many are to be spread around the edges; `sgd` gives
    momentum, weight decay and sampling scheme.
    """

    learning_rates: int | FloatArray
    batch_sizes: IntArray
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    refine: int
    precision: str
    threads: int | None
    progress: bool

    @property
    def n_measured(self) -> int:
        """Number of replicas of grid and finer scan together, at most."""
        given = self.learning_rates
        n_rates = given if isinstance(given, int) else given.size
        return (n_rates + self.refine) * self.batch_sizes.size * self.replicas

    def points(self, rates: FloatArray, sizes: IntArray, first_replica: int) -> GridPoints:
        """Return grid points, one per pair of learning rate and batch size."""
        return GridPoints(
            rates, sizes, self.sgd, self.steps, self.replicas, self.seed, first_replica,
            self.precision,
        )  # fmt: skip

    def sgd_attributes(self) -> dict[str, Any]:
        """Return what attributes of the result say about SGD."""
        spec = self.sgd.spec()
        del spec["learning_rate"], spec["batch_size"]
        return spec


class Measure(Protocol):
    """A function that measures grid points: how losses grow there, and how replicas end."""

    def __call__(
        self, points: GridPoints, pool: Workers, /, *, what: str, show: bool
    ) -> Measurement:
        """Measure `points`, with a progress bar called `what`."""


def as_source(source: Any) -> Ensemble | QuadraticModel:
    """Return an ensemble or a model, which an NTK is turned into."""
    if isinstance(source, Ensemble | QuadraticModel):
        return source
    axes = n_axes("source", source)
    if axes != 2:
        raise InputError(
            "source must be an Ensemble, a QuadraticModel or an NTK of shape (n_data, n_data), "
            f"got {type(source).__name__} with {axes} dimensions"
        )
    return QuadraticModel.from_ntk(source)


def as_spec(
    n_data: int,
    learning_rates: int | Sequence[float] | ArrayLike,
    batch_sizes: int | Sequence[int] | ArrayLike,
    *,
    sgd: SGD | None,
    steps: int,
    replicas: int,
    seed: int,
    refine: int,
    threads: int | None,
    progress: bool,
    precision: str = "float64",
) -> DiagramSpec:
    """Check what a phase diagram of `n_data` points is asked for."""
    if not isinstance(sgd, SGD | None):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    return DiagramSpec(
        as_integer("learning_rates", learning_rates, low=2, high=100_000)
        if is_count("learning_rates", learning_rates)
        else as_learning_rates(learning_rates),
        as_batch_sizes(batch_sizes, n_data),
        replace(sgd or SGD(1.0, 1), learning_rate=1.0, batch_size=1),
        steps=as_integer("steps", steps, low=MIN_STEPS, high=2**31),
        replicas=as_integer("replicas", replicas, low=2, high=2**20),
        seed=as_integer("seed", seed, low=0, high=2**64 - 1),
        refine=as_integer("refine", refine, low=0, high=1000),
        precision=as_choice("precision", precision, PRECISIONS),
        threads=None if threads is None else as_integer("threads", threads),
        progress=progress,
    )


Variables = dict[str, FloatArray]


def stability_diagram(
    model: QuadraticModel, measure: Measure, spec: DiagramSpec, described: dict[str, Any]
) -> xr.Dataset:
    """Predict the edges of a model, measure a grid and a finer scan, and label all of it."""
    sizes = spec.batch_sizes
    with workers(spec.threads) as pool:
        spectrum = Spectrum(*model.eigensystem)
        if spectrum.edge == 0:
            raise InputError("source: the NTK must not vanish, got eigenvalues that are all zero")

        def evaluate(points: GridPoints, what: str) -> tuple[Variables, int]:
            measured = measure(points, pool, what=what, show=spec.progress)
            norms = {"noise_kernel_norm": _norms(spectrum, points, pool)}
            return measured.variables() | norms, measured.replica_steps

        boundaries = _boundaries(spectrum, sizes, spec.sgd, pool)
        rates = spec.learning_rates
        if isinstance(rates, int):
            rates = _spread_learning_rates(boundaries, rates)
        points = spec.points(np.repeat(rates, sizes.size), np.tile(sizes, rates.size), 0)
        on_grid, steps_of_grid = evaluate(points, "grid")
        grid = {k: v.reshape(*v.shape[:-1], rates.size, sizes.size) for k, v in on_grid.items()}
        scan, steps_of_scan = _finer_scan(rates, grid, spec, evaluate)
    attrs = attributes(
        "phase diagram",
        described | spec.sgd_attributes(),
        steps=spec.steps,
        replicas=spec.replicas,
        refine=spec.refine,
        precision=spec.precision,
        replica_steps=steps_of_grid + steps_of_scan,
        seed=spec.seed,
    )
    return _dataset(rates, grid, scan, boundaries, attrs)


def _spread_learning_rates(boundaries: xr.Dataset, count: int) -> FloatArray:
    """Return learning rates from below the smallest critical one to above the largest edge."""
    low = 0.4 * float(boundaries.critical_learning_rate.min())
    return np.geomspace(low, 1.6 * float(boundaries.edge_of_stability.max()), count)


def _boundaries(spectrum: Spectrum, sizes: IntArray, template: SGD, pool: Workers) -> xr.Dataset:
    """Return the learning rates from which on the mean loss and the typical loss grow."""
    edges = phase_boundaries(spectrum, sizes, template)
    mean_square = edges.critical_learning_rate.sel(norm="exact").values
    typical = np.empty(sizes.size)

    def work(some: slice) -> None:
        for k in range(*some.indices(sizes.size)):
            sgd = template._at(batch_size=int(sizes[k]))
            typical[k] = typical_critical_on_spectrum(spectrum, sgd, float(mean_square[k]))

    pool.map(work, [slice(k, k + 1) for k in range(sizes.size)])
    name = "learning rate above which typical runs diverge"
    labelled = variable(("batch_size",), typical, name, "1 / NTK eigenvalue")
    return edges.assign(typical_critical_learning_rate=labelled)


def _norms(spectrum: Spectrum, points: GridPoints, pool: Workers) -> FloatArray:
    """Return K by every norm and at every grid point, shape (norms, points)."""
    norms = np.empty((len(NORMS), len(points)))

    def work(some: slice) -> None:
        for n in range(*some.indices(len(points))):
            rate, size = float(points.learning_rate[n]), int(points.batch_size[n])
            sgd = points.sgd._at(learning_rate=rate, batch_size=size)
            norms[:, n] = [norm_or_infinity(spectrum, sgd, norm) for norm in NORMS]

    pool.map(work, [slice(i, i + 8) for i in range(0, len(points), 8)])
    return norms


def _finer_scan(
    rates: FloatArray,
    grid: Variables,
    spec: DiagramSpec,
    evaluate: Callable[[GridPoints, str], tuple[Variables, int]],
) -> tuple[Variables, int]:
    """Measure learning rates around the simulated boundaries; NaN where there is none."""
    sizes, count = spec.batch_sizes, spec.refine
    scan_rates = _scan_learning_rates(rates, grid, count)
    found = np.isfinite(scan_rates).all(axis=1)
    scan = {k: np.full((*v.shape[:-2], sizes.size, count), np.nan) for k, v in grid.items()}
    replica_steps = 0
    if count and found.any():
        # Replica numbers beyond those of the grid: three sets of replicas per grid point at most.
        first = 3 * rates.size * sizes.size * spec.replicas
        points = spec.points(scan_rates[found].ravel(), np.repeat(sizes[found], count), first)
        on_scan, replica_steps = evaluate(points, "finer scan")
        for name, value in on_scan.items():
            scan[name][..., found, :] = value.reshape(*value.shape[:-1], -1, count)
    return scan | {"learning_rate": scan_rates}, replica_steps


def _scan_learning_rates(rates: FloatArray, grid: Variables, count: int) -> FloatArray:
    """Return, per batch size, learning rates between the columns where growth changes sign."""
    scan = np.full((grid["mean_growth"].shape[1], count), np.nan)
    for j in range(len(scan)):
        brackets = []
        for name in ("mean_growth", "typical_growth"):
            positive = np.flatnonzero(grid[name][:, j] > 0)
            negative = np.flatnonzero(grid[name][:, j] < 0)
            if positive.size and negative.size and negative[0] < positive[-1]:
                brackets.append((max(positive[0] - 1, 0), min(negative[-1] + 1, rates.size - 1)))
        if brackets:
            low, high = min(b[0] for b in brackets), max(b[1] for b in brackets)
            scan[j] = np.geomspace(rates[low], rates[high], count + 2)[1:-1]
    return scan


def _phases(rates: FloatArray, grid: Variables, boundaries: xr.Dataset) -> np.ndarray:
    """Return the phase of every grid point from its measured growth rates."""
    mean, typical = grid["mean_growth"] > 0, grid["typical_growth"] > 0
    beyond = rates[:, None] >= boundaries.edge_of_stability.values
    stable, intermittent, stochastic, deterministic = PHASES
    return np.select(
        [~mean & ~typical, beyond, mean & ~typical],
        [stable, deterministic, intermittent],
        stochastic,
    )


def _predicted_phases(rates: FloatArray, boundaries: xr.Dataset) -> np.ndarray:
    """Return the phase of every grid point from the predicted learning rates."""
    at = rates[:, None]
    typical = boundaries.typical_critical_learning_rate.values
    beyond = at >= boundaries.edge_of_stability.values
    stable, intermittent, stochastic, deterministic = PHASES
    return np.select(
        [
            beyond,
            at < boundaries.critical_learning_rate.sel(norm="exact").values,
            np.isnan(typical)[None, :],
            at < typical,
        ],
        [deterministic, stable, UNDECIDED, intermittent],
        stochastic,
    )


def _dataset(
    rates: FloatArray,
    grid: Variables,
    scan: Variables,
    boundaries: xr.Dataset,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Label predictions and measurements."""

    def labelled(name: str, value: FloatArray, dims: tuple[str, ...]) -> Any:
        lead = ("norm",) if value.ndim > len(dims) else ()
        return variable((*lead, *dims), value, *_LABELS[name])

    plane = ("learning_rate", "batch_size")
    predicted = _predicted_phases(rates, boundaries)
    return xr.Dataset(
        {name: labelled(name, v, plane) for name, v in grid.items()}
        | {"phase": variable(plane, _phases(rates, grid, boundaries), "phase, simulated")}
        | {"predicted_phase": variable(plane, predicted, "phase, predicted")}
        | {f"scan_{name}": labelled(name, v, ("batch_size", "scan")) for name, v in scan.items()}
        | {str(name): values for name, values in boundaries.data_vars.items()},
        coords={
            "learning_rate": labelled("learning_rate", rates, ("learning_rate",)),
            "batch_size": boundaries.batch_size,
            "norm": boundaries.norm,
        },
        attrs=attrs,
    )
