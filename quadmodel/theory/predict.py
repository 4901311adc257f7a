"""predict(): loss curve, mode energies and noise kernel norms as one Dataset."""

from __future__ import annotations

from itertools import islice

import numpy as np
import xarray as xr

from quadmodel._validation import InputError, as_choice, as_integer, check_memory
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory import _recursion
from quadmodel.theory._inputs import Spectrum, check_sgd
from quadmodel.theory.moments import floor_on_spectrum, rate_on_spectrum
from quadmodel.theory.noise_kernel import norm_or_infinity


def predict(
    model: QuadraticModel, sgd: SGD, steps: int, *, method: str = "exact", record_every: int = 1
) -> xr.Dataset:
    r"""Predict the mean loss, mode energies and noise kernel norm along training.

    Parameters
    ----------
    model : QuadraticModel
        The model. Its curvature is not used: the prediction is of zeroth order in it, that of the
        model linearised at its initial parameters.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    method : {"exact", "modes"}, optional
        "exact": the second-moment matrix, :math:`O(D^3)` per step. "modes": the delocalised
        closure, :math:`O(D)` per step.
    record_every : int, optional
        Steps between two entries of the result.

    Returns
    -------
    xarray.Dataset
        `loss` (step), `mode_energy` (step, mode), `ntk_eigenvalue` (mode),
        `ntk_largest_eigenvalue`, `ntk_trace`, `noise_kernel_norm`, `noise_kernel_norm_finite`,
        `noise_kernel_norm_exact` (step); `late_time_rate` and `loss_floor` among its attributes.
        The names are those of :func:`quadmodel.simulate`. Where the recursion overflows, +inf.

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
    record_every = as_integer("record_every", record_every)
    as_choice("method", method, ("exact", "modes"))
    recorded = np.arange(0, steps + 1, record_every)
    check_memory("the prediction", 8.0 * (recorded.size * model.n_data + 8 * model.n_data**2))
    lam, vectors = model.eigensystem
    recursion = _recursion.exact_energies if method == "exact" else _recursion.closure_energies
    with np.errstate(over="ignore", invalid="ignore"):
        every = islice(recursion(lam, vectors, model.residual, sgd), 0, steps + 1, record_every)
        energies = np.stack(list(every))
        energies[~np.isfinite(energies).all(axis=1)] = np.inf  # overflow: NaN came from inf - inf
        mean_loss = energies.sum(axis=1) / (2 * model.n_data)
    spectrum = Spectrum(lam, vectors)
    along = np.ones(recorded.size)
    closure = "exact" if method == "exact" else "finite"

    def constant(value: float, name: str, unit: str) -> tuple[str, np.ndarray, dict[str, str]]:
        return "step", value * along, {"long_name": name, "units": unit}

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
                "mode",
                lam,
                {"long_name": "eigenvalue of the initial NTK", "units": "1 / learning rate"},
            ),
            "ntk_largest_eigenvalue": constant(
                float(lam[0]), "largest eigenvalue of the NTK", "1 / learning rate"
            ),
            "ntk_trace": constant(float(lam.sum()), "trace of the NTK", "1 / learning rate"),
            "noise_kernel_norm": constant(
                norm_or_infinity(spectrum, sgd, "paper"), "noise kernel norm (paper)", "1"
            ),
            "noise_kernel_norm_finite": constant(
                norm_or_infinity(spectrum, sgd, "finite"), "noise kernel norm (finite size)", "1"
            ),
            "noise_kernel_norm_exact": constant(
                norm_or_infinity(spectrum, sgd, "exact"), "noise kernel norm (exact)", "1"
            ),
        },
        coords={
            "step": ("step", recorded, {"units": "SGD steps"}),
            "mode": np.arange(model.n_data),
        },
        attrs={
            "kind": "prediction",
            "method": method,
            "curvature_order": 0,
            "late_time_rate": rate_on_spectrum(spectrum, sgd, closure),
            "loss_floor": floor_on_spectrum(spectrum, model.residual, sgd, closure),
            "n_data": model.n_data,
            "n_params": model.n_params,
            **sgd.spec(),
        },
    )
