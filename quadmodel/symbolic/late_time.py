r"""The mean loss in the delocalised closure: Volterra equation, rate, floor.

The closure replaces the noise of every data point by the mean, :math:`M_{cc} \to
\mathrm{tr}(M)/D`, which holds where eigenvectors are spread evenly over the data. Modes then
depend on each other through the loss only.
"""

from __future__ import annotations

import sympy as sp

from quadmodel.symbolic.algebra.indices import DATA, Index, data_indices
from quadmodel.symbolic.algebra.names import D, eta, gamma, kappa, lam, r
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, delta
from quadmodel.symbolic.linear import NTK, PLAIN_SGD, moment, second_moments
from quadmodel.symbolic.stability import alpha, dressed_response, eigenvalues, signed

# Mean squared residual of a mode, of all modes, and in the null space of the NTK
squared_residual, total = sp.symbols("p Sigma_p", nonnegative=True)
null = sp.Symbol("N", nonnegative=True)
time = sp.Symbol("n", integer=True, nonnegative=True)  # steps
loss = sp.Symbol("L", nonnegative=True)

_EIGENVALUE = Tensor("lambda", (DATA,))
_MODES = (alpha, 0, D - 1)


def mode_energy_equation() -> sp.Eq:
    r"""Return the squared residual :math:`p' = E z_\alpha'^2` of a mode after one more SGD step.

    Returns
    -------
    Equation
        In the mode's squared residual p and the sum :math:`\Sigma_p` over all modes, both in the
        unit of the loss.

    Notes
    -----
    The closure of the exact second moment, on the diagonal in the NTK's eigenbasis.

    References
    ----------
    .. [1] arXiv:2404.19261, section 3; derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.mode_energy_equation().rhs.coeff(symbolic.late_time.total)
    eta**2*gamma*lambda**2/D
    """
    own, of_all = closure()
    right = sp.Add(own * squared_residual, of_all * total, evaluate=False)
    return sp.Eq(sp.Symbol("p'"), right)


def volterra_kernel() -> sp.Expr:
    r"""Return the kernel :math:`k_n` of the loss's Volterra equation.

    Returns
    -------
    SymPy expression
        :math:`k_n` of :math:`L_t = F_t + \sum_{s<t}k_{t-1-s}L_s`; eigenvalues are
        ``lambda[alpha_1]``, counted from 0.

    Notes
    -----
    A mode with the source term :math:`b\,\Sigma_p`, which keeps the part a of its squared residual
    per step, has accumulated :math:`b\sum_s a^{t-1-s}\Sigma_p(s)`.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.volterra_kernel().free_symbols >= {symbolic.names.eta}
    True
    """
    own, of_all = closure()
    return sp.Sum((of_all * own**time).subs(lam, eigenvalues[alpha]), _MODES)


def volterra_sum() -> sp.Expr:
    r"""Return :math:`\sum_n k_n`, term by term of the sum over modes.

    Returns
    -------
    SymPy expression
        The finite-size K.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> bool(symbolic.volterra_sum().has(symbolic.names.gamma))
    True
    """
    own, of_all = closure()
    series = sp.Sum(sp.Dummy("a") ** time, (time, 0, sp.oo))
    (base,) = series.free_symbols
    geometric = series.doit().args[0].expr  # where it converges
    summed = sp.cancel(of_all * geometric.subs(base, own))
    numerator, denominator = sp.fraction(summed)
    scale = sp.cancel(numerator / (gamma * eta * lam))
    term = eta * lam / sp.expand(denominator / scale / D)
    return gamma / D * sp.Sum(term.subs(lam, eigenvalues[alpha]), _MODES)


def rate_equation() -> sp.Eq:
    r"""Return the equation for the factor r per step by which the mean loss grows at late times.

    Returns
    -------
    Equation
        Its largest root in r is the rate.

    Notes
    -----
    With :math:`p \propto r^t` the mode equation gives :math:`p = b\,\Sigma_p/(r-a)`, and the modes'
    sum is :math:`\Sigma_p` itself.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.rate_equation().rhs
    1
    """
    own, of_all = closure()
    (share,) = sp.solve((r - own) * squared_residual - of_all, squared_residual)
    return sp.Eq(sp.Sum(share.subs(lam, eigenvalues[alpha]), _MODES), 1)


def loss_floor() -> sp.Eq:
    r"""Return the mean loss after infinitely many steps.

    The part N of the squared residual lies where no parameter can change it.

    Returns
    -------
    Equation
        In N and the finite-size K, below 1.

    Notes
    -----
    Every mode's source term is proportional to :math:`\Sigma_p = N + \sum_\alpha p_\alpha`, and
    :math:`\sum_\alpha p_\alpha = K\,\Sigma_p`.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.loss_floor()
    Eq(L, N/(2*D*(1 - K)))
    """
    norm = sp.Symbol("K")
    (all_modes,) = sp.solve(null + norm * total - total, total)
    return sp.Eq(loss, signed(all_modes) / (2 * D))


def squared_residual_at_gradient() -> sp.Expr:
    r"""Return the stationary squared residual of a mode where the gradient is taken.

    Returns
    -------
    SymPy expression
        In the square :math:`m^2` of the mode's mean, its dressed response S, and the sum
        :math:`\Sigma_p` over all modes at that point.

    Notes
    -----
    The solution of :math:`e = m^2 + (\gamma/D)S^0(\Sigma_p - \kappa e)`, with :math:`S^0`
    in terms of S.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.squared_residual_at_gradient().subs({"S": 0})
    m2
    """
    mean, bare, dressed = sp.symbols("m2 S0 S")
    loop = gamma / D * bare * (total - kappa * squared_residual)
    (solution,) = sp.solve(sp.Eq(squared_residual, mean + loop), squared_residual)
    (back,) = sp.solve(sp.Eq(dressed, dressed_response(bare)), bare)
    return sp.expand(sp.cancel(solution.subs(bare, back)))


def closure() -> tuple[sp.Expr, sp.Expr]:
    r"""Return the coefficients of p and of :math:`\Sigma_p` in a mode's next squared residual."""
    exact = second_moments(PLAIN_SGD)[0]
    a, b, c = data_indices("abc")

    def averaged(i: Index, k: Index) -> Polynomial:
        moments = moment(0, 0)
        return (moments(c, c) * (1 / D)).sum(c) if i == k else moments(i, k)

    closed = exact.replace(moment(0, 0), averaged)
    modes = closed.replace(NTK, lambda i, k: _EIGENVALUE(i) * delta(i, k)).rename({b: a})
    own: list[sp.Expr] = []
    of_all: list[sp.Expr] = []
    for scale, factors, summed in modes.opened():
        power = lam ** sum(t == _EIGENVALUE for t, _ in factors)
        (of_all if summed else own).append(scale * power)
    return _grouped(sp.Add(*own)), sp.factor(sp.Add(*of_all))


def _grouped(kept: sp.Expr) -> sp.Expr:
    """Split a mode's own coefficient into the square of its mean's factor and the rest."""
    square = (1 - eta * lam) ** 2
    return square + sp.factor(sp.expand(kept - square))
