r"""The mean NTK at all times, to second order in the curvature.

With parameters :math:`\theta_t`, :math:`D\Theta_t = (J+Q\theta_t)(J+Q\theta_t)^\top` exactly. Of
second order in Q are the square of :math:`Q\theta_t` with :math:`\theta_t` of the linear model,
and :math:`J(Q\,\delta\theta_t)^\top` with :math:`\delta\theta_t` the response of the parameters to
Q. Every earlier step s adds to :math:`\delta\theta` the impulse

.. math:: -\tfrac{\eta}{D}
          \left[(Q\theta_s)^\top W_sz_s + \tfrac12 J^\top W_sQ(\theta_s,\theta_s)\right]

of which :math:`\Phi` times the impulse is left at step t. Later batches are independent of the
impulse, so that their weights average to 1. In the linear model :math:`\theta = J^+(z-z_0)` with
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
DISPLACEMENT = Tensor("Y", (DATA, DATA), (0, 0))

# Over the data: the response of the residual, and products with the parameters' covariance S
DATA_RESPONSE = Tensor("R", (DATA, DATA), (0, 0))
OUTER = Tensor("F", (DATA, DATA), (0, 0))  # J S J^T
INNER = Tensor("H", (DATA, DATA), (0, 0))  # J^+T S J^+
SKEW = Tensor("N", (DATA, DATA))  # J S J^+
TWICE = Tensor("L", (DATA, DATA))  # J S S J^+
INNER_TWICE = Tensor("H2", (DATA, DATA), (0, 0))  # J^+T S S J^+

# Sums over the earlier steps s, with n the number of steps since then
DATA_RESPONSE_SUM = Tensor("X_R", (DATA, DATA))  # X_s N^T R_n
TRACE_SUM = Tensor("X_tau", (DATA, DATA))  # tr(N R_n) X_s
UNCONSTRAINED_SUM = Tensor("X_h", (DATA, DATA))  # h_n X_s, h of parameters that no residual sees
SOURCE_SUM = Tensor("A", (DATA, DATA))

DIFFUSION = Tensor("B", (DATA, DATA), (0, 0))
FLUCTUATION = Tensor("W", (DATA, DATA), (0, 0))  # N Y N^T
DISPLACEMENT_SUM = Tensor("Y_R", (DATA, DATA))  # R_n N Y_s
free_response = sp.Symbol("h_0")  # of parameters that no residual depends on


def source() -> Polynomial:
    r"""Return the source term of one earlier step in the mean NTK, for Kronecker curvature.

    It is :math:`A_{ab}` of :math:`D\,E\Delta\Theta \ni -(\eta/D)(A + A^\top)`, in C, S, J, its
    inverse, X, Y and the response :math:`\Phi` of the parameters since that step.
    """
    a, b, c, d, e = data_indices("abcde")
    i, j, m, n, o = parameter_indices("ijmno")
    Q, J = CURVATURE, JACOBIAN
    # Products theta z and theta theta are replaced by their means, which do not depend on Q.
    of_jacobian = Q(c, m, n) * INVERSE(n, d) * MIXED(c, d)
    of_residual = sp.Rational(1, 2) * J(c, m) * Q(c, n, o) * INVERSE(n, d) * INVERSE(o, e)
    impulse = of_jacobian.sum(c, d, n) + (of_residual * DISPLACEMENT(d, e)).sum(c, d, e, n, o)
    response = (RESPONSE(j, m) * impulse).sum(m)
    return average((Q(a, i, j) * response * J(b, i)).sum(i, j), kronecker_curvature())


def diffusion() -> Polynomial:
    r"""Return the mean square :math:`E[(Q\theta)(Q\theta)^\top]_{ab}` of the Jacobian's change."""
    a, b, d, e = data_indices("abde")
    i, j, k = parameter_indices("ijk")
    square = (INVERSE(j, d) * DISPLACEMENT(d, e) * INVERSE(k, e)).sum(d, e)
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

    d, e = data_indices("de")
    i, j, m, n = parameter_indices("ijmn")

    def fluctuation(k: Index, p: Index) -> Polynomial:
        """Return the factor of theta_p in the fluctuation between the modes."""
        own = JACOBIAN(a, k) * CURVATURE(b, k, p)
        return own + JACOBIAN(b, k) * CURVATURE(a, k, p)

    square = (INVERSE(j, d) * DISPLACEMENT(d, e) * INVERSE(n, e)).sum(d, e)
    product = fluctuation(i, j) * fluctuation(m, n) * square
    return average(product.sum(i, j, m, n), kronecker_curvature())


def change() -> Polynomial:
    r"""Return :math:`E\Theta_t - \Theta_0` from the summed source A and the diffusion B."""
    a, b = data_indices("ab")
    sources = (SOURCE_SUM(a, b) + SOURCE_SUM(b, a)) * (-eta / D)
    mean: Polynomial = (sources + DIFFUSION(a, b)) * (1 / D)
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
        With :math:`\Phi = h_0(I - J^+J) + J^+RJ`, R the response over the data,
        :math:`h_0` that of a parameter which no residual depends on, and
        :math:`F = JSJ^\top, H = J^{+\top}SJ^+, H_2 = J^{+\top}S^2J^+, N = JSJ^+, L = JS^2J^+`.
    """
    a, b = data_indices("ab")
    i, j, k = parameter_indices("ijk")
    J, S, K = JACOBIAN, OVER_PARAMETERS, INVERSE

    def response(m: Index, n: Index) -> Polynomial:
        projected = (K(m, a) * J(a, n)).sum(a)
        of_data = (K(m, a) * DATA_RESPONSE(a, b) * J(b, n)).sum(a, b)
        free: Polynomial = (delta(m, n) - projected) * free_response
        return of_data + free

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


def summed_source() -> Polynomial:
    r"""Return the sum of the source terms of all earlier steps, for Kronecker curvature.

    Returns
    -------
    Polynomial
        In C, N, L, the trace of S and the sums :math:`X_R = \sum_s X_sN^\top R_n`,
        :math:`X_\tau = \sum_s\mathrm{tr}(NR_n)X_s`, :math:`X_h = \sum_s h_nX_s` and
        :math:`Y_R = \sum_s R_nNY_s`, with n steps from step s to the present. The
        numeric theory computes this form.

    References
    ----------
    .. [1] derivations/06-expected-ntk.md.
    """
    a, b, c, d = data_indices("abcd")
    R, N, X, Y = DATA_RESPONSE, SKEW, MIXED, DISPLACEMENT
    traced = X(a, b) * (N(c, d) * R(c, d)).sum(c, d)
    folds = [
        (traced, TRACE_SUM),
        ((X(a, c) * N(d, c) * R(d, b)).sum(c, d), DATA_RESPONSE_SUM),
        ((R(a, c) * N(c, d) * Y(d, b)).sum(c, d), DISPLACEMENT_SUM),
    ]
    result = over_data(source())
    for product, tensor in folds:
        result = fold(result, product, tensor)
    # The remaining terms in X are those with the factor h.
    return result.replace(MIXED, lambda i, k: UNCONSTRAINED_SUM(i, k) * (1 / free_response))


def independent(polynomial: Polynomial, scale: sp.Expr) -> Polynomial:
    r"""Specialise to independent entries, :math:`C = \sigma^2I` and :math:`S = I`."""
    plain = polynomial.replace(OVER_PARAMETERS, delta)
    return plain.replace(OVER_DATA, lambda a, b: scale**2 * delta(a, b))
