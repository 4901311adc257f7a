"""quadmodel phase-diagram --observable sharpening."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quadmodel._util.checks import as_integer
from quadmodel._util.files import write_atomically
from quadmodel.cli import _pictures as pictures

if TYPE_CHECKING:
    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel
    from quadmodel.optimizer import SGD


def map_sharpening(source: Ensemble | QuadraticModel, sgd: SGD, options: dict[str, Any]) -> None:
    """Map the growth of the largest eigenvalue, write both files and print the growths."""
    from quadmodel.studies.sharpening import sharpening_diagram

    replicas = as_integer("--replicas", options["replicas"], low=2, high=2**32 - 1)
    grid = sharpening_diagram(
        source,
        options["learning_rates"],
        options["batch_sizes"],
        sgd=sgd,
        steps=options["steps"],
        replicas=replicas,
        seed=options["seed"],
        threads=options["threads"],
        progress=True,
    )
    picture, data = Path(options["picture"]), Path(options["data"])
    with write_atomically(data) as partial_data, write_atomically(picture) as partial_picture:
        grid.to_netcdf(partial_data, engine="h5netcdf")
        pictures.draw(grid, partial_picture)
    both = {"predicted": grid.predicted_growth, "simulated": grid.simulated_growth}
    for name, growth in both.items():
        frame = growth.to_pandas()
        frame.index.name, frame.columns.name = "learning rate", "batch size"
        click.echo(
            f"{name} growth of the largest NTK eigenvalue in {options['steps']} steps, share"
        )
        click.echo(frame.to_string(float_format=lambda value: f"{value:.2e}", na_rep="-"))
