"""Steps of the quadratic model to second order in the curvature, in the modes of the NTK.

The forces are the residual plus a white noise of given variance. No two-time function, response or
memory occurs here: steps are multiplied out and averaged by Wick's theorem.
"""

from __future__ import annotations

import sympy as sp

from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    RESIDUAL,
    GaussianField,
    average,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import DATA, data_indices, parameter_indices
from quadmodel.symbolic.algebra.names import D, P, eta, sigma
from quadmodel.symbolic.algebra.polynomials import Tensor, constant, delta
from quadmodel.symbolic.dynamics import with_ntk
from quadmodel.symbolic.linear import NTK, PLAIN_SGD

FACTOR, EIGENVALUE = Tensor("c", (DATA,)), Tensor("lambda", (DATA,))
(a, b), (i, j) = data_indices("ab"), parameter_indices("ij")


def product(one, other):
    """Multiply two series in the curvature."""
    return [sum((one[m] * other[n - m] for m in range(n + 1)), constant(0)) for n in range(3)]


def combined(coefficients, path):
    """Return the weighted sum of the latest points of a path."""
    total = [constant(0)] * 3
    for c, point in zip(coefficients, reversed(path), strict=False):
        total = [p + q * c for p, q in zip(total, point, strict=True)]
    return total


def slopes_and_residual(theta):
    """Return the series of J + Q theta and of the residual."""
    turned = [(CURVATURE(a, i, j) * p.rename({i: j})).sum(j) for p in theta]  # one order more
    z = [RESIDUAL(a), constant(0), constant(0)]
    z = [p + (JACOBIAN(a, i) * q).sum(i) for p, q in zip(z, theta, strict=True)]
    half = [p.sum(i) * sp.Rational(1, 2) for p in product([*turned[:2], constant(0)], theta)]
    return [JACOBIAN(a, i), *turned[:2]], [z[0], z[1] + half[0], z[2] + half[1]]


def trajectory(steps, noisy=True, optimizer=PLAIN_SGD, decay=0):
    """Return series of iterate and point of the gradient (free index i), at every time."""
    iterates, points = [[constant(0)] * 3], [[constant(0)] * 3]
    for t in range(steps):
        slopes, z = slopes_and_residual(points[t])
        if noisy:
            z = [z[0] + Tensor(f"xi_{t}", (DATA,))(a), *z[1:]]
        force = [p.sum(a) * (-eta / D) for p in product(slopes, z)]
        moved = combined(optimizer.update, iterates)
        moved = [p + q for p, q in zip(moved, force, strict=True)]
        iterates.append([p - q * (eta * decay) for p, q in zip(moved, points[t], strict=True)])
        points.append(combined(optimizer.extrapolation, iterates))
    return iterates, points


def mean_square(series, index, steps):
    """Return the mean of the sum of squares in modes, a polynomial over data alone."""
    square = product(series, series)
    law = kronecker_curvature(lambda x, y: sigma**2 * FACTOR(x) * delta(x, y), delta)
    noises = [
        GaussianField(
            Tensor(f"xi_{t}", (DATA,)),
            lambda x, y, t=t: sp.Symbol(f"v_{t}") * delta(*x, *y),
        )
        for t in range(steps)
    ]
    mean = average((square[0] + square[2]).sum(index), law, *noises)
    return with_ntk(mean).replace(NTK, lambda x, y: EIGENVALUE(x) * delta(x, y))


def limit(polynomial, moment):
    """Return the leading order for many data points and parameters, per data point.

    `moment(k, j, n)` is the mean of lambda^k c^j z_0^n over the modes.
    """
    q2, ratio, size = sp.symbols("q2 delta D", positive=True)
    total = {}
    for scale, factors, summed in polynomial.opened():
        value, powers = scale, {index: [0, 0, 0] for index in summed}
        for tensor, (index,) in factors:
            powers[index][(EIGENVALUE, FACTOR, RESIDUAL).index(tensor)] += 1
        value = value.subs({sigma: sp.sqrt(q2 * ratio), P: size / ratio, D: size})
        value = sp.expand(value * size ** len(summed) / size)
        power = sp.Poly(sp.expand(value * size**9), size).degree() - 9 if value else 0
        leading = sp.expand(value).coeff(size, power)
        for numbers in powers.values():
            leading *= moment(*numbers)
        total[power] = total.get(power, 0) + leading
    assert not any(sp.expand(v) for n, v in total.items() if n > 0)
    return sp.expand(total.get(0, 0))
