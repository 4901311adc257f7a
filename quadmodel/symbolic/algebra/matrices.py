"""From index form to matrices: products, traces, diagonals, Hadamard products.

SymPy's `convert_indexed_to_array` and `convert_array_to_matrix` stop at indices that occur three
times, which batch weights make all the time. Here a term is contracted as a tensor network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.indices import Index, Monomial, Space, TensorType
from quadmodel.symbolic.algebra.matrix_expressions import (
    Diag,
    DiagonalPart,
    Hadamard,
    Ones,
    Total,
    Tr,
    Unit,
)
from quadmodel.symbolic.algebra.names import eta
from quadmodel.symbolic.algebra.polynomials import Polynomial


def as_matrix(
    polynomial: Polynomial, rows: Index | None = None, columns: Index | None = None
) -> sp.Expr:
    """Write a polynomial with matrices.

    Parameters
    ----------
    polynomial : Polynomial
        With two free indices, one, or none.
    rows, columns : Index, optional
        Which free index numbers the rows, which the columns; by default in alphabetical order.

    Returns
    -------
    SymPy expression
        A matrix, a column, or a number.

    Raises
    ------
    InputError
        If it has more free indices, holds a tensor of three or more indices, or a network of
        matrices that is neither a chain nor a tree.

    Examples
    --------
    >>> from quadmodel.symbolic.algebra import indices, matrices, polynomials
    >>> a, b, c = indices.data_indices("abc")
    >>> M = polynomials.Tensor("M", (indices.DATA, indices.DATA), (0, 0))
    >>> matrices.as_matrix((M(a, c) * M(c, c) * M(c, b)).sum(c))
    M*DiagonalPart(M)*M
    """
    free = [i for i in (rows, columns) if i is not None] or polynomial.free
    count = max(len(free), len(polynomial.free))
    if count > 2:
        raise InputError(f"a matrix must have at most two free indices, got {count}")
    if set(polynomial.free) - set(free) or len(set(free)) < len(free):
        raise InputError(
            "rows and columns must be the polynomial's free indices "
            f"{', '.join(str(i.label) for i in polynomial.free)}, got "
            f"{', '.join(str(i.label) for i in free)}"
        )
    gathered: dict[tuple[sp.Expr, ...], sp.Expr] = {}
    for monomial, scale in polynomial.terms.items():
        numbers, matrix = _recognise(monomial, free)
        key = (sp.Mul(*numbers), matrix)
        gathered[key] = gathered.get(key, 0) + scale
    terms = [(sp.factor(scale), *key) for key, scale in gathered.items()]
    terms = sorted((t for t in terms if t[0] != 0), key=_by_learning_rate)
    if not free:
        return sp.Add(*(scale * number for scale, number, _ in terms))
    if not terms:
        return sp.ZeroMatrix(*[i.space.dimension for i in free], *[1] * (2 - len(free)))
    products = [
        sp.MatMul(scale * number, matrix).doit(deep=False) for scale, number, matrix in terms
    ]
    return products[0] if len(products) == 1 else Total(*products)


def _by_learning_rate(term: tuple[sp.Expr, ...]) -> tuple[Any, ...]:
    scale, *others = term
    numerator, denominator = sp.fraction(scale)
    order = sp.degree(numerator, eta) - sp.degree(denominator, eta)
    return order, len(str(others)), sp.default_sort_key(sp.Tuple(*others))


def matrix_of(tensor: TensorType) -> sp.MatrixExpr:
    """Return the matrix symbol of a tensor with one or two indices.

    Parameters
    ----------
    tensor : TensorType
        A matrix or a column.

    Returns
    -------
    MatrixSymbol

    Raises
    ------
    InputError
        If it has more indices.
    """
    if len(tensor.slots) not in (1, 2):
        raise InputError(f"{tensor.name} must have one or two indices, got {len(tensor.slots)}")
    sizes = [space.dimension for space in tensor.slots]
    if tensor.name == "delta":
        return Unit(sizes[0])
    return sp.MatrixSymbol(tensor.name, sizes[0], sizes[1] if len(sizes) == 2 else 1)


@dataclass
class _Piece:
    """A factor of a matrix product."""

    matrix: sp.MatrixExpr
    symmetric: bool

    def transposed(self) -> _Piece:
        return self if self.symmetric else _Piece(sp.Transpose(self.matrix).doit(), False)


_Chain = tuple[_Piece, ...]


class _Edge(NamedTuple):
    """A matrix product between two indices."""

    start: Index
    end: Index
    chain: _Chain

    def joins(self, index: Index) -> bool:
        return index in (self.start, self.end)

    def other(self, index: Index) -> Index:
        return self.end if self.start == index else self.start

    def seen_from(self, index: Index) -> _Chain:
        return self.chain if self.start == index else _transposed(self.chain)


@dataclass
class _Node:
    """An index, with the columns and the diagonal matrices of this index alone."""

    space: Space
    columns: list[_Chain] = field(default_factory=list)
    diagonals: list[sp.MatrixExpr] = field(default_factory=list)

    def weights(self, skip: int = 0) -> _Chain:
        on_diagonal = [*self.diagonals, *(Diag(_product(c)) for c in self.columns[skip:])]
        return tuple(_Piece(d, True) for d in sorted(on_diagonal, key=sp.default_sort_key))

    def column(self) -> _Chain:
        """Return the product of all weights as one column."""
        last = self.columns[0] if self.columns else (_Piece(Ones(self.space.dimension, 1), False),)
        return (*self.weights(skip=1), *last)

    def total(self) -> sp.Expr:
        """Return the sum over the index."""
        if not self.columns:
            first, *others = self.weights()
            return Tr(sp.MatMul(first.matrix, *(p.matrix for p in others)).doit(deep=False))
        columns = sorted(self.columns, key=_name)
        left = columns[0]
        ones = (_Piece(Ones(self.space.dimension, 1), False),)
        right = columns[1] if len(columns) > 1 else ones
        middle = _Node(self.space, columns[2:], self.diagonals).weights()
        chain = (*_transposed(left), *middle, *right)
        return Tr(_product(min(chain, _transposed(chain), key=_name)))


def _recognise(monomial: Monomial, free: Sequence[Index]) -> tuple[list[sp.Expr], sp.Expr]:
    """Return the numbers and the matrix that a term is the product of.

    The term is a tensor network: indices are its nodes, matrices its edges. Summed indices are
    eliminated one by one, that of smallest degree first.
    """
    network = _Network(monomial, free)
    while True:
        network.close_loops()
        summed = network.summed()
        if all(network.degree(index) > 2 for index in summed):
            network.join_parallel_edges()
        if not summed:
            return network.numbers, network.matrix()
        network.eliminate(min(summed, key=network.degree))


class _Network:
    """A term on its way to a matrix: what is left of its graph, and the numbers split off."""

    def __init__(self, monomial: Monomial, free: Sequence[Index]) -> None:
        self.free = free
        self.nodes = {i: _Node(i.space) for i in free}
        self.edges: list[_Edge] = []
        self.numbers: list[sp.Expr] = []
        for tensor, indices in monomial:
            for i in indices:
                self.nodes.setdefault(i, _Node(i.space))
            symmetric = len(tensor.slots) == 2 and tensor.classes[0] == tensor.classes[1]
            chain = (_Piece(matrix_of(tensor), symmetric),)
            if len(indices) == 1:
                self.nodes[indices[0]].columns.append(chain)
            else:
                start, end = indices
                self.edges.append(_Edge(start, end, chain))

    def summed(self) -> list[Index]:
        return [i for i in self.nodes if i not in self.free]

    def degree(self, index: Index) -> int:
        return sum(edge.joins(index) for edge in self.edges)

    def close_loops(self) -> None:
        """Turn edges from an index to itself into traces and diagonal matrices."""
        left = []
        for edge in self.edges:
            if edge.start != edge.end:
                left.append(edge)
                continue
            index, chain = edge.start, edge.chain
            node = self.nodes[index]
            alone = self.degree(index) == 1 and index not in self.free
            if alone and not node.columns and not node.diagonals:
                self.numbers.append(Tr(_product(min(_rotations(chain), key=_name))))
                del self.nodes[index]
            else:
                smallest = min(chain, _transposed(chain), key=_name)
                node.diagonals.append(DiagonalPart(_product(smallest)))
        self.edges = left

    def join_parallel_edges(self) -> None:
        """Join parallel edges in one Hadamard product."""
        groups: dict[frozenset[Index], list[_Edge]] = {}
        for edge in self.edges:
            groups.setdefault(frozenset(edge[:2]), []).append(edge)
        self.edges = [_joined(group) if len(group) > 1 else group[0] for group in groups.values()]

    def eliminate(self, index: Index) -> None:
        """Sum over an index with at most two edges: a number, a column or a matrix product."""
        node = self.nodes.pop(index)
        touching = [edge for edge in self.edges if edge.joins(index)]
        if len(touching) > 2:
            raise InputError("the matrices must form a chain or a tree, got a denser network")
        self.edges = [edge for edge in self.edges if not edge.joins(index)]
        neighbours = [(edge.other(index), edge.seen_from(index)) for edge in touching]
        if not neighbours:
            self.numbers.append(node.total())
        elif len(neighbours) == 1:
            ((neighbour, chain),) = neighbours
            self.nodes[neighbour].columns.append((*_transposed(chain), *node.column()))
        else:
            (left, first), (right, second) = neighbours
            chain = (*_transposed(first), *node.weights(), *second)
            self.edges.append(_Edge(left, right, chain))

    def matrix(self) -> sp.Expr:
        """Return the matrix between the free indices, all others being eliminated."""
        if not self.free:
            return sp.S.One
        nodes = [self.nodes[i] for i in self.free]
        if len(nodes) == 1:
            return _product(nodes[0].column())
        rows, columns = nodes
        if not self.edges and not any((n.columns or n.diagonals) for n in nodes):
            return Ones(rows.space.dimension, columns.space.dimension)
        if not self.edges:
            return _product((*rows.column(), *_transposed(columns.column())))
        (edge,) = self.edges
        return _product((*rows.weights(), *edge.seen_from(self.free[0]), *columns.weights()))


def _joined(group: Sequence[_Edge]) -> _Edge:
    """Return the Hadamard product of parallel edges; with a unit matrix, its diagonal part."""
    start, end, _ = group[0]
    chains = sorted((edge.seen_from(start) for edge in group), key=_name)
    symmetric = all(_name(c) == _name(_transposed(c)) for c in chains)
    factors = [_product(c) for c in chains if not isinstance(c[0].matrix, Unit)]
    product = Hadamard(*factors) if len(factors) > 1 else factors[0]
    on_diagonal = len(factors) < len(chains)
    product = DiagonalPart(product) if on_diagonal else product
    return _Edge(start, end, (_Piece(product, symmetric or on_diagonal),))


def _rotations(chain: _Chain) -> list[_Chain]:
    """Return the chains that have an equal trace."""
    turns = [(*chain[n:], *chain[:n]) for n in range(len(chain))]
    return turns + [_transposed(c) for c in turns]


def _transposed(chain: _Chain) -> _Chain:
    return tuple(piece.transposed() for piece in reversed(chain))


def _product(chain: _Chain) -> sp.MatrixExpr:
    pieces = [piece.matrix for piece in chain]
    return pieces[0] if len(pieces) == 1 else sp.MatMul(*pieces).doit(deep=False)


def _name(chain: _Chain) -> str:
    return " ".join(str(piece.matrix) for piece in chain)
