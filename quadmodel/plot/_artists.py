"""What functions of pictures return: a list that notebooks don't print under the picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.artist import Artist

P = ParamSpec("P")


class Artists(list["Artist"]):
    """A list of artists, of which the last line of a cell prints nothing."""

    def _ipython_display_(self) -> None:
        """Print nothing: the picture itself says what has been drawn."""


def returns_artists(function: Callable[P, list[Artist]]) -> Callable[P, list[Artist]]:
    """Let a function's list of artists be one that notebooks don't print."""

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> list[Artist]:
        return Artists(function(*args, **kwargs))

    return quiet
