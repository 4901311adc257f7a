"""The second-moment recursions of the linear model, in the eigenbasis of the NTK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated

# First and second mode of a pair, for the elements of a vector over modes.
ROWS, COLUMNS = (slice(None), None), (None, slice(None))


class Moments(NamedTuple):
    """Mean and second moment of the residual, now and at the point of the gradient."""

    mean: FloatArray
    second: FloatArray
    mean_at_gradient: FloatArray
    second_at_gradient: FloatArray


def exact_moments(
    lam: FloatArray, vectors: FloatArray, start: FloatArray, sgd: SGD, *, displaced: bool = False
) -> Iterator[Moments]:
    r"""Yield the moments of all pairs of modes, step by step, exactly.

    `start` is the residual along the modes. The state is E z z^T for the pair (z_t, z_{t-1});
    without momentum the second half drops out. `displaced` asks for the moments of z_t - z_0
    instead, which keep their digits however slow a mode is.
    """
    n_data = len(lam)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    a, b = formulas.mode_recursion(lam, sgd)
    coefficients = formulas.extrapolation(sgd)
    effective_step = sgd.learning_rate * lam
    force = sgd.learning_rate * (-lam if displaced else sgd.weight_decay) * start
    mean = old_mean = np.zeros_like(start) if displaced else start
    now = cross = old = np.outer(mean, mean)
    remembers = sgd.momentum != 0.0
    while True:
        at_gradient = now
        if remembers and sgd.nesterov:
            at_gradient = generated.at_gradient_moment(now, cross, cross.T, old, *coefficients)
        mean_at_gradient = coefficients[0] * mean - coefficients[1] * old_mean
        yield Moments(mean, now, mean_at_gradient, at_gradient)
        if remembers:
            following = generated.propagated_moment(
                a[ROWS], a[COLUMNS], b[ROWS], b[COLUMNS], now, cross, cross.T, old
            )
        else:
            following = generated.propagated_moment_without_memory(a[ROWS], a[COLUMNS], now)
        if force.any():
            following += generated.forced_moment(
                *(v[side] for v in (a, b, force, mean, old_mean) for side in (ROWS, COLUMNS))
            )
        if gamma > 0:
            if displaced:
                mixed = np.outer(start, mean_at_gradient)
                at_gradient = at_gradient + mixed + mixed.T + np.outer(start, start)
            # the noise of each data point, in the basis of the modes
            per_point = np.einsum("ia,ia->i", vectors @ at_gradient, vectors)
            point_noise = vectors.T @ (per_point[:, None] * vectors)
            noise = generated.noise_covariance(at_gradient, point_noise, gamma, kappa, n_data)
            following += generated.injected_moment(
                effective_step[ROWS], effective_step[COLUMNS], noise
            )
        if remembers:
            cross = generated.cross_moment(
                a[ROWS], b[ROWS], force[ROWS], now, cross.T, mean[COLUMNS]
            )
            old = now
        # Rounding leaves an antisymmetric part, which momentum would amplify without bound.
        following = 0.5 * (following + following.T)
        mean, old_mean, now = generated.next_mean(a, b, force, mean, old_mean), mean, following


def exact_mode_energies(
    lam: FloatArray, vectors: FloatArray, residual: FloatArray, sgd: SGD
) -> Iterator[FloatArray]:
    r"""Yield :math:`E z_\alpha^2` of every mode, step by step, exactly."""
    for moments in exact_moments(lam, vectors, vectors.T @ residual, sgd):
        yield np.diagonal(moments.second).copy()


def closure_mode_energies(
    lam: FloatArray, vectors: FloatArray, residual: FloatArray, sgd: SGD
) -> Iterator[FloatArray]:
    r"""Yield :math:`E z_\alpha^2` of every mode under the delocalised closure: V_ia^2 = 1/D."""
    n_data = len(lam)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    a, b = formulas.mode_recursion(lam, sgd)
    coefficients = formulas.extrapolation(sgd)
    effective_step = sgd.learning_rate * lam
    mean = old_mean = vectors.T @ residual
    force = sgd.learning_rate * sgd.weight_decay * mean
    now = cross = old = mean**2
    while True:
        yield now
        at_gradient = generated.at_gradient_moment(now, cross, cross, old, *coefficients)
        following = generated.propagated_moment(a, a, b, b, now, cross, cross, old)
        following += generated.forced_moment(
            *(v for v in (a, b, force, mean, old_mean) for _ in range(2))
        )
        point_noise = at_gradient.sum() / n_data
        noise = generated.noise_covariance(at_gradient, point_noise, gamma, kappa, n_data)
        following += generated.injected_moment(effective_step, effective_step, noise)
        cross, old = generated.cross_moment(a, b, force, now, cross, mean), now
        mean, old_mean, now = generated.next_mean(a, b, force, mean, old_mean), mean, following
