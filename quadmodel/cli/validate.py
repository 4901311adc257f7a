"""quadmodel validate."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import numpy as np

from quadmodel.cli._options import run_options
from quadmodel.cli._sweeps import Sweeping


@click.command("validate")
@click.option("--quick", is_flag=True, help="Under a minute instead of under ten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@run_options
@click.pass_context
def validate_command(
    context: click.Context, quick: bool, as_json: bool, seed: int, how: Sweeping
) -> None:
    """Compare the theory's closed forms with Monte Carlo, one row each.

    Exits with 1 where a row differs by more than chance would give in one of a million validations.
    """
    from quadmodel.studies.validation import validate

    began = time.perf_counter()
    with how.running() as running:
        found = validate(quick=quick, seed=seed, **running)
    frame = found.to_dataframe()
    if as_json:
        rows = frame.reset_index().to_dict("records")
        summary = {**found.attrs, "rows": [_without_nan(row) for row in rows]}
        click.echo(json.dumps(_without_nan(summary), indent=1, allow_nan=False))
    else:
        frame = frame.assign(verdict=np.where(frame.agrees, "agrees", "DIFFERS"))
        columns = ["predicted", "measured", "standard_error", "z", "verdict"]
        shown = frame[columns].reset_index()
        click.echo(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        worst, bound, verdict = (found.attrs[name] for name in ("worst", "bound", "verdict"))
        elapsed = time.perf_counter() - began
        click.echo(
            f"{len(frame)} rows, {elapsed:.0f} s, |z| <= {worst:.2f} ({bound:.2f}): {verdict}"
        )
    context.exit(0 if found.attrs["verdict"] == "agree" else 1)


def _without_nan(values: dict[Any, Any]) -> dict[Any, Any]:
    """Return values as JSON knows them: null for numbers that are not finite."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in values.items()
    }
