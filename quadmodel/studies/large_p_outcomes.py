"""What becomes of runs that start below and above the stochastic edge, at large P."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import (
    FloatArray,
    IntArray,
    as_batch_size,
    as_integer,
    as_number,
    as_sorted_list,
    check_memory,
)
from quadmodel._util.results import (
    Variable,
    attributes,
    check_result,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel._util.threads import Workers
from quadmodel.large_p.trajectories import large_p_limit
from quadmodel.laws.curvature import IndependentCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.studies._edges import (
    Runs,
    as_runs,
    dataset_of,
    power_law_model,
    record_of,
    stacked,
    with_scaled_eigenvalue,
)
from quadmodel.sweeps._parcel import Job
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.running import Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import RunsStages, run_sweep
from quadmodel.theory.noise_kernel import critical_learning_rate

_NORMS = ("noise_kernel_norm", "noise_kernel_norm_exact")
_FINAL = ("largest_norm", "final_norm", "final_norm_exact", "final_loss")
# A run has converged when its loss has fallen by this factor.
_CONVERGED = 1e-3
# What becomes of a run, from the best to the worst.
OUTCOMES = ("stayed below", "turned back", "ended above", "still training", "diverged")
_GRID = ("curvature_strength", "batch_size", "initial_norm")


def large_p_edge(
    initial_norms: Sequence[float] = (0.3, 0.45, 0.6, 0.75, 0.9, 1.5),
    batch_sizes: Sequence[int] = (2, 6, 20),
    curvature_strengths: Sequence[float] = (0.3, 1.0),
    *,
    truncation_order: int = 2,
    n_data: int = 40,
    steps: int = 1000,
    replicas: int = 4,
    record_every: int | None = None,
    seed: int = 0,
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Start runs below and above the stochastic edge, in the large-P limit, and see where they go.

    Parameters
    ----------
    initial_norms : sequence of float, optional
        The paper's K at the start, which sets the learning rate.
    batch_sizes : sequence of int, optional
        Batch sizes, below D.
    curvature_strengths : sequence of float, optional
        Curvature strengths :math:`q = \sigma\sqrt P`.
    truncation_order : int, optional
        Largest number of data indices of the basis states that are kept, see
        :func:`quadmodel.large_p_limit`.
    n_data : int, optional
        Data points D.
    steps : int, optional
        SGD steps.
    replicas : int, optional
        Runs per grid point, which differ in their batches; grid points of one batch size share
        these, and all grid points share Jacobian and residual at the start.
    record_every : int, optional
        Steps between two records; by default a hundred records.
    seed : int, optional
        Seed of model and batches, below 2**64.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        Over (curvature_strength, batch_size, initial_norm, replica, step): `noise_kernel_norm`
        (paper), `noise_kernel_norm_exact`, `scaled_largest_eigenvalue`
        (:math:`\eta\lambda_{\max}`, the deterministic edge is 2) and `loss`, as
        :func:`quadmodel.large_p_limit` has them. Per run: `largest_norm` and `final_norm`, the
        paper's K at its largest among the records and at the last, `final_norm_exact` and
        `final_loss`; of runs that diverged the final norms are NaN and the final loss is +inf;
        `divergence_step`, -1 for runs that did not diverge, and `outcome`, with the paper's K:

        - "stayed below": the loss fell to a thousandth, and K was below 1 in all records;
        - "turned back": it fell to a thousandth, K was above 1 and ended below;
        - "ended above": it fell to a thousandth, and K ended above 1;
        - "still training": the loss did not fall to a thousandth, nor did the run diverge;
        - "diverged".

        Over (batch_size, initial_norm): `learning_rate`.

    Raises
    ------
    InputError
        If an argument is out of range.
    MemoryError
        If the runs and the records don't fit in memory.

    Notes
    -----
    NTK eigenvalues 1/k with random eigenvectors, :math:`|z_0|^2 = D`, independent curvature, and
    :math:`\eta` such that the paper's

    .. math:: K = \frac{\eta(D/B-1)}{D}\sum_k\frac{\lambda_k}{2-\eta\lambda_k}

    is the wanted one at the start. As the loss falls the NTK grows, and K with it, until the noise
    does: then either K falls again, or the run diverges. Runs that stay below 1 reach equal K at
    truncation orders 2 and 3, to six percent with the default grid. Which runs turn back depends on
    the order: with small batches, the higher it is, the fewer; most diverge at order 4, as
    simulations do. At B = D/2, where :math:`\eta\lambda_{\max}` is close to 2 from the start,
    outcomes hardly depend on it: no run of the default grid diverges, and some converge with K
    above 1, which is the edge of the mean square only.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261, whose K it follows.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.large_p_edge([0.4, 4.0], [2], [0.5], n_data=10, steps=200, replicas=1)
    >>> found.outcome.squeeze().values.tolist()
    ['stayed below', 'diverged']
    """
    norms = as_sorted_list(
        "initial_norms", initial_norms, lambda v: as_number("initial_norms", v, above=0)
    )
    name = "curvature_strengths"
    strengths = as_sorted_list(
        name, curvature_strengths, lambda v: as_number(name, v, least=0, most=1e100)
    )
    n_data = as_integer("n_data", n_data, low=2)
    sizes = as_sorted_list("batch_sizes", batch_sizes, lambda size: as_batch_size(size, n_data - 1))
    truncation_order = as_integer("truncation_order", truncation_order)
    how = as_how(running)
    runs = as_runs(replicas, steps, record_every, seed, how.threads)
    grid = list(product(strengths, sizes, norms))
    _check_memory(len(grid), n_data, truncation_order, runs)
    asked = Asked(n_data, truncation_order, runs)
    kept = prepare(asked)
    ntk = kept.model.ntk()
    rates = {
        (b, k): critical_learning_rate(ntk, SGD(1.0, b), norm="paper", level=k)
        for b, k in product(sizes, norms)
    }

    units = [RunsUnit(q, b, rates[b, norm]) for q, b, norm in grid]
    axes = dict(zip(_GRID, (strengths, sizes, norms), strict=True))
    attrs = attributes(
        "edge at large P",
        {"n_data": n_data},
        truncation_order=truncation_order,
        steps=runs.steps,
        seed=runs.seed,
    )
    rate = np.array([*rates.values()]).reshape(len(sizes), len(norms))

    def flow(sweep: RunsStages) -> xr.Dataset:
        found = [dataset_of(record) for record in sweep.run("runs", units)]
        recorded = recorded_steps(runs.steps, runs.record_every)
        return _dataset(found, axes, rate, recorded).assign_attrs(attrs)

    every = {**axes, "replicas": runs.replicas, "record_every": runs.record_every}
    manifest = Manifest("edge at large P", attrs | every, {"runs": len(units)})
    return run_sweep(manifest, Job(prepare, asked, kept), how, flow)


