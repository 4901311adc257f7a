"""The second-moment recursions of the linear model, in the eigenbasis of the NTK."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quadmodel._validation import FloatArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas


def exact_energies(
    lam: FloatArray, vectors: FloatArray, residual: FloatArray, sgd: SGD
) -> Iterator[FloatArray]:
    r"""Yield :math:`E z_\alpha^2` of every mode, step by step, exactly.

    The state is E z z^T for the pair (z_t, z_{t-1}); without momentum the second half drops out.
    """
    n_data = len(lam)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    a, b = formulas.mode_recursion(lam, sgd)
    ahead, behind = extrapolation(sgd)
    drive = sgd.learning_rate * lam
    start = vectors.T @ residual
    pull = sgd.learning_rate * sgd.weight_decay * start
    mean = old_mean = start
    now = np.outer(start, start)
    cross = old = now
    remembers = sgd.momentum != 0.0
    while True:
        yield np.diagonal(now).copy()
        at_gradient = now
        if remembers and sgd.nesterov:
            at_gradient = ahead**2 * now - ahead * behind * (cross + cross.T) + behind**2 * old
        following = a[:, None] * now * a
        if remembers:
            swing = a[:, None] * cross * b
            following += b[:, None] * old * b - swing - swing.T
        if pull.any():
            push = np.outer(a * mean - b * old_mean, pull)
            following += push + push.T + np.outer(pull, pull)
        if gamma > 0:
            # V^T diag(E u_i^2) V: the noise of each data point, seen in the modes
            energies = np.einsum("ia,ia->i", vectors @ at_gradient, vectors)
            noise = vectors.T @ (energies[:, None] * vectors) - (kappa / n_data) * at_gradient
            following += gamma * drive[:, None] * noise * drive
        if remembers:
            old, cross = now, a[:, None] * now - b[:, None] * cross.T + np.outer(pull, mean)
        # Rounding leaves an antisymmetric part, which momentum would amplify without bound.
        following = 0.5 * (following + following.T)
        mean, old_mean, now = a * mean - b * old_mean + pull, mean, following


def closure_energies(
    lam: FloatArray, vectors: FloatArray, residual: FloatArray, sgd: SGD
) -> Iterator[FloatArray]:
    """Yield the mode energies under the delocalised closure: V_ia^2 = 1/D."""
    n_data = len(lam)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    a, b = formulas.mode_recursion(lam, sgd)
    ahead, behind = extrapolation(sgd)
    drive = sgd.learning_rate * lam
    mean = old_mean = vectors.T @ residual
    pull = sgd.learning_rate * sgd.weight_decay * mean
    now = cross = old = mean**2
    while True:
        yield now
        at_gradient = ahead**2 * now - 2 * ahead * behind * cross + behind**2 * old
        following = a * a * now - 2 * a * b * cross + b * b * old
        following += 2 * pull * (a * mean - b * old_mean) + pull**2
        following += gamma / n_data * drive**2 * (at_gradient.sum() - kappa * at_gradient)
        cross, old = a * now - b * cross + pull * mean, now
        mean, old_mean, now = a * mean - b * old_mean + pull, mean, following


def extrapolation(sgd: SGD) -> tuple[float, float]:
    """Return p, q of the point p z_t - q z_{t-1} where the gradient is evaluated."""
    return (1 + sgd.momentum, sgd.momentum) if sgd.nesterov else (1.0, 0.0)
