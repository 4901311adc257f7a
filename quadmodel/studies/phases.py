"""phase_diagram(): learning rate against batch size, theory and simulation side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.axes import as_batch_sizes, as_learning_rates, is_count
from quadmodel._util.checks import FloatArray, InputError, IntArray, as_choice, as_integer
from quadmodel._util.threads import Workers, workers
from quadmodel._util.version import __version__
from quadmodel.ensemble import Ensemble
from quadmodel.large_p.growth import check_runs, measure_cells_in_limit, system_of
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._stepper import PRECISIONS
from quadmodel.simulation.growth import MIN_STEPS, GridPoints, measure_growth
from quadmodel.spectra import IndependentGaussian
from quadmodel.theory._inputs import METHODS, Spectrum
from quadmodel.theory.noise_kernel import norm_or_infinity, phase_boundaries
from quadmodel.theory.typical import typical_critical_on_spectrum

PHASES = ("stable", "intermittent", "stochastically unstable", "deterministically unstable")
# Predicted phase where the mean loss grows and the theory does not say what a typical one does.
UNDECIDED = "undecided"
LIMITS = ("large-p",)

_LABELS = {
    "mean_growth": ("growth rate of the mean loss", "1 / step"),
    "mean_growth_standard_error": ("standard error of the mean's growth rate", "1 / step"),
    "typical_growth": ("growth rate of the typical loss", "1 / step"),
    "typical_growth_standard_error": ("standard error of the typical growth rate", "1 / step"),
    "fraction_diverged": ("fraction of runs that diverged", "1"),
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
    limit: str | None = None,
    level: int | None = None,
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
        SGD steps per run, at least 32.
    replicas : int, optional
        Runs per cell, at least 2.
    seed : int, optional
        Seed of the model and of all batches, below 2**64.
    refine : int, optional
        Learning rates of a second, finer scan per batch size, between the columns where the
        simulated growth rates change sign; 0 for none.
    precision : {"float64", "mixed"}, optional
        As for :func:`quadmodel.simulate`.
    limit : {"large-p"}, optional
        Run SGD in the limit of many parameters instead of simulating a model of P: at fixed
        curvature strength :math:`q = \sigma\sqrt P`, as :func:`quadmodel.large_p_limit` does. Of
        the source's curvature only the law is used; nothing of size P squared is held.
    level : int, optional
        With `limit`: length L of the longest words that are kept, 2 by default.
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
        same measurements in the finer scan, ``scan_...`` along `scan`. Number:
        `crossing_batch_size`. With `limit`, attributes `limit`, `level` and `curvature_strength`
        take the place of `n_params`.

    Raises
    ------
    InputError
        If an argument is out of range.
    MemoryError
        If model or runs don't fit in memory.

    Notes
    -----
    The phases, from the simulated growth rates:

    - *stable*: the mean loss does not grow;
    - *intermittent*: the mean loss grows while the typical loss shrinks (rare runs carry the mean);
    - *stochastically unstable*: both grow, below the deterministic edge;
    - *deterministically unstable*: unstable, at or above it.

    Predicted, they lie between the exact K = 1, the learning rate where
    :func:`quadmodel.typical_growth` turns positive, and the deterministic edge; "undecided" is what
    lies above K = 1 where the typical growth can't be predicted.

    How growth is measured, so that standard errors are honest although the plain mean over
    replicas would hang on rare runs. Of a linear model, typical growth is the mean over independent
    replicas of the growth of their log loss, their sizes being set back every step, after a first
    half in which directions relax. The mean's growth is that of a population of replicas, redrawn
    in proportion to their losses whenever fewer than half of them carry the mean, which leaves the
    mean's expectation as it is; 16 blocks give the standard error and the correction for the bias
    of a logarithm (:func:`quadmodel.simulation.populations.population_growth`). Of a quadratic
    model, growth is that of plain runs over their second half, or up to divergence or convergence
    (:func:`quadmodel.simulation.growth.measure_growth`).

    In the large-P limit a run is a deterministic function of its batches, those that a simulation
    with the same seed and grid would draw, and

    .. math:: \theta = \sum_{l\le L}T_l, \qquad
              T_l \to T_l - \frac{\eta}{D}\sum_a(Wz)_aw_a^l

    over words of up to L letters, whose inner products are known
    (:func:`quadmodel.large_p_limit`). A step of a cell takes about :math:`2BD^{L-1}r`
    multiplications for independent curvature, :math:`2D^Lr` for correlated, with r the rank of the
    Jacobian; a thread holds one run, :math:`8D^Lr` bytes. Growth is measured as that of a quadratic
    model, and the predicted edges are those of the initial NTK, as they are without the limit. A
    model of P parameters was seen to turn unstable earlier, mostly: at learning rates lower by 0 to
    8 % for D = 12 and P = 600 or 1200, from one draw of the curvature to another.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.
    .. [2] derivations/08-large-p.md for the large-P limit; beyond arXiv:2404.19261.

    Examples
    --------
    >>> import quadmodel as qm
    >>> grid = qm.phase_diagram(qm.Ensemble(20, 40), 6, 3, steps=64, replicas=4)
    >>> dict(grid.mean_growth.sizes)
    {'learning_rate': 6, 'batch_size': 3}
    >>> curved = qm.Ensemble(8, 400, curvature=0.5 / 400**0.5)
    >>> limit = qm.phase_diagram(curved, 6, 3, steps=64, replicas=4, limit="large-p")
    >>> round(limit.attrs["curvature_strength"], 12)
    0.5
    """
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    steps = as_integer("steps", steps, low=MIN_STEPS, high=2**31)
    replicas = as_integer("replicas", replicas, low=2, high=2**20)
    refine = as_integer("refine", refine, low=0, high=1000)
    threads = None if threads is None else as_integer("threads", threads)
    level = _as_level(limit, level, precision)
    if not isinstance(sgd, SGD | None):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    template = replace(sgd or SGD(1.0, 1), learning_rate=1.0, batch_size=1)
    given_rates = (
        None if is_count("learning_rates", learning_rates) else as_learning_rates(learning_rates)
    )
    if given_rates is None:
        as_integer("learning_rates", learning_rates, low=2, high=100_000)
    source = source if isinstance(source, Ensemble) else _as_model(source)
    sizes = as_batch_sizes(batch_sizes, source.n_data)

    n_rates = int(learning_rates) if given_rates is None else given_rates.size  # type: ignore[arg-type]
    measure: Any
    if limit is None:
        model = source.sample(seed) if isinstance(source, Ensemble) else source
        precision = as_choice("precision", precision, PRECISIONS)
        measure = partial(measure_growth, model)
        special: dict[str, Any] = {"n_params": model.n_params}
    else:
        model, system = system_of(source, seed, level)
        check_runs(system, template, (n_rates + refine) * sizes.size * replicas, threads)
        measure = partial(measure_cells_in_limit, system)
        special = {"limit": limit, "level": level, "curvature_strength": system.strength}
    attrs = {
        "kind": "phase diagram",
        **_described(source, limit),
        "n_data": model.n_data,
        **special,
        **{k: v for k, v in template.spec().items() if k not in ("learning_rate", "batch_size")},
        "steps": steps,
        "replicas": replicas,
        "refine": refine,
        "precision": precision,
        "seed": str(seed),
        "quadmodel_version": __version__,
    }
    with workers(threads) as pool:
        spectrum = Spectrum(*model.eigensystem)
        if spectrum.edge == 0:
            raise InputError("source: the NTK must not vanish, got eigenvalues that are all zero")
        boundaries = _boundaries(spectrum, sizes, template, pool)
        rates = given_rates
        if rates is None:
            rates = _spread_learning_rates(boundaries, n_rates)

        def evaluate(at: FloatArray, b: IntArray, first: int, what: str) -> tuple[Any, int]:
            cells = GridPoints(at, b, template, steps, replicas, seed, first, precision)
            measured = measure(cells, pool, what=what, show=progress)
            norms = _norms(spectrum, template, at, b, pool)
            return measured.variables() | {"noise_kernel_norm": norms}, measured.replica_steps

        on_grid, done = evaluate(
            np.repeat(rates, sizes.size), np.tile(sizes, rates.size), 0, "grid"
        )
        grid = {k: v.reshape(*v.shape[:-1], rates.size, sizes.size) for k, v in on_grid.items()}
        scan_rates = _scan_learning_rates(rates, grid, refine)
        found = np.isfinite(scan_rates).all(axis=1)
        scan = {k: np.full((*v.shape[:-2], sizes.size, refine), np.nan) for k, v in grid.items()}
        if refine and found.any():
            # Replica numbers beyond those of the grid: three sets of runs per cell at most.
            first = 3 * rates.size * sizes.size * replicas
            on_scan, more = evaluate(
                scan_rates[found].ravel(), np.repeat(sizes[found], refine), first, "finer scan"
            )
            done += more
            for name, value in on_scan.items():
                scan[name][..., found, :] = value.reshape(*value.shape[:-1], -1, refine)
    scan["learning_rate"] = scan_rates
    attrs["replica_steps"] = done
    return _dataset(rates, sizes, grid, scan, boundaries, attrs)


