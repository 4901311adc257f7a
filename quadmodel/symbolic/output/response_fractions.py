"""Cancellation-free forms of the response fractions.

Noise kernel norms are evaluated for learning rates from tiny to the deterministic edge. The
expanded numerators and denominators of the pair sums are differences of nearly equal numbers
there. The forms of this module are equal to them, and lose no digits to cancellation.
"""

from __future__ import annotations

import sympy as sp
from sympy.polys.polyfuncs import symmetrize

from quadmodel.symbolic.algebra.names import r, x, y
from quadmodel.symbolic.linear import LinearOptimizer
from quadmodel.symbolic.stability import pair_sum, two_step_pair_sum


def symmetric_form(polynomial: sp.Expr) -> sp.Expr:
    """Write a symmetric polynomial in x and y by their sum, product and squared difference."""
    total, product, square = sp.symbols("total product square")
    elementary, rest, names = symmetrize(sp.expand(polynomial), [x, y], formal=True)
    if rest != 0:
        raise ValueError(f"not symmetric in x and y: {polynomial}")
    (first, _), (second, _) = names
    reduced = sp.S.Zero
    for (power, other), coefficient in sp.Poly(elementary, first, second).terms():
        pairs = (square + 4 * product) ** (power // 2)  # (x+y)^2 = (x-y)^2 + 4xy
        reduced += coefficient * pairs * total ** (power % 2) * product**other
    terms = sp.Poly(sp.expand(reduced), total, product, square).terms()
    values = (x + y, x * y, (x - y) ** 2)
    return sp.Add(
        *(
            sp.Mul(sp.factor(coefficient), *(v**n for v, n in zip(values, powers, strict=True)))
            for powers, coefficient in terms
        )
    )


def two_step_coefficients(optimizer: LinearOptimizer) -> dict[sp.Symbol, sp.Expr]:
    r"""Return a and b of :math:`z_{t+1} = az_t - bz_{t-1}`, and a' and b' of the other mode."""
    a, b, a_other, b_other = sp.symbols("a b a' b'")
    (first, second), (first_other, second_other) = optimizer.recursion(x), optimizer.recursion(y)
    return {a: first, b: -second, a_other: first_other, b_other: -second_other}


def two_step_fraction(optimizer: LinearOptimizer) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    r"""Return the pair sum as numerator / (denominator at r = 1 + (r - 1) times the rest).

    Parameters
    ----------
    optimizer : LinearOptimizer
        With a memory of two points.

    Returns
    -------
    tuple of three SymPy expressions
        Numerator and rest, in a, b, a', b', c, d and r as in
        :func:`~quadmodel.symbolic.stability.two_step_pair_sum`; the denominator at r = 1, in x and
        y, every term of which vanishes with them.
    """
    numerator, denominator = sp.fraction(sp.together(two_step_pair_sum()))
    if denominator.subs(dict.fromkeys(denominator.free_symbols - {r}, 0)).coeff(r, 4) < 0:
        numerator, denominator = -numerator, -denominator
    at_one = denominator.subs(r, 1)
    rest = sp.cancel((denominator - at_one) / (r - 1))
    of_optimizer = at_one.subs(two_step_coefficients(optimizer), simultaneous=True)
    collected = sp.collect(sp.expand(numerator), sp.symbols("c d"), sp.factor)
    return collected, symmetric_form(of_optimizer), rest


def diagonal_fraction(optimizer: LinearOptimizer) -> tuple[sp.Expr, sp.Expr]:
    """Return numerator and denominator of the pair sum of a mode with itself, reduced, at r = 1."""
    numerator, denominator = sp.fraction(sp.cancel(pair_sum(optimizer).subs(y, x)))
    edge = sp.factor(denominator)
    if sp.Poly(denominator, x).coeff_monomial(x).subs(sp.Symbol("mu", real=True), 0) < 0:
        numerator, edge = -numerator, sp.factor(-denominator)
    return sp.factor(numerator), edge
