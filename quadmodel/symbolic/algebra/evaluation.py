"""Values of index polynomials for given arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.indices import KRONECKER, Index, Terms
from quadmodel.symbolic.algebra.names import D


def evaluate(terms: Terms, free: Sequence[Index], values: Mapping[str, Any]) -> Any:
    """Return the value for given arrays, in the arithmetic of their entries."""
    known = {name: _as_sympy(v) for name, v in values.items() if np.ndim(v) == 0}
    total: Any = 0
    for scale, array in _contracted(terms, free, values):
        total = total + _number(scale, known) * array
    return total


def _contracted(
    terms: Terms, free: Sequence[Index], values: Mapping[str, Any]
) -> Iterator[tuple[sp.Expr, Any]]:
    """Yield every term's coefficient and the contraction of its arrays."""
    sizes = {
        space: int(values[space.dimension.name])
        for space in KRONECKER
        if space.dimension.name in values
    }
    for monomial in terms:
        for tensor, indices in monomial:
            if tensor not in KRONECKER.values():
                shape = np.shape(values[tensor.name])
                sizes |= {i.space: n for i, n in zip(indices, shape, strict=True)}
    units = {KRONECKER[space]: np.eye(n, dtype=int).astype(object) for space, n in sizes.items()}
    ones = [(KRONECKER[index.space], (index, index)) for index in free]
    for monomial, scale in terms.items():
        numbering: dict[Index, int] = {}
        operands: list[Any] = []
        for tensor, indices in (*monomial, *ones):
            array = units[tensor] if tensor in units else np.asarray(values[tensor.name])
            operands += [array, [numbering.setdefault(i, len(numbering)) for i in indices]]
        yield scale, np.einsum(*operands, [numbering[i] for i in free]) if operands else 1


def _number(scale: sp.Expr, known: Mapping[str, sp.Expr]) -> Any:
    """Put numbers in place of symbols; a rational result is a Python fraction."""
    number = _substituted(scale, known)
    if not number.is_finite:
        # Moments of more points than there are have poles in D, which cancel once B has its value.
        others = {name: value for name, value in known.items() if name != D.name}
        number = sp.cancel(_substituted(scale, others)).subs(D, known.get(D.name, D))
        if not number.is_finite:
            raise InputError(
                f"values must be where the polynomial is finite, got a pole of {scale}"
            )
    return Fraction(int(number.p), int(number.q)) if number.is_Rational else float(number)


def _substituted(scale: sp.Expr, known: Mapping[str, sp.Expr]) -> sp.Expr:
    return scale.subs({s: known[s.name] for s in scale.free_symbols if s.name in known})


def _as_sympy(value: Any) -> sp.Expr:
    exact = isinstance(value, Fraction)
    return sp.Rational(value.numerator, value.denominator) if exact else sp.sympify(value)
