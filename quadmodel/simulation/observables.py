"""What can be measured along a run, and how the noise kernel norms are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, InputError, shown
from quadmodel._util.lanczos import largest_eigenpair
from quadmodel.optimizer import SGD

_PER_RUN = ("replica", "step")
_EIGENVALUE = "1 / learning rate"


@dataclass(frozen=True)
class Observable:
    """How a variable is labelled, and what it is once a run has diverged."""

    long_name: str
    units: str
    dims: tuple[str, ...] = _PER_RUN
    diverged: float = np.nan


OBSERVABLES = {
    "loss": Observable("loss", "loss", diverged=np.inf),
    "squared_distance": Observable(
        "squared distance from the initial parameters", "parameter^2", diverged=np.inf
    ),
    "ntk_largest_eigenvalue": Observable("largest eigenvalue of the NTK", _EIGENVALUE),
    "ntk_trace": Observable("trace of the NTK", _EIGENVALUE),
    "ntk_eigenvalue": Observable("eigenvalue of the NTK", _EIGENVALUE, (*_PER_RUN, "mode")),
    "noise_kernel_norm": Observable("noise kernel norm (paper)", "1"),
    "noise_kernel_norm_finite": Observable("noise kernel norm (finite size)", "1"),
    "noise_kernel_norm_exact": Observable("noise kernel norm (exact)", "1"),
    "hessian_largest_eigenvalue": Observable("largest eigenvalue of the loss Hessian", _EIGENVALUE),
    "batch_sharpness": Observable("batch sharpness", _EIGENVALUE),
    "gradient_noise_interaction": Observable("gradient-noise interaction", _EIGENVALUE),
    "residual_overlap": Observable("share of the squared residual along the top eigenvector", "1"),
    "mode_energy": Observable(
        "mean squared residual along an NTK eigenvector", "residual^2", ("step", "mode"), np.inf
    ),
}
# The default of a record: for it, Q is read once and one NTK is factorised.
DEFAULT = (
    "loss",
    "squared_distance",
    "ntk_largest_eigenvalue",
    "ntk_trace",
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "mode_energy",
)


def as_observables(
    value: Sequence[str] | str | None, known: Sequence[str] = tuple(OBSERVABLES)
) -> tuple[str, ...]:
    """Return the names of observables, each once and in the order of `known`.

    None stands for the default ones, "all" for all that are known.
    """
    if value is None:
        return DEFAULT
    if isinstance(value, str) and value == "all":
        return tuple(known)
    listed = ", ".join(known)
    names: Any = value  # whatever came
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(
            f'observables must be "all" or a sequence among {listed}; got {shown(value)}'
        )
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise InputError(f"observables must be among {listed}; got {shown(name)}")
    return tuple(name for name in known if name in names)


def noise_kernel_norms(
    eigenvalues: FloatArray, learning_rate: FloatArray, batch_size: FloatArray, sgd: SGD
) -> tuple[FloatArray, FloatArray]:
    r"""Measure the noise kernel norm, in its high-dimensional and its finite-size form.

    Eigenvalues have shape (..., n_data), learning rates, batch sizes and both results (...); +inf
    where a mode is unstable without noise.

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
        fed_back, stable = _stationary_response(eigenvalues, eta, sgd)
        per_mode = (eta * eigenvalues) ** 2 * fed_back
        paper = ((n_data - b) / b * per_mode).sum(axis=-1) / n_data
        own, mutual = weight_moments(sgd.sampling, n_data, b)
        # A mode's noise: own * (mean squared residual) + mutual * (what other points share).
        finite = ((own - mutual) * per_mode / (1 - mutual * per_mode)).sum(axis=-1) / n_data
    contracts = np.all(stable, axis=-1)
    return np.where(contracts, paper, np.inf), np.where(contracts, finite, np.inf)


