"""sample_ntk(): the NTK along training over many draws of the curvature."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, IntArray, as_integer, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import (
    Variable,
    attributes,
    count_records,
    recorded_steps,
    step_coordinate,
    variable,
)
from quadmodel._util.threads import CALLER_ONLY, as_threads, stop_if_asked, workers
from quadmodel.laws.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._replicas import Replicas, start_replicas
from quadmodel.simulation._stepper import Stepper

# A run whose NTK has grown beyond this has diverged.
_LARGEST = 1e100


def sample_ntk(
    model: QuadraticModel,
    sgd: SGD,
    steps: int,
    *,
    replicas: int,
    curvature: CurvatureLaw | float | None = None,
    batch_sequences: int = 1,
    record_every: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Simulate the NTK along training for many draws of the curvature around one start.

    The Monte Carlo counterpart of :func:`quadmodel.expected_ntk`.

    Parameters
    ----------
    model : QuadraticModel
        Jacobian and residual at the start; its own curvature is replaced by every draw.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    replicas : int
        Antithetic pairs (Q, -Q) of draws, at least 2: a pair is one replica. Both draws of a pair
        see the same batches, so that odd orders in the curvature cancel.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; a number is short for ``IndependentCurvature(number)``. By default
        the model's own `curvature_law`.
    batch_sequences : int, optional
        Sequences of batches per draw.
    record_every : int, optional
        Steps between two records; by default about fifty.
    seed : int, optional
        Below 2**64. Draws are a function of (seed, replica), batches of (seed, replica, sequence,
        step): the same for every learning rate, batch size and optimizer.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Per pair, as dimension `replica` (of independent values): `ntk_projection` and
        `ntk_eigenvalue` (replica, step, mode), along the initial NTK's eigenvectors and in
        descending order; `ntk_trace` (replica, step). Units of an NTK eigenvalue. +inf once a run
        of the pair has diverged. To be set beside :func:`quadmodel.expected_ntk` by
        :func:`quadmodel.compare`.

    Raises
    ------
    InputError
        If an argument is out of range or no law is known.
    MemoryError
        If a draw of the curvature per thread or the records don't fit in memory.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 4.
    .. [2] J. Hammersley, K. Morton, Proc. Camb. Phil. Soc. 52 (1956) 449: antithetic variates.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=6, n_params=20, curvature=0.01).sample(seed=0)
    >>> sgd = qm.SGD(learning_rate=0.05, batch_size=2)
    >>> drawn = qm.sample_ntk(model, sgd, steps=10, replicas=50)
    >>> qm.compare(drawn, qm.expected_ntk(model, sgd, steps=10)).attrs["verdict"]
    'agree'
    """
    if not isinstance(model, QuadraticModel):
        raise InputError(f"model must be a QuadraticModel, got {type(model).__name__}")
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    sgd.check_batch_size(model.n_data)
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, low=2, high=2**32 - 1)
    batch_sequences = as_integer("batch_sequences", batch_sequences, high=2**20)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    record_every = max(1, steps // 50) if record_every is None else record_every
    record_every = as_integer("record_every", record_every)
    law = model.curvature_law if curvature is None else curvature
    if law is None:
        raise InputError("curvature must be given for a model that has no law, got None")
    law = law if isinstance(law, CurvatureLaw) else IndependentCurvature(law)
    count = as_threads(threads)
    n_records = count_records(steps, record_every)
    one = law.nbytes(model.n_data, model.n_params) * 2 + 8 * batch_sequences * model.n_data * (
        2 * model.n_params + model.n_data
    )
    kept = 8.0 * replicas * n_records * (2 * model.n_data + 1)
    check_memory("the draws of the curvature", min(count, replicas) * float(one) + kept)
    recorded = recorded_steps(steps, record_every)
    vectors = model.eigensystem[1]
    follow = partial(
        _follow_pair, model, vectors, law, sgd, recorded.tolist(), batch_sequences, seed
    )
    with (
        workers(count) as pool,
        progress_bar(replicas, what="sample_ntk", show=progress) as bar,
    ):
        results = pool.map(follow, range(replicas), done=bar.update)
    source = model.spec() | sgd.spec()
    return xr.Dataset(
        _labelled(np.stack([r[0] for r in results]), np.stack([r[1] for r in results])),
        coords={
            "replica": np.arange(replicas),
            "step": step_coordinate(recorded),
            "mode": np.arange(model.n_data),
        },
        attrs=attributes(
            "simulation",
            source,
            steps=steps,
            replicas=replicas,
            batch_sequences=batch_sequences,
            seed=seed,
            curvature=repr(law),
        ),
    )


def _labelled(projection: FloatArray, eigenvalue: FloatArray) -> dict[str, Variable]:
    """Return the variables, from arrays of shape (replicas, records, n_data)."""
    unit, per_mode = "1 / learning rate", ("replica", "step", "mode")
    return {
        "ntk_projection": variable(
            per_mode, projection, "NTK along its initial eigenvectors", unit
        ),
        "ntk_eigenvalue": variable(per_mode, eigenvalue, "eigenvalue of the NTK", unit),
        "ntk_trace": variable(per_mode[:2], eigenvalue.sum(axis=2), "trace of the NTK", unit),
    }


def _follow_pair(
    model: QuadraticModel,
    vectors: FloatArray,
    law: CurvatureLaw,
    sgd: SGD,
    recorded: list[int],
    batch_sequences: int,
    seed: int,
    pair: int,
) -> tuple[FloatArray, FloatArray]:
    """Return projections on the vectors and eigenvalues of a pair's NTKs, per record and mode."""
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pair,)))
    drawn = law.sample(stream, model.n_data, model.n_params)
    values = []
    for sign in (1.0, -1.0):
        curved = QuadraticModel(model.residual, model.jacobian, _signed(drawn, sign))
        replicas = start_replicas(
            curved,
            np.full(batch_sequences, sgd.learning_rate),
            np.full(batch_sequences, sgd.batch_size),
            np.arange(batch_sequences),
        )
        values.append(list(_ntks(curved, sgd, recorded, replicas, seed, pair)))
    ntks = np.array(values)  # sign, record, sequence, row, column
    projected = np.einsum("ia,srnij,ja->ra", vectors, ntks, vectors, optimize=True)
    bad = ~np.isfinite(ntks).all(axis=(0, 2, 3, 4))
    spectra = _eigenvalues(np.where(bad[:, None, None, None], 0.0, ntks))
    spectra = spectra[..., ::-1].mean(axis=(0, 2))
    projected = projected / (2 * batch_sequences)
    spectra[bad], projected[bad] = np.inf, np.inf
    return projected, spectra


