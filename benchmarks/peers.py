"""Programs of JAX and NumPy on a model and a set of replicas, ready to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

import quadmodel as qm
from benchmarks import jax_peers, numpy_peers
from benchmarks.timing import Program
from quadmodel._util.checks import FloatArray

IDIOMATIC = "JAX, vmap, random batches"


def idiomatic(
    step: jax_peers.Step,
    model: qm.QuadraticModel,
    arrays: jax_peers.Arrays,
    rates: FloatArray,
    sizes: NDArray[np.int64],
    steps: int,
    *,
    rows: int | None = None,
    name: str = IDIOMATIC,
) -> Program:
    """Return replicas under vmap that draw their batches: masks over all data, or `rows` of it."""
    precision = str(arrays[0].dtype)
    if rows is None:
        draw: Any = jax.tree_util.Partial(jax_peers.draw_mask, model.n_data)
    else:
        draw = jax.tree_util.Partial(jax_peers.draw_rows, model.n_data, rows)
    advance = jax_peers.replica_by_replica(step, draw)
    state = jax_peers.start_of(model, rates.size, precision)
    scales, replica_sizes = jnp.asarray(rates / sizes, dtype=precision), jnp.asarray(sizes)
    called = 0

    def run() -> None:
        nonlocal state, called
        called += 1
        source = jax_peers.keys(called, rates.size, steps)
        state = advance(arrays, state, source, scales, replica_sizes).block_until_ready()

    return Program(name, precision, run, float(rates.size * steps))


def beforehand(
    name: str,
    advance: jax_peers.Step,
    model: qm.QuadraticModel,
    arrays: jax_peers.Arrays,
    rates: FloatArray,
    sizes: NDArray[np.int64],
    batches: Any,
    steps: int,
    *,
    lockstep: bool = False,
) -> Program:
    """Return replicas whose batches were drawn beforehand: the drawing is not in their time."""
    precision = str(arrays[0].dtype)
    state = jax_peers.start_of(model, rates.size, precision)
    scales, source = jnp.asarray(rates / sizes, dtype=precision), jnp.asarray(batches)
    more = () if lockstep else (jnp.asarray(sizes),)

    def run() -> None:
        nonlocal state
        state = advance(arrays, state, source, scales, *more).block_until_ready()

    return Program(name, precision, run, float(rates.size * steps))


def in_numpy(model: qm.QuadraticModel, rate: float, sizes: Sequence[int]) -> Program:
    """Return one replica that takes a step of every batch size, rows only, batches drawn."""
    step, rng = numpy_peers.step_of(model), np.random.default_rng(0)
    state = model.residual if model.curvature is None else np.zeros(model.n_params)

    def run() -> None:
        nonlocal state
        for size in sizes:
            batch = rng.choice(model.n_data, size, replace=False, shuffle=False)
            state = step(state, batch, rate / size)

    return Program("NumPy, batch's rows, 1 replica", "float64", run, float(len(sizes)))


def ranges(sizes: Sequence[int], chosen: Sequence[str]) -> str:
    """Say in words which program serves which batch sizes."""
    runs: list[tuple[str, int, int]] = []
    for size, name in zip(sizes, chosen, strict=True):
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1], size)
        else:
            runs.append((name, size, size))
    return "; ".join(f"B = {a}{f' to {b}' if b > a else ''}: {name}" for name, a, b in runs)
