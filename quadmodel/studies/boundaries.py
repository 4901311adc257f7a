"""trace_boundary(): the critical learning rate per batch size, to a relative precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_batch_sizes,
    as_choice,
    as_integer,
    as_number,
    as_sorted_list,
)
from quadmodel._util.results import Variable, attributes, variable
from quadmodel._util.threads import Workers
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._kernels.shapes import vector_bytes
from quadmodel.simulation._stepper import PRECISIONS
from quadmodel.simulation.growth import MIN_STEPS
from quadmodel.studies._diagram import spectrum_of
from quadmodel.studies._spec import as_source
from quadmodel.studies._tracing import (
    CONFIDENCE,
    KINDS,
    BoundarySpec,
    Traced,
    noise_free,
    trace_unit,
)
from quadmodel.sweeps._parcel import Job
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.running import Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import RunsStages, run_sweep
from quadmodel.theory._inputs import NORMS, Spectrum
from quadmodel.theory._noise import norm_or_infinity

_RATE, _UNIT = "critical learning rate, simulated", "1 / NTK eigenvalue"
_LABELS = {
    "learning_rate": (_RATE, _UNIT),
    "low": (f"{_RATE}, low end", _UNIT),
    "high": (f"{_RATE}, high end", _UNIT),
    "resolved": ("whether the interval can be trusted", "1"),
    "precise": ("whether it is resolved, and as narrow as was asked for", "1"),
    "needed_steps": ("steps to ask for, so that it is precise", "steps"),
    "steps": ("steps of the last runs", "steps"),
    "replicas": ("replicas of the last runs, per learning rate", "1"),
    "replica_steps": ("replica-steps taken in all", "steps"),
}
_NAMES = {
    "learning_rate": "critical_learning_rate",
    "low": "critical_learning_rate_low",
    "high": "critical_learning_rate_high",
}


def trace_boundary(
    source: Ensemble | QuadraticModel | ArrayLike,
    batch_sizes: int | Sequence[int] | ArrayLike = 12,
    *,
    kind: str = "mean_square",
    rtol: float = 1e-2,
    momenta: float | Sequence[float] | ArrayLike | None = None,
    sgd: SGD | None = None,
    steps: int = 1000,
    replicas: int = 16,
    seed: int = 0,
    precision: str = "float64",
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Find by simulation, per batch size, the learning rate at which SGD turns unstable.

    Parameters
    ----------
    source : Ensemble, QuadraticModel, or array_like of shape (n_data, n_data)
        What to train: an ensemble is sampled with `seed`; an array is taken as an NTK.
    batch_sizes : int or sequence of int, optional
        Batch sizes; or how many, spread evenly in the logarithm from 1 to n_data.
    kind : {"mean_square", "typical", "deterministic"}, optional
        What turns unstable: the mean loss, the loss of a typical run, or full batches. With
        curvature, whose runs diverge or don't: the half of all runs ("mean_square"), or the run
        with full batches; there is no "typical" then.
    rtol : float, optional
        Half the width of the 95 % interval, relative to the learning rate; 1e-4 to 0.5.
    momenta : float or sequence of float, optional
        Momenta, each inside (-1, 1), along an axis of their own; that of `sgd` alone if left out.
    sgd : SGD, optional
        Momentum, Nesterov, weight decay and sampling scheme; learning rate and batch size are not
        used.
    steps : int, optional
        At least 32. Runs of the linear model take what they turn out to need, up to 16 times as
        many; with curvature, runs diverge within so many or don't.
    replicas : int, optional
        Replicas per learning rate to begin with, at least 2 (a mean has 64 or more); more where the
        answer is undecided.
    seed : int, optional
        Seed of the model and of all batches, below 2**64. What is traced at a batch size and a
        momentum does not depend on the others.
    precision : {"float64", "mixed"}, optional
        As for :func:`quadmodel.simulate`.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        Per batch size (and momentum): `critical_learning_rate` with the ends ``_low`` and ``_high``
        of its 95 % interval, NaN where nothing turns unstable; `resolved`: false where the interval
        is not to be trusted; `precise`: whether it is, and is as narrow as `rtol`: else steps are
        wanting, of which `needed_steps` is what to ask for, or replicas; `replica_steps` taken, and
        `steps` and `replicas` of the last runs. Of linear models, but for full batches:
        `noise_kernel_norm` (also along `norm`: paper, finite, exact) at the critical learning rate
        and, ``_low`` and ``_high``, at both ends; the exact one is to be set beside 1 for
        "mean_square".

    Raises
    ------
    InputError
        If an argument is out of range, the NTK vanishes, or typical runs of a model with curvature
        are asked for.
    MemoryError
        If model or replicas don't fit in memory.

    Notes
    -----
    Answers come from simulation: the only theory is the noise kernel norm that is set beside them.

    *Linear model.* Learning rates are doubled or halved, from 1 over the largest NTK eigenvalue on,
    until growth of the loss is clear on both sides: beyond three standard errors, after runs that
    are made more and longer where it is not. A scan of that bracket follows, and close-ups as in
    :func:`quadmodel.phase_diagram`, whose runs are as long as directions take to relax. Where an
    interval is wider than `rtol`, or has not settled for want of replicas, the next close-up has as
    many replicas as its scatter asks for. The interval is that of the last close-up alone, whose
    runs are new and whose number was fixed before (two-stage sampling [1]_): that the earlier ones
    were looked at does not bias it.

    *Full batches.* Growth without noise is exact: the bracket narrows by it alone, and the interval
    is certain but for a growing mode that begins below :math:`e^{-25}` of the loss.

    *Curvature.* Runs depend on their size and can be stable at first. Critical is here the learning
    rate at which half of the runs diverge (overflow, or end above ten times the initial loss)
    within `steps` steps. Whether it is more than half is a sequential test per learning rate, of
    runs doubled up to 64 times `replicas`; errors of all tests together are below 5 %
    (``quadmodel/studies/_bracket.py``), if the share rises with the learning rate.
    Where no test decides, the interval stays as wide as it is, and `precise` is false.

    References
    ----------
    .. [1] C. Stein, "A two-sample test for a linear hypothesis whose power is independent of the
       variance" (1945).
    .. [2] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3, for the boundaries.

    Examples
    --------
    >>> import quadmodel as qm
    >>> found = qm.trace_boundary(qm.Ensemble(20, 40), [2, 20], kind="deterministic", rtol=0.02)
    >>> bool(found.precise.all())
    True
    """
    checked = as_source(source)
    linear = checked.curvature is None
    spec = BoundarySpec(
        checked,
        tuple(as_batch_sizes(batch_sizes, checked.n_data).tolist()),
        _momenta(momenta, sgd),
        _kind(kind, linear),
        as_number("rtol", rtol, least=1e-4, most=0.5),
        sgd or SGD(1.0, 1),
        as_integer("steps", steps, low=MIN_STEPS, high=2**27),
        as_integer("replicas", replicas, low=2, high=2**20),
        as_integer("seed", seed, low=0, high=2**64 - 1),
        as_choice("precision", precision, PRECISIONS),
    )
    how, kept = as_how(running), prepare(spec)
    described = checked.spec() if isinstance(checked, Ensemble) else {"model": repr(checked)}
    described |= kept.model.spec(with_curvature=True)
    # The edge of full batches is the same at all batch sizes, and traced at the first of them.
    full = spec.kind == "deterministic"
    units = [TraceUnit(number) for number in range(len(spec.momenta) if full else len(spec))]

    def flow(sweep: RunsStages) -> xr.Dataset:
        records = sweep.run("boundary", units, lambda record: int(not record["precise"]))
        found = [Traced(*(record[name].item() for name in Traced._fields)) for record in records]
        norms = {} if full or not linear else _norms(spec, records)
        if full:  # its runs are counted once
            again = [one._replace(replica_steps=0) for one in found]
            found = found + again * (len(spec.batch_sizes) - 1)
        return _dataset(spec, described, found, norms, with_momenta=momenta is not None)

    asked = {"source": described, "with_momenta": momenta is not None, **spec.specification()}
    asked["vector_bytes"] = vector_bytes()  # results differ by rounding
    manifest = Manifest("boundary", asked, {"boundary": len(units)})
    return run_sweep(manifest, Job(prepare, spec, kept, nbytes=kept.model.nbytes), how, flow)


