"""Indices, symmetries of tensors, and terms: the passive types that all of the algebra shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sympy as sp

from quadmodel.symbolic.algebra.names import D, P


class Space(NamedTuple):
    """A range of indices."""

    name: str
    dimension: sp.Expr
    letters: str


DATA = Space("data", D, "abcdefgh")
PARAMETERS = Space("parameters", P, "ijklmnopq")


class Index(NamedTuple):
    """An index. In a polynomial, free ones carry a letter and summed ones a number."""

    space: Space
    label: str | int


def data_indices(letters: str) -> list[Index]:
    """Return a data index per letter.

    Parameters
    ----------
    letters : str
        Names, one letter each.

    Returns
    -------
    list of Index

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> a, b = symbolic.data_indices("ab")
    >>> symbolic.delta(a, b)
    (1)*delta_ab
    """
    return [Index(DATA, letter) for letter in letters]


def parameter_indices(letters: str) -> list[Index]:
    """Return a parameter index per letter.

    Parameters
    ----------
    letters : str
        Names, one letter each.

    Returns
    -------
    list of Index

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> i, j = symbolic.parameter_indices("ij")
    >>> i.space.dimension
    P
    """
    return [Index(PARAMETERS, letter) for letter in letters]


@dataclass(frozen=True)
class TensorType:
    r"""Name, ranges and symmetries of a tensor.

    Parameters
    ----------
    name : str
        Name, as SymPy spells names: "Theta" prints as :math:`\Theta`.
    slots : tuple of Space
        Range of every index.
    classes : tuple of int, optional
        Slots of the same class may be exchanged: (0, 1, 1) for :math:`Q_{aij} = Q_{aji}`.
    """

    name: str
    slots: tuple[Space, ...]
    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Give every slot a class of its own where none is stated."""
        object.__setattr__(self, "classes", self.classes or tuple(range(len(self.slots))))


Factor = tuple[TensorType, tuple[Index, ...]]
Monomial = tuple[Factor, ...]
Terms = Mapping[Monomial, sp.Expr]  # a polynomial: coefficients by monomial
# Coefficient, factors with named indices, and those of the indices that are summed over
Term = tuple[sp.Expr, Sequence[Factor], Sequence[Index]]

# The Kronecker delta of each range
KRONECKER = {space: TensorType("delta", (space, space), (0, 0)) for space in (DATA, PARAMETERS)}


def renamed(factors: Iterable[Factor], names: Mapping[Index, Index]) -> list[Factor]:
    """Put other indices in place of some."""
    return [(tensor, tuple(names.get(i, i) for i in indices)) for tensor, indices in factors]


def index_key(index: Index) -> tuple[str, bool, str]:
    """Return what indices are sorted by: free ones before summed ones."""
    return index.space.name, isinstance(index.label, int), str(index.label)


def factor_key(factor: Factor) -> tuple[str, list[tuple[str, bool, str]]]:
    """Return what factors are sorted by."""
    return factor[0].name, [index_key(i) for i in factor[1]]
