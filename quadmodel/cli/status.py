"""quadmodel status."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("status")
@click.argument("store", metavar="DIR")
def status_command(store: str) -> None:
    """Say how far the sweep in a store has come, also while it runs."""
    from quadmodel.sweeps.store import progress_of

    found = progress_of(Path(store))
    state = "finished" if found.finished else f"{100 * found.share:.1f} % of the units done"
    click.echo(f"{found.kind}: {state}")
    for stage, expected in found.expected.items():
        begun = stage in found.done
        click.echo(f"{stage}: {found.done.get(stage, 0)} of {'' if begun else 'up to '}{expected}")
