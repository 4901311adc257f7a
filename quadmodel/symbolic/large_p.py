r"""The limit of many parameters: SGD on the quadratic model as a closed system over words.

Parameters only ever move along words. Written for the coefficients of orthogonal words, the model
and its gradient become a system of tensors :math:`T_0, T_1, \dots`, whatever P; cut at a length,
it is the gradient descent of a model of its own.
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
    LETTERS,
    Vector,
    act,
    fresh,
    inner_product,
    row_vector,
    with_gram,
)

START = Tensor("z_0", (DATA,))
FORCE = Tensor("zeta", (DATA,))  # W z
# Level 1 as a network: first and second layer, in the basis of the Jacobian's rows
FIRST = Tensor("c", (DATA,))
SECOND = Tensor("A", (DATA, DATA))

# Words of this length have 5 indices, and their products twice as many.
HIGHEST_LEVEL = 4


class LargeP(NamedTuple):
    r"""The system at some level; a and b are data points, c, d, ... a word's letters and row.

    `residual` :math:`z_a`, `gradients` the coefficients :math:`w_a^l` of :math:`z_a`'s gradient,
    `changes` :math:`T_l' - T_l`, and `gram` :math:`D\Theta_{ab}`.
    """

    residual: Polynomial
    gradients: list[Polynomial]
    changes: list[Polynomial]
    gram: Polynomial


def coefficients(level: int) -> list[Tensor]:
    r"""Return the tensors :math:`T_0 \dots T_L`, with indices for letters and row.

    Parameters
    ----------
    level : int
        Longest words that are kept.

    Returns
    -------
    list of Tensor
    """
    return [Tensor(f"T_{length}", (DATA,) * (length + 1)) for length in range(level + 1)]


def large_p_step(level: int = 1) -> LargeP:
    r"""Derive model, gradient and SGD step over words of at most `level` letters.

    Parameters
    ----------
    level : int, optional
        L, from 0 (the linear model) to 4.

    Returns
    -------
    LargeP

    Raises
    ------
    InputError
        If `level` is out of range.

    Notes
    -----
    :math:`\theta` is the vector with coefficients T, the model
    :math:`z_a = z_{0a} + \langle a|\theta\rangle + \tfrac12\langle\theta|Q_a\theta\rangle`, its
    gradient :math:`w_a = |a\rangle + Q_a\theta`, and a step
    :math:`\theta' = \theta - (\eta/D)\sum_a\zeta_aw_a` with :math:`\zeta = Wz`. Dropping longer
    words puts the model on a subspace, so that the step is gradient descent there too.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> from quadmodel.symbolic import large_p
    >>> large_p.large_p_step(1).residual
    (1)*z_0_a + (1)*G_0_ab*T_0_b + (1)*G_0_bc*T_0_b*T_1_dc*Xi_ad
    """
    level = as_integer("level", level, low=0, high=HIGHEST_LEVEL)
    a, b = data_indices("ab")
    theta = coefficients(level)
    places = data_indices("cdefg")

    def gradient(point: Index) -> Vector:
        bent = act(point, theta)
        return [
            lambda *i, one=one, other=other: one(*i) + other(*i)
            for one, other in zip(row_vector(point, level), bent, strict=True)
        ]

    half = sp.Rational(1, 2)
    bent = inner_product(theta, act(a, theta)) * half
    gradients = [w(*places[: length + 1]) for length, w in enumerate(gradient(a))]
    return LargeP(
        START(a) + inner_product(row_vector(a, level), theta) + bent,
        gradients,
        [(FORCE(a) * w).sum(a) * (-eta / D) for w in gradients],
        inner_product(gradient(a), gradient(b)),
    )


class Network(NamedTuple):
    r"""Level 1 in two matrices: residual, changes of both layers, and :math:`D\Theta`."""

    residual: Polynomial
    first: Polynomial
    second: Polynomial
    gram: Polynomial


def level_one() -> Network:
    r"""Return level 1 in :math:`c = T_0` and :math:`A = I + \Xi T_1`.

    Returns
    -------
    Network
        With free indices a, and b for matrices.

    References
    ----------
    .. [1] derivations/08-large-p.md.
    """
    system = large_p_step(1)
    a, b, c, d = data_indices("abcd")
    row, word_ = coefficients(1)
    product = (LETTERS(a, c) * word_(c, b)).sum(c)

    def named(polynomial: Polynomial) -> Polynomial:
        folded = fold(polynomial, product, SECOND).replace(row, FIRST)
        return folded.replace(SECOND, lambda i, k: SECOND(i, k) - delta(i, k))

    first, second = system.changes
    moved = (LETTERS(a, c) * second.rename({d: b})).sum(c)
    return Network(
        named(system.residual), named(first).rename({c: a}), named(moved), named(system.gram)
    )


def two_layer_network() -> Network:
    r"""Return gradient descent on :math:`z = z_0 + Wx` in the same form.

    Returns
    -------
    Network
        With :math:`x = J^\top c` and :math:`W = AJ`, W moving in the metric :math:`\Xi` over its
        rows. The changes are of c and A.

    References
    ----------
    .. [1] derivations/08-large-p.md.
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
    of_second = (LETTERS(a, c) * FORCE(c)).sum(c) * hidden(i) * (-eta / D)
    gram = (layer(a, i) * layer(b, i)).sum(i) + LETTERS(a, b) * (hidden(i) * hidden(i)).sum(i)
    return Network(
        with_gram(in_rows(residual)),
        of_rows(of_first).rename({b: a}),
        of_rows(of_second),
        with_gram(in_rows(gram)),
    )
