"""The sweep of a phase diagram: edges, a grid, a finer scan, close-ups; and what it is put into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import xarray as xr

from quadmodel._util.checks import FloatArray, InputError, IntArray
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import Workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._kernels.shapes import vector_bytes
from quadmodel.simulation.growth import GridPoints, Measurement
from quadmodel.simulation.populations import KINDS
from quadmodel.studies._scan import close_ups, scan_learning_rates
from quadmodel.studies._spec import DiagramSpec, Variables
from quadmodel.sweeps._records import Record
from quadmodel.sweeps.sweep import cut
from quadmodel.theory._inputs import NORMS, Spectrum
from quadmodel.theory._noise import norms_along
from quadmodel.theory.noise_kernel import labelled_boundaries, phase_boundaries
from quadmodel.theory.typical import typical_critical_on_spectrum

PHASES = ("stable", "intermittent", "stochastically unstable", "deterministically unstable")
# Predicted phase where the mean loss grows and the theory does not say what a typical one does.
UNDECIDED = "undecided"
# Phase of a grid point of an unfinished diagram.
NOT_SIMULATED = "not simulated"
# Grid points whose growth is within so many standard errors of zero are undecided.
_CLEAR = 2.0
# Steps of runs that tell how long those of a unit take.
_CALIBRATED = 128

_LABELS = {
    "mean_growth": ("growth rate of the mean loss", "1 / step"),
    "mean_growth_standard_error": ("standard error of the mean's growth rate", "1 / step"),
    "typical_growth": ("growth rate of the typical loss", "1 / step"),
    "typical_growth_standard_error": ("standard error of the typical growth rate", "1 / step"),
    "fraction_diverged": ("fraction of replicas that diverged", "1"),
    "final_loss": ("median final loss", "loss"),
    "growth_steps": ("steps that the growth rates are from", "steps"),
    "noise_kernel_norm": ("noise kernel norm", "1"),
    "learning_rate": ("learning rate", "1 / NTK eigenvalue"),
    "growth": ("growth rate", "1 / step"),
    "growth_standard_error": ("standard error of the growth rate", "1 / step"),
    "correction": ("part of the growth that corrects for the bias of a logarithm", "1 / step"),
    "steps": ("steps of a run", "steps"),
    "replicas": ("replicas per learning rate", "1"),
    "settled": ("whether the growth has settled", "1"),
    "needed_steps": ("steps to ask for, so that growth settles", "steps"),
}
_MEASURED = tuple(_LABELS)[:7]


class Kept(ABC):
    """What a worker keeps for the next unit of a phase diagram."""

    model: QuadraticModel
    spectrum: Spectrum

    @abstractmethod
    def measure(self, points: GridPoints, pool: Workers) -> Measurement:
        """Measure how losses grow at grid points, and how replicas end."""

    @abstractmethod
    def nonlinear_edges(self, batch_sizes: Sequence[int], sgd: SGD) -> FloatArray | None:
        """Predict the edges of the nonlinear model, where that can be done."""


def spectrum_of(model: QuadraticModel) -> Spectrum:
    """Return eigenvalues and eigenvectors of the NTK, or raise InputError if it vanishes."""
    spectrum = Spectrum(*model.eigensystem)
    if spectrum.edge == 0:
        raise InputError("source: the NTK must not vanish, got eigenvalues that are all zero")
    return spectrum


class Run(Protocol):
    """Returns records of a stage in the order of its units, computed or read; None for missing."""

    def __call__(
        self, stage: str, units: Sequence[Any], undecided: Callable[[Record], int] | None = None, /
    ) -> Sequence[Record | None]:
        """Run a stage."""


# ---- units


class EdgeUnit(NamedTuple):
    """The learning rates from which on the mean loss and the typical loss grow."""

    sgd: SGD

    def compute(self, kept: Kept, pool: Workers) -> Record:
        """Predict them for one batch size."""
        found = phase_boundaries(kept.spectrum, [self.sgd.batch_size], self.sgd)
        critical = found.critical_learning_rate.values[:, 0]
        mean_square = float(critical[NORMS.index("exact")])
        return {
            "critical": critical,
            "edge": found.edge_of_stability.values[0],
            "crossing": found.crossing_batch_size.values,
            "typical": np.array(typical_critical_on_spectrum(kept.spectrum, self.sgd, mean_square)),
        }


class NonlinearUnit(NamedTuple):
    """The edges of the nonlinear model, and K of the initial NTK there, at all batch sizes."""

    batch_sizes: tuple[int, ...]
    sgd: SGD

    def compute(self, kept: Kept, pool: Workers) -> Record:
        """Predict them; empty where that can't be done."""
        critical = kept.nonlinear_edges(self.batch_sizes, self.sgd)
        if critical is None:
            return {"critical": np.empty(0), "norms": np.empty((len(NORMS), 0))}
        norms = _norms(kept.spectrum, self.sgd, critical, np.array(self.batch_sizes))
        return {"critical": critical, "norms": np.where(np.isnan(critical), np.nan, norms)}


