r"""Moments of the bulk of the NTK's spectrum along training.

Apart from a few outlying modes, the Jacobian is :math:`J_0 + \sigma|\theta_t|N` with independent
normal entries N whose variance is c in each mode. Its spectrum is given by two coupled equations
for the resolvent, which hold as D and P grow together (a rectangular free convolution).
"""

from __future__ import annotations

import sympy as sp
from sympy.polys.rings import PolyElement, ring

from quadmodel._util.checks import as_integer

MOST_MOMENTS = 6


def bulk_moments(count: int) -> list[sp.Expr]:
    r"""Return the means of the powers of the NTK's eigenvalues.

    Parameters
    ----------
    count : int
        Highest power, at most 6.

    Returns
    -------
    list of SymPy expression
        From the power 0, in ``delta`` = D/P and the moments ``s_jk``: the mean over the modes of
        :math:`\lambda^j(\hat q^2C(t,t)c)^k`.

    Raises
    ------
    InputError
        If there are too many.

    Notes
    -----
    Modes have the resolvent :math:`T = [-z(1+\tilde d\,c) + \lambda/(1+d)]^{-1}` with
    :math:`d = \delta\,\overline{cT}` and :math:`\tilde d =
    \delta\,\overline{[-z(1+d) + \lambda/(1+\tilde dc)]^{-1}} - (1-\delta)/(z(1+d))`, where c stands
    for :math:`\hat q^2C(t,t)c`. Their series in 1/z are iterated.

    References
    ----------
    .. [1] W. Hachem, P. Loubaton, J. Najim, Ann. Appl. Probab. 17, 875 (2007).
    .. [2] derivations/09-mean-field.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.bulk_moments(1)
    [1, s_01 + s_10]
    """
    count = as_integer("count", count, low=0, high=MOST_MOMENTS)
    places = [(j, k) for j in range(count + 2) for k in range(count + 2)]
    whole, w, eigenvalue, factor, ratio, *_ = ring(
        ["w", "lambda", "c", "delta", *(f"s_{j}{k}" for j, k in places)], sp.QQ
    )

    def cut(value: PolyElement) -> PolyElement:
        return whole.from_dict({m: v for m, v in value.terms() if m[0] <= count})

    def inverse(value: PolyElement) -> PolyElement:
        """Return the series of 1 / (1 + value), which begins with the power 1 of w."""
        power = total = whole.one
        for _ in range(count):
            power = cut(-power * value)
            total += power
        return total

    def mean(value: PolyElement) -> PolyElement:
        total = whole.zero
        for (n, j, k, *rest), scale in value.terms():
            moment = whole(sp.Symbol(f"s_{j}{k}")) if (j, k) != (0, 0) else whole.one
            total += whole.from_dict({(n, 0, 0, *rest): scale}) * moment
        return total

    d = d_other = whole.zero  # w = 1/z, T = -w tau
    for _ in range(count + 1):
        tau = inverse(cut(d_other * factor - w * eigenvalue * inverse(d)))
        other = inverse(cut(d - w * eigenvalue * inverse(cut(d_other * factor))))
        d, d_other = (
            cut(-w * ratio * mean(cut(factor * tau))),
            cut(-w * (ratio * mean(other) + (1 - ratio) * inverse(d))),
        )
    series = mean(tau)
    return [
        whole.from_dict({(0, *m[1:]): v for m, v in series.terms() if m[0] == n}).as_expr()
        for n in range(count + 1)
    ]
