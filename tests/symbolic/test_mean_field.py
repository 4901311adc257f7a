"""The mean-field theory: orders in the curvature, the limit of many parameters, the linear one."""

from __future__ import annotations

import functools

import pytest
import sympy as sp

from quadmodel import symbolic
from quadmodel._util.checks import InputError
from quadmodel.symbolic import all_time, given_forces, late_time, mean_field, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.fold import fold
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV, PLAIN_SGD
from tests.symbolic import _second_order as second_order
from tests.symbolic._exact import is_zero, summand

OPTIMIZERS = {"SGD": PLAIN_SGD, "heavy ball": HEAVY_BALL, "Nesterov": NESTEROV}
# weight, eigenvalue, factor of the curvature, E z_0^2: rational settings where symbols are slow
SPECTRUM = [("1/3", "1/2", "3/2", 2), ("1/2", "3/5", "4/5", "1/2"), ("1/6", 2, "3/5", 3)]


def plain(expression, form=sp.expand):
    """Return an expression with symbols of no assumptions but the name."""
    known = {x: sp.Symbol(x.name) for x in expression.free_symbols}
    return form(expression.subs(known))


# First order in qhat^2


def moment(j, k, n):
    """Return the theory's symbol for the mean of lambda^j c^k z_0^n."""
    if (k, n, j) in ((0, 0, 0), (1, 0, 0)):
        return sp.S.One
    kind = {0: "s", 2: "m"}.get(n, f"z{n}")
    return sp.Symbol(f"{kind}_{j}{k}")


@functools.cache
def multiplied_out(name, t, noisy, optimizer="SGD", decay=0):
    """Return the mean square of a quantity by all products of steps, in the limit."""
    iterates, points = second_order.trajectory(t, noisy, OPTIMIZERS[optimizer], decay)
    at = iterates[t] if name in ("seen", "C_seen") else points[t]
    if name in ("loss", "seen"):
        _, residual = second_order.slopes_and_residual(at)
        mean = second_order.mean_square(residual, second_order.a, t)
    else:
        mean = second_order.mean_square(at, second_order.i, t) * names.D
    return plain(second_order.limit(mean, moment))


def theory(module, name, t, *, order=1, optimizer="SGD", **options):
    values = {"mu": "mu"} | {k: v for k, v in options.items() if k != "noises"}
    noises = options.get("noises")
    more = [str(v) for v in noises or () if v]
    modes = symbolic.modes_of_moments(t, order=order, more=more, **values)
    found = module.MeanField(modes, OPTIMIZERS[optimizer], noises).run(t)
    if name == "seen":
        return modes.mean(found.seen[t])
    return found.loss[t] if name == "loss" else getattr(found, name)[t][t]


def check_first_order(module, name, t, noisy=True, optimizer="SGD", decay=0):
    noises = [sp.Symbol(f"v_{s}") if noisy else 0 for s in range(t + 1)]
    value = theory(module, name, t, optimizer=optimizer, rho=decay, noises=noises)
    assert value.as_expr().has(sp.Symbol("q2"))
    wanted = multiplied_out(name, t, noisy, optimizer, decay)
    assert sp.expand(value.as_expr() - wanted) == 0


@pytest.mark.parametrize(
    ("name", "t", "noisy"),
    [
        ("loss", 1, True),
        ("loss", 2, False),
        pytest.param("loss", 2, True, marks=pytest.mark.slow),
        ("C", 2, True),
        pytest.param("C", 3, False, marks=pytest.mark.slow),
    ],
)
def test_first_order_in_the_curvature(name, t, noisy):
    """For any spectrum, factors of the curvature and P/D: products of steps, averaged by Wick."""
    check_first_order(mean_field, name, t, noisy)


@pytest.mark.parametrize(
    ("name", "t", "optimizer", "decay"),
    [
        ("C", 2, "heavy ball", sp.Rational(1, 7)),
        ("loss", 2, "heavy ball", 0),
        pytest.param("seen", 2, "Nesterov", 0, marks=pytest.mark.slow),
        ("C_seen", 2, "Nesterov", 0),
    ],
)
def test_first_order_with_momentum(name, t, optimizer, decay):
    """At the point of the gradient, and at Nesterov's iterate."""
    check_first_order(mean_field, name, t, False, optimizer, decay)


