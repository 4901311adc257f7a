r"""From the recursion of a mode to the noise kernel norm, its threshold and its limits.

In the eigenbasis of the NTK a linear optimizer with memory moves mode :math:`\alpha` by

.. math:: z_{t+1} = \sum_k p_k z_{t-k} - \eta\lambda\,(u_t + \omega_t) - \eta\rho\,u_t,
          \qquad u_t = \sum_k c_k z_{t-k}

with :math:`\omega_t` the noise of the batch, whose variance at a data point is :math:`\gamma`
times the mean square of the residual u there, at the point where the gradient is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sympy as sp
from sympy.polys.matrices import DomainMatrix

from quadmodel._util.checks import InputError, as_choice
from quadmodel.symbolic.algebra.names import (
    D,
    beta,
    eta,
    gamma,
    kappa,
    lam,
    lam_other,
    r,
    rho,
    x,
    y,
)
from quadmodel.symbolic.linear import PLAIN_SGD, LinearOptimizer, linear_optimizer

alpha, alpha_other = sp.symbols("alpha_1 alpha_2", integer=True)
eigenvalues = sp.IndexedBase("lambda", shape=(D,), nonnegative=True)
eigenvectors = sp.IndexedBase("V", shape=(D, D), real=True)


def bare_response(
    optimizer: LinearOptimizer = PLAIN_SGD,
    *,
    weight_decay: bool = False,
    growth: Any = 1,
    at: str = "gradient",
) -> sp.Expr:
    r"""Return the response :math:`S^0` of a pair of modes to a unit of gradient noise.

    Parameters
    ----------
    optimizer : LinearOptimizer, optional
        The update rule; plain SGD if left out.
    weight_decay : bool, optional
        Whether to keep the weight decay :math:`\rho`.
    growth : SymPy expression, optional
        Factor r per step by which the response is discounted.
    at : {"gradient", "residual"}, optional
        Whether to sum the response of the point where the gradient is taken, or of the residual.

    Returns
    -------
    SymPy expression
        :math:`S^0` in :math:`\eta, \lambda, \lambda'` and the optimizer's symbols; without unit.

    Raises
    ------
    InputError
        If `at` is neither.

    Notes
    -----
    :math:`S^0 = \eta^2\lambda\lambda'\sum_{n\ge0} r^{-n-1}h_nh'_n`, with :math:`h_n` the response
    of a mode n steps after an impulse: a factor times the ``pair_sum``. The sum X over the
    products of the two modes' histories solves the linear system
    :math:`X = TXT'^\top/r + ee^\top`, with T the companion matrix of the recursion.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> S0 = symbolic.bare_response()
    >>> eta, lam, other = sorted(S0.free_symbols, key=str)
    >>> (1 / S0 - 1 / (eta * lam) - 1 / (eta * other)).simplify()
    -1
    """
    as_choice("at", at, ("gradient", "residual"))
    pair = pair_sum(optimizer, growth, at)
    decay = rho if weight_decay else 0
    response = (
        eta**2 * lam * lam_other * pair.subs({x: eta * (lam + decay), y: eta * (lam_other + decay)})
    )
    return response if weight_decay else signed(sp.cancel(response))


@cache
def pair_sum(optimizer: LinearOptimizer, growth: Any = 1, at: str = "gradient") -> sp.Expr:
    r"""Return the pair sum :math:`\sum_n r^{-n-1}h_nh'_n`, from the linear system of two modes.

    Parameters
    ----------
    optimizer : LinearOptimizer
        The update rule.
    growth : SymPy expression, optional
        Factor r.
    at : {"gradient", "residual"}, optional
        As for :func:`bare_response`.

    Returns
    -------
    SymPy expression
        In x and y, :math:`\eta(\lambda+\rho)` of the two modes.
    """
    recursions = optimizer.recursion(x), optimizer.recursion(y)
    seen_at = optimizer.extrapolation if at == "gradient" else (1,)
    return signed(_pair_sum(*recursions, seen_at, growth))


def two_step_pair_sum() -> sp.Expr:
    r"""Return the pair sum for any memory of two points, in the coefficients of the recursions.

    Returns
    -------
    SymPy expression
        In a, b of :math:`z_{t+1} = az_t - bz_{t-1}` and a', b' of the other mode, in c, d of the
        point :math:`cz_t - dz_{t-1}` whose response is summed, and in r.
    """
    a, b, a_other, b_other, c, d = sp.symbols("a b a' b' c d")
    return _pair_sum([a, -b], [a_other, -b_other], (c, -d), r)


def _pair_sum(
    first: Sequence[sp.Expr], second: Sequence[sp.Expr], seen_at: Sequence[Any], growth: Any
) -> sp.Expr:
    """Solve X = T X T'^T / r + e e^T and read off the response at a combination of the history."""
    size = len(first)
    steps = []
    for recursion in (first, second):
        companion = sp.zeros(size)
        companion[0, :] = sp.Matrix([recursion])
        for k in range(size - 1):
            companion[k + 1, k] = 1
        steps.append(companion)
    system = growth * sp.eye(size**2) - sp.kronecker_product(*steps)
    impulse = sp.Matrix([1] + [0] * (size**2 - 1))
    seen = (*seen_at, *[0] * (size - len(seen_at)))
    row = sp.Matrix([[sp.expand(p * q) for p in seen for q in seen] + [0]])
    whole = DomainMatrix.from_Matrix(system.row_join(impulse).col_join(row)).to_field()
    solution = whole[:-1, :-1].lu_solve(whole[:-1, -1:])
    return (whole[-1:, :-1] * solution).to_Matrix()[0, 0]


