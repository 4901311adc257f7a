"""quadmodel sharpening-diagram."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from quadmodel._util.checks import as_integer
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


@click.command("sharpening-diagram")
@model_options(n_data=60, n_params=240, spectrum="power-law", curvature=0.003)
@grid_options(learning_rates=12, batch_sizes=8)
@sgd_options
@click.option("--steps", default=60, help="SGD steps over which the eigenvalue grows.")
@click.option("--replicas", default=12, help="Antithetic pairs of curvature draws.")
@run_options
@output_options("sharpening-diagram")
def sharpening_diagram_command(
    source: Source,
    grid: Grid,
    sgd: SGD,
    steps: int,
    replicas: int,
    seed: int,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Draw the growth of the largest NTK eigenvalue over learning rate and batch size.

    Predicts the growth to second order in the curvature and simulates it with random curvature;
    writes a picture and a NetCDF file, and prints both growths per grid point.
    """
    outputs.check(source)
    began = time.perf_counter()
    from quadmodel.studies.sharpening import sharpening_diagram

    found = sharpening_diagram(
        source.build(seed),
        grid.learning_rates,
        grid.batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=as_integer("--replicas", replicas, low=2, high=2**32 - 1),
        seed=seed,
        threads=threads,
        progress=True,
    )
    outputs.write(found, _draw)
    for name in ("predicted", "simulated"):
        frame = found[f"{name}_growth"].to_pandas()
        frame.index.name, frame.columns.name = "learning rate", "batch size"
        click.echo(f"{name} growth of the largest NTK eigenvalue in {steps} steps, share")
        click.echo(frame.to_string(float_format=lambda value: f"{value:.2e}", na_rep="-"))
    click.echo(f"{time.perf_counter() - began:.1f} s\n{outputs}")


def _draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw what is predicted beside what is simulated."""
    from quadmodel import plot

    figure.set_size_inches(13, 5)
    for ax, name in zip(figure.subplots(1, 2), ("predicted", "simulated"), strict=True):
        plot.sharpening_diagram(found, ax, quantity=f"{name}_growth")