@pytest.mark.parametrize(
    ("old", "new", "name", "t"),
    [
        # factors and signs of the four kernels, in the order of the text
        ("* delta * between(one[t], self.U[s]", "* 2 * delta * between(one[t], self.U[s]",
         "loss", 2),
        ("cut(sigma2 * factor * of[t][s] ** 2) / 2", "cut(sigma2 * factor * of[t][s] ** 2)",
         "loss", 1),
        ("cut(eta**2 * q2 * self.Z[t][s] *", "cut(-(eta**2) * q2 * self.Z[t][s] *", "C", 3),
        ("- cut(eta * q2 * delta * self.G[t][s]", "+ cut(eta * q2 * delta * self.G[t][s]", "C", 3),
        ("-cut(eta * q2 * factor * of_x[t][s]", "cut(eta * q2 * factor * of_x[t][s]", "loss", 2),
        # other parts of the equations
        ("- cut(eta * delta * (across[r][q]", "+ cut(eta * delta * (across[r][q]", "C", 3),
        ("self.G.append([mean(factor * v)", "self.G.append([0 * mean(factor * v)", "C", 3),
    ],
)  # fmt: skip
def test_a_wrong_kernel_fails(mutated, old, new, name, t):
    module = mutated(mean_field, old, new)
    with pytest.raises(AssertionError):
        check_first_order(module, name, t, noisy=False)


# The mean NTK of derivation 06


class LinearModes:
    """Modes of the linear model in closure: moments with the start, exactly, as D grows."""

    def __init__(self, steps, eta, gamma):
        self.modes = [tuple(map(sp.Rational, mode)) for mode in SPECTRUM]
        self.eta, self.gamma = sp.Rational(eta), sp.Rational(gamma)
        squares = [e for *_, e in self.modes]
        kept = [1 - self.eta * lam for _, lam, *_ in self.modes]
        own, of_all = late_time.closure()
        at = {names.kappa: 0, names.eta: self.eta, names.gamma: self.gamma}
        self.mixed, self.moved = [], []
        for t in range(steps + 1):
            means = [e * k**t for (*_, e), k in zip(self.modes, kept, strict=True)]  # E z z_0
            self.mixed.append([p - m for p, m in zip(squares, means, strict=True)])
            self.moved.append(
                [p - 2 * m + e for p, m, (*_, e) in zip(squares, means, self.modes, strict=True)]
            )
            total = sum(w * p for (w, *_), p in zip(self.modes, squares, strict=True))
            squares = [
                (own * p + of_all * names.D * total).subs(at | {names.lam: lam})
                for (_, lam, *_), p in zip(self.modes, squares, strict=True)
            ]

    def trace(self, polynomial, s, since):
        """Return the trace of a polynomial of derivation 06, in modes."""
        a, b = symbolic.data_indices("ab")
        numbers = {
            "X": self.mixed[s],
            "Y": self.moved[s],
            "R": [(1 - self.eta * lam) ** since for _, lam, *_ in self.modes],
            "H": [1 / lam / names.D for _, lam, *_ in self.modes],
            "c": [c for _, _, c, _ in self.modes],
        }
        diagonal = {
            t for m in polynomial.terms for t, ii in m if t.name in numbers and len(ii) == 2
        }
        for tensor in diagonal:
            own = symbolic.Tensor(tensor.name, tensor.slots[:1])
            polynomial = polynomial.replace(
                tensor, lambda i, k, own=own: own(i) * symbolic.delta(i, k)
            )
        total = 0
        for scale, factors, summed in (polynomial * symbolic.delta(a, b)).sum(a, b).opened():
            for index in summed:
                here = [t.name for t, (i,) in factors if i == index]
                scale = (
                    scale
                    * names.D
                    * sum(
                        w * sp.Mul(*(numbers[name][n] for name in here))
                        for n, (w, *_) in enumerate(self.modes)
                    )
                )
            total += scale
        return total


def trace_of_derivation_06(t, eta, gamma, ratio):
    """Return E tr(Theta_t - Theta_0)/D over qhat^2 of derivation 06, as D and P grow."""
    linear = LinearModes(t, eta, gamma)
    (a, b), (i,) = symbolic.data_indices("ab"), symbolic.parameter_indices("i")
    inverse = (all_time.INVERSE(i, a) * all_time.INVERSE(i, b)).sum(i)

    def in_modes(polynomial):
        plain = all_time.over_data(polynomial.replace(all_time.OVER_PARAMETERS, symbolic.delta))
        folded = fold(plain, inverse, all_time.INNER)
        return folded.replace(
            all_time.OVER_DATA, lambda x, y: second_order.FACTOR(x) * symbolic.delta(x, y)
        )

    source, diffusion = in_modes(all_time.source()), in_modes(all_time.diffusion())
    total = linear.trace(diffusion, t, 0)
    for s in range(t):
        term = linear.trace(source, s, t - 1 - s).subs(all_time.free_response, 1)
        total -= 2 * linear.eta / names.D * term
    scaled = (total / names.D**2).subs(names.P, names.D / ratio) * ratio  # sigma^2 = qhat^2 D/P
    return sp.limit(sp.expand(scaled), names.D, sp.oo)


