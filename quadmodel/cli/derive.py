"""quadmodel derive."""

from __future__ import annotations

from pathlib import Path

import click

from quadmodel._util.checks import InputError
from quadmodel._util.files import check_writable, write_atomically


@click.command("derive")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a file differs.")
@click.option("--root", default=".", metavar="DIR", help="Folder of the checkout to write to.")
@click.pass_context
def derive_command(context: click.Context, names: tuple[str, ...], check: bool, root: str) -> None:
    """Derive the theory's equations and write them.

    NAME is a number, like 03, or the name of what to derive, or all; without any, list them. The
    documents go to derivations/, the formulas as Python to quadmodel/theory/, as JavaScript to
    quadmodel/explorer/.
    """
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"--root must be an existing folder, got {root}")
    from quadmodel.symbolic.output.targets import chosen, targets

    if not names and not check:
        for target in targets():
            click.echo(f"{target.name:24}{target.path:42}{target.title}")
        return
    selected = chosen(names or ("all",))
    outputs = [top / target.path for target in selected]
    if not check:
        for target, output in zip(selected, outputs, strict=True):
            if not output.parent.is_dir():
                raise InputError(
                    f"--root must be a checkout with {Path(target.path).parent}/, got {root}"
                )
            check_writable(output)
    texts = [target.text() for target in selected]
    stale = [
        output
        for output, text in zip(outputs, texts, strict=True)
        if not output.is_file() or output.read_bytes() != text.encode()
    ]
    if check:
        for output in outputs:
            click.echo(f"{'differs' if output in stale else 'same':9}{output}")
        context.exit(1 if stale else 0)
    for output, text in zip(outputs, texts, strict=True):
        with write_atomically(output) as partial:
            partial.write_bytes(text.encode())
        click.echo(f"{'wrote' if output in stale else 'same':9}{output}")
