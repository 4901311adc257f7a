"""Writes the site's reference: every public name of the package, by subject."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import quadmodel as qm

# Where a name is defined, and what it is about; what is nowhere else is a study.
SUBJECTS = {
    "model": "Models, laws and SGD",
    "ensemble": "Models, laws and SGD",
    "optimizer": "Models, laws and SGD",
    "laws": "Models, laws and SGD",
    "theory": "Closed forms and mean-field theory",
    "simulation": "Simulation",
    "large_p": "Simulation",
    "comparison": "Comparison",
    "studies": "Studies",
    "sweeps": "Studies",
    "explorer": "Explorer",
}
FIRST = ["Models, laws and SGD", "Closed forms and mean-field theory", "Simulation", "Comparison"]
BEGINNING = """Reference
=========

Shapes, units, formula and source of every public function, with an example that the tests run.
What is called ``quadmodel.NAME`` here is ``qm.NAME`` after ``import quadmodel as qm``.
"""


def public() -> Iterator[tuple[str, str]]:
    """Yield subject and full name of everything public, modules' contents after the package's."""
    modules = []
    for name in sorted(n for n in qm.__all__ if not n.startswith("_")):
        thing = getattr(qm, name)
        if inspect.ismodule(thing):
            modules.append((name, thing))
        else:
            part = thing.__module__.split(".")[1]
            yield SUBJECTS.get(part, "More"), f"quadmodel.{name}"
    for name, module in modules:
        # As users write them; autodoc imports curvature's, whose home is elsewhere, from there.
        home = module.__name__
        for key in sorted(module.__all__):
            if not _is_module(module, key) and not _listed(module, key):
                yield f"quadmodel.{name}: {inspect.getdoc(module).splitlines()[0]}", f"{home}.{key}"


def _is_module(module: Any, name: str) -> bool:
    try:
        return inspect.ismodule(getattr(module, name))
    except ImportError:  # networks, without PyTorch
        return False


def _listed(module: Any, name: str) -> bool:
    """Say whether the package itself has this very thing under this name."""
    return name in qm.__all__ and getattr(qm, name) is getattr(module, name)


def page() -> str:
    """Return the page: a table of names per subject."""
    found: dict[str, list[str]] = {}
    for subject, name in public():
        found.setdefault(subject, []).append(name)
    ordered = [s for s in FIRST if s in found] + [s for s in found if s not in FIRST]
    parts = [BEGINNING]
    for subject in ordered:
        lines = "\n".join(f"   {name}" for name in found[subject])
        parts.append(
            f"{subject}\n{'-' * len(subject)}\n\n"
            f".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n{lines}\n"
        )
    return "\n".join(parts)


def write(path: Path) -> None:
    """Write the page, unless it says this already: then nothing that is built from it is stale.

    Pages of names that are gone go, too.
    """
    text = page()
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")
    names = {name for _, name in public()}
    for old in (path.parent / "generated").glob("*.rst"):
        if old.stem not in names:
            old.unlink()
