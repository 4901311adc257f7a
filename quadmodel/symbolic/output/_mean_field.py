"""The equations of the mean-field theory's document, as LaTeX."""

from __future__ import annotations

import re
from typing import Any

import sympy as sp

from quadmodel.symbolic import curvature_average, given_forces, mean_field, ntk_bulk
from quadmodel.symbolic.algebra.names import D, P, sigma
from quadmodel.symbolic.mode_ring import modes_of_moments
from quadmodel.symbolic.output._equations import Equations, _display

_S, _T = sp.symbols("s t", integer=True)
_STRENGTH = sp.Symbol(r"\hat{q}", positive=True)
_RATIO = sp.Symbol("delta", positive=True)
_PRINTED = {"Cxy": "C^{xy}", "Cxx": "C^{xx}", "ux": "u^{x}"}


def mean_field_theory() -> Equations:
    kernels = curvature_average.mean_field_kernels([_S, _T], iterate=True)
    pair = _T, _S
    memory = kernels.parameter_memory[pair]
    of_forces = sum(term for term in sp.Add.make_args(memory) if term.has(sp.Function("Z")))
    share = mean_field.stationary_share()
    return {
        "exponent": _display("S", curvature_average.curvature_exponent(["t"])._latex()),
        "averaged": _display(r"-\frac{1}{2} E S^2 \ni", _couplings()).replace(r"\ni =", r"\ni"),
        "parameter_noise": _kernel(r"E \nu(t) \nu(s)", D * kernels.parameter_noise[pair]),
        "residual_noise": _kernel(r"E \varphi(t) \varphi(s)", kernels.residual_noise[pair]),
        "of_forces": _kernel("K(t,s)", of_forces),
        "of_residuals": _kernel("K(t,s)", memory - of_forces),
        "residual_memory": _kernel("M(t,s)", kernels.residual_memory[pair]),
        "seen_memory": _kernel("M^{x}(t,s)", kernels.seen_memory[pair]),
        "seen_cross_noise": _kernel(r"E \varphi^{x}(t) \varphi(s)", kernels.seen_cross_noise[pair]),
        "seen_noise": _kernel(r"E \varphi^{x}(t)^2", kernels.seen_noise[_T, _T]),
        "share": _display(r"\frac{E z_\alpha^2}{\ell}", share),
        **_first_steps(),
        **_free_form(),
        **{
            f"moment_{n}": _display(rf"\overline{{\lambda_t^{n}}}", _moments(moment))
            for n, moment in enumerate(ntk_bulk.bulk_moments(3))
            if n
        },
    }


def _kernel(left: str, kernel: sp.Expr) -> str:
    """Print a kernel with the curvature strength in place of P where P occurs."""
    strength = sp.expand(kernel.subs(P, _STRENGTH**2 * D / sigma**2))
    for name, printed in _PRINTED.items():
        strength = strength.replace(sp.Function(name), sp.Function(printed))
    return _display(left, strength)


def _couplings() -> str:
    """Print the products of inner products that couple a step to an earlier one."""
    terms = []
    for dots, scale in curvature_average.averaged_exponent(["s", "t"]).items():
        times = {time for _, t, _, s in dots for time in (t, s)}
        if times == {"s", "t"}:
            powers = [(_dot(*dot), dots.count(dot)) for dot in dict.fromkeys(dots)]
            product = " ".join(dot if n == 1 else f"{dot}^{n}" for dot, n in powers)
            terms.append(f"{sp.latex(scale)} {product}")
    return " + ".join(terms).replace("+ -", "-")


def _dot(one: str, t: Any, other: str, s: Any) -> str:
    first, second = (
        rf"{name.replace('zeta', chr(92) + 'zeta')}_{at}" for name, at in ((one, t), (other, s))
    )
    middle = r"c" if other in ("zeta", r"\hat z") else r"\cdot"
    return rf"({first} {middle} {second})"


def _moments(expression: sp.Expr) -> sp.Expr:
    return expression.subs({sp.Symbol("delta"): _RATIO})


def _first_steps() -> Equations:
    """Print the first two steps of one optimizer, plain SGD, where all factors c are 1."""
    modes = modes_of_moments(2, kappa_D=0)
    found = mean_field.MeanField(modes).run(2)

    def printed(left: str, value: Any) -> str:
        expression = value.as_expr()
        known: dict[sp.Symbol, Any] = {sp.Symbol("q2"): _STRENGTH**2}
        for symbol in expression.free_symbols:
            parts = re.fullmatch(r"([sm])_(\d)(\d)", symbol.name)
            if parts:
                kind, j, _ = parts.groups()
                known[symbol] = sp.Symbol(f"{kind}_{j}") if (kind, j) != ("s", "0") else 1
        collected = sp.expand(expression.subs(known))
        return _display(left, sp.collect(collected, _STRENGTH, sp.factor))

    return {
        "loss_1": printed(r"\ell(1)", found.loss[1]),
        "displacement_1": printed("C(1,1)", found.C[1][1]),
        "response_2": printed("u(2,1)", found.u[2][0]),
    }


def _free_form() -> Equations:
    """Print two-time functions of the first steps for given forces."""

    def table(name: str) -> list[list[sp.Symbol]]:
        return [[sp.Symbol(f"{name}_{max(t, s)}{min(t, s)}") for s in range(3)] for t in range(3)]

    eta, strength = sp.Symbol("eta"), _STRENGTH**2
    curved = [[strength * z for z in row] for row in table("Z")]
    bare = [[1] * t for t in range(4)]
    functions = given_forces.two_time_functions(curved, table("F"), bare, eta)
    return {
        "free_response": _display("u(3,1)", sp.expand(functions.response[3][0])),
        "free_product": _display(
            "C(2,2)", sp.collect(sp.expand(functions.product[2][2]), _STRENGTH)
        ),
    }
