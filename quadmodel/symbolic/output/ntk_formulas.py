"""What the numeric theory calls for the mean NTK at all times."""

from __future__ import annotations

import sympy as sp

from quadmodel.symbolic import all_time
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.algebra.gaussian import OVER_DATA, OVER_PARAMETERS
from quadmodel.symbolic.algebra.indices import Index, data_indices
from quadmodel.symbolic.algebra.matrices import as_matrix, matrix_of
from quadmodel.symbolic.algebra.matrix_expressions import Tr
from quadmodel.symbolic.algebra.names import D, P, eta
from quadmodel.symbolic.algebra.polynomials import delta
from quadmodel.symbolic.output.formula import Formula


def expected_ntk_formulas() -> list[Formula]:
    """Derive what the mean NTK at all times needs."""
    a, b = data_indices("ab")
    trace = sp.Symbol("s")
    names_of = {
        "over_data": OVER_DATA,
        "unconstrained_sum": all_time.UNCONSTRAINED_SUM,
        "data_response_sum": all_time.DATA_RESPONSE_SUM,
        "trace_sum": all_time.TRACE_SUM,
        "displacement_sum": all_time.DISPLACEMENT_SUM,
        "skew": all_time.SKEW,
        "twice": all_time.TWICE,
        "inner": all_time.INNER,
        "inner_twice": all_time.INNER_TWICE,
        "displaced": all_time.DISPLACEMENT,
        "source_sum": all_time.SOURCE_SUM,
        "diffusion": all_time.DIFFUSION,
    }
    known = {name: matrix_of(tensor) for name, tensor in names_of.items()}
    known |= {"trace": trace, "learning_rate": eta, "n_data": D, "n_params": P}
    full_trace = Tr(matrix_of(OVER_PARAMETERS))
    derived = {
        "ntk_source": ("Return the summed source terms of the mean NTK.", all_time.summed_source()),
        "ntk_source_unit": (
            "Return the summed source terms of the mean NTK for covariance S = I over parameters.",
            all_time.summed_source()
            .replace(all_time.SKEW, delta)
            .replace(all_time.TWICE, delta)
            .replace(OVER_PARAMETERS, delta),
        ),
        "ntk_diffusion": (
            "Return the mean square of the Jacobian's change with the parameters' displacement.",
            all_time.over_data(all_time.diffusion()),
        ),
        "ntk_change": ("Return the mean change of the NTK.", all_time.change()),
    }
    found = []
    for name, (summary, polynomial) in derived.items():
        expression = as_matrix(polynomial, a, b).xreplace({full_trace: trace})
        used = expression.free_symbols
        arguments = {k: v for k, v in known.items() if v in used}
        found.append(Formula(name, summary, arguments, (expression,), "06-expected-ntk"))
    return [*found, _repulsion(), _eigenvalue_shift()]


def _eigenvalue_shift() -> Formula:
    """Diagonalise two modes with a coupling; wide gaps give second-order perturbation theory."""
    gap, square = sp.symbols("g f", positive=True)
    values = sp.Matrix([[gap, sp.sqrt(square)], [sp.sqrt(square), 0]]).eigenvals(multiple=True)
    shift = next(value for value in values if value.subs({gap: 1, square: 2}) > 0) - gap
    return Formula(
        "eigenvalue_shift",
        "Return how far the larger of two eigenvalues is pushed by a fluctuation between them.",
        {"gap": gap, "square": square},
        (_without_cancellation(shift),),
        "06-expected-ntk",
    )


def _without_cancellation(shift: sp.Expr) -> sp.Expr:
    """Write root - gap as square / (root + gap), which loses no digits at wide gaps."""
    terms = sp.Add.make_args(sp.expand(shift))
    root = next(t for t in terms if any(p.exp == sp.S.Half for p in t.atoms(sp.Pow)))
    rest = sp.expand(shift) - root
    return sp.expand((root + rest) * (root - rest)) / (root - rest)


def _repulsion() -> Formula:
    """Write the fluctuation between two modes with scalars, which broadcast over pairs."""
    a, b, c, d = data_indices("abcd")
    W, N, Y = all_time.FLUCTUATION, all_time.SKEW, all_time.DISPLACEMENT
    polynomial = all_time.over_data(all_time.repulsion())
    polynomial = fold(polynomial, (N(a, c) * Y(c, d) * N(b, d)).sum(c, d), W)
    distance = sp.Symbol("theta_2")
    total = (all_time.INNER(c, d) * Y(c, d)).sum(c, d)
    symbols = {
        name: (tensor, sp.symbols(f"{tensor.name}_a {tensor.name}_b {tensor.name}_ab"))
        for name, tensor in (
            ("covariance", OVER_DATA),
            ("outer", all_time.OUTER),
            ("fluctuation", W),
        )
    }
    places: dict[tuple[Index, ...], int] = {(a, a): 0, (b, b): 1, (a, b): 2}
    arguments = {"distance": distance}
    for name, (_, (own, other, between)) in symbols.items():
        arguments |= {name: own, f"{name}_other": other, f"{name}_between": between}
    terms = []
    ((length, _),) = ((frozenset(t for t, _ in m), m) for m in total.terms)
    for monomial, scale in polynomial.terms.items():
        product = scale * (distance if length <= {t for t, _ in monomial} else 1)
        for tensor, indices in monomial:
            for known, spelled in symbols.values():
                if tensor == known:
                    product *= spelled[places[indices]]
        terms.append(product)
    return Formula(
        "mode_fluctuation",
        "Return D^2 times the mean square of the NTK's fluctuation between two modes.",
        arguments,
        (sp.collect(sp.Add(*terms), distance),),
        "06-expected-ntk",
    )
