"""quadmodel trace-boundary."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import numpy as np

from quadmodel._util.checks import InputError
from quadmodel.cli._click import option
from quadmodel.cli._options import Diagram, diagram_options

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def _momenta(_: click.Context, __: click.Parameter, value: str | None) -> list[float] | None:
    """Return a list of momenta; None if there is none."""
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"--momenta must be a list like 0,0.5,0.9, got {value!r}") from None


@click.command("trace-boundary")
@diagram_options(
    "trace-boundary", n_data=200, n_params=400, spectrum="gaussian", curvature=0.0,
    learning_rates=None, batch_sizes=12, steps=1000, replicas=16,
    of_replicas="Replicas per learning rate to begin with.",
)  # fmt: skip
@option(
    "--kind NAME",
    "mean_square",
    "What turns unstable: mean_square, typical, or deterministic (full batches).",
)
@option("--rtol", 0.01, "Half the width of the 95 % intervals, relative to the learning rate.")
@option(
    "--momenta VALUES",
    None,
    "Several momenta in place of --momentum, as a list like 0,0.5,0.9.",
    callback=_momenta,
)
@option(
    "--precision NAME",
    "float64",
    "float64, or mixed: NTK and curvature in single precision, replicas in double.",
)
def trace_boundary_command(
    asked: Diagram, kind: str, rtol: float, momenta: list[float] | None, precision: str
) -> None:
    """Find where SGD turns unstable, per batch size, to a relative precision.

    Simulates SGD at learning rates around the boundary, with more runs until its interval is narrow
    enough, writes a picture and a NetCDF file, and prints, per batch size, the critical learning
    rate and, for linear models, the noise kernel norm K there.
    """
    from quadmodel.studies.boundaries import trace_boundary

    began = time.perf_counter()
    with asked.how.running() as how:
        found = trace_boundary(
            asked.source.build(asked.seed),
            asked.batch_sizes,
            kind=kind,
            rtol=rtol,
            momenta=momenta,
            sgd=asked.sgd,
            steps=asked.steps,
            replicas=asked.replicas,
            seed=asked.seed,
            precision=precision,
            **how,
        )
    elapsed = time.perf_counter() - began
    asked.outputs.write(found, draw)
    click.echo(_table(found))
    click.echo(f"{elapsed:.1f} s, {found.attrs['replica_steps']:,} replica-steps")
    click.echo(asked.outputs)


def draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw the result."""
    from quadmodel import plot

    figure.set_size_inches(7, 5.5)
    plot.boundary(found, figure.subplots())


def _table(found: xr.Dataset) -> str:
    """Return critical learning rates and K there, per batch size and momentum, as text."""
    import pandas as pd

    if "momentum" not in found.dims:
        found = found.expand_dims("momentum", -1)
    norms = found.sel(norm="exact") if "norm" in found.dims else None
    rows = []
    for size in range(found.sizes["batch_size"]):
        for momentum in range(found.sizes["momentum"]):
            at = {"batch_size": size, "momentum": momentum}
            one = found.isel(at)
            row = {"batch size": str(int(one.batch_size))}
            if "momentum" in one.coords:
                row["momentum"] = f"{float(one.momentum):g}"
            row["critical learning rate"] = _interval(one, "critical_learning_rate")
            if norms is not None:
                row["critical K (exact)"] = _interval(norms.isel(at), "noise_kernel_norm")
            row["note"] = _note(one, found.attrs["steps"])
            rows.append(row)
    table = pd.DataFrame(rows)
    if not table["note"].any():
        table = table.drop(columns="note")
    title = f"boundary ({found.attrs['boundary']}), in 1 / NTK eigenvalue, 95% intervals"
    return f"{title}\n{table.to_string(index=False)}"


def _interval(one: xr.Dataset, name: str) -> str:
    """Return a value with the ends of its interval."""
    value, low, high = (float(one[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return "-" if np.isnan(value) else f"{value:.5g} [{low:.5g}, {high:.5g}]"


def _note(one: xr.Dataset, steps: int) -> str:
    """Say what is missing where a value can't be relied on."""
    if np.isnan(float(one.critical_learning_rate)):
        return "nothing turns unstable"
    needed = int(one.needed_steps)
    more = f"--steps {needed}" if needed > steps else "more --replicas"
    if not bool(one.resolved):
        return f"unresolved: {more}"
    return "" if bool(one.precise) else f"wider than --rtol: {more}"
