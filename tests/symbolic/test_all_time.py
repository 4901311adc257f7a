"""The mean NTK at all times, against all batches and all values of a discrete curvature."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp

from quadmodel.symbolic import all_time
from quadmodel.symbolic.algebra.indices import data_indices
from quadmodel.symbolic.algebra.names import sigma
from tests.oracles.quadratic import draw_list, expected_moments
from tests.symbolic._exact import SCHEMES, rationals


def identity(size):
    return np.array([[Fraction(int(i == j)) for j in range(size)] for i in range(size)])


def inverse(matrix):
    exact = sp.Matrix(matrix.shape[0], matrix.shape[1], [sp.Rational(v) for v in matrix.ravel()])
    return np.array([[Fraction(int(v.p), int(v.q)) for v in row] for row in exact.inv().tolist()])


def linear_moments(ntk, residual, eta, draws, steps):
    """E z (z - z0)^T and E (z - z0)(z - z0)^T of the linear model after 0, ..., `steps` steps."""
    moments = []
    for count in range(steps + 1):
        mixed = moved = 0
        for batches in itertools.product(draws, repeat=count):
            probability, z = Fraction(1), residual
            for p, w in batches:
                probability, z = probability * p, z - eta * ntk @ (np.array(w) * z)
            mixed = mixed + probability * np.outer(z, z - residual)
            moved = moved + probability * np.outer(z - residual, z - residual)
        moments.append((mixed, moved))
    return moments


class Case:
    """A small model in fractions, with what the formulas ask for."""

    def __init__(self, n_data, n_params, batch_size, sampling, eta, seed):
        self.draws = draw_list(n_data, batch_size, sampling)
        self.J, self.z = rationals(seed, n_data, n_params), rationals(seed + 1, n_data)
        self.mix, self.root = (
            rationals(seed + 2, n_data, n_data),
            rationals(seed + 3, n_params, n_params),
        )
        self.C, self.S = self.mix @ self.mix.T, self.root @ self.root.T
        self.eta, self.n_data, self.n_params = eta, n_data, n_params
        self.ntk = self.J @ self.J.T / n_data
        self.inverse = self.J.T @ inverse(self.J @ self.J.T)

    def enumerated(self, steps):
        """E J_t J_t^T, the part of second order in the curvature."""
        step = self.eta / self.n_data
        arguments = (self.J, self.z, step, self.draws, steps)
        return expected_moments(*arguments, mix=self.mix, root=self.root)["gram"][2]

    def values(self, mixed, moved, since):
        """What a term's formula asks for, `since` steps after it."""
        response, of_data = identity(self.n_params), identity(self.n_data)
        for _ in range(since):
            response = response - self.eta / self.n_data * self.J.T @ (self.J @ response)
            of_data = of_data - self.eta * self.ntk @ of_data
        K, S = self.inverse, self.S
        return {
            "C": self.C,
            "S": S,
            "J": self.J,
            "J^+": K,
            "X": mixed,
            "Y": moved,
            "Phi": response,
            "R": of_data,
            "h_0": Fraction(1),
            "F": self.J @ S @ self.J.T,
            "H": K.T @ S @ K,
            "H2": K.T @ S @ S @ K,
            "N": self.J @ S @ K,
            "L": self.J @ S @ S @ K,
        }


def assert_mean_is_enumerated(case, steps, source, diffusion):
    moments = linear_moments(case.ntk, case.z, case.eta, case.draws, steps)
    total = diffusion.evaluate(case.values(*moments[steps], 0))
    for s in range(steps):
        term = source.evaluate(case.values(*moments[s], steps - 1 - s))
        total = total - case.eta / case.n_data * (term + term.T)
    assert (total == case.enumerated(steps)).all()


@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize(
    ("n_data", "n_params", "batch_size", "steps"),
    [(2, 2, 1, 1), (2, 2, 1, 3), (2, 3, 1, 1), (1, 2, 1, 3), (2, 2, 2, 2)],
)
def test_kronecker_curvature(sampling, n_data, n_params, batch_size, steps):
    case = Case(n_data, n_params, batch_size, sampling, Fraction(1, 5), seed=7)
    assert_mean_is_enumerated(case, steps, all_time.source(), all_time.diffusion())


