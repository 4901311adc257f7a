"""What studies of runs at the stochastic edge share: options, runs in a pool, stacked records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from quadmodel._util.checks import as_integer
from quadmodel._util.results import Variable, count_records, variable
from quadmodel._util.threads import as_threads
from quadmodel.ensemble import Ensemble
from quadmodel.model import QuadraticModel
from quadmodel.sweeps._records import Record


class Runs(NamedTuple):
    """Checked options of the runs of a study."""

    replicas: int
    steps: int
    record_every: int
    seed: int
    threads: int

    @property
    def n_records(self) -> int:
        """Number of records of a run."""
        return count_records(self.steps, self.record_every)


def as_runs(replicas: Any, steps: Any, record_every: Any, seed: Any, threads: Any) -> Runs:
    """Check the options of runs; about a hundred records by default."""
    # Steps and replicas are counters of 32 bits where batches are drawn.
    replicas = as_integer("replicas", replicas, high=2**32 - 1)
    steps = as_integer("steps", steps, high=2**32 - 1)
    if record_every is None:
        record_every = max(1, steps // 100)
    record_every = as_integer("record_every", record_every)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    return Runs(replicas, steps, record_every, seed, as_threads(threads))


def power_law_model(n_data: int, n_params: int, seed: int) -> QuadraticModel:
    """Return a linear model of NTK eigenvalues 1/k, with a residual of squared norm D."""
    base = Ensemble(n_data, n_params, jacobian=1 / np.arange(1, n_data + 1)).sample(seed)
    residual = base.residual * (n_data**0.5 / np.linalg.norm(base.residual))
    return QuadraticModel(residual, base.jacobian)


def record_of(found: xr.Dataset) -> Record:
    """Return a Dataset without coordinates as a record."""
    labels = {str(name): [values.dims, values.attrs] for name, values in found.items()}
    arrays = {str(name): np.asarray(values.values) for name, values in found.items()}
    return {**arrays, "labels": np.array(json.dumps(labels))}


def dataset_of(record: Record) -> xr.Dataset:
    """Return the Dataset in a record."""
    labels = json.loads(str(record["labels"]))
    return xr.Dataset({n: (dims, record[n], attrs) for n, (dims, attrs) in labels.items()})


def with_scaled_eigenvalue(records: xr.Dataset, learning_rate: float) -> xr.Dataset:
    """Put the largest NTK eigenvalue in units of the learning rate in place of itself."""
    largest = records.ntk_largest_eigenvalue
    name = "learning rate times largest NTK eigenvalue"
    scaled = variable(largest.dims, largest.values * learning_rate, name, "1")
    return records.drop_vars("ntk_largest_eigenvalue").assign(scaled_largest_eigenvalue=scaled)


def stacked(
    found: Sequence[xr.Dataset], names: Sequence[str], sizes: Mapping[str, int]
) -> dict[str, Variable]:
    """Return variables of the Datasets of all grid points, with the axes of the grid in front."""
    first, shape = found[0], tuple(sizes.values())
    return {
        name: (
            (*sizes, *map(str, first[name].dims)),
            np.stack([one[name].values for one in found]).reshape(*shape, *first[name].shape),
            first[name].attrs,
        )
        for name in names
    }
