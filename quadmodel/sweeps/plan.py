"""How large a sweep is and about how long it takes, found out before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quadmodel._util.threads import available_cores, workers
from quadmodel.sweeps._parcel import Job, Unit
from quadmodel.sweeps._records import Record, packed
from quadmodel.sweeps.running import How
from quadmodel.sweeps.store import Manifest

# Seconds in which a stage is computed for its plan, and seconds that samples of others take.
_SHORT, _LONG = 3.0, 10.0


class DryRun(Exception):  # noqa: N818  no error
    """Says what a sweep would do: raised in place of it.

    Examples
    --------
    >>> import quadmodel as qm
    >>> try:
    ...     qm.phase_diagram(qm.Ensemble(10, 20), 4, [1, 2], steps=32, replicas=2, dry_run=True)
    ... except qm.sweeps.DryRun as plan:
    ...     print("units" in str(plan))
    True
    """


@dataclass
class Plan:
    """Computes short stages, and some units of the first long one, where the plan is complete."""

    manifest: Manifest
    job: Job
    how: How
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    on_disk: float = 0.0

    def run(
        self,
        stage: str,
        units: Sequence[Unit],
        undecided: Callable[[Record], int] | None = None,
    ) -> list[Record]:
        """Return the records of a short stage; raise DryRun at one that is not."""
        if not units:
            return []
        with workers(self.how.threads) as pool:
            self._measure(units[0], pool)  # compiles
            sample, began = [self._measure(units[0], pool)], time.perf_counter()
            short = sample[0][1] * len(units) < _SHORT
            numbers = range(1, len(units))
            for number in numbers if short else sorted({len(units) // 2, len(units) - 1} - {0}):
                if not short and time.perf_counter() - began > _LONG:
                    break
                sample.append(self._measure(units[number], pool))
        each = sum(seconds for _, seconds in sample) / len(sample)
        self._add(stage, len(units), each, sum(len(packed(r)) for r, _ in sample) / len(sample))
        if short:
            return [record for record, _ in sample]
        raise self.end(each)

    def end(self, each: float = 0.0) -> DryRun:
        """Return the whole plan, when a unit takes so long: stages ahead go by their weights."""
        known = {line.split(":")[0] for line in self.lines}
        last = [stage for stage in self.manifest.expected if stage in known][-1:]
        weights = self.manifest.weights
        for stage, count in self.manifest.expected.items():
            if stage not in known:
                relative = weights.get(stage, 0.0) / weights.get("".join(last), 1.0)
                self._add(stage, count, each * relative, 2000.0, most=True)
        threads = self.how.threads or available_cores()
        who = f"on {threads} threads" if self.how.executor is None else "of one core's time"
        share = self.seconds / (threads if self.how.executor is None and not self.job.alone else 1)
        return DryRun(
            "\n".join(
                [
                    f"plan of a {self.manifest.kind}",
                    *self.lines,
                    f"model: {self.job.nbytes / 1e6:.3g} MB per worker process",
                    f"on disk: about {self.on_disk / 1e6:.3g} MB",
                    f"time: about {_duration(share)} {who}",
                ]
            )
        )

    def _measure(self, unit: Any, pool: Any) -> tuple[Record, float]:
        """Compute a unit, or a short one like it, and say how long the unit would take."""
        short, factor = unit.short() if hasattr(unit, "short") else (unit, 1.0)
        began = time.perf_counter()
        record = short.compute(self.job.kept, pool)
        return record, (time.perf_counter() - began) * factor

    def _add(
        self, stage: str, count: int, seconds: float, size: float, *, most: bool = False
    ) -> None:
        """Put a stage into the plan."""
        known = f"about {_duration(seconds)} each" if seconds else "time not known"
        self.lines.append(f"{stage}: {'up to ' * most}{count} units, {known}")
        self.seconds += seconds * count
        self.on_disk += size * count


def _duration(seconds: float) -> str:
    """Return a time as a person says it."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
