"""Training that stays at the stochastic edge without converging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple, Unpack

import numpy as np
import xarray as xr

from quadmodel._util.checks import as_integer, as_list, as_number, check_memory
from quadmodel._util.results import (
    Variable,
    attributes,
    check_result,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel._util.threads import Workers
from quadmodel.laws.curvature import KroneckerCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.trajectories import simulate
from quadmodel.studies._edges import (
    Runs,
    as_runs,
    dataset_of,
    power_law_model,
    record_of,
    stacked,
    with_scaled_eigenvalue,
)
from quadmodel.sweeps._parcel import Job, keep_as_sent
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.running import Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import RunsStages, run_sweep
from quadmodel.theory.mean_field import mean_field
from quadmodel.theory.noise_kernel import critical_learning_rate

_NORMS = ("noise_kernel_norm", "noise_kernel_norm_finite", "noise_kernel_norm_exact")
# What is predicted, and how: recent steps kept singly, equations for modes, and steps at most, so
# that it costs little more than a run. So coarse a past resolves no smaller share of the loss.
_PREDICTED = ("noise_kernel_norm", "noise_kernel_norm_finite", "scaled_largest_eigenvalue", "loss")
_MEMORY, _BINS, _LONGEST, _RESOLVED = 40, 16, 4000, 1e-3


def persistent_edge(
    curvature_strengths: Sequence[float] = (0.7, 1.0, 1.2),
    *,
    replicas: int = 4,
    initial_norm: float = 0.2,
    n_data: int = 100,
    n_params: int = 200,
    batch_size: int = 2,
    steps: int = 20_000,
    record_every: int | None = None,
    seed: int = 0,
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Train models whose curvature grows with the NTK, and follow their noise kernel norms.

    Parameters
    ----------
    curvature_strengths : sequence of float, optional
        Curvature strengths q.
    replicas : int, optional
        Runs per curvature strength. Each replica is a model of its own, with its Jacobian,
        residual, curvature (up to its scale) and batches, which all curvature strengths share.
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
        Seed of models, curvatures and batches, below 2**64; replica n draws its model from
        seed + n.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        Over (curvature_strength, replica, step): `noise_kernel_norm` (paper),
        `noise_kernel_norm_finite`, `noise_kernel_norm_exact`, `scaled_largest_eigenvalue`
        (:math:`\eta\lambda_{\max}`, the deterministic edge is 2) and `loss`; over
        (curvature_strength, replica): `learning_rate`, and `divergence_step`, -1 for runs that did
        not diverge. Over (curvature_strength, step), from :func:`quadmodel.mean_field` up to step
        4000 and NaN after: `mean_field_noise_kernel_norm`, `mean_field_noise_kernel_norm_finite`,
        `mean_field_scaled_largest_eigenvalue` and `mean_field_loss`, the last NaN too once it has
        fallen to 1e-3 of its start.

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

    Mean-field theory is that of many modes that share the residual. Here a few carry it, and it
    takes the growth of K too large: at the defaults and q = 1 its finite K is 0.73 after 400 steps
    and 0.98 after 4000, where the mean over the runs is 0.63 and 0.86, and the exact K 0.75 and
    1.02.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261: there the curvature is independent of the Jacobian.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.persistent_edge([0.5], replicas=1, n_data=10, n_params=20, steps=50)
    >>> dict(found.loss.sizes)
    {'curvature_strength': 1, 'replica': 1, 'step': 51}
    """
    strengths = as_list(
        "curvature_strengths",
        curvature_strengths,
        lambda q: as_number("curvature_strengths", q, least=0.0),
    )
    how = as_how(running)
    runs = as_runs(replicas, steps, record_every, seed, how.threads)
    n_data = as_integer("n_data", n_data)
    n_params = as_integer("n_params", n_params, low=n_data)
    initial_norm = as_number("initial_norm", initial_norm, above=0.0)
    template = SGD(1.0, batch_size)
    template.check_batch_size(n_data)
    n_points = len(strengths) * runs.replicas
    drawn = 16.0 * n_data * n_params**2 * min(runs.threads, n_points)
    # What is recorded, kept twice while it is put together.
    held = 16.0 * n_points * (len(_NORMS) + 2) * runs.n_records
    check_memory("the curvatures", drawn + held)

    asked = Asked(n_data, n_params, template, initial_norm, runs)
    # A prediction per curvature strength, then the runs.
    units = [RunUnit(*point) for point in product(strengths, [None])]
    units += [RunUnit(*point) for point in product(strengths, range(runs.replicas))]
    names = (*_NORMS, "loss", "scaled_largest_eigenvalue", "learning_rate", "divergence_step")
    source = {"n_data": n_data, "n_params": n_params, "batch_size": batch_size}
    sizes = {"curvature_strength": len(strengths), "replica": runs.replicas}
    attrs = attributes(
        "persistent edge", source, initial_norm=initial_norm, steps=runs.steps, seed=runs.seed
    )

    def flow(sweep: RunsStages) -> xr.Dataset:
        every = [dataset_of(record) for record in sweep.run("runs", units)]
        predicted, found = every[: len(strengths)], every[len(strengths) :]
        of_theory = list(map(str, predicted[0]))
        per_strength = {"curvature_strength": len(strengths)}
        return xr.Dataset(
            stacked(found, names, sizes) | stacked(predicted, of_theory, per_strength),
            coords={
                "curvature_strength": variable(
                    "curvature_strength", strengths, "curvature strength"
                ),
                "replica": np.arange(runs.replicas),
                "step": step_coordinate(recorded_steps(runs.steps, runs.record_every)),
            },
            attrs=attrs,
        )

    every = {"curvature_strengths": strengths, "replicas": runs.replicas}
    every |= {"record_every": runs.record_every}
    manifest = Manifest("persistent edge", attrs | every, {"runs": len(units)})
    return run_sweep(manifest, Job(keep_as_sent, asked, asked), how, flow)


