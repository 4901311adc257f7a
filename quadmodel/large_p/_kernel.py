"""Compiled loop of the large-P limit: SGD on coefficients of basis states; arrays in, arrays out.

The state of a replica holds the coefficients tau_0, tau_1, ..., tau_L of orders 0 to L (the
truncation order) one after the other; tau_l has l axes of data indices and a last one of length r,
the rank of the Jacobian. In these coordinates every inner product is the plain one. Row k of
tau_(l+1), with first data index k, has the shape of tau_l.

Formula, with mixing R (R R^T is the curvature covariance of the data points) and curvature strength
q; residuals z in units of the output, learning rate in units of 1 / NTK eigenvalue:

    z_a = z0_a + J_a . tau_0 + q sum_k R_ak sum_l <tau_(l+1)[k], tau_l>
    gradient of tau_l = [l = 0] sum_a zeta_a J_a + q sum_k rho_k (tau_(l+1)[k] + e_k x tau_(l-1))

with zeta_a = w_a z_a / B, w_a the multiplicity of data point a in the batch, and rho = R^T zeta:
the first term annihilates the leading data index k, the second one creates it.

Only *active* data indices matter to a step, those with R_ak != 0 for a point of the batch: with
R = 1 a step reads and writes the batch's rows of the highest order and no others. Rows of that
order are updated lazily: what momentum and weight decay do to a row while it is not active is a
linear recursion, applied when the row is needed; `current` holds the step that each has reached.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.batches import draw_batch, in_order
from quadmodel.simulation._kernels.sums import dot, fused, squared_norm

# Phases of a step are inlined: calls would cost as much as a step of few data points.
_phase = njit(inline="always")


class Limit(NamedTuple):
    """What drives the coefficients; with `independent`, R = 1 and `mixing` is not read."""

    jacobian: Any
    residual: Any
    mixing: Any
    independent: bool
    curvature_strength: float
    truncation_order: int


class Update(NamedTuple):
    """Step x' = keep x + keep_previous x_previous - learning_rate gradient, and its batches.

    The gradient is taken at x + extrapolation (x - x_previous). A replica has diverged when the
    squared norm of what a step has written is not below `divergence_limit`.
    """

    learning_rate: float
    batch_size: int
    extrapolation: float
    keep: float
    keep_previous: float
    scheme: int
    seed: Any
    model_index: int
    divergence_limit: float


class Coefficients(NamedTuple):
    """State of replicas, a row each; `previous` has no columns where there is no momentum."""

    state: Any
    previous: Any
    current: Any
    replica_number: Any
    diverged_at: Any


@compiled
def advance(limit, update, coefficients, first_step, n_steps):
    """Advance replicas in place by `n_steps`; those that diverge are left where they are."""
    state, older, diverged_at = coefficients.state, coefficients.previous, coefficients.diverged_at
    jacobian, residual, mixing = limit.jacobian, limit.residual, limit.mixing
    independent, strength = limit.independent, limit.curvature_strength
    (n_data, rank), n_indices = jacobian.shape, coefficients.current.shape[1]
    start, size = _layout(limit.truncation_order, rank, n_indices)
    lower = start[limit.truncation_order]
    shuffled, swaps = in_order(n_data), np.empty(n_data, np.int64)
    batch, points = np.empty(n_data, np.int64), np.empty(n_data, np.int64)
    multiplicity, zeta = np.zeros(n_data), np.empty(n_data)
    active, overlap, rho = in_order(n_indices), np.empty(n_indices), np.empty(n_indices)
    extrapolated, gradient = np.empty(lower), np.empty(lower)
    for replica in range(len(diverged_at)):
        number, current = coefficients.replica_number[replica], coefficients.current[replica]
        x, previous = state[replica], older[replica]
        for t in range(first_step, first_step + n_steps):
            if diverged_at[replica] >= 0:
                break
            n_points = _draw_points(update, number, t, shuffled, swaps, batch, points, multiplicity)
            if independent:
                n_active = n_points
                for k in range(n_active):  # slices take two seconds to compile
                    active[k] = points[k]
            else:
                n_active = n_indices
            some, rows = points[:n_points], active[:n_active]
            point = _evaluation_point(x[:lower], previous, update.extrapolation, extrapolated)
            _contract(update, strength, start, size, x, previous, current, point, t, rows, overlap)
            _weigh(
                update.batch_size,
                jacobian,
                residual,
                mixing,
                independent,
                point,
                some,
                multiplicity,
                overlap,
                zeta,
            )
            _project(jacobian, mixing, independent, some, zeta, rho, gradient)
            squared = _step_rows(
                update, strength, start, size, x, previous, point, rows, rho, gradient
            )
            squared += _step_lower_orders(
                x[:lower],
                previous,
                gradient,
                update.learning_rate,
                update.keep,
                update.keep_previous,
            )
            if not squared < update.divergence_limit:
                diverged_at[replica] = t + 1


@compiled_inner
def _layout(truncation_order, rank, n_indices):
    """Return where every order starts, and its size."""
    size = np.empty(truncation_order + 1, np.int64)
    start = np.zeros(truncation_order + 2, np.int64)
    for n in range(truncation_order + 1):
        size[n] = rank * n_indices**n
        start[n + 1] = start[n] + size[n]
    return start, size


@_phase
def _draw_points(update, replica_number, t, shuffled, swaps, batch, points, multiplicity):
    """List the distinct data points of a batch with their multiplicities, return their number."""
    length = draw_batch(
        update.seed,
        update.model_index,
        replica_number,
        t,
        update.scheme,
        len(points),
        update.batch_size,
        shuffled,
        swaps,
        batch,
    )
    n_points = 0
    for k in range(length):
        a = batch[k]
        if multiplicity[a] == 0.0:
            points[n_points] = a
            n_points += 1
        multiplicity[a] += 1.0
    return n_points


@_phase
def _evaluation_point(x, previous, extrapolation, extrapolated):
    """Return where the gradient is taken, of the orders below the highest."""
    if extrapolation == 0.0:
        return x
    for i in range(len(x)):
        extrapolated[i] = x[i] + extrapolation * (x[i] - previous[i])
    return extrapolated


@_phase
def _contract(update, strength, start, size, x, previous, current, point, t, active, overlap):
    """Bring active rows of the highest order up to date; overlap = q sum_l <tau_(l+1)[k], tau_l>.

    Entries of `overlap` and of `rho` are by position in `active`.
    """
    order = len(size) - 1
    at_rest = update.keep == 1.0 and update.keep_previous == 0.0
    for j in range(len(active)):
        k = active[j]
        first = start[order] + k * size[order - 1]
        last = first + size[order - 1]
        row, row_previous = x[first:last], previous[first:last]
        if not at_rest and current[k] < t:
            catch_up(row, row_previous, t - current[k], update.keep, update.keep_previous)
        current[k] = t + 1
        below = point[start[order - 1] : start[order]]
        total = _overlap(row, row_previous, below, update.extrapolation)
        for n in range(order - 1):
            total += dot(_row(point, start, size, n + 1, k), point[start[n] : start[n + 1]])
        overlap[j] = strength * total


@_phase
def _weigh(
    batch_size, jacobian, residual, mixing, independent, point, points, multiplicity, overlap, zeta
):
    """Set zeta_a = w_a z_a / B, by position in `points`, and the multiplicities w to zero."""
    for p in range(len(points)):
        a = points[p]
        z = residual[a] + dot(jacobian[a], point[: jacobian.shape[1]])
        if independent:
            z += overlap[p]
        else:
            z += dot(mixing[a], overlap)
        zeta[p] = multiplicity[a] * z / batch_size
        multiplicity[a] = 0.0


@_phase
def _project(jacobian, mixing, independent, points, zeta, rho, gradient):
    """Begin the gradient with sum_a zeta_a J_a, and set rho = R^T zeta."""
    gradient[:] = 0.0
    for p in range(len(points)):
        _add(gradient[: jacobian.shape[1]], zeta[p], jacobian[points[p]])
    if independent:
        for k in range(len(points)):
            rho[k] = zeta[k]
    else:
        rho[:] = 0.0
        for p in range(len(points)):
            _add(rho, zeta[p], mixing[points[p]])


@_phase
def _step_rows(update, strength, start, size, x, previous, point, active, rho, gradient):
    """Step active rows of the highest order, complete the gradient below; return |rows|^2."""
    order = len(size) - 1
    squared = 0.0
    for j in range(len(active)):
        k, c = active[j], strength * rho[j]
        for n in range(order - 1):
            _add(gradient[start[n] : start[n + 1]], c, _row(point, start, size, n + 1, k))
            _add(_row(gradient, start, size, n + 1, k), c, point[start[n] : start[n + 1]])
        first = start[order] + k * size[order - 1]
        last = first + size[order - 1]
        squared += _step_row(
            x[first:last],
            previous[first:last],
            point[start[order - 1] : start[order]],
            gradient[start[order - 1] : start[order]],
            c,
            update.learning_rate,
            update.extrapolation,
            update.keep,
            update.keep_previous,
        )
    return squared


@compiled_inner
def catch_up(row, previous, elapsed, keep, keep_previous):
    """Take `elapsed` steps without gradient: x' = keep x + keep_previous x_previous."""
    if len(previous) == 0:
        row *= keep**elapsed
        return
    # The power of [[keep, keep_previous], [1, 0]], by squaring.
    a, b, c, d = 1.0, 0.0, 0.0, 1.0
    p, q, r, s = keep, keep_previous, 1.0, 0.0
    while elapsed > 0:
        if elapsed & 1:
            a, b, c, d = a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s
        p, q, r, s = p * p + q * r, p * q + q * s, r * p + s * r, r * q + s * s
        elapsed >>= 1
    for i in range(len(row)):
        now, before = row[i], previous[i]
        row[i] = a * now + b * before
        previous[i] = c * now + d * before


