"""What the numeric theory calls: every formula with its arguments, from the derivations."""

from __future__ import annotations

import sympy as sp

from quadmodel.optimizer import SAMPLING_SCHEMES
from quadmodel.symbolic import late_time, linear, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import B, D, beta, eta, gamma, kappa, lam, mu, r, rho, x, y
from quadmodel.symbolic.algebra.sampling import weight_covariance
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV
from quadmodel.symbolic.output.formula import Formula
from quadmodel.symbolic.output.ntk_formulas import expected_ntk_formulas
from quadmodel.symbolic.output.response_fractions import (
    diagonal_fraction,
    two_step_coefficients,
    two_step_fraction,
)
from quadmodel.symbolic.typical import higher_moments

_OPTIMIZERS = {"heavy_ball": HEAVY_BALL, "nesterov": NESTEROV}


def formulas() -> list[Formula]:
    """Derive everything that the numeric theory calls."""
    return [*linear_formulas(), *expected_ntk_formulas(), *_fluctuations()]


def linear_formulas() -> list[Formula]:
    """Derive what the second moment of the linear model is made of."""
    return [*_batches(), *_recursions(), *_responses(), *_moments(), *_stationary()]


def _batches() -> list[Formula]:
    found = [
        Formula(
            f"{scheme}_covariance",
            "Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).",
            {"n_data": D, "batch_size": B},
            weight_covariance(scheme),
            "01-batch-weights",
        )
        for scheme in SAMPLING_SCHEMES
    ]
    size, _ = weight_covariance("without_replacement")
    limit = sp.limit(sp.cancel(size.subs(B, beta * D)), D, sp.oo)
    return [
        *found,
        Formula(
            "paper_variance",
            "Return gamma without replacement for many data points.",
            {"batch_fraction": beta},
            (sp.expand(limit),),
            "01-batch-weights",
        ),
    ]


def _recursions() -> list[Formula]:
    found = []
    for name, optimizer in _OPTIMIZERS.items():
        first, second = optimizer.recursion(x)
        found.append(
            Formula(
                f"{name}_recursion",
                "Return a, b of a mode's noise-free z_(t+1) = a z_t - b z_(t-1).",
                {"x": x, "momentum": mu},
                (sp.factor(first), sp.factor(-second)),
                "02-second-moment",
            )
        )
        edges = tuple(stability.edge_of_stability(optimizer))
        found.append(
            Formula(
                f"{name}_edges",
                "Return candidates for the edge in eta (lambda + rho), the least positive of them.",
                {"momentum": mu},
                edges,
                "03-noise-kernel",
                several=True,
            )
        )
    a, b, root = sp.symbols("a b zeta")
    roots = sp.solve(root**2 - a * root + b, root)
    return [
        *found,
        Formula(
            "recursion_roots",
            "Return the growth factors per step of the two solutions of a mode's recursion.",
            {"a": a, "b": b},
            tuple(roots),
            "02-second-moment",
        ),
    ]


def _responses() -> list[Formula]:
    S0 = sp.Symbol("S0")
    diagonal = stability.bare_response(HEAVY_BALL).subs(names.lam_other, lam)
    over, under = sp.fraction(sp.cancel(stability.dressed_response(sp.cancel(diagonal))))
    line = sp.Poly(sp.cancel(under * eta * lam / over), lam)
    batch = {"gamma": gamma, "kappa": kappa, "n_data": D}
    return [
        *(formula for name in _OPTIMIZERS for formula in _pair_sums(name)),
        Formula(
            "dressed_response",
            "Return S = 1 / (1/S0 + kappa gamma/D).",
            {"bare": S0} | batch,
            (stability.dressed_response(S0),),
            "03-noise-kernel",
        ),
        Formula(
            "heavy_ball_pole",
            "Return p, q of the dressed response eta lambda / (p - q lambda) of a mode, rho = 0.",
            {"learning_rate": eta, "momentum": mu} | batch,
            (sp.factor(line.coeff_monomial(1)), -sp.expand(sp.apart(line.coeff_monomial(lam), D))),
            "03-noise-kernel",
        ),
        _mean_over_law(),
        Formula(
            "small_rate_response",
            "Return the ratio of a mode's response to the learning rate, for small learning rates.",
            {"eigenvalue": lam, "weight_decay": rho, "momentum": mu},
            (stability.small_learning_rate_limit(HEAVY_BALL, weight_decay=True),),
            "03-noise-kernel",
        ),
    ]


