"""validate(): closed forms against Monte Carlo, one row each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr
from scipy.special import ndtri

from quadmodel._util.checks import as_integer, as_number
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, variable
from quadmodel.studies._validation import SUITE, Effort, Row

_QUICK = Effort(8000, 300, 40, 1000, None, 0)
_FULL = Effort(60000, 4000, 300, 8000, None, 0)


def validate(
    *,
    quick: bool = False,
    seed: int = 0,
    family_wise_error: float = 1e-6,
    threads: int | None = None,
    progress: bool = False,
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
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

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
    threads = None if threads is None else as_integer("threads", threads)
    effort = replace(_QUICK if quick else _FULL, threads=threads, seed=seed)
    rows: list[Row] = []
    with progress_bar(len(SUITE), what="validate", show=progress) as bar:
        for part in SUITE:
            rows.extend(part(effort))
            bar.update(1)
    predicted = np.array([row.predicted for row in rows])
    measured = np.array([row.measured for row in rows])
    error = np.array([row.standard_error for row in rows])
    z = (measured - predicted) / error
    bound = float(-ndtri(family_wise_error / (2 * len(rows))))
    agrees = np.abs(z) <= bound  # a NaN does not
    return xr.Dataset(
        {
            "predicted": variable("row", predicted, "closed form"),
            "measured": variable("row", measured, "Monte Carlo mean"),
            "standard_error": variable("row", error, "standard error"),
            "z": variable("row", z, "difference over standard error", "1"),
            "agrees": variable("row", agrees, "within the bound"),
        },
        coords={"row": [row.name for row in rows]},
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
