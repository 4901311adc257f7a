"""Options as all commands add them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def option(usage: str, default: object, text: str, **more: Any) -> Decorator:
    """Add an option to a command; `usage` as help shows it, like "--n-data D"."""
    flag, _, metavar = usage.partition(" ")
    return click.option(flag, default=default, metavar=metavar or None, help=text, **more)


def grouped(argument: str, build: Callable[..., object], **options: Decorator) -> Decorator:
    """Add options, by name, to a command, which receives what `build` makes of their values."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_group(**values: Any) -> None:
            values[argument] = build(**{name: values.pop(name) for name in options})
            command(**values)

        for add in reversed(options.values()):
            add(with_group)
        return with_group

    return decorate
