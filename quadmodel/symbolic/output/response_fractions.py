"""Cancellation-free forms of the response fractions.

Noise kernel norms are evaluated for learning rates from tiny to the deterministic edge. The
expanded numerators and denominators of the pair sums are differences of nearly equal numbers
there. The forms of this module are equal to them, and lose no digits to cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

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


class TwoStepFraction(NamedTuple):
    r"""A pair sum as numerator / (margin margin' (at_one + (r - 1) rest) + r^2 square).

    The margins r - b and r - b', as symbols s and s', vanish at an edge where the memory's own
    factor reaches r; the numerator, in a, a', c, d, s, s' and r, vanishes with them.
    """

    numerator: sp.Expr
    at_one: sp.Expr  # in x and y, with every term of which it vanishes
    rest: sp.Expr  # in a, b, a', b' and r
    square: sp.Expr  # a multiple of (x - y)^2


def two_step_fraction(optimizer: LinearOptimizer) -> TwoStepFraction:
    r"""Return the pair sum in a form that loses no digits to cancellation.

    Parameters
    ----------
    optimizer : LinearOptimizer
        With a memory of two points.

    Returns
    -------
    TwoStepFraction
        Equal to :func:`~quadmodel.symbolic.stability.two_step_pair_sum`.

    Raises
    ------
    ValueError
        If it isn't.
    """
    a, b, a_other, b_other, c, d, s, s_other = sp.symbols("a b a' b' c d s s'")
    numerator = (r * c**2 + d**2) * (r * s + r * s_other - s * s_other)
    numerator -= r * c * d * (a * s_other + a_other * s)
    at_one = (1 + b) * (1 + b_other) - a * a_other
    rest = r + 1 + b + b_other - a * a_other
    square = (b - b_other) ** 2 + (a - a_other) * (a * b_other - a_other * b)
    margins = {s: r - b, s_other: r - b_other}
    denominator = (s * s_other * (at_one + (r - 1) * rest)).subs(margins) + r**2 * square
    over, under = sp.fraction(sp.together(two_step_pair_sum()))
    if sp.expand(numerator.subs(margins) * under - over * denominator) != 0:
        raise ValueError("the form without cancellation does not equal the derived pair sum")
    coefficients = two_step_coefficients(optimizer)
    in_x, distance = (
        symmetric_form(part.subs(coefficients, simultaneous=True)) for part in (at_one, square)
    )
    return TwoStepFraction(numerator, in_x, rest, distance)


def diagonal_fraction(optimizer: LinearOptimizer) -> tuple[sp.Expr, sp.Expr]:
    """Return numerator and denominator of the pair sum of a mode with itself, reduced, at r = 1."""
    numerator, denominator = sp.fraction(sp.cancel(pair_sum(optimizer).subs(y, x)))
    edge = sp.factor(denominator)
    if sp.Poly(denominator, x).coeff_monomial(x).subs(sp.Symbol("mu", real=True), 0) < 0:
        numerator, edge = -numerator, sp.factor(-denominator)
    return sp.factor(numerator), edge
