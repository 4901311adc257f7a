"""large_p_limit(): SGD on the quadratic model with infinitely many parameters, as a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, as_integer, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, recorded_steps
from quadmodel._util.threads import Workers, as_threads, workers
from quadmodel.ensemble import Ensemble
from quadmodel.large_p._snapshot import Snapshot
from quadmodel.large_p._state import (
    Replicas,
    advance,
    bytes_needed,
    components,
    start_replicas,
    update_of,
)
from quadmodel.large_p._system import System, law_of, model_at_start, system_from
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._recording import Recorder, numbers_recorded, stretches
from quadmodel.simulation._replicas import groups
from quadmodel.simulation.observables import OBSERVABLES, as_observables
from quadmodel.theory._inputs import check_sgd

# What the limit knows, under the names and labels of a simulation.
KNOWN = tuple(name for name in OBSERVABLES if name == "mode_energy" or hasattr(Snapshot, name))


def large_p_limit(
    model: QuadraticModel | Ensemble,
    sgd: SGD,
    steps: int,
    *,
    truncation_order: int = 2,
    replicas: int = 1,
    seed: int = 0,
    record_every: int | None = None,
    observables: Sequence[str] | str | None = None,
    finite_width_draws: int = 0,
    model_index: int = 0,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Run SGD in the limit of many parameters, at a cost that doesn't depend on their number.

    Parameters
    ----------
    model : QuadraticModel or Ensemble
        Jacobian and residual at the start, and the law of the curvature: a model's `curvature_law`,
        whatever its own draw of the curvature; to try another one, use
        ``dataclasses.replace(model, curvature_law=law)``. An ensemble is sampled with `seed`,
        without drawing its curvature. The law must have a Kronecker covariance with the identity
        over parameters.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    truncation_order : int, optional
        Largest number L of data indices of the basis states that are kept. The residual is exact
        for the first L + 1 steps, the NTK for L.
    replicas : int, optional
        Independent runs that differ in their batches.
    seed : int, optional
        Below 2**64. Batches are those of :func:`quadmodel.simulate`: the same function of (seed,
        model_index, replica, step), so that runs compare step by step.
    record_every : int, optional
        Steps between two records; about fifty records by default, every step without curvature.
    observables : sequence of str, or "all", optional
        What to record, by the names below; those marked with a star by default.
    finite_width_draws : int, optional
        If positive, whatever depends on the NTK is a mean over that many draws of an NTK of P
        parameters, whose fluctuations push eigenvalues apart.
    model_index : int, optional
        Number of the model among several that share a seed.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Variables, dimensions and units as from :func:`quadmodel.simulate`: `loss`*,
        `squared_distance`*, `ntk_largest_eigenvalue`*, `ntk_trace`*, `ntk_eigenvalue`,
        `noise_kernel_norm`*, `noise_kernel_norm_finite`*, `noise_kernel_norm_exact`,
        `residual_overlap`, `mode_energy`* and `mode_energy_standard_error`*, and
        `divergence_step`*. Attribute `curvature_strength` is :math:`q = \sigma\sqrt P`. A run
        diverges when the squared norm of what a step changes passes 1e100; from then on its loss,
        its squared distance and the mode energies are +inf, and everything else is NaN.

    Raises
    ------
    InputError
        If an argument is out of range, the batch is larger than the data, the law of the curvature
        is not known or of another kind, or draws are wanted where P is not above D.
    MemoryError
        If coefficients and records don't fit in memory.

    Notes
    -----
    With P to infinity at fixed D and :math:`q^2 = \sigma^2P`, the matrices :math:`Q_a` become free
    semicircular elements, and :math:`\theta = \sum_lT_l` is a sum over basis states of the free
    Fock space, with data indices :math:`a_1\dots a_l` and a row b of the Jacobian. :math:`Q_a` is a
    sum of creation, which puts a in front, and annihilation, which takes the leading c away with
    the weight :math:`q^2C_{ac}`. With :math:`\langle X,Y\rangle_l` the contraction of data indices
    by :math:`q^2C` and of the last index by :math:`G_0 = J_0J_0^\top`,

    .. math::
        z_a = z_{0a} + (G_0T_0)_a
              + q^2\textstyle\sum_{l,c}C_{ac}\langle T_{l+1}[c],T_l\rangle_l, \qquad
        w_a^l[c_1\dots] = \delta_{ac_1}T_{l-1}[c_2\dots]
              + q^2\textstyle\sum_cC_{ac}T_{l+1}[c,c_1\dots]

    (:math:`w_a^0[b] = \delta_{ab} + \dots`), :math:`D\,\Theta_{ab} = \sum_l\langle w_a^l,w_b^l
    \rangle_l` and :math:`T_l \to T_l - (\eta/D)\sum_a(Wz)_aw_a^l`, truncated at order L. At L = 1
    that is a linear network of two layers, :math:`z = z_0 + (J_0+qE)x`. One order more changes loss
    and NTK by a tenth of what the last one did, or less, while the trace has less than doubled.
    Finite P adds fluctuations of relative size :math:`P^{-1/2}`; eigenvalues show them first, as
    they repel each other.

    *Cost*, in multiplications per replica, with r the rank of the Jacobian: for C = 1 a step takes
    about :math:`2BD^{L-1}r`, because only basis states whose leading data index is in the batch
    matter for its gradient; else :math:`2D^Lr`. A record takes :math:`D^Lr` for the loss and the
    distance and :math:`D^{L+1}r` for the NTK, so what isn't asked for costs nothing. The
    coefficients take :math:`8D^Lr` bytes, twice that with momentum.

    *Draws at finite width* add to the Jacobian :math:`\sigma|\theta|C^{1/2}N`, with N of
    independent normal entries, in place of the part of :math:`Q(\theta,\cdot)` that is
    orthogonal in the limit.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261, whose model it is.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(4, 400, jacobian=[1.0, 0.8, 0.6, 0.4], curvature=0.05)
    >>> sgd = qm.SGD(learning_rate=0.1, batch_size=2)
    >>> limit = qm.large_p_limit(ensemble, sgd, steps=40)
    >>> runs = qm.simulate(ensemble.sample(seed=0), sgd, steps=40, seed=0)
    >>> bool(abs(limit.ntk_trace / runs.ntk_trace - 1).max() < 0.05)
    True
    """
    truncation_order = as_integer("truncation_order", truncation_order)
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, high=2**32 - 1)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    model_index = as_integer("model_index", model_index, low=0, high=2**32 - 1)
    draws = as_integer("finite_width_draws", finite_width_draws, low=0)
    names = as_observables(observables, KNOWN)
    count = as_threads(threads)
    law = law_of(model, "model")
    start = model_at_start(model, seed)
    check_sgd(sgd, start.n_data)
    if draws and start.n_params <= start.n_data:
        raise InputError(
            f"n_params must be above n_data={start.n_data} for finite_width_draws, "
            f"got {start.n_params}"
        )
    system = system_from(start, law, truncation_order)
    if record_every is None:
        record_every = max(1, steps // 50) if system.curvature_strength else 1
    record_every = as_integer("record_every", record_every)
    recorded = recorded_steps(steps, record_every)
    held = numbers_recorded(names, replicas, recorded.size, start.n_data)
    need = bytes_needed(system, sgd, replicas, min(count, replicas), draws)
    check_memory("the large-P limit", need + 8.0 * held)
    recorder = Recorder(names, replicas, recorded, start.n_data)
    state = start_replicas(system, sgd, np.arange(replicas))
    run = _Run(start, system, sgd, seed, model_index, draws)
    with (
        workers(count) as pool,
        progress_bar(steps, what="large-P limit", show=progress) as bar,
    ):
        for k, step, n_steps in stretches(recorded):
            run.record(k, step, state, recorder, pool)
            if n_steps:
                run.advance(step, n_steps, state, pool)
            bar.update(n_steps)
    source = start.spec() | sgd.spec()
    attrs = attributes(
        "large-P limit",
        source,
        truncation_order=truncation_order,
        curvature=repr(law),
        curvature_strength=system.curvature_strength,
        finite_width_draws=draws,
        steps=steps,
        seed=seed,
        model_index=model_index,
    )
    return recorder.dataset(state.diverged_at, attrs)


class _Run(NamedTuple):
    """What all replicas share."""

    model: QuadraticModel
    system: System
    sgd: SGD
    seed: int
    model_index: int
    draws: int

    def advance(self, step: int, n_steps: int, state: Replicas, pool: Workers) -> None:
        """Take steps with all replicas, in about sixteen groups."""
        update = update_of(self.sgd, self.seed, self.model_index)
        count = len(state.diverged_at)
        pool.map(
            lambda rows: advance(self.system, update, state, rows, step, n_steps),
            groups(count, -(-count // 16), at_least=1),
        )

    def record(self, k: int, step: int, state: Replicas, recorder: Recorder, pool: Workers) -> None:
        """Measure all replicas at record `k`."""
        with_energy = "mode_energy" in recorder.names

        def measure(replica: int) -> FloatArray | None:
            if state.diverged_at[replica] >= 0:
                return None
            snapshot = self.snapshot(step, state, replica)
            with np.errstate(over="ignore", invalid="ignore"):
                recorder.put(k, replica, snapshot)
                return snapshot.residual if with_energy else None

        residuals = pool.map(measure, range(len(state.diverged_at)))
        if not with_energy or any(residual is None for residual in residuals):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            energies = (np.stack(residuals) @ self.model.eigensystem[1]) ** 2
            count, error = len(energies), None
            if count > 1:
                error = energies.std(axis=0, ddof=1) / np.sqrt(count)
            recorder.put_mode_energy(k, energies.mean(axis=0), error)

    def snapshot(self, step: int, state: Replicas, replica: int) -> Snapshot:
        """Return a replica with a stream of its own for draws at finite width."""
        key = (self.model_index, replica, step)
        return Snapshot(
            self.system,
            self.sgd,
            components(self.system, self.sgd, state, replica, step),
            self.draws,
            lambda: np.random.Generator(
                np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key))
            ),
        )
