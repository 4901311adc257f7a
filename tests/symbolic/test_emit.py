"""The emitted module: that it is the derived one, where its formulas come from."""

from __future__ import annotations

import ast
import copy
import functools
import itertools
import tomllib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic import linear, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import eta, lam, lam_other, mu, r, rho, x, y
from quadmodel.symbolic.algebra.sampling import weight_covariance
from quadmodel.symbolic.output import emit
from quadmodel.symbolic.output.formulas import formulas
from quadmodel.theory import _generated as generated
from tests.oracles import linear_memory
from tests.oracles.one_step import weight_fluctuations
from tests.symbolic._exact import gamma_and_kappa

FILE = Path(generated.__file__)
ROOT = FILE.parents[2]
TEXT = FILE.read_text("utf-8")
FUNCTIONS = {node.name: node for node in ast.parse(TEXT).body if isinstance(node, ast.FunctionDef)}
OPTIMIZERS = {"heavy_ball": linear.HEAVY_BALL, "nesterov": linear.NESTEROV}
PRECISION = 60
ROUNDING = 2.0**-52


@functools.cache
def derived():
    return {formula.name: formula for formula in formulas()}


def sympy_of_the_tests():
    """Return the version that the test extra asks for: another one may print in another order."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    asked = extras["project"]["optional-dependencies"]["test"]
    return next(line.removeprefix("sympy==") for line in asked if line.startswith("sympy=="))


def test_the_committed_module_is_the_derived_one():
    if sp.__version__ != sympy_of_the_tests():
        pytest.skip(f"SymPy {sp.__version__} is not the one of the test extra")
    assert FILE.read_bytes() == emit.generated_module().encode()


def test_every_formula_is_used():
    assert list(FUNCTIONS) == list(derived())
    used = {
        node.attr
        for path in FILE.parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "generated"
    }
    assert used == set(FUNCTIONS)


def test_named_derivations_exist():
    for formula in derived().values():
        assert (ROOT / "derivations" / f"{formula.document}.md").is_file()
        assert f"derivations/{formula.document}.md" in ast.get_docstring(FUNCTIONS[formula.name])


def precise(text):
    """Run the code of the module on numbers of arbitrary precision."""
    space = {}
    exec(
        compile(text.replace("import numpy as np", "import mpmath as np"), "emitted", "exec"), space
    )
    return space


# Origins of the formulas: for each one, arguments and the exact result, from the derivations
# before they are rewritten for the emitted code, or from first principles.


def fractions(seed, *ranges):
    """Draw exact numbers, one in each range."""
    rng = np.random.default_rng(seed)
    return [Fraction(int(rng.integers(round(997 * a), round(997 * b))), 997) for a, b in ranges]


def exactly(expression, values):
    symbols = list(values)
    return sp.lambdify(symbols, expression, modules=[])(*values.values())


def covariances(scheme):
    for n_data, batch_size in ((3, 1), (4, 3), (5, 2)):
        arguments = {"n_data": n_data, "batch_size": batch_size}
        yield arguments, gamma_and_kappa(n_data, batch_size, scheme)


def higher_moments(scheme):
    """Coefficients of deltas, from moments at different points by hand."""
    for n_data, batch_size in ((4, 1), (5, 2), (5, 4)):
        third = weight_fluctuations(n_data, batch_size, scheme, 3)
        fourth = weight_fluctuations(n_data, batch_size, scheme, 4)
        c111 = third[0, 1, 2]
        c21 = third[0, 0, 1] - c111
        c1111 = fourth[0, 1, 2, 3]
        c211 = fourth[0, 0, 1, 2] - c1111
        c22 = fourth[0, 0, 1, 1] - 2 * c211 - c1111
        c31 = fourth[0, 0, 0, 1] - 3 * c211 - c1111
        c4 = fourth[0, 0, 0, 0] - 4 * c31 - 3 * c22 - 6 * c211 - c1111
        yield (
            {"n_data": n_data, "batch_size": batch_size},
            (third[0, 0, 0] - 3 * c21 - c111, c21, c111, c4, c31, c22, c211, c1111),
        )


def paper_variance():
    gamma, _ = weight_covariance("without_replacement")
    many = 10**PRECISION
    for beta in (Fraction(1, 7), Fraction(3, 4)):
        limit = exactly(gamma, {names.D: many, names.B: beta * many})
        yield {"batch_fraction": beta}, (limit,)


def recursion(extrapolation):
    for seed in range(3):
        at, m = fractions(seed, (0, 2), (-0.9, 0.9))
        a, b = linear_memory.recursion((1 + m, -m), extrapolation(m), at)
        yield {"x": at, "momentum": m}, (a, -b)


def edges(places):
    for seed in range(3):
        (m,) = fractions(seed, (0.1, 0.9))
        yield {"momentum": m}, places(m)


def roots():
    for seed in range(3):
        a, b = fractions(seed, (1.5, 2), (-0.5, 0.5))
        with mpmath.workdps(PRECISION):
            low, high = mpmath.polyroots([1, number(-a), number(b)], maxsteps=200, extraprec=200)
        yield {"a": a, "b": b}, tuple(sorted((low, high)))


def pair_sum(name, at):
    expression = stability.pair_sum(OPTIMIZERS[name], r, at)
    for seed in range(3):
        values = fractions(seed, (0, 1), (0, 1), (-0.9, 0.9), (0.9, 1.3))
        expected = exactly(expression, dict(zip((x, y, mu, r), values, strict=True)))
        yield dict(zip(("x", "y", "momentum", "growth"), values, strict=True)), (expected,)


def diagonal_sum(name):
    expression = stability.pair_sum(OPTIMIZERS[name])
    for seed in range(3):
        at, m = fractions(seed, (0, 1), (-0.9, 0.9))
        yield {"x": at, "momentum": m}, (exactly(expression, {x: at, y: at, mu: m}),)


def dressed():
    for seed in range(3):
        bare, gamma, kappa, n = fractions(seed, (0, 5), (0, 9), (-1, 1), (2, 9))
        arguments = {"bare": bare, "gamma": gamma, "kappa": kappa, "n_data": n}
        yield arguments, (1 / (1 / bare + kappa * gamma / n),)


def pole():
    """S = eta lambda / (p - q lambda) at two eigenvalues."""
    response = stability.bare_response(linear.HEAVY_BALL).subs(lam_other, lam)
    for seed in range(3):
        step, m, gamma, kappa, n = fractions(seed, (0, 1), (-0.9, 0.9), (0, 9), (-1, 1), (2, 9))
        lines = []
        for v in (1, 2):
            bare = exactly(response, {eta: step, lam: v, mu: m})
            lines.append(step * v * (1 / bare + kappa * gamma / n))
        arguments = {"learning_rate": step, "momentum": m, "gamma": gamma, "kappa": kappa}
        yield arguments | {"n_data": n}, (2 * lines[0] - lines[1], lines[0] - lines[1])


def mean_over_law():
    """A law of two eigenvalues."""
    for seed in range(3):
        place, slope, chance = fractions(seed, (3, 5), (0, 2), (0, 1))
        law = ((chance, Fraction(1, 3)), (1 - chance, Fraction(2)))
        transform = sum(p / (place - v) for p, v in law)
        mean = sum(p * v / (slope * place - slope * v) for p, v in law)
        yield {"pole": place, "slope": slope, "transform": transform}, (mean,)


def small_rate():
    response = stability.bare_response(linear.HEAVY_BALL, weight_decay=True).subs(lam_other, lam)
    tiny = Fraction(1, 10**PRECISION)
    for seed in range(3):
        v, decay, m = fractions(seed, (0, 2), (0, 1), (-0.9, 0.9))
        limit = exactly(response, {eta: tiny, lam: v, rho: decay, mu: m}) / tiny
        yield {"eigenvalue": v, "weight_decay": decay, "momentum": m}, (limit,)


def mean(values):
    return sum(values) / len(values)


@dataclass
class Mode:
    """A mode in two equally likely outcomes of the batches so far, and its recursion."""

    z: np.ndarray
    before: np.ndarray
    a: Fraction
    b: Fraction
    force: Fraction
    step: Fraction

    @classmethod
    def drawn(cls, seed):
        values = fractions(seed, *[(-2, 2)] * 8)
        return cls(np.array(values[:2]), np.array(values[2:4]), *values[4:])

    def following(self, noise=0, force=1):
        """Return z_(t+1) = a z_t - b z_(t-1) + c - f omega."""
        return self.a * self.z - self.b * self.before + force * self.force - self.step * noise

    def at(self, p, q):
        return p * self.z - q * self.before


def moments(name):
    """Two modes, and batch noise of either sign: 1 in the first mode, `noise` in the second."""
    for seed in range(3):
        one, other = Mode.drawn(2 * seed), Mode.drawn(2 * seed + 1)
        p, q, noise, point_noise, gamma, kappa = fractions(seed + 100, *[(-2, 2)] * 6)
        n = Fraction(7)
        at_gradient = mean(one.at(p, q) * other.at(p, q))
        propagated = mean(one.following(force=0) * other.following(force=0))
        forced = mean(one.following() * other.following()) - propagated
        noisy = [one.following(sign) * other.following(sign * noise) for sign in (1, -1)]
        expected = {
            "propagated_moment": propagated,
            "forced_moment": forced,
            "injected_moment": mean(sum(noisy)) / 2 - propagated - forced,
            "cross_moment": mean(one.following() * other.z),
            "next_mean": mean(one.following()),
            "at_gradient_moment": at_gradient,
            "noise_covariance": gamma * (point_noise - kappa * at_gradient / n),
            "propagated_moment_without_memory": mean(one.a * one.z * other.a * other.z),
        }
        known = {"coefficient_now": p, "coefficient_old": q, "at_gradient": at_gradient}
        known |= {"noise": noise, "point_noise": point_noise}
        known |= {"gamma": gamma, "kappa": kappa, "n_data": n}
        known |= {"now": mean(one.z * other.z), "cross": mean(one.z * other.before)}
        known |= {"cross_other": mean(one.before * other.z), "old": mean(one.before * other.before)}
        for end, mode in (("", one), ("_other", other)):
            known |= {f"a{end}": mode.a, f"b{end}": mode.b, f"effective_step{end}": mode.step}
            known |= {f"weight_decay_force{end}": mode.force}
            known |= {f"mean{end}": mean(mode.z), f"old_mean{end}": mean(mode.before)}
        arguments = [argument.arg for argument in FUNCTIONS[name].args.args]
        yield {argument: known[argument] for argument in arguments}, (expected[name],)


def squared_residual():
    """Own part, and share of the total, of e = m^2 + (gamma/D) S0 (total - kappa e)."""
    for seed in range(3):
        square, bare, gamma, kappa, n = fractions(seed, (0, 3), (0, 5), (0, 9), (-1, 1), (2, 9))
        loop = gamma / n * bare
        own, whole = ((square + loop * total) / (1 + loop * kappa) for total in (0, 1))
        response = 1 / (1 / bare + kappa * gamma / n)
        arguments = {"mean_square": square, "dressed": response, "gamma": gamma, "kappa": kappa}
        yield arguments | {"n_data": n}, (own, whole - own)


def kept():
    """The fixed point m = m - eta lambda m - eta rho (m - 1), for any eta."""
    for seed in range(3):
        v, decay = fractions(seed, (0, 3), (0, 1))
        yield {"eigenvalue": v, "weight_decay": decay}, (decay / (v + decay),)


MOMENTS = (
    "propagated_moment",
    "forced_moment",
    "injected_moment",
    "cross_moment",
    "next_mean",
    "at_gradient_moment",
    "noise_covariance",
    "propagated_moment_without_memory",
)
ORIGINS = {
    "without_replacement_covariance": lambda: covariances("without_replacement"),
    "with_replacement_covariance": lambda: covariances("with_replacement"),
    "bernoulli_covariance": lambda: covariances("bernoulli"),
    "paper_variance": paper_variance,
    "heavy_ball_recursion": lambda: recursion(lambda m: (1, 0)),
    "nesterov_recursion": lambda: recursion(lambda m: (1 + m, -m)),
    "heavy_ball_edges": lambda: edges(lambda m: (2 * (1 + m),)),
    "nesterov_edges": lambda: edges(
        lambda m: ((m - 1) / m, (m + 1) / m, 2 * (1 + m) / (1 + 2 * m))
    ),
    "recursion_roots": roots,
    "heavy_ball_pair_sum_at_gradient": lambda: pair_sum("heavy_ball", "gradient"),
    "heavy_ball_diagonal_pair_sum": lambda: diagonal_sum("heavy_ball"),
    "nesterov_pair_sum_at_gradient": lambda: pair_sum("nesterov", "gradient"),
    "nesterov_pair_sum_at_residual": lambda: pair_sum("nesterov", "residual"),
    "nesterov_diagonal_pair_sum": lambda: diagonal_sum("nesterov"),
    "dressed_response": dressed,
    "heavy_ball_pole": pole,
    "mean_over_law": mean_over_law,
    "small_rate_response": small_rate,
    **{name: functools.partial(moments, name) for name in MOMENTS},
    "squared_residual_at_gradient": squared_residual,
    "kept_fraction": kept,
    "without_replacement_fluctuations": lambda: higher_moments("without_replacement"),
    "with_replacement_fluctuations": lambda: higher_moments("with_replacement"),
    "bernoulli_fluctuations": lambda: higher_moments("bernoulli"),
}


@functools.cache
def origin(name):
    return list(ORIGINS[name]())


def number(value):
    return (
        value if isinstance(value, mpmath.mpf) else mpmath.mpf(value.numerator) / value.denominator
    )


def check(name, function):
    """Compare a function with its origin, to 45 digits."""
    with mpmath.workdps(PRECISION):
        for arguments, expected in origin(name):
            found = function(**{key: number(value) for key, value in arguments.items()})
            found = found if isinstance(found, tuple) else (found,)
            for value, target in zip(found, expected, strict=True):
                assert mpmath.almosteq(value, number(target), 1e-45, 1e-45), (name, arguments)


def test_every_formula_has_an_origin():
    # those of the expected NTK are matrices, and compared elsewhere
    here = [name for name, f in derived().items() if f.document != "06-expected-ntk"]
    assert sorted(ORIGINS) == sorted(here)


@pytest.mark.parametrize("name", ORIGINS)
def test_code_agrees_with_its_origin(name):
    check(name, precise(TEXT)[name])


@pytest.mark.parametrize("name", ORIGINS)
def test_formula_agrees_with_its_origin(name):
    formula = derived()[name]
    steps = {sp.Symbol(key.replace("_other", "'")): value for key, value in formula.steps.items()}
    steps = {key: value.subs(steps) for key, value in steps.items()}
    results = [result.subs(steps) for result in formula.results]
    symbols = list(formula.arguments.values())

    def function(**arguments):
        values = sp.lambdify(symbols, results, "mpmath")(*arguments.values())
        return tuple(values)

    check(name, function)


class Mutants(ast.NodeTransformer):
    """Change the n-th sign, operator or number of a function."""

    def __init__(self, place):
        self.place, self.seen = place, -1

    def visit_BinOp(self, node):
        self.generic_visit(node)
        others = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
        if self._here(type(node.op) in others):
            node.op = others[type(node.op)]()
        return node

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return node.operand if self._here(True) else node

    def visit_Constant(self, node):
        if self._here(isinstance(node.value, int)):
            node.value += 1
        return node

    def _here(self, possible):
        self.seen += possible
        return possible and self.seen == self.place


def mutants(name):
    for place in itertools.count():
        function = copy.deepcopy(FUNCTIONS[name])
        function.args = copy.deepcopy(function.args)
        mutant = Mutants(place)
        function.body = [mutant.visit(line) for line in function.body[1:]]  # less the docstring
        if mutant.seen < place:
            return
        code = ast.unparse(ast.fix_missing_locations(function))
        space = {"np": mpmath, "Any": None}
        exec(compile(code, "mutant", "exec"), space)
        yield code, space[name]


def unnoticed(name, function):
    try:
        check(name, function)
    except (AssertionError, ZeroDivisionError):
        return False
    return True


@pytest.mark.parametrize("name", ORIGINS)
def test_no_sign_operator_or_number_can_change_unnoticed(name):
    assert [code for code, function in mutants(name) if unnoticed(name, function)] == []


def test_a_change_in_the_text_is_noticed():
    text = TEXT.replace("bare*gamma*kappa/n_data + 1)", "1 - bare*gamma*kappa/n_data)")
    assert text != TEXT
    with pytest.raises(AssertionError):
        check("dressed_response", precise(text)["dressed_response"])


@pytest.mark.parametrize("name", ORIGINS)
def test_arrays_broadcast(name):
    function = getattr(generated, name)
    (first, _), (second, _) = origin(name)[:2]
    arguments = {
        key: np.array([float(first[key]), float(second[key])])[(None,) * place]
        for key, place in zip(first, itertools.cycle((0, 1)), strict=False)
    }
    found = function(**arguments)
    for n, given in enumerate((first, second)):
        alone = function(**{key: float(value) for key, value in given.items()})
        pairs = zip(found, alone, strict=True) if isinstance(found, tuple) else [(found, alone)]
        for whole, part in pairs:
            entry = np.ravel(np.broadcast_to(whole, (1, 2)))[n]
            assert entry == pytest.approx(part, rel=1e-14)
