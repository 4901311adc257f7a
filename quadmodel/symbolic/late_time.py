r"""The mean loss in the delocalised closure: Volterra equation, rate, floor.

The closure gives every data point the mean noise, :math:`M_{cc} \to \mathrm{tr}(M)/D`, as where
eigenvectors are spread over the data. Modes then see each other through the loss only.
"""

from __future__ import annotations

import sympy as sp

from quadmodel.symbolic.algebra.indices import DATA, Index, data_indices
from quadmodel.symbolic.algebra.names import D, eta, gamma, kappa, lam, r
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, delta
from quadmodel.symbolic.linear import NTK, SGD_METHOD, moment, second_moments
from quadmodel.symbolic.stability import alpha, dressed_response, eigenvalues, signed

energy, energies = sp.symbols("p Sigma_p", nonnegative=True)  # of a mode, of all modes
null = sp.Symbol("N", nonnegative=True)  # energy in the null space of the NTK
time = sp.Symbol("n", integer=True, nonnegative=True)  # steps
loss = sp.Symbol("L", nonnegative=True)

_EIGENVALUE = Tensor("lambda", (DATA,))
_MODES = (alpha, 0, D - 1)


def mode_energy_equation() -> sp.Eq:
    r"""Return the energy :math:`p' = E z_\alpha'^2` of a mode after one more step of SGD.

    Returns
    -------
    Equation
        In the energy p of the mode and :math:`\Sigma_p` of all modes, both in the loss's unit.

    Notes
    -----
    The closure of the exact second moment, on the diagonal in the NTK's eigenbasis.

    References
    ----------
    .. [1] arXiv:2404.19261, section 3; derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.mode_energy_equation().rhs.coeff(symbolic.late_time.energies)
    eta**2*gamma*lambda**2/D
    """
    own, of_all = _closure()
    right = sp.Add(own * energy, of_all * energies, evaluate=False)
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
    A mode that is driven by :math:`b\,\Sigma_p` and keeps the part a of its energy per step holds
    :math:`b\sum_s a^{t-1-s}\Sigma_p(s)` of what came before.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.volterra_kernel().free_symbols >= {symbolic.names.eta}
    True
    """
    own, of_all = _closure()
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
    own, of_all = _closure()
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
    own, of_all = _closure()
    (share,) = sp.solve(r * energy - own * energy - of_all, energy)
    return sp.Eq(sp.Sum(share.subs(lam, eigenvalues[alpha]), _MODES), 1)


def loss_floor() -> sp.Eq:
    r"""Return the mean loss after infinitely many steps, for energy N that no parameter reaches.

    Returns
    -------
    Equation
        In N and the finite-size K, below 1.

    Notes
    -----
    Every mode is driven by :math:`\Sigma_p = N + \sum_\alpha p_\alpha`, and
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
    (all_modes,) = sp.solve(null + norm * energies - energies, energies)
    return sp.Eq(loss, signed(all_modes) / (2 * D))


def energy_at_gradient() -> sp.Expr:
    r"""Return the energy of a mode at the point of the gradient, in a stationary state.

    Returns
    -------
    SymPy expression
        In the mode's mean square :math:`m^2`, its dressed response S and the total energy
        :math:`\Sigma_p` there.

    Notes
    -----
    The solution of :math:`e = m^2 + (\gamma/D)S^0(\Sigma_p - \kappa e)`, with :math:`S^0`
    expressed by S.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.energy_at_gradient().subs({"S": 0})
    m2
    """
    mean, bare, dressed = sp.symbols("m2 S0 S")
    loop = gamma / D * bare * (energies - kappa * energy)
    (solution,) = sp.solve(sp.Eq(energy, mean + loop), energy)
    (back,) = sp.solve(sp.Eq(dressed, dressed_response(bare)), bare)
    return sp.expand(sp.cancel(solution.subs(bare, back)))


def _closure() -> tuple[sp.Expr, sp.Expr]:
    """Return what a mode keeps of its own energy, and what it takes up from that of all modes."""
    exact = second_moments(SGD_METHOD)[0]
    a, b, c = data_indices("abc")

    def spread(i: Index, k: Index) -> Polynomial:
        moments = moment(0, 0)
        return (moments(c, c) * (1 / D)).sum(c) if i == k else moments(i, k)

    closed = exact.replace(moment(0, 0), spread)
    modes = closed.replace(NTK, lambda i, k: _EIGENVALUE(i) * delta(i, k)).rename({b: a})
    own: list[sp.Expr] = []
    of_all: list[sp.Expr] = []
    for scale, factors, summed in modes.opened():
        power = lam ** sum(t == _EIGENVALUE for t, _ in factors)
        (of_all if summed else own).append(scale * power)
    return _grouped(sp.Add(*own)), sp.factor(sp.Add(*of_all))


def _grouped(kept: sp.Expr) -> sp.Expr:
    """Write what a mode keeps as the square of its mean's factor, and the rest."""
    square = (1 - eta * lam) ** 2
    return square + sp.factor(sp.expand(kept - square))
