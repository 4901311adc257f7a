"""phase_diagram(): learning rate against batch size, theory and simulation side by side."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple, Unpack

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import FloatArray
from quadmodel._util.threads import Workers
from quadmodel.ensemble import Ensemble
from quadmodel.laws.curvature import LowRankCurvature
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._stepper import Stepper
from quadmodel.simulation.growth import GridPoints, Measurement, measure_growth, stepper_of
from quadmodel.studies._diagram import Diagram, Kept, spectrum_of
from quadmodel.studies._spec import DiagramSpec, as_source, as_spec
from quadmodel.sweeps._parcel import Job
from quadmodel.sweeps.running import How, Running, as_how
from quadmodel.sweeps.store import Manifest
from quadmodel.sweeps.sweep import run_sweep, unit_size
from quadmodel.theory.mean_field_edge import nonlinear_edges

# Learning rates of the finer scan: where close-ups follow, and where it is all there is.
_SCAN_BEFORE_CLOSE_UP, _SCAN = 6, 12
# Grid points that a close-up takes as long as.
_CLOSE_UP = 9.0


def phase_diagram(
    source: Ensemble | QuadraticModel | ArrayLike,
    learning_rates: int | Sequence[float] | ArrayLike = 24,
    batch_sizes: int | Sequence[int] | ArrayLike = 12,
    *,
    sgd: SGD | None = None,
    steps: int = 1000,
    replicas: int = 16,
    seed: int = 0,
    refine: int | None = None,
    precision: str = "float64",
    **running: Unpack[Running],
) -> xr.Dataset:
    r"""Predict and simulate the stability of SGD on a grid of learning rates and batch sizes.

    Parameters
    ----------
    source : Ensemble, QuadraticModel, or array_like of shape (n_data, n_data)
        What to train: an ensemble is sampled with `seed`; an array is taken as an NTK.
    learning_rates : int or sequence of float, optional
        Learning rates, in units of 1 / NTK eigenvalue; or how many, spread evenly in the logarithm
        around both edges.
    batch_sizes : int or sequence of int, optional
        Batch sizes; or how many, spread evenly in the logarithm from 1 to n_data.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; its learning rate and batch size are not used.
    steps : int, optional
        SGD steps per replica, at least 32. Growth of a linear model is measured in an eighth of
        them where that leaves no doubt of its sign, and close to its edge in up to 16 times as
        many, where it has not settled.
    replicas : int, optional
        Replicas per grid point, at least 2.
    seed : int, optional
        Seed of the model and of all batches, below 2**64.
    refine : int, optional
        Learning rates of a second, finer scan per batch size, between the columns where the
        simulated growth rates change sign: 12, but 6 for a linear model, which has close-ups after
        it. 0 for neither.
    precision : {"float64", "mixed"}, optional
        As for :func:`quadmodel.simulate`.
    **running : threads, progress, store, executor
        How the sweep runs, which its result does not depend on: see
        :class:`quadmodel.Running`.

    Returns
    -------
    xarray.Dataset
        On (learning_rate, batch_size): `noise_kernel_norm` (also along `norm`: paper, finite,
        exact), `mean_growth`, `typical_growth` (per step, of the log loss), their
        ``..._standard_error`` and the `growth_steps` that they are from, `fraction_diverged`,
        `final_loss` (median), `phase` and `predicted_phase`. Per batch size, predicted:
        `critical_learning_rate` (along `norm`), `typical_critical_learning_rate` (NaN where it does
        not hold), `edge_of_stability`; and the
        measurements of the finer scan, ``scan_...`` along `scan`. One number for the whole
        diagram: `crossing_batch_size`. Of a quadratic model whose curvature has a known law:
        `mean_field_critical_learning_rate`, where :func:`quadmodel.mean_field_edge` says that runs
        diverge, and `mean_field_noise_kernel_norm` (also along `norm`), K of the
        initial NTK there. Of a linear model, measured close to where the growth of the
        mean and of the typical loss crosses zero (along `kind`, per batch size): `close_growth` at
        `close_learning_rate`, along `close`, in runs of `close_steps` steps and `close_replicas`
        replicas; `close_settled`, and `close_needed_steps` for where it is not.

    Raises
    ------
    InputError
        If an argument is out of range.
    MemoryError
        If model or replicas don't fit in memory.

    Notes
    -----
    The phases, from the simulated growth rates:

    - *stable*: the mean loss does not grow;
    - *intermittent*: the mean loss grows while the typical loss shrinks, since a few replicas carry
      the mean;
    - *stochastically unstable*: both grow, below the deterministic edge;
    - *deterministically unstable*: unstable, at or above it.

    Predicted, they lie between the exact K = 1, the learning rate where
    :func:`quadmodel.typical_growth` turns positive, and the deterministic edge; "undecided" is what
    lies above K = 1 where the typical growth can't be predicted.

    A plain mean over replicas would be decided by a few of them, and its standard error would be
    too small. Growth of a linear model is therefore measured in two ways. The typical growth is the
    mean, over independent replicas, of the growth of their log loss in the second half of the
    steps, after their directions have relaxed in the first; every step scales parameters back to
    size 1. The growth of the mean loss is that of a population of replicas, redrawn in proportion
    to their losses whenever fewer than half of them carry the mean, which leaves the mean's
    expectation as it is; 16 blocks of steps give the standard error and the correction for the bias
    of a logarithm (``quadmodel/simulation/populations.py``). Where these cross
    zero, close-ups follow with as many steps and replicas as the runs themselves turn out to need
    (``quadmodel/studies/_close_up.py``). Growth of a
    quadratic model is that of independent replicas over the second half of their steps, or up to
    their divergence or convergence (``quadmodel/simulation/growth.py``).

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.

    Examples
    --------
    >>> import quadmodel as qm
    >>> grid = qm.phase_diagram(qm.Ensemble(20, 40), 6, 3, steps=64, replicas=4)
    >>> dict(grid.mean_growth.sizes)
    {'learning_rate': 6, 'batch_size': 3}
    """
    checked, how = as_source(source), as_how(running)
    linear = checked.curvature is None
    if refine is None:
        refine = _SCAN_BEFORE_CLOSE_UP if linear else _SCAN
    spec = as_spec(
        checked.n_data,
        learning_rates,
        batch_sizes,
        sgd=sgd,
        steps=steps,
        replicas=replicas,
        seed=seed,
        refine=refine,
        precision=precision,
    )
    described = checked.spec() if isinstance(checked, Ensemble) else {"model": repr(checked)}
    asked = Asked(checked, spec.points(np.empty(0), np.empty(0, np.int64), 0))
    kept = prepare(asked)
    described |= kept.model.spec(with_curvature=True)
    diagram = diagram_of(spec, described, kept, linear=linear, cost=_cost(kept.model, spec))
    return sweep_of(diagram, Job(prepare, asked, kept, nbytes=kept.model.nbytes), how)


class Asked(NamedTuple):
    """What a worker's model is made of: a source, and grid points without any, for the rest."""

    source: Ensemble | QuadraticModel
    points: GridPoints


