"""track(): a network under SGD, with K and its neighbours along the way."""

from __future__ import annotations

import hashlib
import math
import time
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import InputError, IntArray, as_choice, as_integer
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, step_coordinate, variable
from quadmodel.networks import _checkpoint
from quadmodel.networks._checkpoint import Records
from quadmodel.networks._descent import BATCHES, DIVERGENCE_LIMIT, Batches, Descent, NetworkLearner
from quadmodel.networks._linearisation import Linearisation, need_targets
from quadmodel.networks._records import HELD_AS, LABELS, RANDOM, Probe, Snapshot
from quadmodel.networks._sampled_trace import SampledTrace
from quadmodel.optimizer import HELD, SGD

# Seconds between two checkpoints.
_PAUSE = 20.0


def track(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    steps: int,
    *,
    loss: Any = "mse",
    probe: Probe | None = None,
    seed: int = 0,
    batches: str = "independent",
    checkpoint: str | PathLike[str] | None = None,
    start: str | PathLike[str] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Train a network by SGD, in place, and record K and its neighbours along the way.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one, on the CPU. Its
        parameters are those after the last step when the call returns.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    sgd : SGD
        Learning rate or a rule for it (:class:`quadmodel.HoldK`, whose K is that of the probe),
        batch size, momentum, weight decay and sampling scheme. Weight decay pulls to the origin, as
        it does in PyTorch.
    steps : int
        Number of the step to train up to.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`; half the squared distance for "mse".
    probe : Probe, optional
        When to measure, what, and on which data points.
    seed : int, optional
        Of the batches. Those of "independent" are :func:`quadmodel.simulate`'s at this seed:
        runs with one seed and batch size see the same ones.
    batches : {"independent", "epochs"}, optional
        "independent": drawn anew at every step by the scheme of `sgd`, which is what the theory is
        of. "epochs": all data in a shuffled order, again and again, as PyTorch's loader does.
    checkpoint : path-like, optional
        File (.npz) that holds the run. If it exists, training goes on from there with the same bits
        as without a break, given the same arguments; it is written every 20 seconds, at the end,
        and on an interrupt (unless that falls into the middle of an update: then the last one
        stays).
    start : path-like, optional
        Checkpoint of another run to fork from: its parameters, velocities and step; learning rate,
        batch size and everything else are this call's.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        With dimensions (replica, step), one replica; names are those of :func:`quadmodel.simulate`:

        - `loss`, `accuracy` (outputs and targets of one sign or one largest entry), over all data;
          `squared_distance` from the parameters that the call began with; `learning_rate`.
        - `ntk_largest_eigenvalue`, `ntk_trace`, `hessian_largest_eigenvalue`: of the mean loss over
          the probe's points; the first two equal those of the Gauss-Newton matrix.
        - `noise_kernel_norm`, `noise_kernel_norm_finite`, `noise_kernel_norm_exact`: K, as
          :func:`quadmodel.networks.noise_kernel_norm` has it, from the NTK of the probe's points;
          `noise_kernel_norm_trace`: a lower bound of the finite one, since it takes all modes to be
          alike, from the mean squared row norm of some of the probe's points, drawn anew for every
          record with probabilities that follow what is known of their norms (`Probe.sample`).
        - `row_norm_spread`: standard deviation of the logarithm of the row norms.
        - `batch_sharpness`: over 32 batches of all data that no step uses.
        - `<name>_standard_error`: of K and batch sharpness, over random vectors and batches; what
          the probe's choice of points adds is not in it (but is, for `noise_kernel_norm_trace`,
          with what is drawn of them).
        - `divergence_step` (replica): -1 for a run that did not diverge.
        - `probe_point`: the data points of the probe.

        A run diverges when a batch's loss passes a million times the initial mean loss, or is not
        finite; from then on loss and distance are +inf, everything else is NaN.

    Raises
    ------
    InputError
        If an argument is out of range, the data don't fit, or a checkpoint is of another run.
    ImportError
        Without PyTorch.

    Notes
    -----
    .. math:: \theta_{t+1} = \theta_t + \mu(\theta_t-\theta_{t-1})
              - \eta\,[\nabla L_{B_t}(\varphi_t) + \rho\varphi_t]

    with :math:`\varphi_t` as in :class:`quadmodel.SGD`. A probe smaller than the data stands for
    all of them: sums over points are taken over the sample, times what each stands for. That leaves
    the trace unbiased, but not exact K, which rare points with large rows raise: a sample without
    them gives less.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 5, for K along the training of
       networks; J. Cohen et al., arXiv:2103.00065; A. Andreyev, P. Beneventano, arXiv:2412.20553.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net, sgd = torch.nn.Linear(2, 1), qm.SGD(learning_rate=0.1, batch_size=1)
    >>> run = qm.networks.track(net, torch.eye(2), torch.ones(2, 1), sgd, steps=100)
    >>> dict(run.loss.sizes)
    {'replica': 1, 'step': 3}
    """
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    steps = as_integer("steps", steps, high=2**32 - 2**16)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    as_choice("batches", batches, BATCHES)
    if probe is not None and not isinstance(probe, Probe):
        raise InputError(f"probe must be a Probe, got {type(probe).__name__}")
    need_targets(targets)
    everything = Linearisation(net, inputs, targets, loss=loss)
    sgd.check_batch_size(everything.n_data, rules=HELD)
    if batches == "epochs" and sgd.sampling != "without_replacement":
        raise InputError(
            f"sgd must draw without replacement for batches='epochs', got {sgd.sampling!r}"
        )
    run = _Run(everything, sgd, steps, probe or Probe(), seed, batches)
    if start is not None:
        run.fork(start)
    if _checkpoint.exists(checkpoint):
        run.resume(checkpoint)
    else:
        run.settle()
    try:
        run.go(checkpoint, progress)
    except KeyboardInterrupt:
        if run.descent.whole:
            run.save(checkpoint)
        raise
    return run.dataset()


class _Run:
    """A training with its records."""

    def __init__(
        self,
        everything: Linearisation,
        sgd: SGD,
        steps: int,
        probe: Probe,
        seed: int,
        batches: str,
    ) -> None:
        """Lay everything out; nothing is computed yet but the initial loss."""
        self.everything, self.sgd, self.steps, self.probe = everything, sgd, steps, probe
        self.names = list(everything.params)
        held = () if sgd.rule is None else ("learning_rate",)
        self.observed = tuple(dict.fromkeys((*probe.observables, *held)))
        data = everything.inputs, everything.targets
        self.points = probe.subset(everything.n_data)
        self.at = Linearisation(
            everything.net,
            *(array[self.points] for array in data),
            loss=everything.loss,
            chunk_size=probe.chunk_size,
        )
        sample = probe.sample
        if sample is None and sgd.rule is not None and sgd.rule.norm == "trace":
            sample = len(self.points)  # what sets the learning rate should not scatter
        self.trace = SampledTrace(self.at, everything.n_data, sgd.batch_size, sample, probe.seed)
        learner = NetworkLearner(everything.net, *data, everything.loss, self.names)
        self.initial = [tensor.detach().clone() for tensor in learner.tensors]
        self.descent = Descent(
            learner, sgd, Batches(batches, everything.n_data, sgd, seed), self._limit()
        )
        self.first = 0
        self.records: Records = {}
        self.settings: dict[str, Any] = {
            **sgd.spec(),
            "seed": str(seed),
            "batches": batches,
            "loss": type(everything.loss).__name__,
            "data": _checksum(data),
            "initial": _checksum(self.initial),
            "forked_at": 0,
            "points": len(self.points),
            "probe_seed": str(probe.seed),
            "sample": probe.sample,
        }

    def _limit(self) -> float:
        """Return the loss of a batch beyond which the run has diverged."""
        loss = Snapshot(self.at, self.everything, self.sgd, self.probe, self.initial).loss
        return DIVERGENCE_LIMIT * loss if loss > 0 else math.inf

    def fork(self, path: str | PathLike[str]) -> None:
        """Begin where another run has come to."""
        if not _checkpoint.exists(path):
            raise InputError(f"start must be a checkpoint that exists, got {path}")
        arrays = _checkpoint.read(path, self.descent, self.names)
        rate, self.first = self.descent.learning_rate, int(arrays["state"][0])
        if self.first >= self.steps:
            raise InputError(
                f"steps must be above the {self.first} that start has taken, got {self.steps}"
            )
        _checkpoint.put_back(arrays, self.descent, self.names)
        self.descent.learning_rate = rate
        self.descent.limit = self._limit()
        self.descent.renewed_at = self.first
        self.initial = [tensor.detach().clone() for tensor in self.descent.learner.tensors]
        self.settings |= {"initial": _checksum(self.initial), "forked_at": self.first}

    def _snapshot(self, learning_rate: float) -> Snapshot:
        sgd = self.sgd._at(learning_rate=learning_rate)
        step = self.descent.step
        return Snapshot(
            self.at,
            self.everything,
            sgd,
            self.probe,
            self.initial,
            lambda: self.trace.at_step(step),
        )

    def _held(self, learning_rate: float) -> float:
        """Return the K that the rule holds."""
        assert self.sgd.rule is not None
        return self._snapshot(learning_rate).value(HELD_AS[self.sgd.rule.norm]).value

    def settle(self) -> None:
        """Let the rule choose the first learning rate."""
        if self.sgd.rule is not None:
            trace = self._snapshot(1.0).ntk_trace
            guess = 2 * self.sgd.batch_size * self.sgd.rule.target / trace if trace > 0 else 1.0
            self.descent.learning_rate = self.sgd.rule.settled(self._held, guess)

    def advance_to(self, step: int) -> None:
        """Train up to a step, and let the rule renew the learning rate on the way."""
        descent, rule = self.descent, self.sgd.rule
        while descent.step < step and descent.diverged_at < 0:
            stop = step
            if rule is not None:
                if descent.step % rule.every == 0 and descent.step > descent.renewed_at:
                    rate = descent.learning_rate
                    descent.learning_rate = rule.renewed(rate, self._held(rate))
                    descent.renewed_at = descent.step
                stop = min(step, (descent.step // rule.every + 1) * rule.every)
            descent.advance(stop - descent.step)

    def resume(self, path: Any) -> None:
        """Go on with this run, if it is this run."""
        arrays = _checkpoint.read(path, self.descent, self.names)
        settings = _checkpoint.settings_of(arrays)
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise InputError(
                    f"checkpoint {path} must be of a run with the same {key}, got "
                    f"{settings.get(key)} in place of {value}"
                )
        _checkpoint.put_back(arrays, self.descent, self.names)
        self.records = _checkpoint.records_of(arrays)
        self.trace.put_back(arrays["trace"])

    def save(self, path: str | PathLike[str] | None) -> None:
        """Write the checkpoint, if there is to be one."""
        if path is not None:
            trace = self.trace.state()
            _checkpoint.save(path, self.descent, self.names, self.records, self.settings, trace)

    def go(self, checkpoint: str | PathLike[str] | None, progress: bool) -> None:
        """Train up to the last step."""
        descent, saved = self.descent, time.monotonic()
        recorded = self.probe.steps(self.first, self.steps)
        with progress_bar(self.steps - self.first, what="train", show=progress) as bar:
            bar.update(descent.step - self.first)
            for step in recorded.tolist():
                taken = any(step in values for values in self.records.values())
                if step < descent.step or taken or descent.diverged_at >= 0:
                    continue
                bar.update(step - descent.step)
                self.advance_to(step)
                self._take(step)
                if checkpoint is not None and time.monotonic() - saved > _PAUSE:
                    self.save(checkpoint)
                    saved = time.monotonic()
        self.save(checkpoint)

    def _take(self, step: int) -> None:
        """Record everything that is asked for, unless the run has diverged."""
        if self.descent.diverged_at >= 0:
            return
        snapshot = self._snapshot(self.descent.learning_rate)
        for name in self.observed:
            value, error = snapshot.value(name)
            self.records.setdefault(name, {})[step] = value
            if name in RANDOM:
                self.records.setdefault(f"{name}_standard_error", {})[step] = error

    def dataset(self) -> xr.Dataset:
        """Label everything."""
        recorded = self.probe.steps(self.first, self.steps)
        variables: dict[str, Any] = {}
        for name in self.observed:
            label = LABELS[name]
            variables[name] = variable(
                label.dims,
                self._values(name, recorded, label.diverged),
                label.long_name,
                label.units,
            )
            if name in RANDOM:
                error = f"{name}_standard_error"
                values = self._values(error, recorded, np.nan)
                text = f"standard error of the {label.long_name}"
                variables[error] = variable(label.dims, values, text, label.units)
        variables["divergence_step"] = variable(
            "replica",
            [self.descent.diverged_at],
            "step at which the run diverged, or -1",
            "SGD steps",
        )
        at = self.everything
        source = {"n_data": at.n_data, "n_params": at.n_params, "n_outputs": at.n_outputs}
        options = ("seed", "batches", "loss", "forked_at")
        attrs = attributes(
            "network training",
            {**source, **self.sgd.spec()},
            steps=self.steps,
            n_probe=len(self.points),
            **{name: self.settings[name] for name in options},
        )
        coords = {
            "replica": np.zeros(1, dtype=np.int64),
            "step": step_coordinate(recorded),
            "probe_point": self.points,
        }
        return xr.Dataset(variables, coords, attrs)

    def _values(self, name: str, recorded: IntArray, diverged: float) -> Any:
        found = self.records.get(name, {})
        return np.array([[found.get(step, diverged) for step in recorded.tolist()]])


def _checksum(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.detach().numpy()).data)
    return digest.hexdigest()[:12]
