"""Second moments of the linear model, against parameters that move through all batches."""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic import linear
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.linear import LinearOptimizer, linear_optimizer, second_moment_equation
from tests.oracles import enumeration, linear_memory
from tests.oracles.quadratic import draw_list
from tests.symbolic._exact import SCHEMES, gamma_and_kappa, rationals, scheme_of

MU, ETA, RHO = Fraction(-2, 5), Fraction(1, 3), Fraction(3, 7)
MEMORY_3 = (Fraction(6, 5), Fraction(-3, 10), Fraction(1, 10)), (Fraction(4, 5), 0, Fraction(1, 5))
# name: (attribute of the package's module, or None; coefficients of update and extrapolation)
OPTIMIZERS = {
    "sgd": ("PLAIN_SGD", (1,), (1,)),
    "heavy ball": ("HEAVY_BALL", (1 + MU, -MU), (1, 0)),
    "nesterov": ("NESTEROV", (1 + MU, -MU), (1 + MU, -MU)),
    "memory 3": (None, *MEMORY_3),
}
# Exchangeable weights that no scheme draws; their mean is 7/4, and the batch's sum is not fixed
OWN = [(Fraction(1, 6), (a, b)) for a, b in itertools.permutations((Fraction(1, 2), 1, 3), 2)]
OWN = [(p, (a + Fraction(1, 4), b + Fraction(1, 4))) for p, (a, b) in OWN]


@functools.cache
def enumerated(optimizer, decay, n_data, draws):
    """Return the NTK, the residual at zero, and the moments after 0 to 3 steps."""
    _, update, extrapolation = OPTIMIZERS[optimizer]
    jacobian, residual = rationals(n_data, n_data, 2), rationals(7, n_data)
    start = [rationals(age, 2) for age in range(11, 11 + len(update))]
    moments = linear_memory.enumerated_moments(
        jacobian, residual, start, update, extrapolation, ETA, decay, draws, 3
    )
    return jacobian @ jacobian.T / n_data, residual, list(moments)


def optimizer_of(module, name):
    attribute, update, extrapolation = OPTIMIZERS[name]
    return (
        getattr(module, attribute) if attribute else module.LinearOptimizer(update, extrapolation)
    )


def named(means, pairs):
    """Return moments under the names of the package's tensors."""
    values = {f"m{age}" if age else "m": mean for age, mean in enumerate(means)}
    ordered = {(k, m): pair for (k, m), pair in pairs.items() if k <= m}
    return values | {f"M{k}{m}" if m else "M": pair for (k, m), pair in ordered.items()}


def check_steps(module, name, decay, n_data, draws, sampling, **settings):
    """Iterate the derived equations for three steps from the moments at the start."""
    ntk, residual, moments = enumerated(name, decay, n_data, tuple(draws))
    optimizer = optimizer_of(module, name)
    derived = module.second_moments(optimizer, weight_decay=decay != 0, sampling=sampling)
    assert list(derived) == list(range(optimizer.memory))
    values = {"Theta": ntk, "z0": residual, "D": Fraction(n_data), "eta": ETA, "mu": MU}
    values |= {"rho": decay} | settings
    state = named(*moments[0])
    for t in range(3):
        values |= {m: mean for m, mean in named(*moments[t]).items() if m.startswith("m")}
        following = {
            f"M0{age}" if age else "M": polynomial.evaluate(values | state)
            for age, polynomial in derived.items()
        }
        for k in range(1, optimizer.memory):
            for m in range(k, optimizer.memory):
                before = f"M{k - 1}{m - 1}" if m > 1 else "M"
                following[f"M{k}{m}"] = state[before]
        state = following
        for symbol, expected in named(*moments[t + 1]).items():
            if symbol.startswith("M"):
                np.testing.assert_array_equal(state[symbol], expected, f"{symbol} after {t + 1}")


