r"""Mean changes of the NTK and the Jacobian, to second order in the curvature."""

from __future__ import annotations

import sympy as sp

from quadmodel._util.checks import as_integer
from quadmodel.symbolic.algebra.gaussian import GaussianField
from quadmodel.symbolic.algebra.indices import DATA, KRONECKER, data_indices, parameter_indices
from quadmodel.symbolic.algebra.matrices import as_matrix
from quadmodel.symbolic.algebra.names import B, D, P, beta, lam
from quadmodel.symbolic.algebra.polynomials import Polynomial, delta
from quadmodel.symbolic.algebra.sampling import SamplingScheme
from quadmodel.symbolic.dynamics import MOST_STEPS, difference
from quadmodel.symbolic.linear import NTK


def expected_ntk_difference(
    order: int = 1,
    *,
    curvature: str | GaussianField = "kronecker",
    residual: str | GaussianField = "fixed",
    sampling: str | SamplingScheme | None = None,
) -> sp.Eq:
    r"""Return the mean of a forward difference of the NTK under SGD.

    Parameters
    ----------
    order : int, optional
        1 for :math:`E\Delta_1\Theta = E\Theta_1 - \Theta_0`,
        2 for :math:`E\Delta_2\Theta = E\Theta_2 - 2E\Theta_1 + \Theta_0`, and so on; at most 4.
    curvature : {"kronecker", "independent"} or GaussianField, optional
        Law of Q: covariance :math:`C_{ab}(S_{ik}S_{jl}+S_{il}S_{jk})`, independent entries of
        scale :math:`\sigma`, or a field of your own.
    residual : {"fixed", "independent"} or GaussianField, optional
        Whether to average over the residual z at the start; "independent" entries have scale s.
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`; None leaves :math:`\gamma, \kappa`.

    Returns
    -------
    Equation
        Shape (D, D), in units of the NTK. Exact in D, P, B and learning rate, up to terms of
        fourth order in Q.

    Raises
    ------
    InputError
        If a name is unknown or the order too high.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4, for the leading order; derivations/05-sharpening.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.expected_ntk_difference(1, curvature="independent").rhs.shape
    (D, D)
    """
    order = as_integer("order", order, high=MOST_STEPS)
    change = difference("ntk", order, curvature=curvature, residual=residual, sampling=sampling)
    left = sp.MatrixSymbol(rf"E\Delta_{{{order}}}\Theta", D, D)
    return sp.Eq(left, as_matrix(change, *data_indices("ab")))


def expected_jacobian_difference(
    order: int = 2,
    *,
    curvature: str | GaussianField = "kronecker",
    residual: str | GaussianField = "fixed",
    sampling: str | SamplingScheme | None = None,
) -> sp.Eq:
    r"""Return the mean of a forward difference of the Jacobian under SGD.

    Parameters
    ----------
    order : int, optional
        1 for the first step, whose mean is zero; 2 for :math:`E J_2 - 2E J_1 + J_0`, and so on.
    curvature, residual, sampling : optional
        As for :func:`expected_ntk_difference`.

    Returns
    -------
    Equation
        Shape (D, P), in units of the Jacobian.

    Raises
    ------
    InputError
        If a name is unknown or the order too high.

    References
    ----------
    .. [1] derivations/04-gradient-statistics.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.expected_jacobian_difference(1).rhs
    0
    """
    order = as_integer("order", order, high=MOST_STEPS)
    change = difference(
        "jacobian", order, curvature=curvature, residual=residual, sampling=sampling
    )
    left = sp.MatrixSymbol(rf"E\Delta_{{{order}}} J", D, P)
    return sp.Eq(left, as_matrix(change, data_indices("a")[0], parameter_indices("i")[0]))


def mode_part(change: Polynomial) -> sp.Expr:
    r"""Return the part of a mean change of the NTK that depends on the mode.

    Parameters
    ----------
    change : Polynomial
        With free indices a and b, in no tensor but the NTK (residuals are averaged over).

    Returns
    -------
    SymPy expression
        In the eigenvalue :math:`\lambda`, in units of the NTK; the multiple of the unit matrix,
        alike for all eigenvalues, is left out.

    References
    ----------
    .. [1] derivations/05-sharpening.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> from quadmodel.symbolic import linear
    >>> a, b = symbolic.data_indices("ab")
    >>> symbolic.mode_part(linear.NTK(a, b) + 3 * symbolic.delta(a, b))
    lambda
    """
    a, b = data_indices("ab")
    own = Polynomial(
        {m: c for m, c in change.terms.items() if KRONECKER[DATA] not in [t for t, _ in m]}
    )
    return own.replace(NTK, lambda i, k: lam * delta(i, k)).coefficient(delta(a, b))


def sharpening_factor(sampling: str = "without_replacement") -> sp.Expr:
    r"""Return the factor by which batch noise changes the sharpening of an eigenvalue.

    Parameters
    ----------
    sampling : str, optional
        Sampling scheme.

    Returns
    -------
    SymPy expression
        :math:`E\Delta_2\lambda` of a mode over its value at :math:`\eta\lambda\to0`, for many
        parameters and data at a fixed batch fraction :math:`\beta = B/D`.

    Raises
    ------
    InputError
        If the scheme is unknown.

    References
    ----------
    .. [1] arXiv:2404.19261, section 4: conservative sharpening; derivations/05-sharpening.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.sharpening_factor()
    1 - eta*lambda/beta
    """
    change = difference(
        "ntk", 2, curvature="independent", residual="independent", sampling=sampling
    )
    part = mode_part(change)
    ratio = sp.cancel(part / sp.Poly(part, lam).coeff_monomial(lam) / lam).subs(B, beta * D)
    return sp.expand(sp.limit(sp.limit(sp.cancel(ratio), P, sp.oo), D, sp.oo))