def _eigenvalues(matrices: FloatArray) -> FloatArray:
    """Return eigenvalues in ascending order, matrix by matrix so that it can be stopped."""
    values = np.empty(matrices.shape[:-1])
    for k in np.ndindex(matrices.shape[:-2]):
        stop_if_asked()
        values[k] = np.linalg.eigvalsh(matrices[k])
    return values


def _signed(curvature: Any, sign: float) -> Any:
    if sign > 0:
        return curvature
    if isinstance(curvature, np.ndarray):
        return np.negative(curvature, out=curvature)
    return type(curvature)(-curvature.coefficients, curvature.vectors)


def _ntks(
    model: QuadraticModel, sgd: SGD, recorded: list[int], replicas: Replicas, seed: int, pair: int
) -> Iterator[FloatArray]:
    """Yield the NTKs of all replicas at every record; NaN for those that have diverged."""
    stepper = Stepper(model, sgd, seed=seed, model_index=pair)
    before = 0
    for step in recorded:
        stepper.advance(replicas, before, step - before, CALLER_ONLY)
        before = step
        ntks = np.full((replicas.size, model.n_data, model.n_data), np.nan)
        for a in np.flatnonzero(replicas.alive):
            stop_if_asked()
            ntks[a] = model.ntk(replicas.state[a])
        # On the way to divergence: too large for an eigensolver.
        ntks[np.abs(ntks).max(axis=(1, 2)) > _LARGEST] = np.nan
        yield ntks


def growth_of_pair(
    model: QuadraticModel,
    law: CurvatureLaw,
    sgd: SGD,
    learning_rate: FloatArray,
    batch_size: IntArray,
    *,
    steps: int,
    batch_sequences: int,
    seed: int,
    pair: int,
) -> FloatArray:
    """Return the growth of the largest NTK eigenvalue over all grid points for one antithetic pair.

    `learning_rate`, `batch_size` and the result have shape (grid points,), in units of an NTK
    eigenvalue; +inf for grid points where a run diverged. All grid points share the draws of the
    curvature; seeds as for :func:`sample_ntk`.
    """
    points, start = len(learning_rate), float(model.eigensystem[0][0])
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pair,)))
    drawn = law.sample(stream, model.n_data, model.n_params)
    grown = np.zeros(points)
    for sign in (1.0, -1.0):
        curved = QuadraticModel(model.residual, model.jacobian, _signed(drawn, sign))
        runs = start_replicas(
            curved,
            np.repeat(learning_rate, batch_sequences),
            np.repeat(batch_size, batch_sequences),
            np.tile(np.arange(batch_sequences), points),
        )
        (ntks,) = _ntks(curved, sgd, [steps], runs, seed, pair)
        gone = np.logical_not(np.isfinite(ntks).all(axis=(1, 2)))
        top = _eigenvalues(np.where(gone[:, None, None], 0.0, ntks))[:, -1]
        top[gone] = np.inf
        grown += 0.5 * (top.reshape(points, batch_sequences).mean(axis=1) - start)
    return grown


def check_draws(
    model: QuadraticModel, law: CurvatureLaw, points: int, batch_sequences: int, at_once: int
) -> None:
    """Raise MemoryError unless so many pairs fit in memory, each with runs at all grid points."""
    one = 2 * law.nbytes(model.n_data, model.n_params)
    one += 8 * points * batch_sequences * (6 * model.n_params + model.n_data**2)
    check_memory("the draws of the curvature", float(at_once) * one)
