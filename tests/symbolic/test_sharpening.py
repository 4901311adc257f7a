"""Mean changes of NTK and Jacobian as equations: known values, limits, NumPy code, print."""

from __future__ import annotations

import functools
import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel import symbolic
from quadmodel._util.checks import InputError
from quadmodel.symbolic import sharpening
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.indices import data_indices
from quadmodel.symbolic.algebra.names import B, D, P, beta, eta, gamma, kappa, lam, s, sigma
from quadmodel.symbolic.algebra.polynomials import delta
from quadmodel.symbolic.dynamics import difference
from quadmodel.symbolic.linear import NTK
from tests.oracles import enumeration
from tests.symbolic._exact import SCHEMES, is_zero

AVERAGED = {"curvature": "independent", "residual": "independent"}
# E w^2 for many data points at a fixed fraction beta, by hand: drawn with probability beta, the
# weight is 1/beta; with replacement it is a Poisson number of mean beta, over beta
SQUARES = {"without_replacement": 1 / beta, "with_replacement": 1 + 1 / beta, "bernoulli": 1 / beta}


def mean_square(n_data, batch_size, scheme):
    return sum(p * w[0] ** 2 for p, w in enumeration.rational_batches(n_data, batch_size, scheme))


def check_factor(module, scheme):
    assert is_zero(module.sharpening_factor(scheme) - (1 - eta * lam * SQUARES[scheme]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batch_noise_cuts_the_sharpening_of_an_eigenvalue(scheme):
    check_factor(sharpening, scheme)


def test_the_factor_without_replacement():
    assert symbolic.sharpening_factor() == 1 - eta * lam / beta


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".subs(B, beta * D)", ".subs(B, D / beta)"),
        ("if KRONECKER[DATA] not in", "if KRONECKER[DATA] in"),
        ('"ntk", 2, curvature', '"ntk", 1, curvature'),
    ],
)
def test_a_wrong_factor_fails_the_comparison(mutated, old, new):
    module = mutated(sharpening, old, new)
    with pytest.raises((AssertionError, sp.PolynomialError, ZeroDivisionError)):
        check_factor(module, "with_replacement")


SIZES = [(2, 1), (4, 3), (5, 5)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_second_difference_of_an_eigenvalue(scheme):
    """The factor at finite sizes, where batch noise enters by E w^2."""
    part = symbolic.mode_part(difference("ntk", 2, sampling=scheme, **AVERAGED))
    scale = 2 * eta**2 * sigma**2 * s**2 * (P + 1) / D**2 * lam
    for n_data, batch_size in SIZES:
        square = sp.Rational(str(mean_square(n_data, batch_size, scheme)))
        expected = scale * (1 - eta * lam * (P + 2) / (P + 1) * square)
        assert is_zero((part - expected).subs({D: n_data, B: batch_size}))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_first_step(scheme):
    a, b, c = data_indices("abc")
    scale = eta**2 * sigma**2 * (P + 1) * s**2 / D**2
    found = difference("ntk", 1, sampling=scheme, **AVERAGED)
    for n_data, batch_size in SIZES:
        square = sp.Rational(str(mean_square(n_data, batch_size, scheme)))
        expected = NTK(c, c).sum(c) * delta(a, b) * (scale * square)
        sizes = {D: n_data, B: batch_size}
        assert found.subs(sizes).equals(expected.subs(sizes))


@pytest.mark.parametrize("scheme", ["without_replacement", "bernoulli"])
def test_first_step_lifts_all_eigenvalues_alike(scheme):
    """By eta^2 sigma^2 (P + 1) s^2 tr(Theta) / (D B)."""
    equation = symbolic.expected_ntk_difference(1, sampling=scheme, **AVERAGED)
    scale, unit = equation.rhs.args
    assert isinstance(unit, sp.Identity)
    assert unit.shape == (D, D)
    (trace,) = scale.atoms(sp.Trace)
    assert trace.arg == names.Theta
    assert is_zero(scale / trace - eta**2 * sigma**2 * (P + 1) * s**2 / (D * B))


def test_mean_of_the_jacobian_stays_for_one_step():
    assert symbolic.expected_jacobian_difference(1).rhs == sp.ZeroMatrix(D, P)
    assert symbolic.expected_jacobian_difference(2).rhs != sp.ZeroMatrix(D, P)


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_changes_in_the_linear_model(order):
    assert symbolic.expected_ntk_difference(order, curvature="none").rhs == sp.ZeroMatrix(D, D)
    assert symbolic.expected_jacobian_difference(order, curvature="none").rhs == sp.ZeroMatrix(D, P)


@pytest.mark.parametrize(("curvature", "order"), [("kronecker", 1), ("independent", 2)])
def test_independent_residuals_are_a_mean_over_signs(order, curvature):
    rng = np.random.default_rng(order)
    n_data, n_params = 3, 2
    values = {
        name: np.array([[Fraction(int(n), 3) for n in row] for row in rng.integers(-5, 6, shape)])
        for name, shape in {"Theta": (3, 3), "C": (3, 3), "S": (2, 2), "J": (3, 2)}.items()
    }
    values = {name: m if name == "J" else m + m.T for name, m in values.items()}
    numbers = {"eta": 2, "sigma": 3, "s": 1, "gamma": 5, "kappa": -2, "D": n_data, "P": n_params}
    values |= {name: Fraction(number, 7) for name, number in numbers.items()}
    values |= {"D": Fraction(n_data), "P": Fraction(n_params), "s": Fraction(1)}
    fixed = difference("ntk", order, curvature=curvature)
    mean = difference("ntk", order, curvature=curvature, residual="independent")
    signs = [np.array(z, dtype=object) for z in itertools.product((1, -1), repeat=n_data)]
    expected = sum(fixed.evaluate(values | {"z": z}) for z in signs) * Fraction(1, len(signs))
    np.testing.assert_array_equal(mean.evaluate(values), expected)


def arrays(seed, n_data=4, n_params=3):
    rng = np.random.default_rng(seed)
    J, C, S = (
        rng.normal(size=shape) for shape in ((n_data, n_params), (n_data,) * 2, (n_params,) * 2)
    )
    numbers = {"eta": 0.3, "sigma": 0.7, "s": 1.3, "gamma": 1.9, "kappa": 0.6}
    matrices = {"J": J, "C": C + C.T, "S": S + S.T, "Theta": J @ J.T / n_data}
    return matrices | {"z": rng.normal(size=n_data)} | numbers | {"D": n_data, "P": n_params}


@functools.cache
def equation_for(quantity, order, curvature, residual):
    derive = {
        "ntk": symbolic.expected_ntk_difference,
        "jacobian": symbolic.expected_jacobian_difference,
    }[quantity]
    return derive(order, curvature=curvature, residual=residual)


@pytest.mark.parametrize(
    ("curvature", "residual"),
    [("kronecker", "fixed"), ("independent", "independent")],
)
@pytest.mark.parametrize(("quantity", "order"), [("ntk", 1), ("ntk", 2), ("jacobian", 2)])
def test_equations_of_arrays(quantity, order, curvature, residual):
    equation, values = equation_for(quantity, order, curvature, residual), arrays(order)
    symbols = sorted(equation.rhs.free_symbols, key=str)
    given = [values[v.name][:, None] if v.name == "z" else values[v.name] for v in symbols]
    found = sp.lambdify(symbols, equation.rhs, "numpy")(*given)
    change = difference(quantity, order, curvature=curvature, residual=residual)
    expected = change.evaluate(values)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected.astype(float), rtol=1e-11, atol=1e-13)
    assert equation.lhs.shape == equation.rhs.shape


