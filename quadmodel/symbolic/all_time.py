r"""The mean NTK at all times, to second order in the curvature.

With parameters :math:`\theta_t`, :math:`D\Theta_t = (J+Q\theta_t)(J+Q\theta_t)^\top` exactly. Of
second order in Q are the square of :math:`Q\theta_t` with :math:`\theta_t` of the linear model,
and :math:`J(Q\,\delta\theta_t)^\top` with :math:`\delta\theta_t` the response to Q itself: every
earlier step s kicks it by

.. math:: -\tfrac{\eta}{D}
          \left[(Q\theta_s)^\top W_sz_s + \tfrac12 J^\top W_sQ(\theta_s,\theta_s)\right]

and the kick has turned into :math:`\Phi` times itself by step t. Later batches are independent of
it and average to 1. In the linear model :math:`\theta = J^+(z-z_0)` with
:math:`J^+ = J^\top(JJ^\top)^{-1}`, so that second moments of residuals are all that is needed:
:math:`X = E[z(z-z_0)^\top]` and :math:`Y = E[(z-z_0)(z-z_0)^\top]`.
"""

from __future__ import annotations

import sympy as sp

from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import (
    CURVATURE,
    JACOBIAN,
    OVER_DATA,
    OVER_PARAMETERS,
    average,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import (
    DATA,
    KRONECKER,
    PARAMETERS,
    Index,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.names import D, eta
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, delta

RESPONSE = Tensor("Phi", (PARAMETERS, PARAMETERS), (0, 0))
INVERSE = Tensor("J^+", (PARAMETERS, DATA))
MIXED = Tensor("X", (DATA, DATA))
MOVED = Tensor("Y", (DATA, DATA), (0, 0))

# In the space of the data: the response there, and products with the parameters' covariance S.
DATA_RESPONSE = Tensor("R", (DATA, DATA), (0, 0))
OUTER = Tensor("F", (DATA, DATA), (0, 0))  # J S J^T
INNER = Tensor("H", (DATA, DATA), (0, 0))  # J^+T S J^+
SKEW = Tensor("N", (DATA, DATA))  # J S J^+
TWICE = Tensor("L", (DATA, DATA))  # J S S J^+
INNER_TWICE = Tensor("H2", (DATA, DATA), (0, 0))  # J^+T S S J^+

# Sums over the earlier steps s, n the number of steps since
ANSWERED = Tensor("X_R", (DATA, DATA))  # X_s N^T R_n
SPREAD = Tensor("X_tau", (DATA, DATA))  # tr(N R_n) X_s
UNMOVED = Tensor("X_h", (DATA, DATA))  # h_n X_s, for parameters that no residual depends on
SUMMED = Tensor("A", (DATA, DATA))  # summed drive
DIFFUSION = Tensor("B", (DATA, DATA), (0, 0))
FLUCTUATION = Tensor("W", (DATA, DATA), (0, 0))  # N Y N^T
MOVED_SUM = Tensor("Y_R", (DATA, DATA))  # R_n N Y_s
free_response = sp.Symbol("h_0")  # of a parameter that no residual depends on


def drive() -> Polynomial:
    r"""Return what one earlier step adds to the mean NTK, for Kronecker curvature.

    Returns
    -------
    Polynomial
        :math:`A_{ab}` of :math:`D\,E\Delta\Theta \ni -(\eta/D)(A + A^\top)`, in C, S, J, its
        inverse, X, Y and the response :math:`\Phi` of the parameters since that step.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b, c, d, e = data_indices("abcde")
    i, j, m, n, o = parameter_indices("ijmno")
    Q, J = CURVATURE, JACOBIAN
    # theta z and theta theta in place of their means, which do not depend on Q
    of_jacobian = Q(c, m, n) * INVERSE(n, d) * MIXED(c, d)
    of_residual = sp.Rational(1, 2) * J(c, m) * Q(c, n, o) * INVERSE(n, d) * INVERSE(o, e)
    kick = of_jacobian.sum(c, d, n) + (of_residual * MOVED(d, e)).sum(c, d, e, n, o)
    moved = (RESPONSE(j, m) * kick).sum(m)
    return average((Q(a, i, j) * moved * J(b, i)).sum(i, j), kronecker_curvature())


def diffusion() -> Polynomial:
    r"""Return the mean square of what the parameters' displacement adds to the Jacobian.

    Returns
    -------
    Polynomial
        :math:`D\,E\Delta\Theta \ni E[(Q\theta)(Q\theta)^\top]_{ab}`, in C, S, the inverse of J
        and Y.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b, d, e = data_indices("abde")
    i, j, k = parameter_indices("ijk")
    square = (INVERSE(j, d) * MOVED(d, e) * INVERSE(k, e)).sum(d, e)
    term = (CURVATURE(a, i, j) * CURVATURE(b, i, k) * square).sum(i, j, k)
    return average(term, kronecker_curvature())


def repulsion() -> Polynomial:
    r"""Return the mean square of the NTK's first-order fluctuation between two modes.

    Returns
    -------
    Polynomial
        :math:`D^2E(v_\alpha^\top\delta\Theta v_\beta)^2`, written in the NTK's eigenbasis: free
        indices a and b are the modes :math:`\alpha \ne \beta`, C and J stand for
        :math:`V^\top CV` and :math:`V^\top J`.

    Notes
    -----
    :math:`D\,v_\alpha^\top\delta\Theta v_\beta = j_\alpha\cdot Q_\beta\theta
    + j_\beta\cdot Q_\alpha\theta`. Second-order perturbation divides the mean square by the gap of
    the two eigenvalues.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b = data_indices("ab")

    def half(row: Index, column: Index, letters: str) -> Polynomial:
        i, j = parameter_indices(letters)
        return JACOBIAN(row, i) * CURVATURE(column, i, j)

    total = None
    (j, n), (d, e) = parameter_indices("jn"), data_indices("de")
    square = (INVERSE(j, d) * MOVED(d, e) * INVERSE(n, e)).sum(d, e)
    for one in ((a, b), (b, a)):
        for other in ((a, b), (b, a)):
            product = half(*one, "ij") * half(*other, "mn") * square
            total = product if total is None else total + product
    i, m = parameter_indices("im")
    assert total is not None
    return average(total.sum(i, j, m, n), kronecker_curvature())


def change() -> Polynomial:
    r"""Return the mean change of the NTK from the sums of its drives and its diffusion.

    Returns
    -------
    Polynomial
        :math:`E\Theta_t - \Theta_0` in A, the summed drive, and B, the diffusion.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b = data_indices("ab")
    drives = (SUMMED(a, b) + SUMMED(b, a)) * (-eta / D)
    mean: Polynomial = (drives + DIFFUSION(a, b)) * (1 / D)
    return mean


def over_data(polynomial: Polynomial) -> Polynomial:
    r"""Write a polynomial with matrices over the data only.

    Parameters
    ----------
    polynomial : Polynomial
        Of this module.

    Returns
    -------
    Polynomial
        With :math:`\Phi = h_0(I - J^+J) + J^+RJ`, R the response in the space of the data and
        :math:`h_0` that of a parameter which no residual depends on, and
        :math:`F = JSJ^\top, H = J^{+\top}SJ^+, H_2 = J^{+\top}S^2J^+, N = JSJ^+, L = JS^2J^+`.
    """
    a, b = data_indices("ab")
    i, j, k = parameter_indices("ijk")
    J, S, K = JACOBIAN, OVER_PARAMETERS, INVERSE

    def response(m: Index, n: Index) -> Polynomial:
        projected = (K(m, a) * J(a, n)).sum(a)
        answered = (K(m, a) * DATA_RESPONSE(a, b) * J(b, n)).sum(a, b)
        free: Polynomial = (delta(m, n) - projected) * free_response
        return answered + free

    result = polynomial.replace(RESPONSE, response)
    folds = [
        ((J(a, i) * K(i, b)).sum(i), KRONECKER[DATA]),
        ((J(a, i) * S(i, j) * S(j, k) * K(k, b)).sum(i, j, k), TWICE),
        ((J(a, i) * S(i, j) * J(b, j)).sum(i, j), OUTER),
        ((K(i, a) * S(i, j) * S(j, k) * K(k, b)).sum(i, j, k), INNER_TWICE),
        ((K(i, a) * S(i, j) * K(j, b)).sum(i, j), INNER),
        ((J(a, i) * S(i, j) * K(j, b)).sum(i, j), SKEW),
    ]
    for product, tensor in folds:
        result = fold(result, product, tensor)
    return result


def summed_drive() -> Polynomial:
    r"""Return the sum of the drives of all earlier steps, for Kronecker curvature.

    Returns
    -------
    Polynomial
        In C, N, L, the trace of S and the sums :math:`X_R = \sum_s X_sN^\top R_n`,
        :math:`X_\tau = \sum_s\mathrm{tr}(NR_n)X_s`, :math:`X_h = \sum_s h_nX_s` and
        :math:`Y_R = \sum_s R_nNY_s`, n steps after step s: the form that is computed.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b, c, d = data_indices("abcd")
    R, N, X, Y = DATA_RESPONSE, SKEW, MIXED, MOVED
    traced = X(a, b) * (N(c, d) * R(c, d)).sum(c, d)
    folds = [
        (traced, SPREAD),
        ((X(a, c) * N(d, c) * R(d, b)).sum(c, d), ANSWERED),
        ((R(a, c) * N(c, d) * Y(d, b)).sum(c, d), MOVED_SUM),
    ]
    result = over_data(drive())
    for product, tensor in folds:
        result = fold(result, product, tensor)
    # What is left of X answers with h alone.
    return result.replace(MIXED, lambda i, k: UNMOVED(i, k) * (1 / free_response))


def independent(polynomial: Polynomial, scale: sp.Expr) -> Polynomial:
    r"""Specialise to independent entries, :math:`C = \sigma^2I` and :math:`S = I`.

    Parameters
    ----------
    polynomial : Polynomial
        Of this module.
    scale : SymPy expression
        :math:`\sigma`.

    Returns
    -------
    Polynomial
    """
    plain = polynomial.replace(OVER_PARAMETERS, delta)
    return plain.replace(OVER_DATA, lambda a, b: scale**2 * delta(a, b))
