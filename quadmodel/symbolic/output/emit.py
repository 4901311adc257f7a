"""The numeric theory's closed forms as a module of NumPy functions, written by the derivations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import sympy as sp
from sympy.printing.numpy import NumPyPrinter
from sympy.printing.precedence import PRECEDENCE

from quadmodel.symbolic.output.formula import Formula
from quadmodel.symbolic.output.formulas import formulas

MODULE = "quadmodel/theory/_generated.py"

_HEAD = '''"""Closed forms of the theory. Written by `quadmodel derive`; not to be edited by hand.

Arguments are numbers or arrays that broadcast against each other; so are the results.
SymPy VERSION.
"""

from typing import Any

import numpy as np
'''


class _Printer(NumPyPrinter):  # type: ignore[misc]
    """NumPy code with the usual short name of the module."""

    def __init__(self) -> None:
        super().__init__({"fully_qualified_modules": True})

    def _print_Pow(self, expr: sp.Expr, rational: bool = False) -> str:
        if expr.exp == -1:
            return f"1/{self.parenthesize(expr.base, PRECEDENCE['Mul'], strict=True)}"
        return str(super()._print_Pow(expr, rational))

    def _print_MatMul(self, expr: sp.Expr) -> str:
        scale, matrices = expr.as_coeff_matrices()
        level = PRECEDENCE["Mul"]
        product = " @ ".join(self.parenthesize(m, level, strict=True) for m in matrices)
        return product if scale == 1 else f"{self.parenthesize(scale, level)}*({product})"

    def _print_MatPow(self, expr: sp.Expr) -> str:
        return " @ ".join([self.parenthesize(expr.base, PRECEDENCE["Mul"])] * int(expr.exp))

    def _module_format(self, fqn: str, register: bool = True) -> str:
        return str(super()._module_format(fqn, register)).replace("numpy.", "np.")


def generated_module() -> str:
    """Return the text of the emitted module.

    Returns
    -------
    str
        Python source.

    References
    ----------
    .. [1] The documents in derivations/, which each function names.

    Examples
    --------
    >>> from quadmodel.symbolic.output import emit
    >>> "def dressed_response(" in emit.generated_module()
    True
    """
    head = _HEAD.replace("VERSION", sp.__version__)
    return head + "".join(f"\n\n{_function(formula)}" for formula in formulas())


def _function(formula: Formula) -> str:
    names = {symbol: _named(symbol, name) for name, symbol in formula.arguments.items()}
    primed = {sp.Symbol("a'"): sp.Symbol("a_other"), sp.Symbol("b'"): sp.Symbol("b_other")}
    renamed = primed | names
    lines = [f"{key} = {_code(value.xreplace(renamed))}" for key, value in formula.steps.items()]
    results = [result.xreplace(renamed) for result in formula.results]
    matrices = any(isinstance(result, sp.MatrixExpr) for result in results)
    shared, reduced = ([], results) if matrices else sp.cse(results, sp.numbered_symbols("shared"))
    lines += [f"{symbol} = {_code(value)}" for symbol, value in shared]
    end = "," if formula.several and len(reduced) == 1 else ""
    lines.append(f"return {', '.join(_code(value) for value in reduced)}{end}")
    arguments = ", ".join(f"{name}: Any" for name in formula.arguments)
    body = textwrap.indent("\n".join([*_docstring(formula), *lines]), "    ")
    return f"def {formula.name}({arguments}) -> Any:\n{body}\n"


def _named(symbol: sp.Expr, name: str) -> sp.Expr:
    if isinstance(symbol, sp.MatrixSymbol):
        return sp.MatrixSymbol(name, *symbol.shape)
    return sp.Symbol(name)


def _docstring(formula: Formula) -> Iterable[str]:
    formula_lines = [rf".. math:: {_latex(result, formula)}" for result in formula.results]
    yield f'r"""{formula.summary}'
    yield from ("", "Parameters", "----------")
    for (name, symbol), meaning in zip(
        formula.arguments.items(), formula.meanings().values(), strict=True
    ):
        yield f"{name} : float or ndarray"
        yield f"    :math:`{sp.latex(symbol)}`, {meaning}."
    count = len(formula.results)
    yield from ("", "Returns", "-------")
    yield "float or ndarray" if count == 1 and not formula.several else f"tuple of {count}"
    yield from ("", "Notes", "-----", *formula_lines)
    yield from ("", "References", "----------", f".. [1] derivations/{formula.document}.md.")
    yield '"""'


def _latex(result: sp.Expr, formula: Formula) -> str:
    steps = {sp.Symbol(k): v for k, v in formula.steps.items() if k in ("at_one", "rest")}
    return str(sp.latex(result.subs(steps)))


def _code(expression: sp.Expr) -> str:
    return str(_Printer().doprint(expression))
