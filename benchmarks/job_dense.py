"""Dense curvature: a grid of learning rates and batch sizes, one replica, a phase diagram."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import quadmodel as qm
from benchmarks import jax_peers, machine, ours, peers
from benchmarks.report import Result, share_of
from benchmarks.timing import Program, Settings, Spread, Timing, alternate, fastest, mixture
from quadmodel._util.threads import workers
from quadmodel.simulation._stepper import PRECISIONS
from quadmodel.simulation.growth import GridPoints, Measurement, measure_growth
from quadmodel.studies._diagram import _spread_learning_rates

N_DATA, N_PARAMS = 200, 400
_PRECISIONS = ("float64", "float32")
_LOCKSTEP = {
    "one product for all rows": jax_peers.dense_product,
    "row by row": jax_peers.dense_row_by_row,
}


def dense_model(quick: bool = False) -> qm.QuadraticModel:
    """Return the model that all of these jobs share."""
    return qm.Ensemble(N_DATA, N_PARAMS, curvature=0.05).sample(seed=0)


def flops_of(sizes: Any) -> float:
    """Return the useful operations of a replica-step, on average: products with the batch's Q."""
    return 2.0 * float(np.mean(sizes)) * N_PARAMS**2


def dense(settings: Settings) -> Result:
    """Time a grid on which nothing diverges, so that every replica works."""
    model = dense_model()
    grid = ours.stable_grid(model, *((6, 12, 8) if settings.quick else (24, 12, 16)))
    rates, sizes = grid.per_replica
    arrays = {p: jax_peers.arrays_of(model, p) for p in _PRECISIONS}
    # Ours sets up once per call; a user takes far more steps than these.
    steps, our_steps = 2, 8
    at_once = _most_at_once(model, arrays["float64"], rates, sizes, settings)
    masks = ours.drawn_masks(N_DATA, sizes, steps)
    sorted_replicas = jax_peers.replicas_by_row(masks)

    def stepper_of(precision: str, step: Any, batches: Any, count: int, name: str) -> Program:
        advance = jax_peers.in_lockstep(step)
        some = slice(count)
        return peers.beforehand(
            name, advance, model, arrays[precision], rates[some], sizes[some], batches, steps,
            lockstep=True,
        )  # fmt: skip

    some = {n: min(n, rates.size) for n in ((256,) if settings.quick else (256, 1024))}
    candidates = {
        (step, n): stepper_of("float64", step, masks[:, :n], n, name)
        for name, step in _LOCKSTEP.items()
        for n in some.values()
        if step is jax_peers.dense_row_by_row or n <= 256  # what all rows at once take in memory
    }
    best = fastest(list(candidates.values()))
    step, count = next(k for k, p in candidates.items() if p is best)
    all_rows = f"JAX by hand, lockstep, all rows ({count} replicas, {best.name})"

    programs = [ours.program(model, rates, sizes, our_steps, settings.threads, p)
                for p in ours.precisions()]  # fmt: skip
    for p in _PRECISIONS:
        n = slice(at_once)
        programs += [
            peers.idiomatic(
                jax_peers.dense_masked, model, arrays[p], rates[n], sizes[n], 1,
                name=f"{peers.IDIOMATIC} ({at_once} replicas)",
            ),
            stepper_of(p, step, masks[:, :count], count, all_rows),
            stepper_of(p, jax_peers.dense_sorted, sorted_replicas, rates.size,
                     "JAX by hand, replicas sorted by row (our algorithm)"),
        ]  # fmt: skip
    programs.append(peers.in_numpy(model, float(rates[0]), grid.batch_sizes.tolist()))
    small = [b for b in grid.batch_sizes.tolist() if b <= (10 if settings.quick else 50)]
    one_by_one = _batch_rows(model, arrays, float(rates[0]), small, settings)
    peaks = [machine.square_product(p, settings.threads) for p in _PRECISIONS]
    shaped = [machine.step_product(p, settings.threads) for p in _PRECISIONS]
    *timings, of_float64, of_float32 = alternate(
        [*programs, *one_by_one, *peaks, *shaped], settings
    )
    peak = dict(zip(_PRECISIONS, timings[-2:], strict=True))
    rows = timings[len(programs) : -2]
    timings = timings[: len(programs)]
    for p in _PRECISIONS:
        (whole,) = (t for t in timings if t.name == all_rows and t.precision == p)
        some_rows = [t for t in rows if t.precision == p]
        if some_rows:
            parts = [[whole, *some_rows[k : k + 1]] for k in range(grid.batch_sizes.size)]
            mixed, chosen = mixture("JAX by hand, the best per batch size", parts)
            timings.insert(timings.index(whole) + 1, mixed)
            if p == "float64":
                how = peers.ranges(grid.batch_sizes.tolist(), [t.name for t in chosen])

    result = Result()
    note = (
        f"{grid.describe()}: {rates.size} replicas, {our_steps} steps of ours per call; a "
        f"replica-step is one SGD step of one replica, {flops_of(sizes):.3g} useful "
        "operations (2 B P^2) on average. "
        f"1000 steps of 24 x 12 x 16 replicas take ours {4608e3 / timings[0].rate.median:,.0f} s, "
        "extrapolated. By hand, batches are drawn beforehand and their drawing is not counted. "
        f"The best per batch size: {how}."
    )
    result.compare(
        f"Dense curvature, D = {N_DATA}, P = {N_PARAMS}, all replicas working",
        timings, note=note, flops=flops_of(sizes), peaks=peak | {"mixed": peak["float32"]},
    )  # fmt: skip
    shares = [t.over(peak[t.precision]).median for t in (of_float64, of_float32)]
    _dense_measures(result, timings, peak, flops_of(sizes), shares)
    return result


