"""Sphinx: the site's sources are the repository's own files, `docs/index.md` its front page.

Build from the top of the repository: ``sphinx-build -W -n -c docs . build/site``.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference

from quadmodel._util.version import __version__
from quadmodel.explorer.page import page as explorer_page

HERE = Path(__file__).parent
reference.write(HERE / "reference.rst")
(HERE / "generated" / "front").mkdir(parents=True, exist_ok=True)
(HERE / "generated" / "front" / "explorer.html").write_text(explorer_page(), "utf-8")

project = "quadmodel"
author = "The quadmodel developers"
copyright = author  # noqa: A001
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "mathml",
    "numpydoc",
    "myst_nb",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/**", "derivations/**", "C*.md"]
exclude_patterns = [".*", "build", "docs/_templates", "docs/_static", "**/.ipynb_checkpoints"]
templates_path = [str(HERE / "_templates")]
nitpick_ignore_regex = [
    ("py:.*", r"(xarray|matplotlib|numpy|pandas|scipy|sympy|torch|collections|typing)\..*"),
]

# ---- pages
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed outputs are shown; the gate runs the notebooks
nb_merge_streams = True

# ---- reference
autosummary_generate = True
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]
autodoc_typehints = "none"  # the docstrings say what comes and goes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# ---- looks
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_extra_path = ["generated/front"]
html_css_files = ["equations.css"]
html_title = f"quadmodel {__version__}"
html_show_sourcelink = False
html_copy_source = False
html_additional_pages = {"index": "front.html"}  # the hosts' front page leads to docs/index
pygments_style = "default"
pygments_dark_style = "monokai"