class PointsUnit(NamedTuple):
    """Some grid points: a part of a grid."""

    points: GridPoints

    def short(self) -> tuple[PointsUnit, float]:
        """Return a unit that takes less, and how many times as long this one takes."""
        steps = min(self.points.steps, _CALIBRATED)
        return PointsUnit(replace(self.points, steps=steps)), self.points.steps / steps

    def compute(self, kept: Kept, pool: Workers) -> Record:
        """Measure them, and set noise kernel norms beside."""
        measured = kept.measure(self.points, pool)
        at = self.points
        norms = _norms(kept.spectrum, at.sgd, at.learning_rate, at.batch_size)
        return {
            **measured.variables(),
            "noise_kernel_norm": norms,
            "replica_steps": np.array(measured.replica_steps),
        }


def _norms(spectrum: Spectrum, sgd: SGD, rates: FloatArray, sizes: IntArray) -> FloatArray:
    """Return K by every norm and at every grid point, shape (norms, points)."""
    norms = np.empty((len(NORMS), rates.size))
    for size in np.unique(sizes).tolist():
        some = np.flatnonzero(sizes == size)
        at = sgd._at(batch_size=size)
        norms[:, some] = [norms_along(spectrum, at, rates[some], norm) for norm in NORMS]
    return norms


def _undecided(record: Record) -> int:
    """Return how many grid points of a record neither grow nor shrink for sure."""
    error = record["mean_growth_standard_error"]
    return int((np.abs(record["mean_growth"]) < _CLEAR * error).sum())


# ---- stages


