"""predict(): loss curve, mode energies and noise kernel norms as one Dataset."""

from __future__ import annotations

from itertools import compress

import numpy as np
import xarray as xr

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_choice,
    as_integer,
    check_memory,
)
from quadmodel._util.results import (
    Variable,
    attributes,
    count_records,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel.laws.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _recursion, sharpening
from quadmodel.theory._curvature import Statistics, curvature_statistics, law_of
from quadmodel.theory._inputs import Spectrum, check_sgd
from quadmodel.theory._noise import norm_or_infinity
from quadmodel.theory.moments import floor_on_spectrum, rate_on_spectrum

# A predicted NTK beyond this has overflowed: too large for eigensolver and norms.
_LARGEST = 1e150


def predict(
    model: QuadraticModel,
    sgd: SGD,
    steps: int,
    *,
    method: str = "exact",
    curvature: CurvatureLaw | float | None = None,
    record_every: int | None = None,
) -> xr.Dataset:
    r"""Predict the mean loss, mode energies, NTK spectrum and noise kernel norm along training.

    Parameters
    ----------
    model : QuadraticModel
        The model. Loss and mode energies are those of the model linearised at its initial
        parameters. The NTK is predicted to second order in the curvature where its law is known,
        by :func:`quadmodel.expected_ntk`; its own draw of the curvature is not used.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    method : {"exact", "modes"}, optional
        "exact": the second-moment matrix, :math:`O(D^3)` per step. "modes": the delocalised
        closure, :math:`O(D)` per step; the NTK is then predicted to stay constant.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; by default the model's own `curvature_law`. The NTK is predicted to
        stay constant, with attribute `curvature_order` 0 instead of 2, where there is no law, its
        covariance has no Kronecker form, or the Jacobian has not full row rank.
    record_every : int, optional
        Steps between two entries of the result; by default every step, or about fifty entries
        where the NTK is predicted.

    Returns
    -------
    xarray.Dataset
        `loss` (step), `mode_energy` and `ntk_eigenvalue` (step, mode),
        `ntk_largest_eigenvalue`, `ntk_trace`, `noise_kernel_norm`, `noise_kernel_norm_finite`,
        `noise_kernel_norm_exact` (step); `late_time_rate` and `loss_floor` among its attributes.
        The names are those of :func:`quadmodel.simulate`. Where the recursion overflows, the loss
        is +inf; the NTK and its norms are then NaN. With `curvature_order` 2 also how far second
        order holds, as :func:`quadmodel.expected_ntk` says it: `relative_error` (step), `valid`
        (step) for trace and norms, and `mixing`, `eigenvalue_valid` (step, mode), the latter's
        first mode for the largest eigenvalue. They say nothing about the loss, which is that of the
        linearised model.

    Raises
    ------
    InputError
        If an argument is out of range or the batch is larger than the data.

    Notes
    -----
    With :math:`M_t = E[z_tz_t^\top]` and batch weight covariance
    :math:`\gamma(I-\kappa 11^\top/D)`,

    .. math:: M_{t+1} = (I-\eta\Theta)M_t(I-\eta\Theta) +
              \eta^2\gamma\,\Theta[\mathrm{diag}(M_t)-\kappa M_t/D]\Theta

    and in the closure, :math:`p_\alpha = v_\alpha^\top M v_\alpha`,

    .. math:: p_\alpha' = (1-\eta\lambda_\alpha)^2p_\alpha +
              (\eta^2\gamma/D)\lambda_\alpha^2(\textstyle\sum_\beta p_\beta-\kappa p_\alpha).

    Momentum adds the previous residual to the state, weight decay a force towards :math:`z_0`.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3 (the closure);
       derivations/02-second-moment.md (the exact recursion).

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=20, n_params=40).sample(seed=0)
    >>> curve = qm.predict(model, qm.SGD(learning_rate=0.1, batch_size=10), steps=50)
    >>> bool(curve.loss[-1] < curve.loss[0])
    True
    """
    if not isinstance(model, QuadraticModel):
        raise InputError(f"model must be a QuadraticModel, got {type(model).__name__}")
    check_sgd(sgd, model.n_data)
    steps = as_integer("steps", steps)
    as_choice("method", method, ("exact", "modes"))
    statistics = _statistics(model, curvature) if method == "exact" else None
    if record_every is None:
        record_every = 1 if statistics is None else max(1, steps // 50)
    record_every = as_integer("record_every", record_every)
    n_records = count_records(steps, record_every)
    need = 3 * n_records * model.n_data + 8 * model.n_data**2
    if statistics is not None:
        need += sharpening.numbers_needed(model.n_data, n_records)
    check_memory("the prediction", 8.0 * need)
    recorded = recorded_steps(steps, record_every)
    # In units of a power of two, so that the squares of residuals are of order one at the start.
    unit = int(np.frexp(np.abs(model.residual).max())[1])
    residual = np.ldexp(model.residual, -unit)
    energies = _mode_energies(model, residual, sgd, recorded, method)
    initial = Spectrum(*model.eigensystem)
    found = None if statistics is None else sharpening.forecasts(statistics, sgd, recorded)
    closure = "exact" if method == "exact" else "finite"
    attrs = attributes(
        "prediction",
        model.spec() | sgd.spec(),
        method=method,
        curvature_order=0 if statistics is None else 2,
        valid_below=sharpening.VALID_BELOW,
        late_time_rate=rate_on_spectrum(initial, sgd, closure),
        loss_floor=float(np.ldexp(floor_on_spectrum(initial, residual, sgd, closure), 2 * unit)),
    )
    spectra = [initial] if found is None else [_spectrum(initial, f) for f in found]
    with np.errstate(over="ignore", under="ignore"):
        energies = np.ldexp(energies, 2 * unit)
    variables = _of_residual(energies) | _of_spectra(spectra, sgd, recorded.size)
    if found is not None:
        variables |= sharpening.of_validity(found)
        ordered = [(_order(initial, f), f) for f in found]
        variables |= sharpening.of_eigenvalues(
            [f.change.mixing[order] for order, f in ordered],
            [f.eigenvalue_valid[order] for order, f in ordered],
        )
    return xr.Dataset(
        variables,
        coords={"step": step_coordinate(recorded), "mode": np.arange(model.n_data)},
        attrs=attrs,
    )


def _mode_energies(
    model: QuadraticModel, residual: FloatArray, sgd: SGD, recorded: IntArray, method: str
) -> FloatArray:
    """Return the mean squared residual of every recorded step and mode; inf on overflow."""
    if method == "exact":
        recursion = _recursion.exact_mode_energies
    else:
        recursion = _recursion.closure_mode_energies
    with np.errstate(over="ignore", invalid="ignore"):
        every = recursion(*model.eigensystem, residual, sgd)
        wanted = np.isin(np.arange(recorded[-1] + 1), recorded)
        energies = np.stack(list(compress(every, wanted)))
    energies[~np.isfinite(energies).all(axis=1)] = np.inf  # NaN comes from inf - inf
    return energies


def _of_residual(energies: FloatArray) -> dict[str, Variable]:
    """Return loss and mode energies, labelled."""
    with np.errstate(over="ignore"):
        mean_loss = energies.sum(axis=1) / (2 * energies.shape[1])
    name = "mean squared residual along an NTK eigenvector"
    return {
        "loss": variable("step", mean_loss, "mean loss", "loss"),
        "mode_energy": variable(("step", "mode"), energies, name, "residual^2"),
    }


def _of_spectra(spectra: list[Spectrum], sgd: SGD, count: int) -> dict[str, Variable]:
    """Return eigenvalues and norms, labelled; `spectra` holds one per record or one for all."""
    unit = "1 / learning rate"
    repeat = count // len(spectra)
    eigenvalues = np.repeat([s.eigenvalues for s in spectra], repeat, axis=0)
    variables = {
        "ntk_eigenvalue": variable(("step", "mode"), eigenvalues, "eigenvalue of the NTK", unit),
        "ntk_largest_eigenvalue": variable(
            "step", eigenvalues[:, 0], "largest eigenvalue of the NTK", unit
        ),
        "ntk_trace": variable("step", eigenvalues.sum(axis=1), "trace of the NTK", unit),
    }
    for norm, name, which in (
        ("paper", "noise_kernel_norm", "paper"),
        ("finite", "noise_kernel_norm_finite", "finite size"),
        ("exact", "noise_kernel_norm_exact", "exact"),
    ):
        known = (s if np.isfinite(s.eigenvalues).all() else None for s in spectra)
        norms = [np.nan if s is None else norm_or_infinity(s, sgd, norm) for s in known]
        values = np.repeat(norms, repeat)
        variables[name] = variable("step", values, f"noise kernel norm ({which})", "1")
    return variables


def _statistics(model: QuadraticModel, curvature: CurvatureLaw | float | None) -> Statistics | None:
    """Return the curvature's statistics; None where there are none to predict with."""
    if curvature is not None:
        return curvature_statistics(model, law_of(model, curvature))
    try:
        return curvature_statistics(model, law_of(model, None))
    except InputError:
        return None


def _order(initial: Spectrum, found: sharpening.Forecast) -> IntArray:
    """Return the modes in descending order of their predicted eigenvalues."""
    return np.argsort(-found.change.eigenvalues(initial.eigenvalues), kind="stable")


def _spectrum(initial: Spectrum, found: sharpening.Forecast) -> Spectrum:
    """Return the predicted NTK spectrum; NaN where the prediction has overflowed."""
    lam, vectors, total = initial.eigenvalues, initial.vectors, found.change.total
    if not np.abs(total).max() < _LARGEST:
        return Spectrum(np.full_like(lam, np.nan), vectors)
    # Beyond its domain second order may give eigenvalues below zero.
    eigenvalues = np.maximum(found.change.eigenvalues(lam)[_order(initial, found)], 0.0)
    turned = np.linalg.eigh(np.diag(lam) + total)[1][:, ::-1]
    return Spectrum(eigenvalues, vectors @ turned)
