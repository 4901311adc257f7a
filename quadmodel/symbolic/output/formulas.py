"""What the numeric theory calls: every formula with its arguments, from the derivations."""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

from quadmodel.optimizer import SAMPLING_SCHEMES
from quadmodel.symbolic import late_time, linear, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import B, D, beta, eta, gamma, kappa, lam, mu, r, rho, x, y
from quadmodel.symbolic.algebra.sampling import weight_covariance
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV
from quadmodel.symbolic.output.formula import Formula
from quadmodel.symbolic.output.ntk_formulas import expected_ntk_formulas
from quadmodel.symbolic.output.robust import diagonal_fraction, two_step_fraction
from quadmodel.symbolic.typical import higher_moments


def formulas() -> list[Formula]:
    """Derive everything that the numeric theory calls.

    Returns
    -------
    list of Formula
    """
    return [
        *_batches(),
        *_recursions(),
        *_responses(),
        *_moments(),
        *_stationary(),
        *expected_ntk_formulas(),
        *_fluctuations(),
    ]


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
    for name, method in (("heavy_ball", HEAVY_BALL), ("nesterov", NESTEROV)):
        first, second = method.recursion(x)
        found.append(
            Formula(
                f"{name}_recursion",
                "Return a, b of a mode's noiseless z_(t+1) = a z_t - b z_(t-1).",
                {"x": x, "momentum": mu},
                (sp.factor(first), sp.factor(-second)),
                "02-second-moment",
            )
        )
        edges = tuple(stability.edge_of_stability(method))
        found.append(
            Formula(
                f"{name}_edges",
                "Return where x = eta (lambda + rho) may leave stability: the least positive does.",
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
            "Return the factors per step of a mode's two solutions.",
            {"a": a, "b": b},
            tuple(roots),
            "02-second-moment",
        ),
    ]


def _responses() -> list[Formula]:
    a, b, a_other, b_other, c, d = sp.symbols("a b a' b' c d")
    python = dict(zip(("a", "b", "a_other", "b_other"), (a, b, a_other, b_other), strict=True))
    found = []
    for name, method in (("heavy_ball", HEAVY_BALL), ("nesterov", NESTEROV)):
        numerator, at_one, rest = two_step_fraction(method)
        coefficients = [*method.recursion(x), *method.recursion(y)]
        steps = {
            key: sp.factor(-value if key.startswith("b") else value)
            for key, value in zip(python, coefficients, strict=True)
        }
        steps = {key: value for key, value in steps.items() if value.free_symbols & {x, y}}
        constants = {
            symbol: sp.factor(-value if key.startswith("b") else value)
            for (key, symbol), value in zip(python.items(), coefficients, strict=True)
            if key not in steps
        }
        steps["at_one"], steps["rest"] = at_one, rest.subs(constants)
        denominator = sp.Symbol("at_one") + (r - 1) * sp.Symbol("rest")
        seen = {c: method.look[0], d: -method.look[1]}
        for suffix, look in (("gradient", seen), ("residual", {c: 1, d: 0})):
            found.append(
                Formula(
                    f"{name}_sum_at_{suffix}",
                    f"Return sum_n r^(-n-1) h_n h'_n of a pair of modes, h the response of the "
                    f"{suffix if suffix == 'residual' else 'point of the gradient'}.",
                    {"x": x, "y": y, "momentum": mu, "growth": r},
                    (numerator.subs(look).subs(constants) / denominator,),
                    "03-noise-kernel",
                    {k: v.subs(constants) for k, v in steps.items()},
                )
            )
            if method.look == (1, 0):
                break  # the heavy ball takes its gradient at the residual
        over, under = diagonal_fraction(method)
        found.append(
            Formula(
                f"{name}_diagonal_sum",
                "Return sum_n h_n^2 of a mode at the gradient's point, free of common factors.",
                {"x": x, "momentum": mu},
                (over / under,),
                "03-noise-kernel",
            )
        )
    S0 = sp.Symbol("S0")
    diagonal = stability.pair_response(HEAVY_BALL).subs(names.lam_other, lam)
    over, under = sp.fraction(sp.cancel(stability.dressed_response(sp.cancel(diagonal))))
    line = sp.Poly(sp.cancel(under * eta * lam / over), lam)
    return [
        *found,
        Formula(
            "dressed_response",
            "Return S = 1 / (1/S0 + kappa gamma/D).",
            {"bare": S0, "gamma": gamma, "kappa": kappa, "n_data": D},
            (stability.dressed_response(S0),),
            "03-noise-kernel",
        ),
        Formula(
            "heavy_ball_pole",
            "Return p, q of the dressed response eta lambda / (p - q lambda) of a mode, rho = 0.",
            {
                "learning_rate": eta,
                "momentum": mu,
                "gamma": gamma,
                "kappa": kappa,
                "n_data": D,
            },
            (sp.factor(line.coeff_monomial(1)), -sp.expand(sp.apart(line.coeff_monomial(lam), D))),
            "03-noise-kernel",
        ),
        _mean_over_law(),
        Formula(
            "small_rate_response",
            "Return the limit of a mode's response over the learning rate as that goes to zero.",
            {"eigenvalue": lam, "weight_decay": rho, "momentum": mu},
            (stability.small_learning_rate_limit(HEAVY_BALL, weight_decay=True),),
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
        "a a_other b b_other drive drive_other pull pull_other now cross cross_other old mean "
        "mean_other old_mean old_mean_other ahead behind at_gradient noise spread"
    )
    paper = "a a' b b' f f' c c' N X X' O m m' n n' p q U Omega E"
    symbols = dict(zip(sp.symbols(python), sp.symbols(paper), strict=True))
    symbols = {str(name): symbol for name, symbol in symbols.items()}
    known = symbols | {"gamma": gamma, "kappa": kappa, "n_data": D}
    summaries = {
        "carried": "Return the part of the second moment's next value that needs no batch.",
        "pulled": "Return the part of it that weight decay's pull towards z_0 adds.",
        "kicked": "Return the part of it that the batch's noise adds.",
        "cross": "Return E z_(t+1) z_t' of two modes.",
        "mean": "Return E z_(t+1) of a mode.",
        "at_gradient": "Return E u u' of two modes at the point of the gradient.",
        "noise": "Return the covariance of the batch's noise between two modes.",
    }
    found = [
        _moment(f"{name}_moment" if name != "mean" else "next_mean", summary, known, expression)
        for (name, summary), expression in zip(summaries.items(), moments, strict=True)
    ]
    without = moments.carried.subs({symbols["b"]: 0, symbols["b_other"]: 0})
    return [
        *found,
        _moment("carried_moment_without_memory", summaries["carried"], known, without),
    ]


def _moment(
    name: str, summary: str, known: Mapping[str, sp.Symbol], expression: sp.Expr
) -> Formula:
    arguments = {k: v for k, v in known.items() if v in expression.free_symbols}
    return Formula(name, summary, arguments, (expression,), "02-second-moment")


def _stationary() -> list[Formula]:
    m2, dressed = sp.symbols("m2 S")
    energy = late_time.energy_at_gradient()
    of_total = energy.coeff(late_time.energies)
    return [
        Formula(
            "energy_at_gradient",
            "Return a mode's stationary energy at the gradient: own part, share of the total.",
            {
                "mean_square": m2,
                "dressed": dressed,
                "gamma": gamma,
                "kappa": kappa,
                "n_data": D,
            },
            (sp.expand(energy - of_total * late_time.energies), of_total),
            "03-noise-kernel",
        ),
        Formula(
            "kept_fraction",
            "Return the part of z_0 that a mode's mean keeps for ever under weight decay.",
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
