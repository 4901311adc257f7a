"""large_p_limit(): SGD on the quadratic model with infinitely many parameters, as a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, as_integer, check_memory
from quadmodel._util.progress import progress_bar
from quadmodel._util.threads import as_threads, workers
from quadmodel._util.version import __version__
from quadmodel.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.large_p import _system as words
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory._inputs import check_sgd

if TYPE_CHECKING:
    from quadmodel.ensemble import Ensemble

_EIGENVALUE = "1 / learning rate"
_RUN = ("replica", "step")
# Long name, units, dimensions, and value once a run has diverged; names as simulate() has them.
OBSERVABLES: dict[str, tuple[str, str, tuple[str, ...], float]] = {
    "loss": ("loss", "loss", _RUN, np.inf),
    "squared_distance": (
        "squared distance from the initial parameters", "parameter^2", _RUN, np.inf
    ),
    "ntk_largest_eigenvalue": ("largest eigenvalue of the NTK", _EIGENVALUE, _RUN, np.nan),
    "ntk_trace": ("trace of the NTK", _EIGENVALUE, _RUN, np.nan),
    "ntk_eigenvalue": ("eigenvalue of the NTK", _EIGENVALUE, (*_RUN, "mode"), np.nan),
    "noise_kernel_norm": ("noise kernel norm (paper)", "1", _RUN, np.nan),
    "noise_kernel_norm_finite": ("noise kernel norm (finite size)", "1", _RUN, np.nan),
    "noise_kernel_norm_exact": ("noise kernel norm (exact)", "1", _RUN, np.nan),
    "residual_overlap": (
        "share of the squared residual along the top eigenvector", "1", _RUN, np.nan
    ),
    "mode_energy": (
        "mean squared residual along an NTK eigenvector", "residual^2", ("step", "mode"), np.inf
    ),
}  # fmt: skip
_ON_DEMAND = ("ntk_eigenvalue", "noise_kernel_norm_exact", "residual_overlap")


def large_p_limit(
    model: QuadraticModel | Ensemble,
    sgd: SGD,
    steps: int,
    *,
    level: int = 2,
    curvature: CurvatureLaw | float | None = None,
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
        Jacobian and residual at the start, and the law of the curvature; a model's own draw of the
        curvature is not used. An ensemble is sampled with `seed`, without drawing its curvature.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        Number of SGD steps.
    level : int, optional
        Length L of the longest words that are kept. The residual is exact for the first L + 1
        steps, the NTK for L.
    curvature : CurvatureLaw or float, optional
        Law of the curvature: Kronecker covariance with the identity over parameters; a number is
        short for ``IndependentCurvature(number)``. By default the model's own.
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
        If words and records don't fit in memory.

    Notes
    -----
    With P to infinity at fixed D and :math:`q^2 = \sigma^2P`, the matrices :math:`Q_a` become free
    semicircular elements, and :math:`\theta = \sum_lT_l` is a sum over words of letters
    :math:`a_1\dots a_l` (data points) that end in a row b of the Jacobian. With
    :math:`\langle X,Y\rangle_l` the contraction of letters by :math:`q^2C` and of the last index by
    :math:`G_0 = J_0J_0^\top`,

    .. math::
        z_a = z_{0a} + (G_0T_0)_a
              + q^2\textstyle\sum_{l,c}C_{ac}\langle T_{l+1}[c],T_l\rangle_l, \qquad
        w_a^l[c_1\dots] = \delta_{ac_1}T_{l-1}[c_2\dots]
              + q^2\textstyle\sum_cC_{ac}T_{l+1}[c,c_1\dots]

    (:math:`w_a^0[b] = \delta_{ab} + \dots`), :math:`D\,\Theta_{ab} = \sum_l\langle w_a^l,w_b^l
    \rangle_l` and :math:`T_l \to T_l - (\eta/D)\sum_a(Wz)_aw_a^l`, cut at level L. At L = 1 that is
    a linear network of two layers, :math:`z = z_0 + (J_0+qE)x`. One level more changes loss and
    NTK by a tenth of what the last one did, or less, while the trace has less than doubled. Finite
    P adds fluctuations of relative size :math:`P^{-1/2}`; eigenvalues feel them first, as they
    repel each other.

    *Cost*, in multiplications per replica, with r the rank of the Jacobian: for C = 1 a step takes
    about :math:`2BD^{L-1}r`, because only words that begin in the batch matter for its gradient;
    else :math:`2D^Lr`. A record takes :math:`D^Lr` for the loss and the distance and
    :math:`D^{L+1}r` for the NTK, so what isn't asked for costs nothing. The words take
    :math:`8D^Lr` bytes, twice that with momentum.

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
    level = as_integer("level", level)
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, high=2**32 - 1)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    model_index = as_integer("model_index", model_index, low=0, high=2**32 - 1)
    draws = as_integer("finite_width_draws", finite_width_draws, low=0)
    names = _as_observables(observables)
    count = as_threads(threads)
    model, law = _model_and_law(model, curvature, seed)
    check_sgd(sgd, model.n_data)
    if draws and model.n_params <= model.n_data:
        raise InputError(
            f"n_params must be above n_data={model.n_data} for finite_width_draws, "
            f"got {model.n_params}"
        )
    system = words.build(model, law, level)
    if record_every is None:
        record_every = max(1, steps // 50) if system.strength else 1
    record_every = as_integer("record_every", record_every)
    recorded = np.arange(0, steps + 1, record_every)
    sizes = {"replica": replicas, "step": recorded.size, "mode": model.n_data}
    held = sum(float(np.prod([sizes[d] for d in OBSERVABLES[n][2]])) for n in names)
    need = words.bytes_needed(system, sgd, replicas, min(count, replicas), draws)
    check_memory("the large-P limit", need + 8.0 * held)

    lanes = words.start_lanes(system, sgd, replicas)
    size = max(1, -(-replicas // 16))
    groups = [slice(first, first + size) for first in range(0, replicas, size)]
    record = _Record(names, sizes, model)
    with (
        workers(count) as pool,
        progress_bar(steps, what="large-P limit", show=progress) as bar,
    ):

        def measure(step: int, lane: int) -> dict[str, Any] | None:
            if lanes.diverged_at[lane] >= 0:
                return None
            snapshot = words.Snapshot(
                system,
                sgd,
                words.words_at(system, sgd, lanes, lane, step),
                draws,
                lambda: _generator(seed, model_index, lane, step),
            )
            with np.errstate(over="ignore", invalid="ignore"):
                wanted = ("residual" if n == "mode_energy" else n for n in names)
                return {name: getattr(snapshot, name) for name in wanted}

        def advance(step: int, n_steps: int, rows: slice) -> None:
            words.advance(system, sgd, lanes, rows, seed, model_index, step, n_steps)

        for k, step in enumerate(recorded.tolist()):
            record.take(k, pool.map(partial(measure, step), list(range(replicas))))
            n_steps = min(record_every, steps - step)  # the last stretch decides about divergence
            if n_steps:
                pool.map(partial(advance, step, n_steps), groups)
                bar.update(n_steps)
    attrs = {
        "kind": "large-P limit",
        "level": level,
        "curvature": repr(law),
        "curvature_strength": system.strength,
        "finite_width_draws": draws,
        "steps": steps,
        "seed": str(seed),
        "model_index": model_index,
        "quadmodel_version": __version__,
        "n_data": model.n_data,
        "n_params": model.n_params,
        **sgd.spec(),
    }
    return record.dataset(recorded, lanes.diverged_at, attrs)


def _model_and_law(
    source: Any, curvature: CurvatureLaw | float | None, seed: int
) -> tuple[QuadraticModel, CurvatureLaw | None]:
    """Return the model to start from, and the law of its curvature; None where there is none."""
    if isinstance(source, QuadraticModel):
        model, law = source, source.curvature_law
        if curvature is None and law is None and model.curvature is not None:
            raise InputError("curvature must be given for a model that has no law, got None")
    elif hasattr(source, "sample") and hasattr(source, "curvature"):  # an Ensemble, from above
        model, law = replace(source, curvature=None).sample(seed), source.curvature
    else:
        raise InputError(
            f"model must be a QuadraticModel or an Ensemble, got {type(source).__name__}"
        )
    if curvature is None:
        return model, law
    if not isinstance(curvature, CurvatureLaw):
        curvature = IndependentCurvature(curvature)
    return model, curvature


def _as_observables(value: Any) -> tuple[str, ...]:
    if value is None:
        return tuple(name for name in OBSERVABLES if name not in _ON_DEMAND)
    if isinstance(value, str) and value == "all":
        return tuple(OBSERVABLES)
    known = ", ".join(OBSERVABLES)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f'observables must be "all" or a sequence among {known}; got {value!r}')
    for name in value:
        if name not in OBSERVABLES:
            raise InputError(f"observables must be among {known}; got {name!r}")
    return tuple(name for name in OBSERVABLES if name in value)


def _generator(seed: int, model_index: int, replica: int, step: int) -> np.random.Generator:
    """Return the generator of the draws at finite width."""
    place = np.random.SeedSequence(seed, spawn_key=(model_index, replica, step))
    return np.random.Generator(np.random.PCG64(place))


class _Record:
    """Collects the observables of all replicas, record by record."""

    def __init__(
        self, names: tuple[str, ...], sizes: dict[str, int], model: QuadraticModel
    ) -> None:
        self._names, self._model = names, model
        self._arrays = {
            name: np.full([sizes[d] for d in OBSERVABLES[name][2]], OBSERVABLES[name][3])
            for name in names
        }
        self._energy_error = np.full((sizes["step"], sizes["mode"]), np.nan)

    def take(self, k: int, found: list[dict[str, Any] | None]) -> None:
        """Store what was measured at record `k`; None of lanes that have diverged."""
        for lane, values in enumerate(found):
            for name in self._names:
                if values is not None and name != "mode_energy":
                    self._arrays[name][lane, k] = values[name]
        if "mode_energy" not in self._names or any(values is None for values in found):
            return
        residuals: FloatArray = np.stack([v["residual"] for v in found if v is not None])
        with np.errstate(over="ignore", invalid="ignore"):
            energies = (residuals @ self._model.eigensystem[1]) ** 2
            self._arrays["mode_energy"][k] = energies.mean(axis=0)
            if len(found) > 1:
                self._energy_error[k] = energies.std(axis=0, ddof=1) / np.sqrt(len(found))

    def dataset(self, recorded: Any, diverged_at: Any, attrs: dict[str, Any]) -> xr.Dataset:
        """Label everything."""
        variables: dict[str, Any] = {}
        for name in self._names:
            long_name, units, dims, _ = OBSERVABLES[name]
            variables[name] = dims, self._arrays[name], {"long_name": long_name, "units": units}
        if "mode_energy" in self._names:
            label = {"long_name": "standard error over replicas", "units": "residual^2"}
            variables["mode_energy_standard_error"] = ("step", "mode"), self._energy_error, label
        variables["divergence_step"] = (
            "replica",
            diverged_at,
            {"long_name": "step at which the run diverged, or -1", "units": "SGD steps"},
        )
        coords = {
            "replica": np.arange(len(diverged_at)),
            "step": ("step", recorded, {"units": "SGD steps"}),
            "mode": np.arange(self._model.n_data),
        }
        return xr.Dataset(variables, coords, attrs)
