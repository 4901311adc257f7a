"""The closed forms that the explorer calls as an ES module, written by the derivations."""

from __future__ import annotations

import sympy as sp
from sympy.printing.jscode import JavascriptCodePrinter
from sympy.printing.precedence import PRECEDENCE

from quadmodel.symbolic.output.emit import assignments
from quadmodel.symbolic.output.formula import MEANING, Formula
from quadmodel.symbolic.output.formulas import linear_formulas

JAVASCRIPT = "quadmodel/explorer/front/formulas.js"
IN_JAVASCRIPT = (
    "without_replacement_covariance",
    "with_replacement_covariance",
    "bernoulli_covariance",
    "paper_variance",
    "heavy_ball_recursion",
    "heavy_ball_edges",
    "heavy_ball_diagonal_pair_sum",
    "nesterov_recursion",
    "nesterov_edges",
    "nesterov_diagonal_pair_sum",
    "dressed_response",
    "propagated_moment",
    "forced_moment",
    "injected_moment",
    "cross_moment",
    "next_mean",
    "at_gradient_moment",
    "noise_covariance",
)

_HEAD = """\
// Closed forms of the theory. Written by `quadmodel derive`; not to be edited by hand.
// SymPy VERSION. The same formulas as in quadmodel/theory/_generated.py, whose docstrings hold
// them as equations. Arguments are numbers; several results come as an array. The arguments:
//
ARGUMENTS
"""


class _Printer(JavascriptCodePrinter):  # type: ignore[misc]
    """JavaScript with products in place of powers by small integers, and plain divisions."""

    def _print_Pow(self, expr: sp.Expr) -> str:
        base = self.parenthesize(expr.base, PRECEDENCE["Mul"], strict=True)
        if expr.exp == -1:
            return f"1/{base}"
        if expr.exp in (2, 3):
            return f"({'*'.join([self.parenthesize(expr.base, PRECEDENCE['Pow'])] * expr.exp)})"
        return str(super()._print_Pow(expr))


def javascript_module() -> str:
    """Return the text of the emitted ES module.

    Returns
    -------
    str
        JavaScript source.

    References
    ----------
    .. [1] The documents in derivations/, which each function names.

    Examples
    --------
    >>> from quadmodel.symbolic.output import javascript
    >>> "export function dressed_response(" in javascript.javascript_module()
    True
    """
    known = {formula.name: formula for formula in linear_formulas()}
    chosen = [known[name] for name in IN_JAVASCRIPT]
    arguments = sorted({name for formula in chosen for name in formula.arguments})
    lines = "\n".join(f"// - {name}: {MEANING[name]}." for name in arguments)
    head = _HEAD.replace("VERSION", sp.__version__).replace("ARGUMENTS", lines)
    return head + "".join(f"\n{_function(formula)}" for formula in chosen)


def _function(formula: Formula) -> str:
    values, results = assignments(formula)
    lines = [f"  const {name} = {_code(value)};" for name, value in values.items()]
    code = ", ".join(_code(value) for value in results)
    several = formula.several or len(results) > 1
    lines.append(f"  return {f'[{code}]' if several else code};")
    return "\n".join(
        [
            f"// {formula.summary}",
            f"// See derivations/{formula.document}.md.",
            f"export function {formula.name}({', '.join(formula.arguments)}) {{",
            *lines,
            "}\n",
        ]
    )


def _code(expression: sp.Expr) -> str:
    return str(_Printer().doprint(expression))
