"""validate(): closed forms against Monte Carlo, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

import numpy as np
import xarray as xr
from scipy.special import ndtri

from quadmodel._util.checks import as_integer, as_number
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import Workers
from quadmodel.studies._validation import SUITE, Effort
from quadmodel.sweeps._parcel import Job, keep_as_sent
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.running import Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import RunsStages, run_sweep

_QUICK = Effort(8000, 300, 40, 1000, None, 0)
_FULL = Effort(60000, 4000, 300, 8000, None, 0)


def validate(
    *,
    quick: bool = False,
    seed: int = 0,
    family_wise_error: float = 1e-6,
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Compare the theory's closed forms with Monte Carlo.

    Parameters
    ----------
    quick : bool, optional
        Less simulation: under a minute instead of under ten, on two cores.
    seed : int, optional
        Seed of all models, batches and curvatures.
    family_wise_error : float, optional
        Probability, inside (0, 1), that any row of a right theory differs.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        Per `row`: `predicted`, `measured`, `standard_error`, `z` and `agrees`, in the unit of the
        quantity that the row is called after. Attributes `bound` (largest allowed \|z\|), `worst`
        and `verdict` ("agree" or "disagree").

    Raises
    ------
    InputError
        If an argument is out of range.

    Notes
    -----
    Linear model: mean loss and squared residuals along NTK modes of SGD, two more sampling schemes,
    heavy ball, Nesterov and weight decay; loss floors; growth of the mean loss on both sides of its
    edge, and the edge; the edge without noise; mean and variance of one step of the log loss;
    typical growth; noise kernel norm where a phase diagram turns unstable. What is exact only for
    points that are alike (the closure in modes, its norm, and paper's norm, for Bernoulli batches)
    is compared for an NTK on a ring. Quadratic model: first and second difference of the mean NTK
    over steps and its change in 20 steps, for independent curvature and for covariances over data
    and parameters, with antithetic pairs of curvature draws; repulsion of eigenvalues; with full
    batches its change along every direction of the curvature, without chance; what batch
    noise takes from the growth of the largest eigenvalue, as the difference of two batch sizes that
    share curvature draws; loss and NTK in the limit of many parameters; loss, distance, NTK trace
    and noise kernel norm in the mean-field theory, with 1/(2D) of the prediction added to the
    standard error, since that theory is one of many data points. Learning rates are chosen without
    the theory, so that a wrong one cannot move both sides.

    References
    ----------
    .. [1] derivations/02-second-moment.md to derivations/09-mean-field.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> table = qm.validate(quick=True)  # doctest: +SKIP
    >>> table.attrs["verdict"]  # doctest: +SKIP
    'agree'
    """
    seed = as_integer("seed", seed, low=0, high=2**63)
    family_wise_error = as_number("family_wise_error", family_wise_error, above=0.0, below=1.0)
    how, effort = as_how(running), replace(_QUICK if quick else _FULL, seed=seed)
    units = [PartUnit(part) for part in range(len(SUITE))]

    def flow(sweep: RunsStages) -> xr.Dataset:
        records = sweep.run("parts", units)
        return _table(records, quick=quick, seed=seed, family_wise_error=family_wise_error)

    asked = {"quick": bool(quick), "family_wise_error": family_wise_error, "seed": seed}
    manifest = Manifest("validation", asked, {"parts": len(units)})
    return run_sweep(manifest, Job(keep_as_sent, effort, effort, alone=True), how, flow)


class PartUnit(NamedTuple):
    """A part of the suite, by its number."""

    part: int

    def compute(self, kept: Effort, pool: Workers) -> Record:
        """Compare closed forms with simulations."""
        rows = list(SUITE[self.part](replace(kept, threads=pool.threads)))
        return {
            "row": np.array([row.name for row in rows]),
            "predicted": np.array([row.predicted for row in rows]),
            "measured": np.array([row.measured for row in rows]),
            "standard_error": np.array([row.standard_error for row in rows]),
        }


def _table(
    records: Sequence[Record], *, quick: bool, seed: int, family_wise_error: float
) -> xr.Dataset:
    """Return all rows with their verdicts."""
    names, predicted, measured, error = (
        np.concatenate([record[name] for record in records])
        for name in ("row", "predicted", "measured", "standard_error")
    )
    z = (measured - predicted) / error
    bound = float(-ndtri(family_wise_error / (2 * len(names))))
    agrees = np.abs(z) <= bound  # a NaN does not
    return xr.Dataset(
        {
            "predicted": variable("row", predicted, "closed form"),
            "measured": variable("row", measured, "Monte Carlo mean"),
            "standard_error": variable("row", error, "standard error"),
            "z": variable("row", z, "difference over standard error", "1"),
            "agrees": variable("row", agrees, "within the bound"),
        },
        coords={"row": names.tolist()},
        attrs=attributes(
            "validation",
            {},
            seed=seed,
            quick=int(quick),
            family_wise_error=family_wise_error,
            bound=bound,
            worst=float(np.abs(z).max()),
            verdict="agree" if agrees.all() else "disagree",
        ),
    )
