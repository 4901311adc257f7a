"""simulate(): many replicas of SGD on one model, recorded as a Dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from quadmodel._progress import progress_bar
from quadmodel._validation import FloatArray, InputError, as_integer, check_memory
from quadmodel._version import __version__
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation import observables
from quadmodel.simulation._lanes import Lanes, Stepper, Workers, groups, start_lanes, workers


def simulate(
    model: QuadraticModel,
    sgd: SGD,
    steps: int,
    *,
    replicas: int = 1,
    seed: int = 0,
    record_every: int | None = None,
    model_index: int = 0,
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
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    replicas : int, optional
        Independent runs that differ in their batches.
    seed : int, optional
        Below 2**64. The batch of a step is a function of (seed, model_index, replica, step).
    record_every : int, optional
        Steps between two records; by default every step of a linear model, and about fifty records
        of a quadratic one, whose full loss and NTK cost more than a step.
    model_index : int, optional
        Number of the model among several that share a seed.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        `loss`, `ntk_largest_eigenvalue`, `ntk_trace`, `noise_kernel_norm` and
        `noise_kernel_norm_finite` (replica, step); `mode_energy` and its standard error over
        replicas (step, mode), along the eigenvectors of the initial NTK; `divergence_step`
        (replica), -1 for runs that did not diverge. A run that diverges (squared norm beyond 1e200
        of its start, or 1e100 in parameters) stops there; from then on its loss and mode energies
        are +inf and its NTK is NaN.

    Raises
    ------
    InputError
        If an argument is out of range or the batch is larger than the data.
    MemoryError
        If the records don't fit in memory.

    Notes
    -----
    .. math:: \theta_{t+1} = \theta_t + \mu(\theta_t-\theta_{t-1})
              - \eta\,[J(\varphi_t)^\top W_tz(\varphi_t)/D + \rho\varphi_t]

    with :math:`\varphi_t` as in :class:`quadmodel.SGD`; in function space
    :math:`z_{t+1} = z_t + \mu(z_t-z_{t-1}) - \eta\Theta W_tu_t - \eta\rho(u_t-z_0)`.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.

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
    sgd.check_batch_size(model.n_data)
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, high=2**32 - 1)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    model_index = as_integer("model_index", model_index, low=0, high=2**32 - 1)
    threads = None if threads is None else as_integer("threads", threads)
    if record_every is None:
        record_every = 1 if model.curvature is None else max(1, steps // 50)
    record_every = as_integer("record_every", record_every)
    recorded = np.arange(0, steps + 1, record_every)
    check_memory("the simulation", _bytes_needed(model, replicas, recorded.size))

    lanes = start_lanes(
        model,
        np.full(replicas, sgd.learning_rate),
        np.full(replicas, sgd.batch_size),
        np.arange(replicas),
    )
    stepper = Stepper(model, sgd, seed=seed, model_index=model_index)
    record = _Record(model, sgd, replicas, recorded.size)
    with workers(threads) as pool, progress_bar(steps, what="simulate", show=progress) as bar:
        record.take(0, lanes, pool)
        for k, step in enumerate(recorded[1:], start=1):
            if lanes.alive.any():
                stepper.advance(lanes, int(recorded[k - 1]), int(step - recorded[k - 1]), pool)
            record.take(k, lanes, pool)
            bar.update(record_every)
        if recorded[-1] < steps:  # the last, unrecorded stretch decides about divergence
            stepper.advance(lanes, int(recorded[-1]), int(steps - recorded[-1]), pool)
    attrs = {
        "kind": "simulation",
        "steps": steps,
        "seed": str(seed),
        "model_index": model_index,
        "quadmodel_version": __version__,
        "n_data": model.n_data,
        "n_params": model.n_params,
        **sgd.spec(),
    }
    return record.dataset(recorded, lanes, attrs)


def _bytes_needed(model: QuadraticModel, replicas: int, n_records: int) -> float:
    state = model.n_data if model.curvature is None else 6 * model.n_params + 2 * model.n_data
    return 8.0 * (replicas * (3 * state + 6 * n_records) + 3 * n_records * model.n_data)


class _Record:
    """Collects the observables of all replicas, record by record."""

    def __init__(self, model: QuadraticModel, sgd: SGD, replicas: int, n_records: int) -> None:
        self._model, self._sgd = model, sgd
        self._spectrum, self._vectors = model.eigensystem
        self.loss = np.full((replicas, n_records), np.inf)
        self.largest = np.full((replicas, n_records), np.nan)
        self.trace, self.paper, self.finite = (self.largest.copy() for _ in range(3))
        self.energy = np.full((n_records, model.n_data), np.inf)
        self.energy_error = np.full((n_records, model.n_data), np.nan)

    def take(self, k: int, lanes: Lanes, pool: Workers) -> None:
        """Measure all lanes at record `k`."""
        moments = pool.map(lambda rows: self._measure(k, lanes, rows), groups(len(lanes.replica)))
        if not lanes.alive.all():
            return
        # Sums in the order of the groups, which the number of threads doesn't change.
        count = len(lanes.replica)
        mean = sum(m[0] for m in moments) / count
        self.energy[k] = mean
        if count > 1:
            with np.errstate(over="ignore"):
                spread = sum(m[1] + m[2] * (m[0] / m[2] - mean) ** 2 for m in moments)
            self.energy_error[k] = np.sqrt(spread / (count - 1) / count)

    def _measure(self, k: int, lanes: Lanes, rows: slice) -> tuple[FloatArray, FloatArray, int]:
        """Fill the columns of one group; return sum, scatter and number of its mode energies."""
        model = self._model
        alive = np.flatnonzero(lanes.alive[rows]) + rows.start
        z = observables.residuals(model, lanes.state[alive])
        self.loss[alive, k] = np.einsum("na,na->n", z, z) / (2 * model.n_data)
        if model.curvature is None:
            spectra = np.broadcast_to(self._spectrum, (min(1, len(alive)), model.n_data))
        else:
            spectra = observables.ntk_eigenvalues(model, lanes.state[alive])
        some = alive[: len(spectra)]
        paper, finite = observables.noise_kernel_norms(
            spectra, lanes.learning_rate[some], lanes.batch_size[some].astype(float), self._sgd
        )
        self.largest[alive, k] = spectra[:, 0] if len(alive) else []
        self.trace[alive, k] = spectra.sum(axis=1)
        self.paper[alive, k], self.finite[alive, k] = paper, finite
        energy = (z @ self._vectors) ** 2
        total = energy.sum(axis=0)
        with np.errstate(over="ignore"):  # a run on its way to divergence
            scatter = ((energy - total / max(len(alive), 1)) ** 2).sum(axis=0)
        return total, scatter, max(len(alive), 1)

    def dataset(self, recorded: Any, lanes: Lanes, attrs: dict[str, Any]) -> xr.Dataset:
        """Label everything."""
        per_run = ("replica", "step")
        eigenvalue = "1 / learning rate"
        return xr.Dataset(
            {
                "loss": (per_run, self.loss, {"long_name": "loss", "units": "loss"}),
                "ntk_largest_eigenvalue": (
                    per_run,
                    self.largest,
                    {"long_name": "largest eigenvalue of the NTK", "units": eigenvalue},
                ),
                "ntk_trace": (
                    per_run,
                    self.trace,
                    {"long_name": "trace of the NTK", "units": eigenvalue},
                ),
                "noise_kernel_norm": (
                    per_run,
                    self.paper,
                    {"long_name": "noise kernel norm (paper)", "units": "1"},
                ),
                "noise_kernel_norm_finite": (
                    per_run,
                    self.finite,
                    {"long_name": "noise kernel norm (finite size)", "units": "1"},
                ),
                "mode_energy": (
                    ("step", "mode"),
                    self.energy,
                    {
                        "long_name": "mean squared residual along an NTK eigenvector",
                        "units": "residual^2",
                    },
                ),
                "mode_energy_standard_error": (
                    ("step", "mode"),
                    self.energy_error,
                    {"long_name": "standard error over replicas", "units": "residual^2"},
                ),
                "divergence_step": (
                    "replica",
                    lanes.diverged_at,
                    {"long_name": "step at which the run diverged, or -1", "units": "SGD steps"},
                ),
            },
            coords={
                "replica": np.arange(len(lanes.replica)),
                "step": ("step", recorded, {"units": "SGD steps"}),
                "mode": np.arange(self._model.n_data),
            },
            attrs=attrs,
        )
