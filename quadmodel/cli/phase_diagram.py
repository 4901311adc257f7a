"""quadmodel phase-diagram; picture and table are those of large-p-diagram too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import numpy as np

from quadmodel.cli._click import option
from quadmodel.cli._options import Diagram, Outputs, diagram_options

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@click.command("phase-diagram")
@diagram_options(
    "phase-diagram", n_data=200, n_params=400, spectrum="gaussian", curvature=0.0,
    learning_rates=24, batch_sizes=12, steps=1000, replicas=16,
)  # fmt: skip
@option(
    "--refine N",
    None,
    "Learning rates of the finer scan around the boundary.  [default: 6 if linear, else 12]",
    type=int,
)
@option(
    "--precision NAME",
    "float64",
    "float64, or mixed: NTK and curvature in single precision, replicas in double.",
)
def phase_diagram_command(asked: Diagram, refine: int | None, precision: str) -> None:
    """Draw the phase diagram of learning rate against batch size.

    Simulates SGD on a grid, predicts the edges of stability, writes a picture and a NetCDF file,
    and prints, per batch size, the predicted and the simulated critical learning rate and the
    simulated critical noise kernel norm K of the initial NTK, which is 1 for linear models.
    """
    from quadmodel.studies.phases import phase_diagram

    began = time.perf_counter()
    with asked.how.running() as how:
        found = phase_diagram(
            asked.source.build(asked.seed),
            asked.learning_rates,
            asked.batch_sizes,
            sgd=asked.sgd,
            steps=asked.steps,
            replicas=asked.replicas,
            seed=asked.seed,
            refine=refine,
            precision=precision,
            **how,
        )
    report(found, time.perf_counter() - began, asked.outputs)


def report(found: xr.Dataset, elapsed: float, outputs: Outputs) -> None:
    """Write a phase diagram, print its table and how long it took."""
    outputs.write(found, draw)
    click.echo(_table(found))
    done, lengths = found.attrs["replica_steps"], found.growth_steps
    early = int((lengths < found.attrs["steps"]).sum())
    if early:
        click.echo(
            f"growth of {early} of {lengths.size} grid points was certain "
            f"after {lengths.min():.0f} steps"
        )
    click.echo(
        f"{elapsed:.1f} s, {done:,} replica-steps, {done / elapsed:,.0f} replica-steps per second"
    )
    click.echo(outputs)


# Share of the deterministic edge up to which predicted values of K are printed.
_NEAR_THE_EDGE = 0.9


def draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw the result."""
    from quadmodel import plot

    figure.set_size_inches(7, 6)
    plot.phase_diagram(found, figure.subplots())


def _beside(grid: xr.Dataset) -> str:
    """Return what the critical K is to be set beside: the NTK of a quadratic model changes."""
    from quadmodel.plot._setting import is_linear

    if is_linear(grid.attrs):
        return "predicted: 1"
    predicted = grid.get("mean_field_noise_kernel_norm")
    if predicted is None or not np.isfinite(predicted).any():
        return "K of the initial NTK; 1 is the linear model's value, not a prediction"
    # Where the largest eigenvalue is near its own edge, K means little.
    below = grid.mean_field_critical_learning_rate < _NEAR_THE_EDGE * grid.edge_of_stability
    inside = predicted.sel(norm="exact").values[below.values]
    if not inside.size:
        return "K of the initial NTK"
    low, high = inside.min(), inside.max()
    return f"K of the initial NTK; predicted by mean-field theory: {low:.3g} to {high:.3g}"


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
    if "mean_field_noise_kernel_norm" in grid:
        rates = grid.mean_field_critical_learning_rate.values
        norms = grid.mean_field_noise_kernel_norm.sel(norm="exact").values
        rows["predicted (mean field)"] = [number(v) for v in rates]
        rows["its K"] = [number(v) for v in norms]
    pooled = [float(mean[f"pooled_noise_kernel_norm{end}"]) for end in ("", "_low", "_high")]
    verdict = "simulated critical K, all batch sizes: "
    if np.isfinite(pooled[0]):
        verdict += f"{pooled[0]:.4f} [{pooled[1]:.4f}, {pooled[2]:.4f}] (95%), {_beside(grid)}"
    else:
        crosses = np.isfinite(mean.noise_kernel_norm).any()
        verdict += "none settled" if crosses else "not found inside the grid"
    title = "critical learning rate (1 / NTK eigenvalue)"
    if "limit" in grid.attrs:
        order, q = grid.attrs["truncation_order"], grid.attrs["curvature_strength"]
        title += f", large-P limit, truncation order {order}, q = {q:.4g}"
    lines = [title, rows.to_string(index=False), verdict, *_unsettled(mean, grid)]
    return "\n".join(lines)


def _unsettled(critical: xr.Dataset, grid: xr.Dataset) -> list[str]:
    """Say at which batch sizes steps or replicas were too few, and how many would do."""
    known = critical.sel(batch_size=np.isfinite(critical.learning_rate))
    few = known.sel(batch_size=~known.resolved.values)
    if not few.sizes["batch_size"]:
        return []
    names = ", ".join(str(b) for b in few.batch_size.values)
    steps = int(np.nanmax([grid.attrs["steps"], *few.needed_steps.values]))
    more = f"--steps {steps}" if steps > grid.attrs["steps"] else "more --replicas"
    return [f"not settled, and left out, at batch size {names}: {more} would do"]
