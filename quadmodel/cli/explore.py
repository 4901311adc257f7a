"""quadmodel explore."""

from __future__ import annotations

import os
from pathlib import Path

import click

from quadmodel._util.checks import InputError
from quadmodel._util.files import check_writable, write_atomically


@click.command("explore")
@click.option(
    "--html", "file", default="explorer.html", metavar="FILE", help="Page to write: .html."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a file that exists; without it, it is kept, and the command refuses to run.",
)
def explore_command(file: str, overwrite: bool) -> None:
    """Write the explorer: a page of sliders over which the theory's predictions move.

    One file that needs no server and no network. In a notebook, quadmodel.explore() shows the same
    with simulations, and for your own NTK.
    """
    from quadmodel.explorer.page import page

    output = Path(file)
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"--html must end in .html, got {file or repr('')}")
    check_writable(output, "--html")
    if os.path.lexists(output) and not overwrite:
        raise InputError(
            f"--html {output} must not exist yet: choose another name, or give --overwrite to "
            "replace what is there"
        )
    with write_atomically(output) as partial:
        partial.write_text(page(), encoding="utf-8")
    click.echo(f"wrote {output}")