@compiled_inner
def _row(x, start, size, n, k):
    """Return the row with first data index k of order n."""
    first = start[n] + k * size[n - 1]
    return x[first : first + size[n - 1]]


@compiled_inner
def _overlap(row, previous, below, extrapolation):
    """Return the inner product of an extrapolated row with the order below."""
    total = dot(row, below)
    if extrapolation != 0.0:
        total += extrapolation * (total - dot(previous, below))
    return total


@compiled
def _add(total, c, x):
    for i in range(len(x)):
        total[i] = fused(c, x[i], total[i])


@compiled_inner
def _step_row(row, previous, below, gradient, c, learning_rate, extrapolation, keep, keep_previous):
    """Step a row of the highest order, add its part to the gradient below; return |row|^2."""
    source = -learning_rate * c
    if len(previous) == 0:
        for i in range(len(row)):
            now = row[i]
            gradient[i] = fused(c, now, gradient[i])
            row[i] = fused(source, below[i], keep * now)
    else:
        for i in range(len(row)):
            now, before = row[i], previous[i]
            gradient[i] = fused(c, fused(extrapolation, now - before, now), gradient[i])
            previous[i] = now
            row[i] = fused(source, below[i], fused(keep, now, keep_previous * before))
    return squared_norm(row)


@compiled_inner
def _step_lower_orders(x, previous, gradient, learning_rate, keep, keep_previous):
    """Step what lies below the highest order and return its squared norm."""
    if len(previous) == 0:
        for i in range(len(x)):
            x[i] = fused(-learning_rate, gradient[i], keep * x[i])
    else:
        for i in range(len(x)):
            now = x[i]
            x[i] = fused(-learning_rate, gradient[i], fused(keep, now, keep_previous * previous[i]))
            previous[i] = now
    return squared_norm(x)


@compiled
def bring_up_to_date(highest, previous, current, step, update):
    """Apply to every row of the highest order what it has missed before `step`."""
    size = len(highest) // max(len(current), 1)
    for k in range(len(current)):
        if current[k] < step:
            rows = slice(k * size, (k + 1) * size)
            elapsed = step - current[k]
            catch_up(highest[rows], previous[rows], elapsed, update.keep, update.keep_previous)
