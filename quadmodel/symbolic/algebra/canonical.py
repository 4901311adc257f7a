"""Canonical order of the summed indices of a term: the colour refinement of small graphs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

Described = Sequence[tuple[str, tuple[int, ...], tuple[Any, ...]]]


def canonical_order(factors: Described, summed: Sequence[Any]) -> list[Any]:
    """Return the summed indices in an order that does not depend on their names.

    Parameters
    ----------
    factors : sequence of (name, classes of slots, indices)
        The term. Slots of one class may be exchanged.
    summed : sequence of index
        The indices to be ordered; the others count as named.

    Returns
    -------
    list of index
    """
    colours: dict[Any, int] = _ranked(
        {
            i: ((0, i.space.name, "") if i in set(summed) else (1, i.space.name, str(i.label)))
            for _, _, indices in factors
            for i in indices
        }
    )
    return _search(factors, list(summed), colours)[1]


def _search(
    factors: Described, summed: list[Any], colours: dict[Any, int]
) -> tuple[Any, list[Any]]:
    """Refine; where indices stay alike, single out each in turn and keep the smallest picture."""
    colours = _refined(factors, colours)
    alike: dict[int, list[Any]] = {}
    for index in summed:
        alike.setdefault(colours[index], []).append(index)
    ties = [colour for colour, group in alike.items() if len(group) > 1]
    if not ties:
        return _picture(factors, colours), sorted(summed, key=lambda i: colours[i])
    first = min(ties)
    trials = (
        _search(factors, summed, {i: 2 * c + (i == chosen) for i, c in colours.items()})
        for chosen in alike[first]
    )
    return min(trials, key=lambda trial: trial[0])


def _refined(factors: Described, colours: dict[Any, int]) -> dict[Any, int]:
    """Tell indices apart by the company they keep, until that tells nothing new."""
    while True:
        seen: dict[Any, list[Hashable]] = {index: [] for index in colours}
        for name, classes, indices in factors:
            slots = [(kind, colours[i]) for kind, i in zip(classes, indices, strict=True)]
            whole = tuple(sorted(slots))
            for index, slot in zip(indices, slots, strict=True):
                seen[index].append((name, slot, whole))
        finer = _ranked({i: (c, tuple(sorted(seen[i]))) for i, c in colours.items()})  # type: ignore[type-var]
        if len(set(finer.values())) == len(set(colours.values())):
            return finer
        colours = finer


def _ranked(signatures: dict[Any, Any]) -> dict[Any, int]:
    ranks = {signature: n for n, signature in enumerate(sorted(set(signatures.values())))}
    return {index: ranks[signature] for index, signature in signatures.items()}


def _picture(factors: Described, colours: dict[Any, int]) -> list[Any]:
    """Return the term with colours in place of names."""
    return sorted(
        (name, sorted((kind, colours[i]) for kind, i in zip(classes, indices, strict=True)))
        for name, classes, indices in factors
    )
