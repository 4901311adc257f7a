"""predict(): loss curve, mode energies and noise kernel norms as one Dataset."""

from __future__ import annotations

from itertools import islice

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_integer, check_memory
from quadmodel.curvature import CurvatureLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _recursion, sharpening
from quadmodel.theory._inputs import NORMS, Spectrum, check_sgd
from quadmodel.theory.moments import floor_on_spectrum, rate_on_spectrum
from quadmodel.theory.noise_kernel import norm_or_infinity


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
        closure, :math:`O(D)` per step; the NTK then stays what it is.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; by default the model's own `curvature_law`. Without a law, for one
        whose covariance is not of Kronecker's form, and for a Jacobian without full row rank the
        NTK stays what it is: attribute `curvature_order` 0 instead of 2.
    record_every : int, optional
        Steps between two entries of the result; by default every step, or about fifty entries
        where the NTK is predicted.

    Returns
    -------
    xarray.Dataset
        `loss` (step), `mode_energy` and `ntk_eigenvalue` (step, mode),
        `ntk_largest_eigenvalue`, `ntk_trace`, `noise_kernel_norm`, `noise_kernel_norm_finite`,
        `noise_kernel_norm_exact` (step); `late_time_rate` and `loss_floor` among its attributes.
        The names are those of :func:`quadmodel.simulate`. Where the recursion overflows, +inf.
        With `curvature_order` 2 also `relative_change` (step), which says how far the second order
        holds: while it is below the attribute `valid_below`.

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

    Momentum adds the previous residual to the state, weight decay a pull towards :math:`z_0`.

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
    n_records = steps // record_every + 1
    need = n_records * model.n_data + 8 * model.n_data**2
    if statistics is not None:
        need += sharpening.numbers_needed(model.n_data, n_records)
    check_memory("the prediction", 8.0 * need)
    recorded = np.arange(0, steps + 1, record_every, dtype=np.int64)
    lam, vectors = model.eigensystem
    recursion = _recursion.exact_energies if method == "exact" else _recursion.closure_energies
    with np.errstate(over="ignore", invalid="ignore"):
        every = islice(recursion(lam, vectors, model.residual, sgd), 0, steps + 1, record_every)
        energies = np.stack(list(every))
        energies[~np.isfinite(energies).all(axis=1)] = np.inf  # overflow: NaN came from inf - inf
        mean_loss = energies.sum(axis=1) / (2 * model.n_data)
    initial = Spectrum(lam, vectors)
    closure = "exact" if method == "exact" else "finite"
    with np.errstate(over="ignore", invalid="ignore"):
        spectra, relative = _spectra(statistics, model, sgd, recorded)
    norms = {kind: np.array([norm_or_infinity(s, sgd, kind) for s in spectra]) for kind in NORMS}
    if statistics is None:  # one spectrum for all steps
        spectra = spectra * recorded.size
        norms = {kind: np.full(recorded.size, value[0]) for kind, value in norms.items()}
    eigenvalues = np.stack([s.eigenvalues for s in spectra])

    def along(values: np.ndarray, name: str, unit: str) -> tuple[str, np.ndarray, dict[str, str]]:
        return "step", values, {"long_name": name, "units": unit}

    return xr.Dataset(
        {
            "loss": (
                "step",
                mean_loss,
                {"long_name": "mean loss", "units": "loss"},
            ),
            "mode_energy": (
                ("step", "mode"),
                energies,
                {
                    "long_name": "mean squared residual along an NTK eigenvector",
                    "units": "residual^2",
                },
            ),
            "ntk_eigenvalue": (
                ("step", "mode"),
                eigenvalues,
                {"long_name": "eigenvalue of the NTK", "units": "1 / learning rate"},
            ),
            "ntk_largest_eigenvalue": along(
                eigenvalues[:, 0], "largest eigenvalue of the NTK", "1 / learning rate"
            ),
            "ntk_trace": along(eigenvalues.sum(axis=1), "trace of the NTK", "1 / learning rate"),
            "noise_kernel_norm": along(norms["paper"], "noise kernel norm (paper)", "1"),
            "noise_kernel_norm_finite": along(
                norms["finite"], "noise kernel norm (finite size)", "1"
            ),
            "noise_kernel_norm_exact": along(norms["exact"], "noise kernel norm (exact)", "1"),
            **(
                {}
                if relative is None
                else {
                    "relative_change": along(
                        relative, "mean square change of the Jacobian by diffusion", "1"
                    )
                }
            ),
        },
        coords={
            "step": ("step", recorded, {"units": "SGD steps"}),
            "mode": np.arange(model.n_data),
        },
        attrs={
            "kind": "prediction",
            "method": method,
            "curvature_order": 0 if statistics is None else 2,
            "valid_below": sharpening.VALID_BELOW,
            "late_time_rate": rate_on_spectrum(initial, sgd, closure),
            "loss_floor": floor_on_spectrum(initial, model.residual, sgd, closure),
            "n_data": model.n_data,
            "n_params": model.n_params,
            **sgd.spec(),
        },
    )


def _statistics(
    model: QuadraticModel, curvature: CurvatureLaw | float | None
) -> sharpening.Statistics | None:
    """Return the curvature's statistics; None where there are none to predict with."""
    if curvature is not None:
        return sharpening.curvature_statistics(model, sharpening.law_of(model, curvature))
    try:
        return sharpening.curvature_statistics(model, sharpening.law_of(model, None))
    except InputError:
        return None


def _norm(spectrum: Spectrum, sgd: SGD, kind: str) -> float:
    known = np.isfinite(spectrum.eigenvalues).all()
    return norm_or_infinity(spectrum, sgd, kind) if known else float("nan")


def _spectra(
    statistics: sharpening.Statistics | None,
    model: QuadraticModel,
    sgd: SGD,
    recorded: sharpening.IntArray,
) -> tuple[list[Spectrum], FloatArray | None]:
    """Return the predicted NTK spectrum at every record, or the initial one."""
    lam, vectors = model.eigensystem
    if statistics is None:
        return [Spectrum(lam, vectors)], None
    spectra, relative = [], []
    for change in sharpening.ntk_changes(statistics, model, sgd, recorded):
        relative.append(change.relative_change)
        ordered, turned = np.full_like(lam, np.nan), vectors
        if np.isfinite(change.total).all():
            # Beyond its domain second order may give eigenvalues below zero.
            ordered = np.maximum(np.sort(change.eigenvalues(lam))[::-1], 0.0)
            turned = vectors @ np.linalg.eigh(np.diag(lam) + change.total)[1][:, ::-1]
        spectra.append(Spectrum(ordered, turned))
    return spectra, np.array(relative)