def check_trace(module, eta="1/3", gamma="3/2", ratio="2/5", steps=4):
    values = {"eta": eta, "gamma": gamma, "delta": ratio, "kappa_D": 0}
    modes = symbolic.modes_of_values(SPECTRUM, order=0, **values)
    found = module.MeanField(modes).run(steps)
    for t in range(steps + 1):
        wanted = trace_of_derivation_06(t, eta, gamma, sp.Rational(ratio))
        assert found.C[t][t].as_expr() - wanted == 0


def test_trace_is_the_limit_of_the_mean_ntk_at_all_times():
    """tr Theta_t / D grows by qhat^2 C(t, t): rational setting, three eigenvalues, four steps."""
    check_trace(mean_field)


def test_another_noise_fails_the_trace(mutated):
    module = mutated(mean_field, "gamma * (self.loss[t] -", "gamma * (2 * self.loss[t] -")
    with pytest.raises(AssertionError):
        check_trace(module)


# Many parameters: all orders


def many_parameters(steps, eta, gamma, q2):
    """Solve the equations for P/D to infinity: two-time functions of given forces, closed.

    The forces of a mode are sums over z_0 and the noises of the batches, with coefficients that
    the functions give; their products over all modes give the functions of the next time.
    """
    modes = [tuple(map(sp.Rational, mode)) for mode in SPECTRUM]
    eta, gamma, q2 = map(sp.Rational, (eta, gamma, q2))
    bare = [[1 if s < t else 0 for s in range(steps)] for t in range(steps + 1)]
    coefficients = [[] for _ in modes]  # of z_0 and of each noise, by time
    noises, losses = [], []
    Z, F = [], []
    functions = None
    for t in range(steps + 1):
        functions = given_forces.two_time_functions(
            [[q2 * v for v in row] for row in Z], F, bare[: t + 1], eta
        )
        pairs = given_forces.residual_coefficients(functions, t, eta)
        for (_, lam, c, _), path in zip(modes, coefficients, strict=True):
            now = [sp.S.One] + [sp.S.Zero] * steps + [sp.S.Zero]
            for (one, other), before in zip(pairs, path, strict=True):
                weight = one * lam + other * q2 * c
                now = [x + weight * y for x, y in zip(now, before, strict=True)]
            path.append(now)

        def product(s, r, path, energy):
            return path[s][0] * path[r][0] * energy + sum(
                path[s][n + 1] * path[r][n + 1] * v for n, v in enumerate(noises)
            )

        together = list(zip(modes, coefficients, strict=True))
        losses.append(sum(w * product(t, t, path, e) for (w, _, _, e), path in together))
        noises.append(gamma * losses[-1])
        for path in coefficients:
            path[t][t + 1] += 1
        Z, F = (
            [
                [
                    sum(m[0] * m[n] * product(s, r, path, m[3]) for m, path in together)
                    for r in range(t + 1)
                ]
                for s in range(t + 1)
            ]
            for n in (2, 1)
        )
    return losses, functions


def check_many_parameters(module, steps=4):
    setting = {"eta": "1/3", "gamma": "3/2", "q2": "2/7"}
    modes = symbolic.modes_of_values(SPECTRUM, delta=0, kappa_D=0, **setting)
    found = module.MeanField(modes).run(steps)
    losses, functions = many_parameters(steps, *setting.values())
    for t in range(steps + 1):
        assert found.loss[t].as_expr() == losses[t]
        for s in range(t):
            assert found.u[t][s].as_expr() == functions.response[t][s]
        for s in range(t + 1):
            assert found.C[t][s].as_expr() == functions.product[t][s]
    assert functions.response[steps][0] != 1


