"""Leaves out the examples of what needs PyTorch where it is not installed; closes figures."""

import sys
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["quadmodel/networks/*"]


@pytest.fixture(autouse=True)
def close_figures_of_examples():
    """Close the figures that an example has opened."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