class Asked(NamedTuple):
    """What runs and predictions share."""

    n_data: int
    n_params: int
    template: SGD
    initial_norm: float
    runs: Runs


class RunUnit(NamedTuple):
    """A run at a curvature strength; its prediction, where there is no replica."""

    curvature_strength: float
    replica: int | None

    def compute(self, kept: Asked, pool: Workers) -> Record:
        """Train the model, or say what mean-field theory does."""
        if self.replica is None:
            return record_of(_prediction(self.curvature_strength, *kept))
        return record_of(_follow(self.curvature_strength, self.replica, *kept))


def _follow(
    curvature_strength: float,
    replica: int,
    n_data: int,
    n_params: int,
    template: SGD,
    initial_norm: float,
    runs: Runs,
) -> xr.Dataset:
    """Return the records of one run."""
    model = aligned_model(curvature_strength, n_data, n_params, seed=runs.seed + replica)
    rate = critical_learning_rate(model.ntk(), template, norm="paper", level=initial_norm)
    records = simulate(
        model,
        replace(template, learning_rate=rate),
        runs.steps,
        seed=runs.seed,
        model_index=replica,
        record_every=runs.record_every,
        threads=1,
        observables=(*_NORMS, "ntk_largest_eigenvalue", "loss"),
    )
    label = variable((), rate, "learning rate", "1 / NTK eigenvalue")
    records = records.isel(replica=0, drop=True).drop_vars("step")
    return with_scaled_eigenvalue(records, rate).assign(learning_rate=label)


