"""Compiled loops of the linear model: residuals of many replicas ("lanes"), stepped together.

A lane has its own learning rate, batch size and replica number. In every step all lanes draw their
batches, then the columns of the NTK are added for all of them (`_columns`), or, for lanes with
large batches, by one matrix product. NTK and coefficients may be in single precision; residuals are
in double precision always, and coefficients then in units of their norm, whatever its size.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.batches import BERNOULLI, draw_batch, philox
from quadmodel.simulation._kernels.aligned import aligned
from quadmodel.simulation._kernels.columns import _FAST, BLOCK, add_columns
from quadmodel.simulation._kernels.vectors import lowest_bit

# Share of the data in a batch from which on columns are added block by block, and from which on a
# matrix product is faster if there are many data; lanes per product.
_DENSE_BATCH, _LARGE_BATCH, _MANY_DATA, _PRODUCT_LANES = 0.06, 0.5, 64, 512


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
    which,
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
    """Step the residual of some lanes: z + mu (z - z_old) - eta Theta W u - eta rho (u - start).

    `state` and `old`, the residual before, have shape (all lanes, n_data), as `diverged_at`;
    `which` are the numbers of the lanes to step, to which learning rates, batch sizes and numbers
    of replicas belong. `old` is not touched where nothing asks for it. A lane whose squared norm
    leaves [0, limit) is frozen, and `diverged_at` says after which step; NaN fails that test too,
    so fastmath must keep it: see `_FAST`.
    """
    lanes = len(which)
    energy, active = np.empty(lanes), np.empty(lanes, np.bool_)
    plain = momentum == 0.0 and weight_decay == 0.0
    z = _padded(state, which, length)
    z_old = z if plain else _padded(old, which, length)
    for lane in range(lanes):
        energy[lane] = _energy(z[lane])
        active[lane] = diverged_at[which[lane]] < 0
    room = _room(lanes, ntk, batch_size, scheme)
    options = momentum, nesterov, weight_decay, scheme, seed, model
    for t in range(first_step, first_step + n_steps):
        _step(columns, ntk, start, z, z_old, learning_rate, batch_size, replica, active, options, t,
              room, energy)  # fmt: skip
        for lane in range(lanes):
            if active[lane] and not energy[lane] < limit:
                diverged_at[which[lane]] = t + 1
                active[lane] = False
    _put_back(z, which, state)
    if not plain:
        _put_back(z_old, which, old)


# Loops, since assignments to slices take long to compile.


@njit(cache=True, nogil=True)
def _padded(rows, which, length):
    """Return a copy of some rows, with zeros behind them up to `length`."""
    wide = aligned(len(which) * length, rows).reshape(len(which), length)
    for a in range(len(which)):
        for j in range(rows.shape[1]):
            wide[a, j] = rows[which[a], j]
    return wide


@njit(cache=True, nogil=True)
def _put_back(wide, which, rows):
    """Write the copies back."""
    for a in range(len(which)):
        for j in range(rows.shape[1]):
            rows[which[a], j] = wide[a, j]


@njit(cache=True, nogil=True)
def _room(lanes, ntk, batch_size, scheme):
    """Return arrays that the steps write to: batches and their coefficients, and for products."""
    n_data = len(ntk)
    blocks, rows = -(-n_data // BLOCK), min(lanes, _PRODUCT_LANES)
    # Where blocks begin in the lists of columns; the first has room for all batches whose columns
    # are not added in blocks. (Loops and sums of scalars compile faster than those of arrays.)
    first, most = np.empty(blocks, np.int64), 0
    for block in range(blocks):
        first[block] = most
        most += lanes * BLOCK
        if block == 0:
            for lane in range(lanes):
                most += n_data if scheme == BERNOULLI else batch_size[lane]
    return (
        np.arange(n_data),
        np.empty(n_data, np.int64),
        np.empty(n_data, np.int64),
        # How often each point is in a batch, and a bit for each that is; both are left at zero.
        np.zeros(n_data, np.int64),
        np.zeros(-(-n_data // 32), np.uint32),
        first,
        np.empty((blocks, lanes + 1), np.int64),
        np.empty(most, np.int32),
        np.empty(most, ntk.dtype),
        np.ones(lanes),
        np.empty(rows, np.int64),
        np.zeros((rows, n_data), ntk.dtype),
        np.empty((rows, n_data), ntk.dtype),
    )


@njit(cache=True, nogil=True, fastmath=_FAST)
def _step(
    columns, ntk, start, state, old, learning_rate, batch_size, replica, active, options, t, room,
    energy,
):  # fmt: skip
    """Take one step with every active lane; `energy` are the squared norms, before and after."""
    momentum, nesterov, weight_decay, scheme, seed, model = options
    order, swaps, batch, times, words, first, begin, picked, coefficient = room[:9]
    unit, whose, weighted, product = room[9:]
    n_data, blocks, lanes, waiting = len(ntk), len(begin), len(state), 0
    ahead = momentum if nesterov else 0.0
    plain = momentum == 0.0 and weight_decay == 0.0
    for block in range(blocks):
        begin[block, 0] = first[block]
    for lane in range(lanes):
        for block in range(blocks):
            begin[block, lane + 1] = begin[block, lane]
        if not active[lane]:
            continue
        z, z_old, eta, b = state[lane], old[lane], learning_rate[lane], batch_size[lane]
        length = draw_batch(
            seed, model, replica[lane], t, scheme, n_data, b, order, swaps, batch
        )  # fmt: skip
        if ntk.itemsize < state.itemsize and energy[lane] > 0:
            unit[lane] = np.sqrt(energy[lane])
        scale = -eta * n_data / b / unit[lane]
        if length >= _LARGE_BATCH * n_data and n_data >= _MANY_DATA:
            for k in range(length):
                i = batch[k]
                # Added, since a point may be drawn more than once.
                weighted[waiting, i] += scale * (z[i] + ahead * (z[i] - z_old[i]))
            whose[waiting] = lane
            waiting += 1
        elif length >= _DENSE_BATCH * n_data:
            _sort(batch, length, times, words)
            for word in range(len(words)):
                block, bits = word // (BLOCK // 32), words[word]
                at = begin[block, lane + 1]
                while bits != 0:
                    i = 32 * word + lowest_bit(bits)
                    bits &= bits - np.uint32(1)
                    picked[at] = i
                    coefficient[at] = scale * times[i] * (z[i] + ahead * (z[i] - z_old[i]))
                    times[i] = 0
                    at += 1
                begin[block, lane + 1], words[word] = at, 0
        else:
            at = begin[0, lane]
            for k in range(length):
                i = batch[k]
                picked[at + k] = i
                coefficient[at + k] = scale * (z[i] + ahead * (z[i] - z_old[i]))
            begin[0, lane + 1] = at + length
        if not plain:
            for j in range(n_data):
                moved = z[j] - z_old[j]
                z_old[j] = z[j]
                z[j] += momentum * moved - eta * weight_decay * (z[j] + ahead * moved - start[j])
        if waiting == len(whose):
            _add_products(weighted, waiting, ntk, product, whose, unit, state)
            waiting = 0
    if waiting > 0:
        _add_products(weighted, waiting, ntk, product, whose, unit, state)
    add_columns(columns, n_data, begin, picked, coefficient, unit, state)
    for lane in range(lanes):
        if active[lane]:
            energy[lane] = _energy(state[lane])


@njit(cache=True, nogil=True)
def _sort(batch, length, times, words):
    """Count how often each point is in a batch, and set a bit for each that is."""
    for k in range(length):
        i = batch[k]
        times[i] += 1
        words[i >> 5] |= np.uint32(1 << (i & 31))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_products(weighted, count, ntk, product, whose, unit, state):
    """Add Theta times each of the first `count` rows to its lane, and clear the rows."""
    np.dot(weighted[:count], ntk, product[:count])
    for a in range(count):
        z, by = state[whose[a]], unit[whose[a]]
        for j in range(len(ntk)):
            z[j] += by * product[a, j]
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
    rows, rows_old = state.reshape(lanes, n_data), old.reshape(lanes, n_data)
    every = np.arange(lanes)
    z, z_old = _padded(rows, every, length), _padded(rows_old, every, length)
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
    room = _room(lanes, ntk, b, scheme)
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
    _put_back(z, every, rows)
    _put_back(z_old, every, rows_old)


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
