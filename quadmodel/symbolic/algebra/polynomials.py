r"""Polynomials in tensors with indices: the form in which every average is taken.

A term is a coefficient times a product of tensors, e.g.
:math:`\eta\,J_{ai}J_{ci}w_cz_c`, with some indices free and the others summed over their whole
range, however often they occur: SymPy's `sympy.tensor` contracts indices in pairs, and batch
weights make triples. Equal terms merge whatever their summed indices are called.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.evaluation import evaluate
from quadmodel.symbolic.algebra.indices import (
    KRONECKER,
    Index,
    Monomial,
    TensorType,
    Term,
    factor_key,
    renamed,
)
from quadmodel.symbolic.algebra.normal_form import contract_deltas, normal_form
from quadmodel.symbolic.algebra.printing import latex, plain

_numbers = itertools.count()


class Tensor(TensorType):
    """A tensor whose call with indices gives its entry there, as a polynomial.

    See ``TensorType`` for its parameters.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> (a, b), (i,) = symbolic.data_indices("ab"), symbolic.parameter_indices("i")
    >>> J = symbolic.Tensor("J", (a.space, i.space))
    >>> (J(a, i) * J(b, i)).sum(i)
    (1)*J_ai*J_bi
    """

    def __call__(self, *indices: Index) -> Polynomial:
        """Return the entry at these indices."""
        return _entry(self, indices)


def _entry(tensor: TensorType, indices: tuple[Index, ...]) -> Polynomial:
    if tuple(index.space for index in indices) != tensor.slots:
        raise InputError(
            f"{tensor.name} must have indices of {', '.join(s.name for s in tensor.slots)}, got "
            f"{', '.join(i.space.name for i in indices) or 'none'}"
        )
    return Polynomial.collect([(sp.S.One, [(tensor, indices)], [])])


def delta(first: Index, second: Index) -> Polynomial:
    """Return the Kronecker delta of two indices of one space.

    Parameters
    ----------
    first, second : Index
        Indices of one space.

    Returns
    -------
    Polynomial

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> a, b = symbolic.data_indices("ab")
    >>> z = symbolic.Tensor("z", (a.space,))
    >>> (symbolic.delta(a, b) * z(b)).sum(b)
    (1)*z_a
    """
    return _entry(KRONECKER[first.space], (first, second))


def constant(value: Any) -> Polynomial:
    """Return the polynomial of this value without tensors."""
    return Polynomial({(): sp.sympify(value)} if value != 0 else {})


class Polynomial:
    """A sum of terms; immutable, in normal form.

    Parameters
    ----------
    terms : mapping of monomial to SymPy expression
        As :meth:`collect` makes them; use that, and the tensors themselves, to make polynomials.
    """

    def __init__(self, terms: Mapping[Monomial, sp.Expr]) -> None:
        self.terms = dict(terms)

    @classmethod
    def collect(cls, terms: Iterable[Term]) -> Polynomial:
        """Bring terms into normal form and merge equal ones.

        Parameters
        ----------
        terms : iterable of (coefficient, factors, summed indices)
            A summed index that no factor holds gives the size of its range.

        Returns
        -------
        Polynomial
        """
        gathered: dict[Monomial, list[sp.Expr]] = {}
        for coefficient, factors, summed in terms:
            scale, left, kept = contract_deltas(coefficient, factors, summed)
            gathered.setdefault(normal_form(left, kept), []).append(scale)
        added = {monomial: sp.expand(sp.Add(*scales)) for monomial, scales in gathered.items()}
        ordered = sorted(added, key=lambda m: (len(m), [factor_key(factor) for factor in m]))
        return cls({monomial: added[monomial] for monomial in ordered if added[monomial] != 0})

    @property
    def free(self) -> list[Index]:
        """Free indices, in alphabetical order, data before parameters."""
        found = {i for monomial in self.terms for _, indices in monomial for i in indices}
        return sorted(i for i in found if isinstance(i.label, str))

    def opened(self) -> Iterator[Term]:
        """Yield the terms for :meth:`collect`, every summed index under a name of its own."""
        for monomial, scale in self.terms.items():
            names: dict[Index, Index] = {}
            for _, indices in monomial:
                for index in indices:
                    if isinstance(index.label, int) and index not in names:
                        names[index] = Index(index.space, f"#{next(_numbers)}")
            yield scale, renamed(monomial, names), list(names.values())

    def __add__(self, other: Any) -> Polynomial:
        """Add a polynomial or a scalar."""
        return Polynomial.collect([*self.opened(), *_as_polynomial(other).opened()])

    def __mul__(self, other: Any) -> Polynomial:
        """Multiply; summed indices of the factors stay apart, free ones of one name coincide."""
        right = _as_polynomial(other)
        return Polynomial.collect(
            (a * b, [*f, *g], [*u, *v]) for a, f, u in self.opened() for b, g, v in right.opened()
        )

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Polynomial:
        """Negate."""
        return self.map(lambda scale: -scale)

    def __sub__(self, other: Any) -> Polynomial:
        """Subtract a polynomial or a scalar."""
        return self + (-_as_polynomial(other))

    def equals(self, other: Polynomial) -> bool:
        """Whether two polynomials are equal for all values of their symbols.

        Parameters
        ----------
        other : Polynomial
            What to compare with.

        Returns
        -------
        bool
        """
        return not (self - other).map(sp.simplify).terms

    def sum(self, *over: Index) -> Polynomial:
        """Sum over free indices.

        Parameters
        ----------
        *over : Index
            Free indices; one that no factor holds gives the size of its range.

        Returns
        -------
        Polynomial
        """
        return Polynomial.collect((a, f, [*u, *over]) for a, f, u in self.opened())

    def rename(self, names: Mapping[Index, Index]) -> Polynomial:
        """Give free indices other names.

        Parameters
        ----------
        names : mapping of Index to Index
            Old and new.

        Returns
        -------
        Polynomial
        """
        return Polynomial.collect((a, renamed(f, names), u) for a, f, u in self.opened())

    def map(self, function: Callable[[sp.Expr], sp.Expr]) -> Polynomial:
        """Apply a function to every coefficient.

        Parameters
        ----------
        function : callable
            From SymPy expression to SymPy expression.

        Returns
        -------
        Polynomial
        """
        mapped = {monomial: function(scale) for monomial, scale in self.terms.items()}
        return Polynomial({monomial: scale for monomial, scale in mapped.items() if scale != 0})

    def subs(self, *substitutions: Any) -> Polynomial:
        """Substitute in the coefficients, as SymPy's method of that name does.

        Parameters
        ----------
        *substitutions
            As for :meth:`sympy.Basic.subs`.

        Returns
        -------
        Polynomial
        """
        return self.map(lambda scale: sp.expand(scale.subs(*substitutions)))

    def replace(self, tensor: TensorType, by: Callable[..., Any]) -> Polynomial:
        """Put a polynomial in place of every occurrence of a tensor.

        Parameters
        ----------
        tensor : Tensor
            What to replace.
        by : callable
            Takes the indices of an occurrence and returns a polynomial or a scalar.

        Returns
        -------
        Polynomial
        """

        def product(group: Sequence[tuple[Index, ...]]) -> Iterator[Polynomial]:
            result = constant(1)
            for indices in group:
                result = result * by(*indices)
            yield result

        return self.expand(tensor, product)

    def expand(
        self,
        tensor: TensorType,
        rule: Callable[[Sequence[tuple[Index, ...]]], Iterable[Polynomial]],
    ) -> Polynomial:
        """Replace all occurrences of a tensor in a term at once.

        Parameters
        ----------
        tensor : Tensor
            What to replace.
        rule : callable
            Takes the indices of all its occurrences in a term and yields polynomials, whose sum
            takes their place.

        Returns
        -------
        Polynomial
        """

        def terms() -> Iterator[Term]:
            for scale, factors, summed in self.opened():
                group = [indices for t, indices in factors if t == tensor]
                others = [factor for factor in factors if factor[0] != tensor]
                for piece in rule(group) if group else [constant(1)]:
                    for a, more, own in piece.opened():
                        yield scale * a, [*others, *more], [*summed, *own]

        return Polynomial.collect(terms())

    def coefficient(self, monomial: Polynomial) -> sp.Expr:
        """Return the coefficient of one term.

        Parameters
        ----------
        monomial : Polynomial
            The term, with coefficient 1.

        Returns
        -------
        SymPy expression
        """
        (key,) = monomial.terms
        return self.terms.get(key, sp.S.Zero)

    def degree(self, tensor: TensorType) -> int:
        """Return the highest number of times that a term holds a tensor.

        Parameters
        ----------
        tensor : Tensor
            The tensor to count.

        Returns
        -------
        int
        """
        return max((sum(t == tensor for t, _ in monomial) for monomial in self.terms), default=0)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return the value for given arrays, in the arithmetic of their entries.

        Parameters
        ----------
        values : mapping of str to array or number
            An array per tensor's name and a number per symbol's name. Arrays of Python fractions
            give exact results.

        Returns
        -------
        ndarray
            Its axes are the free indices, in the order of :attr:`free`.

        Raises
        ------
        InputError
            If a coefficient has a pole at the given D that does not cancel.
        """
        return evaluate(self.terms, self.free, values)

    def _latex(self, printer: Any = None) -> str:
        return latex(self.terms)

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self._latex()}$"

    def __repr__(self) -> str:
        """Name every term, summed indices as letters."""
        return plain(self.terms)


def _as_polynomial(value: Any) -> Polynomial:
    return value if isinstance(value, Polynomial) else constant(value)