class Asked(NamedTuple):
    """What all runs share."""

    n_data: int
    truncation_order: int
    runs: Runs


class _Kept(NamedTuple):
    """What a worker keeps: that, and the model at the start."""

    asked: Asked
    model: QuadraticModel


def prepare(asked: Asked) -> _Kept:
    """Draw the model."""
    with one_blas_thread():
        return _Kept(asked, power_law_model(asked.n_data, asked.n_data, asked.runs.seed))


class RunsUnit(NamedTuple):
    """The runs at one curvature strength, batch size and learning rate."""

    curvature_strength: float
    batch_size: int
    learning_rate: float

    def compute(self, kept: _Kept, pool: Workers) -> Record:
        """Follow them."""
        (n_data, truncation_order, runs), model = kept
        law = IndependentCurvature(self.curvature_strength / n_data**0.5)
        records = large_p_limit(
            replace(model, curvature_law=law),
            SGD(self.learning_rate, self.batch_size),
            runs.steps,
            truncation_order=truncation_order,
            replicas=runs.replicas,
            seed=runs.seed,
            record_every=runs.record_every,
            observables=(*_NORMS, "ntk_largest_eigenvalue", "loss"),
            threads=1,
        )
        scaled = with_scaled_eigenvalue(records, self.learning_rate)
        return record_of(scaled.drop_vars(["step", "replica"]))


def _check_memory(n_points: int, n_data: int, truncation_order: int, runs: Runs) -> None:
    """Raise MemoryError unless the coefficients of runs and all records fit in memory."""
    with np.errstate(over="ignore"):
        n_states = np.float64(n_data) ** (truncation_order + 1)
    held = 2.0 * n_points * runs.replicas * (len(_NORMS) + 2) * runs.n_records
    at_once = min(runs.threads, n_points)
    check_memory("the large-P limit", 8.0 * (at_once * 2 * (runs.replicas + 2) * n_states + held))