CASES = [
    *itertools.product(OPTIMIZERS, (Fraction(0), RHO), [(2, 1)], SCHEMES),
    *itertools.product(OPTIMIZERS, (Fraction(0), RHO), [(3, 2)], SCHEMES[:2]),
    ("memory 3", RHO, (3, 2), "bernoulli"),  # 512 sequences of batches
    ("nesterov", RHO, (2, 2), "without_replacement"),
    ("nesterov", RHO, (2, 2), "with_replacement"),
]


@pytest.mark.parametrize(("optimizer", "decay", "sizes", "scheme"), CASES)
def test_three_steps_are_the_means_over_all_batches(optimizer, decay, sizes, scheme):
    n_data, batch_size = sizes
    draws = [(p, tuple(w)) for p, w in draw_list(n_data, batch_size, scheme)]
    check_steps(linear, optimizer, decay, n_data, draws, scheme, B=Fraction(batch_size))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gamma_and_kappa_are_enough(optimizer, scheme):
    gamma, kappa = gamma_and_kappa(2, 1, scheme)
    draws = [(p, tuple(w)) for p, w in draw_list(2, 1, scheme)]
    check_steps(linear, optimizer, RHO, 2, draws, None, gamma=gamma, kappa=kappa)


@pytest.mark.parametrize("decay", [Fraction(0), RHO], ids=["", "decay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_of_ones_own(optimizer, decay):
    check_steps(linear, optimizer, decay, 2, OWN, scheme_of(OWN, 2))


def test_the_longest_memory(monkeypatch):
    update = (Fraction(1, 2), Fraction(1, 4), Fraction(-1, 4), Fraction(1, 2))
    extrapolation = (Fraction(3, 2), Fraction(-1, 3), Fraction(1, 2), Fraction(-2, 3))
    monkeypatch.setitem(OPTIMIZERS, "memory 4", (None, update, extrapolation))
    check_steps(linear, "memory 4", RHO, 2, OWN, scheme_of(OWN, 2))


MUTATIONS = {
    "force away from the start": (
        "(optimizer.extrapolation, a) - _START(a))",
        "(optimizer.extrapolation, a) + _START(a))",
    ),
    "mixed moment of the wrong step": ("moved * history(age - 1)(b)", "moved * history(age)(b)"),
    "mixed moments symmetric": ("(0, 0) if age == other else ()", "(0, 0)"),
    "gradient at the present point": ("_combined(optimizer.extrapolation, c)", "history(0)(c)"),
    "means of the present": ('Tensor(f"m{age}" if age else "m"', 'Tensor("m"'),
}


@pytest.mark.parametrize(("old", "new"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_derivation_fails_the_comparison(mutated, old, new):
    module = mutated(linear, old, new)
    with pytest.raises(AssertionError):
        check_steps(module, "memory 3", RHO, 2, OWN, scheme_of(OWN, 2))


def test_plain_sgd_is_the_known_equation():
    """M' = (I - eta Theta) M (I - eta Theta) + eta^2 gamma Theta [diag(M) - kappa M / D] Theta."""
    ntk, moment = (m + m.T for m in (rationals(1, 3, 3), rationals(2, 3, 3)))
    gamma, kappa = Fraction(5, 3), Fraction(-2, 7)
    one = np.eye(3, dtype=int).astype(object)
    noise = one * np.diag(moment) - kappa * moment / 3
    expected = (one - ETA * ntk) @ moment @ (one - ETA * ntk)
    expected = expected + ETA**2 * gamma * ntk @ noise @ ntk
    equation = second_moment_equation()
    arguments = [names.Theta, names.M, names.eta, names.gamma, names.kappa, names.D]
    found = sp.lambdify(arguments, equation.rhs, "numpy")(ntk, moment, ETA, gamma, kappa, 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weight_decay", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equations_are_the_polynomials_in_matrices(optimizer, weight_decay):
    options = {
        "sgd": {},
        "heavy ball": {"momentum": True},
        "nesterov": {"nesterov": True},
        "memory 3": {"optimizer": LinearOptimizer(*MEMORY_3)},
    }[optimizer]
    equations = second_moment_equation(weight_decay=weight_decay, **options)
    equations = equations if isinstance(equations, tuple) else (equations,)
    memory = len(OPTIMIZERS[optimizer][1])
    assert [sp.latex(e.lhs) for e in equations] == ["M'", "M_{01}'", "M_{02}'"][:memory]
    ages = list(itertools.combinations_with_replacement(range(memory), 2))
    matrices = {f"M{k}{m}" if m else "M": rationals(k + 9 * m, 3, 3) for k, m in ages}
    matrices |= {"Theta": rationals(1, 3, 3)}
    matrices = {
        # the NTK and moments at one time are symmetric, and products are turned accordingly
        name: m + m.T if name in ("Theta", "M", "M11", "M22") else m
        for name, m in matrices.items()
    }
    columns = {name: rationals(n, 3) for n, name in enumerate(("z0", "m", "m1", "m2"))}
    numbers = {"eta": ETA, "mu": MU, "rho": RHO, "D": 3, "B": 2, "gamma": 5, "kappa": -2}
    derived = linear.second_moments(
        options.get("optimizer") or linear_optimizer(**options), weight_decay=weight_decay
    )
    for equation, polynomial in zip(equations, derived.values(), strict=True):
        symbols = sorted(equation.rhs.free_symbols, key=str)
        values = matrices | {name: c[:, None] for name, c in columns.items()} | numbers
        found = sp.lambdify(symbols, equation.rhs, "numpy")(*(values[s.name] for s in symbols))
        expected = polynomial.evaluate(matrices | columns | numbers)
        if optimizer == "memory 3":  # its coefficients are printed as floats
            np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=1e-12)
        else:
            np.testing.assert_array_equal(found, expected)
        assert equation.lhs.shape == equation.rhs.shape == (names.D, names.D)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_of_a_batch_is_the_enumerated_one(scheme):
    moment = rationals(5, 3, 3) + rationals(5, 3, 3).T
    expected = np.array(enumeration.weight_covariance(3, 2, scheme), dtype=object) * moment
    values = {"U": moment, "D": Fraction(3), "B": Fraction(2)}
    np.testing.assert_array_equal(linear.noise_covariance(scheme).evaluate(values), expected)
    gamma, kappa = gamma_and_kappa(3, 2, scheme)
    values |= {"gamma": gamma, "kappa": kappa}
    np.testing.assert_array_equal(linear.noise_covariance().evaluate(values), expected)


def rational_rotation():
    """Return an orthogonal matrix of fractions, none of them zero."""
    skew = sp.Matrix([[0, 1, -2], [-1, 0, 3], [2, -3, 0]]) / 2
    rotation = (sp.eye(3) - skew) * (sp.eye(3) + skew).inv()
    assert rotation * rotation.T == sp.eye(3)
    assert all(entry != 0 for entry in rotation)
    return np.array([Fraction(int(e.p), int(e.q)) for e in rotation], dtype=object).reshape(3, 3)


@pytest.mark.parametrize("optimizer", ["heavy ball", "nesterov"])
def test_moments_of_modes_are_the_moments_in_the_eigenbasis(optimizer):
    V, lam = rational_rotation(), [Fraction(2), Fraction(3, 4), Fraction(0)]
    _, update, extrapolation = OPTIMIZERS[optimizer]
    matrices = {"M": rationals(1, 3, 3), "M01": rationals(2, 3, 3), "M11": rationals(3, 3, 3)}
    matrices |= {name: matrices[name] + matrices[name].T for name in ("M", "M11")}
    columns = {name: rationals(n, 3) for n, name in enumerate(("z0", "m", "m1"))}
    numbers = {"eta": ETA, "rho": RHO, "mu": MU, "gamma": Fraction(5, 3), "kappa": Fraction(-2, 7)}
    derived = linear.second_moments(optimizer_of(linear, optimizer), weight_decay=True)
    values = matrices | columns | numbers | {"Theta": V * lam @ V.T, "D": Fraction(3)}
    expected = [V.T @ polynomial.evaluate(values) @ V for polynomial in derived.values()]

    now, cross, old = (V.T @ matrices[name] @ V for name in ("M", "M01", "M11"))
    start, mean, old_mean = (V.T @ column for column in columns.values())
    p, q = extrapolation[0], -extrapolation[1]
    at_gradient = (
        p * p * matrices["M"]
        - p * q * (matrices["M01"] + matrices["M01"].T)
        + q * q * matrices["M11"]
    )
    point_noise = V.T @ (np.diag(at_gradient)[:, None] * V)
    steps = [linear_memory.recursion(update, extrapolation, ETA * (v + RHO)) for v in lam]
    parts = linear.mode_moments()
    for i, k in itertools.product(range(3), repeat=2):
        known = {"a": steps[i][0], "a'": steps[k][0], "b": -steps[i][1], "b'": -steps[k][1]}
        known |= {"c": ETA * RHO * start[i], "c'": ETA * RHO * start[k]}
        known |= {"f": ETA * lam[i], "f'": ETA * lam[k]}
        known |= {"N": now[i, k], "X": cross[i, k], "X'": cross[k, i], "O": old[i, k]}
        known |= {"m": mean[i], "m'": mean[k], "n": old_mean[i], "n'": old_mean[k]}
        known |= {"p": p, "q": q, "E": point_noise[i, k], "D": 3} | numbers
        known = {name: sp.Rational(v.numerator, v.denominator) for name, v in known.items()}

        def value(part, known):
            return part.subs({s: known[s.name] for s in part.free_symbols}, simultaneous=True)

        known["U"] = value(parts.at_gradient, known)
        assert known["U"] == (V.T @ at_gradient @ V)[i, k]
        known["Omega"] = value(parts.noise, known)
        whole = sum(value(part, known) for part in (parts.propagated, parts.forced, parts.injected))
        assert whole == expected[0][i, k]
        assert value(parts.cross, known) == expected[1][i, k]
        following = steps[i][0] * mean[i] + steps[i][1] * old_mean[i] + ETA * RHO * start[i]
        assert value(parts.mean, known) == following


def test_optimizers_by_name():
    mu = names.mu
    assert linear_optimizer() == LinearOptimizer((1,), (1,))
    assert linear_optimizer(momentum=True) == LinearOptimizer((1 + mu, -mu), (1, 0))
    assert linear_optimizer(nesterov=True) == LinearOptimizer((1 + mu, -mu), (1 + mu, -mu))
    assert linear_optimizer(momentum=True, nesterov=True) == linear.NESTEROV


def test_the_shorter_list_of_coefficients_is_filled_up():
    optimizer = LinearOptimizer((1,), (Fraction(1, 2), 0, Fraction(1, 2)))
    assert optimizer.memory == 3
    assert optimizer.update == (1, 0, 0)
    x = sp.Symbol("x")
    assert optimizer.recursion(x) == [1 - x / 2, 0, -x / 2]


def test_coefficients_may_be_floats():
    assert LinearOptimizer((0.5, 0.5), (1.0,)).memory == 2


REFUSED = {
    "update sums to 2": (((2,), (1,)), ["update", "sum to 1", "got 2"]),
    "extrapolation sums to 0": (((1,), (1, -1)), ["extrapolation", "sum to 1", "got 0"]),
    "symbols do not cancel": (((1 + names.mu, names.mu), (1,)), ["update", "got 2*mu + 1"]),
    "too many": (((1,), (1, 0, 0, 0, 0)), ["extrapolation", "1 to 4", "got 5"]),
    "none": (((), (1,)), ["update", "1 to 4", "got 0"]),
}


@pytest.mark.parametrize(("arguments", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_optimizers(arguments, told):
    with pytest.raises(InputError) as refusal:
        LinearOptimizer(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    for part in told:
        assert part in message


def test_an_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="got 'poisson'"):
        second_moment_equation("poisson")
