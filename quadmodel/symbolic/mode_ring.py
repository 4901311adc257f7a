r"""Modes of a spectrum as a ring of polynomials, with the mean over all of them.

A quantity of one mode is a polynomial in its eigenvalue, the factor of its curvature and its
squared residual at the start. The mean over all modes puts moments in place of their powers:
symbols for any spectrum, or the numbers of a given one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.polys.rings import PolyElement, ring

from quadmodel._util.checks import InputError, as_integer

# The three numbers of a mode: eigenvalue, factor of its curvature, E z_0^2
MODE = ("lambda", "c", "e")
# qhat^2, D/P, gamma, kappa/D, learning rate, momentum, weight decay
SETTING = ("q2", "delta", "gamma", "kappa_D", "eta", "mu", "rho")

MOST_STEPS = 6

Mean = Callable[[PolyElement], PolyElement]


@dataclass(frozen=True)
class Modes:
    r"""The ring of a setting and the mean over its modes.

    Parameters
    ----------
    ring : PolyRing
        Ring that holds everything.
    mean : callable
        Takes a polynomial in the numbers of a mode, returns the mean over all modes.
    setting : dict
        Values of `SETTING` in the ring.
    order : int or None
        Highest power of :math:`\hat q^2` that is kept; None for all.
    """

    ring: Any
    mean: Mean
    setting: dict[str, Any]
    order: int | None

    def mode(self) -> tuple[Any, Any, Any]:
        """Return eigenvalue, factor and squared residual as generators."""
        eigenvalue, factor, energy = (self.ring(sp.Symbol(name)) for name in MODE)
        return eigenvalue, factor, energy

    def cut(self, value: Any) -> Any:
        r"""Leave out what is beyond the order in :math:`\hat q^2`."""
        if self.order is None:
            return value
        place = self.ring.symbols.index(sp.Symbol("q2"))
        kept = {m: v for m, v in value.terms() if m[place] <= self.order}
        return self.ring.from_dict(kept)

    def dot(self, *products: Iterable[Any]) -> Any:
        """Return the sum over an index of products of sequences."""
        total = self.ring.zero
        for factors in zip(*products, strict=True):
            if all(factors):
                product = factors[0]
                for factor in factors[1:]:
                    product = self.cut(product * factor)
                total += product
        return total


def modes_of_moments(
    steps: int, *, order: int | None = None, more: Sequence[str] = (), **values: Any
) -> Modes:
    r"""Return modes of any spectrum, in symbols for its moments.

    Parameters
    ----------
    steps : int
        Number of steps that the moments must last for.
    order : int or None, optional
        Highest power of :math:`\hat q^2` that is kept.
    more : sequence of str, optional
        Names of further symbols.
    **values : SymPy expression or str
        Values of `SETTING`, rational or the symbol itself. What is left out stays a symbol, but
        momentum and weight decay are 0.

    Returns
    -------
    Modes
        The mean of :math:`\lambda^jc^k` is ``s_jk``, that of :math:`\lambda^jc^kE z_0^2` is
        ``m_jk``, with ``s_00`` = ``s_01`` = 1.

    Examples
    --------
    The mean loss after a step of full batches, without curvature:

    >>> from quadmodel import symbolic
    >>> modes = symbolic.modes_of_moments(1, q2=0, gamma=0)
    >>> symbolic.MeanField(modes).run(1).loss[1]
    eta**2*m_20 - 2*eta*m_10 + m_00
    """
    steps = as_integer("steps", steps, low=0, high=MOST_STEPS)
    factors = 2 * steps + 1 if order is None else order + 2
    places = itertools.product(range(2 * steps + 2), range(factors))
    moments = [f"{kind}_{j}{k}" for j, k in places for kind in "sm"]
    whole, *_ = ring([*MODE, *SETTING, *more, *moments], sp.QQ)

    def mean(value: PolyElement) -> PolyElement:
        total = whole.zero
        for monomial, scale in value.terms():
            j, k, energy = monomial[:3]
            rest = whole.from_dict({(0, 0, 0, *monomial[3:]): scale})
            fixed = not energy and (j, k) in ((0, 0), (0, 1))
            total += rest if fixed else rest * whole(sp.Symbol(f"{'sm'[energy]}_{j}{k}"))
        return total

    return Modes(whole, mean, _setting(whole, values), order)


def modes_of_values(
    modes: Sequence[tuple[Any, Any, Any, Any]], *, order: int | None = None, **values: Any
) -> Modes:
    r"""Return modes with given numbers.

    Parameters
    ----------
    modes : sequence of tuple
        Weight, eigenvalue, factor c and :math:`E z_0^2` of each; rational. Weights and weighted
        factors sum to 1.
    order : int or None, optional
        Highest power of :math:`\hat q^2` that is kept.
    **values : SymPy expression or str
        As for :func:`modes_of_moments`.

    Returns
    -------
    Modes

    Raises
    ------
    InputError
        If weights or weighted factors don't sum to 1.

    Examples
    --------
    One mode with eigenvalue 1/2:

    >>> from quadmodel import symbolic
    >>> modes = symbolic.modes_of_values([(1, "1/2", 1, 1)], q2=0, gamma=0, delta=0, kappa_D=0)
    >>> symbolic.MeanField(modes).run(1).loss[1]
    1/4*eta**2 - eta + 1
    """
    given = [tuple(sp.QQ.from_sympy(sp.Rational(v)) for v in mode) for mode in modes]
    sums = sum(w for w, *_ in given), sum(w * c for w, _, c, _ in given)
    if sums != (1, 1):
        raise InputError(f"weights and weighted factors of modes must sum to 1, got {sums}")
    whole, *_ = ring([*MODE, *SETTING], sp.QQ)

    def mean(value: PolyElement) -> PolyElement:
        total = whole.zero
        for (j, k, n, *rest), scale in value.terms():
            moment = sum(w * lam**j * c**k * e**n for w, lam, c, e in given)
            total += whole.from_dict({(0, 0, 0, *rest): scale * moment})
        return total

    return Modes(whole, mean, _setting(whole, values), order)


def _setting(whole: Any, values: dict[str, Any]) -> dict[str, Any]:
    unknown = set(values) - set(SETTING)
    if unknown:
        raise InputError(f"values must be of {', '.join(SETTING)}, got {', '.join(unknown)}")
    values = {"mu": 0, "rho": 0} | values
    symbols = {name: sp.Symbol(name) for name in SETTING}
    return {
        name: whole.from_expr(sp.sympify(values.get(name, name), locals=symbols, rational=True))
        for name in SETTING
    }
