r"""SGD steps of the quadratic model as index polynomials, and their averages.

With :math:`h = \eta/D` and :math:`g_i = \sum_c J_{ci}w_cz_c` one step is, exactly,

.. math:: z_a' = z_a - h J_{ai}g_i + \tfrac{h^2}{2}Q_{aij}g_ig_j, \qquad
          J_{ai}' = J_{ai} - h Q_{aij}g_j

Averages are over the batches of every step, over the curvature to second order in it, and on
request over the initial residual and Jacobian.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sympy as sp

from quadmodel._util.checks import InputError, as_choice, as_integer
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    RESIDUAL,
    GaussianField,
    average,
    independent,
    independent_curvature,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import DATA, data_indices, parameter_indices
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant
from quadmodel.symbolic.algebra.sampling import SamplingScheme, average_batches
from quadmodel.symbolic.linear import NTK

# Terms grow about twentyfold per step.
MOST_STEPS = 4

_QUANTITIES = ("residual", "jacobian", "second_moment", "ntk")
_h = names.eta / names.D


class State(NamedTuple):
    """Residual (free index a) and Jacobian (a, i): a polynomial per power of the curvature."""

    residual: list[Polynomial]
    jacobian: list[Polynomial]


def batch_weights(step: int) -> Tensor:
    """Return the batch weights of one step, counted from 0."""
    return Tensor(f"w^{step}", (DATA,))


def start(order: int = 2) -> State:
    """Return the state before the first step, up to a power of the curvature."""
    (a,), (i,) = data_indices("a"), parameter_indices("i")
    none = [constant(0)] * order
    return State([RESIDUAL(a), *none], [JACOBIAN(a, i), *none])


def step(state: State, weights: Tensor) -> State:
    """Return the state after one more step of SGD, up to the power of the curvature of `state`."""
    (a, c), (i, j) = data_indices("ac"), parameter_indices("ij")
    z, jacobian = state
    weighted = _times(
        [p.rename({a: c}) for p in jacobian], [weights(c) * p.rename({a: c}) for p in z]
    )
    gradient = [p.sum(c) for p in weighted]  # free index i
    turned = [(CURVATURE(a, i, j) * p.rename({i: j})).sum(j) for p in gradient[:-1]]
    turned = [constant(0), *turned]  # Q g: one power of the curvature more than g
    linear, curved = _times(jacobian, gradient), _times(turned, gradient)
    change = [_h**2 / 2 * q.sum(i) - _h * p.sum(i) for p, q in zip(linear, curved, strict=True)]
    return State(
        [p + q for p, q in zip(z, change, strict=True)],
        [p - _h * q for p, q in zip(jacobian, turned, strict=True)],
    )


def expected(
    quantity: str,
    steps: int = 1,
    *,
    curvature: str | GaussianField = "kronecker",
    residual: str | GaussianField = "fixed",
    jacobian: str | GaussianField = "fixed",
    sampling: str | SamplingScheme | None = None,
) -> Polynomial:
    r"""Return the mean of a quantity after some steps, to second order in the curvature.

    Parameters
    ----------
    quantity : {"residual", "jacobian", "second_moment", "ntk"}
        :math:`z_a`, :math:`J_{ai}`, :math:`z_az_b`, or :math:`\Theta_{ab} = J_{ai}J_{bi}/D`.
    steps : int, optional
        Number of steps, at most 4.
    curvature : {"kronecker", "independent", "none"} or GaussianField, optional
        Law of Q; "kronecker" for :func:`~quadmodel.symbolic.kronecker_curvature`, "none"
        for the linear model.
    residual, jacobian : {"fixed", "independent"} or GaussianField, optional
        Whether to average over their values at the start too; "independent" entries have scale s.
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`; None leaves :math:`\gamma, \kappa`.

    Returns
    -------
    Polynomial
        In index form; :func:`~quadmodel.symbolic.as_matrix` writes it with matrices.

    Raises
    ------
    InputError
        If a name is unknown, there are too many steps, or the sampling scheme gives no moments of
        the order that is needed.

    Notes
    -----
    Exact for every D, P, B and learning rate, up to terms of fourth order in Q.

    References
    ----------
    .. [1] derivations/04-gradient-statistics.md and derivations/05-sharpening.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.expected("residual", curvature="independent")
    (1)*z_a + (-eta)*Theta_ab*z_b
    """
    as_choice("quantity", quantity, _QUANTITIES)
    steps = as_integer("steps", steps, low=0, high=MOST_STEPS)
    law = _curvature(curvature)
    fields = [*_field("residual", residual, RESIDUAL), *_field("jacobian", jacobian, JACOBIAN)]
    state = start(0 if law is None else 2)
    for t in range(steps):
        state = step(state, batch_weights(t))
    result = constant(0)
    for part in _product(quantity, state):
        for t in range(steps):
            part = average_batches(part, batch_weights(t), sampling)
        result = result + (part if law is None else average(part, law))
    if not any(f.tensor == JACOBIAN for f in fields):
        result = with_ntk(result)
    return average(result, *fields)


def difference(quantity: str, order: int, **options: Any) -> Polynomial:
    r"""Return the mean of a forward difference in time, from the start.

    Parameters
    ----------
    quantity : str
        As for :func:`expected`.
    order : int
        1 for :math:`X_1-X_0`, 2 for :math:`X_2-2X_1+X_0`, and so on; at most 4.
    **options : str, GaussianField or SamplingScheme
        As for :func:`expected`.

    Returns
    -------
    Polynomial

    Raises
    ------
    InputError
        As for :func:`expected`.

    Examples
    --------
    What one step without curvature changes in the mean residual:

    >>> from quadmodel import symbolic
    >>> symbolic.as_matrix(symbolic.difference("residual", 1, curvature="none"))
    (-eta)*Theta*z
    """
    order = as_integer("order", order, high=MOST_STEPS)
    result = constant(0)
    for t in range(order + 1):
        weight = (-1) ** (order - t) * sp.binomial(order, t)
        result = result + weight * expected(quantity, t, **options)
    return result


def with_ntk(polynomial: Polynomial) -> Polynomial:
    r"""Write :math:`J_{ai}J_{bi} = D\,\Theta_{ab}` wherever i occurs in these two only."""
    (a, b), (i,) = data_indices("ab"), parameter_indices("i")
    return fold(polynomial, (JACOBIAN(a, i) * JACOBIAN(b, i)).sum(i), NTK, names.D)


def _times(first: Sequence[Polynomial], second: Sequence[Polynomial]) -> list[Polynomial]:
    """Multiply two series in powers of the curvature, to their common order."""
    products = [constant(0) for _ in first]
    for n, m in itertools.product(range(len(first)), repeat=2):
        if n + m < len(first):
            products[n + m] = products[n + m] + first[n] * second[m]
    return products


def _product(quantity: str, state: State) -> list[Polynomial]:
    """Return the even powers of the curvature in a quantity; odd ones average to zero."""
    (a, b), (i,) = data_indices("ab"), parameter_indices("i")
    if quantity == "residual":
        return state.residual[::2]
    if quantity == "jacobian":
        return state.jacobian[::2]
    series = state.residual if quantity == "second_moment" else state.jacobian
    product = _times(series, [p.rename({a: b}) for p in series])[::2]
    return product if quantity == "second_moment" else [p.sum(i) * (1 / names.D) for p in product]


def _curvature(law: str | GaussianField) -> GaussianField | None:
    if isinstance(law, GaussianField):
        if law.tensor != CURVATURE:
            raise InputError(f"curvature must be a field for Q, got one for {law.tensor.name}")
        return law
    as_choice("curvature", law, ("kronecker", "independent", "none"))
    if law == "none":
        return None
    return kronecker_curvature() if law == "kronecker" else independent_curvature()


def _field(name: str, law: str | GaussianField, tensor: Tensor) -> list[GaussianField]:
    if isinstance(law, GaussianField):
        if law.tensor != tensor:
            raise InputError(f"{name} must be a field for {tensor.name}, got {law.tensor.name}")
        return [law]
    as_choice(name, law, ("fixed", "independent"))
    return [independent(tensor)] if law == "independent" else []
