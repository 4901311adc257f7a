"""Compiled loop of the large-P limit: SGD on the coefficients of words; arrays in, arrays out.

The state of a lane holds tau_0, tau_1, ..., tau_L one after the other, tau_l with l axes of letters
and one of length r, in coordinates in which every inner product is the plain one. So row k of
tau_(l+1) (first letter k) has the shape of tau_l, and with mixing R and strength q

    z_a = z0_a + J_a . tau_0 + q sum_k R_ak sum_l <tau_(l+1)[k], tau_l>
    gradient of tau_l = [l = 0] sum_a zeta_a J_a + q sum_k rho_k (tau_(l+1)[k] + e_k x tau_(l-1))

with rho = R^T zeta. Only *active* letters count, those with R_ak != 0 for a point of the batch:
with R = 1 a step reads and writes the batch's rows of the top level and no others. What momentum
and weight decay do to the other rows meanwhile is a linear recursion, made up for when a row's turn
comes; `current` holds the step up to which each has been.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit

from quadmodel.batches import draw_batch

# Under these flags np.isfinite, a test of x - x, is always true; comparisons are kept.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FAST)
def advance(
    jacobian,
    residual,
    mixing,
    unit,
    strength,
    level,
    state,
    old,
    current,
    replica,
    diverged_at,
    learning_rate,
    batch_size,
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
    """Advance lanes in place by `n_steps`; with `unit`, letters are data points and R is not read.

    `old` holds the state one step before, or has no columns where there is no momentum. A lane is
    frozen when the squared norm of what a step has written is not below `limit`.
    """
    n_data, rank = jacobian.shape
    n_letters = current.shape[1]
    size = np.empty(level + 1, np.int64)
    start = np.zeros(level + 2, np.int64)
    for n in range(level + 1):
        size[n] = rank * n_letters**n
        start[n + 1] = start[n] + size[n]
    lower, row_size = start[level], size[level - 1]
    order, swaps = np.arange(n_data), np.empty(n_data, np.int64)
    batch, points = np.empty(n_data, np.int64), np.empty(n_data, np.int64)
    times, pull = np.zeros(n_data), np.empty(n_data)
    active = np.arange(n_letters)
    overlap, push = np.empty(n_letters), np.empty(n_letters)
    extrapolated, gradient = np.empty(lower), np.empty(lower)
    ahead = momentum if nesterov else 0.0
    keep = 1.0 + momentum - learning_rate * weight_decay * (1.0 + ahead)
    keep_old = -momentum + learning_rate * weight_decay * ahead
    at_rest = keep == 1.0 and keep_old == 0.0
    for lane in range(len(replica)):
        x, x_old, done = state[lane], old[lane], current[lane]
        for t in range(first_step, first_step + n_steps):
            if diverged_at[lane] >= 0:
                break
            length = draw_batch(
                seed, model, replica[lane], t, scheme, n_data, batch_size, order, swaps, batch
            )
            n_points = 0
            for k in range(length):
                a = batch[k]
                if times[a] == 0.0:
                    points[n_points] = a
                    n_points += 1
                times[a] += 1.0
            n_active = n_letters
            if unit:
                n_active = n_points
                active[:n_active] = points[:n_active]
            if ahead == 0.0:
                point = x[:lower]
            else:
                point = extrapolated
                for i in range(lower):
                    point[i] = x[i] + ahead * (x[i] - x_old[i])

            for j in range(n_active):
                k = active[j]
                first = lower + k * row_size
                row, row_old = x[first : first + row_size], x_old[first : first + row_size]
                if not at_rest and done[k] < t:
                    catch_up(row, row_old, t - done[k], keep, keep_old)
                done[k] = t + 1
                total = _overlap(row, row_old, point[start[level - 1] : lower], ahead)
                for n in range(level - 1):
                    total += _dot(
                        _row(point, start, size, n + 1, k), point[start[n] : start[n + 1]]
                    )
                overlap[j] = strength * total

            for p in range(n_points):
                a = points[p]
                z = residual[a] + _dot(jacobian[a], point[:rank])
                if unit:
                    z += overlap[p]
                else:
                    z += _dot(mixing[a], overlap)
                pull[p] = times[a] * z / batch_size
                times[a] = 0.0
            gradient[:] = 0.0
            for p in range(n_points):
                _add(gradient[:rank], pull[p], jacobian[points[p]])
            if unit:
                push[:n_active] = pull[:n_active]
            else:
                push[:] = 0.0
                for p in range(n_points):
                    _add(push, pull[p], mixing[points[p]])

            energy = 0.0
            for j in range(n_active):
                k, c = active[j], strength * push[j]
                for n in range(level - 1):
                    below = point[start[n] : start[n + 1]]
                    _add(gradient[start[n] : start[n + 1]], c, _row(point, start, size, n + 1, k))
                    _add(_row(gradient, start, size, n + 1, k), c, below)
                first = lower + k * row_size
                energy += _step_row(
                    x[first : first + row_size],
                    x_old[first : first + row_size],
                    point[start[level - 1] : lower],
                    gradient[start[level - 1] : lower],
                    c,
                    learning_rate,
                    ahead,
                    keep,
                    keep_old,
                )
            energy += _step(x[:lower], x_old, gradient, learning_rate, keep, keep_old)
            if not energy < limit:
                diverged_at[lane] = t + 1


@njit(cache=True, nogil=True, fastmath=_FAST)
def catch_up(row, row_old, elapsed, keep, keep_old):
    """Take `elapsed` steps without gradient: x' = keep x + keep_old x_old."""
    if len(row_old) == 0:
        row *= keep**elapsed
        return
    a, b, c, d = 1.0, 0.0, 0.0, 1.0  # the power of [[keep, keep_old], [1, 0]], by squaring
    p, q, r, s = keep, keep_old, 1.0, 0.0
    while elapsed > 0:
        if elapsed & 1:
            a, b, c, d = a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s
        p, q, r, s = p * p + q * r, p * q + q * s, r * p + s * r, r * q + s * s
        elapsed >>= 1
    for i in range(len(row)):
        now, before = row[i], row_old[i]
        row[i] = a * now + b * before
        row_old[i] = c * now + d * before


