"""The mean-field theory: orders in the curvature, the limit of many parameters, the linear one."""

from __future__ import annotations

import functools

import pytest
import sympy as sp

from quadmodel import symbolic
from quadmodel._util.checks import InputError
from quadmodel.symbolic import all_time, given_forces, late_time, mean_field, stability
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.names import sigma
from quadmodel.symbolic.linear import HEAVY_BALL, NESTEROV, PLAIN_SGD
from tests.symbolic import _second_order as second_order
from tests.symbolic._exact import is_zero, summand

OPTIMIZERS = {"SGD": PLAIN_SGD, "heavy ball": HEAVY_BALL, "Nesterov": NESTEROV}
# weight, eigenvalue, factor of the curvature, E z_0^2: rational settings where symbols are slow
SPECTRUM = [("1/3", "1/2", "3/2", 2), ("1/2", "3/5", "4/5", "1/2"), ("1/6", 2, "3/5", 3)]


def plain(expression):
    """Return an expression with symbols of no assumptions but the name."""
    known = {x: sp.Symbol(x.name) for x in expression.free_symbols}
    return sp.expand(expression.subs(known))


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
        ("C", 3, False),
        pytest.param("C", 3, True, marks=pytest.mark.slow),
    ],
)
def test_first_order_in_the_curvature(name, t, noisy):
    """For any spectrum, factors of the curvature and P/D: products of steps, averaged by Wick."""
    check_first_order(mean_field, name, t, noisy)
