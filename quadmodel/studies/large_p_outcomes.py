"""limit_edge(): where runs go that start below and above the stochastic edge, at large P."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, InputError, as_integer, as_number, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import as_threads, workers
from quadmodel._util.version import __version__
from quadmodel.curvature import IndependentCurvature
from quadmodel.ensemble import Ensemble
from quadmodel.large_p.trajectories import large_p_limit
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory.noise_kernel import critical_learning_rate

_NORMS = ("noise_kernel_norm", "noise_kernel_norm_exact")
_RECORDED = (*_NORMS, "ntk_largest_eigenvalue", "loss")
# A run has converged when its loss has fallen by this factor.
_CONVERGED = 1e-3
# What becomes of a run, from the best to the worst.
FATES = ("stayed below", "turned back", "ended above", "still training", "diverged")
_CELL = ("strength", "batch_size", "initial_norm")


def limit_edge(
    initial_norms: Sequence[float] = (0.3, 0.45, 0.6, 0.75, 0.9, 1.5),
    batch_sizes: Sequence[int] = (2, 6, 20),
    strengths: Sequence[float] = (0.3, 1.0),
    *,
    level: int = 2,
    n_data: int = 40,
    steps: int = 1000,
    runs: int = 4,
    record_every: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Start runs below and above the stochastic edge, in the large-P limit, and see where they go.

    Parameters
    ----------
    initial_norms : sequence of float, optional
        The paper's K at the start, which sets the learning rate.
    batch_sizes : sequence of int, optional
        Batch sizes, below D.
    strengths : sequence of float, optional
        Curvature strengths :math:`q = \sigma\sqrt P`.
    level : int, optional
        Length of the longest words, see :func:`quadmodel.large_p_limit`.
    n_data : int, optional
        Data points D.
    steps : int, optional
        SGD steps.
    runs : int, optional
        Runs per cell, which differ in their batches; cells of one batch size share them, and all
        cells share Jacobian and residual at the start.
    record_every : int, optional
        Steps between two records; by default a hundred records.
    seed : int, optional
        Seed of model and batches, below 2**64.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Over (strength, batch_size, initial_norm, run, step): `noise_kernel_norm` (paper),
        `noise_kernel_norm_exact`, `scaled_largest_eigenvalue` (:math:`\eta\lambda_{\max}`, the
        deterministic edge is 2) and `loss`, as :func:`quadmodel.large_p_limit` has them. Per run:
        `largest_norm` and `final_norm`, the paper's K at its largest among the records and at the
        last, `final_norm_exact` and `final_loss`; of runs that diverged the final norms are NaN and
        the final loss is +inf; `divergence_step`, -1 for runs that did not diverge, and `fate`,
        with the paper's K:

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
        If the words of the runs and the records don't fit in memory.

    Notes
    -----
    NTK eigenvalues 1/k with random eigenvectors, :math:`|z_0|^2 = D`, independent curvature, and
    :math:`\eta` such that the paper's

    .. math:: K = \frac{\eta(D/B-1)}{D}\sum_k\frac{\lambda_k}{2-\eta\lambda_k}

    is the wanted one at the start. As the loss falls the NTK grows, and K with it, until the noise
    does: then either K falls again, or the run diverges. Runs that stay below 1 reach the same K at
    levels 2 and 3, to six percent in the default sweep. Which runs turn back depends on the level:
    with small batches, the more words are kept, the fewer; most diverge at level 4, as simulations
    do. At B = D/2, where :math:`\eta\lambda_{\max}` is close to 2 from the start, fates hardly
    depend on it: no run of the default sweep diverges, and some converge with K above 1, which is
    the edge of the mean square only.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261, whose K it follows.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.limit_edge([0.4, 4.0], [2], [0.5], n_data=10, steps=200, runs=1)
    >>> found.fate.squeeze().values.tolist()
    ['stayed below', 'diverged']
    """
    norms = _values(
        "initial_norms", initial_norms, lambda v: as_number("initial_norms", v, above=0)
    )
    strong = _values(
        "strengths", strengths, lambda v: as_number("strengths", v, least=0, most=1e100)
    )
    n_data = as_integer("n_data", n_data, low=2)
    sizes = _values(
        "batch_sizes", batch_sizes, lambda v: as_integer("batch_sizes", v, high=n_data - 1)
    )
    level = as_integer("level", level)
    # Steps and runs are counters of 32 bits where batches are drawn.
    steps = as_integer("steps", steps, high=2**32 - 1)
    runs = as_integer("runs", runs, high=2**32 - 1)
    if record_every is None:
        record_every = max(1, steps // 100)
    record_every = as_integer("record_every", record_every)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    count = as_threads(threads)
    cells = list(product(strong, sizes, norms))
    with np.errstate(over="ignore"):
        words = np.float64(n_data) ** (level + 1)
    held = 2.0 * len(cells) * runs * len(_RECORDED) * (steps // record_every + 1)
    at_once = min(count, len(cells))
    check_memory("the large-P limit", 8.0 * (at_once * 2 * (runs + 2) * words + held))
    model = power_law_model(n_data, seed=seed)
    ntk = model.ntk()
    rates = {
        (b, k): critical_learning_rate(ntk, SGD(1.0, b), level=k) for b, k in product(sizes, norms)
    }

    def follow(cell: tuple[float, int, float]) -> xr.Dataset:
        q, batch_size, norm = cell
        return large_p_limit(
            replace(model, curvature_law=IndependentCurvature(q / n_data**0.5)),
            SGD(rates[batch_size, norm], batch_size),
            steps,
            level=level,
            replicas=runs,
            seed=seed,
            record_every=record_every,
            observables=_RECORDED,
            threads=1,
        )

    with (
        workers(count) as pool,
        progress_bar(len(cells), what="edge at large P", show=progress) as bar,
    ):
        found = pool.map(follow, cells, done=bar.update)
    shape = (len(strong), len(sizes), len(norms), runs)
    rate = np.array([rates[pair] for pair in product(sizes, norms)]).reshape(shape[1:3])
    first = found[0]
    per_step = (*_CELL, "run", "step")

    def stacked(name: str) -> Any:
        return np.stack([one[name].values for one in found]).reshape(*shape, -1)

    recorded = {
        name: (per_step, stacked(name), first[name].attrs)
        for name in _RECORDED
        if name != "ntk_largest_eigenvalue"
    }
    recorded["scaled_largest_eigenvalue"] = (
        per_step,
        stacked("ntk_largest_eigenvalue") * rate[:, :, None, None],
        {"long_name": "learning rate times largest NTK eigenvalue", "units": "1"},
    )
    diverged_at = stacked("divergence_step")[..., 0]
    return xr.Dataset(
        {
            **recorded,
            **_summary({name: values for name, (_, values, _) in recorded.items()}, diverged_at),
            "divergence_step": ((*_CELL, "run"), diverged_at, first.divergence_step.attrs),
            "learning_rate": (
                ("batch_size", "initial_norm"),
                rate,
                {"long_name": "learning rate", "units": "1 / NTK eigenvalue"},
            ),
        },
        coords={
            "strength": ("strength", strong, {"long_name": "curvature strength"}),
            "batch_size": ("batch_size", sizes, {"units": "data points"}),
            "initial_norm": (
                "initial_norm",
                norms,
                {"long_name": "noise kernel norm (paper) at the start", "units": "1"},
            ),
            "run": np.arange(runs),
            "step": ("step", first.step.values, {"units": "SGD steps"}),
        },
        attrs={
            "kind": "edge at large P",
            "level": level,
            "steps": steps,
            "seed": str(seed),
            "quadmodel_version": __version__,
            "n_data": n_data,
        },
    )


def _values(name: str, given: Any, check: Callable[[Any], Any]) -> list[Any]:
    """Return different values along an axis, in ascending order."""
    try:
        flat = np.ravel(given).tolist()
    except ValueError:
        raise InputError(f"{name} must be a list of numbers, got a ragged one") from None
    if not flat:
        raise InputError(f"{name} must hold at least one, got none")
    values = sorted(check(value) for value in flat)
    if len(set(values)) < len(values):
        raise InputError(f"{name} must be different ones, got {values}")
    return values


def power_law_model(n_data: int, *, seed: int) -> QuadraticModel:
    """Return a linear model of NTK eigenvalues 1/k whose residual has squared norm D.

    Parameters
    ----------
    n_data : int
        Data points D, and parameters: their number doesn't matter in the limit.
    seed : int
        Seed of eigenvectors and residual.

    Returns
    -------
    QuadraticModel
        Without curvature.
    """
    base = Ensemble(n_data, n_data, jacobian=1 / np.arange(1, n_data + 1)).sample(seed)
    residual = base.residual * (n_data**0.5 / np.linalg.norm(base.residual))
    return QuadraticModel(residual, base.jacobian)


def _summary(
    recorded: dict[str, FloatArray], diverged_at: NDArray[np.int64]
) -> dict[str, tuple[tuple[str, ...], Any, dict[str, str]]]:
    """Return what a run comes to, with fates, from its records along the last axis."""
    norm, exact, loss = (recorded[name] for name in (*_NORMS, "loss"))
    diverged = diverged_at >= 0
    largest = np.nanmax(norm, axis=-1)  # a number: nothing has diverged at the start
    # A run may diverge after its last record.
    final, final_exact = (np.where(diverged, np.nan, values[..., -1]) for values in (norm, exact))
    final_loss = np.where(diverged, np.inf, loss[..., -1])
    fate = np.select(
        [diverged, final_loss >= _CONVERGED * loss[..., 0], final >= 1.0, largest >= 1.0],
        FATES[:0:-1],
        FATES[0],
    )
    run = (*_CELL, "run")
    name = "noise kernel norm (paper)"
    return {
        "largest_norm": (run, largest, {"long_name": f"largest {name}", "units": "1"}),
        "final_norm": (run, final, {"long_name": f"final {name}", "units": "1"}),
        "final_norm_exact": (
            run, final_exact, {"long_name": "final noise kernel norm (exact)", "units": "1"}
        ),
        "final_loss": (run, final_loss, {"long_name": "final loss", "units": "loss"}),
        "fate": (run, fate, {"long_name": "what became of the run"}),
    }  # fmt: skip


def edge_table(found: xr.Dataset) -> xr.Dataset:
    """Return one row per cell: medians over the runs that did not diverge, and fates counted.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`limit_edge`.

    Returns
    -------
    xarray.Dataset
        Over (strength, batch_size, initial_norm): `largest_norm`, `final_norm`, `final_norm_exact`
        and `final_loss`, NaN where all runs diverged, and `fate`, like "3 turned back, 1 diverged".
    """
    shape = tuple(found.sizes[name] for name in _CELL)
    order = (*_CELL, "run")
    survived = (found.divergence_step < 0).transpose(*order).values
    table: dict[str, Any] = {}
    for name in ("largest_norm", "final_norm", "final_norm_exact", "final_loss"):
        values = found[name].transpose(*order).values
        medians = np.full(shape, np.nan)
        for cell in np.ndindex(*shape):
            if survived[cell].any():
                medians[cell] = np.median(values[cell][survived[cell]])
        table[name] = _CELL, medians, found[name].attrs
    fates = np.empty(shape, object)
    given = found.fate.transpose(*order).values
    for cell in np.ndindex(*shape):
        counts = Counter(given[cell].tolist())
        fates[cell] = ", ".join(f"{counts[fate]} {fate}" for fate in FATES if counts[fate])
    table["fate"] = _CELL, fates.astype(str), {"long_name": "number of runs by fate"}
    return xr.Dataset(table, {name: found[name] for name in _CELL}, found.attrs)
