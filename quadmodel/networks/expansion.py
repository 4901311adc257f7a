"""From networks to quadratic models: the expansion as arrays, and trained beside the network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_integer,
    as_number,
    check_memory,
)
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, recorded_steps, step_coordinate, variable
from quadmodel.model import QuadraticModel, ntk_eigensystem
from quadmodel.networks._descent import (
    DIVERGENCE_LIMIT,
    Batches,
    Descent,
    Learner,
    NetworkLearner,
)
from quadmodel.networks._expansion import ExpandedLearner
from quadmodel.networks._linearisation import Linearisation, need_targets
from quadmodel.networks._losses import SquaredError
from quadmodel.networks._torch import torch
from quadmodel.networks.ntk import kernel_of
from quadmodel.optimizer import SGD
from quadmodel.simulation.observables import OBSERVABLES
from quadmodel.theory._inputs import check_sgd
from quadmodel.theory._noise_blocks import block_norm_of_modes, norm_of_modes
from quadmodel.theory.mean_field import mean_field

TRAINED = ("network", "quadratic", "linear")
_MEASURED = (
    "ntk_trace",
    "ntk_largest_eigenvalue",
    "noise_kernel_norm_finite",
    "noise_kernel_norm_exact",
)
# Share of the steps after which the curvature strength is measured.
_FITTED_AT = 0.1


def quadratic_model(
    net: Any,
    inputs: Any,
    targets: Any,
    *,
    parameters: Any = None,
) -> QuadraticModel:
    r"""Return a small network's expansion to second order, for the squared error, as arrays.

    Parameters
    ----------
    net : torch.nn.Module
        Network with one output per data point.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D,) or (D, 1)
        Targets.
    parameters : str or callable, optional
        Which parameters count, by their names.

    Returns
    -------
    QuadraticModel
        Residual (D,), Jacobian (D, P) and curvature (D, P, P) at the network's present parameters,
        in double precision.

    Raises
    ------
    InputError
        If there are several outputs per point, or the data don't fit.
    MemoryError
        If the curvature does not fit; :func:`side_by_side` needs no arrays of that size.
    ImportError
        Without PyTorch.

    Notes
    -----
    :math:`z(\theta_0+\delta) = z_0 + J\delta + \frac12Q(\delta,\delta)` with the second derivative
    of every output by forward over reverse mode.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> qm.networks.quadratic_model(net, torch.eye(2), torch.ones(2)).curvature.shape
    (2, 13, 13)
    """
    need_targets(targets)
    at = Linearisation(net, inputs, targets, parameters=parameters)
    if at.n_outputs != 1:
        raise InputError(
            "net must have one output per data point, since batches of a QuadraticModel pick "
            f"outputs one by one, got {at.n_outputs}"
        )
    check_memory("the curvature", 3.0 * 8 * at.n_data * at.n_params**2)
    sizes = [value.shape for value in at.params.values()]
    origin = torch.cat([value.flatten() for value in at.params.values()])

    def output(flat: Any, point: Any) -> Any:
        parts = flat.split([shape.numel() for shape in sizes])
        params = {
            name: part.reshape(shape)
            for name, part, shape in zip(at.params, parts, sizes, strict=True)
        }
        found = torch.func.functional_call(at.net, {**at.fixed, **params}, (point[None],))
        return found.reshape(())

    with torch.no_grad():
        values = torch.func.vmap(output, (None, 0))(origin, at.inputs)
    residual = (values - at.targets.reshape(-1)).to(torch.float64).numpy()
    jacobian = torch.func.vmap(torch.func.grad(output), (None, 0))(origin, at.inputs)
    curvature = np.empty((at.n_data, at.n_params, at.n_params))
    for i in range(at.n_data):
        second = torch.func.hessian(output)(origin, at.inputs[i]).to(torch.float64).numpy()
        curvature[i] = 0.5 * (second + second.T)
    return QuadraticModel(residual, jacobian.to(torch.float64).numpy(), curvature)


def side_by_side(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    steps: int,
    *,
    loss: Any = "mse",
    record_every: int | None = None,
    seed: int = 0,
    tolerance: float = 0.1,
    theory: bool = True,
    progress: bool = False,
) -> xr.Dataset:
    r"""Train a network and its expansions from the same batches, beside mean-field theory.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one. It is trained in
        place.
    inputs : tensor or array, shape (D, ...)
        Data points, at most so many that the NTK can be formed.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    sgd : SGD
        Learning rate, batch size, momentum, weight decay (to the origin) and sampling scheme.
    steps : int
        Number of SGD steps.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point. The expansions are of the outputs; the loss stays what it is.
    record_every : int, optional
        Steps between two records; by default about twenty records, each of which forms three NTKs.
    seed : int, optional
        Of the batches, the same ones for all.
    tolerance : float, optional
        Relative difference of the losses at which two trainings have parted.
    theory : bool, optional
        Add :func:`quadmodel.mean_field` for squared errors of one output, without weight decay.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Over (trained, step), trained being "network", "quadratic" (second order), "linear" (first
        order): `loss`, `ntk_trace`, `ntk_largest_eigenvalue`, `noise_kernel_norm_finite`,
        `noise_kernel_norm_exact`; with weights of the loss's initial curvature. `parting_step`
        (trained): the first record at which a loss is further than `tolerance` from the network's,
        -1 if there is none; `divergence_step` (trained). With theory: `mean_field_loss`,
        `mean_field_ntk_trace`, `mean_field_noise_kernel_norm_finite` (step). Attribute
        `curvature_strength`: the fitted :math:`\hat q^2`.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit.
    MemoryError
        If the NTK or the rows of the Jacobian don't fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    The expansions are trained by products: outputs :math:`f+J\delta+\frac12Q(\delta,\delta)` by
    nested forward mode, gradients :math:`J^\top\zeta+Q(\delta,\cdot)^\top\zeta` by forward over
    reverse mode, at some six times the cost of the network's own step.

    *Curvature strength.* After a tenth of the steps the quadratic model's displacement
    :math:`\delta` gives :math:`\hat q^2 = \sum_i|Q_i\delta|^2/(D^2|\delta|^2)`, which independent
    curvature has on average in every direction. The theory takes curvature to be independent of the
    Jacobian, and its covariance to be the same for all directions and points; a network's is
    neither.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, for the quadratic model; the mean field
       goes beyond it: derivations/09-mean-field.md.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> sgd = qm.SGD(learning_rate=0.1, batch_size=1)
    >>> found = qm.networks.side_by_side(net, torch.eye(2), torch.ones(2, 1), sgd, 20)
    >>> found.trained.values.tolist()
    ['network', 'quadratic', 'linear']
    """
    need_targets(targets)
    at = Linearisation(net, inputs, targets, loss=loss)
    check_sgd(sgd, at.n_data)
    steps = as_integer("steps", steps, high=2**32 - 2**16)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    tolerance = as_number("tolerance", tolerance, above=0.0)
    if record_every is None:
        record_every = max(1, steps // 20)
    recorded = recorded_steps(steps, as_integer("record_every", record_every))
    wanted_at = int(recorded[np.searchsorted(recorded, max(1, _FITTED_AT * steps))])
    check_memory("the rows of the Jacobian", 4.0 * 8 * at.n_rows * at.n_params)
    side = _Side(at, sgd, seed)
    initial = side.kernels()["network"]
    strength = math.nan
    columns: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINED}
    with progress_bar(steps, what="side by side", show=progress) as bar:
        for step in recorded.tolist():
            bar.update(side.advance_to(step))
            if step == wanted_at:
                strength = side.strength()
            for name, values in side.measure().items():
                columns[name].append(values)
    found = _labelled(columns, recorded, tolerance)
    found["divergence_step"] = variable(
        "trained",
        [side.descents[name].diverged_at for name in TRAINED],
        "step at which the training diverged, or -1",
        "SGD steps",
    )
    found.attrs = attributes(
        "network beside its expansions",
        {"n_data": at.n_data, "n_params": at.n_params, "n_outputs": at.n_outputs, **sgd.spec()},
        steps=steps,
        seed=seed,
        tolerance=tolerance,
        curvature_strength=strength,
    )
    fits = at.n_outputs == 1 and isinstance(at.loss, SquaredError) and not sgd.weight_decay
    if theory and fits and math.isfinite(strength):
        sigma = math.sqrt(strength * at.n_data / at.n_params)
        pred = mean_field(
            at.rounded(initial),
            sgd,
            steps,
            curvature=sigma,
            residual=side.initial_residual,
            n_params=at.n_params,
            memory=60,
            groups=min(8, at.n_data),
            record_every=record_every,
        )
        for name in ("loss", "ntk_trace", "noise_kernel_norm_finite"):
            found[f"mean_field_{name}"] = pred[name]
    return found


class _Side:
    """The network and its expansions, trained from the same batches."""

    def __init__(self, at: Linearisation, sgd: SGD, seed: int) -> None:
        """Put all of them at the network's present parameters."""
        self.at, self.sgd = at, sgd
        names = list(at.params)
        learners: dict[str, Learner] = {
            "quadratic": ExpandedLearner(at, 2),
            "linear": ExpandedLearner(at, 1),
            "network": NetworkLearner(at.net, at.inputs, at.targets, at.loss, names),
        }
        self.everyone = torch.arange(at.n_data)
        with torch.no_grad():
            outputs = at.net(at.inputs)
            first = float(at.loss.value(outputs, at.targets).mean())
            self.initial_residual: Any = None
            if isinstance(at.loss, SquaredError) and at.n_outputs == 1:
                away = outputs.reshape(-1) - at.targets.reshape(-1)
                self.initial_residual = away.to(torch.float64).numpy()
        limit = DIVERGENCE_LIMIT * first if first > 0 else math.inf
        self.descents = {
            name: Descent(learners[name], sgd, Batches("independent", at.n_data, sgd, seed), limit)
            for name in TRAINED
        }

    def advance_to(self, step: int) -> int:
        """Train everyone up to a step; return how many that were."""
        taken = step - self.now
        self.now = step
        for descent in self.descents.values():
            descent.advance(step - descent.step)
        return taken

    now = 0

    def _expanded(self, name: str) -> ExpandedLearner:
        learner: Any = self.descents[name].learner
        return learner  # type: ignore[no-any-return]

    def strength(self) -> float:
        """Return the squared curvature strength along the quadratic model's displacement."""
        learner = self._expanded("quadratic")
        if self.descents["quadratic"].diverged_at >= 0:
            return math.nan
        _, change = learner.every_row()
        squared = sum(
            float((d.to(torch.float64) ** 2).sum()) for d in learner.displacement().values()
        )
        return float((change**2).sum()) / (self.at.n_data**2 * squared) if squared else math.nan

    def kernels(self) -> dict[str, FloatArray]:
        """Return the NTKs of all that have not diverged."""
        self.at.forget()
        found = {}
        if self.descents["network"].diverged_at < 0:
            found["network"] = kernel_of(self.at)
        if self.descents["quadratic"].diverged_at < 0:
            first, second = self._expanded("quadratic").every_row()
            rows = first + second
            found["quadratic"] = self._weighted(rows)
            found["linear"] = self._weighted(first)
        return found

    def _weighted(self, rows: FloatArray) -> FloatArray:
        """Return the NTK of rows, with the weights of the loss at the network's outputs now."""
        at = self.at
        parts = rows.T.reshape(at.n_params, at.n_data, at.n_outputs)
        turned = at.factor(slice(0, at.n_data)).times(torch.as_tensor(parts).to(at.dtype))
        flat = turned.to(torch.float64).numpy().reshape(at.n_params, -1)
        return np.asarray(flat.T @ flat / at.n_data)

    def losses(self) -> dict[str, float]:
        """Return the mean losses, +inf after divergence."""
        found = {}
        for name, descent in self.descents.items():
            found[name] = math.inf
            if descent.diverged_at >= 0:
                continue
            with torch.no_grad():
                if name == "network":
                    outputs = self.at.net(self.at.inputs)
                else:
                    outputs = self._expanded(name).outputs(self.everyone)
                found[name] = float(self.at.loss.value(outputs, self.at.targets).mean())
        return found

    def measure(self) -> dict[str, dict[str, float]]:
        """Return loss, NTK and K of everyone."""
        kernels, at = self.kernels(), self.at
        found: dict[str, dict[str, float]] = {}
        for name, loss in self.losses().items():
            found[name] = {"loss": loss} | dict.fromkeys(_MEASURED, math.nan)
            if name not in kernels or not math.isfinite(loss):
                continue
            lam, vectors = ntk_eigensystem(kernels[name], at.tolerance)
            outputs = at.n_outputs - int(at.loss.flat)
            finite = norm_of_modes(lam, self.sgd, "finite", at.n_data, outputs)
            exact = block_norm_of_modes(lam, vectors, self.sgd, at.n_outputs, at.n_data)
            found[name] |= dict(
                zip(_MEASURED, (lam.sum(), float(lam[0]), finite, exact), strict=True)
            )
        return found


def _labelled(
    columns: dict[str, list[dict[str, float]]], recorded: Any, tolerance: float
) -> xr.Dataset:
    """Return records as a Dataset, with the steps of parting."""
    dims = ("trained", "step")
    variables: dict[str, Any] = {}
    for name in ("loss", *_MEASURED):
        values = [[record[name] for record in columns[trained]] for trained in TRAINED]
        label = OBSERVABLES[name]
        variables[name] = variable(dims, np.array(values), label.long_name, label.units)
    losses = variables["loss"][1]
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(losses - losses[0]) <= tolerance * losses[0])
    apart[~np.isfinite(losses) & ~np.isfinite(losses[0])] = False
    parted = [int(recorded[row.argmax()]) if row.any() else -1 for row in apart]
    variables["parting_step"] = variable(
        "trained", parted, "step at which the loss parts from the network's, or -1", "SGD steps"
    )
    coords = {"trained": list(TRAINED), "step": step_coordinate(recorded)}
    return xr.Dataset(variables, coords)
