"""quadmodel large-p-diagram."""

from __future__ import annotations

import time

import click

from quadmodel.cli._click import option
from quadmodel.cli._options import Diagram, diagram_options
from quadmodel.cli.phase_diagram import report


@click.command("large-p-diagram")
@diagram_options(
    "large-p-diagram", n_data=40, n_params=None, spectrum="power-law", curvature_strength=1.0,
    learning_rates=16, batch_sizes=8, steps=1000, replicas=8,
)  # fmt: skip
@option("--refine", 12, "Learning rates of the finer scan around the boundary.")
@option(
    "--truncation-order L",
    2,
    "Where the hierarchy of basis states is cut: each order more is more exact, at D times the "
    "memory and time.",
)
def large_p_diagram_command(asked: Diagram, refine: int, truncation_order: int) -> None:
    """Draw the phase diagram in the limit of many parameters P.

    Runs SGD at fixed curvature strength q instead of simulating a model of P parameters, and
    writes and prints what phase-diagram does. P only shapes a gaussian or marchenko-pastur NTK
    spectrum and turns --curvature into q.
    """
    from quadmodel.studies.large_p_phases import large_p_phase_diagram

    began = time.perf_counter()
    with asked.how.running() as how:
        found = large_p_phase_diagram(
            asked.source.build(asked.seed, draw_curvature=False),
            asked.learning_rates,
            asked.batch_sizes,
            sgd=asked.sgd,
            steps=asked.steps,
            replicas=asked.replicas,
            seed=asked.seed,
            refine=refine,
            truncation_order=truncation_order,
            **how,
        )
    report(found, time.perf_counter() - began, asked.outputs)