class _Kept(NamedTuple):
    """What a worker keeps: what is asked for, the model, its spectrum."""

    spec: BoundarySpec
    model: QuadraticModel
    spectrum: Spectrum


def prepare(spec: BoundarySpec) -> _Kept:
    """Draw the model."""
    with one_blas_thread():
        model = spec.model()
        return _Kept(spec, model, spectrum_of(model))


class TraceUnit(NamedTuple):
    """A batch size and a momentum, by their number."""

    number: int

    def compute(self, kept: _Kept, pool: Workers) -> Record:
        """Trace the boundary there, and set K beside its interval: NaN for full batches.

        There it jumps from 0.
        """
        spec, model, spectrum = kept
        found = trace_unit(spec, self.number, model, pool)
        sgd, norms = spec.unit(self.number), np.full((3, len(NORMS)), np.nan)
        if not noise_free(sgd, model.n_data) and model.curvature is None:
            for end, rate in enumerate(found[:3]):
                if np.isfinite(rate):
                    at = sgd._at(learning_rate=rate)
                    norms[end] = [norm_or_infinity(spectrum, at, norm) for norm in NORMS]
        return {name: np.asarray(value) for name, value in found._asdict().items()} | {
            "norms": norms
        }


def _kind(kind: Any, linear: bool) -> str:
    """Return the checked kind of boundary."""
    chosen = as_choice("kind", kind, KINDS)
    if not linear and chosen == "typical":
        raise InputError(
            "kind must be mean_square or deterministic for a model with curvature, "
            "whose runs diverge or don't, got 'typical'"
        )
    return chosen


