"""Laws of the critical learning rate over batch size, fitted to measured instability."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import minimize

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_number
from quadmodel._util.results import attributes, variable

LAWS = ("two_edges", "flat", "proportional")
# Steepness of the share of unstable runs in the logarithm of the learning rate: where all shares
# are 0 or 1 nothing else bounds it.
_STEEPNESS = (0.5, 20.0)


def fit_edge_law(fractions: Any, law: str = "two_edges") -> xr.Dataset:
    r"""Return the critical learning rate that a law draws through shares of unstable runs.

    Parameters
    ----------
    fractions : xarray.DataArray
        Shares of unstable runs between 0 and 1, with dimensions `batch_size` and `learning_rate`
        and coordinates of both; NaN where nothing was run.
    law : {"two_edges", "flat", "proportional"}, optional
        :math:`1/\eta_c = 1/(aB) + 1/c`, :math:`\eta_c = c` or :math:`\eta_c = aB`.

    Returns
    -------
    xarray.Dataset
        `critical_learning_rate` (batch_size); numbers `rate_per_batch_size` a (+inf for "flat"),
        `deterministic_edge` c (+inf for "proportional", and where the shares show no bend),
        `steepness` and `log_likelihood` (per run).

    Raises
    ------
    InputError
        If `fractions` lacks a dimension or coordinate, or holds other numbers than shares, or only
        such of one kind.

    Notes
    -----
    K = 1 at learning rates far below the deterministic edge gives
    :math:`\eta_c = 2B/\mathrm{tr}\Theta`, the edge itself :math:`2/\lambda_{\max}` whatever the
    batch size; for a power-law spectrum their inverses add up, nearly (within 12 % for
    eigenvalues 1/k, 2000 points). Maximum likelihood of a
    share that is logistic in :math:`\log(\eta/\eta_c)`; its steepness is fitted, too, between 0.5
    and 20.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3, for K = 1. The law goes beyond
       it.

    Examples
    --------
    >>> import quadmodel as qm
    >>> panels = qm.datasets.llm_edge().unstable_fraction
    >>> found = qm.fit_edge_law(panels.isel(panel=0))
    >>> round(float(found.critical_learning_rate.sel(batch_size=2)), 1)
    0.5
    """
    as_choice("law", law, LAWS)
    table = _as_table(fractions)
    sizes, rates, shares = _cells(table)
    if shares.min() >= 0.5 or shares.max() <= 0.5:
        raise InputError("fractions must lie on both sides of 0.5, got such of one side only")
    typical_size, typical_rate = np.exp(np.log(sizes).mean()), np.exp(np.log(rates).mean())

    def inverse_edge(params: FloatArray, batch_size: FloatArray) -> FloatArray:
        # In units of the typical learning rate: of the edge by noise, then of the other one.
        noise, other = params[0], params[1]
        return np.asarray((noise * typical_size / batch_size + other) / typical_rate)

    def surprise(params: FloatArray) -> float:
        z = np.exp(params[2]) * np.log(rates * inverse_edge(params, sizes))
        return float(np.mean(np.logaddexp(0.0, z) - shares * z))

    free = {"two_edges": (1, 1), "flat": (0, 1), "proportional": (1, 0)}[law]
    tiny = 1e-12  # an edge at infinity is within the bounds, two of them are not
    bounds = [(tiny if law == "proportional" else 0.0, 1e6), (0.0, 1e6)]
    bounds = [b if f else (0.0, 0.0) for b, f in zip(bounds, free, strict=True)]
    bounds.append((np.log(_STEEPNESS[0]), np.log(_STEEPNESS[1])))
    starts = [
        np.array([free[0] * a, free[1] * b, 1.0])
        for a in (0.0, 0.03, 0.3, 1.0, 3.0, 30.0)
        for b in (0.0, 0.03, 0.3, 1.0, 3.0, 30.0)
        if free[0] * a + free[1] * b > 0
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = [minimize(surprise, s, method="L-BFGS-B", bounds=bounds) for s in starts]
    best = min((fit for fit in fits if np.isfinite(fit.fun)), key=lambda fit: float(fit.fun))
    noise, other, steepness = best.x
    units = table.learning_rate.attrs.get("units")
    with np.errstate(divide="ignore"):
        per_size = typical_rate / (np.float64(noise) * typical_size)
        edge = typical_rate / np.float64(other)
    every = np.asarray(table.batch_size.values, dtype=np.float64)
    return xr.Dataset(
        {
            "critical_learning_rate": variable(
                "batch_size", 1 / inverse_edge(best.x, every), "critical learning rate", units
            ),
            "rate_per_batch_size": variable((), per_size, "edge by batch noise, per batch size"),
            "deterministic_edge": variable((), edge, "edge of large batches", units),
            "steepness": variable((), np.exp(steepness), "steepness in the log learning rate"),
            "log_likelihood": variable((), -best.fun, "mean log-likelihood of a run"),
        },
        coords={"batch_size": table.batch_size.values},
        attrs=attributes("edge law", {}, law=law),
    )


def misclassified_share(fractions: Any, fitted: xr.Dataset, *, undecided: float = 0.1) -> float:
    r"""Return the share of grid points that lie on the wrong side of a law's edge.

    Parameters
    ----------
    fractions : xarray.DataArray
        Shares of unstable runs, as for :func:`fit_edge_law`; of another panel, to predict it.
    fitted : xarray.Dataset
        What :func:`fit_edge_law` returned.
    undecided : float, optional
        Grid points whose share is this close to one half count as right on either side.

    Returns
    -------
    float
        Misclassified grid points over all.

    Raises
    ------
    InputError
        If `fractions` is not one of shares, or has batch sizes that the law was not asked for.

    Notes
    -----
    A grid point is predicted to be unstable where its learning rate is above the critical one.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261.

    Examples
    --------
    >>> import quadmodel as qm
    >>> panels = qm.datasets.llm_edge().unstable_fraction
    >>> law = qm.fit_edge_law(panels.isel(panel=0), law="flat")
    >>> round(qm.misclassified_share(panels.isel(panel=1), law), 3)
    0.133
    """
    undecided = as_number("undecided", undecided, least=0.0, most=0.5)
    sizes, rates, shares = _cells(_as_table(fractions))
    known = dict(zip(fitted.batch_size.values, fitted.critical_learning_rate.values, strict=True))
    missing = sorted({int(size) for size in sizes} - {int(size) for size in known})
    if missing:
        raise InputError(f"fractions must have the batch sizes of the law, got also {missing}")
    critical = np.array([known[size] for size in sizes])
    open_cells = np.abs(shares - 0.5) <= undecided + 1e-9
    return float(np.mean(((rates > critical) != (shares > 0.5)) & ~open_cells))


def _as_table(fractions: Any) -> xr.DataArray:
    """Return checked shares with dimensions (batch_size, learning_rate)."""
    wanted = "fractions must be a DataArray with dimensions batch_size and learning_rate"
    if not isinstance(fractions, xr.DataArray):
        raise InputError(f"{wanted}, got a {type(fractions).__name__}")
    if set(fractions.dims) != {"batch_size", "learning_rate"}:
        raise InputError(f"{wanted}, got {', '.join(map(str, fractions.dims)) or 'none'}")
    if not {"batch_size", "learning_rate"} <= set(fractions.coords):
        raise InputError(f"{wanted} and coordinates of both, got none of one")
    shares = fractions.values[np.isfinite(fractions.values)]
    if not shares.size or shares.min() < 0 or shares.max() > 1:
        raise InputError("fractions must lie between 0 and 1, got some that don't, or none at all")
    if min(fractions.batch_size.min(), fractions.learning_rate.min()) <= 0:
        raise InputError("fractions must have positive batch sizes and learning rates")
    return fractions.transpose("batch_size", "learning_rate").dropna("batch_size", how="all")


def _cells(table: xr.DataArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return batch size, learning rate and share of every grid point that was run."""
    sizes, rates = np.meshgrid(table.batch_size.values, table.learning_rate.values, indexing="ij")
    run = np.isfinite(table.values)
    return sizes[run].astype(np.float64), rates[run].astype(np.float64), table.values[run]
