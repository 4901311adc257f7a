"""Tables, on screen and in Markdown, and the numbers behind them as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread, Timing


@dataclass(frozen=True)
class Table:
    """Rows of text under a title, with a note on what was counted."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def text(self) -> str:
        """Return the table in columns of equal width."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.columns))]
        padded = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join(
            [f"\n{self.title}", padded[0], rule, *padded[1:], *filter(None, [self.note])]
        )

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        body = [
            "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
        ]
        return "\n".join([f"### {self.title}", "", *body, *(["", self.note] if self.note else [])])


@dataclass
class Result:
    """What a job found: tables, numbers for the goals, ceilings in words, and all timings."""

    tables: list[Table] = field(default_factory=list)
    measures: dict[str, Spread] = field(default_factory=dict)
    ceilings: dict[str, str] = field(default_factory=dict)
    timings: list[dict[str, Any]] = field(default_factory=list)

    def compare(
        self,
        title: str,
        timings: Sequence[Timing],
        *,
        unit: str = "replica-steps/s",
        note: str = "",
        flops: float | None = None,
        peaks: dict[str, Timing] | None = None,
    ) -> None:
        """Add the table of programs, the first of them ours, and keep the timings.

        `flops` are those of one unit of work; `peaks`, by precision, time matrix products in
        floating-point operations per second.
        """
        ours = [t for t in timings if t.name == timings[0].name]
        columns: dict[str, list[str]] = {
            "program": [t.name for t in timings],
            "precision": [t.precision for t in timings],
            unit: [show(t.rate) for t in timings],
        }
        if flops is not None:
            columns["useful GFLOP/s"] = [f"{t.rate.median * flops / 1e9:.3g}" for t in timings]
        if flops is not None and peaks:
            columns["share of GEMM peak"] = [
                show(share_of(t, flops, peaks[t.precision]), "{:.0%}") for t in timings
            ]
        for our in ours:
            columns[f"{our.name} {our.precision}: times as fast"] = [
                "" if t in ours else show(our.over(t)) for t in timings
            ]
        columns["compiling"] = [f"{t.compile_seconds:.1f} s" for t in timings]
        rows = list(zip(*columns.values(), strict=True))
        self.tables.append(Table(title, tuple(columns), rows, note))
        self.keep(title, timings)

    def keep(self, title: str, timings: Sequence[Timing]) -> None:
        """Keep the rate of every round."""
        for t in timings:
            self.timings.append(
                {
                    "table": title,
                    "program": t.name,
                    "precision": t.precision,
                    "compile_seconds": t.compile_seconds,
                    "rates": t.rates.tolist(),
                }
            )


def share_of(timing: Timing, flops: float, peak: Timing) -> Spread:
    """Return the share of a peak that a program reaches, round by round."""
    return Spread.of(timing.rates * flops / peak.rates)


def number(value: float) -> str:
    """Return a number with three digits, or all of them above a hundred."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(spread: Spread, form: str | None = None) -> str:
    """Return median and quartiles as text."""
    low, median, high = (
        number(v) if form is None else form.format(v)
        for v in (spread.low, spread.median, spread.high)
    )
    return median if low == high else f"{median} [{low}, {high}]"


def as_json(about: dict[str, Any], results: dict[str, Result], goals: list[dict[str, Any]]) -> str:
    """Return everything as JSON; what is not finite becomes null."""
    jobs = {name: asdict(result) for name, result in results.items()}
    return json.dumps(_finite({"about": about, "jobs": jobs, "goals": goals}), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_markdown(path: Path, about: dict[str, Any], tables: Sequence[Table]) -> None:
    """Write the tables under a heading that names machine and versions."""
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lead = [
        "# Benchmarks",
        "",
        f"Written by `{about['command']}` on {about['date']}.",
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads used; {versions}.",
        f"Median [quartiles] of {about['rounds']} rounds in which a table's programs alternate,",
        "without compiling and warming up.",
    ]
    path.write_text("\n".join(lead) + "\n\n" + "\n\n".join(t.markdown() for t in tables) + "\n")