def test_many_parameters_to_all_orders():
    """P/D to infinity: the equations of free operators, tested in test_given_forces.

    Rational setting, three modes with factors of the curvature, four steps.
    """
    check_many_parameters(mean_field)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cut(eta**2 * q2 * self.Z[t][s] *", "cut(2 * eta**2 * q2 * self.Z[t][s] *"),
        ("-cut(eta * q2 * factor * of_x[t][s]", "-cut(eta * q2 * of_x[t][s]"),
        ("cut(eta**2 * q2 * self._at(self.Z, r, q)", "cut(-(eta**2) * q2 * self._at(self.Z, r, q)"),
    ],
)
def test_another_memory_fails_for_many_parameters(mutated, old, new):
    module = mutated(mean_field, old, new)
    with pytest.raises(AssertionError):
        check_many_parameters(module, 3)


# No curvature


def check_closure(module, steps=4):
    """Compare with the recursion of derivation 03, for any spectrum and sampling scheme."""
    modes = symbolic.modes_of_moments(steps, order=0, q2=0)
    found = module.MeanField(modes).run(steps)
    own, of_all = late_time.closure()
    ratio = sp.Symbol("kappa_D")
    own, of_all = (
        modes.ring.from_expr(plain(v.subs(names.kappa, names.D * ratio)))
        for v in (sp.expand(own), of_all * names.D)
    )
    eigenvalue, _, squared = modes.mode()
    assert {str(s) for s in own.as_expr().free_symbols} == {"eta", "lambda", "gamma", "kappa_D"}
    for t in range(steps + 1):
        assert found.loss[t] == modes.mean(squared)
        squared = own * squared + of_all * modes.mean(squared)
    assert eigenvalue


def test_linear_limit_is_the_closure():
    check_closure(mean_field)


@pytest.mark.parametrize("wrong", ["- ratio * square", "eta * eigenvalue * U[t][s]"])
def test_a_wrong_linear_limit_fails(mutated, wrong):
    module = mutated(
        mean_field, wrong, wrong.replace("- ratio", "+ ratio").replace("U[t]", "2 * U[t]")
    )
    with pytest.raises(AssertionError):
        check_closure(module, 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_responses_sum_to_the_pair_response(name):
    """Squares of the response to a batch's noise are the terms of S^0 of derivation 03.

    Rational learning rate, eigenvalue and momentum.
    """
    steps, optimizer, w = 4, OPTIMIZERS[name], sp.Symbol("w")  # w = 1/r
    rate, eigenvalue, momentum = map(sp.Rational, ("1/3", "3/4", "2/5"))
    modes = symbolic.modes_of_values([(1, eigenvalue, 1, 1)], q2=0, eta=rate, mu=momentum)
    found = mean_field.MeanField(modes, optimizer).run(steps)
    at = [modes.mean(found.response[n][0] ** 2).as_expr() for n in range(1, steps + 1)]

    recursion = (*optimizer.recursion(rate * eigenvalue), 0)[:2]
    points = (*optimizer.extrapolation, 0)[:2]
    values = [v.subs(names.mu, momentum) for v in map(sp.sympify, (*recursion, *points))]
    a, b, c, d = values[0], -values[1], values[2], -values[3]
    known = {"a": a, "a'": a, "b": b, "b'": b, "c": c, "d": d}
    pair = stability.two_step_pair_sum().subs(known).subs(names.r, 1 / w)
    series = sp.series(sp.cancel((rate * eigenvalue) ** 2 * pair), w, 0, steps + 1).removeO()
    assert at == [series.coeff(w, n) for n in range(1, steps + 1)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_noise_sustains_itself_at_the_finite_norm(name):
    """The mean share of all modes is the finite K, which is 1 at the edge."""
    optimizer = OPTIMIZERS[name]
    bare = stability.bare_response(optimizer).subs(names.lam_other, names.lam)
    share = mean_field.stationary_share().subs("S0", bare) / names.D
    norm = symbolic.noise_kernel_norm("finite", optimizer=optimizer).rhs
    assert is_zero(share - summand(norm))
    assert not is_zero(2 * share - summand(norm))


def test_input():
    with pytest.raises(InputError, match=r"^weights and weighted factors"):
        symbolic.modes_of_values([("1/2", 1, 1, 1)])
    with pytest.raises(InputError, match=r"^values must be of q2.*got depth$"):
        symbolic.modes_of_moments(1, depth=1)
    with pytest.raises(InputError, match=r"^steps must be"):
        mean_field.MeanField(symbolic.modes_of_moments(0)).run(7)
