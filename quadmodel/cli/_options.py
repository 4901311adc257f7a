"""Options that commands share, and what they stand for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
from click.core import ParameterSource

from quadmodel import spectra
from quadmodel._util.checks import InputError, as_array, as_integer, as_number, tolerance_of
from quadmodel._util.files import array_path, check_writable, load_array, write_atomically
from quadmodel.cli._click import Command, Decorator, grouped, option
from quadmodel.cli._sweeps import SWEEP, Sweeping
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

Number = TypeVar("Number", int, float)
_FORMATS = (".png", ".pdf", ".svg")


# ---- diagrams over learning rate and batch size


def diagram_options(
    name: str,
    *,
    n_data: int,
    n_params: int | None,
    spectrum: str,
    curvature: float | None = None,
    curvature_strength: float | None = None,
    learning_rates: int | None,
    batch_sizes: int,
    steps: int,
    replicas: int,
    of_replicas: str = "Replicas per grid point.",
) -> Decorator:
    """Add the options of a diagram; the command receives a `Diagram` called `asked`.

    Without `learning_rates` there is no option for them, and the diagram has none.
    """
    options = dict(
        n_data=option("--n-data D", n_data, "Data points of a random model."),
        n_params=option(
            "--n-params P", n_params, "Parameters of a random model.", type=int,
            show_default=True if n_params else "2 D",
        ),
        spectrum=option(
            "--spectrum LAW", spectrum, "NTK spectrum of a random model: gaussian (independent "
            "Jacobian entries), marchenko-pastur (its deterministic quantiles), "
            "power-law[:EXPONENT], or outliers:V1,V2,... above a bulk of ones.",
        ),
        jacobian=option("--jacobian FILE", None, "Use this Jacobian, shape (D, P)."),
        ntk=option("--ntk FILE", None, "Use this NTK, shape (D, D), with P = D."),
        eigenvalues=option(
            "--eigenvalues FILE", None, "Use these NTK eigenvalues, shape (D,), with random "
            "eigenvectors and P = D. FILE: an .npy file, or one array of an .npz file as "
            "FILE.npz:name.",
        ),
        curvature=option(
            "--curvature SCALE", curvature, "Standard deviation of independent Gaussian curvature; "
            "above 0 the model is quadratic.", type=float,
        ),
        curvature_strength=option(
            "--curvature-strength Q", curvature_strength, "Curvature strength q = SCALE sqrt(P), "
            "in place of --curvature.", type=float,
        ),
        residual=option("--residual SCALE", 1.0, "Scale of the initial residual."),
        learning_rates=option(
            "--learning-rates VALUES", str(learning_rates), "How many, spread around both edges; "
            "or a list like 0.1,0.2; or LOW:HIGH:COUNT, spread evenly in the logarithm.",
        ),
        batch_sizes=option(
            "--batch-sizes VALUES", str(batch_sizes), "How many, spread from 1 to D; or a list "
            "like 1,8,64; or LOW:HIGH:COUNT.",
        ),
        momentum=option("--momentum", 0.0, "Momentum, inside (-1, 1)."),
        nesterov=option(
            "--nesterov", False, "Nesterov's momentum instead of the heavy ball.", is_flag=True
        ),
        weight_decay=option("--weight-decay", 0.0, "Weight decay towards the initial parameters."),
        sampling=option(
            "--sampling", SAMPLING_SCHEMES[0], "How batches are drawn.",
            type=click.Choice(SAMPLING_SCHEMES),
        ),
        steps=option("--steps", steps, "SGD steps."),
        replicas=option("--replicas", replicas, of_replicas),
        seed=_SEED,
        **SWEEP,
        **_files(name),
    )  # fmt: skip
    if learning_rates is None:
        del options["learning_rates"]
    return grouped("asked", _diagram, **options)


@dataclass(frozen=True)
class Diagram:
    """What a diagram is asked for: a source, a grid, SGD, how to run, what to write."""

    source: Source
    learning_rates: int | list[float]
    batch_sizes: int | list[int]
    sgd: SGD
    steps: int
    replicas: int
    seed: int
    how: Sweeping
    outputs: Outputs


def _diagram(
    batch_sizes: str,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    sampling: str,
    picture: str,
    data: str,
    overwrite: bool,
    learning_rates: str = "0",
    **others: Any,
) -> Diagram:
    """Return what the options stand for; refuse those that the others make meaningless."""
    if nesterov and momentum == 0:
        raise InputError("--nesterov must be given with a --momentum other than 0, got 0")
    run = {name: others.pop(name) for name in ("steps", "replicas", "seed")}
    how = Sweeping(**{name: others.pop(name) for name in SWEEP})
    source = _source(others)
    return Diagram(
        source,
        _count_or_values("--learning-rates", learning_rates, float),
        _count_or_values("--batch-sizes", batch_sizes, int),
        # Learning rate and batch size are those of the grid.
        SGD(1.0, 1, momentum, nesterov, weight_decay, sampling),
        how=how,
        outputs=_outputs(picture, data, overwrite, source.file),
        **run,
    )


def _count_or_values(flag: str, text: str, number: type[Number]) -> int | list[Number]:
    """Return a count, the values of a list, or those that LOW:HIGH:COUNT stands for."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            ends = float(low), float(high)
            if not 0 < ends[0] < ends[1] < 1e100 or not 1 <= int(count) <= 10**6:
                raise ValueError
            spread = np.geomspace(*ends, int(count))
            if number is int:  # beyond any number of data points all sizes are equally wrong
                spread = np.unique(np.minimum(spread, 2.0**62).round())
            return [number(value) for value in spread]
        return [number(part) for part in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise InputError(
            f"{flag} must be a count, a list like 1,2,4 or LOW:HIGH:COUNT with 0 < LOW < HIGH, "
            f"got {text!r}"
        ) from None


# ---- the model


@dataclass(frozen=True)
class Source:
    """An ensemble, or a model from an array in a file; curvature by its scale or its strength."""

    n_data: int
    n_params: int | None
    spectrum: str
    jacobian: str | None
    ntk: str | None
    eigenvalues: str | None
    curvature: float | None
    curvature_strength: float | None
    residual: float

    @property
    def option(self) -> str | None:
        """The option by which a file is given, if one is."""
        options = ("jacobian", "ntk", "eigenvalues")
        return next((name for name in options if getattr(self, name) is not None), None)

    @property
    def file(self) -> str | None:
        """The file that is given, if one is."""
        return None if self.option is None else getattr(self, self.option)

    def build(self, seed: int, *, draw_curvature: bool = True) -> Ensemble | QuadraticModel:
        """Return the ensemble, or the model with a residual and a curvature drawn from `seed`.

        Without `draw_curvature` a model holds the law of its curvature only.
        """
        from quadmodel.ensemble import Ensemble

        scale = as_number("--residual", self.residual, least=0.0, most=1e100)
        self._curvature(1)  # checks it
        if self.option is None or self.file is None:
            n_data = as_integer("n_data", self.n_data)
            n_params = as_integer(
                "n_params", 2 * n_data if self.n_params is None else self.n_params
            )
            law = _law(self.spectrum, n_data, n_params)
            return Ensemble(n_data, n_params, law, None, self._curvature(n_params), scale)
        array = load_array(self.file, f"--{self.option}")
        seed = as_integer("seed", seed, low=0)
        try:
            return self._from_array(array, scale, seed, draw_curvature)
        except InputError as error:
            raise InputError(f"--{self.option} {self.file}: {error}") from None

    def _from_array(
        self, array: Any, scale: float, seed: int, draw_curvature: bool
    ) -> Ensemble | QuadraticModel:
        """Return what the array in the file stands for."""
        from quadmodel.ensemble import Ensemble
        from quadmodel.model import QuadraticModel, clean_eigenvalues

        if self.eigenvalues is not None:
            values = np.sort(as_array("eigenvalues", array, (None,)))[::-1]
            values, n_data = clean_eigenvalues(values, tolerance_of(array)), len(values)
            return Ensemble(n_data, n_data, values, None, self._curvature(n_data), scale)
        of_ntk = None if self.ntk is None else QuadraticModel.from_ntk(array)
        jacobian = as_array("jacobian", array, (None, None)) if of_ntk is None else of_ntk.jacobian
        # Residual and curvature as an ensemble of this shape draws them.
        n_data, n_params = jacobian.shape
        ensemble = Ensemble(n_data, n_params, curvature=self._curvature(n_params), residual=scale)
        drawn = (ensemble if draw_curvature else replace(ensemble, curvature=None)).sample(seed)
        law_of_curvature: Any = ensemble.curvature
        if of_ntk is not None and law_of_curvature is None:
            return QuadraticModel.from_ntk(array, drawn.residual)
        return QuadraticModel(drawn.residual, jacobian, drawn.curvature, law_of_curvature)

    def _curvature(self, n_params: int) -> float:
        """Return the standard deviation of the curvature."""
        if self.curvature_strength is None:
            return as_number("--curvature", self.curvature, least=0.0, most=1e100)
        strength = self.curvature_strength
        strength = as_number("--curvature-strength", strength, least=0.0, most=1e100)
        return strength / math.sqrt(n_params)


def _source(values: dict[str, Any]) -> Source:
    """Return the source; refuse options that the others make meaningless."""
    context = click.get_current_context()
    given = [
        name for name in values if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    files = [name for name in ("jacobian", "ntk", "eigenvalues") if name in given]
    if len(files) > 1:
        raise InputError(f"one of --jacobian, --ntk, --eigenvalues must be given, got {files}")
    for name in ("n_data", "n_params", "spectrum"):
        if files and name in given:
            raise InputError(
                f"--{name.replace('_', '-')} must not be given with --{files[0]}, which sets it, "
                f"got {values[name]}"
            )
    if "curvature" in given:
        if "curvature_strength" in given:
            raise InputError(
                "--curvature and --curvature-strength must not both be given, got "
                f"{values['curvature']:g} and {values['curvature_strength']:g}"
            )
        values["curvature_strength"] = None
    return Source(**values)


def _law(text: str, n_data: int, n_params: int) -> spectra.SpectralLaw:
    """Return the spectral law named on the command line."""
    name, _, detail = text.partition(":")
    try:
        if name == "gaussian" and not detail:
            return spectra.IndependentGaussian()
        if name == "marchenko-pastur" and not detail:
            return spectra.MarchenkoPastur(n_params / n_data)
        if name == "power-law":
            return spectra.PowerLaw(float(detail or 1.0))
        if name == "outliers":
            return spectra.Outliers([float(v) for v in detail.split(",")])
    except InputError as error:
        raise InputError(f"--spectrum: {error}") from None
    except ValueError:
        pass
    raise InputError(
        "--spectrum must be gaussian, marchenko-pastur, power-law[:EXPONENT] or "
        f"outliers:V1,V2,..., got {text!r}"
    )


# ---- how to run, and what to write

_SEED = option("--seed", 0, "Seed of models, curvatures and batches.")


def run_options(command: Command) -> Command:
    """Add options for the seed, and for the sweep: a `Sweeping` called `how`."""
    return _SEED(grouped("how", Sweeping, **SWEEP)(command))


def _files(name: str) -> dict[str, Decorator]:
    return {
        "picture": option("--picture FILE", f"{name}.png", "Picture: .png, .pdf or .svg."),
        "data": option("--data FILE", f"{name}.nc", "NetCDF file of the result."),
        "overwrite": option(
            "--overwrite",
            False,
            "Replace files that exist; without it they are kept, and the command refuses to run.",
            is_flag=True,
        ),
    }


def output_options(name: str) -> Decorator:
    """Add options for the files to write; the command receives `Outputs` called `outputs`."""
    return grouped("outputs", _outputs, **_files(name))


@dataclass(frozen=True)
class Outputs:
    """The picture and the NetCDF file that a command writes."""

    picture: Path
    data: Path

    def write(self, found: xr.Dataset, draw: Callable[[xr.Dataset, Figure], None]) -> None:
        """Write both files or none: each moves into place only after both are complete."""
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained", dpi=150)
        with write_atomically(self.data) as data, write_atomically(self.picture) as picture:
            found.to_netcdf(data, engine="h5netcdf")
            draw(found, figure)
            figure.savefig(picture)

    def __str__(self) -> str:
        """Say what was written."""
        return f"wrote {self.picture} and {self.data}"


def _outputs(picture: str, data: str, overwrite: bool, file: str | None = None) -> Outputs:
    """Return the outputs if both can be written, and not over the source or what is kept."""
    outputs = Outputs(Path(picture), Path(data))
    _check_suffix(picture)
    if not data:
        raise InputError("--data must name a file, got ''")
    named = {"--picture": outputs.picture, "--data": outputs.data}
    for name, path in named.items():
        check_writable(path, name)
        if file and path.resolve() == array_path(file).resolve():
            raise InputError(f"outputs must not replace an input, got {path} for both")
    if outputs.picture.resolve() == outputs.data.resolve():
        raise InputError(f"--picture and --data must be different files, got {picture} twice")
    kept = [f"{name} {path}" for name, path in named.items() if os.path.lexists(path)]
    if kept and not overwrite:
        raise InputError(
            f"{' and '.join(kept)} must not exist yet: choose another name, or give --overwrite "
            "to replace what is there"
        )
    return outputs


def _check_suffix(picture: str) -> None:
    if Path(picture).suffix not in _FORMATS:
        raise InputError(f"--picture must end in {', '.join(_FORMATS)}, got {picture or repr('')}")


def check_picture(path: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a picture can be written, and replaces nothing that is kept."""
    _check_suffix(str(path))
    check_writable(path, "--picture")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"--picture {path} must not exist yet, or --overwrite be given")


def values_option(flag: str, default: str, number: type[Number], text: str) -> Decorator:
    """Add an option for a list of numbers."""

    def listed(_: click.Context, __: click.Parameter, value: str) -> list[Number]:
        try:
            return [number(part) for part in value.split(",")]
        except ValueError:
            raise InputError(f"{flag} must be a list like {default}, got {value!r}") from None

    return option(f"{flag} VALUES", default, text, callback=listed)
