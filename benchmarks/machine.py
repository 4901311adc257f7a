"""What the machine is, and its ceilings: matrix products and memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.report import Result, Table, show
from benchmarks.timing import Program, Settings, Spread, Timing, alternate

# Edge of a large product; replicas that share a row of Q, and parameters, in the step of the grid.
SQUARE = 2048
STEP = (250, 400)
PRECISIONS = ("float64", "float32")


def about(settings: Settings, command: str) -> dict[str, Any]:
    """Return what a reader must know about machine, versions and date."""
    packages = ("numpy", "scipy", "numba", "jax", "jaxlib")
    blas = {info["internal_api"]: info["version"] for info in threadpool_info()}
    blas.pop("openmp", None)
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages}
        | {name: version for name, version in blas.items() if version},
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def square_product(precision: str, threads: int, size: int = SQUARE) -> Program:
    """Return a large square product on `threads` threads of BLAS, in operations."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(precision) for _ in range(2))
    out = np.empty_like(a)

    def run() -> None:
        with threadpool_limits(limits=threads, user_api="blas"):
            np.matmul(a, b, out=out)

    return Program(f"GEMM, {size} x {size}, {_threads(threads)}", precision, run, 2.0 * size**3)


def step_product(precision: str, threads: int, repeats: int = 50) -> Program:
    """Return products as a step takes them, some replicas times one row of Q, in operations.

    Every thread has products of its own.
    """
    replicas, n_params = STEP
    rng = np.random.default_rng(0)
    points = rng.standard_normal((threads, replicas, n_params)).astype(precision)
    matrices = rng.standard_normal((8, n_params, n_params)).astype(precision)
    out = np.empty_like(points)

    def some(thread: int) -> None:
        for k in range(repeats):
            np.matmul(points[thread], matrices[k % len(matrices)], out=out[thread])

    name = f"GEMM, {replicas} x {n_params} by {n_params} x {n_params}, {_threads(threads)}"
    work = 2.0 * replicas * n_params**2 * repeats * threads
    return Program(name, precision, lambda: _in_threads(some, threads), work)


def memory_read(threads: int, n_bytes: int) -> Program:
    """Return a pass over two arrays, `n_bytes` together and far beyond the caches, in bytes."""
    count = n_bytes // 16 // threads * threads
    x, y = (np.full(count, 0.5).reshape(threads, -1) for _ in range(2))
    name = f"memory read, {_threads(threads)}"
    run = lambda: _in_threads(lambda k: np.dot(x[k], y[k]), threads)  # noqa: E731
    return Program(name, "float64", run, 16.0 * count)


def cache_read(level: int, threads: int) -> Program:
    """Return passes over what fits in the cache of a level (2 or 3), and in no nearer, in bytes.

    Every thread reads arrays of its own.
    """
    n_bytes = {2: 1 << 19, 3: 1 << 24}[level]
    repeats = (1 << 30) // n_bytes
    arrays = np.random.default_rng(0).standard_normal((threads, 2, n_bytes // 16))

    def some(thread: int) -> None:
        for _ in range(repeats):
            np.dot(*arrays[thread])

    name = f"cache read, level {level}, {_threads(threads)}"
    work = float(n_bytes) * repeats * threads
    return Program(name, "float64", lambda: _in_threads(some, threads), work)


def read_size(settings: Settings) -> int:
    """Return how many bytes are read: more than caches hold."""
    return 1 << 29 if settings.quick else 1 << 30


def _in_threads(work: Callable[[int], object], threads: int) -> None:
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def ceilings(settings: Settings) -> Result:
    """Measure matrix products, in the step's shapes and large, and the memory's bandwidth."""
    counts = sorted({1, settings.threads})
    programs = [
        make(precision, threads)
        for precision in PRECISIONS
        for threads in counts
        for make in (square_product, step_product)
    ]
    timings = alternate(programs, settings)
    # After the products, since it empties the caches.
    size = read_size(settings)
    # Passes over the nearer one are too short for threads that share an interpreter.
    caches = [cache_read(2, 1), *(cache_read(3, n) for n in counts)]
    reads = alternate([*caches, *(memory_read(n, size) for n in counts)], settings)
    result = Result()
    rows = [
        (t.name, t.precision, show(_giga(t)), unit)
        for some, unit in ((timings, "GFLOP/s"), (reads, "GB/s"))
        for t in some
    ]
    result.tables.append(Table("Ceilings", ("program", "precision", "rate", "unit"), rows))
    result.keep("Ceilings", [*timings, *reads])
    bandwidths = [t.rate for t in reads if t.name.startswith("memory")]
    result.measures["machine.bandwidth"] = max(bandwidths, key=lambda s: s.median)
    return result


def _giga(timing: Timing) -> Spread:
    rate = timing.rate
    return Spread(rate.low / 1e9, rate.median / 1e9, rate.high / 1e9)
