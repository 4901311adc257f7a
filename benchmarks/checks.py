"""Before anything is timed: all programs do the same work on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

import quadmodel as qm
from benchmarks import jax_peers, numpy_peers, ours
from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import workers

N_DATA, N_PARAMS, STEPS, REPLICAS = 12, 20, 5, 6
KINDS = ("linear", "dense", "low_rank")
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "mixed": 1e-4}

_MASKED = {
    "linear": jax_peers.linear_masked,
    "dense": jax_peers.dense_masked,
    "low_rank": jax_peers.low_rank_masked,
}
_ROWS = {
    "linear": jax_peers.linear_rows,
    "dense": jax_peers.dense_rows,
    "low_rank": jax_peers.low_rank_rows,
}


def small_model(kind: str) -> qm.QuadraticModel:
    """Return a small model of a kind."""
    rng = np.random.default_rng(3)
    residual, jacobian = rng.normal(size=N_DATA), rng.normal(size=(N_DATA, N_PARAMS))
    if kind == "linear":
        return qm.QuadraticModel(residual, jacobian)
    low_rank = qm.LowRankCurvature(
        0.3 * rng.normal(size=(N_DATA, 3)), rng.normal(size=(N_DATA, 3, N_PARAMS))
    )
    curvature = low_rank if kind == "low_rank" else low_rank.dense()
    return qm.QuadraticModel(residual, jacobian, curvature)


def small_replicas(batch_size: int | None = None) -> tuple[FloatArray, Any]:
    """Return learning rates and batch sizes of a few replicas; one size for all if given."""
    rates = np.geomspace(0.01, 0.05, REPLICAS)
    sizes = (
        np.array([1, 2, 3, 5, 8, N_DATA]) if batch_size is None else np.full(REPLICAS, batch_size)
    )
    return rates, sizes


def our_states(kind: str, batch_size: int | None, precision: str = "float64") -> FloatArray:
    """Return the states of the replicas after a few steps of ours."""
    stepper, replicas = ours.start(small_model(kind), *small_replicas(batch_size), precision)
    with workers(1) as pool:
        stepper.advance(replicas, 0, STEPS, pool)
    return replicas.state


def peers(kind: str) -> Iterator[tuple[str, int | None, Callable[[str], Any]]]:
    """Yield name, batch size (None: one per replica) and states(precision) of every peer."""
    model = small_model(kind)
    rates, sizes = small_replicas()
    masks = ours.drawn_masks(N_DATA, sizes, STEPS)

    def setting(precision: str) -> tuple[Any, Any]:
        start = jax_peers.start_of(model, REPLICAS, precision)
        return jax_peers.arrays_of(model, precision), start

    def scaled(precision: str, batch_size: int | None = None) -> Any:
        some_rates, some_sizes = small_replicas(batch_size)
        return jnp.asarray(some_rates / some_sizes, dtype=precision)

    def masked(precision: str, at_once: int | None = None) -> Any:
        advance = jax_peers.replica_by_replica(_MASKED[kind], jax_peers.given, at_once)
        batches = jnp.asarray(masks.transpose(1, 0, 2))
        return advance(*setting(precision), batches, scaled(precision), jnp.asarray(sizes))

    def gathered(precision: str, at_once: int | None = None) -> Any:
        advance = jax_peers.replica_by_replica(_ROWS[kind], jax_peers.given, at_once)
        batches = jnp.asarray(ours.drawn_rows(N_DATA, 3, REPLICAS, STEPS))
        return advance(*setting(precision), batches, scaled(precision, 3), jnp.asarray(sizes))

    def lockstep(step: Any, batches: Any) -> Callable[[str], Any]:
        return lambda precision: jax_peers.in_lockstep(step)(
            *setting(precision), jnp.asarray(batches), scaled(precision)
        )

    def numpy_rows(precision: str) -> Any:
        step, batches = numpy_peers.step_of(model), ours.drawn_rows(N_DATA, 3, REPLICAS, STEPS)
        start = model.residual if model.curvature is None else np.zeros(N_PARAMS)
        states = []
        for drawn, rate in zip(batches, rates, strict=True):
            state = start
            for batch in drawn:
                state = step(state, batch, rate / 3)
            states.append(state)
        return np.array(states)

    yield "JAX, masked, vmap", None, masked
    yield "JAX, masked, a few at a time", None, lambda precision: masked(precision, 4)
    yield "JAX, rows, vmap", 3, gathered
    yield "JAX, rows, one at a time", 3, lambda precision: gathered(precision, 1)
    yield "NumPy, rows", 3, numpy_rows
    if kind == "linear":
        yield "JAX, lockstep, product", None, lockstep(jax_peers.linear_product, masks)
    if kind == "dense":
        for step in (jax_peers.dense_product, jax_peers.dense_row_by_row):
            yield f"JAX, lockstep, {step.__name__}", None, lockstep(step, masks)
        sorted_replicas = jax_peers.replicas_by_row(masks)
        yield "JAX, lockstep, sorted", None, lockstep(jax_peers.dense_sorted, sorted_replicas)


def disagreement(found: Any, wanted: Any) -> float:
    """Return the largest difference in units of the largest entry."""
    found, wanted = np.asarray(found, dtype=float), np.asarray(wanted)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def check_draws() -> None:
    """Raise RuntimeError unless random batches have the right number of different points."""
    for key in jax.random.split(jax.random.key(1), 5):
        rows = np.asarray(jax_peers.draw_rows(N_DATA, 4, key, 4))
        mask = np.asarray(jax_peers.draw_mask(N_DATA, key, 4))
        if len(set(rows.tolist())) != 4 or mask.sum() != 4 or mask.shape != (N_DATA,):
            raise RuntimeError("a batch drawn by JAX does not have 4 different points")


def check_all() -> int:
    """Compare every program with ours, or raise RuntimeError; return how many there were."""
    check_draws()
    passed = 0
    for kind in KINDS:
        wanted = {size: our_states(kind, size) for size in (None, 3)}
        found = [
            (name, precision, size, states(precision))
            for name, size, states in peers(kind)
            for precision in (
                ("float64", "float32") if "vmap" in name or "lock" in name else ("float64",)
            )
        ]
        if kind == "dense" and "mixed" in ours.precisions():
            found.append(("quadmodel", "mixed", None, our_states(kind, None, "mixed")))
        for name, precision, size, states in found:
            error = disagreement(states, wanted[size])
            if not error < TOLERANCE[precision]:
                raise RuntimeError(f"{kind}: {name} in {precision} is off by {error:.1e}")
            passed += 1
    return passed
