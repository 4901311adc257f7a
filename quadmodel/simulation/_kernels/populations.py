"""Compiled loops of populations of residuals, kept at size 1 while the logs of sizes are added."""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.compiled import compiled
from quadmodel.batches import in_order, philox
from quadmodel.simulation._kernels.linear import (
    Residuals,
    padded,
    put_back,
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


@compiled
def advance_populations(model, populations, options, select, first_step, n_steps, growth):
    """Step whole populations of residuals and log the growth of their squared norms.

    `growth`, of shape (grid points, 1) if `select`, else (grid points, members), is increased by
    the growth of the log loss: of the population's mean, or of each member. Sizes are set back to
    1 on the way, so that nothing overflows; what vanishes or explodes within one step has grown by
    -inf or +inf and is stepped no more. With `select`, members are redrawn in proportion to their
    loss, and set to the mean loss, whenever fewer than half of them carry it: the mean stays what
    it is, but no single run dominates it.

    Notes
    -----
    Fewer than half of N members carry the loss where (sum L)^2 < N sum L^2 / 2.
    """
    members = populations.state.shape[1]
    state, work = _started(model, populations, options)
    logged = growth.reshape(-1)
    # The members that a value of `logged` belongs to, and their squared norm where its log was last
    # taken.
    group, since = members if select else 1, np.empty(len(logged))
    for g in range(len(logged)):
        first, last = g * group, (g + 1) * group
        state.active[first:last].fill(abs(logged[g]) < np.inf)
        since[g] = state.squared_norm[first:last].sum()
    for t in range(first_step, first_step + n_steps):
        step(model, state, options, t, work)
        for g in range(len(logged)):
            first, last = g * group, (g + 1) * group
            if not state.active[first]:
                continue
            total = state.squared_norm[first:last].sum()
            if not _SMALLEST < total < _LARGEST or t + 1 == first_step + n_steps:
                logged[g] += _log_ratio(total, since[g])
                if not abs(logged[g]) < np.inf:
                    state.active[first:last].fill(False)
                    continue
                for a in range(first, last):
                    _rescale(state.z[a], state.z_old[a], total / group)
                    state.squared_norm[a] /= total / group
                total = since[g] = state.squared_norm[first:last].sum()
            squared = state.squared_norm[first:last]
            if select and squared_norm(squared) * members > 2.0 * total**2:
                uniform = _uniform(options, t, state.number[first])
                _redraw(state.z[first:last], state.z_old[first:last], squared, uniform)
    every = in_order(len(state.z))
    put_back(state.z, every, populations.state.reshape(len(every), -1))
    put_back(state.z_old, every, populations.old.reshape(len(every), -1))


@compiled
def _started(model, populations, options):
    """Return the members of all populations as residuals to be stepped, and their workspace."""
    points, members, n_data = populations.state.shape
    count = points * members
    every = in_order(count)
    z = padded(populations.state.reshape(count, n_data), every, model.padded_length)
    z_old = padded(populations.old.reshape(count, n_data), every, model.padded_length)
    if options.momentum == 0.0:
        z_old.fill(0.0)  # not used, and not followed by the steps: rescaling would blow it up
    rate, size = np.empty(count), np.empty(count, np.int64)
    squared, active = np.empty(count), np.empty(count, np.bool_)
    for a in range(count):
        rate[a] = populations.learning_rate[a // members]
        size[a] = populations.batch_size[a // members]
        squared[a] = squared_norm(z[a])
    number = populations.number.reshape(-1)
    state = Residuals(z, z_old, rate, size, number, active, squared)
    return state, workspace(count, model.ntk, size, options.scheme)


@compiled
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


@compiled
def _log_ratio(after, before):
    """Return log(after / before); infinite where a size can't be set back to 1."""
    if not after < 1e290:
        return np.inf
    return np.log(after / before) if after > 1e-290 else -np.inf


@compiled
def _rescale(z, z_old, squared):
    """Divide a state by the root of `squared`."""
    scale = 1.0 / np.sqrt(squared)
    for j in range(len(z)):
        z[j] *= scale
        z_old[j] *= scale


@compiled
def _redraw(state, old, squared, uniform):
    """Redraw members in proportion to their squared norms, and set all of these to their mean.

    By systematic resampling: member a descends from the one in whose share of the total
    (a + uniform) / members lies.
    """
    members = len(squared)
    total = squared.sum()
    source, source_old, share = state.copy(), old.copy(), squared.copy()
    ancestor, reached = 0, share[0]
    for a in range(members):
        target = (a + uniform) * total / members
        while reached < target and ancestor < members - 1:
            ancestor += 1
            reached += share[ancestor]
        # Rounding may lead to a last member that carries nothing.
        scale = np.sqrt(total / members / share[ancestor]) if share[ancestor] > 0 else 0.0
        for j in range(state.shape[1]):
            state[a, j] = source[ancestor, j] * scale
            old[a, j] = source_old[ancestor, j] * scale
        squared[a] = total / members
