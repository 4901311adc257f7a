"""What Python adds to the front end's closed forms: simulations, exact K, edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quadmodel.explorer._latest import Stale
from quadmodel.explorer._source import Settings
from quadmodel.explorer._subject import Subject
from quadmodel.optimizer import SGD
from quadmodel.simulation.trajectories import simulate
from quadmodel.theory.mean_field_edge import nonlinear_edges
from quadmodel.theory.noise_kernel import (
    critical_learning_rate,
    edge_of_stability,
    noise_kernel_norm,
)
from quadmodel.theory.typical import typical_critical_learning_rate

# Runs, and records of each, without and with a curvature, of which a record takes a whole pass.
_RUNS, _RECORDS, _SHOWN = (32, 4), (100, 20), 6
_SIZES, _RATES = 7, 20


def sgd_of(settings: Settings) -> SGD:
    """Return the settings' SGD."""
    return SGD(
        settings.learning_rate,
        settings.batch_size,
        settings.momentum,
        settings.nesterov,
        settings.weight_decay,
        settings.sampling,
    )


def simulated(subject: Subject, settings: Settings, seed: int) -> dict[str, Any]:
    """Simulate a few runs: steps, losses of some of them, and the mean loss of all."""
    model = subject.model(settings)
    curved = model.curvature is not None
    found = simulate(
        model,
        sgd_of(settings),
        settings.steps,
        replicas=_RUNS[curved],
        seed=seed,
        record_every=max(1, settings.steps // _RECORDS[curved]),
        observables=["loss"],
    )
    loss = found.loss.transpose("replica", "step").values
    return {
        "settings": settings.state(),
        "step": found.step.values.tolist(),
        "runs": [_plain(run) for run in loss[:_SHOWN]],
        "mean": _plain(loss.mean(axis=0)),
        "curved": curved,
    }


def exact_norms(subject: Subject, settings: Settings, stale: Stale) -> dict[str, Any] | None:
    """Return exact K at learning rates up to the deterministic edge; None once it is stale."""
    ntk, sgd = subject.linear(settings).ntk(), sgd_of(settings)
    edge = edge_of_stability(ntk, sgd)
    rates, norms = edge * np.geomspace(3e-3, 0.999, _RATES), []
    for rate in rates:
        if stale():
            return None
        norms.append(noise_kernel_norm(ntk, sgd._at(learning_rate=float(rate))))
    return {
        "settings": settings.state(),
        "learning_rate": rates.tolist(),
        "norm": _plain(norms),
    }


def edges(subject: Subject, settings: Settings, stale: Stale) -> Iterator[dict[str, Any]]:
    """Yield the edges over batch sizes, more of them each time, until that is stale."""
    linear, sgd = subject.linear(settings), sgd_of(settings)
    ntk, n_data = linear.ntk(), linear.n_data
    sizes = sorted({int(size) for size in np.geomspace(1, n_data, _SIZES).round()})
    curved = subject.of_edge(settings)

    def nonlinear(at: SGD) -> float:
        assert curved is not None
        model, law = curved
        found = nonlinear_edges(model, [at.batch_size], at, curvature=law)
        return math.nan if found is None else float(found[0])

    searches: dict[str, Callable[[SGD], float]] = {
        "exact": lambda at: critical_learning_rate(ntk, at, norm="exact"),
        "typical": lambda at: typical_critical_learning_rate(ntk, at),
    }
    if curved is not None:
        searches["nonlinear"] = nonlinear
    found: dict[str, Any] = {"settings": settings.state(), "batch_size": sizes}
    for name, search in searches.items():
        rates = np.full(len(sizes), np.nan)
        for n, size in reversed(list(enumerate(sizes))):  # small batches take longest
            if stale():
                return
            rates[n] = search(sgd._at(batch_size=size))
            if name == "nonlinear":
                yield found | {name: _plain(rates)}
        found = found | {name: _plain(rates)}
        yield found


def _plain(values: ArrayLike) -> list[float | None]:
    """Return numbers as JSON knows them: None for those that are not finite."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, dtype=float)]
