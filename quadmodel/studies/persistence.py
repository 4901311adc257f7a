"""persistent_edge(): training that stays at the stochastic edge without converging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError, as_integer, as_number, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import as_threads, workers
from quadmodel._util.version import __version__
from quadmodel.curvature import KroneckerCurvature
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.trajectories import simulate
from quadmodel.theory.noise_kernel import critical_learning_rate

_RECORDED = (
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "noise_kernel_norm_exact",
    "ntk_largest_eigenvalue",
    "loss",
)


def persistent_edge(
    strengths: Sequence[float] = (0.7, 1.0, 1.2),
    *,
    runs: int = 4,
    initial_norm: float = 0.2,
    n_data: int = 100,
    n_params: int = 200,
    batch_size: int = 2,
    steps: int = 20_000,
    record_every: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Train models whose curvature grows with the NTK, and follow their noise kernel norms.

    Parameters
    ----------
    strengths : sequence of float, optional
        Curvature strengths q.
    runs : int, optional
        Models per strength, each with its own Jacobian, residual, curvature and batches; all
        strengths share them.
    initial_norm : float, optional
        The paper's K at the start, which sets the learning rate.
    n_data, n_params : int, optional
        Data points D and parameters P, at least D.
    batch_size : int, optional
        Batch size.
    steps : int, optional
        SGD steps.
    record_every : int, optional
        Steps between two records; by default a hundred records.
    seed : int, optional
        Seed of models, curvatures and batches, below 2**64; run n draws its model from seed + n.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Over (strength, run, step): `noise_kernel_norm` (paper), `noise_kernel_norm_finite`,
        `noise_kernel_norm_exact`, `scaled_largest_eigenvalue` (:math:`\eta\lambda_{\max}`, the
        deterministic edge is 2) and `loss`; over (strength, run): `divergence_step`, -1 for runs
        that did not diverge.

    Raises
    ------
    InputError
        If an argument is out of range.
    MemoryError
        If a curvature per thread and the records don't fit in memory.

    Notes
    -----
    NTK eigenvalues 1/k, :math:`|z_0|^2 = D`, and curvature of covariance

    .. math:: E[Q_{aij}Q_{bkl}] = \frac{q^2}{P}\left[V\frac{\Lambda}{\bar\lambda}V^\top\right]_{ab}
              (\delta_{ik}\delta_{jl} + \delta_{il}\delta_{jk})

    whose variance along a mode is proportional to the mode's NTK eigenvalue.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: there the curvature is independent of the Jacobian.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.persistent_edge([0.5], runs=1, n_data=10, n_params=20, steps=50)
    >>> dict(found.loss.sizes)
    {'strength': 1, 'run': 1, 'step': 51}
    """
    values = _strengths(strengths)
    # Steps and runs are counters of 32 bits where batches are drawn.
    runs = as_integer("runs", runs, high=2**32 - 1)
    steps = as_integer("steps", steps, high=2**32 - 1)
    n_data = as_integer("n_data", n_data)
    n_params = as_integer("n_params", n_params, low=n_data)
    initial_norm = as_number("initial_norm", initial_norm, above=0.0)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    if record_every is None:
        record_every = max(1, steps // 100)
    record_every = as_integer("record_every", record_every)
    template = SGD(1.0, batch_size)
    template.check_batch_size(n_data)
    count = as_threads(threads)
    n_cells = len(values) * runs
    drawn = 16.0 * n_data * n_params**2 * min(count, n_cells)
    # What is recorded, kept twice while it is put together.
    held = 16.0 * n_cells * len(_RECORDED) * (steps // record_every + 1)
    check_memory("the curvatures", drawn + held)
    cells = [(q, run) for q in values for run in range(runs)]

    def follow(cell: tuple[float, int]) -> tuple[float, xr.Dataset]:
        q, run = cell
        model = aligned_model(q, n_data, n_params, seed=seed + run)
        rate = critical_learning_rate(model.ntk(), template, level=initial_norm)
        runs_of_one = simulate(
            model,
            replace(template, learning_rate=rate),
            steps,
            seed=seed,
            model_index=run,
            record_every=record_every,
            threads=1,
            observables=_RECORDED,
        )
        return rate, runs_of_one.isel(replica=0)

    with (
        workers(count) as pool,
        progress_bar(len(cells), what="persistent edge", show=progress) as bar,
    ):
        found = pool.map(follow, cells, done=bar.update)
    shape = (len(values), runs)

    def stacked(name: str) -> Any:
        return np.stack([one[name].values for _, one in found]).reshape(*shape, -1)

    rates = np.array([rate for rate, _ in found]).reshape(shape)
    first = found[0][1]
    per_step = ("strength", "run", "step")
    variables = {
        name: (per_step, stacked(name), first[name].attrs)
        for name in _RECORDED
        if name != "ntk_largest_eigenvalue"
    }
    variables["scaled_largest_eigenvalue"] = (
        per_step,
        stacked("ntk_largest_eigenvalue") * rates[..., None],
        {"long_name": "learning rate times largest NTK eigenvalue", "units": "1"},
    )
    return xr.Dataset(
        {
            **variables,
            "learning_rate": (
                ("strength", "run"),
                rates,
                {"long_name": "learning rate", "units": "1 / NTK eigenvalue"},
            ),
            "divergence_step": (
                ("strength", "run"),
                stacked("divergence_step")[..., 0],
                first.divergence_step.attrs,
            ),
        },
        coords={
            "strength": ("strength", values, {"long_name": "curvature strength"}),
            "run": np.arange(runs),
            "step": ("step", first.step.values, {"units": "SGD steps"}),
        },
        attrs={
            "kind": "persistent edge",
            "initial_norm": initial_norm,
            "steps": steps,
            "seed": str(seed),
            "quadmodel_version": __version__,
            "n_data": n_data,
            "n_params": n_params,
            "batch_size": batch_size,
        },
    )


def _strengths(given: Any) -> list[float]:
    try:
        flat = np.ravel(given).tolist()
    except ValueError:
        raise InputError("strengths must be a list of numbers, got a ragged one") from None
    if not flat:
        raise InputError("strengths must hold at least one, got none")
    return [as_number("strengths", q, least=0.0) for q in flat]


def aligned_model(strength: float, n_data: int, n_params: int, *, seed: int) -> QuadraticModel:
    """Return a model whose curvature is as strong along a mode as the mode's NTK eigenvalue.

    Parameters
    ----------
    strength : float
        q.
    n_data, n_params : int
        Data points and parameters.
    seed : int
        Seed; models of other strengths differ by the scale of their curvature only.

    Returns
    -------
    QuadraticModel
        With its curvature's law.
    """
    base = Ensemble(n_data, n_params, jacobian=1 / np.arange(1, n_data + 1)).sample(seed)
    lam, vectors = base.eigensystem
    law = KroneckerCurvature(
        (vectors * (lam / lam.mean())) @ vectors.T, scale=strength / n_params**0.5
    )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    residual = base.residual * (n_data**0.5 / np.linalg.norm(base.residual))
    return QuadraticModel(residual, base.jacobian, law.sample(rng, n_data, n_params), law)


def late_table(found: xr.Dataset) -> xr.Dataset:
    """Return medians and quartiles over the last third of the steps, per run.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`persistent_edge`.

    Returns
    -------
    xarray.Dataset
        Every variable with dimension `quantile` (0.25, 0.5, 0.75), NaN for runs that diverged, and
        `at_edge`: whether a run has not converged (median loss above 1e-3) nor diverged. A quartile
        is +inf where a noise kernel norm is: above the deterministic edge.
    """
    late = found.isel(step=slice(-max(1, found.sizes["step"] // 3), None))
    survived = found.divergence_step < 0
    names = [name for name in found if "step" in found[name].dims]
    # Any number for runs that diverged, masked afterwards: quantiles of nothing would warn.
    table = _quartiles(late[names].where(survived, 0.0)).where(survived)
    training = (table.loss.sel(quantile=0.5) > 1e-3) & survived
    return table.assign(at_edge=training, divergence_step=found.divergence_step)


def _quartiles(late: xr.Dataset) -> xr.Dataset:
    """Return quartiles along the steps, of values that may be +inf."""
    at = [0.25, 0.5, 0.75]
    with np.errstate(invalid="ignore"):
        between = late.quantile(at, dim="step", skipna=False)
    # Interpolation towards +inf gives NaN: there the upper neighbour is meant, with any weight.
    above = late.quantile(at, dim="step", method="higher", skipna=False)
    return between.where(np.isfinite(between), above)
