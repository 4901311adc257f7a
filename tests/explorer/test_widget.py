"""The notebook's widget: settings from Python, what it computes in the background, errors."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.explorer._latest import Latest

LAM = np.linspace(2.0, 0.1, 12)
PATIENCE = 120.0
SGD = qm.SGD(0.2, 3)


@pytest.fixture
def make():
    pytest.importorskip("anywidget", reason="anywidget, of the extra explorer, is not there")
    made = []

    def explorer(*arguments, **options):
        made.append(qm.explore(*arguments, **options))
        return made[-1]

    yield explorer
    for widget in made:
        widget.close()
        assert widget.wait(PATIENCE)


@pytest.fixture
def idle(monkeypatch):
    """Let Python add nothing."""
    pytest.importorskip("anywidget", reason="anywidget, of the extra explorer, is not there")
    from quadmodel.explorer import widget

    monkeypatch.setattr(widget.Explorer, "_simulate", lambda *_: None)
    monkeypatch.setattr(widget.Explorer, "_find_edges", lambda *_: None)


@pytest.mark.usefixtures("idle")
def test_settings_are_read_and_set(make):
    explorer = make(LAM, SGD)
    assert explorer.sgd == SGD
    explorer.momentum = 0.5
    explorer.nesterov = True
    assert explorer.sgd == qm.SGD(0.2, 3, 0.5, True)
    explorer.sgd = qm.SGD(0.1, 12, sampling="bernoulli")
    assert (explorer.batch_size, explorer.sampling, explorer.nesterov) == (12, "bernoulli", False)
    seen = []
    explorer.observe(lambda change: seen.append(change["new"]), names="learning_rate")
    explorer.learning_rate = 0.3
    assert seen == [0.3]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", 0.0, "learning_rate must be a finite number > 0, got 0.0"),
        ("batch_size", 13, "batch_size must be an integer between 1 and 12, got 13"),
        ("momentum", 1.0, "momentum must be"),
        ("nesterov", "yes", "nesterov must be True or False"),
        ("weight_decay", -1.0, "weight_decay must be"),
        ("sampling", "all", "sampling must be one of"),
        ("spectrum", "power-law", "spectrum must be one of own"),
        ("parameter", 1.0, "parameter must be one of 0, got 1"),
        ("curvature_strength", -1.0, "curvature_strength must be"),
        ("steps", 0, "steps must be"),
    ],
)
def test_settings_out_of_range(make, name, value, words):
    explorer = make(LAM, SGD)
    before = getattr(explorer, name)
    with pytest.raises(InputError, match=words):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


@pytest.mark.usefixtures("idle")
def test_another_spectrum_starts_at_its_default(make):
    explorer = make()
    explorer.spectrum = "outliers"
    assert explorer.parameter == 10.0
    explorer.parameter = 50.0
    with pytest.raises(InputError, match="parameter must be one of 2, 3, 5"):
        explorer.parameter = 4.0


@pytest.mark.slow
def test_what_python_adds(make):
    ntk = qm.Ensemble(12, 24, LAM).sample(1).ntk()
    explorer = make(ntk, SGD)
    assert explorer.wait(PATIENCE)
    found = explorer.computed
    assert found["simulation"]["settings"]["learning_rate"] == 0.2
    assert found["simulation"]["step"][-1] == explorer.steps
    assert len(found["simulation"]["mean"]) == len(found["simulation"]["step"])
    norms = found["norms"]
    at = qm.SGD(norms["learning_rate"][7], 3)
    assert norms["norm"][7] == pytest.approx(qm.noise_kernel_norm(ntk, at, norm="exact"))
    edges = found["edges"]
    at = qm.SGD(1.0, edges["batch_size"][1])
    expected = qm.critical_learning_rate(ntk, at, norm="exact")
    assert edges["exact"][1] == pytest.approx(expected)
    assert "nonlinear" not in edges

    explorer.curvature_strength = 2.0
    assert explorer.wait(PATIENCE)
    found = explorer.computed
    assert found["simulation"]["curved"]
    assert found["edges"]["settings"]["curvature_strength"] == 2.0
    assert len(found["edges"]["nonlinear"]) == len(found["edges"]["batch_size"])


@pytest.mark.slow
def test_edges_stay_while_the_learning_rate_moves(make):
    explorer = make(LAM, SGD)
    assert explorer.wait(PATIENCE)
    edges = explorer.computed["edges"]
    explorer.learning_rate = 0.25
    assert explorer.wait(PATIENCE)
    assert explorer.computed["edges"] == edges
    assert explorer.computed["simulation"]["settings"]["learning_rate"] == 0.25
    explorer.momentum = 0.1
    assert explorer.wait(PATIENCE)
    assert explorer.computed["edges"]["settings"]["momentum"] == 0.1


@pytest.mark.slow
def test_models_of_ones_own(make):
    curved = qm.Ensemble(12, 24, LAM, curvature=0.1)
    for source in (curved, curved.sample(2)):
        explorer = make(source)
        assert explorer.source["curved"]
        with pytest.raises(InputError, match="curvature_strength must be"):
            explorer.curvature_strength = 1.0
        assert explorer.wait(PATIENCE)
        assert "nonlinear" in explorer.computed["edges"]
    start = explorer.source["families"][0]["start"]
    assert sum(start) == pytest.approx(np.sum(curved.sample(2).residual ** 2))


@pytest.mark.parametrize(
    ("source", "sgd", "words"),
    [
        (np.zeros(3), None, "must have an NTK that does not vanish"),
        ("ntk", None, "must hold real numbers"),
        ([[1.0, 2.0], [0.0, 1.0]], None, "ntk must be symmetric"),
        (LAM, qm.SGD(0.1, 50), "batch_size must be between 1 and n_data=12, got 50"),
        (LAM, 0.1, "sgd must be an SGD, got 0.1"),
    ],
)
def test_refusals(make, source, sgd, words):
    with pytest.raises(InputError, match=words):
        make(source, sgd)


def test_without_anywidget():
    code = """
import sys
sys.modules["anywidget"] = None
import quadmodel as qm
try:
    qm.explore()
except ImportError as error:
    print(error)
"""
    environment = {"PYTHONPATH": str(Path(qm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.count("\n") == 1
    assert "quadmodel[explorer]" in done.stdout


def test_only_the_latest_is_worked_on():
    begun, go, done = threading.Event(), threading.Event(), []

    def work(wanted, stale):
        begun.set()
        go.wait(PATIENCE)
        done.append((wanted, stale()))

    latest = Latest(work)
    latest.ask(1)
    assert begun.wait(PATIENCE)
    latest.ask(2)
    latest.ask(3)
    assert not latest.wait(0.01)
    go.set()
    assert latest.wait(PATIENCE)
    assert done == [(1, True), (3, False)]
    latest.ask(4)
    assert latest.wait(PATIENCE)
    assert done[-1] == (4, False)