@dataclass(frozen=True)
class Diagram:
    """A phase diagram: what it is asked for, and what its attributes say of the source.

    `linear` models have close-ups after their finer scan, `curved` ones edges of their own;
    `points_per_unit`, `points_per_scan_unit` are how many grid points a unit takes.
    """

    spec: DiagramSpec
    described: dict[str, Any]
    n_data: int
    linear: bool
    curved: bool
    points_per_unit: int
    points_per_scan_unit: int

    def expected(self) -> dict[str, int]:
        """Return how many units each stage has, at most."""
        sizes, refine = self.spec.batch_sizes.size, self.spec.refine
        found = {
            "edges": sizes + self.curved,
            "grid": -(-self.spec.n_rates * sizes // self.points_per_unit),
        }
        if refine:
            found["finer scan"] = -(-refine * sizes // self.points_per_scan_unit)
        if refine and self.linear:
            found["close-ups"] = len(KINDS) * sizes
        return found

    def specification(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON has it."""
        spec, rates = self.spec, self.spec.learning_rates
        return {
            "source": self.described,
            "sgd": spec.sgd_attributes(),
            "learning_rates": rates if isinstance(rates, int) else rates.tolist(),
            "batch_sizes": spec.batch_sizes.tolist(),
            "steps": spec.steps,
            "replicas": spec.replicas,
            "refine": spec.refine,
            "precision": spec.precision,
            "vector_bytes": vector_bytes(),  # results differ by rounding
            "seed": spec.seed,
            "units": {
                "linear": self.linear,
                "curved": self.curved,
                "points_per_unit": self.points_per_unit,
                "points_per_scan_unit": self.points_per_scan_unit,
                "n_data": self.n_data,
            },
        }

    @classmethod
    def from_specification(cls, given: Mapping[str, Any]) -> Diagram:
        """Return the diagram of a specification."""
        rates = given["learning_rates"]
        spec = DiagramSpec(
            rates if isinstance(rates, int) else np.array(rates),
            np.array(given["batch_sizes"]),
            SGD(1.0, 1, **given["sgd"]),
            given["steps"],
            given["replicas"],
            given["seed"],
            given["refine"],
            given["precision"],
        )
        return cls(spec, dict(given["source"]), **given["units"])

    def run(self, run: Run) -> xr.Dataset:
        """Return the diagram, as far as there are records."""
        spec, sizes = self.spec, self.spec.batch_sizes
        boundaries = self._boundaries(run)
        if boundaries is None:
            return xr.Dataset(attrs=self._attributes(0))
        rates = spec.learning_rates
        if isinstance(rates, int):
            rates = _spread_learning_rates(boundaries, rates)
        points = spec.points(np.repeat(rates, sizes.size), np.tile(sizes, rates.size), 0)
        on_grid, steps, complete = self._measured(run, "grid", points, self.points_per_unit)
        grid = {k: v.reshape(*v.shape[:-1], rates.size, sizes.size) for k, v in on_grid.items()}
        scan_rates = np.full((sizes.size, spec.refine), np.nan)
        if complete:
            scan_rates = scan_learning_rates(rates, grid, spec.refine)
        scan, steps_of_scan, complete = self._scan(run, scan_rates, grid, complete=complete)
        close: dict[str, np.ndarray] = {}
        if complete and self.linear and spec.refine:
            close, steps_of_close = close_ups(self.n_data, rates, grid, scan, spec, run)
            steps += steps_of_close
        return self._dataset(
            rates, grid, scan, close, boundaries, self._attributes(steps + steps_of_scan)
        )

    def _boundaries(self, run: Run) -> xr.Dataset | None:
        """Return the predicted edges."""
        sizes = tuple(self.spec.batch_sizes.tolist())
        units: list[Any] = [EdgeUnit(self.spec.sgd._at(batch_size=size)) for size in sizes]
        if self.curved:
            units.append(NonlinearUnit(sizes, self.spec.sgd))
        found = [record for record in run("edges", units) if record is not None]
        if len(found) < len(units):
            return None
        each = found[: len(sizes)]
        edges = labelled_boundaries(
            NORMS,
            sizes,
            np.stack([record["critical"] for record in each], axis=1),
            float(each[0]["edge"]),
            float(each[0]["crossing"]),
        )
        typical = np.array([record["typical"] for record in each])
        name = "learning rate above which typical runs diverge"
        labelled = variable(("batch_size",), typical, name, "1 / NTK eigenvalue")
        edges = edges.assign(typical_critical_learning_rate=labelled)
        if self.curved and found[-1]["critical"].size:
            edges = edges.assign(_labelled_edges(found[-1]["critical"], found[-1]["norms"]))
        return edges

    def _measured(
        self, run: Run, stage: str, points: GridPoints, points_per_unit: int
    ) -> tuple[Variables, int, bool]:
        """Return what is measured at grid points, the replica-steps, and whether it is complete."""
        pieces = cut(len(points), points_per_unit)
        units = [PointsUnit(part) for part in points.parts(pieces, self.n_data)]
        records = run(stage, units, _undecided)
        values: Variables = {name: np.full(len(points), np.nan) for name in _MEASURED}
        values["noise_kernel_norm"] = np.full((len(NORMS), len(points)), np.nan)
        there = [(some, r) for some, r in zip(pieces, records, strict=True) if r is not None]
        for some, record in there:
            for name, array in values.items():
                array[..., some] = record[name]
        steps = sum(int(record["replica_steps"]) for _, record in there)
        return values, steps, len(there) == len(pieces)

    def _scan(
        self, run: Run, scan_rates: FloatArray, grid: Variables, *, complete: bool
    ) -> tuple[Variables, int, bool]:
        """Measure learning rates around the simulated boundaries; NaN where there is none."""
        spec, sizes = self.spec, self.spec.batch_sizes
        found, steps = np.isfinite(scan_rates).all(axis=1), 0
        shape = sizes.size, spec.refine
        scan = {k: np.full((*v.shape[:-2], *shape), np.nan) for k, v in grid.items()}
        if spec.refine and found.any():
            points = spec.points(
                scan_rates[found].ravel(),
                np.repeat(sizes[found], spec.refine),
                spec.replicas_of_grid,
            )
            on_scan, steps, complete = self._measured(
                run, "finer scan", points, self.points_per_scan_unit
            )
            for name, value in on_scan.items():
                scan[name][..., found, :] = value.reshape(*value.shape[:-1], -1, spec.refine)
        return scan | {"learning_rate": scan_rates}, steps, complete

    def _attributes(self, replica_steps: int) -> dict[str, Any]:
        spec = self.spec
        return attributes(
            "phase diagram",
            self.described | spec.sgd_attributes(),
            steps=spec.steps,
            replicas=spec.replicas,
            refine=spec.refine,
            precision=spec.precision,
            vector_bytes=vector_bytes(),
            replica_steps=replica_steps,
            seed=spec.seed,
        )

    def _dataset(
        self,
        rates: FloatArray,
        grid: Variables,
        scan: Variables,
        close: dict[str, np.ndarray],
        boundaries: xr.Dataset,
        attrs: dict[str, Any],
    ) -> xr.Dataset:
        """Label predictions and measurements."""

        def labelled(name: str, value: FloatArray, dims: tuple[str, ...]) -> Any:
            lead = ("norm",) if name == "noise_kernel_norm" else ()
            return variable((*lead, *dims), value, *_LABELS[name])

        def close_dims(value: np.ndarray) -> tuple[str, ...]:
            return ("kind", "batch_size", "close")[: value.ndim]

        plane, lines = ("learning_rate", "batch_size"), ("batch_size", "scan")
        predicted = _predicted_phases(rates, boundaries)
        return xr.Dataset(
            {name: labelled(name, v, plane) for name, v in grid.items()}
            | {"phase": variable(plane, _phases(rates, grid, boundaries), "phase, simulated")}
            | {"predicted_phase": variable(plane, predicted, "phase, predicted")}
            | {f"scan_{name}": labelled(name, v, lines) for name, v in scan.items()}
            | {f"close_{name}": labelled(name, v, close_dims(v)) for name, v in close.items()}
            | {str(name): values for name, values in boundaries.data_vars.items()},
            coords={
                "learning_rate": labelled("learning_rate", rates, ("learning_rate",)),
                "batch_size": boundaries.batch_size,
                "norm": boundaries.norm,
            }
            | ({"kind": list(KINDS)} if close else {}),
            attrs=attrs,
        )


def _spread_learning_rates(boundaries: xr.Dataset, count: int) -> FloatArray:
    """Return learning rates from below the smallest critical one to above the largest edge."""
    low = 0.4 * float(boundaries.critical_learning_rate.min())
    return np.geomspace(low, 1.6 * float(boundaries.edge_of_stability.max()), count)


def _labelled_edges(rates: FloatArray, norms: FloatArray) -> dict[str, Any]:
    """Label the edge of the nonlinear model, and K of the initial NTK there."""
    return {
        "mean_field_critical_learning_rate": variable(
            "batch_size",
            rates,
            "learning rate above which the nonlinear model diverges, by mean-field theory",
            "1 / NTK eigenvalue",
        ),
        "mean_field_noise_kernel_norm": variable(
            ("norm", "batch_size"), norms, "noise kernel norm of the initial NTK there", "1"
        ),
    }


def _phases(rates: FloatArray, grid: Variables, boundaries: xr.Dataset) -> np.ndarray:
    """Return the phase of every grid point from its measured growth rates."""
    mean, typical = grid["mean_growth"] > 0, grid["typical_growth"] > 0
    beyond = rates[:, None] >= boundaries.edge_of_stability.values
    stable, intermittent, stochastic, deterministic = PHASES
    return np.select(
        [np.isnan(grid["fraction_diverged"]), ~mean & ~typical, beyond, mean & ~typical],
        [NOT_SIMULATED, stable, deterministic, intermittent],
        stochastic,
    )


def _predicted_phases(rates: FloatArray, boundaries: xr.Dataset) -> np.ndarray:
    """Return the phase of every grid point from the predicted learning rates."""
    at = rates[:, None]
    typical = boundaries.typical_critical_learning_rate.values
    beyond = at >= boundaries.edge_of_stability.values
    stable, intermittent, stochastic, deterministic = PHASES
    return np.select(
        [
            beyond,
            at < boundaries.critical_learning_rate.sel(norm="exact").values,
            np.isnan(typical)[None, :],
            at < typical,
        ],
        [deterministic, stable, UNDECIDED, intermittent],
        stochastic,
    )
