"""Command line: a command per study, each in a file of its own; explore, validate and derive."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from quadmodel._util.checks import InputError
from quadmodel._util.files import WRITTEN
from quadmodel._util.threads import interrupts_noted, working
from quadmodel._util.version import __version__
from quadmodel.cli._sweeps import rescued
from quadmodel.cli.derive import derive_command
from quadmodel.cli.explore import explore_command
from quadmodel.cli.large_p_diagram import large_p_diagram_command
from quadmodel.cli.large_p_edge import large_p_edge_command
from quadmodel.cli.network import network_command
from quadmodel.cli.persistent_edge import persistent_edge_command
from quadmodel.cli.phase_diagram import phase_diagram_command
from quadmodel.cli.plot import plot_command
from quadmodel.cli.sharpening_diagram import sharpening_diagram_command
from quadmodel.cli.status import status_command
from quadmodel.cli.trace_boundary import trace_boundary_command
from quadmodel.cli.validate import validate_command
from quadmodel.sweeps import DryRun, SweepError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="quadmodel")
@click.pass_context
def cli(context: click.Context) -> None:
    """Stability and curvature of SGD in the quadratic regression model."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    phase_diagram_command,
    large_p_diagram_command,
    sharpening_diagram_command,
    persistent_edge_command,
    large_p_edge_command,
    trace_boundary_command,
    network_command,
    explore_command,
    validate_command,
    status_command,
    plot_command,
    derive_command,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, an interrupt in 130."""
    stopped, kept = [130], len(WRITTEN)
    try:
        with _signals_noted(stopped):
            sys.exit(cli(prog_name="quadmodel", standalone_mode=False))
    except click.ClickException as error:
        _complain(error.format_message())
    except DryRun as plan:
        click.echo(str(plan))
        sys.exit(0)
    except SweepError as error:
        _complain(f"{error}; {rescued()}".rstrip("; "))
    except (InputError, MemoryError, OSError) as error:
        _complain(str(error) or type(error).__name__)
    except (click.Abort, KeyboardInterrupt) as stop:
        _end(stopped[0], [str(path) for path in WRITTEN[kept:]], str(stop.__cause__ or stop))


@contextmanager
def _signals_noted(stopped: list[int]) -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt: partial files are removed on the way out."""
    codes = {signal.SIGTERM: 143}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else: ignored, or a host's
        codes[signal.SIGINT] = 130
    with interrupts_noted() as note:

        def end(number: int, _: Any) -> None:
            stopped[0] = codes[signal.Signals(number)]
            note()
            raise KeyboardInterrupt

        before = {number: signal.signal(number, end) for number in codes}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(code: int, written: list[str], left: str) -> None:
    """Say what an interrupt has left, and leave."""
    left = rescued() or (left if " are kept in " in left else "")
    if not left:
        left = f"kept {', '.join(written)}" if written else "nothing was written"
    click.echo(f"interrupted; {left}", err=True)
    if working():  # what can't be stopped, like compiling: Python would wait for it
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _complain(message: str) -> None:
    line = " ".join(message.split())
    click.echo(f"quadmodel: error: {line if len(line) <= 500 else f'{line[:500]}...'}", err=True)
    sys.exit(2)
