"""How the cost of ours grows with data, parameters, batch size, replicas and threads."""

from __future__ import annotations

from typing import Any

import numpy as np

import quadmodel as qm
from benchmarks import ours
from benchmarks.report import Result, Table, number, show
from benchmarks.timing import Settings, alternate

_DENSE: dict[str, int] = {"D": 100, "P": 200, "B": 20, "replicas": 256, "threads": 0}
# How the time of a replica-step should grow with each.
_EXPECTED = {
    "dense": {"D": 0.0, "P": 2.0, "B": 1.0, "replicas": 0.0, "threads": -1.0},
    "linear": {"D": 1.0, "B": 1.0, "replicas": 0.0, "threads": -1.0},
}
_LINEAR: dict[str, int] = {"D": 500, "B": 20, "replicas": 256, "threads": 0}


def scaling(settings: Settings) -> Result:
    """Vary one size at a time around a middle."""
    result = Result()
    for title, middle, varied in (
        (
            "Scaling, dense curvature",
            _DENSE,
            {"D": (50, 200), "P": (100, 400), "B": (5, 50, 100), "replicas": (1, 16, 1024)},
        ),
        (
            "Scaling, linear model",
            _LINEAR,
            {"D": (250, 1000, 2000), "B": (5, 100, 500), "replicas": (1, 16, 1024)},
        ),
    ):
        middle = middle | {"threads": settings.threads}
        if settings.quick:
            varied = {name: values[-1:] for name, values in varied.items()}
        points = [middle] + [middle | {k: v} for k, values in varied.items() for v in values]
        points += [middle | {"threads": n} for n in (1, 2, 4, 8) if n < settings.threads]
        programs = [_program(point) for point in points]
        timings = alternate(programs, settings)
        result.keep(title, timings)
        rows = [
            (
                *(str(v) for v in point.values()),
                show(t.rate),
                number(1e9 / t.rate.median / (point["B"] * point.get("P", 1) * _last(point))),
            )
            for point, t in zip(points, timings, strict=True)
        ]
        each = "B P^2" if "P" in middle else "B D"
        columns = (*middle, "replica-steps/s", f"ns per replica-step and {each}")
        result.tables.append(Table(title, columns, rows))
        expected = _EXPECTED["dense" if "P" in middle else "linear"]
        rates = np.array([t.rate.median for t in timings])
        fits = [
            (name, *fitted, number(expected[name]))
            for name in middle
            if (fitted := _exponent(name, points, rates))
        ]
        columns = ("what grows", "values", "fitted exponent", "expected")
        note = "Of the time of a replica-step, by least squares in logarithms."
        result.tables.append(Table(f"{title}: exponents", columns, fits, note))
    return result


def _exponent(name: str, points: list[dict[str, int]], rates: Any) -> tuple[str, str] | None:
    """Return the values of one size and the power of it that time grows with, if it was varied."""
    others = [{k: v for k, v in point.items() if k != name} for point in points]
    some = [k for k, rest in enumerate(others) if rest == others[0]]
    values = [points[k][name] for k in some]
    if len(set(values)) < 2:
        return None
    slope = float(np.polyfit(np.log(values), -np.log(rates[some]), 1)[0])
    return ", ".join(map(str, sorted(values))), f"{slope:.2f}"


def _last(point: dict[str, int]) -> int:
    return point.get("P", point["D"])


def _program(point: dict[str, int]) -> Any:
    n_params = point.get("P", point["D"])
    curvature = 0.05 if "P" in point else None
    model = qm.Ensemble(point["D"], n_params, curvature=curvature).sample(seed=0)
    rate = ours.stable_grid(model, 1, 1, 1).learning_rates[0]
    replicas = point["replicas"]
    # Calls of a few hundredths of a second, so that a pool of threads is no part of it.
    work = point["B"] * n_params**2 if "P" in point else point["B"] * point["D"]
    steps = int(np.clip(1e9 / work / replicas, 1, 5000))
    sizes = np.full(replicas, point["B"])
    return ours.program(model, np.full(replicas, rate), sizes, steps, point["threads"])
