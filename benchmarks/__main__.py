"""Run the benchmarks: python -m benchmarks, from the top of the repository."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

import click

# Name: module and function. Imported late: threads are counted when NumPy and JAX are loaded.
JOBS = {
    "machine": ("machine", "ceilings"),
    "dense": ("job_dense", "dense"),
    "dense-skip": ("job_dense", "dense_skip"),
    "linear": ("job_linear", "linear"),
    "low-rank": ("job_linear", "low_rank"),
    "single": ("job_dense", "single"),
    "large-p": ("job_large_p", "large_p"),
    "exact": ("job_exact", "exact"),
    "mean-field": ("job_mean_field", "mean_field"),
    "scaling": ("job_scaling", "scaling"),
    "cold-start": ("cold_start", "cold_start"),
}
# A file for each instruction set.
RESULTS = {
    "native": Path(__file__).with_name("RESULTS.md"),
    "avx2": Path(__file__).with_name("RESULTS-AVX2.md"),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--only", type=click.Choice(list(JOBS)), multiple=True, help="Run this job; repeat.")
@click.option("--quick", is_flag=True, help="Smaller jobs, two rounds: about three minutes.")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Alternating rounds.  [5]")
@click.option("--threads", type=click.IntRange(1), default=2, help="Threads of everybody.")
@click.option(
    "--isa",
    type=click.Choice(["native", "avx2"]),
    default="native",
    help="Instruction set of everybody.",
)
@click.option(
    "--cpu-time",
    is_flag=True,
    help="Count processor time, not seconds: for one thread on a shared machine.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers.")
@click.option("--write", is_flag=True, help="Write benchmarks/RESULTS.md, or RESULTS-AVX2.md.")
def main(
    only: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    threads: int,
    isa: str,
    cpu_time: bool,
    json_file: str | None,
    write: bool,
) -> None:
    """Time quadmodel beside JAX and NumPy, and say which goals are reached."""
    if importlib.util.find_spec("jax") is None:
        click.echo("benchmarks need pip install 'quadmodel[bench]'", err=True)
        sys.exit(2)
    _bind(threads)
    if isa == "avx2":
        _forget_avx512()
    from benchmarks import checks, goals, machine, report, timing
    from benchmarks.timing import Settings

    if cpu_time:
        timing.count_processor_time()

    settings = Settings(rounds or (2 if quick else 5), 0.2 if quick else 1.0, threads, quick)
    words = ["python -m benchmarks"] + ["--quick"] * quick + [f"--only {name}" for name in only]
    words += [f"--isa {isa}"] * (isa != "native") + ["--cpu-time"] * cpu_time
    about = machine.about(settings, " ".join(words))
    click.echo(f"{about['cpu']}, {about['cores']} cores, {threads} threads, {about['date']}")
    began = time.perf_counter()
    passed = checks.check_all()
    click.echo(f"{passed} programs take the same steps on the same batches ({_since(began)})")
    results, tables = {}, []
    for name in only or JOBS:
        started = time.perf_counter()
        module, function = JOBS[name]
        job = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        results[name] = job(settings)
        tables += results[name].tables
        click.echo("\n".join(t.text() for t in results[name].tables))
        click.echo(f"({name}: {_since(started)})")
    records = goals.verdicts(results.values())
    tables.append(goals.table(records))
    click.echo(tables[-1].text())
    click.echo(f"\n{_since(began)} in all")
    if json_file:
        Path(json_file).write_text(report.as_json(about, results, records))
    if write:
        report.write_markdown(RESULTS[isa], about, [tables[-1], *tables[:-1]])


def _bind(threads: int) -> None:
    """Keep everybody to as many cores: JAX and BLAS count those they may use when loaded."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            raise click.BadParameter(f"{threads} threads on {len(cores)} cores")
        os.sched_setaffinity(0, cores[:threads])
    os.environ |= {"JAX_PLATFORMS": "cpu", "NUMBA_NUM_THREADS": str(threads)}


def _forget_avx512() -> None:
    """Let Numba, XLA and BLAS use what a processor with AVX2 has; before any of them is loaded."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    wanted = (f"{'-' if 'avx512' in k or 'avx10' in k or not v else '+'}{k}"
              for k, v in features.items())  # fmt: skip
    os.environ |= {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(wanted),
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2".strip(),
    }


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.0f} s"


if __name__ == "__main__":
    main()
