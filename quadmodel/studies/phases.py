"""phase_diagram(): learning rate against batch size, theory and simulation side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.checks import FloatArray, InputError, IntArray, n_axes
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import Workers, workers
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._kernels.shapes import vector_bytes
from quadmodel.simulation.growth import GridPoints, Measurement, measure_growth
from quadmodel.simulation.populations import KINDS
from quadmodel.studies._scan import close_up_crossings, finer_scan
from quadmodel.studies._spec import DiagramSpec, Variables, as_spec
from quadmodel.theory._inputs import NORMS, Spectrum
from quadmodel.theory._noise import norm_or_infinity
from quadmodel.theory.mean_field_edge import nonlinear_edges
from quadmodel.theory.noise_kernel import phase_boundaries
from quadmodel.theory.typical import typical_critical_on_spectrum

PHASES = ("stable", "intermittent", "stochastically unstable", "deterministically unstable")
# Predicted phase where the mean loss grows and the theory does not say what a typical one does.
UNDECIDED = "undecided"

# Learning rates of the finer scan: where close-ups follow, and where it is all there is.
_SCAN_BEFORE_CLOSE_UP, _SCAN = 6, 12

_LABELS = {
    "mean_growth": ("growth rate of the mean loss", "1 / step"),
    "mean_growth_standard_error": ("standard error of the mean's growth rate", "1 / step"),
    "typical_growth": ("growth rate of the typical loss", "1 / step"),
    "typical_growth_standard_error": ("standard error of the typical growth rate", "1 / step"),
    "fraction_diverged": ("fraction of replicas that diverged", "1"),
    "final_loss": ("median final loss", "loss"),
    "noise_kernel_norm": ("noise kernel norm", "1"),
    "learning_rate": ("learning rate", "1 / NTK eigenvalue"),
    "growth": ("growth rate", "1 / step"),
    "growth_standard_error": ("standard error of the growth rate", "1 / step"),
    "correction": ("part of the growth that corrects for the bias of a logarithm", "1 / step"),
    "steps": ("steps of a run", "steps"),
    "replicas": ("replicas per learning rate", "1"),
    "settled": ("whether the growth has settled", "1"),
    "needed_steps": ("steps to ask for, so that growth settles", "steps"),
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
    refine: int | None = None,
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
        SGD steps per replica, at least 32. Close to the edge of a linear model they are continued
        to up to 16 times as many, where its growth has not settled.
    replicas : int, optional
        Replicas per grid point, at least 2.
    seed : int, optional
        Seed of the model and of all batches, below 2**64.
    refine : int, optional
        Learning rates of a second, finer scan per batch size, between the columns where the
        simulated growth rates change sign: 12, but 6 for a linear model, which has close-ups after
        it. 0 for neither.
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
        diagram: `crossing_batch_size`. Of a quadratic model whose curvature has a known law:
        `mean_field_critical_learning_rate`, where :func:`quadmodel.mean_field_edge` says that runs
        diverge, and `mean_field_noise_kernel_norm` (also along `norm`), K of the
        initial NTK there. Of a linear model, measured close to where the growth of the
        mean and of the typical loss crosses zero (along `kind`, per batch size): `close_growth` at
        `close_learning_rate`, along `close`, in runs of `close_steps` steps and `close_replicas`
        replicas; `close_settled`, and `close_needed_steps` for where it is not.

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
    of a logarithm (:func:`quadmodel.simulation.populations.population_growth`). Where these cross
    zero, close-ups follow with as many steps and replicas as the runs themselves turn out to need
    (:func:`quadmodel.studies._close_up.close_up`). Growth of a
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
    linear = checked.curvature is None
    if refine is None:
        refine = _SCAN_BEFORE_CLOSE_UP if linear else _SCAN
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
    measure = partial(measure_growth, model)
    return stability_diagram(
        model,
        measure,
        spec,
        described,
        nonlinear=partial(nonlinear_edges, model),
        close_ups=linear and spec.refine > 0,
    )


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


def stability_diagram(
    model: QuadraticModel,
    measure: Measure,
    spec: DiagramSpec,
    described: dict[str, Any],
    *,
    nonlinear: Callable[[Sequence[int], SGD], FloatArray | None],
    close_ups: bool = False,
) -> xr.Dataset:
    """Predict the edges of a model, measure a grid and a finer scan, and label all of it.

    With `close_ups`, which only a linear model has, the growth is measured once more where it
    crosses zero. `nonlinear` predicts the edges of the nonlinear model, where it can.
    """
    sizes = spec.batch_sizes
    with workers(spec.threads) as pool:
        spectrum = Spectrum(*model.eigensystem)
        if spectrum.edge == 0:
            raise InputError("source: the NTK must not vanish, got eigenvalues that are all zero")

        def evaluate(points: GridPoints, what: str) -> tuple[Variables, int]:
            measured = measure(points, pool, what=what, show=spec.progress)
            norms = {"noise_kernel_norm": norms_at(points)}
            return measured.variables() | norms, measured.replica_steps

        def norms_at(points: GridPoints) -> FloatArray:
            return _norms(spectrum, points, pool)

        boundaries = _boundaries(spectrum, sizes, spec.sgd, pool)
        critical = nonlinear(sizes.tolist(), spec.sgd)
        if critical is not None:
            at_edge = norms_at(spec.points(critical, sizes, 0))
            boundaries = boundaries.assign(_labelled_edges(critical, at_edge))
        rates = spec.learning_rates
        if isinstance(rates, int):
            rates = _spread_learning_rates(boundaries, rates)
        points = spec.points(np.repeat(rates, sizes.size), np.tile(sizes, rates.size), 0)
        on_grid, steps_of_grid = evaluate(points, "grid")
        grid = {k: v.reshape(*v.shape[:-1], rates.size, sizes.size) for k, v in on_grid.items()}
        scan, steps_of_scan = finer_scan(rates, grid, spec, evaluate)
        close, steps_of_close = (
            close_up_crossings(model, rates, grid, scan, spec, pool) if close_ups else ({}, 0)
        )
        if close:
            shape = close["learning_rate"].shape
            at = np.broadcast_to(sizes[:, None], shape)
            norms = norms_at(spec.points(close["learning_rate"].ravel(), at.ravel(), 0))
            close["noise_kernel_norm"] = norms.reshape(-1, *shape)
    attrs = attributes(
        "phase diagram",
        described | spec.sgd_attributes(),
        steps=spec.steps,
        replicas=spec.replicas,
        refine=spec.refine,
        precision=spec.precision,
        vector_bytes=vector_bytes(),
        replica_steps=steps_of_grid + steps_of_scan + steps_of_close,
        seed=spec.seed,
    )
    return _dataset(rates, grid, scan, close, boundaries, attrs)


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


def _labelled_edges(rates: FloatArray, norms: FloatArray) -> dict[str, Any]:
    """Label the edge of the nonlinear model, and K of the initial NTK there."""
    norms = np.where(np.isnan(rates), np.nan, norms)
    return {
        "mean_field_critical_learning_rate": variable(
            "batch_size",
            rates,
            "learning rate above which the nonlinear model diverges, by mean-field theory",
            "1 / NTK eigenvalue",
        ),
        "mean_field_noise_kernel_norm": variable(
            ("norm", "batch_size"), norms, "noise kernel norm of the initial NTK there", "1"
        ),
    }


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
    close: dict[str, np.ndarray],
    boundaries: xr.Dataset,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Label predictions and measurements."""

    def labelled(name: str, value: FloatArray, dims: tuple[str, ...]) -> Any:
        lead = ("norm",) if name == "noise_kernel_norm" else ()
        return variable((*lead, *dims), value, *_LABELS[name])

    def close_dims(value: np.ndarray) -> tuple[str, ...]:
        return ("kind", "batch_size", "close")[: value.ndim]

    plane = ("learning_rate", "batch_size")
    predicted = _predicted_phases(rates, boundaries)
    return xr.Dataset(
        {name: labelled(name, v, plane) for name, v in grid.items()}
        | {"phase": variable(plane, _phases(rates, grid, boundaries), "phase, simulated")}
        | {"predicted_phase": variable(plane, predicted, "phase, predicted")}
        | {f"scan_{name}": labelled(name, v, ("batch_size", "scan")) for name, v in scan.items()}
        | {f"close_{name}": labelled(name, v, close_dims(v)) for name, v in close.items()}
        | {str(name): values for name, values in boundaries.data_vars.items()},
        coords={
            "learning_rate": labelled("learning_rate", rates, ("learning_rate",)),
            "batch_size": boundaries.batch_size,
            "norm": boundaries.norm,
        }
        | ({"kind": list(KINDS)} if close else {}),
        attrs=attrs,
    )
