"""The documents in derivations/: prose by hand in `prose/`, equations by the engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from quadmodel.symbolic.output import _equations, _mean_field

_PLACE = re.compile(r"\{\{ ([a-z0-9_]+) \}\}")


@dataclass(frozen=True)
class Document:
    """A derivation in print.

    Parameters
    ----------
    name : str
        Number and title, as the file is called.
    equations : callable
        Derives the equations that its text asks for, by name, as LaTeX.
    """

    name: str
    equations: Callable[[], dict[str, str]]

    @property
    def path(self) -> str:
        """Where it is kept, from the top of the repository."""
        return f"derivations/{self.name}.md"

    @property
    def source(self) -> str:
        """Where its prose is kept, from the top of the repository."""
        return f"quadmodel/symbolic/output/prose/{self.name}.md"

    @property
    def prose(self) -> str:
        """Text with a place for every equation."""
        folder = resources.files("quadmodel.symbolic.output") / "prose"
        return (folder / f"{self.name}.md").read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """Its first line."""
        return self.prose.splitlines()[0].lstrip("# ")

    def text(self) -> str:
        """Derive the equations and put them in their places.

        Returns
        -------
        str
            Markdown with LaTeX, as GitHub and Jupyter render it.

        Raises
        ------
        ValueError
            If text and equations don't fit each other: a bug.
        """
        equations = self.equations()
        wanted = set(_PLACE.findall(self.prose))
        if wanted != set(equations):
            raise ValueError(f"{self.name}: equations differ in {wanted ^ set(equations)}")
        note = f"<!-- Written by `quadmodel derive`; the prose is in {self.source}. -->\n\n"
        return note + _PLACE.sub(lambda place: equations[place[1]], self.prose)


def documents() -> list[Document]:
    """Return all documents."""
    return [
        Document("01-batch-weights", _equations.batch_weights),
        Document("02-second-moment", _equations.second_moment),
        Document("03-noise-kernel", _equations.noise_kernel),
        Document("04-gradient-statistics", _equations.gradient_statistics),
        Document("05-sharpening", _equations.two_steps),
        Document("06-expected-ntk", _equations.expected_ntk),
        Document("07-typical-stability", _equations.typical_stability),
        Document("08-large-p", _equations.large_p_limit),
        Document("09-mean-field", _mean_field.mean_field_theory),
    ]
