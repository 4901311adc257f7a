"""Normal form of a term: deltas contracted, summed indices numbered, factors sorted."""

from __future__ import annotations

from collections.abc import Sequence

import sympy as sp

from quadmodel.symbolic.algebra.canonical import canonical_order
from quadmodel.symbolic.algebra.indices import (
    KRONECKER,
    Factor,
    Index,
    Monomial,
    Space,
    factor_key,
    index_key,
    renamed,
)

_DELTAS = frozenset(KRONECKER.values())


def contract_deltas(
    coefficient: sp.Expr, factors: Sequence[Factor], summed: Sequence[Index]
) -> tuple[sp.Expr, list[Factor], list[Index]]:
    """Do the sums over indices of Kronecker deltas, and those over indices of no factor."""
    left, kept = list(factors), list(summed)
    pending = [factor for factor in left if factor[0] in _DELTAS]
    while pending:
        delta = pending.pop()
        left.remove(delta)
        i, k = sorted(delta[1], key=lambda index: (index in kept, index_key(index)))
        if i == k:
            continue
        # In all other factors i replaces k, which is summed over or the later of two free indices.
        left = renamed(left, {k: i})
        pending = renamed(pending, {k: i})
        if k in kept:
            kept.remove(k)
        else:
            left.append(delta)
    used = {i for _, indices in left for i in indices}
    sizes = (index.space.dimension for index in kept if index not in used)
    return sp.Mul(coefficient, *sizes), left, [i for i in kept if i in used]


def normal_form(factors: Sequence[Factor], summed: Sequence[Index]) -> Monomial:
    """Name the summed indices so that equal terms become equal, and sort the factors."""
    counts: dict[Space, int] = {}
    names: dict[Index, Index] = {}
    for index in canonical_order(factors, summed):
        counts[index.space] = counts.get(index.space, -1) + 1
        names[index] = index._replace(label=counts[index.space])
    return tuple(sorted((_slots_sorted(f) for f in renamed(factors, names)), key=factor_key))


def _slots_sorted(factor: Factor) -> Factor:
    """Order the indices within slots that may be exchanged."""
    tensor, indices = factor
    pools: dict[int, list[Index]] = {}
    for slot_class, index in zip(tensor.classes, indices, strict=True):
        pools.setdefault(slot_class, []).append(index)
    for pool in pools.values():
        pool.sort(key=index_key, reverse=True)
    return tensor, tuple(pools[slot_class].pop() for slot_class in tensor.classes)