def _batch_rows(
    model: Any, arrays: Any, rate: float, sizes: list[int], settings: Settings
) -> list[Program]:
    """Return programs that take the batch's rows of Q, replica by replica, one per batch size."""
    # One replica at a time: together their rows would not fit into any cache.
    advance = jax_peers.replica_by_replica(jax_peers.dense_rows, jax_peers.given, 1)
    replicas, steps = 16, 2
    return [
        peers.beforehand(
            "rows of the batch, one replica at a time", advance, model, arrays[p],
            np.full(replicas, rate), np.full(replicas, b),
            ours.drawn_rows(N_DATA, b, replicas, steps),
            steps,
        )
        for p in (_PRECISIONS[:1] if settings.quick else _PRECISIONS)
        for b in sizes
    ]  # fmt: skip


def _dense_measures(
    result: Result,
    timings: list[Timing],
    peak: dict[str, Timing],
    flops: float,
    shares: list[float],
) -> None:
    def find(start: str, precision: str) -> Timing:
        return next(t for t in timings if t.name.startswith(start) and t.precision == precision)

    our = {t.precision: t for t in timings if t.name == ours.NAME}
    rivals = {
        "idiomatic": find(peers.IDIOMATIC, "float64"),
        "by_hand": find("JAX by hand, lockstep", "float64"),
        "best_per_size": find("JAX by hand, the best", "float64"),
        "sorted": find("JAX by hand, replicas sorted", "float64"),
    }

    def compare(key: str, timing: Timing, top: Timing, rival: Timing) -> None:
        result.measures[key] = timing.over(rival)
        possible = Spread.of(top.rates / flops / rival.rates)
        result.ceilings[key] = f"{possible.median:.3g} at the GEMM peak"

    single = [t for t in timings if t.precision == "float32" and t.name.startswith("JAX")]
    if single:
        fastest = max(single, key=lambda t: t.rate.median)
        compare("dense.mixed.float32", our["mixed"], peak["float32"], fastest)
    for precision, timing in our.items():
        top = peak["float64" if precision == "float64" else "float32"]
        for name, rival in rivals.items():
            compare(f"dense.{precision}.{name}", timing, top, rival)
        key = f"dense.{precision}.share_of_peak"
        result.measures[key] = share_of(timing, flops, top)
        share = shares[precision != "float64"]
        result.ceilings[key] = (
            f"peak {top.rate.median / 1e9:.3g} GFLOP/s, of which products in the step's own shape "
            f"reach {share:.0%}"
        )


def _most_at_once(model: Any, arrays: Any, rates: Any, sizes: Any, settings: Settings) -> int:
    """Return how many replicas serve vmap best; all of them would not fit or not pay."""
    counts = [n for n in ((32, 128) if settings.quick else (32, 128, 512)) if n <= rates.size]
    programs = [
        peers.idiomatic(jax_peers.dense_masked, model, arrays, rates[:n], sizes[:n], 1)
        for n in counts
    ]
    return counts[programs.index(fastest(programs))]


