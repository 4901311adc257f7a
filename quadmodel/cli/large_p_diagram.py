"""quadmodel large-p-diagram."""

from __future__ import annotations

import time

import click

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
from quadmodel.cli.phase_diagram import report
from quadmodel.optimizer import SGD


@click.command("large-p-diagram")
@model_options(n_data=40, n_params=None, spectrum="power-law", curvature_strength=1.0)
@grid_options(learning_rates=16, batch_sizes=8)
@sgd_options
@click.option("--steps", default=1000, help="SGD steps per replica.")
@click.option("--replicas", default=8, help="Replicas per grid point.")
@click.option("--refine", default=12, help="Learning rates of the finer scan around the boundary.")
@click.option(
    "--truncation-order",
    default=2,
    metavar="L",
    help="Where the hierarchy of basis states is cut: each order more is more exact, at D times "
    "the memory and time.",
)
@run_options
@output_options("large-p-diagram")
def large_p_diagram_command(
    source: Source,
    grid: Grid,
    sgd: SGD,
    steps: int,
    replicas: int,
    refine: int,
    truncation_order: int,
    seed: int,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Draw the phase diagram in the limit of many parameters P.

    Runs SGD at fixed curvature strength q instead of simulating a model of P parameters, and
    writes and prints what phase-diagram does. P only shapes a gaussian or marchenko-pastur NTK
    spectrum and turns --curvature into q.
    """
    outputs.check(source)
    began = time.perf_counter()
    from quadmodel.studies.large_p_phases import large_p_phase_diagram

    found = large_p_phase_diagram(
        source.build(seed, draw_curvature=False),
        grid.learning_rates,
        grid.batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=replicas,
        seed=seed,
        refine=refine,
        truncation_order=truncation_order,
        threads=threads,
        progress=True,
    )
    report(found, time.perf_counter() - began, outputs)
