"""What is measured along a run: residuals, NTK spectrum, noise kernel norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quadmodel._validation import FloatArray
from quadmodel.model import LowRankCurvature, QuadraticModel
from quadmodel.optimizer import SGD

# Jacobians of this many replicas are held at a time.
_BLOCK = 8


def residuals(model: QuadraticModel, state: FloatArray) -> FloatArray:
    """Return the residuals of replicas from their states.

    Parameters
    ----------
    model : QuadraticModel
        The model.
    state : ndarray, shape (replicas, n_data) or (replicas, n_params)
        Residuals of a linear model, parameters of a quadratic one.

    Returns
    -------
    ndarray, shape (replicas, n_data)
        Residuals.
    """
    if model.curvature is None:
        return state
    z: FloatArray = model.residual + state @ model.jacobian.T
    if isinstance(model.curvature, LowRankCurvature):
        along = np.einsum("ark,nk->nar", model.curvature.vectors, state, optimize=True)
        z += 0.5 * np.einsum("ar,nar->na", model.curvature.coefficients, along**2)
        return z
    for i, matrix in enumerate(model.curvature):
        z[:, i] += 0.5 * np.einsum("nk,nk->n", state @ matrix, state)
    return z


def ntk_eigenvalues(model: QuadraticModel, state: FloatArray) -> FloatArray:
    """Return the NTK spectra of replicas of a quadratic model.

    Parameters
    ----------
    model : QuadraticModel
        The model.
    state : ndarray, shape (replicas, n_params)
        Parameters.

    Returns
    -------
    ndarray, shape (replicas, n_data)
        Eigenvalues in descending order, in units of 1 / learning rate.
    """
    spectra = np.empty((len(state), model.n_data))
    for first in range(0, len(state), _BLOCK):
        theta = state[first : first + _BLOCK]
        jacobians = np.repeat(model.jacobian[None], len(theta), axis=0)
        if isinstance(model.curvature, LowRankCurvature):
            for jacobian, one in zip(jacobians, theta, strict=True):
                jacobian += model.curvature.times(one)
        elif model.curvature is not None:
            for i, matrix in enumerate(model.curvature):
                jacobians[:, i] += theta @ matrix
        ntk = jacobians @ jacobians.transpose(0, 2, 1) / model.n_data
        spectra[first : first + _BLOCK] = np.linalg.eigvalsh(ntk)[:, ::-1]
    rounding = 4 * model.n_data * np.finfo(np.float64).eps * spectra[:, :1]
    return np.where(spectra > rounding, spectra, 0.0)


def noise_kernel_norms(
    eigenvalues: FloatArray, learning_rate: FloatArray, batch_size: FloatArray, sgd: SGD
) -> tuple[FloatArray, FloatArray]:
    r"""Measure the noise kernel norm, in its high-dimensional and its finite-size form.

    Parameters
    ----------
    eigenvalues : ndarray, shape (..., n_data)
        NTK eigenvalues.
    learning_rate, batch_size : ndarray, shape (...)
        Of each spectrum.
    sgd : SGD
        Momentum, weight decay and sampling scheme.

    Returns
    -------
    paper, finite : ndarray, shape (...)
        Noise kernel norms; +inf where a mode is unstable without noise.

    Notes
    -----
    Follows the definition instead of a closed form: per mode, the stationary covariance
    of :math:`(z_t, z_{t-1})` under unit noise at every step is solved from its linear equation; K
    is the batch noise that this residual feeds back, summed over the modes. The sampling scheme
    enters through the inclusion probabilities of one point and of two.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.
    """
    n_data = eigenvalues.shape[-1]
    eta, b = learning_rate[..., None], batch_size[..., None]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        fed_back, stable = _stationary_energy(eigenvalues, eta, sgd)
        per_mode = (eta * eigenvalues) ** 2 * fed_back
        paper = ((n_data - b) / b * per_mode).sum(axis=-1) / n_data
        own, mutual = _weight_moments(sgd.sampling, n_data, b)
        # A mode's noise: own * (mean energy) + mutual * (what other points share with it).
        finite = ((own - mutual) * per_mode / (1 - mutual * per_mode)).sum(axis=-1) / n_data
    contracts = np.all(stable, axis=-1)
    return np.where(contracts, paper, np.inf), np.where(contracts, finite, np.inf)


def _weight_moments(sampling: str, n_data: int, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the variance of one batch weight and the covariance of two."""
    once = b / n_data
    if sampling == "without_replacement":
        twice = once * (b - 1) / max(n_data - 1, 1)
        return (once - once**2) / once**2, (twice - once**2) / once**2
    if sampling == "with_replacement":  # multinomial counts
        share = 1 / n_data
        return b * share * (1 - share) / once**2, -b * share**2 / once**2
    return (once - once**2) / once**2, np.zeros_like(once)


def _stationary_energy(
    lam: FloatArray, eta: FloatArray, sgd: SGD
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return E u^2 where the gradient is taken, for unit noise per step; and which are stable."""
    mu = sgd.momentum
    slope = eta * (lam + sgd.weight_decay)
    p, q = (1 + mu, mu) if sgd.nesterov else (1.0, 0.0)
    # z' = z + mu (z - z_old) - slope (p z - q z_old)
    c1, c2 = 1 + mu - slope * p, -mu + slope * q
    # unknowns E z^2, E z z_old, E z_old^2
    system = np.zeros((*slope.shape, 3, 3))
    system[..., 0, 0] = 1 - c1**2
    system[..., 0, 1] = -2 * c1 * c2
    system[..., 0, 2] = -(c2**2)
    system[..., 1, 0] = -c1
    system[..., 1, 1] = 1 - c2
    system[..., 2, 0] = -1.0
    system[..., 2, 2] = 1.0
    moving = lam > 0
    system[~moving] = np.eye(3)
    noise = np.zeros((*slope.shape, 3, 1))
    noise[..., 0, 0] = 1.0
    solution = np.linalg.solve(system, noise)[..., 0]
    now, cross, old = solution[..., 0], solution[..., 1], solution[..., 2]
    stable = (np.abs(c2) < 1) & (np.abs(c1) < 1 - c2) | ~moving
    return np.where(moving, p**2 * now - 2 * p * q * cross + q**2 * old, 0.0), stable
