"""Growth rates of the mean and of the typical loss of the linear model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, IntArray, check_memory
from quadmodel._util.threads import Workers, steps_at_once, stop_if_asked
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._kernels.populations import Populations, advance_populations
from quadmodel.simulation._stepper import linear_model, options_of

# The steps are cut into blocks; during the first half directions relax.
_BLOCKS = 32
_MEASURED = _BLOCKS // 2
# Members handed to a thread at a time, in whole grid points, and the most of these.
_CHUNK, _MOST_POINTS = 128, 12
# Whose growth is measured: that of the mean loss, and that of a typical one.
KINDS = ("mean", "typical")
# Growth that differs between two stretches by so many standard errors gets a larger one, and by so
# many is said not to have settled.
_WIDENED, _UNSETTLED = 1.0, 3.0
# Normal numbers drawn at a time that nobody wants.
_SKIPPED = 2**20
# Rounding leaks into the null space of the NTK and does not decay there: it is removed after so
# many steps.
_LEAK_STEPS = 8


@dataclass(frozen=True)
class Growth:
    """Growth rates of the log loss per step, shape (grid points,), with standard errors.

    `correction`, part of the rate of a mean, is what the logarithm of a noisy mean falls short of;
    `settled` whether rates of earlier and later steps agree.
    """

    rate: FloatArray
    standard_error: FloatArray
    correction: FloatArray | float = 0.0
    settled: NDArray[np.bool_] | bool = True


class Part(NamedTuple):
    """Where grid points stand among more: how many come before, and how many there are in all.

    `chosen` are the indices of those that are measured, where not all are.
    """

    first: int
    total: int
    chosen: IntArray | None = None


def population_growth(
    model: QuadraticModel,
    learning_rate: FloatArray,
    batch_size: IntArray,
    sgd: SGD,
    *,
    steps: int,
    replicas: int,
    seed: int,
    first_replica: int,
    pool: Workers,
    precision: str = "float64",
    kinds: Sequence[str] = KINDS,
    part: Part | None = None,
) -> tuple[Growth, ...]:
    r"""Return the growth rates per step of the log of the mean loss and of the typical log loss.

    Measured at (learning_rate, batch_size), both of shape (grid points,), with at least 32 steps
    and at least 2 replicas per grid point for each of the `kinds`, "mean" and "typical"; replica
    numbers start at `first_replica`. Grid points that are a `part` of more, and those chosen from
    it, have the same runs as among all of them. Raises MemoryError if the populations don't fit in
    memory.

    Notes
    -----
    Stability is that of the homogeneous recursion, without the weight-decay force towards the
    start, on the range of the NTK. It starts from residuals that random displacements of all
    parameters leave, :math:`z = J\delta`: slow modes take part in them as little as in what noise
    keeps alive, so that directions relax sooner than from random residuals. Sizes are set back to 1
    on the way. The first half of the steps is discarded; the second is cut into 16 blocks.

    *Typical growth* is the mean over replicas of the growth of their log loss, with the standard
    error over replicas, which are independent.

    *Growth of the mean* follows a population. A plain mean over replicas soon hangs on one rare
    run; so whenever fewer than half of the replicas carry it (:math:`(\sum L)^2 < N\sum L^2/2`),
    they are redrawn in proportion to their losses and all set to the mean loss. That leaves the
    mean as it is, and its expectation unbiased (sequential Monte Carlo). The logarithm of an
    unbiased mean is biased by minus half its variance; the variance between blocks corrects that
    bias and gives the standard error.

    *Relaxation.* Where the growth of the second half differs from that of the quarter before it by
    more than a standard error, the difference is added to the standard error in quadrature: as much
    may be missing still if it decays like 1/t, less if faster.

    References
    ----------
    .. [1] A. Doucet, A. Johansen, "A tutorial on particle filtering and smoothing: fifteen years
       later" (2009), for the redrawing and its unbiasedness.
    """
    n_points = len(learning_rate)
    check_memory("the populations", 8.0 * 4 * n_points * replicas * model.n_data)
    before, count, chosen = part or Part(0, n_points)
    normals = _normals(seed, first_replica)
    edges = np.linspace(0, steps, _BLOCKS + 1).astype(np.int64)
    lengths = np.diff(edges)

    def growth(kind: str, first: int) -> Growth:
        """Measure one kind, whose points have so many of all kinds before them."""
        number = np.arange(n_points * replicas).reshape(n_points, replicas)
        number += first_replica + first * replicas
        place = first * replicas * model.n_data
        generator = normals.generator(place)
        state = displaced_residuals(model, generator, number.shape)
        normals.remember(place + state.size, generator)
        some = slice(None) if chosen is None else chosen
        populations = Populations(
            state[some], state[some].copy(), learning_rate[some], batch_size[some], number[some]
        )
        blocks = follow(
            model, populations, sgd, edges, select=kind == "mean", seed=seed, pool=pool,
            precision=precision,
        )  # fmt: skip
        early, late = slice(_BLOCKS // 4, _MEASURED), slice(_MEASURED, None)
        with np.errstate(invalid="ignore"):
            earlier, later = (
                _of_mean(blocks[part, :, 0], lengths[part])
                if kind == "mean"
                else growth_of_members(blocks[part].sum(axis=0) / lengths[part].sum())
                for part in (early, late)
            )
            return with_relaxation(earlier, later)

    return tuple(growth(kind, n * count + before) for n, kind in enumerate(kinds))


class _Normals:
    """Standard normal numbers of one seed, from any place on.

    How many bits a normal number takes is chance, so that those before it must be drawn: once,
    since places are remembered.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        """Begin at place 0."""
        self._known: dict[int, Any] = {}
        self.remember(0, np.random.default_rng(seed))

    def generator(self, place: int) -> np.random.Generator:
        """Return a generator whose next normal number is that of a place."""
        generator = np.random.default_rng(0)
        near = max(known for known in tuple(self._known) if known <= place)
        generator.bit_generator.state = self._known[near]
        while near < place:
            near += generator.standard_normal(min(place - near, _SKIPPED)).size
            stop_if_asked()
        self.remember(place, generator)
        return generator

    def remember(self, place: int, generator: np.random.Generator) -> None:
        """Remember a generator that has come to a place."""
        self._known[place] = generator.bit_generator.state


