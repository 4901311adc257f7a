"""The numeric theory's closed forms as a module of NumPy functions, written by the derivations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import sympy as sp
from sympy.printing.numpy import NumPyPrinter
from sympy.printing.precedence import PRECEDENCE

from quadmodel.symbolic.output.formula import MEANING, Formula
from quadmodel.symbolic.output.formulas import formulas

MODULE = "quadmodel/theory/_generated.py"
# Steps that formulas in docstrings call by their name.
_COEFFICIENTS = ("a", "b", "a_other", "b_other")

_HEAD = '''r"""Closed forms of the theory. Written by `quadmodel derive`; not to be edited by hand.

Arguments are numbers or arrays that broadcast against each other; so are the results, of which
there is one per formula. SymPy VERSION. The arguments, with their symbols in the formulas:

ARGUMENTS
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
    every = formulas()
    head = _HEAD.replace("VERSION", sp.__version__).replace("ARGUMENTS", _arguments(every))
    return head + "".join(f"\n\n{_function(formula)}" for formula in every)


def _arguments(every: Iterable[Formula]) -> str:
    """Return what all arguments are, once for all functions."""
    symbols: dict[str, dict[str, None]] = {}
    for formula in every:
        for name, symbol in formula.arguments.items():
            symbols.setdefault(name, {})[f":math:`{sp.latex(symbol)}`"] = None
    return "\n".join(
        f"- `{name}`: {' or '.join(symbols[name])}, {MEANING[name]}." for name in sorted(symbols)
    )


def assignments(formula: Formula) -> tuple[dict[str, sp.Expr], list[sp.Expr]]:
    """Return a formula's intermediate values by name, and its results, in the code's names."""
    names = {symbol: _named(symbol, name) for name, symbol in formula.arguments.items()}
    renamed = {symbol: sp.Symbol(key) for key, symbol in _symbols(formula).items()} | names
    steps = {key: value.xreplace(renamed) for key, value in formula.steps.items()}
    results = [result.xreplace(renamed) for result in formula.results]
    if any(isinstance(result, sp.MatrixExpr) for result in results):
        return steps, results
    shared, reduced = sp.cse(results, sp.numbered_symbols("shared"))
    return steps | {str(symbol): value for symbol, value in shared}, reduced


def _function(formula: Formula) -> str:
    values, results = assignments(formula)
    lines = [f"{name} = {_code(value)}" for name, value in values.items()]
    end = "," if formula.several and len(results) == 1 else ""
    lines.append(f"return {', '.join(_code(value) for value in results)}{end}")
    arguments = ", ".join(f"{name}: Any" for name in formula.arguments)
    body = textwrap.indent("\n".join([*_docstring(formula), *lines]), "    ")
    return f"def {formula.name}({arguments}) -> Any:\n{body}\n"


def _named(symbol: sp.Expr, name: str) -> sp.Expr:
    if isinstance(symbol, sp.MatrixSymbol):
        return sp.MatrixSymbol(name, *symbol.shape)
    return sp.Symbol(name)


def _docstring(formula: Formula) -> Iterable[str]:
    """Yield the summary, the formulas and where they are derived."""
    yield f'r"""{formula.summary}'
    yield from ("", f"See derivations/{formula.document}.md.", "")
    yield from (rf".. math:: {_latex(result, formula)}" for result in formula.results)
    yield '"""'


def _symbols(formula: Formula) -> dict[str, sp.Symbol]:
    """Return the symbols of the steps; those of the other mode have a prime."""
    return {key: sp.Symbol(key.replace("_other", "'")) for key in formula.steps}


def _latex(result: sp.Expr, formula: Formula) -> str:
    symbols = _symbols(formula)
    steps = {symbols[k]: v for k, v in formula.steps.items() if k not in _COEFFICIENTS}
    return str(sp.latex(result.subs(steps)))


def _code(expression: sp.Expr) -> str:
    return str(_Printer().doprint(expression))
