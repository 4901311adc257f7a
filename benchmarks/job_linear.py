"""The linear model in function space, and curvature of low rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import quadmodel as qm
from benchmarks import jax_peers, machine, ours, peers
from benchmarks.report import Result
from benchmarks.timing import Program, Settings, Timing, alternate, mixture

_PRECISIONS = ("float64", "float32")


def linear(settings: Settings) -> Result:
    """Time a grid of the linear model on which nothing diverges."""
    n_data = 1000
    model = qm.Ensemble(n_data, 2 * n_data).sample(seed=0)
    grid = ours.stable_grid(model, *((6, 12, 8) if settings.quick else (24, 12, 16)))
    rates, sizes = grid.per_replica
    arrays = {p: jax_peers.arrays_of(model, p) for p in _PRECISIONS}
    n = slice(min(256, rates.size))
    programs = [
        ours.program(model, rates, sizes, 20, settings.threads, p) for p in ours.precisions()
    ]
    # As a phase diagram runs them: one replica, of those that come first, stands for all.
    first = np.arange(rates.size) < grid.learning_rates.size * grid.batch_sizes.size
    kept = first | (sizes < n_data)
    once = ours.program(model, rates[kept], sizes[kept], 20, settings.threads)
    programs.append(replace(once, name=f"{once.name}, full batches once", work=programs[0].work))
    for p in _PRECISIONS:
        programs.append(
            peers.idiomatic(
                jax_peers.linear_masked, model, arrays[p], rates[n], sizes[n], 5,
                name=f"{peers.IDIOMATIC} ({rates[n].size} replicas)",
            )
        )  # fmt: skip
    programs.append(peers.in_numpy(model, float(rates[0]), grid.batch_sizes.tolist()))
    drawn = _beforehand(model, arrays, grid, settings)
    peak = machine.square_product("float64", settings.threads)
    cache = machine.cache_read(3, settings.threads)
    *found, peak, cache = alternate([*programs, *(p for _, p in drawn), peak, cache], settings)
    timings, by_size = found[: len(programs)], found[len(programs) :]
    own = len(ours.precisions()) + 1
    for place, p in ((own + 1, "float64"), (own + 3, "float32")):
        parts = [
            [
                t
                for (size, _), t in zip(drawn, by_size, strict=True)
                if size in (None, b) and t.precision == p
            ]
            for b in grid.batch_sizes.tolist()
        ]
        if parts[0]:
            mixed, chosen = mixture("JAX, batches drawn beforehand, best per batch size", parts)
            timings.insert(place, mixed)
            if p == "float64":
                how = peers.ranges(grid.batch_sizes.tolist(), [t.name for t in chosen])
    flops = 2.0 * float(np.mean(sizes)) * n_data
    result = Result()
    result.compare(
        f"Linear model, D = {n_data}, all replicas working",
        timings,
        flops=flops,
        note=f"{grid.describe()}; useful: 2 B D per replica-step, {flops:.3g} on average. Full "
        "batches once: their replicas are alike, one stands for all and all are counted. Batches "
        "drawn beforehand are ours, and their drawing is not counted; " + how + ".",
    )
    rivals = {"linear.idiomatic": timings[own], "linear.beforehand": timings[own + 1]}
    for key, rival in rivals.items():
        result.measures[key] = timings[0].over(rival)
        result.measures[f"{key}.mixed"] = timings[1].over(rival)
        result.measures[f"{key}.once"] = timings[own - 1].over(rival)
    if len(timings) > own + 3:
        rivals["linear.float32"] = timings[own + 3]
        result.measures["linear.float32"] = timings[2].over(timings[own + 3])
    for key, rival in rivals.items():
        # Registers and caches hold twice as many numbers of single precision.
        numbers = 2 if key == "linear.float32" else 1
        possible = numbers * np.median(peak.rates / flops / rival.rates)
        # Eight vectors of a column take ten loads, and a cycle two loads or two products; 256
        # replicas share what is read of the NTK, residuals are read twice and written.
        columns = 2.0 * grid.batch_sizes * n_data / (0.8 * peak.rate.median)
        products = 2.0 * n_data**2 / peak.rate.median
        moved = 8.0 * n_data * (n_data / 256 + 3) / cache.rate.median
        least = (float(np.mean(np.minimum(columns, products))) + moved) / numbers
        result.ceilings[key] = (
            f"{possible:.3g} at the GEMM peak, {1 / least / rival.rate.median:.3g} if columns are "
            "added as fast as loads allow, NTK and residuals from the third-level cache"
        )
    return result


def _beforehand(
    model: qm.QuadraticModel, arrays: Any, grid: ours.Grid, settings: Settings
) -> list[tuple[int | None, Program]]:
    """Return programs whose batches were drawn beforehand, with the batch size that they serve.

    One takes a masked product and costs the same for all; others gather the batch's rows.
    """
    n, steps = 256, 4
    rates = np.full(n, grid.learning_rates[0])
    masked = jax_peers.in_lockstep(jax_peers.linear_product)
    gathered = {
        name: jax_peers.replica_by_replica(jax_peers.linear_rows, jax_peers.given, at_once)
        for name, at_once in (("gathered", None), ("one replica at a time", 1))
    }
    sizes = np.resize(grid.batch_sizes, n)
    masks = ours.drawn_masks(model.n_data, sizes, steps)
    found: list[tuple[int | None, Program]] = []
    for p in _PRECISIONS[:1] if settings.quick else _PRECISIONS:
        product = peers.beforehand(
            "masked product", masked, model, arrays[p], rates, sizes, masks, steps, lockstep=True
        )
        found.append((None, product))
        # Beyond, gathering takes longer than the product.
        for b in (b for b in grid.batch_sizes.tolist() if b <= 200):
            rows = ours.drawn_rows(model.n_data, b, n, steps)
            for name, advance in gathered.items():
                if name == "gathered" and b > 50:  # gigabytes
                    continue
                program = peers.beforehand(
                    f"rows, {name}", advance, model, arrays[p], rates, np.full(n, b), rows, steps
                )
                found.append((b, program))
    return found


def low_rank(settings: Settings) -> Result:
    """Time curvature of rank 4, in many replicas and in one."""
    n_data, n_params, rank, size = 1000, 2000, 4, 100
    rng = np.random.default_rng(0)
    base = qm.Ensemble(n_data, n_params).sample(seed=0)
    coefficients = 0.02 * rng.standard_normal((n_data, rank))
    vectors = rng.standard_normal((n_data, rank, n_params)) / n_params**0.25
    model = qm.QuadraticModel(
        base.residual, base.jacobian, qm.LowRankCurvature(coefficients, vectors)
    )
    rate = ours.stable_grid(model, 1, 1, 1).learning_rates[0]
    arrays = {p: jax_peers.arrays_of(model, p) for p in _PRECISIONS}
    flops = 4.0 * size * n_params * (rank + 1)
    result = Result()
    for replicas in (64, 1):
        timings = _low_rank(model, arrays, float(rate), size, replicas, settings)
        *timings, peak, memory, cache = timings
        title = f"Curvature of rank {rank}, D = {n_data}, P = {n_params}, B = {size}, "
        result.compare(
            title + (f"{replicas} replicas" if replicas > 1 else "1 replica"),
            timings,
            flops=flops,
            note=f"Useful: 4 B P (rank + 1) = {flops:.3g} per replica-step. Jacobian row and "
            "vectors of a point are stacked; batches of JAX are drawn beforehand unless said.",
        )
        rivals = [t for t in timings if t.precision == "float64" and t.name.startswith("JAX")]
        best = max(rivals, key=lambda t: t.rate.median)
        key = f"low-rank.{replicas}"
        result.measures[key] = timings[0].over(best)
        result.measures[f"{key}.mixed"] = timings[1].over(best)
        rivals_of = {key: best}
        single = [t for t in timings if t.precision == "float32" and t.name.startswith("JAX")]
        if single:
            fastest = max(single, key=lambda t: t.rate.median)
            rivals_of[f"{key}.float32"] = fastest
            result.measures[f"{key}.float32"] = timings[2].over(fastest)
        # What a replica-step moves: its share of the rows, its parameters for every point of the
        # batch, and its gradient, which is read and written.
        drawn = n_data * (1 - (1 - size / n_data) ** replicas) / replicas
        rows = 8.0 * n_params * (rank + 1) * drawn / memory.rate.median
        state = 3 * 8.0 * n_params * size / cache.rate.median
        for key, rival in rivals_of.items():
            numbers = 2 if key.endswith("float32") else 1  # in the bytes of one of double precision
            at_peak, read, moved = (
                numbers / seconds / rival.rate.median
                for seconds in (flops / peak.rate.median, rows, rows + state)
            )
            result.ceilings[key] = f"best: {rival.name}; {at_peak:.3g} at the GEMM peak, " + (
                f"{read:.3g} if the rows come from memory"
                if replicas == 1
                else f"{moved:.3g} if rows come from memory, parameters and gradients, which "
                "beside them exceed the second-level cache, from the third"
            )
    return result


def _low_rank(
    model: Any, arrays: Any, rate: float, size: int, replicas: int, settings: Settings
) -> list[Timing]:
    rates, sizes = np.full(replicas, rate), np.full(replicas, size)
    steps = (1 if settings.quick else 4) if replicas > 1 else 50
    masks = ours.drawn_masks(model.n_data, sizes, steps).transpose(1, 0, 2)
    rows = ours.drawn_rows(model.n_data, size, replicas, steps)
    programs = [
        ours.program(model, rates, sizes, steps, settings.threads, p) for p in ours.precisions()
    ]
    for p in _PRECISIONS[:1] if settings.quick else _PRECISIONS:
        programs.append(
            peers.idiomatic(
                jax_peers.low_rank_rows, model, arrays[p], rates, sizes, steps, rows=size,
                name="JAX, vmap, batch's rows, random batches",
            )
        )  # fmt: skip
        ways = [("batch's rows, one replica at a time", jax_peers.low_rank_rows, rows, 1)]
        if replicas > 1:
            ways.append(("batch's rows, vmap", jax_peers.low_rank_rows, rows, None))
        ways.append(("all rows, masked product", jax_peers.low_rank_masked, masks, None))
        programs += [
            peers.beforehand(
                f"JAX, {name}", jax_peers.replica_by_replica(step, jax_peers.given, at_once),
                model, arrays[p], rates, sizes, batches, steps,
            )
            for name, step, batches, at_once in ways
        ]  # fmt: skip
    programs.append(peers.in_numpy(model, rate, [size] * 5))
    programs.append(machine.square_product("float64", settings.threads))
    programs.append(machine.memory_read(settings.threads, machine.read_size(settings)))
    programs.append(machine.cache_read(3, settings.threads))
    return alternate(programs, settings)