def test_symbols_of_the_equations_can_be_replaced():
    equation = equation_for("ntk", 2, "independent", "fixed")
    plain = equation.subs({gamma: 0, sigma: 2})
    assert not plain.has(gamma, kappa, sigma)
    values = arrays(5) | {"gamma": 0.0, "sigma": 2.0}
    arguments = [names.Theta, names.z, eta, D, P]
    given = [values["Theta"], values["z"][:, None], values["eta"], 4, 3]
    found = sp.lambdify(arguments, plain.rhs, "numpy")(*given)
    expected = difference("ntk", 2, curvature="independent").evaluate(values).astype(float)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


EQUATIONS = {
    "ntk, kronecker": lambda: equation_for("ntk", 2, "kronecker", "fixed"),
    "ntk, independent": lambda: equation_for("ntk", 2, "independent", "fixed"),
    "ntk, averaged": lambda: symbolic.expected_ntk_difference(1, **AVERAGED),
    "jacobian": lambda: equation_for("jacobian", 2, "kronecker", "fixed"),
    "no change": lambda: symbolic.expected_jacobian_difference(1),
    "second moment": symbolic.second_moment_equation,
    "second moment, momentum": lambda: symbolic.second_moment_equation(
        nesterov=True, weight_decay=True
    )[0],
    "mixed moment": lambda: symbolic.second_moment_equation(momentum=True)[1],
    "paper": lambda: symbolic.noise_kernel_norm("paper"),
    "finite": lambda: symbolic.noise_kernel_norm("finite", momentum=True),
    "exact": lambda: symbolic.noise_kernel_norm("exact", nesterov=True),
    "mode energy": symbolic.mode_energy_equation,
    "rate": symbolic.rate_equation,
    "floor": symbolic.loss_floor,
}


@pytest.mark.parametrize("equation", EQUATIONS.values(), ids=EQUATIONS.keys())
def test_equations_are_shown_as_mathematics(equation):
    shown = equation()._repr_latex_()
    assert shown.startswith("$\\displaystyle ")
    assert shown.count("{") == shown.count("}")
    for code in ("DiagonalPart", "Diag(", "Tr(", "Unit", "Ones", "Symbol", "_{t", "+ -", "prime"):
        assert code not in shown
    letters = "Theta|Delta|eta|gamma|kappa|sigma|lambda|alpha|mu|rho|beta"
    assert not re.search(rf"(?<![\\A-Za-z])({letters})", shown)
    assert not re.search(r"_\{\d [A-Z]", shown)  # a name taken for an index


def test_differences_are_named():
    assert sp.latex(symbolic.expected_ntk_difference(1).lhs) == r"E\Delta_{1}\Theta"
    assert sp.latex(symbolic.expected_jacobian_difference(1).lhs) == r"E\Delta_{1} J"


DERIVATIONS = [symbolic.expected_ntk_difference, symbolic.expected_jacobian_difference]


@pytest.mark.parametrize("order", [5, 0, -1, 1.5, "2"])
@pytest.mark.parametrize("derive", DERIVATIONS)
def test_other_orders_are_refused(derive, order):
    with pytest.raises(InputError, match="order must be an integer between 1 and 4") as refusal:
        derive(order)
    assert str(order) in str(refusal.value)


@pytest.mark.parametrize("derive", DERIVATIONS)
@pytest.mark.parametrize("option", ["curvature", "residual", "sampling"])
def test_unknown_names_are_refused(derive, option):
    with pytest.raises(InputError, match=f"^{option} must be .*'unheard of'"):
        derive(1, **{option: "unheard of"})


def test_an_unknown_scheme_has_no_factor():
    with pytest.raises(InputError, match="'unheard of'"):
        symbolic.sharpening_factor("unheard of")
