"""Everything that the derivations write: the documents and the numeric theory's formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quadmodel._util.checks import InputError
from quadmodel.symbolic.output.documents import documents
from quadmodel.symbolic.output.emit import MODULE, generated_module
from quadmodel.symbolic.output.javascript import JAVASCRIPT, javascript_module


@dataclass(frozen=True)
class Target:
    """A file that is derived.

    Parameters
    ----------
    name, title : str
        How it is called, and what is in it.
    path : str
        Where it is kept, from the top of the repository.
    text : callable
        Derives its text.
    """

    name: str
    title: str
    path: str
    text: Callable[[], str]


def targets() -> list[Target]:
    """Return all files that are derived.

    Returns
    -------
    list of Target

    Examples
    --------
    >>> from quadmodel.symbolic.output.targets import targets
    >>> targets()[0].path
    'derivations/01-batch-weights.md'
    """
    papers = [Target(d.name, d.title, d.path, d.text) for d in documents()]
    return [
        *papers,
        Target("formulas", "What the numeric theory calls", MODULE, generated_module),
        Target("javascript", "What the explorer calls", JAVASCRIPT, javascript_module),
    ]


def chosen(names: Sequence[str]) -> list[Target]:
    """Return the files of these names or numbers, or "all", each once and in their own order.

    Raises InputError if there is no file of a name.
    """
    known = targets()
    if "all" in names:
        names = [*(n for n in names if n != "all"), *(target.name for target in known)]
    found = set()
    for name in names:
        matches = {t.name for t in known if name in (t.name, t.name.partition("-")[0])}
        if not matches:
            raise InputError(
                f"NAME must be all, a number or one of {', '.join(t.name for t in known)}, "
                f"got {name!r}"
            )
        found |= matches
    return [target for target in known if target.name in found]
