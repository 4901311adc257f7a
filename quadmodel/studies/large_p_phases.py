"""large_p_phase_diagram(): learning rate against batch size in the limit of many parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import FloatArray, as_integer
from quadmodel._util.threads import Workers
from quadmodel.ensemble import Ensemble
from quadmodel.large_p._system import law_of
from quadmodel.large_p.growth import check_runs, measure_growth_in_limit, system_of
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation.growth import GridPoints, Measurement
from quadmodel.spectra import IndependentGaussian
from quadmodel.studies._diagram import Kept, spectrum_of
from quadmodel.studies._spec import as_source, as_spec
from quadmodel.studies.phases import diagram_of, sweep_of
from quadmodel.sweeps._parcel import Job
from quadmodel.sweeps.running import Running, as_how
from quadmodel.theory.mean_field_edge import nonlinear_edges


def large_p_phase_diagram(
    source: Ensemble | QuadraticModel,
    learning_rates: int | Sequence[float] | ArrayLike = 24,
    batch_sizes: int | Sequence[int] | ArrayLike = 12,
    *,
    sgd: SGD | None = None,
    steps: int = 1000,
    replicas: int = 16,
    seed: int = 0,
    refine: int = 12,
    truncation_order: int = 2,
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Predict and run SGD on a grid of learning rates and batch sizes, with P to infinity.

    Parameters
    ----------
    source : Ensemble or QuadraticModel
        What to train, at fixed curvature strength :math:`q = \sigma\sqrt P`: an ensemble is sampled
        with `seed`. Only the law of its curvature is used; nothing of size P squared is held.
    learning_rates : int or sequence of float, optional
        Learning rates, in units of 1 / NTK eigenvalue; or how many, spread evenly in the logarithm
        around both edges.
    batch_sizes : int or sequence of int, optional
        Batch sizes; or how many, spread evenly in the logarithm from 1 to n_data.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; its learning rate and batch size are not used.
    steps : int, optional
        SGD steps per replica, at least 32.
    replicas : int, optional
        Replicas per grid point, at least 2.
    seed : int, optional
        Seed of the model and of all batches, below 2**64.
    refine : int, optional
        Learning rates of a second, finer scan per batch size, between the columns where the
        growth rates change sign; 0 for none.
    truncation_order : int, optional
        Order L at which the hierarchy of basis states is cut, at most 1000.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        The variables of :func:`quadmodel.phase_diagram`. Attributes `limit` ("large-p"),
        `truncation_order` and `curvature_strength` take the place of `n_params`.

    Raises
    ------
    InputError
        If an argument is out of range, or the source has no curvature whose limit is known.
    MemoryError
        If replicas don't fit in memory.

    Notes
    -----
    A replica is a deterministic function of its batches, which are those of a simulation with the
    same seed and grid. Its parameters are

    .. math:: \theta = \sum_{l\le L}T_l, \qquad
              T_l \to T_l - \frac{\eta}{D}\sum_a(Wz)_aw_a^l

    in basis states of up to L data indices, whose inner products are known
    (:func:`quadmodel.large_p_limit`). A step of a replica takes about :math:`2BD^{L-1}r`
    multiplications for independent curvature, :math:`2D^Lr` for correlated, with r the rank of the
    Jacobian; a thread holds one replica, :math:`8D^Lr` bytes. Growth is measured as that of a
    quadratic model, and the predicted edges are those of the initial NTK, as they are without the
    limit. A model of P parameters was seen to turn unstable earlier, mostly: at learning rates
    lower by 0 to 8 % for D = 12 and P = 600 or 1200, from one draw of the curvature to another.

    References
    ----------
    .. [1] derivations/08-large-p.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> import quadmodel as qm
    >>> curved = qm.Ensemble(8, 400, curvature=0.5 / 400**0.5)
    >>> limit = qm.large_p_phase_diagram(curved, 6, 3, steps=64, replicas=4)
    >>> round(limit.attrs["curvature_strength"], 12)
    0.5
    """
    checked, how = as_source(source), as_how(running)
    spec = as_spec(
        checked.n_data,
        learning_rates,
        batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=replicas,
        seed=seed,
        refine=refine,
    )
    truncation_order = as_integer("truncation_order", truncation_order, high=1000)
    asked = Asked(checked, spec.seed, truncation_order)
    kept = prepare(asked)
    model, system = kept.model, kept.system
    check_runs(system, spec.sgd, spec.n_measured, how.threads)
    described = _described(checked) | {
        "n_data": model.n_data,
        "source_hash": model.source_hash,
        "limit": "large-p",
        "truncation_order": truncation_order,
        "curvature_strength": system.curvature_strength,
    }
    cost = float(spec.steps * spec.replicas) * 2 * model.n_data ** (truncation_order + 1)
    diagram = diagram_of(spec, described, kept, linear=False, cost=cost)
    return sweep_of(
        diagram, Job(prepare, asked, kept, nbytes=model.nbytes), how, law=repr(kept.law)
    )


class Asked(NamedTuple):
    """What a worker makes the limit of: a source, sampled with a seed, and the order."""

    source: Ensemble | QuadraticModel
    seed: int
    truncation_order: int


class _Limit(Kept):
    """The model at the start, and what drives its limit."""

    def __init__(self, asked: Asked) -> None:
        """Draw the model, without its curvature."""
        self.model, self.system = system_of(*asked)
        self.spectrum, self.law = spectrum_of(self.model), law_of(asked.source, "source")

    def measure(self, points: GridPoints, pool: Workers) -> Measurement:
        """Run grid points in the limit."""
        return measure_growth_in_limit(self.system, points, pool)

    def nonlinear_edges(self, batch_sizes: Sequence[int], sgd: SGD) -> FloatArray | None:
        """Predict where the limit diverges."""
        return nonlinear_edges(self.model, batch_sizes, sgd, curvature=self.law, ratio=math.inf)


def prepare(asked: Asked) -> _Limit:
    """Draw the model."""
    with one_blas_thread():
        return _Limit(asked)


def _described(source: Ensemble | QuadraticModel) -> dict[str, Any]:
    """Return what attributes say about the source: P only where the spectrum depends on it."""
    if not isinstance(source, Ensemble):
        return {"model": repr(source)}
    spec = source.spec()
    n_params = spec.pop("n_params")
    if isinstance(source.jacobian, IndependentGaussian):
        spec["jacobian"] += f" with n_params={n_params}"
    return spec
