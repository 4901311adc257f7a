"""Emitted JavaScript: that it is the derived one, and has the values of the emitted Python."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from quadmodel import explorer
from quadmodel.symbolic.output.javascript import IN_JAVASCRIPT, JAVASCRIPT, javascript_module
from quadmodel.theory import _generated as generated
from tests.explorer.javascript import evaluate, needs_node

FRONT = Path(explorer.__file__).with_name("front")
CALLS = 200
# Where arguments lie; all others anywhere in (-2, 2).
RANGES = {
    "x": (0.01, 1.9),
    "momentum": (-0.9, 0.9),
    "gamma": (0.0, 99.0),
    "kappa": (0.0, 1.0),
    "bare": (0.0, 5.0),
    "n_data": (2, 200),
    "batch_size": (1, 100),
    "batch_fraction": (0.01, 1.0),
}


def arguments(name, rng):
    names = inspect.signature(getattr(generated, name)).parameters
    return [float(rng.uniform(*RANGES.get(key, (-2.0, 2.0)))) for key in names]


@pytest.fixture(scope="module")
def calls():
    rng = np.random.default_rng(0)
    return {name: [arguments(name, rng) for _ in range(CALLS)] for name in IN_JAVASCRIPT}


@pytest.fixture(scope="module")
def values(calls):
    table = ", ".join(IN_JAVASCRIPT)
    return evaluate(
        f"""
        const functions = {{{table}}};
        const found = {{}};
        for (const name of Object.keys(data))
          found[name] = data[name].map((values) => functions[name](...values));
        """,
        calls,
    )


@pytest.mark.slow
def test_the_committed_module_is_the_derived_one():
    if sp.__version__ != "1.14.0":
        pytest.skip(f"SymPy {sp.__version__} is not the one of the test extra")
    assert JAVASCRIPT.endswith("explorer/front/formulas.js")
    assert (FRONT / "formulas.js").read_bytes() == javascript_module().encode()


@needs_node
@pytest.mark.parametrize("name", IN_JAVASCRIPT)
def test_values_are_those_of_python(name, calls, values):
    for given, found in zip(calls[name], values[name], strict=True):
        expected = np.array(getattr(generated, name)(*given), dtype=float)
        assert np.shape(found) == expected.shape
        # Beside 0 digits are those of the terms that cancel there, which are of order 1.
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(given).max()), given


@needs_node
def test_a_change_in_the_text_is_noticed(calls, values):
    found = np.array(values["dressed_response"])
    wrong = [bare / (1 - bare * g * k / n) for bare, g, k, n in calls["dressed_response"]]
    assert not np.allclose(found, wrong, rtol=1e-12)


def test_every_formula_is_called():
    text = "".join(p.read_text("utf-8") for p in FRONT.glob("*.js") if p.name != "formulas.js")
    code = re.sub(r"^import .*?;$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert [name for name in IN_JAVASCRIPT if not re.search(rf"\b{name}\b", code)] == []