def _as_level(limit: Any, level: Any, precision: Any) -> int:
    """Return the level of the limit; 0 without one."""
    if limit is None:
        if level is not None:
            raise InputError(f"level must be None without a limit, got {level!r}")
        return 0
    as_choice("limit", limit, LIMITS)
    if as_choice("precision", precision, PRECISIONS) != "float64":
        raise InputError(f'precision must be "float64" with a limit, got "{precision}"')
    return 2 if level is None else as_integer("level", level, high=1000)


def _described(source: Ensemble | QuadraticModel, limit: str | None) -> dict[str, Any]:
    """Return what attributes say about the source."""
    if not isinstance(source, Ensemble):
        return {"model": repr(source)}
    spec = source.spec()
    if limit is not None:
        n_params = spec.pop("n_params")
        if isinstance(source.jacobian, IndependentGaussian):  # whose spectrum depends on it
            spec["jacobian"] += f" with n_params={n_params}"
    return spec


def _as_model(source: Any) -> QuadraticModel:
    if isinstance(source, QuadraticModel):
        return source
    if np.ndim(source) != 2:
        raise InputError(
            "source must be an Ensemble, a QuadraticModel or an NTK of shape (n_data, n_data), "
            f"got {type(source).__name__} with {np.ndim(source)} dimensions"
        )
    return QuadraticModel.from_ntk(source)