@njit(cache=True, nogil=True, fastmath=_FAST)
def _row(x, start, size, n, k):
    """Return the row of first letter k at level n."""
    first = start[n] + k * size[n - 1]
    return x[first : first + size[n - 1]]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _dot(x, y):
    total = 0.0
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _overlap(row, row_old, below, ahead):
    """Return the inner product of an extrapolated row with the level below."""
    total = 0.0
    if ahead == 0.0:
        for i in range(len(row)):
            total += row[i] * below[i]
    else:
        for i in range(len(row)):
            total += (row[i] + ahead * (row[i] - row_old[i])) * below[i]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add(total, c, x):
    for i in range(len(x)):
        total[i] += c * x[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _step_row(row, row_old, below, gradient, c, learning_rate, ahead, keep, keep_old):
    """Step a row of the top level, add its share to the gradient below, return its energy."""
    energy = 0.0
    kick = learning_rate * c
    if len(row_old) == 0:
        for i in range(len(row)):
            now = row[i]
            gradient[i] += c * now
            now = keep * now - kick * below[i]
            row[i] = now
            energy += now * now
    else:
        for i in range(len(row)):
            now, before = row[i], row_old[i]
            gradient[i] += c * (now + ahead * (now - before))
            row_old[i] = now
            now = keep * now + keep_old * before - kick * below[i]
            row[i] = now
            energy += now * now
    return energy


@njit(cache=True, nogil=True, fastmath=_FAST)
def _step(x, x_old, gradient, learning_rate, keep, keep_old):
    """Step what lies below the top level and return its energy."""
    energy = 0.0
    if len(x_old) == 0:
        for i in range(len(x)):
            x[i] = keep * x[i] - learning_rate * gradient[i]
            energy += x[i] * x[i]
    else:
        for i in range(len(x)):
            now = x[i]
            x[i] = keep * now + keep_old * x_old[i] - learning_rate * gradient[i]
            x_old[i] = now
            energy += x[i] * x[i]
    return energy


@njit(cache=True, nogil=True, fastmath=_FAST)
def settle(top, top_old, done, step, keep, keep_old):
    """Make up for what the rows of the top level have missed before `step`."""
    row_size = len(top) // max(len(done), 1)
    for k in range(len(done)):
        if done[k] < step:
            first = k * row_size
            row_old = top_old[first : first + row_size]
            catch_up(top[first : first + row_size], row_old, step - done[k], keep, keep_old)
