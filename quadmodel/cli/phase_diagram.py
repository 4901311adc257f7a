"""quadmodel phase-diagram; picture and table are those of large-p-diagram too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import numpy as np

from quadmodel.cli._options import (
    Grid,
    Outputs,
    Source,
    grid_options,
    model_options,
    output_options,
    run_options,
    sgd_options,
)
from quadmodel.optimizer import SGD

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@click.command("phase-diagram")
@model_options(n_data=200, n_params=400, spectrum="gaussian", curvature=0.0)
@grid_options(learning_rates=24, batch_sizes=12)
@sgd_options
@click.option("--steps", default=1000, help="SGD steps per replica.")
@click.option("--replicas", default=16, help="Replicas per grid point.")
@click.option("--refine", default=12, help="Learning rates of the finer scan around the boundary.")
@click.option(
    "--precision",
    default="float64",
    metavar="NAME",
    help="float64, or mixed: NTK and curvature in single precision, replicas in double.",
)
@run_options
@output_options("phase-diagram")
def phase_diagram_command(
    source: Source,
    grid: Grid,
    sgd: SGD,
    steps: int,
    replicas: int,
    refine: int,
    precision: str,
    seed: int,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Draw the phase diagram of learning rate against batch size.

    Simulates SGD on a grid, predicts the edges of stability, writes a picture and a NetCDF file,
    and prints, per batch size, the predicted and the simulated critical learning rate and the
    simulated critical noise kernel norm K, to be set beside 1.
    """
    outputs.check(source)
    began = time.perf_counter()
    from quadmodel.studies.phases import phase_diagram

    found = phase_diagram(
        source.build(seed),
        grid.learning_rates,
        grid.batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=replicas,
        seed=seed,
        refine=refine,
        precision=precision,
        threads=threads,
        progress=True,
    )
    report(found, time.perf_counter() - began, outputs)


def report(found: xr.Dataset, elapsed: float, outputs: Outputs) -> None:
    """Write a phase diagram, print its table and how long it took."""
    outputs.write(found, _draw)
    click.echo(_table(found))
    done = found.attrs["replica_steps"]
    click.echo(
        f"{elapsed:.1f} s, {done:,} replica-steps, {done / elapsed:,.0f} replica-steps per second"
    )
    click.echo(outputs)


def _draw(found: xr.Dataset, figure: Figure) -> None:
    from quadmodel import plot

    figure.set_size_inches(8, 6)
    plot.phase_diagram(found, figure.subplots())


def _table(grid: xr.Dataset) -> str:
    """Return critical learning rates and critical K per batch size, as text."""
    import pandas as pd

    from quadmodel.comparison import critical_noise_kernel_norm

    mean = critical_noise_kernel_norm(grid)
    typical = critical_noise_kernel_norm(grid, growth="typical")

    def number(value: float) -> str:
        return "-" if np.isnan(value) else f"{value:.4g}"

    def interval(table: xr.Dataset, name: str) -> list[str]:
        columns = (table[f"{name}{end}"].values for end in ("", "_low", "_high"))
        return [
            "-" if np.isnan(v) else f"{number(v)} [{number(low)}, {number(high)}]"
            for v, low, high in zip(*columns, strict=True)
        ]

    rows = pd.DataFrame(
        {
            "batch size": grid.batch_size.values,
            "predicted (K = 1, exact)": [
                number(v) for v in grid.critical_learning_rate.sel(norm="exact").values
            ],
            "edge": [number(v) for v in grid.edge_of_stability.values],
            "simulated, mean square": interval(mean, "learning_rate"),
            "simulated, typical": interval(typical, "learning_rate"),
            "critical K": interval(mean, "noise_kernel_norm"),
        }
    )
    pooled = [float(mean[f"pooled_noise_kernel_norm{end}"]) for end in ("", "_low", "_high")]
    verdict = (
        "simulated critical K, all batch sizes: not found inside the grid"
        if np.isnan(pooled[0])
        else "simulated critical K, all batch sizes: "
        f"{pooled[0]:.4f} [{pooled[1]:.4f}, {pooled[2]:.4f}] (95%), predicted: 1"
    )
    title = "critical learning rate (1 / NTK eigenvalue)"
    if "limit" in grid.attrs:
        order, q = grid.attrs["truncation_order"], grid.attrs["curvature_strength"]
        title += f", large-P limit, truncation order {order}, q = {q:.4g}"
    return f"{title}\n{rows.to_string(index=False)}\n{verdict}"
