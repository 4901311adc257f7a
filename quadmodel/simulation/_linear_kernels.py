"""Compiled loops of the linear model: residuals of many replicas ("lanes"), stepped together.

A lane has its own learning rate, batch size and replica number. In every step all lanes draw their
batches, then the columns of the NTK are added for all of them (`_columns`), or, for lanes with
large batches, by one matrix product.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.batches import BERNOULLI, draw_batch, philox
from quadmodel.simulation._columns import _FAST, add_columns
from quadmodel.simulation._vectors import aligned

# Share of the data in a batch from which on a matrix product is faster if there are many data, and
# lanes per product.
_LARGE_BATCH, _MANY_DATA, _PRODUCT_LANES = 0.4, 64, 512


@njit(cache=True, nogil=True)
def advance_linear(
    columns,
    length,
    ntk,
    start,
    state,
    old,
    learning_rate,
    batch_size,
    replica,
    diverged_at,
    momentum,
    nesterov,
    weight_decay,
    scheme,
    seed,
    model,
    first_step,
    n_steps,
    limit,
):
    """Step the residual: z + mu (z - z_old) - eta Theta W u - eta rho (u - start).

    `state` and `old`, the residual before, have shape (lanes, n_data). A lane whose squared norm
    leaves [0, limit) is frozen, and `diverged_at` says after which step; NaN fails that test too,
    so fastmath must keep it: see `_FAST`.
    """
    lanes = len(state)
    z, z_old = _padded(state, length), _padded(old, length)
    energy, active = np.zeros(lanes), diverged_at < 0
    room = _room(lanes, len(ntk), batch_size, scheme)
    options = momentum, nesterov, weight_decay, scheme, seed, model
    for t in range(first_step, first_step + n_steps):
        _step(columns, ntk, start, z, z_old, learning_rate, batch_size, replica, active,
              options, t, room, energy)  # fmt: skip
        for lane in range(lanes):
            if active[lane] and not energy[lane] < limit:
                diverged_at[lane] = t + 1
                active[lane] = False
    _copy(z, state)
    _copy(z_old, old)


@njit(cache=True, nogil=True)
def _padded(rows, length):
    """Return a copy of the rows, with zeros behind them up to `length`."""
    wide = aligned(len(rows) * length, rows).reshape(len(rows), length)
    _copy(rows, wide)
    return wide


@njit(cache=True, nogil=True)
def _copy(source, target):
    """Copy what both have; quicker to compile than an assignment to a slice."""
    for a in range(len(source)):
        for j in range(min(source.shape[1], target.shape[1])):
            target[a, j] = source[a, j]


@njit(cache=True, nogil=True)
def _room(lanes, n_data, batch_size, scheme):
    """Return arrays that the steps write to: batches and their coefficients, and for products."""
    most = lanes * n_data if scheme == BERNOULLI else batch_size.sum()
    rows = min(lanes, _PRODUCT_LANES)
    return (
        np.arange(n_data),
        np.empty(n_data, np.int64),
        np.empty(n_data, np.int64),
        np.zeros(lanes + 1, np.int64),
        np.empty(most, np.int64),
        np.empty(most),
        np.empty(rows, np.int64),
        np.zeros((rows, n_data)),
        np.empty((rows, n_data)),
    )


@njit(cache=True, nogil=True, fastmath=_FAST)
def _step(
    columns, ntk, start, state, old, learning_rate, batch_size, replica, active, options, t, room,
    energy,
):  # fmt: skip
    """Take one step with every active lane, and write their squared norms to `energy`."""
    momentum, nesterov, weight_decay, scheme, seed, model = options
    order, swaps, batch, begin, picked, coefficient, whose, weighted, product = room
    n_data, count, waiting = len(ntk), 0, 0
    ahead = momentum if nesterov else 0.0
    plain = momentum == 0.0 and weight_decay == 0.0
    for lane in range(len(state)):
        begin[lane] = count
        if not active[lane]:
            continue
        z, z_old, eta, b = state[lane], old[lane], learning_rate[lane], batch_size[lane]
        length = draw_batch(
            seed, model, replica[lane], t, scheme, n_data, b, order, swaps, batch
        )  # fmt: skip
        if length < _LARGE_BATCH * n_data or n_data < _MANY_DATA:
            for k in range(length):
                i = batch[k]
                picked[count] = i
                coefficient[count] = -eta * n_data / b * (z[i] + ahead * (z[i] - z_old[i]))
                count += 1
        else:
            for k in range(length):
                i = batch[k]
                # Added, since a point may be drawn more than once.
                weighted[waiting, i] -= eta * n_data / b * (z[i] + ahead * (z[i] - z_old[i]))
            whose[waiting] = lane
            waiting += 1
        if not plain:
            for j in range(n_data):
                moved = z[j] - z_old[j]
                z_old[j] = z[j]
                z[j] += momentum * moved - eta * weight_decay * (z[j] + ahead * moved - start[j])
        if waiting == len(whose):
            _add_products(weighted, waiting, ntk, product, whose, state)
            waiting = 0
    begin[len(state)] = count
    if waiting > 0:
        _add_products(weighted, waiting, ntk, product, whose, state)
    add_columns(columns, n_data, begin, picked, coefficient, state)
    for lane in range(len(state)):
        if active[lane]:
            energy[lane] = _energy(state[lane])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_products(weighted, count, ntk, product, whose, state):
    """Add Theta times each of the first `count` rows to its lane, and clear the rows."""
    np.dot(weighted[:count], ntk, product[:count])
    for a in range(count):
        z = state[whose[a]]
        for j in range(len(ntk)):
            z[j] += product[a, j]
            weighted[a, j] = 0.0


@njit(cache=True, nogil=True, fastmath=_FAST)
def _energy(z):
    total = 0.0
    for j in range(len(z)):
        total += z[j] * z[j]
    return total


# Sizes of a population are set back to 1 when they leave this range.
_SMALLEST, _LARGEST = 1e-60, 1e60


@njit(cache=True, nogil=True)
def advance_populations(
    columns,
    length,
    ntk,
    state,
    old,
    learning_rate,
    batch_size,
    replica,
    select,
    momentum,
    nesterov,
    weight_decay,
    scheme,
    seed,
    model,
    first_step,
    n_steps,
    growth,
):
    """Step whole populations of residuals, one per cell, and log the growth of their mean loss.

    `state` has shape (cells, members, n_data); `growth`, of shape (cells, 1) if `select`,
    else (cells, members), is increased by the growth of the log loss: of the population's mean, or
    of each member. Sizes are set back to 1 on the way, so that nothing overflows; what vanishes
    or explodes within one step has grown by -inf or +inf and is stepped no more. With
    `select`, members are redrawn in proportion to their loss, and set to the mean loss, whenever
    fewer than half of them carry it: the mean stays what it is, but no single run dominates it.
    """
    cells, members, n_data = state.shape
    lanes = cells * members
    z = _padded(state.reshape(lanes, n_data), length)
    z_old = _padded(old.reshape(lanes, n_data), length)
    eta, b = np.empty(lanes), np.empty(lanes, np.int64)
    number, nothing = replica.reshape(-1), np.zeros(n_data)
    options = momentum, nesterov, weight_decay, scheme, seed, model
    energy, active = np.empty(lanes), np.empty(lanes, np.bool_)
    if momentum == 0.0:
        z_old.fill(0.0)  # not used, and not followed by the steps: rescaling would blow it up
    for lane in range(lanes):
        eta[lane], b[lane] = learning_rate[lane // members], batch_size[lane // members]
        energy[lane] = _energy(z[lane])
        active[lane] = abs(growth[lane // members, 0 if select else lane % members]) < np.inf
    # Of the mean, or of each member, where its log was last taken.
    group = members if select else 1
    logged = growth.reshape(-1)
    since = np.empty(len(logged))
    for g in range(len(logged)):
        since[g] = energy[g * group : (g + 1) * group].sum()
    room = _room(lanes, len(ntk), b, scheme)
    for t in range(first_step, first_step + n_steps):
        _step(columns, ntk, nothing, z, z_old, eta, b, number, active, options, t, room, energy)
        for g in range(len(logged)):
            first, last = g * group, (g + 1) * group
            if not active[first]:
                continue
            total = energy[first:last].sum()
            if not _SMALLEST < total < _LARGEST or t + 1 == first_step + n_steps:
                logged[g] += _log_ratio(total, since[g])
                if not abs(logged[g]) < np.inf:
                    active[first:last].fill(False)
                    continue
                for lane in range(first, last):
                    _rescale(z[lane], z_old[lane], total / group)
                    energy[lane] /= total / group
                total = since[g] = energy[first:last].sum()
            if select and _energy(energy[first:last]) * members > 2.0 * total**2:
                words = philox(
                    np.uint32(0xFFFFFFFF),
                    np.uint32(t),
                    np.uint32(number[first]),
                    np.uint32(model),
                    np.uint32(seed),
                    np.uint32(seed >> np.uint64(32)),
                )
                _redraw(z[first:last], z_old[first:last], energy[first:last], words[0] / 2.0**32)
    _copy(z, state.reshape(lanes, n_data))
    _copy(z_old, old.reshape(lanes, n_data))


@njit(cache=True, nogil=True)
def _log_ratio(after, before):
    """Return log(after / before); infinite where a size can't be set back to 1."""
    if not after < 1e290:
        return np.inf
    return np.log(after / before) if after > 1e-290 else -np.inf


@njit(cache=True, nogil=True)
def _rescale(z, z_old, energy):
    """Divide a state by the root of an energy."""
    scale = 1.0 / np.sqrt(energy)
    for j in range(len(z)):
        z[j] *= scale
        z_old[j] *= scale


@njit(cache=True, nogil=True)
def _redraw(state, old, energy, uniform):
    """Redraw members in proportion to their energies (systematic resampling) at mean energy."""
    members = len(energy)
    total = energy.sum()
    source, source_old, share = state.copy(), old.copy(), energy.copy()
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
        energy[a] = total / members
