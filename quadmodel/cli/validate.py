"""quadmodel validate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from quadmodel._util.files import write_atomically
from quadmodel.cli import _pictures as pictures

if TYPE_CHECKING:
    import pandas as pd

_TITLES = {
    "persistent_edge": "runs at the persistent edge, medians over the last third of the steps",
    "large_p_edge": "runs of the large-P limit, medians of those that did not diverge",
}


@click.command("validate")
@click.option("--quick", is_flag=True, help="Under a minute instead of under ten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--picture",
    default="validate.png",
    metavar="FILE",
    help="Picture of runs at the stochastic edge, for the full battery.",
)
@click.option("--seed", type=int, default=0, help="Seed of models, batches and curvatures.")
@click.option("--threads", type=int, default=None, help="Worker threads.  [default: all cores]")
@click.pass_context
def validate_command(
    context: click.Context,
    quick: bool,
    as_json: bool,
    picture: str,
    seed: int,
    threads: int | None,
) -> None:
    """Compare the theory's closed forms with Monte Carlo, one row each.

    Exits with 1 where a row differs by more than chance would give in one of a million batteries.
    The full battery also follows runs with curvature that grows with the NTK, which train at the
    stochastic edge, and runs of the large-P limit that start below and above it: their noise kernel
    norms are printed and drawn, and are no verdict.
    """
    import json

    from quadmodel.studies.validation import validate

    if not quick:
        pictures.check_picture(picture)
    began = time.perf_counter()
    found = validate(quick=quick, seed=seed, threads=threads, progress=True)
    frame = found.to_dataframe()
    edges = {} if quick else _edges(Path(picture), seed, threads)
    if as_json:
        tables = {"rows": frame.reset_index(), **edges}
        rows = {
            name: [{key: _or_null(value) for key, value in row.items()} for row in records]
            for name, records in ((name, t.to_dict("records")) for name, t in tables.items())
        }
        summary = {key: _or_null(value) for key, value in found.attrs.items()}
        click.echo(json.dumps({**summary, **rows}, indent=1, allow_nan=False))
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
        for name, edge in edges.items():
            click.echo(f"\n{_TITLES[name]}")
            click.echo(edge.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
        if edges:
            click.echo(f"wrote {picture}")
    context.exit(0 if found.attrs["verdict"] == "agree" else 1)


def _or_null(value: Any) -> Any:
    """Return a value as JSON knows it: it has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _edges(picture: Path, seed: int, threads: int | None) -> dict[str, pd.DataFrame]:
    """Run the persistent edge and the edge at large P, draw both, and return their tables."""
    from quadmodel.studies.large_p_outcomes import large_p_edge, outcome_table
    from quadmodel.studies.persistence import late_time_quartiles, persistent_edge

    found = persistent_edge(seed=seed, threads=threads, progress=True)
    limit = large_p_edge(seed=seed, threads=threads, progress=True)
    with write_atomically(picture) as partial:
        pictures.draw_edges(found, limit, partial)
    table = late_time_quartiles(found)
    frame = table.sel(quantile=0.5).drop_vars("quantile").to_dataframe().reset_index()
    exact = table.noise_kernel_norm_exact.stack(row=("curvature_strength", "replica"))
    frame["exact_low"], frame["exact_high"] = exact.sel(quantile=0.25), exact.sel(quantile=0.75)
    return {
        "persistent_edge": frame,
        "large_p_edge": outcome_table(limit).to_dataframe().reset_index(),
    }
