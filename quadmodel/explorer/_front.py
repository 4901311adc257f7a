"""The front end as one ES module, made of the files in front/."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

# Each one after those that it imports.
_MODULES = ("formulas", "theory", "draw", "panels", "controls", "explorer")
_BETWEEN_FILES = re.compile(
    r'^import \{[^}]*\} from "\./\w+\.js";\n|^export (?!default)', re.MULTILINE
)


@cache
def front_file(name: str) -> str:
    """Return the text of a file of the front end."""
    return (files("quadmodel.explorer") / "front" / name).read_text("utf-8")


@cache
def module() -> str:
    """Return all of the front end as one ES module: it imports nothing, and exports its default.

    The files name what they export once among them all, so that they can stand in one scope.
    """
    return "\n".join(_BETWEEN_FILES.sub("", front_file(f"{name}.js")) for name in _MODULES)
