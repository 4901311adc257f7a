"""Equations as MathML, made by docutils at build time: readers need no script and no network."""

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

_log = logging.getLogger(__name__)


# What docutils knows by another name only, or not at all but for its looks.
_SPELLING = ((r"\\dots(?![a-zA-Z])", r"\\ldots"), (r"\\textstyle(?![a-zA-Z])", ""))
# Limits of a sum on lines of their own, which docutils puts side by side.
_SUBSTACK = re.compile(r"\\substack\{((?:[^{}]|\{[^{}]*\})*)\}")


def _mathml(text: str, *, block: bool, at: nodes.Node) -> str:
    """Return MathML, or the source with a warning, which fails the build."""
    code = text.strip()
    for pattern, spelling in _SPELLING:
        code = re.sub(pattern, spelling, code)
    code = _SUBSTACK.sub(lambda found: "{" + found[1].replace(r"\\", r",\,") + "}", code)
    lines = "&" in code or r"\\" in code
    if block and lines and not code.startswith(r"\begin"):
        code = rf"\begin{{aligned}}{code}\end{{aligned}}"
    try:
        return str(latex2mathml.tex2mathml(code, as_block=block))
    except MathError as error:
        _log.warning("%s: %s", error, text, location=at)
        return f"<code>{escape(text)}</code>"


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), block=False, at=node))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    self.body.append(_mathml(node.astext(), block=True, at=node))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
