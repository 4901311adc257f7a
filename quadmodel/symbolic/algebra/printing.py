"""Index polynomials in LaTeX and in plain text."""

from __future__ import annotations

from collections.abc import Iterator

import sympy as sp

from quadmodel.symbolic.algebra.indices import Index, Monomial, Terms


def latex(terms: Terms) -> str:
    """Return LaTeX; indices that occur on one side only are summed over."""
    parts = []
    for scale, factors in _with_letters(terms):
        names = [_entry(name, letters) for name, letters in factors]
        number = sp.latex(scale) if not scale.is_Add else rf"\left({sp.latex(scale)}\right)"
        if names and scale in (1, -1):
            number = number[:-1]
        parts.append(" ".join([number, *names]).strip())
    return " + ".join(parts).replace("+ -", "- ") or "0"


def plain(terms: Terms) -> str:
    """Return plain text; indices that occur on one side only are summed over."""
    parts = (
        "*".join([f"({scale})", *(f"{name}_{letters}" for name, letters in factors)])
        for scale, factors in _with_letters(terms)
    )
    return " + ".join(parts) or "0"


def _with_letters(terms: Terms) -> Iterator[tuple[sp.Expr, list[tuple[str, str]]]]:
    for monomial, scale in terms.items():
        letters = _letters(monomial)
        yield scale, [(t.name, "".join(letters[i] for i in ii)) for t, ii in monomial]


def _entry(name: str, letters: str) -> str:
    """Return a tensor's entry in LaTeX, with its indices after any subscript of its name."""
    base, subscript, rest = sp.latex(sp.Symbol(name)).partition("_{")
    return f"{base}_{{{rest[:-1]}, {letters}}}" if subscript else f"{base}_{{{letters}}}"


def _letters(monomial: Monomial) -> dict[Index, str]:
    """Choose a letter for every index of a term."""
    indices = dict.fromkeys(i for _, ii in monomial for i in ii)
    taken = {i.label for i in indices}
    spaces = {i.space for i in indices}
    spare = {
        space: iter(
            [c for c in space.letters if c not in taken]
            + [f"{space.letters[0]}{n}" for n in range(20)]
        )
        for space in spaces
    }
    return {i: i.label if isinstance(i.label, str) else next(spare[i.space]) for i in indices}
