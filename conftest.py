"""Leaves out the examples of what needs PyTorch or anywidget where that is not installed."""

import sys
from importlib.util import find_spec

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Compare pictures with the committed ones without being asked, where pytest-mpl is there."""
    if config.pluginmanager.hasplugin("pytest_mpl") and not config.getoption("--mpl-generate-path"):
        config.option.mpl = True


_NEED = {"torch": "quadmodel/networks/*", "anywidget": "quadmodel/explorer/widget.py"}
collect_ignore_glob = [place for package, place in _NEED.items() if not find_spec(package)]


@pytest.fixture(autouse=True)
def close_figures_of_examples():
    """Close the figures that an example has opened."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
