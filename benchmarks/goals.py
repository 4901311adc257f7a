"""What is required, what was measured, and what bounds a goal that was missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report import Result, Table, number


@dataclass(frozen=True)
class Goal:
    """A number to reach: at least (`more`) or at most `required`.

    Another one, where that is given, with vectors of less than AVX-512's 64 bytes.
    """

    key: str
    what: str
    required: float
    more: bool = True
    unit: str = "x"
    narrow: float | None = None

    def with_vectors_of(self, vector_bytes: int) -> Goal:
        """Return the goal for a processor."""
        if self.narrow is None or vector_bytes >= 64:
            return self
        return replace(self, required=self.narrow)

    def reached(self, value: float) -> bool:
        """Return whether a measured number is good enough."""
        return value >= self.required if self.more else value <= self.required


def _seconds(key: str, what: str, required: float) -> Goal:
    return Goal(key, what, required, more=False, unit="s")


GOALS = (
    Goal("dense.float64.idiomatic", "dense, float64, over idiomatic JAX float64", 7.0),
    Goal("dense.float64.by_hand", "dense, float64, over JAX by hand (lockstep) float64", 5.0),
    Goal("dense.mixed.float32", "dense, mixed, over the best JAX float32", 1.5, narrow=1.3),
    Goal("dense.mixed.idiomatic", "dense, mixed, over idiomatic JAX float64", 12.0),
    Goal("dense.float64.share_of_peak", "dense, float64, share of GEMM peak", 85.0, unit="%"),
    Goal("dense-skip.idiomatic", "phase diagram, over idiomatic JAX float64", 20.0),
    Goal("linear.idiomatic", "linear, float64, over idiomatic JAX float64", 20.0),
    Goal(
        "linear.beforehand",
        "linear, float64, over JAX float64 with batches drawn beforehand",
        3.3,
        narrow=2.2,
    ),
    Goal(
        "linear.float32",
        "linear, float32, over JAX float32 with batches drawn beforehand",
        3.0,
        narrow=2.0,
    ),
    Goal("linear.beforehand.once", "linear, float64, full batches once, over the same JAX", 3.0),
    Goal("linear.beforehand.mixed", "linear, mixed, over the same JAX float64", 3.0),
    Goal("low-rank.64", "low rank, 64 replicas, float64, over the best JAX", 3.2, narrow=3.5),
    Goal("low-rank.64.mixed", "low rank, 64 replicas, mixed, over the best JAX float64", 4.0),
    Goal("low-rank.1", "low rank, 1 replica, float64, over the best JAX", 1.3, narrow=1.2),
    Goal("low-rank.1.float32", "low rank, 1 replica, float32, over JAX float32", 1.3, narrow=1.2),
    Goal("single.best", "one replica, float64, over the best of JAX and NumPy", 1.3, narrow=1.2),
    Goal("single.float32", "one replica, float32, over the best JAX float32", 1.3, narrow=1.2),
    Goal("large-p.1.1000", "large-P order 1, D = 1000", 300.0, unit="steps/s"),
    Goal("large-p.2.100", "large-P order 2, D = 100", 300.0, unit="steps/s"),
    Goal("large-p.3.30", "large-P order 3, D = 30", 300.0, unit="steps/s"),
    Goal("large-p.1.200", "large-P order 1, D = 200, over direct at the GEMM peak", 50.0),
    Goal("large-p.2.200", "large-P order 2, D = 200, over direct at the GEMM peak", 1.0),
    _seconds("exact.2000", "exact K, D = 2000", 3.0),
    _seconds("exact.4000", "exact K, D = 4000", 20.0),
    Goal("exact.growth", "exact K, D = 10,000, over D = 4000", 12.0, more=False),
    _seconds("exact.critical", "exact critical learning rate, D = 2000", 15.0),
    _seconds("mean-field.200", "mean-field theory, 200 steps of 40 modes", 1.0),
    _seconds("mean-field.1000", "mean-field theory, 1000 steps of 40 modes", 30.0),
    Goal("mean-field.1000.memory", "its memory", 2.0, more=False, unit="GB"),
    _seconds("mean-field.edge", "nonlinear edge of 12 batch sizes", 60.0),
    _seconds("cold.import", "import quadmodel", 0.25),
    _seconds("cold.compile", "compiling of the first phase diagram", 8.0),
    _seconds("cold.compile.low-rank", "the same, curvature of low rank", 8.0),
    _seconds("cold.compile.large-p", "the same, large P", 8.0),
    _seconds("cold.cached", "the same from the cache", 1.0),
)


def verdicts(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return one record per goal; `measured` is None where its job did not run."""
    from quadmodel.simulation._kernels.shapes import vector_bytes

    measures, ceilings = {}, {}
    for result in results:
        measures |= result.measures
        ceilings |= result.ceilings
    records = []
    for goal in (given.with_vectors_of(vector_bytes()) for given in GOALS):
        found = measures.get(goal.key)
        factor = 100.0 if goal.unit == "%" else 1.0
        value = None if found is None else factor * found.median
        records.append(
            {
                "key": goal.key,
                "goal": goal.what,
                "required": goal.required,
                "sense": "at least" if goal.more else "at most",
                "unit": goal.unit,
                "measured": value,
                "quartiles": None if found is None else [factor * found.low, factor * found.high],
                "reached": None if value is None else goal.reached(value),
                "bound": ceilings.get(goal.key, ""),
            }
        )
    return records


def table(records: list[dict[str, Any]]) -> Table:
    """Return the goals as a table; bounds are given for those that were missed."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [
        (
            r["goal"],
            f"{r['sense']} {number(r['required'])} {r['unit']}",
            "-" if r["measured"] is None else f"{number(r['measured'])} {r['unit']}",
            words[r["reached"]],
            r["bound"] if r["reached"] is False else "",
        )
        for r in records
    ]
    return Table("Goals", ("goal", "required", "measured", "reached", "bound by"), rows)
