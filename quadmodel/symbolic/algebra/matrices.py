"""From index form to matrices: products, traces, diagonals, Hadamard products.

SymPy's `convert_indexed_to_array` and `convert_array_to_matrix` stop at indices that occur three
times, which batch weights make all the time; and its NumPy printer lacks traces, diagonal parts and
unit matrices of symbolic size. Both are mended here with expressions of SymPy's own kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp
from sympy.matrices.expressions.hadamard import HadamardProduct

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.indices import Index, Monomial, Space, TensorType
from quadmodel.symbolic.algebra.names import eta
from quadmodel.symbolic.algebra.polynomials import Polynomial


class Tr(sp.Trace):  # type: ignore[misc]
    """Trace; of a 1 x 1 matrix, the number in it."""

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the matrix is explicit."""
        inner = self.arg.doit(**hints)
        return inner.trace() if isinstance(inner, sp.MatrixBase) else self.func(inner)

    def _latex(self, printer: Any) -> str:
        inner = printer._print(self.arg)
        if self.arg.shape == (1, 1):
            return rf"\left({inner}\right)"
        return rf"\operatorname{{tr}}\left({inner}\right)"

    def _numpycode(self, printer: Any) -> str:
        return f"{printer._module_format('numpy.trace')}({printer._print(self.arg)})"


class DiagonalPart(sp.MatrixExpr):  # type: ignore[misc]
    """A matrix with its entries off the diagonal put to zero."""

    def __new__(cls, matrix: Any) -> DiagonalPart:
        """Take a square matrix."""
        return sp.Basic.__new__(cls, matrix)  # type: ignore[no-any-return]

    @property
    def shape(self) -> tuple[sp.Expr, sp.Expr]:
        """Shape of the matrix."""
        return self.args[0].shape  # type: ignore[no-any-return]

    def _entry(self, i: Any, j: Any, **kwargs: Any) -> sp.Expr:
        return self.args[0][i, j] * sp.KroneckerDelta(i, j)

    def _eval_transpose(self) -> DiagonalPart:
        return self

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the matrix is explicit."""
        inner = self.args[0].doit(**hints)
        if isinstance(inner, sp.MatrixBase):
            return sp.ImmutableMatrix(sp.diag(*[inner[i, i] for i in range(inner.rows)]))
        return self.func(inner)

    def _latex(self, printer: Any) -> str:
        return rf"\operatorname{{diag}}\left({printer._print(self.args[0])}\right)"

    def _numpycode(self, printer: Any) -> str:
        diag = printer._module_format("numpy.diag")
        return f"{diag}({diag}({printer._print(self.args[0])}))"


class Diag(DiagonalPart):
    """The diagonal matrix of a column of numbers."""

    @property
    def shape(self) -> tuple[sp.Expr, sp.Expr]:
        """Square, of the column's length."""
        return (self.args[0].shape[0],) * 2

    def _entry(self, i: Any, j: Any, **kwargs: Any) -> sp.Expr:
        return self.args[0][i, 0] * sp.KroneckerDelta(i, j)

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the column is explicit."""
        inner = self.args[0].doit(**hints)
        if isinstance(inner, sp.MatrixBase):
            return sp.ImmutableMatrix(sp.diag(*inner))
        return self.func(inner)

    def _numpycode(self, printer: Any) -> str:
        numpy = printer._module_format
        return f"{numpy('numpy.diag')}({numpy('numpy.ravel')}({printer._print(self.args[0])}))"


class Unit(sp.Identity):  # type: ignore[misc]
    """Unit matrix that NumPy code can be printed for while its size is a symbol."""

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the size is a number."""
        size = self.args[0]
        return sp.ImmutableMatrix(sp.eye(int(size))) if size.is_Integer else self

    def _latex(self, printer: Any) -> str:
        return "I"

    def _numpycode(self, printer: Any) -> str:
        return f"{printer._module_format('numpy.eye')}({printer._print(self.args[0])})"


