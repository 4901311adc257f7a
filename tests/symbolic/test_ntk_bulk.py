"""Moments of the bulk against Gaussian averages of the powers of the matrix itself."""

from __future__ import annotations

import functools

import pytest
import sympy as sp

from quadmodel.symbolic import ntk_bulk
from quadmodel.symbolic.algebra.gaussian import JACOBIAN, GaussianField, average
from quadmodel.symbolic.algebra.indices import DATA, PARAMETERS, data_indices, parameter_indices
from quadmodel.symbolic.algebra.names import D, P
from quadmodel.symbolic.algebra.polynomials import Tensor, delta
from quadmodel.symbolic.dynamics import with_ntk
from quadmodel.symbolic.linear import NTK
from tests.symbolic._second_order import EIGENVALUE, FACTOR, limit

NOISE = Tensor("N", (DATA, PARAMETERS))
DATA_PLACES, PLACES = data_indices("abc"), parameter_indices("ijk")


@functools.cache
def averaged(power):
    """Mean of an eigenvalue's power, for many data and parameters: c is the noise's variance."""
    product = 1
    for n in range(power):
        for a in (DATA_PLACES[n], DATA_PLACES[(n + 1) % power]):
            entry = JACOBIAN(a, PLACES[n]) + NOISE(a, PLACES[n])
            product = entry * product
    product = product.sum(*DATA_PLACES[:power], *PLACES[:power]) * D**-power

    def covariance(one, other):
        (a, i), (b, j) = one, other
        return FACTOR(a) * delta(a, b) * delta(i, j) * (D / P)

    mean = with_ntk(average(product, GaussianField(NOISE, covariance)))
    modes = mean.replace(NTK, lambda a, b: EIGENVALUE(a) * delta(a, b))
    return limit(modes, lambda j, k, _: 1 if j == k == 0 else sp.Symbol(f"s_{j}{k}"))


def check(module, *powers):
    moments = module.bulk_moments(max(powers))
    positive = {sp.Symbol("delta", positive=True): sp.Symbol("delta")}
    for power in powers:
        assert sp.expand(averaged(power).subs(positive) - moments[power]) == 0


def test_moments():
    check(ntk_bulk, 1, 2, 3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-w * ratio * mean(cut(factor * tau))", "w * ratio * mean(cut(factor * tau))"),
        ("(1 - ratio) * inverse(d)", "inverse(d)"),
        ("w * eigenvalue * inverse(cut(d_other * factor))", "w * eigenvalue"),
    ],
)
def test_a_wrong_equation_fails(mutated, old, new):
    module = mutated(ntk_bulk, old, new)
    with pytest.raises(AssertionError):
        check(module, 2, 3)


def test_many_parameters_shift_the_spectrum():
    """Independent entries of variance one per mode: every eigenvalue moves by the same."""
    shift = sp.Symbol("v")
    for power, moment in enumerate(ntk_bulk.bulk_moments(4)):
        limit_ = sp.expand(moment.subs("delta", 0))
        values = {
            symbol: sp.Symbol(f"s_{symbol.name[2]}0") * shift ** int(symbol.name[3])
            for symbol in limit_.free_symbols
        }
        terms = (
            sp.binomial(power, n) * sp.Symbol(f"s_{power - n}0") * shift**n
            for n in range(power + 1)
        )
        both = [x.subs({"s_00": 1}) for x in (limit_.subs(values), sum(terms))]
        assert sp.expand(both[0] - both[1]) == 0
