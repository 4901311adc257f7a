"""The second pass behind relative_error, against all sequences of batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import _feedback
from quadmodel.theory._curvature import curvature_statistics
from quadmodel.theory._ntk_change import diffusion, fluctuations, source
from tests.oracles import enumeration

N_DATA, N_PARAMS, STEPS = 5, 9, 5
SIGNS = (0, 1, -1)
# Modes whose traces share a response.
GROUPS = ([0, 1], [2], [3], [4])


def law_of(kind):
    if kind == "independent":
        return qm.curvature.IndependentCurvature(0.05)
    rng = np.random.default_rng(5)
    data, params = (rng.standard_normal((n, n)) for n in (N_DATA, N_PARAMS))
    return qm.curvature.KroneckerCurvature(
        data_covariance=data @ data.T / N_DATA + np.eye(N_DATA),
        parameter_covariance=params @ params.T / N_PARAMS + np.eye(N_PARAMS),
        scale=0.05,
    )


class Paths:
    """A vector that follows z_(t+1) = a z_t - b z_(t-1) - kick, for every sequence of batches."""

    def __init__(self, shape, sgd):
        mu, shrunk = sgd.momentum, 1 - sgd.learning_rate * sgd.weight_decay
        if sgd.nesterov:
            self.a, self.b, self.p, self.q = (1 + mu) * shrunk, mu * shrunk, 1 + mu, mu
        else:
            self.a, self.b, self.p, self.q = mu + shrunk, mu, 1.0, 0.0
        self.now, self.before = np.zeros(shape), np.zeros(shape)

    @property
    def seen(self):
        return self.p * self.now - self.q * self.before

    def step(self, kick):
        self.now, self.before = self.a * self.now - self.b * self.before - kick, self.now


def doubt_of_all_batches(known, sgd, n_steps):
    """Return the estimated errors after `n_steps`: of the trace, and of every mode."""
    unit, sgd = known.unit_of_ntk, known.in_units(sgd)
    eta, n, start = sgd.learning_rate, N_DATA, known.residual
    drawn = enumeration.batches(n, sgd.batch_size, sgd.sampling)
    turned = [known.vectors.T @ (w[:, None] * known.vectors) for _, w in drawn]
    every = list(itertools.product(range(len(drawn)), repeat=n_steps))
    chance = np.array([np.prod([drawn[k][0] for k in path]) for path in every])

    def mean(x, y):
        return np.einsum("s,si,sj->ij", chance, x, y)

    paths = len(every)
    v, y = ([Paths((paths, n), sgd) for _ in SIGNS] for _ in range(2))
    plain, data, displacement = ([Paths((n, n), sgd) for _ in SIGNS] for _ in range(3))
    by_group = [[Paths((n, n), sgd) for _ in GROUPS] for _ in SIGNS]
    white = 0.0

    def sources(r):
        trace = sum(group.now for group in by_group[r])
        return source(known, plain[r].now, data[r].now, trace, displacement[r].now)

    for t in range(n_steps):
        weights = np.stack([turned[path[t]] for path in every])
        displaced = [mean(y[r].seen, y[r].seen) for r in range(3)]
        predicted = -eta / n * (sources(0) + sources(0).T) + diffusion(known, displaced[0])
        spread = np.diag(np.sqrt(fluctuations(known, displaced[0]).sum(axis=1)))
        for r, sign in enumerate(SIGNS):
            ntk = np.diag(known.lam) + sign**2 * predicted / n + sign * spread
            u = start + v[r].seen
            mixed = mean(u, y[r].seen)
            kick = np.einsum("sij,sj->si", weights, u)
            if r == 0:
                white *= (1 - eta * sgd.weight_decay / (1 - sgd.momentum)) ** 2
                noise = mean(kick - u, kick - u)  # batches of one step know nothing of u
                white += np.sum(known.over_data * noise) * np.sum(known.inner * displaced[0])
            plain[r].step(-mixed)
            data[r].step(-mixed @ known.skew.T + data[r].seen @ ntk * eta)
            displacement[r].step(-known.skew @ displaced[r] + eta * ntk @ displacement[r].seen)
            for group, sums in zip(GROUPS, by_group[r], strict=True):
                own = eta * np.diagonal(ntk)[group].mean()
                sums.step(-np.trace(known.skew[np.ix_(group, group)]) * mixed + own * sums.seen)
            v[r].step(eta * kick @ ntk)
            y[r].step(eta * kick * known.lam)

    squared = np.sum(known.over_data * (plain[0].now @ known.inner @ plain[0].now.T))
    squared += white / (1 - sgd.momentum) ** 2
    distance = (eta / n) ** 2 * known.trace_twice * (1 - n / N_PARAMS) * squared
    per_mode = known.trace * distance * np.abs(np.diagonal(known.over_data))
    trace = per_mode.sum()
    driven = [-eta / n * (sources(r) + sources(r).T) for r in range(3)]
    spread = [diffusion(known, mean(y[r].now, y[r].now)) for r in range(3)]
    for part in (driven, spread):
        moved = np.diagonal((part[1] + part[2]) / 2 - part[0])
        per_mode, trace = per_mode + np.abs(moved), trace + abs(moved.sum())
    return trace * unit / n, per_mode * unit / n


@pytest.mark.parametrize("kind", ["independent", "kronecker"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.4, "weight_decay": 0.3},
        {"momentum": 0.4, "nesterov": True},
        {"batch_size": 4, "momentum": -0.2},
        {"sampling": "with_replacement"},
        {"batch_size": 5},
    ],
    ids=str,
)
def test_estimated_errors_against_all_batches(options, kind):
    model = qm.Ensemble(N_DATA, N_PARAMS).sample(3)
    known = curvature_statistics(model, law_of(kind))
    sgd = qm.SGD(**({"learning_rate": 0.15, "batch_size": 1} | options))
    recorded = np.arange(STEPS + 1)
    found = list(_feedback.doubts(known, sgd, recorded))
    assert found[0].trace == 0
    for step in recorded[1:]:
        trace, per_mode = doubt_of_all_batches(known, sgd, int(step))
        assert found[step].trace == pytest.approx(trace, rel=1e-9)
        np.testing.assert_allclose(found[step].per_mode, per_mode, rtol=1e-9)
    # Negative control: the sampling scheme and the batch size show.
    other = qm.SGD(0.15, 2, sampling="bernoulli")
    assert doubt_of_all_batches(known, other, 2)[0] != pytest.approx(found[2].trace, rel=1e-3)
