"""Canonical order of the summed indices of a term, by colour refinement of a small graph.

Indices are the vertices and factors the hyperedges. Colours are refined by the signatures of
neighbours until they are stable. Among indices that stay alike, each is singled out in turn, and
the order with the smallest certificate is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quadmodel.symbolic.algebra.indices import Factor, Index

Colours = dict[Index, int]
# What does not depend on the names of summed indices; equal for equal terms
Certificate = list[tuple[str, list[tuple[int, int]]]]


def canonical_order(factors: Sequence[Factor], summed: Sequence[Index]) -> list[Index]:
    """Return the summed indices in an order that does not depend on their names."""
    unordered = set(summed)
    colours = _ranked(
        {
            i: ((0, i.space.name, "") if i in unordered else (1, i.space.name, str(i.label)))
            for _, indices in factors
            for i in indices
        }
    )
    return _search(factors, list(summed), colours)[1]


def _search(
    factors: Sequence[Factor], summed: list[Index], colours: Colours
) -> tuple[Certificate, list[Index]]:
    """Return the smallest certificate and the order of indices that gives it."""
    colours = _refined(factors, colours)
    alike: dict[int, list[Index]] = {}
    for index in summed:
        alike.setdefault(colours[index], []).append(index)
    ties = [colour for colour, group in alike.items() if len(group) > 1]
    if not ties:
        return _certificate(factors, colours), sorted(summed, key=lambda i: colours[i])
    first = min(ties)
    trials = (
        _search(factors, summed, {i: 2 * c + (i == chosen) for i, c in colours.items()})
        for chosen in alike[first]
    )
    return min(trials, key=lambda trial: trial[0])


def _refined(factors: Sequence[Factor], colours: Colours) -> Colours:
    """Split colours by the signatures of their indices, until nothing more is split."""
    while True:
        found: dict[Index, list[Any]] = {index: [] for index in colours}
        for tensor, indices in factors:
            slots = [(c, colours[i]) for c, i in zip(tensor.classes, indices, strict=True)]
            whole = tuple(sorted(slots))
            for index, slot in zip(indices, slots, strict=True):
                found[index].append((tensor.name, slot, whole))
        finer = _ranked({i: (c, tuple(sorted(found[i]))) for i, c in colours.items()})
        if len(set(finer.values())) == len(set(colours.values())):
            return finer
        colours = finer


def _ranked(signatures: Mapping[Index, Any]) -> Colours:
    ranks = {signature: n for n, signature in enumerate(sorted(set(signatures.values())))}
    return {index: ranks[signature] for index, signature in signatures.items()}


def _certificate(factors: Sequence[Factor], colours: Colours) -> Certificate:
    """Return the term with colours in place of indices."""
    return sorted(
        (tensor.name, sorted(zip(tensor.classes, (colours[i] for i in indices), strict=True)))
        for tensor, indices in factors
    )
