"""Brackets by verdicts: doubling, bisection, full batches, and the sequential test."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom

from quadmodel.studies._bracket import (
    NO_BRACKET,
    Bracket,
    SequentialTest,
    doubled,
    full_batch_bracket,
    log_evidence,
    narrowed,
)


def step_at(x0, unclear=0.0):
    return lambda x: 0 if abs(x - x0) < unclear else (1 if x > x0 else -1)


@pytest.mark.parametrize("start", [-20.0, -0.1, 0.3, 0.31, 7.0])
@pytest.mark.parametrize("unclear", [0.0, 1.5])
def test_doubling_brackets(start, unclear):
    found = doubled(step_at(0.3, unclear), start)
    assert found.low <= 0.3 - unclear
    assert found.high >= 0.3 + unclear - 1e-12
    assert found.high - found.low <= 2 * unclear + 2 * math.log(2)


@pytest.mark.parametrize("verdict", [-1, 0, 1])
def test_doubling_gives_up(verdict):
    calls = []

    def decide(x):
        calls.append(x)
        return verdict

    assert doubled(decide, 0.0) is NO_BRACKET
    assert len(calls) < 200


def test_bisection_narrows():
    found = narrowed(step_at(0.3), Bracket(-2.0, 3.0), 0.01)
    assert found.low < 0.3 <= found.high
    assert found.half <= 0.01


@pytest.mark.parametrize("centre", [0.3, -1.7, 2.9])
def test_bisection_stops_where_nothing_is_decided(centre):
    calls = []

    def decide(x):
        calls.append(x)
        return step_at(centre, 0.1)(x)

    found = narrowed(decide, Bracket(-2.0, 3.0), 0.01)
    assert found.low <= centre - 0.1
    assert found.high >= centre + 0.1
    assert found.half < 0.1 + 0.01  # as close as could be
    assert len(calls) < 40


def of_modes(slope, overlap, edge=0.0, slow=-1e-3):
    """Growth over the second half of the steps of a mode that may grow, and one that decays."""

    def grow(x, steps):
        rate = slope * (np.asarray(x) - edge)
        at = [np.logaddexp(math.log(overlap) + rate * t, slow * t) for t in (steps / 2, steps)]
        return (at[1] - at[0]) / (steps / 2)

    return grow


@pytest.mark.parametrize("slope", [0.05, 4.0, 80.0])
@pytest.mark.parametrize("overlap", [1.0, 1e-9])
@pytest.mark.parametrize("half", [0.1, 1e-2, 1e-4])
def test_full_batches(slope, overlap, half):
    found, steps = full_batch_bracket(of_modes(slope, overlap, 0.37), -3.0, half, 10**9)
    assert found.low < 0.37 < found.high
    assert found.half <= half
    assert found.needed_steps == 0
    assert steps >= 30 / (2 * half * slope)


def test_full_batches_that_want_more_steps():
    found, steps = full_batch_bracket(of_modes(0.05, 1e-3, 0.37), 0.0, 1e-3, 5000)
    assert found.low < 0.37 < found.high
    assert found.half > 1e-3
    assert found.needed_steps > 5000 >= steps


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 7), (60, 100)])
def test_evidence_is_the_mixed_likelihood_ratio(k, n):
    def ratio(p):
        return 2 * p**k * (1 - p) ** (n - k) / 0.5**n

    assert log_evidence(k, n) == pytest.approx(math.log(quad(ratio, 0.5, 1)[0]), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_evidence_for_one_half_has_mean_one(n):
    evidence = [math.exp(log_evidence(k, n)) for k in range(n + 1)]
    assert binom.pmf(range(n + 1), n, 0.5) @ evidence == pytest.approx(1)
    # Below one half it is smaller, above it is larger: the negative control.
    assert binom.pmf(range(n + 1), n, 0.4) @ evidence < 1
    assert binom.pmf(range(n + 1), n, 0.6) @ evidence > 1


def test_evidence_of_many_runs_is_finite():
    assert log_evidence(10**6, 10**6) == pytest.approx(10**6 * math.log(2), rel=1e-3)
    assert log_evidence(0, 10**6) == -math.inf


def decided(share, alpha, tests, seed, most=1024):
    """Return the verdicts of so many first tests of runs that diverge with a probability."""
    rng = np.random.default_rng(seed)

    def diverged(_, runs):
        return int(rng.binomial(runs, share))

    return np.array([SequentialTest(diverged, 16, most, alpha)(0.0) for _ in range(tests)])


@pytest.mark.statistical
def test_errors_of_the_sequential_test():
    """Bounds that hold but for a probability of 1e-7 each."""
    alpha, tests = 0.2, 2000
    wrong = decided(0.5, alpha, tests, seed=0) != 0
    # The first test has half of alpha, and errs to either side.
    assert wrong.sum() < binom.ppf(1 - 1e-7, tests, alpha)
    assert wrong.any()
    assert (decided(0.75, alpha, tests, seed=1) == 1).mean() > 0.99
    assert (decided(0.25, alpha, tests, seed=2) == -1).mean() > 0.99


def test_later_tests_are_stricter():
    """All runs diverge; the k-th test wants evidence of k (k + 1) / alpha."""
    needed = []
    for before in (0, 1, 2, 10**6):
        taken = []
        test = SequentialTest(lambda _, runs, to=taken: to.append(runs) or runs, 1, 10**6, 0.05)
        test.tests = before
        assert test(0.0) == 1
        needed.append(sum(taken))
        wanted = math.log((before + 1) * (before + 2) / 0.05)
        assert log_evidence(needed[-1], needed[-1]) > wanted
        assert log_evidence(needed[-1] // 2, needed[-1] // 2) <= wanted
    assert needed[0] < needed[-1]
