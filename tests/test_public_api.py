"""What users can rely on: names, docstrings, and a fast import."""

import inspect
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import pytest

import quadmodel as qm
from quadmodel._util.version import __version__

NAMES = [
    "Ensemble",
    "HoldK",
    "LowRankCurvature",
    "QuadraticModel",
    "Running",
    "SGD",
    "compare",
    "critical_learning_rate",
    "critical_noise_kernel_norm",
    "curvature",
    "datasets",
    "edge_of_stability",
    "eigenvectors",
    "expected_ntk",
    "explore",
    "fit_edge_law",
    "large_p_edge",
    "large_p_limit",
    "large_p_phase_diagram",
    "late_time_quartiles",
    "late_time_rate",
    "loss_floor",
    "lyapunov_exponent",
    "mean_field",
    "mean_field_edge",
    "misclassified_share",
    "networks",
    "noise_kernel_norm",
    "ntk_from_jacobian",
    "open_phase_diagram",
    "outcome_table",
    "persistent_edge",
    "phase_boundaries",
    "phase_diagram",
    "plot",
    "predict",
    "residuals",
    "sample_ntk",
    "sharpening_diagram",
    "simulate",
    "spectra",
    "stability_margins",
    "sweeps",
    "symbolic",
    "trace_boundary",
    "typical_critical_learning_rate",
    "typical_growth",
    "validate",
]
MODULES = [
    "curvature", "datasets", "eigenvectors", "networks", "plot", "residuals", "spectra", "sweeps",
    "symbolic",
]  # fmt: skip
HEAVY = ["IPython", "matplotlib", "numba", "pandas", "scipy.stats", "sympy", "torch", "xarray"]


def sections(thing):
    lines = inspect.getdoc(thing).splitlines()
    return {
        title
        for title, rule in pairwise(lines)
        if rule and set(rule) == {"-"} and len(rule) == len(title)
    }


FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(qm, name))]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(qm, name))]


def test_public_names():
    assert sorted(name for name in dir(qm) if not name.startswith("_")) == NAMES
    assert sorted(qm.__all__) == sorted([*NAMES, "__version__"])


def test_every_name_is_one_of_three_kinds():
    assert sorted([*FUNCTIONS, *CLASSES, *MODULES]) == NAMES
    assert all(inspect.ismodule(getattr(qm, name)) for name in MODULES)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_thing"):
        qm.no_such_thing  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_modules_list_public_names_only(name):
    module = getattr(qm, name)
    assert dir(module) == sorted(module.__all__)
    assert [n for n in dir(module) if n.startswith("_")] == []
    for key in set(dir(module)) - {"names"} if name != "networks" else []:
        thing = getattr(module, key)
        assert getattr(thing, "__module__", "quadmodel").startswith("quadmodel"), key


def public_callables():
    """Yield every public function and class with its name."""
    for name in ["", *MODULES]:
        module = getattr(qm, name) if name else qm
        names = module.__all__ if name != "networks" else ["Estimate"]
        for key in names:
            thing = getattr(module, key)
            if callable(thing) and hasattr(thing, "__name__"):
                yield f"{name}.{key}".strip("."), thing


@pytest.mark.parametrize(("name", "thing"), list(public_callables()))
def test_example(name, thing):
    """Examples run as doctests: those of networks, where PyTorch is, in tests/networks."""
    assert ">>>" in inspect.getdoc(thing), name


def test_version():
    assert qm.__version__ == __version__
    assert [part.isdigit() for part in __version__.split(".")[:2]] == [True, True]
    try:
        installed = version("quadmodel")
    except PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == __version__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_of_a_function(name):
    function = getattr(qm, name)
    assert {"Parameters", "Returns", "Raises", "References"} <= sections(function)
    undocumented = [p for p in inspect.signature(function).parameters if not documents(function, p)]
    assert undocumented == []


@pytest.mark.parametrize("name", CLASSES)
def test_docstring_of_a_class(name):
    cls = getattr(qm, name)
    assert {"Parameters", "Raises"} <= sections(cls)
    fields = cls.__annotations__ if issubclass(cls, dict) else inspect.signature(cls).parameters
    assert [p for p in fields if not documents(cls, p)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_of_methods(name):
    cls = getattr(qm, name)
    public = {k: v for k, v in vars(cls).items() if not k.startswith("_") and callable(v)}
    assert [k for k, v in public.items() if not inspect.getdoc(v)] == []


def documents(thing, parameter):
    """Whether a line ``parameter : type`` (or ``one, parameter : type``) is in the docstring."""
    names = (
        line.split(" : ")[0].replace("*", "").split(", ")
        for line in inspect.getdoc(thing).splitlines()
        if " : " in line
    )
    return any(parameter in group for group in names)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "networks"])
def test_docstrings_of_modules(name):
    module = getattr(qm, name)
    assert inspect.getdoc(module)
    own = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "").startswith(module.__name__)
    }
    assert own
    for key, value in own.items():
        assert inspect.getdoc(value), key
        if inspect.isfunction(value):
            assert "Returns" in sections(value), key
            assert [p for p in inspect.signature(value).parameters if not documents(value, p)] == []


@pytest.mark.parametrize(
    "name",
    [
        "boundary", "large_p_edge", "loss", "mean_field", "mean_field_edge", "network",
        "network_outcomes", "network_runs", "persistent_edge", "phase_diagram", "separation",
        "sharpening", "sharpening_diagram", "spectrum", "trajectory",
    ],
)  # fmt: skip
def test_docstrings_of_plots(name):
    assert {"Parameters", "Returns", "Raises"} <= sections(getattr(qm.plot, name))


@pytest.mark.parametrize("module", ["quadmodel", "quadmodel.cli"])
def test_import_loads_nothing_heavy(module):
    heavy = HEAVY if module == "quadmodel" else ["IPython", "matplotlib", "sympy", "torch"]
    code = f"""
import sys
before = set(sys.modules)
import {module}
print([name for name in {heavy!r} if name in sys.modules and name not in before])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(qm.__file__).parents[1])},
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_names_resolve_to_their_definitions():
    assert {getattr(qm, name).__name__ for name in FUNCTIONS + CLASSES} == {*FUNCTIONS, *CLASSES}
    laws = {"curvature", "eigenvectors", "residuals"}
    places = {f"quadmodel.laws.{m}" if m in laws else f"quadmodel.{m}" for m in MODULES}
    assert {getattr(qm, name).__name__ for name in MODULES} == places