def _spread_learning_rates(boundaries: xr.Dataset, count: int) -> FloatArray:
    low = 0.4 * float(boundaries.critical_learning_rate.min())
    return np.geomspace(low, 1.6 * float(boundaries.edge_of_stability.max()), count)


def _boundaries(spectrum: Spectrum, sizes: IntArray, template: SGD, pool: Workers) -> xr.Dataset:
    """Return the edges of the mean loss, and that of the typical one."""
    edges = phase_boundaries(spectrum, sizes, template)
    mean_square = edges.critical_learning_rate.sel(norm="exact").values
    typical = np.empty(sizes.size)

    def work(some: slice) -> None:
        for k in range(*some.indices(sizes.size)):
            sgd = replace(template, batch_size=int(sizes[k]))
            typical[k] = typical_critical_on_spectrum(spectrum, sgd, float(mean_square[k]))

    pool.map(work, [slice(k, k + 1) for k in range(sizes.size)])
    name = "learning rate above which typical runs diverge"
    attrs = {"long_name": name, "units": "1 / NTK eigenvalue"}
    return edges.assign(typical_critical_learning_rate=("batch_size", typical, attrs))


def _norms(
    spectrum: Spectrum, template: SGD, rates: FloatArray, sizes: IntArray, pool: Workers
) -> FloatArray:
    """Return K of every method and cell, shape (methods, cells)."""
    norms = np.empty((len(METHODS), rates.size))

    def work(some: slice) -> None:
        for cell in range(*some.indices(rates.size)):
            sgd = replace(template, learning_rate=rates[cell], batch_size=int(sizes[cell]))
            norms[:, cell] = [norm_or_infinity(spectrum, sgd, method) for method in METHODS]

    pool.map(work, [slice(i, i + 8) for i in range(0, rates.size, 8)])
    return norms


def _scan_learning_rates(rates: FloatArray, grid: dict[str, Any], count: int) -> FloatArray:
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


def _phases(rates: FloatArray, grid: dict[str, Any], edge: FloatArray) -> np.ndarray:
    mean, typical = grid["mean_growth"] > 0, grid["typical_growth"] > 0
    beyond = rates[:, None] >= edge
    stable, intermittent, stochastic, deterministic = PHASES
    return np.select(
        [~mean & ~typical, beyond, mean & ~typical],
        [stable, deterministic, intermittent],
        stochastic,
    )


def _predicted_phases(rates: FloatArray, boundaries: xr.Dataset) -> np.ndarray:
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
    sizes: IntArray,
    grid: dict[str, Any],
    scan: dict[str, Any],
    boundaries: xr.Dataset,
    attrs: dict[str, Any],
) -> xr.Dataset:
    def labelled(name: str, value: Any, dims: tuple[str, ...]) -> Any:
        long_name, units = _LABELS[name]
        lead = ("norm",) if value.ndim > len(dims) else ()
        return (*lead, *dims), value, {"long_name": long_name, "units": units}

    plane = ("learning_rate", "batch_size")
    phases = _phases(rates, grid, boundaries.edge_of_stability.values)
    predicted = _predicted_phases(rates, boundaries)
    return xr.Dataset(
        {name: labelled(name, v, plane) for name, v in grid.items()}
        | {"phase": (plane, phases, {"long_name": "phase, simulated"})}
        | {"predicted_phase": (plane, predicted, {"long_name": "phase, predicted"})}
        | {f"scan_{name}": labelled(name, v, ("batch_size", "scan")) for name, v in scan.items()}
        | {str(name): variable for name, variable in boundaries.data_vars.items()},
        coords={
            "learning_rate": labelled("learning_rate", rates, ("learning_rate",)),
            "batch_size": boundaries.batch_size,
            "norm": boundaries.norm,
        },
        attrs=attrs,
    )
