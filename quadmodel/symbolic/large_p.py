r"""The limit of many parameters: SGD on the quadratic model as a closed system of tensors.

Parameters move in the span of the basis states of a free Fock space
(:mod:`~quadmodel.symbolic.fock`). Their coefficients :math:`T_0, T_1, \dots` obey a system of
equations whose size does not depend on P. Truncated at L leading data indices, it is gradient
descent on a model of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import sympy as sp

from quadmodel._util.checks import as_integer
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import JACOBIAN
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, Index, data_indices
from quadmodel.symbolic.algebra.names import D, eta
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, delta
from quadmodel.symbolic.fock import (
    CURVATURE_COVARIANCE,
    Vector,
    act,
    fresh,
    inner_product,
    row_vector,
    with_gram,
)

START = Tensor("z_0", (DATA,))
FORCE = Tensor("zeta", (DATA,))  # W z
# Truncation order 1 as a network: first and second layer, in the basis of the Jacobian's rows
FIRST = Tensor("c", (DATA,))
SECOND = Tensor("A", (DATA, DATA))

# Coefficients of this order have 5 indices, and their products twice as many.
HIGHEST_TRUNCATION_ORDER = 4


class LargeP(NamedTuple):
    r"""The truncated system.

    `residual` is :math:`z_a`, `gradients` are the coefficients :math:`w_a^l` of the gradient of
    :math:`z_a`, `changes` are :math:`T_l' - T_l`, and `gram` is :math:`D\Theta_{ab}`. Free indices
    a and b are data points; c, d, ... are the data indices and, last, the row of a basis state.
    """

    residual: Polynomial
    gradients: list[Polynomial]
    changes: list[Polynomial]
    gram: Polynomial


def coefficients(truncation_order: int) -> list[Tensor]:
    r"""Return the tensors :math:`T_0 \dots T_L`, with indices for data points and row."""
    return [Tensor(f"T_{n}", (DATA,) * (n + 1)) for n in range(truncation_order + 1)]


def large_p_step(truncation_order: int = 1) -> LargeP:
    r"""Derive model, gradient and SGD step in the limit of many parameters, truncated.

    Parameters
    ----------
    truncation_order : int, optional
        L, the largest number of leading data indices of basis states, from 0 (the linear model)
        to 4.

    Returns
    -------
    LargeP

    Raises
    ------
    InputError
        If `truncation_order` is out of range.

    Notes
    -----
    :math:`\theta` is the vector with coefficients T, the model
    :math:`z_a = z_{0a} + \langle a|\theta\rangle + \tfrac12\langle\theta|Q_a\theta\rangle`, its
    gradient :math:`w_a = |a\rangle + Q_a\theta`, and a step
    :math:`\theta' = \theta - (\eta/D)\sum_a\zeta_aw_a` with :math:`\zeta = Wz`. The truncation
    restricts the model to a subspace of its parameters, where the step is gradient descent too.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> from quadmodel.symbolic import large_p
    >>> large_p.large_p_step(1).residual
    (1)*z_0_a + (1)*G_0_ab*T_0_b + (1)*G_0_bc*T_0_b*T_1_dc*Xi_ad
    """
    order = as_integer("truncation_order", truncation_order, low=0, high=HIGHEST_TRUNCATION_ORDER)
    a, b = data_indices("ab")
    theta = coefficients(order)
    places = data_indices("cdefg")

    def gradient(point: Index) -> Vector:
        return [
            lambda *i, one=one, other=other: one(*i) + other(*i)
            for one, other in zip(row_vector(point, order), act(point, theta), strict=True)
        ]

    quadratic = inner_product(theta, act(a, theta)) * sp.Rational(1, 2)
    gradients = [w(*places[: length + 1]) for length, w in enumerate(gradient(a))]
    return LargeP(
        START(a) + inner_product(row_vector(a, order), theta) + quadratic,
        gradients,
        [(FORCE(a) * w).sum(a) * (-eta / D) for w in gradients],
        inner_product(gradient(a), gradient(b)),
    )


class Network(NamedTuple):
    r"""A network of two layers: residual, changes of both layers, and :math:`D\Theta`."""

    residual: Polynomial
    first: Polynomial
    second: Polynomial
    gram: Polynomial


def order_one_network() -> Network:
    r"""Return truncation order 1 in :math:`c = T_0` and :math:`A = I + \Xi T_1`."""
    system = large_p_step(1)
    a, b, c, d = data_indices("abcd")
    T_0, T_1 = coefficients(1)
    product = (CURVATURE_COVARIANCE(a, c) * T_1(c, b)).sum(c)

    def named(polynomial: Polynomial) -> Polynomial:
        folded = fold(polynomial, product, SECOND).replace(T_0, FIRST)
        return folded.replace(SECOND, lambda i, k: SECOND(i, k) - delta(i, k))

    first, second = system.changes
    second = (CURVATURE_COVARIANCE(a, c) * second.rename({d: b})).sum(c)
    return Network(
        named(system.residual), named(first).rename({c: a}), named(second), named(system.gram)
    )


def two_layer_network() -> Network:
    r"""Return gradient descent on the network :math:`z = z_0 + Wx`, written in c and A.

    With :math:`x = J^\top c` and :math:`W = AJ`, where :math:`\Xi` is the metric of the rows of W.
    The changes are those of c and A.
    """
    a, b, c, d = data_indices("abcd")
    i = fresh(PARAMETERS)
    layer, hidden = Tensor("W", (DATA, PARAMETERS)), Tensor("x", (PARAMETERS,))

    def in_rows(polynomial: Polynomial) -> Polynomial:
        """Put W = A J and x = J^T c."""
        layered = polynomial.replace(layer, lambda k, p: (SECOND(k, d) * JACOBIAN(d, p)).sum(d))
        return layered.replace(hidden, lambda p: (JACOBIAN(d, p) * FIRST(d)).sum(d))

    def of_rows(polynomial: Polynomial) -> Polynomial:
        """Return m_b of sum_b m_b J_bi."""
        return in_rows(polynomial).replace(JACOBIAN, lambda k, _: delta(k, b))

    # dz_a/dx_i = W_ai and dz_a/dW_ci = delta_ac x_i
    residual = START(a) + (layer(a, i) * hidden(i)).sum(i)
    of_first = (FORCE(a) * layer(a, i)).sum(a) * (-eta / D)
    of_second = (CURVATURE_COVARIANCE(a, c) * FORCE(c)).sum(c) * hidden(i) * (-eta / D)
    squared_norm = (hidden(i) * hidden(i)).sum(i)
    gram = (layer(a, i) * layer(b, i)).sum(i) + CURVATURE_COVARIANCE(a, b) * squared_norm
    return Network(
        with_gram(in_rows(residual)),
        of_rows(of_first).rename({b: a}),
        of_rows(of_second),
        with_gram(in_rows(gram)),
    )
