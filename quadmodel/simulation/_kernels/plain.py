"""Compiled loops of models with curvature: many replicas step together.

A step has three parts. All replicas draw batches, and a list of the replicas of each data point is
made; data points add their gradients to the replicas that drew them, so that what belongs to a
point, its Q above all, is read once for all replicas; replicas apply their gradients. The second
part is written here for any processor, and in `vector_dense` and `vector_low_rank` for those with
wide vectors; threads may share it by data points.

A replica has its own learning rate, batch size and number in the random stream. One whose squared
norm leaves [0, limit) is frozen, and `diverged_at` says after which step; NaN fails that test too.

With phi = theta + nu (theta - theta_old), where nu is mu for Nesterov, else 0, and a batch that
holds data point i w_i times, a step is

    z_i = z_0i + J_i phi + Q_i(phi, phi) / 2
    g = sum_i w_i z_i (J_i + Q_i phi)
    theta' = theta + mu (theta - theta_old) - eta (g / B + rho phi)

in units of a parameter, with eta g / B and eta rho phi in these units.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

import numpy as np

from quadmodel._util.compiled import compiled
from quadmodel.batches import draw_batch, in_order
from quadmodel.simulation._kernels.sums import dot, fused, squared_norm

# Replicas that share one matrix product with a Q_i.
_GATHERED = 64


@compiled
def draw_batches(replicas, options, step, buffers):
    """Draw a batch for every replica that still runs, and list the replicas of each data point.

    Writes phi, where the gradient is taken, to `buffers.point`.
    """
    # Arrays are taken out of their named tuples first: every access in a loop would count
    # references, which takes time.
    momentum, nesterov, _, scheme, seed, model_index = options
    state, old, _, batch_size, number, diverged_at = replicas
    point, batches, length, pointer, entries, _ = buffers
    count, n_data = batches.shape
    order, swaps = in_order(n_data), np.empty(n_data, np.int64)
    extrapolation = momentum if nesterov else 0.0
    for a in range(count):
        length[a] = 0
        if diverged_at[a] < 0:
            length[a] = draw_batch(
                seed, model_index, number[a], step, scheme, n_data, batch_size[a],
                order, swaps, batches[a],
            )  # fmt: skip
            for k in range(state.shape[1]):
                now = state[a, k]
                point[a, k] = now + extrapolation * (now - old[a, k])
    _sort_by_point(batches, length, pointer, entries)


@compiled
def _sort_by_point(batches, length, pointer, entries):
    """List, for each data point, the replicas whose batch holds it (counting sort)."""
    pointer[:] = 0
    for a in range(len(length)):
        for k in range(length[a]):
            pointer[batches[a, k] + 1] += 1
    for i in range(1, len(pointer)):
        pointer[i] += pointer[i - 1]
    filled = pointer[:-1].copy()
    for a in range(len(length)):
        for k in range(length[a]):
            i = batches[a, k]
            entries[filled[i]] = a
            filled[i] += 1


@compiled
def apply_gradients(replicas, options, limit, step, gradients):
    """Step every replica by the sum over the parts of `gradients`, and clear them."""
    momentum, nesterov, weight_decay, _, _, _ = options
    state, old, learning_rate, batch_size, _, diverged_at = replicas
    extrapolation = momentum if nesterov else 0.0
    for a in range(len(state)):
        if diverged_at[a] >= 0:
            continue
        theta, theta_old, gradient = state[a], old[a], gradients[0, a]
        for part in range(1, len(gradients)):
            for k in range(len(gradient)):
                gradient[k] += gradients[part, a, k]
                gradients[part, a, k] = 0.0
        eta, per_point = learning_rate[a], 1.0 / batch_size[a]
        for k in range(len(theta)):
            moved = theta[k] - theta_old[k]
            theta_old[k] = theta[k]
            slope = gradient[k] * per_point + weight_decay * (theta[k] + extrapolation * moved)
            theta[k] += momentum * moved - eta * slope
            gradient[k] = 0.0
        if not squared_norm(theta) < limit:
            diverged_at[a] = step + 1


@compiled
def rows_of_part(pointer, part, parts):
    """Return the range of a part's data points: as many replicas for each part, roughly."""
    n_data = len(pointer) - 1
    first = _first_from(pointer, n_data, part * pointer[-1] / parts)
    last = _first_from(pointer, n_data, (part + 1) * pointer[-1] / parts)
    return first, n_data if part + 1 == parts else last


