r"""The average over the curvature in the response-field integral, and the kernels that it leaves.

The equations of motion are held by response fields, :math:`\hat x_t` for the step that leads from
:math:`x_t` to :math:`x_{t+1}` and :math:`\hat z_t` for the residual:

.. math:: \exp i\sum_t\left\{\hat x_t\cdot\left[x_{t+1} - x_t
          + \tfrac{\eta}{D}\sum_a\zeta_a(t)(J_a + Q_ay_t)\right]
          + \sum_a\hat z_a(t)\left[z_a(t) - z_{0a} - J_ay_t - \tfrac12y_t^\top Q_ay_t\right]\right\}

with y the point where the gradient is taken. Its mean over the curvature couples all times through
inner products only, which do not fluctuate as D and P grow together. What multiplies one of them
in the exponent, with the others at their means, is the covariance of a noise or the kernel of a
memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sympy as sp

from quadmodel.symbolic.algebra.gaussian import CURVATURE, average, kronecker_curvature
from quadmodel.symbolic.algebra.indices import (
    DATA,
    PARAMETERS,
    Factor,
    TensorType,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.names import D, P, eta, sigma
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta

MODE_FACTOR = Tensor("c", (DATA,))  # of the curvature's covariance sigma^2 c_a delta_ab
mode_factor = sp.Symbol("c", nonnegative=True)

# Families of vectors, one for each time
_POINT, _ITERATE, _STEP = "y", "x", r"\hat x"
_FORCE, _RESIDUAL, _SEEN = "zeta", r"\hat z", r"\hat z^x"

Time = Any  # an integer or a symbol
Dot = tuple[str, Time, str, Time]  # of two vectors: family and time of each
Exponent = dict[tuple[Dot, ...], sp.Expr]
Pair = tuple[Time, Time]


class Kernels(NamedTuple):
    r"""What the curvature does to parameters and residual, each by pairs of times.

    `parameter_noise` is the covariance of a noise on an entry of x; `residual_noise` that of a
    noise on the residual of a mode, with its factor c. `parameter_memory` [t, s] multiplies
    :math:`y(s)` in the step from t to t + 1, `residual_memory` [t, s] multiplies
    :math:`\zeta(s)` in :math:`z(t)`. `seen_noise`, `seen_cross_noise` and `seen_memory` are those
    of the residual at the iterate x, the second one with the noise of the residual at y.
    `back_reaction` lists what multiplies the products of the points and of the forces themselves:
    nothing, by causality.
    """

    parameter_noise: dict[Pair, sp.Expr]
    residual_noise: dict[Pair, sp.Expr]
    parameter_memory: dict[Pair, sp.Expr]
    residual_memory: dict[Pair, sp.Expr]
    seen_noise: dict[Pair, sp.Expr]
    seen_cross_noise: dict[Pair, sp.Expr]
    seen_memory: dict[Pair, sp.Expr]
    back_reaction: list[sp.Expr]


def curvature_exponent(times: Sequence[Time], *, iterate: bool = False) -> Polynomial:
    r"""Return S of the factor :math:`e^{iS}` that holds the curvature.

    Parameters
    ----------
    times : sequence
        Names of the steps, the earliest first.
    iterate : bool, optional
        Whether the residual is seen at the iterate x as well.

    Returns
    -------
    Polynomial
    """
    (a,), (i, j) = data_indices("a"), parameter_indices("ij")
    families = [(_RESIDUAL, _POINT)] + ([(_SEEN, _ITERATE)] if iterate else [])
    total = constant(0)
    for t in times:
        step = _vector(_FORCE, t)(a) * _vector(_STEP, t)(i) * _vector(_POINT, t)(j)
        total = total + (step * CURVATURE(a, i, j)).sum(a, i, j) * (eta / D)
        for field, point in families:
            square = _vector(point, t)(i) * _vector(point, t)(j) * CURVATURE(a, i, j)
            total = total - (_vector(field, t)(a) * square).sum(a, i, j) * sp.Rational(1, 2)
    return total


def averaged_exponent(times: Sequence[Time], *, iterate: bool = False) -> Exponent:
    r"""Return the exponent :math:`-\tfrac12E S^2` after the average over the curvature.

    Parameters
    ----------
    times : sequence
        As for :func:`curvature_exponent`.
    iterate : bool, optional
        As for :func:`curvature_exponent`.

    Returns
    -------
    dict
        Coefficients of products of inner products. Those over the data carry the modes' factors c.

    Notes
    -----
    With :math:`E[Q_{aij}Q_{bkl}] = \sigma^2c_a\delta_{ab}(\delta_{ik}\delta_{jl}
    + \delta_{il}\delta_{jk})`, a the modes of the NTK.
    """
    law = kronecker_curvature(lambda a, b: sigma**2 * MODE_FACTOR(a) * delta(a, b), delta)
    exponent = curvature_exponent(times, iterate=iterate)
    mean = average(exponent * exponent, law) * sp.Rational(-1, 2)
    known: dict[TensorType, tuple[str, Time]] = {
        _vector(family, t): (family, t)
        for family in (_POINT, _ITERATE, _STEP, _FORCE, _RESIDUAL, _SEEN)
        for t in times
    }
    order = {t: n for n, t in enumerate(times)}
    total: Exponent = {}
    for scale, factors, _ in mean.opened():
        dots = tuple(sorted(_dots(factors, known, order), key=repr))
        total[dots] = total.get(dots, sp.S.Zero) + scale
    return total


def mean_field_kernels(times: Sequence[Time], *, iterate: bool = False) -> Kernels:
    r"""Derive the four kernels of the mean-field theory.

    Parameters
    ----------
    times : sequence
        Names of the steps, the earliest first: integers or symbols.
    iterate : bool, optional
        Whether to derive the residual at the iterate x, too.

    Returns
    -------
    Kernels
        In :math:`\sigma, \eta, D, P`, the mode's factor c and the two-time functions C, Z, u, G;
        with `iterate` in the two-time functions Cxy, Cxx and ux of the iterate, too. The unit of x
        is that of :math:`\theta`; C is the mean of :math:`y_t\cdot y_s`.

    Notes
    -----
    At the saddle :math:`y_t\cdot y_s = C(t,s)`, :math:`y_t\cdot\hat x_s = iPu(t,s+1)`,
    :math:`\sum c_a\zeta_a(t)\zeta_a(s) = DZ(t,s)` and
    :math:`\sum c_a\zeta_a(t)\hat z_a(s) = iDG(t,s)`; products of two response fields vanish. A
    noise with covariance N adds :math:`-\tfrac12\sum N(t,s)\,\hat x_t\cdot\hat x_s` to the
    exponent, a memory K adds :math:`-i\sum K(t,s)\,\hat x_t\cdot y_s`.

    References
    ----------
    .. [1] derivations/09-mean-field.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.mean_field_kernels([0, 1]).residual_noise[1, 0]
    c*sigma**2*C(1, 0)**2/2
    """
    order = {t: n for n, t in enumerate(times)}
    linear: dict[Dot, sp.Expr] = {}
    for dots, scale in averaged_exponent(times, iterate=iterate).items():
        for n, dot in enumerate(dots):
            others = [_saddle(d, order) for m, d in enumerate(dots) if m != n]
            linear[dot] = linear.get(dot, sp.S.Zero) + scale * sp.Mul(*others)

    def noise(one: str, other: str, factor: Any) -> dict[Pair, sp.Expr]:
        """Read the covariance; a pair of different times stands for both of their orders."""
        found = {}
        for t, s in itertools.product(times, repeat=2):
            dot = _dot((one, t), (other, s), order)
            twice = 2 if (one, t) == (other, s) else 1
            found[t, s] = -twice * factor * sp.expand(linear.get(dot, sp.S.Zero))
        return found

    def memory(field: str, source: str, factor: Any) -> dict[Pair, sp.Expr]:
        return {
            (t, s): sp.expand(
                factor * sp.I * linear.get(_dot((field, t), (source, s), order), sp.S.Zero)
            )
            for t, s in itertools.product(times, repeat=2)
        }

    back = [
        sp.expand(scale)
        for (one, _, other, _), scale in linear.items()
        if {one, other} <= {_POINT, _ITERATE} or {one, other} == {_FORCE}
    ]
    return Kernels(
        noise(_STEP, _STEP, 1),
        noise(_RESIDUAL, _RESIDUAL, mode_factor),
        memory(_STEP, _POINT, 1),
        memory(_RESIDUAL, _FORCE, mode_factor),
        noise(_SEEN, _SEEN, mode_factor),
        noise(_SEEN, _RESIDUAL, mode_factor),
        memory(_SEEN, _FORCE, mode_factor),
        back,
    )


def _vector(family: str, time: Time) -> Tensor:
    over_data = family in (_FORCE, _RESIDUAL, _SEEN)
    return Tensor(f"{family}_{time}", (DATA if over_data else PARAMETERS,))


def _dots(
    factors: Sequence[Factor],
    known: dict[TensorType, tuple[str, Time]],
    order: dict[Time, int],
) -> Iterator[Dot]:
    """Join vectors that share an index."""
    joined: dict[Any, list[tuple[str, Time]]] = {}
    for tensor, (index,) in factors:
        if tensor != MODE_FACTOR:
            joined.setdefault(index, []).append(known[tensor])
    for one, other in joined.values():
        yield _dot(one, other, order)


def _dot(one: tuple[str, Time], other: tuple[str, Time], order: dict[Any, int]) -> Dot:
    """Put response fields first, then later times."""
    families = [_STEP, _SEEN, _RESIDUAL, _ITERATE, _POINT, _FORCE]
    first, second = sorted((one, other), key=lambda v: (families.index(v[0]), -order[v[1]]))
    return (*first, *second)


def _saddle(dot: Dot, order: dict[Time, int]) -> sp.Expr:
    """Return the mean of an inner product."""
    one, t, other, s = dot
    two_times = {
        (_POINT, _POINT): "C",
        (_ITERATE, _POINT): "Cxy",
        (_ITERATE, _ITERATE): "Cxx",
        (_FORCE, _FORCE): "Z",
    }
    if (one, other) in two_times:
        mean = sp.Function(two_times[one, other])(t, s)
        return D * mean if one == _FORCE else mean
    if one == _STEP and other in (_POINT, _ITERATE):
        # A force in step t is first seen at t + 1.
        name = "u" if other == _POINT else "ux"
        return sp.I * P * sp.Function(name)(s, t + 1) if order[s] > order[t] else sp.S.Zero
    if one == _RESIDUAL and other == _FORCE:
        return sp.I * D * sp.Function("G")(s, t) if order[s] >= order[t] else sp.S.Zero
    return sp.S.Zero
