"""Names and docstrings of quadmodel.networks."""

import inspect
from itertools import pairwise

import pytest

import quadmodel as qm
from tests.networks.nets import torch

NAMES = [
    "Estimate",
    "Probe",
    "batch_sharpness",
    "gauss_newton",
    "gradient_noise_interaction",
    "hessian",
    "jacobian",
    "largest_eigenvalue",
    "noise_kernel_norm",
    "ntk",
    "quadratic_model",
    "row_norms",
    "separation",
    "side_by_side",
    "spectral_density",
    "trace",
    "track",
    "train_grid",
]


def test_names():
    assert torch.__version__
    assert sorted(name for name in dir(qm.networks) if not name.startswith("_")) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name.islower()])
def test_docstrings(name):
    function = getattr(qm.networks, name)
    lines = inspect.getdoc(function).splitlines()
    titles = {a for a, rule in pairwise(lines) if rule and set(rule) == {"-"}}
    assert {"Parameters", "Returns", "Raises", "Notes", "References", "Examples"} <= titles
    named = {w for line in lines if " : " in line for w in line.split(" : ")[0].split(", ")}
    assert set(inspect.signature(function).parameters) <= named
