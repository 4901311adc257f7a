"""The explorer as a page of its own: one file, which needs no server and no network."""

from __future__ import annotations

import json

from quadmodel.explorer._front import front_file, module
from quadmodel.explorer._source import Settings, page_source
from quadmodel.explorer._spectra import N_DATA


def page() -> str:
    """Return the explorer as a self-contained page.

    Returns
    -------
    str
        HTML with styles, module and data inside; it loads nothing.

    References
    ----------
    .. [1] arXiv:2404.19261, for the model. The page's formulas are emitted from derivations/.

    Examples
    --------
    >>> from quadmodel.explorer.page import page
    >>> page().startswith("<!doctype html>")
    True
    """
    state = Settings().state() | {"source": page_source()}
    parts = {
        "STYLE": front_file("explorer.css"),
        "N_DATA": str(N_DATA),
        "MODULE": module(),
        "STATE": json.dumps(state, ensure_ascii=False, allow_nan=False),
    }
    text = front_file("page.html")
    for name, part in parts.items():
        before, after = text.split("{{" + name + "}}", 1)
        text = before + part + after
    return text