class Ones(sp.OneMatrix):  # type: ignore[misc]
    """Matrix of ones, of symbolic size."""

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the size is known."""
        known = all(size.is_Integer for size in self.args)
        return sp.ImmutableMatrix(sp.ones(*map(int, self.args))) if known else self

    def _eval_transpose(self) -> Ones:
        return Ones(self.cols, self.rows)

    def _latex(self, printer: Any) -> str:
        column = r"\mathbf{1}" if self.rows != 1 else ""
        return column + (r"\mathbf{1}^{T}" if self.cols != 1 else "")

    def _numpycode(self, printer: Any) -> str:
        rows, columns = (printer._print(size) for size in self.args)
        return f"{printer._module_format('numpy.ones')}(({rows}, {columns}))"


class Hadamard(HadamardProduct):  # type: ignore[misc]
    """Product entry by entry, which stays one where factors are equal."""

    def _eval_transpose(self) -> sp.Expr:
        return self.func(*(sp.Transpose(matrix).doit() for matrix in self.args))

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate where the matrices are explicit."""
        inner = [matrix.doit(**hints) for matrix in self.args]
        if not all(isinstance(matrix, sp.MatrixBase) for matrix in inner):
            return self.func(*inner)
        product = inner[0]
        for matrix in inner[1:]:
            product = sp.matrix_multiply_elementwise(product, matrix)
        return sp.ImmutableMatrix(product)


class Total(sp.MatAdd):  # type: ignore[misc]
    """Sum of matrices that prints its minus signs as such."""

    def doit(self, **hints: Any) -> sp.Expr:
        """Evaluate, and stay of this kind."""
        result = super().doit(**hints)
        return Total(*result.args) if isinstance(result, sp.MatAdd) else result

    def _latex(self, printer: Any) -> str:
        return str(" + ".join(map(printer._print, self.args))).replace("+ -", "- ")


@dataclass
class _Piece:
    """A factor of a matrix product."""

    matrix: sp.MatrixExpr
    symmetric: bool

    def turned(self) -> _Piece:
        return self if self.symmetric else _Piece(sp.Transpose(self.matrix).doit(), False)


_Chain = tuple[_Piece, ...]


@dataclass
class _Node:
    """An index: the columns and the diagonal matrices that sit on it."""

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


def _recognise(monomial: Monomial, free: Sequence[Index]) -> tuple[list[sp.Expr], sp.Expr]:
    """Return the numbers and the matrix that a term is the product of."""
    nodes = {i: _Node(i.space) for i in free}
    edges: list[tuple[Index, Index, _Chain]] = []
    for tensor, indices in monomial:
        for i in indices:
            nodes.setdefault(i, _Node(i.space))
        symmetric = len(tensor.slots) == 2 and tensor.classes[0] == tensor.classes[1]
        piece = (_Piece(matrix_of(tensor), symmetric),)
        if len(indices) == 1:
            nodes[indices[0]].columns.append(piece)
        else:
            edges.append((*indices, piece))  # type: ignore[arg-type]
    numbers: list[sp.Expr] = []
    while True:
        edges = _looped(edges, nodes, numbers, free)
        summed = [i for i in nodes if i not in free]
        if min((_degree(i, edges) for i in summed), default=3) > 2:
            edges = _joined(edges)
        if not summed:
            break
        index = min(summed, key=lambda i: _degree(i, edges))
        ends = [n for n, e in enumerate(edges) if index in e[:2]]
        node, touching = nodes.pop(index), [edges[n] for n in ends]
        if len(touching) > 2:
            raise InputError("the matrices must form a chain or a tree, got a denser network")
        edges = [e for n, e in enumerate(edges) if n not in ends]
        away = [(_other(e, index), _from(e, index)) for e in touching]
        if not away:
            numbers.append(_number_at(node))
        elif len(away) == 1:
            ((neighbour, chain),) = away
            nodes[neighbour].columns.append((*_turned(chain), *node.column()))
        else:
            (left, first), (right, second) = away
            edges.append((left, right, (*_turned(first), *node.weights(), *second)))
    return numbers, _between(nodes, edges, free)