@compiled
def _first_from(pointer, n_data, share):
    """Return the first data point that begins at or after a share of all replicas."""
    first, beyond = 0, n_data
    while first < beyond:
        middle = (first + beyond) // 2
        if pointer[middle] < share:
            first = middle + 1
        else:
            beyond = middle
    return first


@compiled
def dense_rows(model, buffers, part, parts):
    """Add the gradients of a part of the data points to the replicas that drew them.

    `model` is a DenseModel. The replicas of a data point are gathered, one matrix product with Q_i
    serves them all, and residual and gradient follow while that product is in cache.
    """
    curvature, jacobian, residual = model
    pointer, entries, point = buffers.pointer, buffers.entries, buffers.point
    gradient, n_params = buffers.gradients[part * len(buffers.gradients) // parts], point.shape[1]
    # In the precision of the curvature; everything else is in double precision.
    gathered = np.empty((_GATHERED, n_params), curvature.dtype)
    product = np.empty_like(gathered)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        row = jacobian[i]
        for first in range(pointer[i], pointer[i + 1], _GATHERED):
            count = min(pointer[i + 1] - first, _GATHERED)
            for a in range(count):
                gathered[a] = point[entries[first + a]]
            np.dot(gathered[:count], curvature[i], product[:count])
            for a in range(count):
                replica = entries[first + a]
                z = residual[i] + dot(point[replica], row) + 0.5 * dot(gathered[a], product[a])
                g = gradient[replica]
                for k in range(n_params):
                    g[k] = fused(z, row[k] + product[a, k], g[k])


@compiled
def low_rank_rows(model, buffers, part, parts):
    """Add the gradients of a part of the data points to the replicas that drew them.

    `model` is a LowRankModel: Q_i = sum_r s_ir u_ir u_ir^T.
    """
    vectors, coefficients, jacobian, residual = model
    pointer, entries, point = buffers.pointer, buffers.entries, buffers.point
    gradient, n_params, rank = (
        buffers.gradients[part * len(buffers.gradients) // parts],
        point.shape[1],
        coefficients.shape[1],
    )
    weight = np.empty(rank)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        row = jacobian[i]
        for entry in range(pointer[i], pointer[i + 1]):
            theta, g = point[entries[entry]], gradient[entries[entry]]
            z = residual[i] + dot(row, theta)
            for r in range(rank):
                along = dot(vectors[i, r], theta)
                weight[r] = coefficients[i, r] * along
                z += 0.5 * weight[r] * along
            for k in range(n_params):
                g[k] = fused(z, row[k], g[k])
            for r in range(rank):
                u, c = vectors[i, r], z * weight[r]
                for k in range(n_params):
                    g[k] = fused(c, u[k], g[k])


# Each kind of curvature has a loop over steps of its own: only functions with a name of their own
# are kept compiled on disk, not those that are given another compiled function.


@compiled
def advance_dense(model, replicas, options, limit, buffers, first_step, n_steps):
    """Take many steps with some replicas; the gradients have one part."""
    for step in range(first_step, first_step + n_steps):
        draw_batches(replicas, options, step, buffers)
        dense_rows(model, buffers, 0, 1)
        apply_gradients(replicas, options, limit, step, buffers.gradients)


@compiled
def advance_low_rank(model, replicas, options, limit, buffers, first_step, n_steps):
    """Take many steps with some replicas; the gradients have one part."""
    for step in range(first_step, first_step + n_steps):
        draw_batches(replicas, options, step, buffers)
        low_rank_rows(model, buffers, 0, 1)
        apply_gradients(replicas, options, limit, step, buffers.gradients)