@pytest.mark.slow
def test_over_data_is_the_same():
    case = Case(2, 3, 1, "without_replacement", Fraction(2, 7), seed=3)
    forms = (all_time.over_data(p) for p in (all_time.source(), all_time.diffusion()))
    assert_mean_is_enumerated(case, 2, *forms)


@pytest.mark.parametrize("lost", ["trace", "transposed response", "diffusion"])
def test_a_lost_term_is_noticed(lost):
    case = Case(2, 2, 1, "without_replacement", Fraction(2, 7), seed=3)
    source, diffusion = all_time.source(), all_time.diffusion()
    if lost == "diffusion":
        diffusion = diffusion.map(lambda scale: scale * 0)
    else:
        traced = [
            m for m in source.terms if any(t == all_time.RESPONSE and _closed(m) for t, _ in m)
        ]
        dropped = traced[0] if lost == "trace" else next(m for m in source.terms if m not in traced)
        source = type(source)({m: scale for m, scale in source.terms.items() if m != dropped})
    with pytest.raises(AssertionError):
        assert_mean_is_enumerated(case, 2, source, diffusion)


def _closed(monomial):
    """Whether the response is contracted with the covariance alone: its trace."""
    (response,) = (set(ii) for t, ii in monomial if t == all_time.RESPONSE)
    return any(set(ii) == response for t, ii in monomial if t.name == "S")


def test_independent_entries():
    a, b, c = data_indices("abc")
    h, R = all_time.free_response, all_time.DATA_RESPONSE
    X, Y = all_time.MIXED, all_time.DISPLACEMENT
    source = all_time.over_data(all_time.independent(all_time.source(), sigma))
    trace = h * (
        sp.Symbol("P", integer=True, positive=True) - sp.Symbol("D", integer=True, positive=True)
    ) * X(a, b) + X(a, b) * R(c, c).sum(c)
    wanted = trace + (X(a, c) * R(c, b)).sum(c) + (R(a, c) * Y(c, b)).sum(c)
    assert source.equals(wanted * sigma**2)


def test_summed_source_is_the_sum_of_the_source_terms():
    case = Case(2, 3, 1, "bernoulli", Fraction(1, 3), seed=5)
    moments = linear_moments(case.ntk, case.z, case.eta, case.draws, 2)
    values = [case.values(*moments[s], 1 - s) for s in range(2)]
    one_by_one = sum(all_time.source().evaluate(step) for step in values)
    N = values[0]["N"]
    sums = {
        "X_R": sum(k["X"] @ N.T @ k["R"] for k in values),
        "X_tau": sum(np.trace(N @ k["R"]) * k["X"] for k in values),
        "X_h": sum(k["X"] for k in values),
        "Y_R": sum(k["R"] @ N @ k["Y"] for k in values),
    }
    assert (all_time.summed_source().evaluate(values[0] | sums) == one_by_one).all()


def test_repulsion_is_the_mean_square_of_the_fluctuation():
    """In a basis where the NTK is diagonal: over all values of the curvature, for a given theta."""
    from tests.oracles.quadratic import discrete_curvatures

    J = np.array([[Fraction(2), 0], [0, Fraction(3)]])
    case = Case(2, 2, 1, "without_replacement", Fraction(1), seed=11)
    K = J.T @ inverse(J @ J.T)
    moved = rationals(1, 2)  # z - z_0
    theta = K @ moved
    probabilities, values = discrete_curvatures(2, 2)
    shaped = np.einsum("ab,ij,nbjk,lk->nail", case.mix, case.root, values.astype(object), case.root)
    pushed = shaped @ theta  # n, a, i
    between = pushed[:, 1] @ J[0] + pushed[:, 0] @ J[1]
    mean_square = probabilities @ between**2
    found = all_time.repulsion().evaluate(
        {"C": case.C, "S": case.S, "J": J, "J^+": K, "Y": np.outer(moved, moved)}
    )
    assert found[0, 1] == mean_square