def exact_noise_kernel_norm(eigenvalues: FloatArray, vectors: FloatArray, sgd: SGD) -> float:
    r"""Measure the exact noise kernel norm of one NTK; +inf where a mode is unstable without noise.

    `vectors` holds the eigenvectors in columns.

    Notes
    -----
    Follows the definition. A unit of squared residual at a data point makes a unit of batch noise
    at that point; a pair of modes propagates its share of that noise, and the squared residual that
    all pairs return to a point, summed over time, is one entry of a matrix with non-negative
    entries. Its largest eigenvalue is K. The time sum of a pair is the stationary covariance of
    :math:`(z_t, z_{t-1})` under a unit of noise at every step, with the noise that its own squared
    residual causes at all points alike fed back; it is solved from its 4 x 4 linear system. The
    eigenvalue comes from Lanczos, from the uniform vector, to which the Perron vector can't be
    orthogonal.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3, for the definition.
    """
    n_data = len(eigenvalues)
    own, mutual = (float(m) for m in weight_moments(sgd.sampling, n_data, float(sgd.batch_size)))
    c1, c2, p, q = _recursion(eigenvalues, sgd.learning_rate, sgd)
    moving = eigenvalues > 0
    if not np.all(_contracts(c1, c2) | ~moving):
        return float("inf")
    response = np.zeros((n_data, n_data))
    for a in np.flatnonzero(moving):
        b = np.flatnonzero(moving[a:]) + a
        noise = sgd.learning_rate**2 * eigenvalues[a] * eigenvalues[b]
        # unknowns E z z~, E z z~_old, E z_old z~, E z_old z~_old, with z of mode a and z~ of mode b
        seen = np.array([p * p, -p * q, -p * q, q * q])  # E u u~ from them
        system = np.tile(np.eye(4), (len(b), 1, 1))
        system[:, 0] -= np.stack(
            [c1[a] * c1[b], c1[a] * c2[b], c2[a] * c1[b], c2[a] * c2[b]], axis=-1
        )
        system[:, 0] -= mutual * noise[:, None] * seen
        system[:, 1, 0], system[:, 1, 2] = -c1[a], -c2[a]
        system[:, 2, 0] -= c1[b]
        system[:, 2, 1] -= c2[b]
        system[:, 3, 0] = -1.0
        unit = np.zeros((len(b), 4, 1))
        unit[:, 0, 0] = noise
        response[a, b] = response[b, a] = np.linalg.solve(system, unit)[..., 0] @ seen

    def product(squared: FloatArray) -> FloatArray:
        per_pair = response * (vectors.T @ (squared[:, None] * vectors))
        returned: FloatArray = np.einsum("ia,ia->i", vectors @ per_pair, vectors)
        return returned

    return (own - mutual) * largest_eigenpair(product, np.ones(n_data)).value


def weight_moments(sampling: str, n_data: int, b: Any) -> tuple[Any, Any]:
    """Return the variance of one batch weight and the covariance of two, at batch sizes `b`."""
    once = b / n_data
    if sampling == "without_replacement":
        twice = once * (b - 1) / max(n_data - 1, 1)
        return (once - once**2) / once**2, (twice - once**2) / once**2
    if sampling == "with_replacement":  # multinomial counts
        share = 1 / n_data
        return b * share * (1 - share) / once**2, -b * share**2 / once**2
    return (once - once**2) / once**2, 0.0 * once


def _stationary_response(
    lam: FloatArray, eta: FloatArray, sgd: SGD
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return E u^2 where the gradient is taken, for unit noise per step; and which are stable."""
    c1, c2, p, q = _recursion(lam, eta, sgd)
    # unknowns E z^2, E z z_old, E z_old^2
    system = np.zeros((*c1.shape, 3, 3))
    system[..., 0, 0] = 1 - c1**2
    system[..., 0, 1] = -2 * c1 * c2
    system[..., 0, 2] = -(c2**2)
    system[..., 1, 0] = -c1
    system[..., 1, 1] = 1 - c2
    system[..., 2, 0] = -1.0
    system[..., 2, 2] = 1.0
    moving = lam > 0
    system[~moving] = np.eye(3)
    noise = np.zeros((*c1.shape, 3, 1))
    noise[..., 0, 0] = 1.0
    solution = np.linalg.solve(system, noise)[..., 0]
    now, cross, old = solution[..., 0], solution[..., 1], solution[..., 2]
    stable = _contracts(c1, c2) | ~moving
    return np.where(moving, p**2 * now - 2 * p * q * cross + q**2 * old, 0.0), stable


def _recursion(lam: FloatArray, eta: Any, sgd: SGD) -> tuple[FloatArray, FloatArray, float, float]:
    """Return c1, c2, p, q of z' = c1 z + c2 z_old, with gradients taken at u = p z - q z_old."""
    mu = sgd.momentum
    slope = eta * (lam + sgd.weight_decay)
    p, q = (1 + mu, mu) if sgd.nesterov else (1.0, 0.0)
    return 1 + mu - slope * p, -mu + slope * q, p, q


def _contracts(c1: FloatArray, c2: FloatArray) -> NDArray[np.bool_]:
    """Return where both roots of x^2 = c1 x + c2 lie inside the unit circle."""
    return (np.abs(c2) < 1) & (np.abs(c1) < 1 - c2)
