"""Folding: a tensor in place of a product of tensors that recurs in a polynomial."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import sympy as sp

from quadmodel.symbolic.algebra.indices import Factor, Index, TensorType, Term
from quadmodel.symbolic.algebra.polynomials import Polynomial

Match = dict[Index, Index]


def fold(
    polynomial: Polynomial, product: Polynomial, tensor: TensorType, scale: sp.Expr = sp.S.One
) -> Polynomial:
    r"""Put a tensor in place of a product of others, wherever the product stands by itself.

    Parameters
    ----------
    polynomial : Polynomial
        Where to replace the product.
    product : Polynomial
        One term with coefficient 1, as many free indices as the tensor has, in their order.
    tensor : TensorType
        What to put in its place; also one of
        :data:`~quadmodel.symbolic.algebra.indices.KRONECKER`.
    scale : SymPy expression, optional
        The product is `scale` times the tensor.

    Returns
    -------
    Polynomial
        Products whose summed indices occur elsewhere too are left as they are.
    """
    ((_, wanted, inner),) = product.opened()
    outer = product.free

    def terms() -> Iterator[Term]:
        for coefficient, factors, summed in polynomial.opened():
            left, kept = list(factors), list(summed)
            while places := next(_places(wanted, inner, left, kept), None):
                match, used = places
                left = [f for n, f in enumerate(left) if n not in used]
                left.append((tensor, tuple(match[i] for i in outer)))
                kept = [i for i in kept if i not in {match[i] for i in inner}]
                coefficient = coefficient * scale
            yield coefficient, left, kept

    return Polynomial.collect(terms())


def _places(
    wanted: Sequence[Factor], inner: Sequence[Index], factors: Sequence[Factor], kept: list[Index]
) -> Iterator[tuple[Match, list[int]]]:
    """Yield occurrences of the product whose summed indices occur nowhere else."""
    for match, used in _matches(wanted, factors, {}, []):
        outside = {i for n, (_, ii) in enumerate(factors) if n not in used for i in ii}
        if all(match[i] in kept and match[i] not in outside for i in inner):
            yield match, used


def _matches(
    wanted: Sequence[Factor], factors: Sequence[Factor], match: Match, used: list[int]
) -> Iterator[tuple[Match, list[int]]]:
    """Assign the factors of the product to factors of the term, one after the other."""
    if not wanted:
        yield match, used
        return
    (tensor, indices), *others = wanted
    for n, (candidate, found) in enumerate(factors):
        if candidate != tensor or n in used:
            continue
        for order in _equivalent_orders(tensor, found):
            new = dict(zip(indices, order, strict=True))
            if all(match.get(i, k) == k for i, k in new.items()):
                yield from _matches(others, factors, match | new, [*used, n])


def _equivalent_orders(
    tensor: TensorType, indices: tuple[Index, ...]
) -> Iterator[tuple[Index, ...]]:
    """Yield the orders of indices that stand for one entry of the tensor."""
    for order in itertools.permutations(range(len(indices))):
        if all(tensor.classes[k] == tensor.classes[n] for n, k in enumerate(order)):
            yield tuple(indices[k] for k in order)
