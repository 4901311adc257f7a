"""Trainings over batch sizes and learning rates, and which measure tells which of them diverge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, as_integer, as_list, as_number
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import check_result, variable
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._records import Probe, Snapshot
from quadmodel.networks._torch import torch
from quadmodel.networks.tracking import track
from quadmodel.optimizer import SGD, HoldK

# What may be compared as a sign of divergence, in the order of results.
MEASURES = (
    "noise_kernel_norm_exact",
    "noise_kernel_norm",
    "noise_kernel_norm_finite",
    "scaled_largest_eigenvalue",
    "scaled_batch_sharpness",
    "row_norm_spread",
)


def train_grid(
    build: Callable[[], Any],
    inputs: Any,
    targets: Any,
    batch_sizes: Any,
    shares: Any,
    steps: int,
    *,
    replicas: int = 1,
    loss: Any = "mse",
    probe: Probe | None = None,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    r"""Train a network at several batch sizes and learning rates, and track K.

    Parameters
    ----------
    build : callable
        Returns a new network; PyTorch's generator is seeded before every call.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...)
        Targets, or classes for "cross_entropy".
    batch_sizes : sequence of int
        Batch sizes.
    shares : sequence of float
        Learning rates over the critical one of the initial network: that at which finite K is 1, or
        the deterministic edge where it stays below.
    steps : int
        SGD steps of each training.
    replicas : int, optional
        Initial networks and sequences of batches; the same ones at every learning rate.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point.
    probe : Probe, optional
        When to measure, what, and on which data points.
    seed : int, optional
        Of networks and batches: that of a replica is its sum with the replica's number.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        That of :func:`track` along (batch_size, share, replica, step), with `learning_rate`
        (batch_size, share, replica), and `scaled_largest_eigenvalue` and `scaled_batch_sharpness`:
        these times the learning rate.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    Runs of one replica begin at the same network and, at one batch size, see the same batches. The
    critical learning rate comes from the NTK of the probe's points, to a tenth of a
    percent.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 5.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> points, targets = torch.eye(4), torch.ones(4, 1)
    >>> probe = qm.networks.Probe(every=10)
    >>> found = qm.networks.train_grid(
    ...     lambda: torch.nn.Linear(4, 1), points, targets, [1, 2], [0.5, 2.0], 20, probe=probe
    ... )
    >>> dict(found.loss.sizes)
    {'batch_size': 2, 'share': 2, 'replica': 1, 'step': 3}
    """
    sizes = as_list("batch_sizes", batch_sizes, lambda n: as_integer("batch_sizes", n))
    factors = as_list("shares", shares, lambda x: as_number("shares", x, above=0.0))
    replicas, seed = as_integer("replicas", replicas), as_integer("seed", seed, low=0)
    probe = probe or Probe()
    rows = []
    critical: dict[tuple[int, int], float] = {}
    with progress_bar(len(sizes) * len(factors) * replicas, what="train", show=progress) as bar:
        for size in sizes:
            columns = []
            for share in factors:
                runs = []
                for number in range(replicas):
                    torch.manual_seed(seed + number)
                    net = build()
                    if (size, number) not in critical:
                        critical[size, number] = _critical(net, inputs, targets, size, loss, probe)
                    rate = share * critical[size, number]
                    run = track(
                        net,
                        inputs,
                        targets,
                        SGD(rate, size),
                        steps,
                        loss=loss,
                        probe=probe,
                        seed=seed + number,
                    )
                    units = "1 / NTK eigenvalue"
                    run["learning_rate"] = variable("replica", [rate], "learning rate", units)
                    runs.append(run.assign_coords(replica=[number]))
                    bar.update(1)
                columns.append(xr.concat(runs, "replica", combine_attrs="drop_conflicts"))
            rows.append(xr.concat(columns, _axis("share", factors), combine_attrs="drop_conflicts"))
    found = xr.concat(rows, _axis("batch_size", sizes), combine_attrs="drop_conflicts")
    for name, source in (
        ("scaled_largest_eigenvalue", "ntk_largest_eigenvalue"),
        ("scaled_batch_sharpness", "batch_sharpness"),
    ):
        if source in found:
            found[name] = found[source] * found.learning_rate
            found[name].attrs = {
                "long_name": f"learning rate times {found[source].attrs['long_name']}",
                "units": "1",
            }
    return found


def _axis(name: str, values: list[Any]) -> xr.Variable:
    return xr.Variable(name, values)


def _critical(net: Any, inputs: Any, targets: Any, size: int, loss: Any, probe: Probe) -> float:
    """Return the learning rate at which finite K is 1, or the edge, to a tenth of a percent."""
    everything = Linearisation(net, inputs, targets, loss=loss)
    SGD(1.0, size).check_batch_size(everything.n_data)
    chosen = probe.subset(everything.n_data)
    at = Linearisation(
        net, everything.inputs[chosen], everything.targets[chosen], loss=everything.loss,
        chunk_size=probe.chunk_size,
    )  # fmt: skip
    first = Snapshot(at, everything, SGD(1.0, size), probe, [])

    def norm_at(rate: float) -> float:
        return first.norm_of_modes("finite", SGD(rate, size)).value

    edge = 2.0 / first.ntk_largest_eigenvalue
    return HoldK(1.0, norm="finite").settled(norm_at, min(edge, 2.0 * size / first.ntk_trace))


def separation(
    found: xr.Dataset,
    *,
    leads: Sequence[int] = (0,),
    draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""Return how well each measure tells the runs that diverge from those that don't.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`train_grid`.
    leads : sequence of int, optional
        Steps ahead of divergence at which the measure must have spoken.
    draws : int, optional
        Bootstrap draws of runs.
    seed : int, optional
        Of these.

    Returns
    -------
    xarray.Dataset
        `auc` (measure, lead), the area under the receiver operating characteristic, with the ends
        of its 95 % interval, `auc_low` and `auc_high`; `diverged` (lead), how many diverged runs
        have a record that far ahead, and attribute `converged`. NaN where a kind of run is missing.

    Raises
    ------
    InputError
        If `found` is of another kind, or an argument is out of range.

    Notes
    -----
    A run counts as diverged if it did, or ended with a loss above its first one. Its score is the
    largest value up to `lead` steps before its divergence; that of another run the largest of all:
    the area is the probability that an alarm at some threshold goes off for a run that diverges
    before it does for one that doesn't. 1/2 is chance. Intervals are quantiles over runs drawn
    anew, with both kinds kept.

    References
    ----------
    .. [1] J. Hanley, B. McNeil, Radiology 143 (1982) 29; B. Efron, R. Tibshirani, "An introduction
       to the bootstrap" (1993), chapter 13.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> points, targets = torch.eye(4), torch.ones(4, 1)
    >>> probe = qm.networks.Probe(every=10)
    >>> found = qm.networks.train_grid(
    ...     lambda: torch.nn.Linear(4, 1), points, targets, [1, 4], [0.3, 1.5], 400, probe=probe
    ... )
    >>> areas = qm.networks.separation(found)
    >>> float(areas.auc.sel(measure="scaled_largest_eigenvalue", lead=0))
    1.0
    """
    dims = ("batch_size", "share", "replica")
    check_result("found", found, "train_grid()", {"loss": (*dims, "step"), "divergence_step": dims})
    leads = as_list("leads", leads, lambda n: as_integer("leads", n, low=0))
    draws = as_integer("draws", draws)
    measures = [name for name in MEASURES if name in found]
    if not measures:
        raise InputError(f"found must hold one of {', '.join(MEASURES)}, got none")
    some = found[["loss", "divergence_step", *measures]]
    runs = some.stack(run=dims).transpose("run", "step")
    steps, losses = runs.step.values, runs.loss.values
    ended = runs.divergence_step.values.astype(float)
    diverged = (ended >= 0) | ~(losses[:, -1] <= losses[:, 0])
    ended[ended < 0] = steps[-1]
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    areas = np.full((len(measures), len(leads), 3), np.nan)
    counts = np.zeros(len(leads), dtype=np.int64)
    for column, lead in enumerate(leads):
        seen = steps <= (ended - lead)[:, None]
        known = diverged & seen.any(1)
        counts[column] = known.sum()
        for row, name in enumerate(measures):
            values = np.where(np.isnan(runs[name].values), -np.inf, runs[name].values)
            bad = np.where(seen, values, -np.inf).max(1)[known]
            good = values.max(1)[~diverged]
            if len(bad) and len(good):
                drawn = [
                    _area(rng.choice(bad, len(bad)), rng.choice(good, len(good)))
                    for _ in range(draws)
                ]
                areas[row, column] = _area(bad, good), *np.quantile(drawn, [0.025, 0.975])
    names = ("auc", "auc_low", "auc_high")
    text = ("area under the ROC curve", "lower end of its interval", "upper end of its interval")
    variables = {
        name: variable(("measure", "lead"), areas[:, :, k], text[k], "1")
        for k, name in enumerate(names)
    }
    variables["diverged"] = variable("lead", counts, "diverged runs with a record that far ahead")
    coords = {"measure": measures, "lead": variable("lead", leads, "lead", "SGD steps")}
    return xr.Dataset(
        variables,
        coords,
        {"kind": "separation", "converged": int((~diverged).sum()), "draws": draws},
    )


def _area(bad: FloatArray, good: FloatArray) -> float:
    """Return the probability that one of `bad` is above one of `good`."""
    above = bad[:, None] > good
    return float((above + 0.5 * (bad[:, None] == good)).mean())
