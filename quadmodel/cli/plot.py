"""quadmodel plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quadmodel._util.checks import InputError
from quadmodel._util.files import write_atomically
from quadmodel.cli import (
    large_p_edge,
    persistent_edge,
    phase_diagram,
    sharpening_diagram,
    trace_boundary,
)
from quadmodel.cli._click import option
from quadmodel.cli._options import check_picture

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_DRAW: dict[str, Callable[[xr.Dataset, Figure], None]] = {
    "phase diagram": phase_diagram.draw,
    "boundary": trace_boundary.draw,
    "sharpening diagram": sharpening_diagram.draw,
    "persistent edge": persistent_edge.draw,
    "edge at large P": large_p_edge.draw,
}


@click.command("plot")
@click.argument("file", metavar="FILE")
@option("--picture FILE", None, "Picture: .png, .pdf or .svg.  [default: FILE with .png]")
@option("--overwrite", False, "Replace a picture that exists.", is_flag=True)
def plot_command(file: str, picture: str | None, overwrite: bool) -> None:
    """Draw a result again, without computing.

    FILE is what a command has written, or the store of a phase diagram, finished or not.
    """
    from matplotlib.figure import Figure

    source = Path(file)
    found = _read(source)
    kind = found.attrs.get("kind")
    if kind not in _DRAW:
        raise InputError(f"{file} must hold one of {', '.join(_DRAW)}, got {kind}")
    target = Path(picture) if picture else Path(source.name).with_suffix(".png")
    check_picture(target, overwrite=overwrite)
    figure = Figure(layout="constrained", dpi=150)
    with write_atomically(target) as partial:
        _DRAW[kind](found, figure)
        figure.savefig(partial)
    click.echo(f"wrote {target}")


def _read(path: Path) -> xr.Dataset:
    """Return the Dataset in a file or a store."""
    import xarray as xr

    from quadmodel.studies.stored import open_phase_diagram

    if path.is_dir():
        found = open_phase_diagram(path)
        if not found.data_vars:
            raise InputError(f"{path} must hold a phase diagram whose edges are done, got none yet")
        return found
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            return file.load()
    except FileNotFoundError:
        raise InputError(f"{path} must be an existing file, got none") from None
    except Exception as error:  # damage raises nearly anything
        raise InputError(f"{path} must be a NetCDF file of a result, got {error}") from None
