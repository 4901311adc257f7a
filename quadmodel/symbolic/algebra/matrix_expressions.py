"""Matrix expressions that SymPy lacks or can't print: traces, diagonals, units of symbolic size.

SymPy's NumPy printer has no traces, diagonal parts and unit matrices of symbolic size; the classes
here print themselves, and evaluate where their matrices are explicit.
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.matrices.expressions.hadamard import HadamardProduct


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
