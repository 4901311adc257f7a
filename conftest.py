"""Leaves out the examples of what needs PyTorch where it is not installed; closes figures."""

import sys
from importlib.util import find_spec

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Compare pictures with the committed ones without being asked, where pytest-mpl is there."""
    if config.pluginmanager.hasplugin("pytest_mpl") and not config.getoption("--mpl-generate-path"):
        config.option.mpl = True


collect_ignore_glob = [] if find_spec("torch") else ["quadmodel/networks/*"]


@pytest.fixture(autouse=True)
def close_figures_of_examples():
    """Close the figures that an example has opened."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
