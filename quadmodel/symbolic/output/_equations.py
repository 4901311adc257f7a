"""The equations of every document, as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sympy as sp

from quadmodel.symbolic import (
    all_time,
    dynamics,
    fock,
    large_p,
    late_time,
    linear,
    sharpening,
    stability,
    typical,
)
from quadmodel.symbolic.algebra import gaussian
from quadmodel.symbolic.algebra.indices import DATA, Index, data_indices, parameter_indices
from quadmodel.symbolic.algebra.matrices import as_matrix
from quadmodel.symbolic.algebra.names import B, D, P, beta, eta, lam, sigma, x
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor
from quadmodel.symbolic.algebra.sampling import average_batches, weight_covariance, weight_moment
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV, PLAIN_SGD
from quadmodel.symbolic.output.ntk_formulas import expected_ntk_formulas
from quadmodel.symbolic.output.response_fractions import diagonal_fraction, symmetric_form

Equations = dict[str, str]
_SCHEMES = ("without_replacement", "with_replacement", "bernoulli")


def _display(*sides: Any) -> str:
    r"""Return a displayed equation; no backslash before punctuation, which GitHub would eat."""
    text = " = ".join(side if isinstance(side, str) else sp.latex(side) for side in sides)
    text = re.sub(r"\\substack\{(.*?)\\\\(.*?)\}\}", r"\1, \2}", text)
    return f"$$\n{text}\n$$"


def _equation(equation: sp.Eq) -> str:
    return _display(equation.lhs, equation.rhs)


def _blocks(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks)


def _by_order(left: str, change: Polynomial, *indices: Any) -> str:
    """Print a long matrix polynomial, one power of the learning rate at a time."""
    orders = sorted({n for scale in change.terms.values() for n in _powers(scale)})
    blocks = []
    for n, order in enumerate(orders):
        part = _of_order(change, order)
        head = f"{left} = " if n == 0 else "{} + "
        tail = r" + \dots" if n < len(orders) - 1 else ""
        power = sp.latex(eta**order)
        blocks.append(
            _display(rf"{head}{power} \left[ {sp.latex(as_matrix(part, *indices))} \right]{tail}")
        )
    return _blocks(blocks)


def _of_order(change: Polynomial, order: int) -> Polynomial:
    return change.map(lambda scale: sp.expand(scale).coeff(eta, order))


def _powers(scale: sp.Expr) -> set[int]:
    return {sp.degree(term, eta) for term in sp.Add.make_args(sp.expand(scale))}


def batch_weights() -> Equations:
    patterns = ("i", "ii", "ij", "iii", "iij", "ijk", "iiii", "iiij", "iijj", "iijk", "ijkl")
    rows = [
        f"| $E[{' '.join(f'w_{c}' for c in pattern)}]$ | "
        + " | ".join(f"${sp.latex(weight_moment(pattern, s))}$" for s in _SCHEMES)
        + " |"
        for pattern in patterns
    ]
    covariances = [weight_covariance(scheme) for scheme in _SCHEMES]
    for name, n in (("\\gamma", 0), ("\\kappa", 1)):
        rows.append(
            f"| ${name}$ | " + " | ".join(f"${sp.latex(c[n])}$" for c in covariances) + " |"
        )
    a, b, c = data_indices("abc")
    w = Tensor("w", (DATA,))
    M = linear.moment(0, 0)
    third = average_batches(w(a) * w(b) * w(c), w, "bernoulli")
    full = sp.cancel(weight_covariance("without_replacement")[0].subs(B, beta * D))
    return {
        "table": "\n".join(rows),
        "pair": _display("E[w_a w_b]", average_batches(w(a) * w(b), w)._latex()),
        "triple": _display("E[w_a w_b w_c]", third._latex()),
        "sandwich": _display(
            "E[W M W]", as_matrix(average_batches(w(a) * w(b) * M(a, b), w), a, b)
        ),
        "limit": _display(r"\lim_{D\to\infty} \gamma", sp.limit(full, D, sp.oo)),
    }


def second_moment() -> Equations:
    a, b = data_indices("ab")
    (moment,) = linear.second_moments(PLAIN_SGD).values()
    mean = dynamics.expected("residual", curvature="none")
    exact = linear.second_moment_equation("without_replacement")
    M, theta = linear.moment(0, 0), linear.NTK
    c, d = data_indices("cd")
    own = (
        M(a, b)
        - eta * (theta(a, c) * M(c, b)).sum(c)
        - eta * (M(a, c) * theta(c, b)).sum(c)
        + eta**2 * (theta(a, c) * M(c, d) * theta(d, b)).sum(c, d)
    )
    heavy = linear.second_moment_equation(momentum=True)
    decayed = linear.second_moment_equation(weight_decay=True)
    modes = linear.mode_moments()
    step = dynamics.step(dynamics.start(0), dynamics.batch_weights(0))
    return {
        "step": _display("z_a'", step.residual[0]._latex()),
        "mean": _display("E z'", as_matrix(mean, a)),
        "equation": _equation(linear.second_moment_equation()),
        "noise": _display(
            r"M' - (I - \eta\Theta) M (I - \eta\Theta)", as_matrix(moment - own, a, b)
        ),
        "noise_covariance": _display(
            r"E\left[(W-I)U(W-I)\right]", as_matrix(linear.noise_covariance(), a, b)
        ),
        "without_replacement": _equation(exact),
        "heavy_ball": _blocks(map(_equation, heavy)),
        "nesterov": _blocks(map(_equation, linear.second_moment_equation(nesterov=True))),
        "weight_decay": _equation(decayed),
        "propagated": _display(r"\text{propagated}", modes.propagated),
        "forced": _display(r"\text{forced}", modes.forced),
        "injected": _display(r"\text{injected}", modes.injected),
        "mode_noise": _display(r"\Omega", modes.noise),
        "mode_at_gradient": _display("U", modes.at_gradient),
        "mode_cross": _display("X^{+}", modes.cross),
        "mode_mean": _display("m^{+}", modes.mean),
    }


def noise_kernel() -> Equations:
    S0 = sp.Symbol("S^0")
    plain = stability.bare_response()
    heavy = sp.fraction(stability.pair_sum(HEAVY_BALL))
    nesterov = sp.fraction(stability.pair_sum(NESTEROV))
    general = sp.fraction(sp.factor(stability.two_step_pair_sum()))
    pole = sp.Symbol("pole")
    kept, _ = late_time.closure()
    return {
        "recursion": _display(
            "z^{+}",
            sum(
                a * z
                for a, z in zip(HEAVY_BALL.recursion(x), sp.symbols("z_t z_{t-1}"), strict=True)
            ),
        ),
        "bare": _display("S^0", plain),
        "dressed": _display("S", stability.dressed_response(S0)),
        "exact": _equation(stability.noise_kernel_norm("exact")),
        "finite": _equation(stability.noise_kernel_norm("finite")),
        "paper": _equation(stability.noise_kernel_norm("paper")),
        "pair_sum": _display(r"\sum_n r^{-n-1} h_n h'_n", general[0] / general[1]),
        "heavy_ball": _display(
            r"\frac{S^0}{\eta^2\lambda\lambda'}", sp.factor(heavy[0]) / symmetric_form(heavy[1])
        ),
        "nesterov": _display(
            r"\frac{S^0}{\eta^2\lambda\lambda'}",
            sp.factor(nesterov[0]) / symmetric_form(nesterov[1]),
        ),
        "heavy_ball_diagonal": _display(
            r"\frac{S^0_{\alpha\alpha}}{\eta^2\lambda^2}", _fraction(diagonal_fraction(HEAVY_BALL))
        ),
        "nesterov_diagonal": _display(
            r"\frac{S^0_{\alpha\alpha}}{\eta^2\lambda^2}", _fraction(diagonal_fraction(NESTEROV))
        ),
        "heavy_ball_edges": _edges(HEAVY_BALL),
        "nesterov_edges": _edges(NESTEROV),
        "small": _display(
            r"\lim_{\eta\to0} \frac{S^0_{\alpha\alpha}}{\eta}",
            stability.small_learning_rate_limit(HEAVY_BALL, weight_decay=True),
        ),
        "mode_energy": _equation(late_time.mode_energy_equation()),
        "kept": _display("a_\\alpha", kept),
        "kernel": _display("k_n", late_time.volterra_kernel()),
        "kernel_sum": _display(r"\sum_n k_n", late_time.volterra_sum()),
        "rate": _equation(late_time.rate_equation()),
        "floor": _equation(late_time.loss_floor()),
        "squared_residual": _display("e", late_time.squared_residual_at_gradient()),
        "law": _display(
            r"\frac{\lambda}{p - q\lambda}",
            sp.apart(lam / (sp.Symbol("q") * (pole - lam)), lam).subs(
                pole, sp.Symbol("p") / sp.Symbol("q")
            ),
        ),
    }


def _fraction(parts: tuple[sp.Expr, sp.Expr]) -> sp.Expr:
    return parts[0] / parts[1]


def _edges(optimizer: linear.LinearOptimizer) -> str:
    edges = ", ".join(sp.latex(edge) for edge in stability.edge_of_stability(optimizer))
    return _display(rf"x \in \left\lbrace {edges} \right\rbrace")


def gradient_statistics() -> Equations:
    a, b, i, j, k, m = (*data_indices("ab"), *parameter_indices("ijkm"))
    law = gaussian.kronecker_curvature()
    state = dynamics.step(dynamics.start(1), dynamics.batch_weights(0))
    Q = gaussian.CURVATURE
    square = gaussian.average((Q(a, i, j) * Q(b, i, j)).sum(i, j), law)
    jacobian = {"curvature": "kronecker"}
    averaged = {"residual": "independent"}
    return {
        "covariance": _display("E[Q_{aij} Q_{bkm}]", law.covariance((a, i, j), (b, k, m))._latex()),
        "square": _display(r"E\left[\sum_{ij} Q_{aij} Q_{bij}\right]", as_matrix(square, a, b)),
        "square_independent": _display(
            r"E\left[\sum_{ij} Q_{aij} Q_{bij}\right]",
            as_matrix(
                gaussian.average(
                    (Q(a, i, j) * Q(b, i, j)).sum(i, j), gaussian.independent_curvature()
                ),
                a,
                b,
            ),
        ),
        "residual_step": _display("z_a'", (state.residual[0] + state.residual[1])._latex()),
        "jacobian_step": _display("J_{ai}'", (state.jacobian[0] + state.jacobian[1])._latex()),
        "jacobian_first": _equation(sharpening.expected_jacobian_difference(1)),
        "jacobian_second": _by_order(
            r"E \Delta_2 J", dynamics.difference("jacobian", 2, **jacobian), a, i
        ),
        "jacobian_second_independent": _by_order(
            r"E \Delta_2 J", dynamics.difference("jacobian", 2, curvature="independent"), a, i
        ),
        "jacobian_second_averaged": _by_order(
            r"E \Delta_2 J", dynamics.difference("jacobian", 2, **jacobian, **averaged), a, i
        ),
        "second_moment": _by_order(r"\Delta_Q M'", _curved("kronecker", "fixed"), a, b),
        "second_moment_independent": _by_order(
            r"\Delta_Q M'", _curved("independent", "fixed"), a, b
        ),
        "second_moment_averaged": _by_order(
            r"\Delta_Q M'", _curved("independent", "independent"), a, b
        ),
    }


def _curved(curvature: str, residual: str) -> Polynomial:
    """Return what curvature adds to the second moment in one step."""
    whole, linear_part = (
        dynamics.expected(
            "second_moment", curvature=law, residual=residual, sampling="without_replacement"
        )
        for law in (curvature, "none")
    )
    return whole - linear_part


def two_steps() -> Equations:
    a, b = data_indices("ab")
    both = {"curvature": "independent", "residual": "independent"}
    change = dynamics.difference("ntk", 2, sampling="without_replacement", **both)
    part = sharpening.mode_part(change)
    own = sp.collect(part, lam, sp.factor)
    laws: dict[str, dict[str, Any]] = {
        "general": {},
        "general_averaged": {"residual": "independent"},
        "independent": {"curvature": "independent"},
        "averaged": both,
    }
    found = {
        f"{name}_{order}": _by_order(
            rf"E \Delta_{order} \Theta", dynamics.difference("ntk", order, **law), a, b
        )
        for name, law in laws.items()
        for order in (1, 2)
    }
    without = dynamics.difference("ntk", 1, sampling="without_replacement", **both)
    return found | {
        "averaged_1_without_replacement": _display(r"E \Delta_1 \Theta", as_matrix(without, a, b)),
        "mode_part": _display(r"E \Delta_2 \lambda_\alpha", own),
        "factor": _display(
            r"\lim_{D\to\infty} \lim_{P\to\infty} "
            r"\frac{E \Delta_2 \lambda_\alpha}{E \Delta_2 \lambda_\alpha |_{\eta\lambda\to0}}",
            sharpening.sharpening_factor(),
        ),
        "factor_bernoulli": _display(
            r"\text{Bernoulli: }", sharpening.sharpening_factor("bernoulli")
        ),
    }


def expected_ntk() -> Equations:
    a, b = data_indices("ab")
    source, diffusion = all_time.source(), all_time.diffusion()

    def matrix(left: str, polynomial: Polynomial) -> str:
        return _display(left, as_matrix(polynomial, a, b))

    mean_square = r"E\left[(Q\theta_t)(Q\theta_t)^T\right]"
    emitted = {formula.name: formula.results[0] for formula in expected_ntk_formulas()}
    return {
        "source": matrix("A", source),
        "diffusion": matrix(mean_square, diffusion),
        "source_independent": matrix("A", all_time.over_data(all_time.independent(source, sigma))),
        "diffusion_independent": matrix(mean_square, all_time.independent(diffusion, sigma)),
        "source_over_data": matrix("A", all_time.over_data(source)),
        "diffusion_over_data": matrix(mean_square, all_time.over_data(diffusion)),
        "summed": matrix(r"\sum_s A_s", all_time.summed_source()),
        "fluctuation": _display(
            r"D^2 E\left(v_\alpha^T \delta\Theta v_\beta\right)^2", emitted["mode_fluctuation"]
        ),
        "shift": _display(r"\Delta", emitted["eigenvalue_shift"]),
    }


def typical_stability() -> Equations:
    a, b = data_indices("ab")
    first, second = typical.deviation()
    variance = [part.replace(typical.FORM, typical.POINT) for part in typical.one_step_variance()]
    moments = [typical.higher_moments(scheme) for scheme in _SCHEMES]
    rows = [
        f"| ${sp.latex(symbol)}$ | " + " | ".join(f"${sp.latex(m[n])}$" for m in moments) + " |"
        for n, symbol in enumerate(typical.higher_moment_symbols().values())
    ]
    return {
        "adjoint": _display("r L", as_matrix(typical.adjoint_step(), a, b)),
        "first": _display(r"\ell_1", first._latex()),
        "second": _display(r"\ell_2", second._latex()),
        "moments": "\n".join(rows),
        "mean_square": _display(r"E \ell^2", as_matrix(typical.mean_square())),
        **{
            f"variance_{order}": _display(f"V_{order}", part._latex())
            for order, part in zip((2, 3, 4), variance, strict=True)
        },
    }


def large_p_limit() -> Equations:
    a, b, c, d, e, f = data_indices("abcdef")
    system, network = large_p.large_p_step(2), large_p.order_one_network()

    def moment(*points: Index) -> str:
        product = " ".join(f"Q_{point.label}" for point in points)
        return _display(
            rf"E\left[J_a {product} J_b^T\right]", fock.fock_moment(points, (a, b))._latex()
        )

    def fluctuation(*points: Index) -> str:
        product = " ".join(f"Q_{point.label}" for point in points)
        leading = fock.fock_variance(points, (a, b)).map(
            lambda scale: sp.limit(scale * P, P, sp.oo)
        )
        return _display(
            rf"\lim_{{P\to\infty}} P \operatorname{{Var}}\left(J_a {product} J_b^T\right)",
            leading._latex(),
        )

    return {
        "two_factors": moment(c, d),
        "four_factors": moment(c, d, e, f),
        "fluctuation_one": fluctuation(c),
        "fluctuation_two": fluctuation(c, d),
        "residual": _display("z_a", system.residual._latex()),
        "gradients": _blocks(
            _display(f"w_a^{n}[{', '.join('cde'[: n + 1])}]", gradient._latex())
            for n, gradient in enumerate(system.gradients)
        ),
        "network_residual": _display("z", as_matrix(network.residual, a)),
        "network_first": _display("c' - c", as_matrix(network.first, a)),
        "network_second": _display("A' - A", as_matrix(network.second, a, b)),
        "network_ntk": _display(r"D \Theta", as_matrix(network.gram, a, b)),
    }
