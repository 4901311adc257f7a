"""quadmodel persistent-edge."""

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


@click.command("persistent-edge")
@values_option("--curvature-strengths", "0.7,1.0,1.2", float, "Curvature strengths q.")
@option("--replicas", 4, "Models per curvature strength.")
@option("--initial-norm K", 0.2, "Noise kernel norm at the start.")
@option("--n-data D", 100, "Data points.")
@option("--n-params P", 200, "Parameters, at least D.")
@option("--batch-size B", 2, "Data points per batch.")
@option("--steps", 20_000, "SGD steps.")
@run_options
@output_options("persistent-edge")
def persistent_edge_command(
    curvature_strengths: list[float],
    replicas: int,
    initial_norm: float,
    n_data: int,
    n_params: int,
    batch_size: int,
    steps: int,
    seed: int,
    how: Sweeping,
    outputs: Outputs,
) -> None:
    """Follow models that train at the stochastic edge without converging.

    Trains models whose curvature grows with the NTK, writes a picture of their noise kernel norms
    and a NetCDF file, and prints medians over the last third of the steps beside the last noise
    kernel norm that mean-field theory predicts.
    """
    from quadmodel.studies.persistence import late_time_quartiles, persistent_edge

    began = time.perf_counter()
    with how.running() as running:
        found = persistent_edge(
            curvature_strengths,
            replicas=replicas,
            initial_norm=initial_norm,
            n_data=n_data,
            n_params=n_params,
            batch_size=batch_size,
            steps=steps,
            seed=seed,
            **running,
        )
    outputs.write(found, draw)
    quartiles = late_time_quartiles(found)
    predicted = quartiles.mean_field_noise_kernel_norm_finite
    quartiles = quartiles.drop_vars(predicted.name)
    frame = quartiles.sel(quantile=0.5).drop_vars("quantile").to_dataframe().reset_index()
    norm = quartiles.noise_kernel_norm_exact.stack(row=("curvature_strength", "replica"))
    frame["exact_low"], frame["exact_high"] = norm.sel(quantile=0.25), norm.sel(quantile=0.75)
    frame["predicted_finite"] = predicted.sel(
        curvature_strength=frame.curvature_strength.to_numpy()
    ).to_numpy()
    click.echo(
        "medians over the last third of the steps; exact_low, exact_high: quartiles; "
        "predicted_finite: last noise_kernel_norm_finite of mean-field theory"
    )
    click.echo(frame.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    click.echo(f"{time.perf_counter() - began:.1f} s\n{outputs}")


def draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw the result."""
    from quadmodel import plot

    figure.set_size_inches(8, 5)
    plot.persistent_edge(found, figure.subplots())