def signed(fraction: sp.Expr) -> sp.Expr:
    """Return a fraction with a denominator that is positive where its symbols are small."""
    numerator, denominator = sp.fraction(sp.together(fraction))
    lowest = (
        sp.Poly(denominator, *sorted(denominator.free_symbols, key=str)).terms()[-1][1]
        if denominator.free_symbols
        else 1
    )
    if lowest < 0:
        numerator, denominator = -numerator, -denominator
    return sp.factor(numerator) / sp.expand(denominator)


def dressed_response(bare: sp.Expr, size: Any = gamma, correlation: Any = kappa) -> sp.Expr:
    r"""Return the response S with the feedback of the correlation between batch weights.

    Parameters
    ----------
    bare : SymPy expression
        :math:`S^0`.
    size, correlation : SymPy expression, optional
        :math:`\gamma` and :math:`\kappa` of the batch weights.

    Returns
    -------
    SymPy expression
        S, the solution of the Dyson equation :math:`S = S^0 - (\kappa\gamma/D)\,S^0S`.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> import sympy as sp
    >>> from quadmodel import symbolic
    >>> S0, = sp.symbols("S0,")
    >>> sp.simplify(1 / symbolic.dressed_response(S0) - 1 / S0)
    gamma*kappa/D
    """
    response, given = sp.symbols("S S0", cls=sp.Dummy)
    loop = correlation * size / D * given * response
    (solution,) = sp.solve(given - loop - response, response)
    shift = sp.expand(1 / solution) - 1 / given  # S and S^0 differ by a constant in their inverses
    numerator, denominator = sp.fraction(sp.together(bare))
    return numerator / sp.expand(denominator + shift * numerator)


def noise_kernel_norm(
    norm: str = "finite",
    *,
    optimizer: LinearOptimizer | None = None,
    momentum: bool = False,
    nesterov: bool = False,
    weight_decay: bool = False,
) -> sp.Eq:
    r"""Return the noise kernel norm as a sum over the NTK's eigenvalues.

    Parameters
    ----------
    norm : {"paper", "finite", "exact"}, optional
        "paper": high-dimensional limit, in :math:`\beta = B/D`. "finite": without approximating the
        sampling. "exact": an entry of the noise kernel matrix, whose largest eigenvalue is K.
    optimizer : LinearOptimizer, optional
        An update rule of your own, instead of the next two.
    momentum, nesterov : bool, optional
        As for :func:`linear_optimizer`.
    weight_decay : bool, optional
        Whether to keep :math:`\rho`.

    Returns
    -------
    Equation
        Eigenvalues are ``lambda[alpha]``, eigenvectors ``V[i, alpha]``, counted from 0, so that
        the right-hand side can be lambdified and called with arrays. Between two modes with
        eigenvalue 0 "exact" reads 0/0, where the term is zero: put 1e-300 in their place.

    Raises
    ------
    InputError
        If there is no such norm.

    References
    ----------
    .. [1] arXiv:2404.19261, section 3; derivations/03-noise-kernel.md for "finite" and "exact".

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> K = symbolic.noise_kernel_norm("paper").rhs
    >>> K.subs(symbolic.names.beta, 1)  # full batches
    0
    """
    as_choice("norm", norm, ("paper", "finite", "exact"))
    chosen = optimizer or linear_optimizer(momentum=momentum, nesterov=nesterov)
    bare = bare_response(chosen, weight_decay=weight_decay)
    one, other = eigenvalues[alpha], eigenvalues[alpha_other]
    modes, other_modes = (alpha, 0, D - 1), (alpha_other, 0, D - 1)
    if norm == "exact":
        i, j = sp.symbols("i j", integer=True)
        response = dressed_response(bare).subs({lam: one, lam_other: other}, simultaneous=True)
        V = eigenvectors
        product = V[i, alpha] * V[j, alpha] * response * V[i, alpha_other] * V[j, alpha_other]
        return sp.Eq(sp.IndexedBase("G")[i, j], gamma * sp.Sum(product, modes, other_modes))
    size, correlation = (1 / beta - 1, 0) if norm == "paper" else (gamma, kappa)
    diagonal = signed(sp.cancel(bare.subs(lam_other, lam)))
    total = sp.Sum(dressed_response(diagonal, size, correlation).subs(lam, one), modes)
    return sp.Eq(sp.Symbol("K"), size / D * total)


