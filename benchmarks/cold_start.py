"""What a fresh process pays: imports, compiled kernels, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import Result, Table, show
from benchmarks.timing import Settings, Spread

# Modules that a plain import must not load.
HEAVY = ("sympy", "matplotlib.pyplot", "scipy.stats", "xarray")

_IMPORT = """
import json, sys, time
began = time.perf_counter()
import {module}
plain = time.perf_counter() - began
loaded = len(sys.modules)
heavy = [name for name in {heavy!r} if name in sys.modules]
if {module!r} == "quadmodel":
    quadmodel.SGD, quadmodel.simulate, quadmodel.phase_diagram
print(json.dumps([plain, time.perf_counter() - began, loaded, heavy]))
"""
# Each twice in one process: what the first call takes beyond the second is no part of the run.
_SIMULATE = """
import json, time
import quadmodel as qm
qm.simulate
model = qm.Ensemble(20, 40, curvature={curvature}).sample(0)
def run():
    began = time.perf_counter()
    qm.simulate(model, qm.SGD(0.01, 5), 10, replicas=4)
    return time.perf_counter() - began
print(json.dumps([run(), run()]))
"""
_COMMAND = """
import contextlib, io, json, sys, time
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot
import quadmodel.studies.phases, quadmodel.plot
from quadmodel.cli import main
sys.argv[1:] = {arguments!r}
def run():
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    return time.perf_counter() - began
print(json.dumps([run(), run()]))
"""
# On Linux getrusage would count what the process that started this one held.
_PEAK = """
import json, resource, sys
{work}
try:
    with open("/proc/self/status") as lines:
        peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
print(json.dumps(peak))
"""
_DIAGRAM = """
import quadmodel as qm
qm.phase_diagram(qm.Ensemble(200, 400), steps={steps})
"""
_FIRST = """
import json, time
import quadmodel as qm
import quadmodel.studies.phases, quadmodel.studies.large_p_phases
def run():
    began = time.perf_counter()
    {call}
    return time.perf_counter() - began
