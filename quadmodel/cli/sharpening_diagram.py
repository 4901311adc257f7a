"""quadmodel sharpening-diagram."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from quadmodel._util.checks import as_integer
from quadmodel.cli._options import Diagram, diagram_options

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@click.command("sharpening-diagram")
@diagram_options(
    "sharpening-diagram", n_data=60, n_params=120, spectrum="power-law:0.5", curvature=0.03,
    learning_rates=12, batch_sizes=8, steps=60, replicas=32,
    of_replicas="Antithetic pairs of curvature draws.",
)  # fmt: skip
def sharpening_diagram_command(asked: Diagram) -> None:
    """Draw the growth of the largest NTK eigenvalue over learning rate and batch size.

    Predicts the growth to second order in the curvature and simulates it with random curvature;
    writes a picture and a NetCDF file, and prints both growths per grid point.
    """
    from quadmodel.studies.sharpening import sharpening_diagram

    began = time.perf_counter()
    with asked.how.running() as how:
        found = sharpening_diagram(
            asked.source.build(asked.seed),
            asked.learning_rates,
            asked.batch_sizes,
            sgd=asked.sgd,
            steps=asked.steps,
            replicas=as_integer("--replicas", asked.replicas, low=2, high=2**32 - 1),
            seed=asked.seed,
            **how,
        )
    asked.outputs.write(found, draw)
    for name in ("predicted", "simulated"):
        frame = found[f"{name}_growth"].to_pandas()
        frame.index.name, frame.columns.name = "learning rate", "batch size"
        click.echo(f"{name} growth of the largest NTK eigenvalue in {asked.steps} steps, share")
        click.echo(frame.to_string(float_format=lambda value: f"{value:.2e}", na_rep="-"))
    click.echo(f"{time.perf_counter() - began:.1f} s\n{asked.outputs}")


def draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw what is predicted beside what is simulated."""
    from quadmodel import plot

    figure.set_size_inches(12, 5.5)
    for ax, name in zip(figure.subplots(1, 2), ("predicted", "simulated"), strict=True):
        plot.sharpening_diagram(found, ax, quantity=f"{name}_growth")