def small_learning_rate_limit(
    optimizer: LinearOptimizer = PLAIN_SGD, *, weight_decay: bool = False
) -> sp.Expr:
    r"""Return :math:`\lim_{\eta\to0} S^0_{\alpha\alpha}/\eta`.

    Parameters
    ----------
    optimizer : LinearOptimizer, optional
        The update rule; plain SGD if left out.
    weight_decay : bool, optional
        Whether to keep :math:`\rho`.

    Returns
    -------
    SymPy expression
        In units of an NTK eigenvalue. For small batches :math:`K \to (\eta/B)\sum_\alpha` of it.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.small_learning_rate_limit(symbolic.HEAVY_BALL)
    -lambda/(2*(mu - 1))
    """
    diagonal = bare_response(optimizer, weight_decay=weight_decay).subs(lam_other, lam)
    return sp.factor(sp.cancel(diagonal / eta).subs(eta, 0))


def schur_cohn_conditions(coefficients: Sequence[Any]) -> list[sp.Expr]:
    r"""Return expressions that are all positive where all roots lie inside the unit circle.

    Parameters
    ----------
    coefficients : sequence of SymPy expression
        :math:`1, f_1, \dots, f_m` of :math:`\zeta^m + f_1\zeta^{m-1} + \dots + f_m`.

    Returns
    -------
    list of SymPy expression
        A positive leading coefficient for every step of the recursion
        :math:`f \to (f_0 f - f_m f^{\mathrm{rev}})/f_0`, in which :math:`f_0 > 0` stays so as
        long as :math:`|f_m| < f_0`: two conditions per step, both linear in the coefficients.

    Raises
    ------
    InputError
        If the leading coefficient is not 1 or there are no others.

    References
    ----------
    .. [1] I. Schur, J. reine angew. Math. 147 (1917) 205; A. Cohn, Math. Z. 14 (1922) 110.

    Examples
    --------
    >>> import sympy as sp
    >>> from quadmodel import symbolic
    >>> x = sp.Symbol("x")
    >>> symbolic.schur_cohn_conditions([1, x - 1])  # the root 1 - x
    [2 - x, x]
    """
    f = [sp.nsimplify(c, rational=True) for c in coefficients]
    if len(f) < 2 or f[0] != 1:
        raise InputError(f"coefficients must start with 1 and hold another, got {coefficients}")
    conditions = []
    while len(f) > 1:
        conditions += [sp.factor(f[0] - f[-1]), sp.factor(f[0] + f[-1])]
        f = [sp.expand(f[0] * p - f[-1] * q) for p, q in zip(f, reversed(f), strict=True)][:-1]
        for positive in conditions[-2:]:  # a common factor that is positive may go
            if positive.free_symbols and all(sp.rem(c, positive) == 0 for c in f):
                f = [sp.cancel(c / positive) for c in f]
    return conditions


def edge_of_stability(optimizer: LinearOptimizer = PLAIN_SGD) -> list[sp.Expr]:
    r"""Return values of :math:`\eta(\lambda+\rho)` where a noise-free mode may become unstable.

    Parameters
    ----------
    optimizer : LinearOptimizer, optional
        The update rule; plain SGD if left out.

    Returns
    -------
    list of SymPy expression
        The deterministic edge of stability is the smallest positive one.

    Notes
    -----
    Roots in x of the Schur-Cohn conditions, less x = 0 itself.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.edge_of_stability(symbolic.HEAVY_BALL)
    [2*mu + 2]
    """
    decay = sp.Symbol("x")
    polynomial = [sp.S.One, *(-a for a in optimizer.recursion(decay))]
    while polynomial[-1] == 0:  # an optimizer that makes no use of its oldest points
        polynomial.pop()
    roots: list[sp.Expr] = []
    for condition in schur_cohn_conditions(polynomial):
        for root in sp.solve(condition, decay):
            if root != 0 and root not in roots:
                roots.append(root)
    return sorted((sp.simplify(root) for root in roots), key=sp.default_sort_key)
