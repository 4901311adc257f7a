"""Ctrl-C and SIGTERM: what was called ends soon, keeps nothing by halves, and works again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quadmodel

pytestmark = pytest.mark.slow
# Two seconds are promised; a machine that runs other tests too may take longer.
BOUND = 5.0
# Every command with more work than fits in a minute.
COMMANDS = {
    "phase-diagram": ["--steps", "2000000"],
    "phase-diagram with curvature": ["--curvature", "0.02", "--steps", "100000"],
    "large-p-diagram": ["--steps", "100000"],
    "sharpening-diagram": ["--steps", "20000", "--replicas", "64"],
    "persistent-edge": ["--steps", "1000000"],
    "large-p-edge": ["--steps", "1000000"],
    "validate": [],
    "derive": ["--check"],
}
# Runs the command, and makes a file when work has begun.
DRIVER = """
import os
import signal
import sys
from pathlib import Path
import quadmodel.cli
from quadmodel._util import threads
from quadmodel.symbolic.output import targets
from matplotlib.figure import Figure
import time

def begun(function):
    def marked(*arguments, **options):
        Path("begun").touch()
        return function(*arguments, **options)
    return marked

def slowly(figure, path):
    Path(path).write_text("half of it")
    Path("begun").touch()
    time.sleep(60)

class Finalizer:
    def __del__(self):  # whatever the signal's handler raises here is lost
        os.kill(os.getpid(), getattr(signal, os.environ.pop("SENT")))

def in_a_finalizer(self, work, pieces, real=threads.Workers.map, **options):
    Path("begun").touch()
    if "SENT" in os.environ:
        Finalizer()
    return real(self, work, pieces, **options)

if "--slow-picture" in sys.argv:
    sys.argv.remove("--slow-picture")
    Figure.savefig = slowly
elif "SENT" in os.environ:
    threads.Workers.map = in_a_finalizer
else:
    threads.Workers.map = begun(threads.Workers.map)
    targets.chosen = begun(targets.chosen)
quadmodel.cli.main()
"""
ROOT = Path(quadmodel.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}


def ended(arguments, folder, *signals):
    """Send signals once work has begun; return seconds, exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (folder / "begun").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2.0)
        assert process.poll() is None, "ended before the signal"
        began = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        _, err = process.communicate(timeout=60)
        return time.monotonic() - began, process.returncode, err.strip()
    finally:
        process.kill()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends(command, tmp_path):
    options = COMMANDS[command] + (["--root", str(ROOT)] if command == "derive" else [])
    seconds, code, err = ended([command.split()[0], *options], tmp_path, signal.SIGINT)
    assert code == 130
    assert seconds < BOUND
    kept = [path.name for path in tmp_path.iterdir() if path.name != "begun"]
    if not kept:
        assert err == "interrupted; nothing was written"
    else:  # units of its sweep were finished
        (store,) = kept
        assert err.startswith("interrupted; ")
        assert err.endswith(
            f"finished units are kept in {store}: the same command with --store {store} goes on "
            "with them"
        )


@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("command", ["phase-diagram", "sharpening-diagram", "persistent-edge"])
def test_a_signal_within_a_finalizer_is_not_lost(command, name, expected, tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, command, *COMMANDS[command]], cwd=tmp_path,
        env=ENVIRONMENT | {"SENT": name}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == expected
    assert "ignored" in process.stderr  # the control: Python has lost the exception
    assert "interrupted; nothing was written" in process.stderr


SMALL = ["phase-diagram", "--n-data", "20", "--n-params", "40", "--learning-rates", "3"]
SMALL += ["--batch-sizes", "2", "--replicas", "2", "--refine", "0", "--steps", "32"]


@pytest.mark.parametrize(
    ("signals", "codes"),
    [
        ((signal.SIGINT,), (130,)),
        # The second may meet Python when it has nothing more to do than to end.
        ((signal.SIGINT, signal.SIGINT), (130, -signal.SIGINT)),
        ((signal.SIGTERM,), (143,)),
    ],
)
def test_nothing_is_half_written(signals, codes, tmp_path):
    seconds, found, err = ended([*SMALL, "--slow-picture"], tmp_path, *signals)
    assert found in codes
    assert err == "interrupted; nothing was written"
    assert seconds < BOUND
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


# Calls are interrupted once they have worked for a second, threads end, and the next call works.
CALLS = """
import os, signal, sys, threading, time
import numpy as np
import quadmodel as qm
from quadmodel._util.threads import working

dense = qm.Ensemble(60, 240, curvature=0.005).sample(0)
linear = qm.Ensemble(100, 200).sample(0)
ensemble = qm.Ensemble(40, 400, curvature=0.01)
sgd = qm.SGD(1e-3, 2)
calls = {
    "dense": lambda n: qm.simulate(dense, sgd, n, replicas=64, threads=2, record_every=n),
    "linear": lambda n: qm.simulate(linear, sgd, 40 * n, replicas=64, threads=2, record_every=n),
    "large P": lambda n: qm.large_p_limit(ensemble, sgd, 4 * n, replicas=64, threads=2),
    "draws": lambda n: qm.sample_ntk(dense, sgd, n, replicas=2, threads=2),
    "Lyapunov": lambda n: qm.lyapunov_exponent(linear, sgd, 40 * n, replicas=64, threads=2),
}
for name, call in calls.items():
    before = call(40)  # compiles
    sent = []
    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(1.0, send)
    timer.start()
    try:
        call(1_000_000)
        print(name, "was not interrupted")
    except KeyboardInterrupt:
        reached = time.monotonic() - sent[0]
    while working() and time.monotonic() < sent[0] + 20:
        time.sleep(0.05)
    print(name, reached, time.monotonic() - sent[0], call(40).identical(before), sep=",")
"""


def test_calls_end_and_work_again():
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert len(rows) == 5
    for _, reached, threads_ended, same in rows:
        assert float(reached) < BOUND
        assert float(threads_ended) < 2 * BOUND
        assert same == "True"