def _dataset(
    found: Sequence[xr.Dataset], axes: dict[str, list[float]], rate: FloatArray, recorded: IntArray
) -> xr.Dataset:
    """Label records, summaries and learning rates of all runs."""
    sizes = {name: len(values) for name, values in axes.items()}
    records = stacked(found, (*_NORMS, "loss", "scaled_largest_eigenvalue"), sizes)
    divergence = stacked(found, ["divergence_step"], sizes)
    summary = _summary(
        {name: values for name, (_, values, _) in records.items()},
        divergence["divergence_step"][1],
    )
    per_rate = ("batch_size", "initial_norm")
    return xr.Dataset(
        {
            **records,
            **summary,
            **divergence,
            "learning_rate": variable(per_rate, rate, "learning rate", "1 / NTK eigenvalue"),
        },
        coords={
            "curvature_strength": variable(
                "curvature_strength", axes["curvature_strength"], "curvature strength"
            ),
            "batch_size": variable("batch_size", axes["batch_size"], units="data points"),
            "initial_norm": variable(
                "initial_norm",
                axes["initial_norm"],
                "noise kernel norm (paper) at the start",
                "1",
            ),
            "replica": np.arange(found[0].sizes["replica"]),
            "step": step_coordinate(recorded),
        },
    )


def _summary(
    recorded: dict[str, FloatArray], diverged_at: NDArray[np.int64]
) -> dict[str, Variable]:
    """Return what becomes of runs, from their records along the last axis."""
    norm, exact, loss = (recorded[name] for name in (*_NORMS, "loss"))
    diverged = diverged_at >= 0
    largest = np.nanmax(norm, axis=-1)  # a number: nothing has diverged at the start
    # A run may diverge after its last record.
    final, final_exact = (np.where(diverged, np.nan, values[..., -1]) for values in (norm, exact))
    final_loss = np.where(diverged, np.inf, loss[..., -1])
    outcome = np.select(
        [diverged, final_loss >= _CONVERGED * loss[..., 0], final >= 1.0, largest >= 1.0],
        OUTCOMES[:0:-1],
        OUTCOMES[0],
    )
    run = (*_GRID, "replica")
    return {
        "largest_norm": variable(run, largest, "largest noise kernel norm (paper)", "1"),
        "final_norm": variable(run, final, "final noise kernel norm (paper)", "1"),
        "final_norm_exact": variable(run, final_exact, "final noise kernel norm (exact)", "1"),
        "final_loss": variable(run, final_loss, "final loss", "loss"),
        "outcome": variable(run, outcome, "what became of the run"),
    }


def outcome_table(found: xr.Dataset) -> xr.Dataset:
    """Return medians over the runs that did not diverge and counts of outcomes, per grid point.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`large_p_edge`.

    Returns
    -------
    xarray.Dataset
        Over (curvature_strength, batch_size, initial_norm): `largest_norm`, `final_norm`,
        `final_norm_exact` and `final_loss`, NaN where all runs diverged, and `outcome`, like
        "3 turned back, 1 diverged".

    Raises
    ------
    InputError
        If `found` is of another kind.

    References
    ----------
    .. [1] derivations/08-large-p.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.large_p_edge([0.4, 4.0], [2], [0.5], n_data=10, steps=200, replicas=1)
    >>> qm.outcome_table(found).outcome.squeeze().values.tolist()
    ['1 stayed below', '1 diverged']
    """
    needed = dict.fromkeys(("outcome", "divergence_step", *_FINAL), (*_GRID, "replica"))
    check_result("found", found, "large_p_edge()", needed)
    runs = found.transpose(*_GRID, "replica", ...)
    survived = (runs.divergence_step < 0).values
    shape = survived.shape[:-1]
    table: dict[str, Variable] = {}
    for name in _FINAL:
        values, medians = runs[name].values, np.full(shape, np.nan)
        for point in np.ndindex(*shape):
            if survived[point].any():
                medians[point] = np.median(values[point][survived[point]])
        table[name] = _GRID, medians, found[name].attrs
    outcomes = np.empty(shape, object)
    for point in np.ndindex(*shape):
        counts = Counter(runs.outcome.values[point].tolist())
        outcomes[point] = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
    table["outcome"] = variable(_GRID, outcomes.astype(str), "number of runs by outcome")
    return xr.Dataset(table, {name: found[name] for name in _GRID}, found.attrs)
