r"""The limit of many parameters with all words summed: two-time functions instead of tensors.

With the force :math:`\zeta_s` of every step given, parameters move in the operators
:math:`Q_{\zeta_s} = \sum_a\zeta_{sa}Q_a` alone: free semicircular elements, whose covariances are
the numbers :math:`\zeta_t^\top\Xi\zeta_s`. What stands between two contracted ones is contracted
within itself, so that a step's response u and the products C of the displacements close. This is
exact for every number of data points; nothing is truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Matrix = Sequence[Sequence[Any]]


class TwoTimes(NamedTuple):
    r"""Response and products of the points y at which gradients are taken.

    `response` [t][s], s < t: of :math:`y_t` to a force on the parameters in step s.
    `product` [t][s], s <= t: :math:`y_t\cdot y_s`.
    """

    response: list[list[Any]]
    product: list[list[Any]]


class NTKCoefficients(NamedTuple):
    r"""Coefficients of :math:`D\Theta_t - G_0`.

    `own` of :math:`\Xi`, `mixed` [s][r] of :math:`\Xi\zeta_s(G_0\zeta_r)^\top` and of its
    transpose, `square` [s][r] of :math:`\Xi\zeta_s(\Xi\zeta_r)^\top` and of its transpose.
    """

    own: Any
    mixed: list[list[Any]]
    square: list[list[Any]]


def two_time_functions(curved: Matrix, linear: Matrix, bare: Matrix, step: Any) -> TwoTimes:
    r"""Return response and products of the points, for given forces.

    Parameters
    ----------
    curved : sequence of sequence
        Products :math:`\zeta_t^\top\Xi\zeta_s`, for all pairs of steps.
    linear : sequence of sequence
        Products :math:`\zeta_t^\top G_0\zeta_s`.
    bare : sequence of sequence
        Response [t][s], s < t, without curvature, for one more time than there are steps; all 1
        for SGD without momentum.
    step : number
        :math:`\eta/D`.

    Returns
    -------
    TwoTimes

    Notes
    -----
    With h the bare response and :math:`\epsilon = \eta/D`,

    .. math:: u &= h + \epsilon^2\,h\,[(\zeta^\top\Xi\zeta)\circ u]\,u \\
              C &= \epsilon^2\,u\,[\zeta^\top G_0\zeta + (\zeta^\top\Xi\zeta)\circ C]\,u^\top

    References
    ----------
    .. [1] derivations/09-mean-field.md.

    Examples
    --------
    One step with a force: the products of the displacements before and after it.

    >>> from quadmodel import symbolic
    >>> symbolic.two_time_functions([[0]], [[4]], bare=[[], [1]], step=0.5).product
    [[0.0], [0.0, 1.0]]
    """
    u: list[list[Any]] = []
    product: list[list[Any]] = []
    for t in range(len(bare)):
        row = []
        for s in range(t):
            echoes = (
                bare[t][r] * curved[r][q] * u[r][q] * u[q][s]
                for r in range(s + 2, t)
                for q in range(s + 1, r)
            )
            row.append(bare[t][s] + step**2 * sum(echoes))
        u.append(row)
        product.append([])
        for v in range(t + 1):
            terms = (
                u[t][s] * u[v][r] * (linear[s][r] + curved[s][r] * product[max(s, r)][min(s, r)])
                for s in range(t)
                for r in range(v)
            )
            product[t].append(step**2 * sum(terms))
    return TwoTimes(u, product)


def residual_coefficients(functions: TwoTimes, t: int, step: Any) -> list[tuple[Any, Any]]:
    r"""Return the coefficients of :math:`G_0\zeta_s` and :math:`\Xi\zeta_s` in :math:`z_t - z_0`.

    Parameters
    ----------
    functions : TwoTimes
        Response and products.
    t : int
        Time.
    step : number
        :math:`\eta/D`.

    Returns
    -------
    list of tuple
        A pair for every earlier step s.

    Notes
    -----
    :math:`z_t = z_0 - \epsilon\sum_{s<t}u(t,s+1)[G_0 + C(t,s)\,\Xi]\,\zeta_s`.
    """
    u, product = functions
    return [(-step * u[t][s], -step * u[t][s] * product[t][s]) for s in range(t)]


def ntk_coefficients(functions: TwoTimes, t: int, step: Any) -> NTKCoefficients:
    r"""Return the NTK at a time as sums over the earlier forces.

    Parameters
    ----------
    functions : TwoTimes
        Response and products.
    t : int
        Time.
    step : number
        :math:`\eta/D`.

    Returns
    -------
    NTKCoefficients

    Notes
    -----
    Of the products of :math:`w_a = |a\rangle + Q_ay`: in :math:`\langle a|Q_by\rangle` b is
    contracted with a force, and so are a and b in the square of the annihilated parts. A created
    letter meets an annihilated one where two of y's letters are contracted in a row: the term with
    C(t, r).
    """
    u, product = functions
    mixed = [[step**2 * u[t][s] * u[s][r] if r < s else 0 for r in range(t)] for s in range(t)]
    square = [
        [
            step**2 * u[t][s] * u[t][r] * product[max(s, r)][min(s, r)] / 2
            + mixed[s][r] * product[t][r]
            for r in range(t)
        ]
        for s in range(t)
    ]
    return NTKCoefficients(product[t][t], mixed, square)
