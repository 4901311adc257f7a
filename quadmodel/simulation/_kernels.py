"""Compiled loops: many replicas ("lanes") take SGD steps on one model; arrays in, arrays out.

Every kernel advances its lanes in place by `n_steps` steps. A lane has its own learning rate, batch
size and replica number; `state` and `old` hold the iterate and the one before. A lane whose squared
norm leaves [0, limit) is frozen and `diverged_at` says after which step; NaN fails that test too,
so fastmath must keep it: only the flags below. (Under them np.isfinite, a test of x - x, is
always true.)
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.batches import draw_batch, philox

_FAST = {"contract", "reassoc", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FAST)
def advance_linear(
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
    """Step the residual: z + mu (z - z_old) - eta Theta W u - eta rho (u - start)."""
    lanes, n_data = state.shape
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batch, coefficient = np.empty(n_data, np.int64), np.empty(n_data)
    ahead = momentum if nesterov else 0.0
    for t in range(first_step, first_step + n_steps):
        for lane in range(lanes):
            if diverged_at[lane] >= 0:
                continue
            z, z_old = state[lane], old[lane]
            eta, b = learning_rate[lane], batch_size[lane]
            length = draw_batch(
                seed, model, replica[lane], t, scheme, n_data, b, order, swaps, batch
            )
            energy = _linear_step(
                ntk,
                start,
                z,
                z_old,
                eta,
                eta * n_data / b,
                batch[:length],
                coefficient,
                momentum,
                ahead,
                weight_decay,
            )
            if not energy < limit:
                diverged_at[lane] = t + 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def _linear_step(
    ntk, start, z, z_old, eta, weighted_eta, batch, coefficient, momentum, ahead, weight_decay
):
    """Step one residual and return its squared norm."""
    n_data, length = len(z), len(batch)
    for k in range(length):
        i = batch[k]
        coefficient[k] = -weighted_eta * (z[i] + ahead * (z[i] - z_old[i]))
    if momentum != 0.0 or weight_decay != 0.0:
        for j in range(n_data):
            moved = z[j] - z_old[j]
            z_old[j] = z[j]
            z[j] += momentum * moved - eta * weight_decay * (z[j] + ahead * moved - start[j])
    else:
        for j in range(n_data):
            z_old[j] = z[j]
    # Columns of the NTK (rows: it is symmetric), four at a time while z stays in cache.
    k = 0
    while k + 4 <= length:
        c0, c1, c2, c3 = coefficient[k : k + 4]
        i0, i1, i2, i3 = batch[k : k + 4]
        r0, r1, r2, r3 = ntk[i0], ntk[i1], ntk[i2], ntk[i3]
        for j in range(n_data):
            z[j] += (c0 * r0[j] + c1 * r1[j]) + (c2 * r2[j] + c3 * r3[j])
        k += 4
    while k < length:
        c0, r0 = coefficient[k], ntk[batch[k]]
        for j in range(n_data):
            z[j] += c0 * r0[j]
        k += 1
    return _energy(z)


@njit(cache=True, nogil=True, fastmath=_FAST)
def advance_populations(
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

    `state` has shape (cells, members, n_data); `growth`, of shape (cells, 1) if `select`, else
    (cells, members), is increased by the growth of the log loss: of the population's mean, or of
    each member. Sizes are set back to 1 after every step, so that nothing overflows; what vanishes
    or explodes within one step has grown by -inf or +inf and is stepped no more. With
    `select`, members are redrawn in proportion to their loss, and set to the mean loss, whenever
    fewer than half of them carry it: the mean stays what it is, but no single run dominates it.
    """
    cells, members, n_data = state.shape
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batch, coefficient = np.empty(n_data, np.int64), np.empty(n_data)
    nothing = np.zeros(n_data)
    energy = np.empty(members)
    ahead = momentum if nesterov else 0.0
    for cell in range(cells):
        eta, b = learning_rate[cell], batch_size[cell]
        for a in range(members):
            energy[a] = _energy(state[cell, a])
        for t in range(n_steps):
            if select and not abs(growth[cell, 0]) < np.inf:
                break
            total = energy.sum()
            for a in range(members):
                if not select and not abs(growth[cell, a]) < np.inf:
                    continue
                length = draw_batch(
                    seed,
                    model,
                    replica[cell, a],
                    first_step + t,
                    scheme,
                    n_data,
                    b,
                    order,
                    swaps,
                    batch,
                )
                before = energy[a]
                energy[a] = _linear_step(
                    ntk,
                    nothing,
                    state[cell, a],
                    old[cell, a],
                    eta,
                    eta * n_data / b,
                    batch[:length],
                    coefficient,
                    momentum,
                    ahead,
                    weight_decay,
                )
                if not select:
                    growth[cell, a] += _log_ratio(energy[a], before)
                    energy[a] = _rescale(state[cell, a], old[cell, a], energy[a])
            if select:
                mean = energy.sum() / members
                growth[cell, 0] += _log_ratio(mean * members, total)
                if not abs(growth[cell, 0]) < np.inf:
                    break
                for a in range(members):
                    _rescale(state[cell, a], old[cell, a], mean)
                    energy[a] /= mean
                if (energy * energy).sum() * members > 2.0 * energy.sum() ** 2:
                    words = philox(
                        np.uint32(0xFFFFFFFF),
                        np.uint32(first_step + t),
                        np.uint32(replica[cell, 0]),
                        np.uint32(model),
                        np.uint32(seed),
                        np.uint32(seed >> np.uint64(32)),
                    )
                    _redraw(state[cell], old[cell], energy, words[0] / 4294967296.0)