def _between(nodes: dict[Index, _Node], edges: Any, free: Sequence[Index]) -> sp.Expr:
    if not free:
        return sp.S.One
    if len(free) == 1:
        return _product(nodes[free[0]].column())
    rows, columns = free
    if not edges and not any((n.columns or n.diagonals) for n in nodes.values()):
        return Ones(rows.space.dimension, columns.space.dimension)
    if not edges:
        return _product((*nodes[rows].column(), *_turned(nodes[columns].column())))
    (edge,) = edges
    return _product((*nodes[rows].weights(), *_from(edge, rows), *nodes[columns].weights()))


def _degree(index: Index, edges: Any) -> int:
    return sum(index in e[:2] for e in edges)


def _looped(edges: Any, nodes: dict[Index, _Node], numbers: list[sp.Expr], free: Any) -> Any:
    """Turn edges from an index to itself into traces and diagonal matrices."""
    left = []
    for start, end, chain in edges:
        if start != end:
            left.append((start, end, chain))
            continue
        node = nodes[start]
        alone = sum(start in e[:2] for e in edges) == 1 and start not in free
        if alone and not node.columns and not node.diagonals:
            numbers.append(Tr(_product(min(_rotations(chain), key=_name))))
            del nodes[start]
        else:
            node.diagonals.append(DiagonalPart(_product(min(chain, _turned(chain), key=_name))))
    return left


def _joined(edges: Any) -> Any:
    """Join parallel edges in one Hadamard product."""
    groups: dict[frozenset[Index], list[Any]] = {}
    for edge in edges:
        groups.setdefault(frozenset(edge[:2]), []).append(edge)
    joined = []
    for group in groups.values():
        start, end, chain = group[0]
        if len(group) > 1:
            chains = sorted((_from(e, start) for e in group), key=_name)
            symmetric = all(_name(c) == _name(_turned(c)) for c in chains)
            factors = [_product(c) for c in chains if not isinstance(c[0].matrix, Unit)]
            product = Hadamard(*factors) if len(factors) > 1 else factors[0]
            on_diagonal = len(factors) < len(chains)
            product = DiagonalPart(product) if on_diagonal else product
            chain = (_Piece(product, symmetric or on_diagonal),)
        joined.append((start, end, chain))
    return joined


def _number_at(node: _Node) -> sp.Expr:
    if not node.columns:
        first, *others = node.weights()
        return Tr(sp.MatMul(first.matrix, *(p.matrix for p in others)).doit(deep=False))
    columns = sorted(node.columns, key=_name)
    left = columns[0]
    right = columns[1] if len(columns) > 1 else (_Piece(Ones(node.space.dimension, 1), False),)
    middle = _Node(node.space, columns[2:], node.diagonals).weights()
    chain = (*_turned(left), *middle, *right)
    return Tr(_product(min(chain, _turned(chain), key=_name)))


def _rotations(chain: _Chain) -> list[_Chain]:
    """Return the chains that have the same trace."""
    turns = [(*chain[n:], *chain[:n]) for n in range(len(chain))]
    return turns + [_turned(c) for c in turns]


def _turned(chain: _Chain) -> _Chain:
    return tuple(piece.turned() for piece in reversed(chain))


def _other(edge: Any, index: Index) -> Any:
    return edge[1] if edge[0] == index else edge[0]


def _from(edge: Any, index: Index) -> _Chain:
    chain: _Chain = edge[2]
    return chain if edge[0] == index else _turned(chain)


def _product(chain: _Chain) -> sp.MatrixExpr:
    pieces = [piece.matrix for piece in chain]
    return pieces[0] if len(pieces) == 1 else sp.MatMul(*pieces).doit(deep=False)


def _name(chain: _Chain) -> str:
    return " ".join(str(piece.matrix) for piece in chain)