def _momenta(momenta: Any, sgd: Any) -> tuple[float, ...]:
    """Return the checked momenta in ascending order; that of `sgd` if there are none."""
    if not isinstance(sgd, SGD | None):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    if momenta is None:
        return (sgd.momentum if sgd else 0.0,)
    check = partial(as_number, "momenta", above=-1.0, below=1.0)
    return tuple(as_sorted_list("momenta", momenta, check))


def _norms(spec: BoundarySpec, records: Sequence[Record]) -> dict[str, FloatArray]:
    """Return K by every norm at the critical learning rates and at the ends of their intervals."""
    values = np.array([record["norms"] for record in records])  # unit, end, norm
    shape = (len(NORMS), len(spec.batch_sizes), len(spec.momenta))
    ends = ("", "_low", "_high")
    return {f"noise_kernel_norm{end}": values[:, n].T.reshape(shape) for n, end in enumerate(ends)}


def _dataset(
    spec: BoundarySpec,
    described: dict[str, Any],
    found: Sequence[Traced],
    norms: dict[str, FloatArray],
    *,
    with_momenta: bool,
) -> xr.Dataset:
    """Label what was found; one momentum that was not asked for is no axis."""
    shape = (len(spec.batch_sizes), len(spec.momenta))
    dims: tuple[str, ...] = ("batch_size", "momentum")
    variables: dict[str, Variable] = {}
    for name, label in _LABELS.items():
        values = np.array([getattr(one, name) for one in found]).reshape(shape)
        variables[_NAMES.get(name, name)] = variable(dims, values, *label)
    for name, values in norms.items():
        at = {"low": ", low end", "high": ", high end"}.get(name.rpartition("_")[2], "")
        text = f"noise kernel norm at the critical learning rate{at}"
        variables[name] = variable(("norm", *dims), values, text, "1")
    of_sgd = spec.sgd.spec()
    del of_sgd["learning_rate"], of_sgd["batch_size"]
    of_sgd["momentum"] = spec.momenta[0]
    attrs = attributes(
        "boundary",
        described | of_sgd,
        boundary=spec.kind,
        rtol=spec.rtol,
        confidence=CONFIDENCE,
        steps=spec.steps,
        replicas=spec.replicas,
        precision=spec.precision,
        vector_bytes=vector_bytes(),
        replica_steps=sum(one.replica_steps for one in found),
        seed=spec.seed,
    )
    coords: dict[str, Any] = {
        "batch_size": variable("batch_size", np.array(spec.batch_sizes), "batch size", "1"),
        "momentum": variable("momentum", np.array(spec.momenta), "momentum", "1"),
    }
    if norms:
        coords["norm"] = list(NORMS)
    whole = xr.Dataset(variables, coords, attrs)
    if not with_momenta:
        return whole.isel(momentum=0, drop=True)
    del whole.attrs["momentum"]
    return whole
