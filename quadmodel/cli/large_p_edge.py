"""quadmodel large-p-edge."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from quadmodel.cli._click import option
from quadmodel.cli._options import Outputs, output_options, run_options, values_option
from quadmodel.cli._sweeps import Sweeping

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@click.command("large-p-edge")
@values_option(
    "--initial-norms", "0.3,0.45,0.6,0.75,0.9,1.5", float, "Noise kernel norms K at the start."
)
@values_option("--batch-sizes", "2,6,20", int, "Data points per batch, below D.")
@values_option("--curvature-strengths", "0.3,1.0", float, "Curvature strengths q.")
@option("--truncation-order L", 2, "Where the hierarchy of basis states is cut.")
@option("--n-data D", 40, "Data points.")
@option("--steps", 1000, "SGD steps.")
@option("--replicas", 4, "Sequences of batches per start.")
@run_options
@output_options("large-p-edge")
def large_p_edge_command(
    initial_norms: list[float],
    batch_sizes: list[int],
    curvature_strengths: list[float],
    truncation_order: int,
    n_data: int,
    steps: int,
    replicas: int,
    seed: int,
    how: Sweeping,
    outputs: Outputs,
) -> None:
    """Follow training from below and above the stochastic edge, in the limit of many parameters.

    Writes a picture of noise kernel norms at the end against those at the start and a NetCDF file,
    and prints medians over the replicas that did not diverge, with the numbers of outcomes.
    """
    from quadmodel.studies.large_p_outcomes import large_p_edge, outcome_table

    began = time.perf_counter()
    with how.running() as running:
        found = large_p_edge(
            initial_norms,
            batch_sizes,
            curvature_strengths,
            truncation_order=truncation_order,
            n_data=n_data,
            steps=steps,
            replicas=replicas,
            seed=seed,
            **running,
        )
    outputs.write(found, draw)
    frame = outcome_table(found).to_dataframe().reset_index()
    click.echo("medians over replicas that did not diverge")
    click.echo(frame.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    click.echo(f"{time.perf_counter() - began:.1f} s\n{outputs}")


def draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw one panel per curvature strength."""
    from quadmodel import plot

    strengths = found.curvature_strength.values
    figure.set_size_inches(7 * len(strengths), 5)
    panels = figure.subplots(1, len(strengths), squeeze=False)[0]
    for ax, strength in zip(panels, strengths, strict=True):
        plot.large_p_edge(found.sel(curvature_strength=[strength]), ax)
        ax.set_title(f"large-P limit, q = {strength:g}")