def _prediction(
    curvature_strength: float,
    n_data: int,
    n_params: int,
    template: SGD,
    initial_norm: float,
    runs: Runs,
) -> xr.Dataset:
    """Return what mean-field theory says of the mean over replicas, at the steps of the runs."""
    lam = 1 / np.arange(1, n_data + 1)
    rate = critical_learning_rate(lam, template, norm="paper", level=initial_norm)
    law = KroneckerCurvature(np.diag(lam / lam.mean()), scale=curvature_strength / n_params**0.5)
    steps = recorded_steps(runs.steps, runs.record_every)
    reached = steps[steps <= _LONGEST]
    theory = mean_field(
        np.diag(lam),
        replace(template, learning_rate=rate),
        max(1, int(reached[-1])),
        curvature=law,
        residual=np.ones(n_data),
        n_params=n_params,
        memory=_MEMORY,
        bins=_BINS,
        record_every=runs.record_every,
    )
    theory = with_scaled_eigenvalue(theory, rate).isel(step=slice(reached.size))
    values: dict[str, Variable] = {}
    for name in _PREDICTED:
        whole = np.full(steps.size, np.nan)
        whole[: reached.size] = theory[name]
        if name == "loss":
            whole[np.logical_or.accumulate(whole < _RESOLVED * whole[0])] = np.nan
        attrs = theory[name].attrs
        of_theory = f"{attrs['long_name']}, mean-field theory"
        values[f"mean_field_{name}"] = variable("step", whole, of_theory, attrs["units"])
    return xr.Dataset(values)


def aligned_model(
    curvature_strength: float, n_data: int, n_params: int, *, seed: int
) -> QuadraticModel:
    """Return a model whose curvature is as strong along a mode as the mode's NTK eigenvalue.

    Models of other curvature strengths q, from the same seed, differ by the scale of their
    curvature only.
    """
    start = power_law_model(n_data, n_params, seed)
    lam, vectors = start.eigensystem
    law = KroneckerCurvature(
        (vectors * (lam / lam.mean())) @ vectors.T, scale=curvature_strength / n_params**0.5
    )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    return replace(start, curvature=law.sample(rng, n_data, n_params), curvature_law=law)


def late_time_quartiles(found: xr.Dataset) -> xr.Dataset:
    """Return medians and quartiles over the last third of the steps, per run.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`persistent_edge`.

    Returns
    -------
    xarray.Dataset
        Every variable of the runs with dimension `quantile` (0.25, 0.5, 0.75), NaN for runs that
        diverged, and `at_edge`: whether a run has not converged (median loss above 1e-3) nor
        diverged. A quartile is +inf where a noise kernel norm is: above the deterministic edge. If
        mean-field theory is there, its last `mean_field_noise_kernel_norm_finite` per curvature
        strength: at step 4000 of long runs, NaN where it diverges.

    Raises
    ------
    InputError
        If `found` is of another kind.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261; see :func:`persistent_edge`.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.persistent_edge([0.5], replicas=1, n_data=10, n_params=20, steps=50)
    >>> qm.late_time_quartiles(found)["quantile"].values.tolist()
    [0.25, 0.5, 0.75]
    """
    needed = dict.fromkeys(("scaled_largest_eigenvalue", "loss"), ("step",))
    check_result("found", found, "persistent_edge()", {**needed, "divergence_step": ()})
    late = found.isel(step=slice(-max(1, found.sizes["step"] // 3), None))
    survived = found.divergence_step < 0
    names = [name for name in found if {"step", "replica"} <= set(found[name].dims)]
    # Any number for runs that diverged, masked afterwards: quantiles of nothing would warn.
    table = _quartiles(late[names].where(survived, 0.0)).where(survived)
    training = (table.loss.sel(quantile=0.5) > 1e-3) & survived
    table = table.assign(at_edge=training, divergence_step=found.divergence_step)
    name = "mean_field_noise_kernel_norm_finite"
    if name not in found:
        return table
    reached = found[name].isel(step=found.step.values <= _LONGEST)
    return table.assign({name: reached.isel(step=-1, drop=True)})


def _quartiles(late: xr.Dataset) -> xr.Dataset:
    """Return quartiles along the steps, of values that may be +inf."""
    at = [0.25, 0.5, 0.75]
    with np.errstate(invalid="ignore"):
        between = late.quantile(at, dim="step", skipna=False)
    # Interpolation towards +inf gives NaN: there the upper neighbour is meant, with any weight.
    above = late.quantile(at, dim="step", method="higher", skipna=False)
    return between.where(np.isfinite(between), above)
