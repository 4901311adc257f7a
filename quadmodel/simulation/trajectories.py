"""simulate(): many replicas of SGD on one model, recorded as a Dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError, as_choice, as_integer, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, recorded_steps, variable
from quadmodel._util.threads import workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._control import (
    MEASURED,
    first_learning_rate,
    renew,
    with_renewals,
)
from quadmodel.simulation._kernels.shapes import vector_bytes
from quadmodel.simulation._measurement import MeasurementContext, bytes_needed
from quadmodel.simulation._recording import Recorder, numbers_recorded, stretches
from quadmodel.simulation._replicas import Replicas, start_replicas
from quadmodel.simulation._snapshots import Snapshots
from quadmodel.simulation._stepper import STEPPED, STORED, Stepper, stored_bytes
from quadmodel.simulation.observables import as_observables


def simulate(
    model: QuadraticModel,
    sgd: SGD,
    steps: int,
    *,
    replicas: int = 1,
    seed: int = 0,
    record_every: int | None = None,
    observables: Sequence[str] | str | None = None,
    model_index: int = 0,
    precision: str = "float64",
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Run SGD from the model's initial parameters, once per replica.

    Parameters
    ----------
    model : QuadraticModel
        The model. Without curvature its residual is stepped in function space, with curvature its
        parameters are.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme. A rule for the
        learning rate (:class:`quadmodel.HoldK`) is followed by every replica on its own.
    steps : int
        Number of SGD steps.
    replicas : int, optional
        Independent runs that differ in their batches.
    seed : int, optional
        Below 2**64. The batch of a step is a function of (seed, model_index, replica, step).
    record_every : int, optional
        Steps between two records; by default every step of a linear model, and about fifty records
        of a quadratic one, whose full loss and NTK cost more than a step.
    observables : sequence of str, or "all", optional
        What to record, by the names below; those marked with a star by default.
    model_index : int, optional
        Number of the model among several that share a seed.
    precision : {"float64", "mixed", "float32"}, optional
        "mixed" keeps the NTK of a linear model, or the curvature (and the Jacobian, if the rank is
        low), and products with it in single precision, at half the memory and up to twice the
        speed. Residuals or parameters are stepped in double precision, and records are measured
        with the model as it was given. A step is off by about 1e-7 of itself, and residuals of a
        quadratic model can't shrink below about 1e-8 of their terms. "float32" steps residuals or
        parameters in single precision, too: they can't shrink below 1e-7 of their size where
        curvature or weight decay holds them up, nor below about 1e-19 at all, and runs diverge at a
        squared norm of 3e38.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        With dimensions (replica, step) unless said otherwise; :math:`\theta` is the displacement
        from the initial parameters, and z, J, the NTK :math:`\Theta = JJ^\top/D` with its
        eigenvalues :math:`\lambda` and eigenvectors v are those at the step:

        - `loss`\*: :math:`L = |z|^2/(2D)`.
        - `squared_distance`\*: :math:`|\theta|^2`, in units of parameter^2.
        - `ntk_largest_eigenvalue`\*, `ntk_trace`\*, and `ntk_eigenvalue` (replica, step, mode), all
          of them in descending order; in units of 1 / learning rate.
        - `noise_kernel_norm`\*, `noise_kernel_norm_finite`\*, `noise_kernel_norm_exact`: K of the
          present NTK, without unit, in the three forms of :func:`quadmodel.noise_kernel_norm`.
        - `hessian_largest_eigenvalue`: of :math:`H = \nabla^2L = (J^\top J + \sum_az_aQ_a)/D`, in
          units of 1 / learning rate.
        - `batch_sharpness`: mean of :math:`g_B^\top H_Bg_B/|g_B|^2`, in units of 1 / learning rate,
          over 32 batches that are drawn for it, with gradient :math:`g_B = J^\top Wz/D` and
          Hessian :math:`H_B = (J^\top WJ + \sum_aw_az_aQ_a)/D` of the batch; those without gradient
          don't count.
        - `gradient_noise_interaction`: :math:`E_B[g_B^\top Hg_B]/|\nabla L|^2`, in units of
          1 / learning rate, exactly, over all batches.
        - `residual_overlap`: :math:`(v_1\cdot z)^2/|z|^2`, without unit, along the top eigenvector
          of the present NTK.
        - `mode_energy`\* and `mode_energy_standard_error`\* (step, mode): mean over replicas of the
          squared residual along each eigenvector of the *initial* NTK, in units of residual^2.
        - `divergence_step`\* (replica): -1 for runs that did not diverge; always there.
        - `learning_rate`, where a rule sets it: the one that led to the step's records.

        L, its gradients and Hessians are without the term of weight decay. A run that diverges
        (squared norm beyond 1e200 of its start, or 1e100 in parameters) stops there; from then on
        its loss, its squared distance and the mode energies are +inf, and everything else is NaN.
        So is what a vanishing residual or gradient leaves undefined.

    Raises
    ------
    InputError
        If an argument is out of range, the batch is larger than the data, or an observable is not
        known.
    MemoryError
        If the records don't fit in memory.

    Notes
    -----
    .. math:: \theta_{t+1} = \theta_t + \mu(\theta_t-\theta_{t-1})
              - \eta\,[J(\varphi_t)^\top W_tz(\varphi_t)/D + \rho\varphi_t]

    with :math:`\varphi_t` as in :class:`quadmodel.SGD`; in function space
    :math:`z_{t+1} = z_t + \mu(z_t-z_{t-1}) - \eta\Theta W_tu_t - \eta\rho(u_t-z_0)`.

    *Precision.* What belongs to a data point, its Q above all, is read once for all replicas whose
    batch holds it; on processors with AVX-512 by kernels in which replicas share vectors, on others
    by loops and BLAS. Both agree to rounding; "mixed" differs from "float64" by less than 1e-6 of
    the loss on runs away from divergence, until the loss has fallen by some 1e-4.

    *What a record costs*, for dense curvature, per replica and in multiplications. By default one
    pass over Q (:math:`DP^2`: as much as D/B steps) gives J, and from it z; the NTK takes
    :math:`D^2P`, and one factorisation without eigenvectors, :math:`\tfrac43D^3`, gives all
    eigenvalues, of which K needs every one: nothing is left for a Lanczos iteration to save.
    `hessian_largest_eigenvalue` and `gradient_noise_interaction` share one more pass, for
    :math:`\sum_az_aQ_a`; then Lanczos takes a few dozen products of :math:`P(2D+P)`, and the other
    one of :math:`DP^2`. `batch_sharpness` costs as much as 32 steps.
    `noise_kernel_norm_exact` and `residual_overlap` need eigenvectors, :math:`O(D^3)`. Replicas
    share the passes, so that each takes less of the memory's time.

    Batches for `batch_sharpness` are, like those of the steps, a function of (seed, model_index,
    replica, step), from counters that no step uses.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.
    .. [2] A. Andreyev, P. Beneventano, arXiv:2412.20553, for batch sharpness and gradient-noise
       interaction.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.Ensemble(n_data=20, n_params=40).sample(seed=0)
    >>> runs = qm.simulate(model, qm.SGD(learning_rate=0.05, batch_size=5), steps=20, replicas=4)
    >>> dict(runs.loss.sizes)
    {'replica': 4, 'step': 21}
    """
    if not isinstance(model, QuadraticModel):
        raise InputError(f"model must be a QuadraticModel, got {type(model).__name__}")
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    sgd.check_batch_size(model.n_data, rules=tuple(MEASURED))
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, high=2**32 - 1)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    model_index = as_integer("model_index", model_index, low=0, high=2**32 - 1)
    precision = as_choice("precision", precision, tuple(STORED))
    names = as_observables(observables)
    threads = None if threads is None else as_integer("threads", threads)
    if record_every is None:
        record_every = 1 if model.curvature is None else max(1, steps // 50)
    record_every = as_integer("record_every", record_every)
    recorded = recorded_steps(steps, record_every)
    needed = _bytes_needed(model, replicas, recorded.size, names) + stored_bytes(model, precision)
    check_memory("the simulation", needed)

    source, rule = model.spec(with_curvature=True) | sgd.spec(), sgd.rule
    if rule is not None:
        sgd = sgd._at(learning_rate=first_learning_rate(model, sgd, rule))
    states = start_replicas(
        model,
        np.full(replicas, sgd.learning_rate),
        np.full(replicas, sgd.batch_size),
        np.arange(replicas),
        STEPPED[precision],
    )
    stepper = Stepper(model, sgd, seed=seed, model_index=model_index, precision=precision)
    recorder = Recorder(names, replicas, recorded, model.n_data)
    with workers(threads) as pool, progress_bar(steps, what="simulate", show=progress) as bar:
        snapshots = Snapshots(MeasurementContext(model, sgd, seed, model_index, pool))
        place = {step: k for k, step in enumerate(recorded.tolist())}
        rates = np.empty((replicas, recorded.size))
        for _, step, n_steps in stretches(with_renewals(recorded, rule)):
            if step in place:
                rates[:, place[step]] = states.learning_rate
                _take(recorder, place[step], step, states, snapshots)
            if rule is not None and step and step % rule.every == 0:
                renew(rule, states, snapshots, step)
            if n_steps and states.alive.any():
                stepper.advance(states, step, n_steps, pool)
            bar.update(n_steps)
    attrs = attributes(
        "simulation", source, steps=steps, seed=seed, model_index=model_index, precision=precision,
        vector_bytes=vector_bytes(),
    )  # fmt: skip
    found = recorder.dataset(states.diverged_at, attrs)
    if rule is not None:
        units = "1 / NTK eigenvalue"
        found["learning_rate"] = variable(("replica", "step"), rates, "learning rate", units)
    return found


def _bytes_needed(
    model: QuadraticModel, replicas: int, n_records: int, names: tuple[str, ...]
) -> float:
    state = model.n_data if model.curvature is None else 2 * model.n_params
    records = numbers_recorded(names, replicas, n_records, model.n_data)
    stepping = 0 if model.curvature is None else 3 * (4 * model.n_params + 2 * model.n_data)
    return 8.0 * (replicas * (3 * state + stepping) + records + 2 * n_records * model.n_data) + (
        bytes_needed(model, replicas, names)
    )


def _take(recorder: Recorder, k: int, step: int, states: Replicas, snapshots: Snapshots) -> None:
    """Measure all replicas at record `k`."""
    if not recorder.names:
        return
    moments = []
    with_modes = "mode_energy" in recorder.names and bool(states.alive.all())
    for rows, snapshot in snapshots.take(states, step):
        recorder.put(k, rows, snapshot)
        if with_modes:
            moments.append(snapshot.mode_energy_moments())
    if not with_modes:
        return
    # Sums in the order of the parts, which the number of threads doesn't change.
    count, error = states.size, None
    mean = sum(m[0] for m in moments) / count
    if count > 1:
        with np.errstate(over="ignore"):
            spread = sum(m[1] + m[2] * (m[0] / m[2] - mean) ** 2 for m in moments)
        error = np.sqrt(spread / (count - 1) / count)
    recorder.put_mode_energy(k, mean, error)