class _Simulated(Kept):
    """A model, and its copy that simulations step."""

    def __init__(self, model: QuadraticModel, points: GridPoints) -> None:
        """Wait with the copy until it is needed."""
        self.model, self.spectrum, self._points = model, spectrum_of(model), points
        self._stepper: Stepper | None = None
        self._guard = Lock()

    def measure(self, points: GridPoints, pool: Workers) -> Measurement:
        """Simulate grid points."""
        with self._guard:
            if self._stepper is None:
                self._stepper = stepper_of(self.model, self._points)
        return measure_growth(self.model, points, pool, self._stepper)

    def nonlinear_edges(self, batch_sizes: Sequence[int], sgd: SGD) -> FloatArray | None:
        """Predict where the nonlinear model diverges."""
        return nonlinear_edges(self.model, batch_sizes, sgd)


def prepare(asked: Asked) -> Kept:
    """Draw the model."""
    source, points = asked
    with one_blas_thread():
        model = source.sample(points.seed) if isinstance(source, Ensemble) else source
        return _Simulated(model, points)


def _cost(model: QuadraticModel, spec: DiagramSpec) -> float:
    """Return about how many multiplications a grid point takes."""
    size, curvature = float(spec.batch_sizes.mean()), model.curvature
    if curvature is None:  # plain runs, and two populations
        step = 3 * (1000.0 + size * model.n_data)
    elif isinstance(curvature, LowRankCurvature):
        step = 1000.0 + size * 4 * curvature.vectors[0].size
    else:
        step = 1000.0 + size * 2 * model.n_params**2
    return step * spec.steps * spec.replicas


def diagram_of(
    spec: DiagramSpec, described: dict[str, Any], kept: Kept, *, linear: bool, cost: float
) -> Diagram:
    """Return a phase diagram whose units take about as long as the engine wants them to."""
    sizes = spec.batch_sizes.size
    return Diagram(
        spec,
        described,
        kept.model.n_data,
        linear,
        not linear,
        unit_size(spec.n_rates * sizes, cost),
        unit_size(spec.refine * sizes, cost),
    )


def sweep_of(diagram: Diagram, job: Job, how: How, **more: Any) -> xr.Dataset:
    """Run the sweep of a diagram; `more` says what else its result depends on."""
    manifest = Manifest(
        "phase diagram",
        diagram.specification() | more,
        diagram.expected(),
        weights={
            "grid": diagram.points_per_unit,
            "finer scan": diagram.points_per_scan_unit,
            "close-ups": _CLOSE_UP,
        },
    )
    return run_sweep(manifest, job, how, lambda sweep: diagram.run(sweep.run))
