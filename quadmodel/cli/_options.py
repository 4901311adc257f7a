"""Options that commands share, and what they stand for: a model, SGD, a grid, two files.

Each decorator below adds a group of options to a command and hands them over as one argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
from click.core import ParameterSource

from quadmodel import spectra
from quadmodel._util.checks import FloatArray, InputError, as_array, as_integer, as_number
from quadmodel._util.files import array_path, check_writable, load_array, write_atomically
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

Number = TypeVar("Number", int, float)
Command = Callable[..., None]
Decorator = Callable[[Command], Command]
_FORMATS = (".png", ".pdf", ".svg")


def _grouped(argument: str, build: Callable[..., object], **options: Decorator) -> Decorator:
    """Add options, by name, to a command, which receives what `build` makes of their values."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def grouped(**values: Any) -> None:
            values[argument] = build(**{name: values.pop(name) for name in options})
            command(**values)

        for add in reversed(options.values()):
            add(grouped)
        return grouped

    return decorate


# ---- the model


def model_options(
    *,
    n_data: int,
    n_params: int | None,
    spectrum: str,
    curvature: float | None = None,
    curvature_strength: float | None = None,
) -> Decorator:
    """Add options for what to train; the command receives a `Source` called `source`."""
    return _grouped(
        "source",
        _source,
        n_data=click.option(
            "--n-data", default=n_data, metavar="D", help="Data points of a random model."
        ),
        n_params=click.option(
            "--n-params",
            type=int,
            default=n_params,
            show_default=True if n_params else "2 D",
            metavar="P",
            help="Parameters of a random model.",
        ),
        spectrum=click.option(
            "--spectrum",
            default=spectrum,
            metavar="LAW",
            help="NTK spectrum of a random model: gaussian (independent Jacobian entries), "
            "marchenko-pastur (its deterministic quantiles), power-law[:EXPONENT], or "
            "outliers:V1,V2,... above a bulk of ones.",
        ),
        jacobian=click.option(
            "--jacobian", metavar="FILE", help="Use this Jacobian, shape (D, P)."
        ),
        ntk=click.option("--ntk", metavar="FILE", help="Use this NTK, shape (D, D), with P = D."),
        eigenvalues=click.option(
            "--eigenvalues",
            metavar="FILE",
            help="Use these NTK eigenvalues, shape (D,), with random eigenvectors and P = D. "
            "FILE: an .npy file, or one array of an .npz file as FILE.npz:name.",
        ),
        curvature=click.option(
            "--curvature",
            type=float,
            default=curvature,
            metavar="SCALE",
            help="Standard deviation of independent Gaussian curvature; above 0 the model is "
            "quadratic.",
        ),
        curvature_strength=click.option(
            "--curvature-strength",
            type=float,
            default=curvature_strength,
            metavar="Q",
            help="Curvature strength q = SCALE sqrt(P), in place of --curvature.",
        ),
        residual=click.option(
            "--residual", default=1.0, metavar="SCALE", help="Scale of the initial residual."
        ),
    )


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
    def file(self) -> str | None:
        """The file that is given, if one is."""
        files = (self.jacobian, self.ntk, self.eigenvalues)
        return next((file for file in files if file is not None), None)

    def build(self, seed: int, *, draw_curvature: bool = True) -> Ensemble | QuadraticModel:
        """Return the ensemble, or the model with a residual and a curvature drawn from `seed`.

        Without `draw_curvature` a model holds the law of its curvature only.
        """
        from quadmodel.ensemble import Ensemble
        from quadmodel.model import QuadraticModel

        scale = as_number("--residual", self.residual, least=0.0, most=1e100)
        if self.file is None:
            n_data = as_integer("n_data", self.n_data)
            n_params = as_integer(
                "n_params", 2 * n_data if self.n_params is None else self.n_params
            )
            law = _law(self.spectrum, n_data, n_params)
            return Ensemble(n_data, n_params, law, None, self._curvature(n_params), scale)
        array = load_array(self.file)
        if self.eigenvalues is not None:
            values = as_array("--eigenvalues", array, (None,))
            n_data = len(values)
            return Ensemble(n_data, n_data, values, None, self._curvature(n_data), scale)
        if self.ntk is not None:
            array = QuadraticModel.from_ntk(as_array("--ntk", array, (None, None))).jacobian
        jacobian = as_array("--jacobian", array, (None, None))
        # Residual and curvature as an ensemble of this shape draws them.
        n_data, n_params = jacobian.shape
        ensemble = Ensemble(n_data, n_params, curvature=self._curvature(n_params), residual=scale)
        drawn = (ensemble if draw_curvature else replace(ensemble, curvature=None)).sample(seed)
        law_of_curvature: Any = ensemble.curvature
        return QuadraticModel(drawn.residual, jacobian, drawn.curvature, law_of_curvature)

    def _curvature(self, n_params: int) -> float:
        """Return the standard deviation of the curvature."""
        if self.curvature_strength is None:
            return as_number("--curvature", self.curvature, least=0.0, most=1e100)
        strength = self.curvature_strength
        strength = as_number("--curvature-strength", strength, least=0.0, most=1e100)
        return strength / math.sqrt(n_params)


def _source(**values: Any) -> Source:
    """Refuse options that the others make meaningless."""
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
    scale, strength = values["curvature"], values["curvature_strength"]
    if "curvature" in given and "curvature_strength" in given:
        raise InputError(
            "--curvature and --curvature-strength must not both be given, got "
            f"{scale:g} and {strength:g}"
        )
    if "curvature" in given:
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


