"""How objects show themselves: HTML tables for notebooks, numbers and bytes in few characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from html import escape
from typing import Any

_LONGEST = 60


def cut(text: str, length: int = _LONGEST) -> str:
    """Return a text, its end left out where it is long."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def bytes_shown(count: float) -> str:
    """Return a number of bytes with three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def html_table(title: str, rows: Mapping[str, Any]) -> str:
    """Return a title and a row per entry, without colours: for light and dark notebooks."""
    cells = "".join(
        f"<tr><th style='text-align: left'>{escape(name)}</th>"
        f"<td style='text-align: left'>{escape(cut(str(value)))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><b>{escape(title)}</b><table>{cells}</table></div>"


def law_html(law: Any) -> str:
    """Return the table of a law: its kind and parameters."""
    title = type(law).__name__
    try:
        rows = {
            field.name.strip("_").replace("_", " "): _value(getattr(law, field.name))
            for field in fields(law)
        }
    except TypeError:  # a law of the user's that is no dataclass
        rows = {}
    return html_table(title, rows)


def numbers_shown(values: Any) -> str:
    """Return few numbers one by one, and many by their count and range."""
    count = len(values)
    if count <= 6:
        return "(" + ", ".join(f"{float(value):.6g}" for value in values) + ")"
    return f"<{count} from {max(values):.4g} to {min(values):.4g}>"


def _value(value: Any) -> str:
    if isinstance(value, tuple) and value and all(isinstance(v, float) for v in value):
        return numbers_shown(value)
    shape = getattr(value, "shape", ())
    if shape:
        return f"array of shape {shape}"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return str(value)
