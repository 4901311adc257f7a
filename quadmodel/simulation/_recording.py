"""Recording of observables along runs, for simulations and the large-P limit alike."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.results import step_coordinate, variable
from quadmodel.simulation._measurement import SAMPLED_BATCHES
from quadmodel.simulation.observables import OBSERVABLES


def stretches(recorded: IntArray) -> Iterator[tuple[int, int, int]]:
    """Yield number and step of every record, and the steps from it to the next, 0 at the end."""
    for k, (step, following) in enumerate(pairwise([*recorded.tolist(), recorded[-1]])):
        yield k, step, int(following) - step


def numbers_recorded(names: tuple[str, ...], replicas: int, n_records: int, n_data: int) -> float:
    """Return how many numbers a recorder of these observables holds."""
    sizes = {"replica": replicas, "step": n_records, "mode": n_data}
    return sum(float(np.prod([sizes[d] for d in OBSERVABLES[name].dims])) for name in names)


class Recorder:
    """Collects the observables of all replicas, record by record."""

    def __init__(
        self, names: tuple[str, ...], replicas: int, recorded: IntArray, n_data: int
    ) -> None:
        """Fill everything with what it is once a run has diverged."""
        sizes = {"replica": replicas, "step": recorded.size, "mode": n_data}
        self.names, self._recorded = names, recorded
        self._arrays = {
            name: np.full([sizes[d] for d in OBSERVABLES[name].dims], OBSERVABLES[name].diverged)
            for name in names
        }
        self._standard_error = np.full((recorded.size, n_data), np.nan)

    def put(self, k: int, replicas: Any, snapshot: object) -> None:
        """Store a snapshot of some replicas as record `k`; threads may share the replicas."""
        for name in self.names:
            if name != "mode_energy":
                self._arrays[name][replicas, k] = getattr(snapshot, name)

    def put_mode_energy(self, k: int, mean: Any, standard_error: FloatArray | None) -> None:
        """Store record `k` of the mean over replicas, with its error if there is more than one."""
        self._arrays["mode_energy"][k] = mean
        if standard_error is not None:
            self._standard_error[k] = standard_error

    def dataset(self, diverged_at: IntArray, attrs: dict[str, Any]) -> xr.Dataset:
        """Label everything."""
        variables: dict[str, Any] = {}
        for name in self.names:
            label = OBSERVABLES[name]
            variables[name] = variable(label.dims, self._arrays[name], label.long_name, label.units)
            if name == "batch_sharpness":
                variables[name][2]["sampled_batches"] = SAMPLED_BATCHES
            if name == "mode_energy":
                variables["mode_energy_standard_error"] = variable(
                    label.dims, self._standard_error, "standard error over replicas", label.units
                )
        variables["divergence_step"] = variable(
            "replica", diverged_at, "step at which the run diverged, or -1", "SGD steps"
        )
        coords = {
            "replica": np.arange(len(diverged_at)),
            "step": step_coordinate(self._recorded),
            "mode": np.arange(self._standard_error.shape[1]),
        }
        return xr.Dataset(variables, coords, attrs)
