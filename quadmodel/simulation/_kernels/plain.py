"""Compiled loops of models with curvature: many replicas ("lanes") step together.

A step has three parts. All lanes draw batches, and a list of the lanes of each data point is made;
data points add their gradients to the lanes that drew them, so that what belongs to a point, its Q
above all, is read once for all lanes; lanes apply their gradients. The second part is written here
for any processor, and in `_vector_kernels` for those with wide vectors; it may be shared out among
threads by data points.

A lane has its own learning rate, batch size and replica number; `state` and `old` hold the
parameters and those before. A lane whose squared norm leaves [0, limit) is frozen and `diverged_at`
says after which step; NaN fails that test too, so fastmath must keep it: see `_FAST`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.batches import draw_batch
from quadmodel.simulation._kernels.columns import _FAST
from quadmodel.simulation._kernels.linear import _energy


@njit(cache=True, nogil=True, fastmath=_FAST)
def draw_lanes(lanes, options, step, point, batches, length, pointer, entries):
    """Draw a batch for every lane that still runs, and list the lanes of each data point.

    Writes where the gradient is taken to `point`, shape (lanes + 1, padded parameters).
    """
    state, old, _, batch_size, replica, diverged_at = lanes
    momentum, nesterov, _, scheme, seed, model, _ = options
    count, n_data = batches.shape
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    ahead = momentum if nesterov else 0.0
    for lane in range(count):
        length[lane] = 0
        if diverged_at[lane] < 0:
            length[lane] = draw_batch(
                seed,
                model,
                replica[lane],
                step,
                scheme,
                n_data,
                batch_size[lane],
                order,
                swaps,
                batches[lane],
            )
            for k in range(state.shape[1]):
                now = state[lane, k]
                point[lane, k] = now + ahead * (now - old[lane, k])
    _sort_by_point(batches, length, pointer, entries)


@njit(cache=True, nogil=True)
def _sort_by_point(batches, length, pointer, entries):
    """List, for each data point, the lanes whose batch holds it (counting sort)."""
    pointer[:] = 0
    for lane in range(len(length)):
        for k in range(length[lane]):
            pointer[batches[lane, k] + 1] += 1
    for i in range(1, len(pointer)):
        pointer[i] += pointer[i - 1]
    filled = pointer[:-1].copy()
    for lane in range(len(length)):
        for k in range(length[lane]):
            i = batches[lane, k]
            entries[filled[i]] = lane
            filled[i] += 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def apply_gradients(lanes, options, step, gradients):
    """Step every lane by the sum over `gradients`, (parts, lanes + 1, parameters); clear them."""
    state, old, learning_rate, batch_size, _, diverged_at = lanes
    momentum, nesterov, weight_decay, _, _, _, limit = options
    ahead = momentum if nesterov else 0.0
    for lane in range(len(state)):
        if diverged_at[lane] >= 0:
            continue
        theta, theta_old, gradient = state[lane], old[lane], gradients[0, lane]
        for part in range(1, len(gradients)):
            for k in range(len(gradient)):
                gradient[k] += gradients[part, lane, k]
                gradients[part, lane, k] = 0.0
        eta, b = learning_rate[lane], batch_size[lane]
        for k in range(len(theta)):
            moved = theta[k] - theta_old[k]
            theta_old[k] = theta[k]
            slope = gradient[k] / b + weight_decay * (theta[k] + ahead * moved)
            theta[k] += momentum * moved - eta * slope
            gradient[k] = 0.0
        if not _energy(theta) < limit:
            diverged_at[lane] = step + 1


@njit(cache=True, nogil=True)
def rows_of_part(pointer, part, parts):
    """Return the range of data points that are a part's: about as many lanes for each."""
    n_data = len(pointer) - 1
    shares = np.array([part, part + 1]) * pointer[-1] / parts
    first, last = np.searchsorted(pointer[:n_data], shares)
    return first, n_data if part + 1 == parts else last


@njit(cache=True, nogil=True, fastmath=_FAST)
def dense_rows(arrays, point, pointer, entries, part, parts, gradient):
    """Add the gradients that some data points have for the lanes that drew them.

    `arrays` are Q, J and the residual. The lanes of a data point are gathered, one matrix product
    with Q_i serves them all, and residual and gradient follow while that block is in cache.
    """
    curvature, jacobian, residual = arrays
    n_params, room = point.shape[1], 64
    # In the precision of the curvature; everything else is in double precision.
    gathered = np.empty((room, n_params), curvature.dtype)
    product = np.empty_like(gathered)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        row = jacobian[i]
        for first in range(pointer[i], pointer[i + 1], room):
            count = min(pointer[i + 1] - first, room)
            for a in range(count):
                gathered[a] = point[entries[first + a]]
            np.dot(gathered[:count], curvature[i], product[:count])
            for a in range(count):
                z, lane = residual[i], entries[first + a]
                for k in range(n_params):
                    z += point[lane, k] * (row[k] + 0.5 * product[a, k])
                g = gradient[lane]
                for k in range(n_params):
                    g[k] += z * (row[k] + product[a, k])


@njit(cache=True, nogil=True, fastmath=_FAST)
def low_rank_rows(arrays, point, pointer, entries, part, parts, gradient):
    """Do the same for curvature sum_r s_r u_r u_r^T; `arrays` are u, s, J and the residual."""
    vectors, coefficients, jacobian, residual = arrays
    n_params, rank = point.shape[1], coefficients.shape[1]
    weight = np.empty(rank)
    first_row, last_row = rows_of_part(pointer, part, parts)
    for i in range(first_row, last_row):
        row = jacobian[i]
        for entry in range(pointer[i], pointer[i + 1]):
            theta, g = point[entries[entry]], gradient[entries[entry]]
            z = residual[i]
            for k in range(n_params):
                z += row[k] * theta[k]
            for r in range(rank):
                u = vectors[i, r]
                along = 0.0
                for k in range(n_params):
                    along += u[k] * theta[k]
                weight[r] = coefficients[i, r] * along
                z += 0.5 * weight[r] * along
            for k in range(n_params):
                g[k] += z * row[k]
            for r in range(rank):
                u, c = vectors[i, r], z * weight[r]
                for k in range(n_params):
                    g[k] += c * u[k]


@njit(cache=True, nogil=True)
def advance_dense(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    # As in `_vector_kernels`: only functions with a name of their own are kept compiled on disk.
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        dense_rows(arrays, point, pointer, entries, 0, 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)


@njit(cache=True, nogil=True)
def advance_low_rank(arrays, lanes, options, room, first_step, n_steps):
    """Take many steps with some lanes, all data points in turn; `gradients` has one part."""
    point, batches, length, pointer, entries, gradients = room
    for step in range(first_step, first_step + n_steps):
        draw_lanes(lanes, options, step, point, batches, length, pointer, entries)
        low_rank_rows(arrays, point, pointer, entries, 0, 1, gradients[0])
        apply_gradients(lanes, options, step, gradients)