print(json.dumps([run(), run()]))
"""
_CALLS = {
    "low-rank": "qm.phase_diagram(qm.Ensemble(20, 40, curvature=qm.curvature."
    "RandomLowRankCurvature(2, 0.1)), 4, 3, steps=32, replicas=2, refine=4)",
    "large-p": "qm.large_p_phase_diagram(qm.Ensemble(20, 40, curvature=0.05), 4, 3, steps=32, "
    "replicas=2, refine=4)",
}
_TINY = ["phase-diagram", "--n-data", "20", "--n-params", "40", "--learning-rates", "4",
         "--batch-sizes", "3", "--steps", "32", "--replicas", "2", "--refine", "4"]  # fmt: skip


class _Fresh:
    """Runs scripts in fresh processes that share caches of bytecode and of compiled kernels."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._top = Path(__file__).resolve().parent.parent

    def __call__(self, script: str, *, kernels: str = "kernels") -> Any:
        """Run a script and return what its last line holds."""
        hidden = ("PYTHONDONTWRITEBYTECODE", "NUMBA_DISABLE_JIT", "NUMBA_CACHE_DIR")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        environment |= {
            "PYTHONPYCACHEPREFIX": str(self._folder / "bytecode"),
            "NUMBA_CACHE_DIR": str(self._folder / kernels),
            "MPLBACKEND": "agg",
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=self._top,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"a fresh process failed: {done.stderr.strip()[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def cold_start(settings: Settings) -> Result:
    """Time imports, first calls and compiling in fresh processes, and measure their memory."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        fresh = _Fresh(Path(folder))
        _imports(result, fresh, settings)
        _compiling(result, fresh, Path(folder), settings)
        _memory(result, fresh, settings)
    return result


def _imports(result: Result, fresh: _Fresh, settings: Settings) -> None:
    times: dict[str, list[float]] = {"numpy": [], "quadmodel": [], "names": []}
    loaded, heavy = 0, ["?"]
    for turn in range(settings.rounds + 1):
        for module in ("numpy", "quadmodel"):
            script = _IMPORT.format(module=module, heavy=HEAVY)
            plain, names, count, found = fresh(script)
            if turn == 0:  # writes the bytecode
                continue
            times[module].append(plain)
            if module == "quadmodel":
                times["names"].append(names)
                loaded, heavy = count, found
    spreads = {name: Spread.of(values) for name, values in times.items()}
    rows = [
        ("import quadmodel", show(spreads["quadmodel"]) + " s"),
        ("... and its SGD, simulate, phase_diagram", show(spreads["names"]) + " s"),
        ("import numpy, for comparison", show(spreads["numpy"]) + " s"),
        ("modules after import quadmodel", str(loaded)),
        (f"of {', '.join(HEAVY)}", ", ".join(heavy) or "none"),
    ]
    result.tables.append(Table("Import, bytecode cached", ("what", "measured"), rows))
    result.measures["cold.import"] = spreads["quadmodel"]
    result.ceilings["cold.import"] = f"import numpy alone {spreads['numpy'].median:.2g} s"


def _compiling(result: Result, fresh: _Fresh, folder: Path, settings: Settings) -> None:
    outputs = ["--picture", str(folder / "tiny.png"), "--data", str(folder / "tiny.nc")]
    outputs.append("--overwrite")
    scripts = {
        "simulate, linear": _SIMULATE.format(curvature=None),
        "simulate, dense curvature": _SIMULATE.format(curvature=0.01),
        "quadmodel phase-diagram": _COMMAND.format(arguments=_TINY + outputs),
        "quadmodel phase-diagram --curvature": _COMMAND.format(
            arguments=[*_TINY, *outputs, "--curvature", "0.01"]
        ),
    }
    if settings.quick:
        scripts = {name: v for name, v in scripts.items() if name.startswith("quadmodel")}
    else:
        scripts |= {name: _FIRST.format(call=call) for name, call in _CALLS.items()}
    rows, beyond = [], {}
    for name, script in scripts.items():
        # A cache of its own for each: nobody profits from what another one compiled.
        calls = [fresh(script, kernels=name.replace(" ", "-")) for _ in range(2)]
        beyond[name] = [max(first - later, 0.0) for first, later in calls]
        rows.append(
            (name, *(f"{seconds:.2f} s" for seconds in beyond[name]), f"{calls[1][1]:.2f} s")
        )
    columns = ("first call of", "compiling, no cache", "from cache", "the run itself")
    note = "Fresh processes; the run itself (second call) is subtracted, modules are imported."
    result.tables.append(Table("Compiling", columns, rows, note))
    commands = [v for name, v in beyond.items() if name.startswith("quadmodel")]
    for k, name in enumerate(("compile", "cached")):
        result.measures[f"cold.{name}"] = Spread.of([max(v[k] for v in commands)])
        result.ceilings[f"cold.{name}"] = "the slower of the linear and the quadratic diagram"
    for name in _CALLS.keys() & beyond.keys():
        result.measures[f"cold.compile.{name}"] = Spread.of(beyond[name][:1])


def _memory(result: Result, fresh: _Fresh, settings: Settings) -> None:
    steps = 32 if settings.quick else 1000
    dense = (
        "from benchmarks import job_dense, ours\n"
        "model = job_dense.dense_model()\n"
        "rates, sizes = ours.stable_grid(model, 24, 12, 16).per_replica\n"
        f"ours.program(model, rates, sizes, 1, {settings.threads}).run()"
    )
    works = {
        f"default phase diagram, {steps} steps": _DIAGRAM.format(steps=steps),
        "dense grid, 24 x 12 x 16 replicas": dense,
    }
    rows = [
        (name, f"{fresh(_PEAK.format(work=work)) / 2**20:,.0f} MiB") for name, work in works.items()
    ]
    note = "Largest resident size of a process that does nothing else; Q takes 244 MiB."
    result.tables.append(Table("Memory", ("job", "peak"), rows, note))
