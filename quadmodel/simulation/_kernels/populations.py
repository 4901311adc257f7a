"""Compiled loops of populations of residuals, kept at size 1 while the logs of sizes are added."""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.batches import philox
from quadmodel.simulation._kernels.linear import (
    Residuals,
    padded,
    squared_norms,
    step,
    workspace,
)
from quadmodel.simulation._kernels.sums import squared_norm

# Sizes of a population are set back to 1 when they leave this range.
_SMALLEST, _LARGEST = 1e-60, 1e60


class Populations(NamedTuple):
    """Residuals of shape (grid points, members, n_data), one population per grid point."""

    state: FloatArray
    old: FloatArray
    learning_rate: FloatArray  # shape (grid points,), as `batch_size`
    batch_size: IntArray
    number: IntArray  # of each member in the random stream


def advance_populations(model, populations, options, select, first_step, n_steps, growth):
    """Step whole populations of residuals, in place, and log the growth of their squared norms.

    `growth`, of shape (grid points, 1) if `select`, else (grid points, members), is increased by
    the growth of the log loss: of the population's mean, or of each member. Sizes are set back to
    1 on the way, so that nothing overflows; what vanishes or explodes within one step has grown by
    -inf or +inf and is stepped no more. With `select`, members are redrawn in proportion to their
    loss, and set to the mean loss, whenever fewer than half of them carry it: the mean stays what
    it is, but no single run dominates it.
    """
    points, members, n_data = populations.state.shape
    z = padded(populations.state.reshape(-1, n_data), model.padded_length)
    # Without momentum the old ones are not used, and not followed: rescaling would blow them up.
    z_old = np.zeros_like(z)
    if options.momentum != 0.0:
        z_old[:, :n_data] = populations.old.reshape(-1, n_data)
    rate, size = (
        np.repeat(values, members) for values in (populations.learning_rate, populations.batch_size)
    )
    logged = growth.reshape(-1)
    active = np.repeat(np.abs(logged) < np.inf, points * members // logged.size)
    number = populations.number.reshape(-1)
    state = Residuals(z, z_old, rate, size, number, active, squared_norms(z))
    work = workspace(size, model.ntk, options.scheme)
    _advance(model, state, work, options, members, select, first_step, n_steps, logged)
    populations.state[:] = z[:, :n_data].reshape(populations.state.shape)
    populations.old[:] = z_old[:, :n_data].reshape(populations.old.shape)


@compiled
def _advance(model, state, work, options, members, select, first_step, n_steps, logged):
    """Do what `advance_populations` says, with the residuals of all members.

    Notes
    -----
    Fewer than half of N members carry the loss where (sum L)^2 < N sum L^2 / 2.
    """
    # The members that a value of `logged` belongs to, and their squared norm where its log was last
    # taken.
    group, since = members if select else 1, np.empty(len(logged))
    z, z_old, _, _, number, active, squared = state
    for g in range(len(logged)):
        since[g] = _sum_of(squared, g * group, (g + 1) * group)
    for t in range(first_step, first_step + n_steps):
        step(model, state, options, t, work)
        for g in range(len(logged)):
            first, last = g * group, (g + 1) * group
            if not active[first]:
                continue
            total = _sum_of(squared, first, last)
            if not _SMALLEST < total < _LARGEST or t + 1 == first_step + n_steps:
                logged[g] += _log_ratio(total, since[g])
                lost = not abs(logged[g]) < np.inf
                for a in range(first, last):
                    if lost:
                        active[a] = False
                    else:
                        _rescale(z[a], z_old[a], total / group)
                        squared[a] /= total / group
                if lost:
                    continue
                total = since[g] = _sum_of(squared, first, last)
            if select and squared_norm(squared[first:last]) * members > 2.0 * total**2:
                _redraw(z, z_old, squared, first, last, _uniform(options, t, number[first]))


@compiled_inner
def _sum_of(values, first, last):
    """Return the sum of some elements, in order; sums of slices take long to compile."""
    total = 0.0
    for a in range(first, last):
        total += values[a]
    return total


@compiled_inner
def _uniform(options, t, number):
    """Return the uniform number for redrawing after step `t`, from a block that no batch uses."""
    random_words = philox(
        np.uint32(0xFFFFFFFF),
        np.uint32(t),
        np.uint32(number),
        np.uint32(options.model_index),
        np.uint32(options.seed),
        np.uint32(options.seed >> np.uint64(32)),
    )
    return random_words[0] / 2.0**32


@compiled_inner
def _log_ratio(after, before):
    """Return log(after / before); infinite where a size can't be set back to 1."""
    if not after < 1e290:
        return np.inf
    return np.log(after / before) if after > 1e-290 else -np.inf


@compiled_inner
def _rescale(z, z_old, squared):
    """Divide a state by the root of `squared`."""
    scale = 1.0 / np.sqrt(squared)
    for j in range(len(z)):
        z[j] *= scale
        z_old[j] *= scale


@compiled
def _redraw(state, old, squared, first, last, uniform):
    """Redraw members in proportion to their squared norms, and set all of these to their mean.

    By systematic resampling: member a descends from the one in whose share of the total
    (a + uniform) / members lies.
    """
    members, total, length = last - first, _sum_of(squared, first, last), state.shape[1]
    source, source_old = np.empty((members, length)), np.empty((members, length))
    share = np.empty(members)
    for a in range(members):
        share[a] = squared[first + a]
        for j in range(length):
            source[a, j], source_old[a, j] = state[first + a, j], old[first + a, j]
    ancestor, reached = 0, share[0]
    for a in range(members):
        target = (a + uniform) * total / members
        while reached < target and ancestor < members - 1:
            ancestor += 1
            reached += share[ancestor]
        # Rounding may lead to a last member that carries nothing.
        scale = np.sqrt(total / members / share[ancestor]) if share[ancestor] > 0 else 0.0
        for j in range(length):
            state[first + a, j] = source[ancestor, j] * scale
            old[first + a, j] = source_old[ancestor, j] * scale
        squared[first + a] = total / members
