"""SGD in plain loops, entry by entry, for batches given as lists of data points."""

from __future__ import annotations

from collections.abc import Sequence


def parameter_space(
    residual: Sequence[float],
    jacobian: Sequence[Sequence[float]],
    curvature: Sequence[Sequence[Sequence[float]]] | None,
    drawn: Sequence[Sequence[int]],
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[list[list[float]], list[list[float]]]:
    """Run SGD on a quadratic model; return parameters and residuals at steps 0, 1, ...

    `drawn` holds one list of data points per step; a point that occurs twice counts twice, and
    every occurrence carries the weight D/B.
    """
    n_data, n_params = len(residual), len(jacobian[0])
    theta = [0.0] * n_params
    before = list(theta)
    parameters = [list(theta)]
    residuals = [_residual(residual, jacobian, curvature, theta)]
    for batch in drawn:
        point = []
        for k in range(n_params):
            extrapolated = momentum * (theta[k] - before[k]) if nesterov else 0.0
            point.append(theta[k] + extrapolated)
        z = _residual(residual, jacobian, curvature, point)
        slopes = _jacobian(jacobian, curvature, point)
        after = []
        for k in range(n_params):
            gradient = 0.0
            for a in batch:
                gradient += (n_data / batch_size) * slopes[a][k] * z[a] / n_data
            gradient += weight_decay * point[k]
            velocity = momentum * (theta[k] - before[k])
            after.append(theta[k] + velocity - learning_rate * gradient)
        before, theta = theta, after
        parameters.append(list(theta))
        residuals.append(_residual(residual, jacobian, curvature, theta))
    return parameters, residuals


def function_space(
    residual: Sequence[float],
    ntk: Sequence[Sequence[float]],
    drawn: Sequence[Sequence[int]],
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> list[list[float]]:
    """Run SGD on a linear model given by its NTK; return residuals at steps 0, 1, ..."""
    n_data = len(residual)
    start = [float(entry) for entry in residual]
    z, before = list(start), list(start)
    residuals = [list(z)]
    for batch in drawn:
        seen = []
        for i in range(n_data):
            extrapolated = momentum * (z[i] - before[i]) if nesterov else 0.0
            seen.append(z[i] + extrapolated)
        after = []
        for i in range(n_data):
            gradient = 0.0
            for a in batch:
                gradient += ntk[i][a] * (n_data / batch_size) * seen[a]
            gradient += weight_decay * (seen[i] - start[i])
            velocity = momentum * (z[i] - before[i])
            after.append(z[i] + velocity - learning_rate * gradient)
        before, z = z, after
        residuals.append(list(z))
    return residuals


def _residual(residual, jacobian, curvature, theta) -> list[float]:
    """Return z_0 + J theta + Q(theta, theta)/2."""
    out = []
    for a in range(len(residual)):
        total = float(residual[a])
        for k in range(len(theta)):
            total += jacobian[a][k] * theta[k]
            if curvature is not None:
                for m in range(len(theta)):
                    total += 0.5 * curvature[a][k][m] * theta[k] * theta[m]
        out.append(float(total))
    return out


def _jacobian(jacobian, curvature, theta) -> list[list[float]]:
    """Return J + Q(theta, .)."""
    out = []
    for a in range(len(jacobian)):
        row = []
        for k in range(len(theta)):
            total = float(jacobian[a][k])
            if curvature is not None:
                for m in range(len(theta)):
                    total += curvature[a][k][m] * theta[m]
            row.append(float(total))
        out.append(row)
    return out