@njit(cache=True, nogil=True)
def _log_ratio(after, before):
    """Return log(after / before); infinite where a size can't be set back to 1."""
    if not after < 1e290:
        return np.inf
    return np.log(after / before) if after > 1e-290 else -np.inf


@njit(cache=True, nogil=True)
def _rescale(z, z_old, energy):
    """Divide a state by the root of an energy, where that can be done."""
    if not 1e-290 < energy < 1e290:
        return energy
    scale = 1.0 / np.sqrt(energy)
    for j in range(len(z)):
        z[j] *= scale
        z_old[j] *= scale
    return 1.0


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
        state[a] = source[ancestor] * scale
        old[a] = source_old[ancestor] * scale
        energy[a] = total / members


@njit(cache=True, nogil=True)
def sort_by_row(batch_of_lane, length, n_data, pointer, lane_of_entry):
    """List, for each data point, the lanes whose batch holds it (counting sort)."""
    pointer[:] = 0
    for lane in range(len(length)):
        for k in range(length[lane]):
            pointer[batch_of_lane[lane, k] + 1] += 1
    for i in range(n_data):
        pointer[i + 1] += pointer[i]
    filled = pointer[:-1].copy()
    for lane in range(len(length)):
        for k in range(length[lane]):
            i = batch_of_lane[lane, k]
            lane_of_entry[filled[i]] = lane
            filled[i] += 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def advance_dense(
    curvature,
    jacobian,
    residual,
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
    """Step the parameters of a model with dense curvature.

    For each data point the lanes that drew it are gathered, one matrix product with Q_i serves
    them all, and residual, Jacobian row and gradient are formed while that block is in cache.
    """
    lanes, n_params = state.shape
    n_data = len(residual)
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batches, length = np.empty((lanes, n_data), np.int64), np.zeros(lanes, np.int64)
    pointer = np.zeros(n_data + 1, np.int64)
    entries = np.empty(lanes * n_data, np.int64)
    point, gradient = np.empty_like(state), np.zeros_like(state)
    gathered, product = np.empty((lanes * 2, n_params)), np.empty((lanes * 2, n_params))
    ahead = momentum if nesterov else 0.0
    for t in range(first_step, first_step + n_steps):
        for lane in range(lanes):
            length[lane] = 0
            if diverged_at[lane] < 0:
                length[lane] = draw_batch(
                    seed,
                    model,
                    replica[lane],
                    t,
                    scheme,
                    n_data,
                    batch_size[lane],
                    order,
                    swaps,
                    batches[lane],
                )
                for k in range(n_params):
                    now = state[lane, k]
                    point[lane, k] = now + ahead * (now - old[lane, k])
        sort_by_row(batches, length, n_data, pointer, entries)
        for i in range(n_data):
            row = jacobian[i]
            first = pointer[i]
            while first < pointer[i + 1]:
                m = min(pointer[i + 1] - first, len(gathered))
                for a in range(m):
                    gathered[a] = point[entries[first + a]]
                np.dot(gathered[:m], curvature[i], product[:m])
                for a in range(m):
                    z = residual[i]
                    for k in range(n_params):
                        z += gathered[a, k] * (row[k] + 0.5 * product[a, k])
                    g = gradient[entries[first + a]]
                    for k in range(n_params):
                        g[k] += z * (row[k] + product[a, k])
                first += m
        for lane in range(lanes):
            if diverged_at[lane] < 0:
                _apply_gradient(
                    state[lane],
                    old[lane],
                    gradient[lane],
                    learning_rate[lane],
                    batch_size[lane],
                    momentum,
                    ahead,
                    weight_decay,
                )
                if not _energy(state[lane]) < limit:
                    diverged_at[lane] = t + 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def advance_low_rank(
    coefficients,
    vectors,
    jacobian,
    residual,
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
    """Step the parameters of a model with curvature sum_r s_r u_r u_r^T per data point."""
    lanes, n_params = state.shape
    n_data, rank = coefficients.shape
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batch = np.empty(n_data, np.int64)
    point, gradient, weight = np.empty(n_params), np.zeros(n_params), np.empty(rank)
    ahead = momentum if nesterov else 0.0
    for t in range(first_step, first_step + n_steps):
        for lane in range(lanes):
            if diverged_at[lane] >= 0:
                continue
            for k in range(n_params):
                point[k] = state[lane, k] + ahead * (state[lane, k] - old[lane, k])
            length = draw_batch(
                seed,
                model,
                replica[lane],
                t,
                scheme,
                n_data,
                batch_size[lane],
                order,
                swaps,
                batch,
            )
            for q in range(length):
                i = batch[q]
                row = jacobian[i]
                z = residual[i]
                for k in range(n_params):
                    z += row[k] * point[k]
                for r in range(rank):
                    u = vectors[i, r]
                    along = 0.0
                    for k in range(n_params):
                        along += u[k] * point[k]
                    weight[r] = coefficients[i, r] * along
                    z += 0.5 * weight[r] * along
                for k in range(n_params):
                    gradient[k] += z * row[k]
                for r in range(rank):
                    u, c = vectors[i, r], z * weight[r]
                    for k in range(n_params):
                        gradient[k] += c * u[k]
            _apply_gradient(
                state[lane],
                old[lane],
                gradient,
                learning_rate[lane],
                batch_size[lane],
                momentum,
                ahead,
                weight_decay,
            )
            if not _energy(state[lane]) < limit:
                diverged_at[lane] = t + 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def _apply_gradient(theta, old, gradient, eta, b, momentum, ahead, weight_decay):
    """Step one lane by its batch gradient (a sum over the batch), and clear it."""
    for k in range(len(theta)):
        moved = theta[k] - old[k]
        old[k] = theta[k]
        slope = gradient[k] / b + weight_decay * (theta[k] + ahead * moved)
        theta[k] += momentum * moved - eta * slope
        gradient[k] = 0.0


@njit(cache=True, nogil=True, fastmath=_FAST)
def _energy(theta):
    total = 0.0
    for k in range(len(theta)):
        total += theta[k] * theta[k]
    return total