# ---- SGD


def _sgd(momentum: float, nesterov: bool, weight_decay: float, sampling: str) -> SGD:
    """Return SGD whose learning rate and batch size are not used."""
    if nesterov and momentum == 0:
        raise InputError("--nesterov must be given with a --momentum other than 0, got 0")
    return SGD(1.0, 1, momentum, nesterov, weight_decay, sampling)


# Add options for SGD; the command receives an `SGD` called `sgd`.
sgd_options = _grouped(
    "sgd",
    _sgd,
    momentum=click.option("--momentum", default=0.0, help="Momentum, inside (-1, 1)."),
    nesterov=click.option(
        "--nesterov", is_flag=True, help="Nesterov's momentum instead of the heavy ball."
    ),
    weight_decay=click.option(
        "--weight-decay", default=0.0, help="Weight decay towards the initial parameters."
    ),
    sampling=click.option(
        "--sampling",
        type=click.Choice(SAMPLING_SCHEMES),
        default=SAMPLING_SCHEMES[0],
        help="How batches are drawn.",
    ),
)


# ---- the grid


@dataclass(frozen=True)
class Grid:
    """Learning rates and batch sizes: how many, or the values."""

    learning_rates: int | list[float]
    batch_sizes: int | list[int]


def grid_options(*, learning_rates: int, batch_sizes: int) -> Decorator:
    """Add options for the grid; the command receives a `Grid` called `grid`."""
    return _grouped(
        "grid",
        _grid,
        learning_rates=click.option(
            "--learning-rates",
            default=str(learning_rates),
            metavar="VALUES",
            help="How many, spread around both edges; or a list like 0.1,0.2; or LOW:HIGH:COUNT, "
            "spread evenly in the logarithm.",
        ),
        batch_sizes=click.option(
            "--batch-sizes",
            default=str(batch_sizes),
            metavar="VALUES",
            help="How many, spread from 1 to D; or a list like 1,8,64; or LOW:HIGH:COUNT.",
        ),
    )


def _grid(learning_rates: str, batch_sizes: str) -> Grid:
    return Grid(
        _count_or_values("--learning-rates", learning_rates, float, lambda spread: spread),
        _count_or_values("--batch-sizes", batch_sizes, int, _whole),
    )


def _whole(spread: FloatArray) -> Any:
    # Beyond any number of data points all sizes are equally wrong.
    return np.unique(np.minimum(spread, 2.0**62).round().astype(np.int64))


def _count_or_values(
    option: str,
    text: str,
    number: Callable[[str], Number],
    rounded: Callable[[FloatArray], Any],
) -> int | list[Number]:
    """Return a count, the values of a list, or those that LOW:HIGH:COUNT stands for."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            ends = float(low), float(high)
            if not 0 < ends[0] < ends[1] < 1e100 or not 1 <= int(count) <= 10**6:
                raise ValueError
            values: list[Number] = rounded(np.geomspace(*ends, int(count))).tolist()
            return values
        return [number(part) for part in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise InputError(
            f"{option} must be a count, a list like 1,2,4 or LOW:HIGH:COUNT with 0 < LOW < HIGH, "
            f"got {text!r}"
        ) from None


def values_option(name: str, default: str, number: type[Number], text: str) -> Decorator:
    """Add an option for a list of numbers."""

    def listed(_: click.Context, __: click.Parameter, value: str) -> list[Number]:
        try:
            return [number(part) for part in value.split(",")]
        except ValueError:
            raise InputError(f"{name} must be a list like {default}, got {value!r}") from None

    return click.option(name, default=default, metavar="VALUES", callback=listed, help=text)


# ---- how to run, and what to write


def run_options(command: Command) -> Command:
    """Add options for seed and threads."""
    threads = click.option(
        "--threads", type=int, default=None, help="Worker threads.  [default: all cores]"
    )
    seed = click.option("--seed", default=0, help="Seed of models, curvatures and batches.")
    return seed(threads(command))


@dataclass(frozen=True)
class Outputs:
    """The picture and the NetCDF file that a command writes."""

    picture: Path
    data: Path

    def check(self, source: Source | None = None) -> None:
        """Raise InputError unless both can be written, and not over the file of the source."""
        if self.picture.suffix not in _FORMATS:
            raise InputError(f"--picture must end in {', '.join(_FORMATS)}, got {self.picture}")
        for path in (self.picture, self.data):
            check_writable(path)
            file = None if source is None else source.file
            if file is not None and path.resolve() == array_path(file).resolve():
                raise InputError(f"outputs must not replace an input, got {path} for both")
        if self.picture.resolve() == self.data.resolve():
            raise InputError(
                f"--picture and --data must be different files, got {self.picture} twice"
            )

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


def output_options(name: str) -> Decorator:
    """Add options for the files to write; the command receives `Outputs` called `outputs`."""
    return _grouped(
        "outputs",
        lambda picture, data: Outputs(Path(picture), Path(data)),
        picture=click.option(
            "--picture", default=f"{name}.png", metavar="FILE", help="Picture: .png, .pdf or .svg."
        ),
        data=click.option(
            "--data", default=f"{name}.nc", metavar="FILE", help="NetCDF file of the result."
        ),
    )