@lru_cache(maxsize=4)
def _normals(seed: int, first_replica: int) -> _Normals:
    return _Normals([seed, first_replica])


def with_relaxation(before: Growth, after: Growth) -> Growth:
    """Return the growth after, its error widened by what it has not settled since before."""
    with np.errstate(invalid="ignore", divide="ignore"):  # inf - inf, no spread
        drift = after.rate - before.rate
        score = np.abs(drift) / np.hypot(before.standard_error, after.standard_error)
    score = np.where(np.isfinite(drift), np.nan_to_num(score), 0.0)
    error = np.hypot(after.standard_error, np.where(score > _WIDENED, drift, 0.0))
    return replace(after, standard_error=error, settled=score <= _UNSETTLED)


def displaced_residuals(
    model: QuadraticModel, generator: np.random.Generator, shape: tuple[int, int]
) -> FloatArray:
    """Return residuals that random displacements of the parameters leave.

    Shape (grid points, members, n_data).
    """
    eigenvalues, vectors = model.eigensystem
    size = np.sqrt(np.maximum(eigenvalues, 0.0) / eigenvalues[0])
    return np.asarray((generator.standard_normal((*shape, model.n_data)) * size) @ vectors.T)


def random_directions(
    model: QuadraticModel, generator: np.random.Generator, shape: tuple[int, int]
) -> FloatArray:
    """Return normal residuals in the range of the NTK, shape (grid points, members, n_data)."""
    eigenvalues, vectors = model.eigensystem
    reached = vectors[:, eigenvalues > 0]
    directions = generator.standard_normal((*shape, model.n_data)) @ reached @ reached.T
    return np.asarray(directions)


def follow(
    model: QuadraticModel,
    populations: Populations,
    sgd: SGD,
    edges: IntArray,
    *,
    select: bool,
    seed: int,
    pool: Workers,
    precision: str = "float64",
    advance: Callable[[int], object] = lambda replica_steps: None,
) -> FloatArray:
    """Step residuals in place from step edges[0] to edges[-1], their sizes set back to 1.

    Returns the growth of the log loss per block between two edges and per grid point: of each
    member, or if `select` of their mean, members being redrawn in proportion to their losses.
    """
    n_points, members, n_data = populations.state.shape
    eigenvalues, vectors = model.eigensystem
    reached = vectors[:, eigenvalues > 0]
    whole = reached.shape[1] == n_data
    arrays = linear_model(model, precision, start=np.zeros(n_data))
    options = options_of(sgd, seed)
    growth = np.zeros((len(edges) - 1, n_points, 1 if select else members))

    def work(some: slice, block: int) -> None:
        chunk = Populations(*(array[some] for array in populations))  # type: ignore[arg-type]
        first, last = int(edges[block]), int(edges[block + 1])
        cost = members * float((1000.0 + n_data * chunk.batch_size).sum())
        stretch = min(last - first if whole else _LEAK_STEPS, steps_at_once(cost))
        for step in range(first, last, max(stretch, 1)):
            stop_if_asked()
            n_steps = min(stretch, last - step)
            advance_populations(arrays, chunk, options, select, step, n_steps, growth[block, some])
            if not whole:
                chunk.state[:] = chunk.state @ reached @ reached.T
                chunk.old[:] = chunk.old @ reached @ reached.T

    size = min(max(_CHUNK // members, 1), _MOST_POINTS)
    chunks = [slice(i, i + size) for i in range(0, n_points, size)]
    for block in range(len(edges) - 1):
        pool.map(partial(work, block=block), chunks)
        advance(n_points * members * int(edges[block + 1] - edges[block]))
    return growth


def growth_of_members(members: FloatArray) -> Growth:
    """Return the mean growth per grid point and its standard error over independent members."""
    with np.errstate(invalid="ignore"):  # infinite where a residual has vanished or exploded
        spread = members.std(axis=1, ddof=1) / members.shape[1] ** 0.5
        return Growth(members.mean(axis=1), np.where(np.isfinite(spread), spread, 0.0))


def _of_mean(blocks: FloatArray, lengths: IntArray) -> Growth:
    """Return the growth of the mean, corrected for the bias of its logarithm."""
    n_blocks, length = len(blocks), lengths.mean()
    plain = _in_order(blocks) / lengths.sum()
    excess = blocks - plain * lengths[:, None]
    variance = _in_order(excess**2) / (n_blocks - 1)
    correction = 0.5 * variance / length
    of_plain = np.sqrt(variance / n_blocks) / length
    of_correction = correction * np.sqrt(2 / (n_blocks - 1))
    finite = np.isfinite(plain)  # else every run has vanished or exploded
    correction = np.where(finite, correction, 0.0)
    return Growth(
        plain + correction, np.where(finite, np.hypot(of_plain, of_correction), 0.0), correction
    )


def _in_order(blocks: FloatArray) -> FloatArray:
    """Return the sum over blocks, in order: that of NumPy depends on the points."""
    total: FloatArray = np.add.accumulate(blocks, axis=0)[-1]
    return total
