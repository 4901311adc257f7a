"""sharpening_diagram(): growth of the largest NTK eigenvalue over learning rate and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from quadmodel._util.axes import as_count_or_values
from quadmodel._util.checks import FloatArray, InputError, as_integer, as_number, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.version import __version__
from quadmodel.curvature import CurvatureLaw
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.ntk_draws import growth_over_grid
from quadmodel.theory import sharpening
from quadmodel.theory.noise_kernel import edge_of_stability, phase_boundaries


def sharpening_diagram(
    source: Ensemble | QuadraticModel,
    learning_rates: int | Sequence[float] | FloatArray = 12,
    batch_sizes: int | Sequence[int] | NDArray[np.integer] = 8,
    *,
    sgd: SGD | None = None,
    steps: int = 60,
    pairs: int = 12,
    batches: int = 2,
    curvature: CurvatureLaw | float | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Map the mean growth of the largest NTK eigenvalue over learning rate and batch size.

    Parameters
    ----------
    source : Ensemble or QuadraticModel
        Jacobian and residual at the start (an ensemble's first model of this seed).
    learning_rates : int or sequence of float, optional
        How many, spread below the deterministic edge; or different values, in 1 / NTK eigenvalue.
    batch_sizes : int or sequence of int, optional
        How many, spread from 1 to the number of data points; or the values.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; plain SGD if left out.
    steps : int, optional
        SGD steps over which the eigenvalue grows.
    pairs : int, optional
        Antithetic pairs of curvature draws, at least 2; all cells share them.
    batches : int, optional
        Sequences of batches per draw.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; by default that of `source`.
    seed : int, optional
        Seed of the model, the curvatures and the batches, below 2**64.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Over (learning_rate, batch_size): `predicted_growth`, NaN where second order in the
        curvature does not hold; `simulated_growth` and its `standard_error`, +inf where runs
        diverged; `conservative`, what batch noise adds to the prediction; `relative_change`, the
        number that says how far second order holds. Growth as a share of the initial largest
        eigenvalue. `critical_learning_rate` (norm, batch_size) and `edge_of_stability`.

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
    >>> growth = qm.sharpening_diagram(ensemble, 3, [1, 8], steps=10, pairs=4)
    >>> dict(growth.simulated_growth.sizes)
    {'learning_rate': 3, 'batch_size': 2}
    """
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    if not isinstance(source, Ensemble | QuadraticModel):
        raise InputError(
            f"source must be an Ensemble or a QuadraticModel, got {type(source).__name__}"
        )
    # Steps and pairs are counters of 32 bits where batches are drawn.
    steps = as_integer("steps", steps, high=2**32 - 1)
    pairs = as_integer("pairs", pairs, low=2, high=2**32 - 1)
    batches = as_integer("batches", batches, high=2**20)
    threads = None if threads is None else as_integer("threads", threads)
    template = SGD(1.0, 1) if sgd is None else sgd
    if not isinstance(template, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    if isinstance(source, Ensemble):
        # The law is all that is needed of the curvature.
        law_of_source = source.curvature
        model = replace(source, curvature=None).sample(seed)
        curvature = law_of_source if curvature is None else curvature
    else:
        model = source
    law = sharpening.law_of(model, curvature)
    statistics = sharpening.curvature_statistics(model, law)
    sizes = _sizes(batch_sizes, model.n_data)
    edge = edge_of_stability(model.ntk(), template)
    rates = _rates(learning_rates, edge)
    boundaries = phase_boundaries(model.ntk(), sizes, template)
    largest = float(model.eigensystem[0][0])
    shape = (len(rates), len(sizes))
    predicted, conservative, relative = (np.full(shape, np.nan) for _ in range(3))
    cells = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    check_memory("the growths", 32.0 * pairs * len(cells))
    with progress_bar(len(cells) + pairs, what="sharpening", show=progress) as bar:
        # The simulation first: it knows whether its draws fit in memory.
        growth = growth_over_grid(
            model,
            law,
            template,
            np.array([rates[i] for i, _ in cells]),
            np.array([sizes[j] for _, j in cells]),
            steps=steps,
            pairs=pairs,
            batches=batches,
            seed=seed,
            threads=threads,
            advance=bar.update,
        )
        for i, j in cells:
            bar.update(1)
            if rates[i] >= edge:
                continue
            one = replace(template, learning_rate=rates[i], batch_size=sizes[j])
            with np.errstate(over="ignore", invalid="ignore"):
                (last,) = sharpening.ntk_changes(statistics, model, one, np.array([steps]))
            relative[i, j] = last.relative_change
            if last.relative_change < sharpening.VALID_BELOW:
                conservative[i, j] = last.conservative[0, 0] / largest
                grown = np.nanmax(last.eigenvalues(statistics.lam)) - largest
                predicted[i, j] = grown / largest
    growth = growth.reshape(pairs, *shape) / largest
    mean = growth.mean(axis=0)
    with np.errstate(invalid="ignore"):
        error = growth.std(axis=0, ddof=1) / pairs**0.5
    error = np.where(np.isfinite(mean), error, np.inf)
    per_cell = ("learning_rate", "batch_size")
    share = {"units": "1 (share of the initial eigenvalue)"}
    return xr.Dataset(
        {
            "predicted_growth": (
                per_cell,
                predicted,
                {"long_name": "predicted growth of the largest NTK eigenvalue", **share},
            ),
            "simulated_growth": (
                per_cell,
                mean,
                {"long_name": "simulated growth of the largest NTK eigenvalue", **share},
            ),
            "standard_error": (per_cell, error, {"long_name": "standard error", **share}),
            "conservative": (
                per_cell,
                conservative,
                {"long_name": "predicted part of batch noise in the growth", **share},
            ),
            "relative_change": (
                per_cell,
                relative,
                {"long_name": "mean square change of the Jacobian by diffusion", "units": "1"},
            ),
            "critical_learning_rate": boundaries.critical_learning_rate,
            "edge_of_stability": boundaries.edge_of_stability,
        },
        coords={
            "learning_rate": (
                "learning_rate",
                rates,
                {"long_name": "learning rate", "units": "1 / NTK eigenvalue"},
            ),
            "batch_size": (
                "batch_size",
                sizes,
                {"long_name": "batch size", "units": "data points"},
            ),
        },
        attrs={
            "kind": "sharpening diagram",
            "steps": steps,
            "pairs": pairs,
            "batches": batches,
            "seed": str(seed),
            "curvature": repr(law),
            "valid_below": sharpening.VALID_BELOW,
            "quadmodel_version": __version__,
            "n_data": model.n_data,
            "n_params": model.n_params,
            **{k: v for k, v in template.spec().items() if k not in per_cell},
        },
    )


def _sizes(given: int | Sequence[int] | NDArray[np.integer], n_data: int) -> list[int]:
    values = as_count_or_values("batch_sizes", given)
    if isinstance(values, int):
        return [int(b) for b in np.unique(np.geomspace(1, n_data, values).round())]
    return sorted({as_integer("batch_sizes", b, high=n_data) for b in values})


def _rates(given: int | Sequence[float] | FloatArray, edge: float) -> list[float]:
    values = as_count_or_values("learning_rates", given)
    if isinstance(values, int):
        return [float(v) for v in np.geomspace(edge / 20, 0.95 * edge, values)]
    rates = sorted(as_number("learning_rates", v, above=0.0) for v in values)
    if len(set(rates)) < len(rates):
        raise InputError(f"learning_rates must be different ones, got {rates}")
    return rates