def single(settings: Settings) -> Result:
    """Time one replica at a small batch: no lockstep to win by."""
    model, size = dense_model(), 10
    steps = 50 if settings.quick else 200
    rates = ours.stable_grid(model, 1, 1, 1).learning_rates
    sizes = np.array([size])
    programs = [ours.program(model, rates, sizes, steps, settings.threads, p)
                for p in ours.precisions()]  # fmt: skip
    rows = ours.drawn_rows(N_DATA, size, 1, steps)
    masks = ours.drawn_masks(N_DATA, sizes, steps).transpose(1, 0, 2)
    for p in _PRECISIONS:
        arrays = jax_peers.arrays_of(model, p)
        few = max(steps // 10, 1)
        programs += [
            peers.idiomatic(
                jax_peers.dense_rows, model, arrays, rates, sizes, steps, rows=size,
                name="JAX, batch's rows, random batches",
            ),
            peers.beforehand(
                "JAX, batch's rows, drawn beforehand",
                jax_peers.replica_by_replica(jax_peers.dense_rows, jax_peers.given, 1),
                model, arrays, rates, sizes, rows, steps,
            ),
            peers.beforehand(
                "JAX, all rows, drawn beforehand",
                jax_peers.replica_by_replica(jax_peers.dense_masked, jax_peers.given, 1),
                model, arrays, rates, sizes, masks[:, :few], few,
            ),
        ]  # fmt: skip
    programs.append(peers.in_numpy(model, float(rates[0]), [size] * steps))
    reads = machine.memory_read(settings.threads, machine.read_size(settings))
    *timings, memory = alternate([*programs, reads], settings)
    result = Result()
    result.compare(
        f"One replica, dense curvature, D = {N_DATA}, P = {N_PARAMS}, B = {size}",
        timings,
        flops=flops_of(sizes),
        note=f"The batch's rows of Q take {size * N_PARAMS**2 * 8 / 1e6:.1f} MB in float64, half "
        f"if one triangle is read; memory gives {memory.rate.median / 1e9:.3g} GB/s.",
    )
    for key, own, precision, itemsize in (
        ("single.best", 0, "float64", 8), ("single.float32", 2, "float32", 4),
    ):  # fmt: skip
        rivals = [t for t in timings if t.name != ours.NAME and t.precision == precision]
        if not rivals:
            continue
        best = max(rivals, key=lambda t: t.rate.median)
        result.measures[key] = timings[own].over(best)
        triangle = size * N_PARAMS**2 * itemsize / 2
        possible = memory.rate.median / triangle / best.rate.median
        result.ceilings[key] = (
            f"best: {best.name}; {possible:.3g} if one triangle of every row came from memory"
        )
    return result


def dense_skip(settings: Settings) -> Result:
    """Time the grid points of a phase diagram, where runs stop that need no more work."""
    model = dense_model()
    n_rates, n_sizes, replicas, steps = (12, 6, 8, 40) if settings.quick else (24, 12, 16, 200)
    sizes = np.unique(np.geomspace(1, N_DATA, n_sizes).round().astype(np.int64))
    rates = _spread_learning_rates(qm.phase_boundaries(model.ntk(), sizes), n_rates)
    at, b = np.repeat(rates, sizes.size), np.tile(sizes, rates.size)
    delivered = float(at.size * replicas * steps)
    worked: dict[str, Measurement] = {}

    def measured(precision: str) -> Program:
        keywords: Any = {} if precision == "float64" else {"precision": precision}

        points = GridPoints(at, b, qm.SGD(1.0, 1), steps, replicas, ours.SEED, **keywords)

        def run() -> None:
            with workers(settings.threads) as pool:
                worked[precision] = measure_growth(model, points, pool)

        return Program(ours.NAME, precision, run, delivered)

    offered = "precision" in inspect.signature(GridPoints).parameters
    our = [measured(p) for p in (PRECISIONS if offered else ["float64"])]
    arrays = jax_peers.arrays_of(model, "float64")
    at_once = _most_at_once(model, arrays, np.resize(at, 512), np.resize(b, 512), settings)
    programs = [
        *our,
        peers.idiomatic(
            jax_peers.dense_masked, model, arrays, np.resize(at, at_once), np.resize(b, at_once), 1,
            name=f"{peers.IDIOMATIC} ({at_once} replicas)",
        ),
        machine.square_product("float64", settings.threads),
    ]  # fmt: skip
    # One call takes minutes: a few rounds do.
    fewer = Settings(min(settings.rounds, 3), settings.seconds, settings.threads, settings.quick)
    *timings, peak = alternate(programs, fewer)
    started = worked["float64"].replica_steps / delivered
    diverged = worked["float64"].fraction_diverged.mean()
    result = Result()
    result.compare(
        "Work not done: the grid points of a phase diagram of the same model",
        timings,
        unit="grid points x replicas x steps/s",
        note=f"{n_rates} learning rates around the edges, as qm.phase_diagram chooses them, x "
        f"{sizes.size} batch sizes x {replicas} replicas x {steps} steps. Counted is what the "
        "grid points stand for, not what was computed: those with B = D run once "
        f"({started:.0%} of all replicas start), and runs that diverged stop "
        f"({diverged:.0%} did by the end; more do in longer runs).",
    )
    result.measures["dense-skip.idiomatic"] = timings[0].over(timings[-1])
    # As if all replicas worked to the end, those of B = D once.
    weight = np.where(sizes == N_DATA, 1 / replicas, 1.0)
    possible = peak.rates / flops_of(sizes * weight) / timings[-1].rates
    result.ceilings["dense-skip.idiomatic"] = (
        f"{np.median(possible):.3g} at the GEMM peak if no run diverged"
    )
    return result
