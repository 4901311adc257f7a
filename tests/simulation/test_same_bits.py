"""The same bits from the process that compiles, from those that load, and for any threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util import threads
from quadmodel.simulation import _stepper

# Prints a line per kind of run: its name and a hash of all numbers.
SCRIPT = """
import hashlib, sys
import numpy as np
import quadmodel as qm
from quadmodel.simulation import _stepper

def show(name, found):
    digest = hashlib.sha256()
    for variable in sorted(found.data_vars):
        digest.update(np.ascontiguousarray(found[variable].values).tobytes())
    print(name, digest.hexdigest())

rng = np.random.default_rng(0)
residual, jacobian = rng.normal(size=13), rng.normal(size=(13, 19)) / 3
vectors = rng.normal(size=(13, 3, 19))
low_rank = qm.LowRankCurvature(0.05 * rng.normal(size=(13, 3)), vectors)
models = {
    "linear": qm.QuadraticModel(residual, jacobian),
    "dense": qm.QuadraticModel(residual, jacobian, low_rank.dense()),
    "low rank": qm.QuadraticModel(residual, jacobian, low_rank),
}
options = {"threads": int(sys.argv[1]), "seed": 3}
many = {"replicas": 13} | options
sgd = qm.SGD(0.01, 5, 0.8, True, 0.1, "with_replacement")
for name, model in models.items():
    show(name, qm.simulate(model, qm.SGD(0.02, 3), 40, **many))
    show(name + " with momentum", qm.simulate(model, sgd, 40, **many))
shared, _stepper._SHARED_FROM = _stepper._SHARED_FROM, 0.0
for name in ("dense", "low rank"):
    show(name + " in parts", qm.simulate(models[name], sgd, 40, **many))
_stepper._SHARED_FROM = shared
ensemble = qm.Ensemble(12, 400, curvature=0.015)
for sgd in (qm.SGD(0.05, 3), qm.SGD(0.02, 5, 0.8, True, 0.1)):
    show("large P", qm.large_p_limit(ensemble, sgd, 40, replicas=5, **options))
drawn = qm.Ensemble(8, 30, curvature=0.02).sample(0)
show("draws", qm.sample_ntk(drawn, qm.SGD(0.1, 3), 20, replicas=4, **options))
"""


def lines(cache: Path, count: int) -> list[str]:
    variables = {
        "PYTHONPATH": str(Path(qm.__file__).parents[1]),
        "NUMBA_CACHE_DIR": str(cache),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count)],
        env=os.environ | variables, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
def test_cold_and_warm_cache_and_every_number_of_threads(tmp_path):
    cold = lines(tmp_path, 1)
    assert len(cold) == len(set(cold)) == 11
    for count in (1, 2, 3):
        assert lines(tmp_path, count) == cold


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("precision", ["float64", "mixed"])
@pytest.mark.parametrize("curvature", [0.0, 0.1, qm.curvature.RandomLowRankCurvature(2, 0.1)])
def test_how_steps_are_cut_does_not_change_bits(curvature, precision, shared, monkeypatch):
    """Kernels return often, so that an interrupt is heard."""
    model = qm.Ensemble(9, 14, curvature=curvature).sample(0)
    sgd = qm.SGD(0.02, 3, 0.5, True, 0.1)
    monkeypatch.setattr(_stepper, "_SHARED_FROM", 0.0 if shared else np.inf)

    def run():
        return qm.simulate(model, sgd, 30, replicas=12, precision=precision, record_every=30)

    whole, calls = run(), []
    monkeypatch.setattr(threads, "_SHORT", 200.0)
    asked = threads.stop_if_asked
    for module in (threads, _stepper):
        monkeypatch.setattr(module, "stop_if_asked", lambda: (calls.append(1), asked()))
    assert run().identical(whole)
    assert len(calls) >= 30


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_how_steps_are_cut_does_not_change_bits_of_the_limit(momentum, monkeypatch):
    ensemble, sgd = qm.Ensemble(5, 400, curvature=0.02), qm.SGD(0.05, 2, momentum, weight_decay=0.1)

    def run():
        return qm.large_p_limit(ensemble, sgd, 30, replicas=40)

    whole = run()
    for short in (200.0, 20_000.0):
        monkeypatch.setattr(threads, "_SHORT", short)
        assert run().identical(whole)
