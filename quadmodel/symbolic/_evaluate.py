"""Values of index polynomials for given arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from quadmodel._validation import InputError
from quadmodel.symbolic.names import D

if TYPE_CHECKING:
    from quadmodel.symbolic.indices import Index, Polynomial, Space, Tensor


def evaluate(
    polynomial: Polynomial, values: Mapping[str, Any], unit: Mapping[Space, Tensor]
) -> Any:
    """Return the value for given arrays, in the arithmetic of their entries."""
    known = {name: _as_sympy(v) for name, v in values.items() if np.ndim(v) == 0}
    pieces = list(_contracted(polynomial, values, unit))
    numbers = [_substituted(scale, known) for scale, _ in pieces]
    if not all(number.is_finite for number in numbers):
        return _limit([scale for scale, _ in pieces], [array for _, array in pieces], known)
    total: Any = 0
    for number, (_, array) in zip(numbers, pieces, strict=True):
        total = total + _as_python(number) * array
    return total


def _contracted(
    polynomial: Polynomial, values: Mapping[str, Any], unit: Mapping[Space, Tensor]
) -> Iterator[tuple[sp.Expr, Any]]:
    """Yield every term's coefficient and the contraction of its arrays."""
    free = polynomial.free
    sizes = {
        space: int(values[space.dimension.name]) for space in unit if space.dimension.name in values
    }
    for monomial in polynomial.terms:
        for tensor, indices in monomial:
            if tensor not in unit.values():
                shape = np.shape(values[tensor.name])
                sizes |= {i.space: n for i, n in zip(indices, shape, strict=True)}
    units = {unit[space]: np.eye(n, dtype=int).astype(object) for space, n in sizes.items()}
    ones = [(unit[index.space], (index, index)) for index in free]
    for monomial, scale in polynomial.terms.items():
        numbering: dict[Index, int] = {}
        operands: list[Any] = []
        for tensor, indices in (*monomial, *ones):
            array = units[tensor] if tensor in units else np.asarray(values[tensor.name])
            operands += [array, [numbering.setdefault(i, len(numbering)) for i in indices]]
        yield scale, np.einsum(*operands, [numbering[i] for i in free]) if operands else 1


def _limit(scales: list[sp.Expr], arrays: list[Any], known: Mapping[str, sp.Expr]) -> Any:
    """Add up before D is put in: coefficients for more points than there are cancel."""
    others = {name: value for name, value in known.items() if name != D.name}
    partial = [_substituted(scale, others) for scale in scales]

    def entry(*amounts: Any) -> Any:
        terms = (scale * _as_sympy(amount) for scale, amount in zip(partial, amounts, strict=True))
        number = sp.cancel(sp.together(sp.Add(*terms))).subs(D, known[D.name])
        if not number.is_finite:
            raise InputError(
                f"D must be a value where the polynomial is finite, got {known[D.name]}"
            )
        return _as_python(number)

    return np.vectorize(entry, otypes=[object])(*arrays)


def _substituted(scale: sp.Expr, known: Mapping[str, sp.Expr]) -> sp.Expr:
    return scale.subs({s: known[s.name] for s in scale.free_symbols if s.name in known})


def _as_sympy(value: Any) -> sp.Expr:
    exact = isinstance(value, Fraction)
    return sp.Rational(value.numerator, value.denominator) if exact else sp.sympify(value)


def _as_python(number: sp.Expr) -> Any:
    return Fraction(int(number.p), int(number.q)) if number.is_Rational else float(number)