def _pair_sums(name: str) -> list[Formula]:
    """Return the pair sums of one optimizer, in forms without cancellation."""
    optimizer = _OPTIMIZERS[name]
    fraction = two_step_fraction(optimizer)
    coefficients = {k: sp.factor(v) for k, v in two_step_coefficients(optimizer).items()}
    constants = {k: v for k, v in coefficients.items() if not v.free_symbols & {x, y}}
    varying = {k: v for k, v in coefficients.items() if k not in constants}
    steps = {symbol.name.replace("'", "_other"): value for symbol, value in varying.items()}
    b, b_other = sp.symbols("b b'")
    steps |= {
        "margin": (r - b).subs(constants),
        "margin_other": (r - b_other).subs(constants),
        "at_one": fraction.at_one,
        "rest": fraction.rest.subs(constants),
    }
    margin, margin_other, at_one, rest = sp.symbols("margin margin' at_one rest")
    numerator = fraction.numerator.subs({"s": margin, "s'": margin_other})
    denominator = margin * margin_other * (at_one + (r - 1) * rest) + r**2 * fraction.square
    c, d = sp.symbols("c d")  # of the point c z_t - d z_(t-1) whose response is summed
    points = {"gradient": {c: optimizer.extrapolation[0], d: -optimizer.extrapolation[1]}}
    if optimizer.extrapolation != (1, 0):
        points["residual"] = {c: 1, d: 0}
    found = [
        Formula(
            f"{name}_pair_sum_at_{place}",
            f"Return the pair sum of r^(-n-1) h_n h'_n, h the response at the {place}.",
            {"x": x, "y": y, "momentum": mu, "growth": r},
            (numerator.subs(point).subs(constants) / denominator,),
            "03-noise-kernel",
            steps,
        )
        for place, point in points.items()
    ]
    over, under = diagonal_fraction(optimizer)
    return [
        *found,
        Formula(
            f"{name}_diagonal_pair_sum",
            "Return the pair sum of a mode with itself at the gradient, common factors cancelled.",
            {"x": x, "momentum": mu},
            (over / under,),
            "03-noise-kernel",
        ),
    ]


def _mean_over_law() -> Formula:
    """Split lambda/(p - q lambda) in a constant and a multiple of 1/(p/q - lambda)."""
    pole, slope, transform = sp.symbols("pole q m")
    response = lam / (slope * (pole - lam))
    weight = sp.cancel(response * (pole - lam)).subs(lam, pole)
    constant = sp.limit(response, lam, sp.oo)
    return Formula(
        "mean_over_law",
        "Return the mean over a law of lambda / (p - q lambda), from its Stieltjes transform.",
        {"pole": pole, "slope": slope, "transform": transform},
        (sp.factor(constant + weight * transform),),
        "03-noise-kernel",
    )


def _moments() -> list[Formula]:
    moments = linear.mode_moments()
    python = (
        "a a_other b b_other effective_step effective_step_other weight_decay_force "
        "weight_decay_force_other now cross cross_other old mean mean_other old_mean "
        "old_mean_other coefficient_now coefficient_old at_gradient noise point_noise"
    )
    paper = "a a' b b' f f' c c' N X X' O m m' n n' p q U Omega E"
    symbols = dict(zip(sp.symbols(python), sp.symbols(paper), strict=True))
    symbols = {str(name): symbol for name, symbol in symbols.items()}
    known = symbols | {"gamma": gamma, "kappa": kappa, "n_data": D}
    noise_free = "Return the noise-free part of the next second moment of two modes."
    derived = {
        "propagated_moment": (noise_free, moments.propagated),
        "forced_moment": (
            "Return the part of the next second moment that is due to weight decay.",
            moments.forced,
        ),
        "injected_moment": (
            "Return the part of the next second moment that the batch noise injects.",
            moments.injected,
        ),
        "cross_moment": ("Return E z_(t+1) z_t' of two modes.", moments.cross),
        "next_mean": ("Return E z_(t+1) of a mode.", moments.mean),
        "at_gradient_moment": (
            "Return E u u' of two modes at the point where the gradient is taken.",
            moments.at_gradient,
        ),
        "noise_covariance": (
            "Return the covariance of the batch noise between two modes.",
            moments.noise,
        ),
        "propagated_moment_without_memory": (
            noise_free,
            moments.propagated.subs({symbols["b"]: 0, symbols["b_other"]: 0}),
        ),
    }
    found = []
    for name, (summary, expression) in derived.items():
        arguments = {k: v for k, v in known.items() if v in expression.free_symbols}
        found.append(Formula(name, summary, arguments, (expression,), "02-second-moment"))
    return found


def _stationary() -> list[Formula]:
    m2, dressed = sp.symbols("m2 S")
    squared = late_time.squared_residual_at_gradient()
    of_total = squared.coeff(late_time.total)
    return [
        Formula(
            "squared_residual_at_gradient",
            "Return own part and share of the total of a mode's stationary squared residual.",
            {"mean_square": m2, "dressed": dressed, "gamma": gamma, "kappa": kappa, "n_data": D},
            (sp.expand(squared - of_total * late_time.total), of_total),
            "03-noise-kernel",
        ),
        Formula(
            "kept_fraction",
            "Return the fraction of z_0 at which weight decay holds a mode's mean for ever.",
            {"eigenvalue": lam, "weight_decay": rho},
            (_kept_fraction(),),
            "02-second-moment",
        ),
    ]


def _kept_fraction() -> sp.Expr:
    """Solve m = a m - b m + eta rho z_0 for m / z_0."""
    fixed = sp.Symbol("m")
    first, second = HEAVY_BALL.recursion(eta * (lam + rho))
    (solution,) = sp.solve(first * fixed + second * fixed + eta * rho - fixed, fixed)
    return sp.factor(solution)


def _fluctuations() -> list[Formula]:
    return [
        Formula(
            f"{scheme}_fluctuations",
            "Return c3, c21, c111, c4, c31, c22, c211, c1111 of the moments of x = w - 1.",
            {"n_data": D, "batch_size": B},
            higher_moments(scheme),
            "07-typical-stability",
        )
        for scheme in SAMPLING_SCHEMES
    ]
