"""Compiled loops of models with curvature: many replicas step together, as `turns` says.

Data points add their gradients to the replicas that drew them, so that what belongs to a point, its
Q above all, is read once for all replicas. That is written here for any processor, and in
`vector_dense` and `vector_low_rank` for those with wide vectors.

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

from quadmodel._util.compiled import compiled_inner
from quadmodel.simulation._kernels.sums import dot, fused
from quadmodel.simulation._kernels.turns import in_turns

# Replicas that share one matrix product with a Q_i.
_GATHERED = 64


@compiled_inner
def rows_of_part(pointer, part, parts):
    """Return the range of a part's data points: as many replicas for each part, roughly."""
    n_data = len(pointer) - 1
    first = _first_from(pointer, n_data, part * pointer[-1] / parts)
    last = _first_from(pointer, n_data, (part + 1) * pointer[-1] / parts)
    return first, n_data if part + 1 == parts else last


@compiled_inner
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


@compiled_inner
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


@compiled_inner
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


advance_dense = in_turns(dense_rows)
advance_low_rank = in_turns(low_rank_rows)
