"""Command line: quadmodel phase-diagram, quadmodel validate, quadmodel derive."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from quadmodel import spectra
from quadmodel._files import array_path, check_writable, load_array, write_atomically
from quadmodel._validation import InputError, as_array, as_number
from quadmodel._version import __version__
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

_INPUTS = ("jacobian", "ntk", "eigenvalues")
_FORMATS = (".png", ".pdf", ".svg")
# What an option is where it is not given: for stability, for sharpening
_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "n_data": (200, 60),
    "n_params": (400, 240),
    "spectrum": ("gaussian", "power-law"),
    "curvature": (0.0, 0.003),
    "learning_rates": (24, 12),
    "batch_sizes": (12, 8),
    "steps": (1000, 60),
    "replicas": (16, 12),
}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="quadmodel")
@click.pass_context
def cli(context: click.Context) -> None:
    """Stability and curvature of SGD in the quadratic regression model."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


class _Values(click.ParamType[Any]):
    """A count, a comma-separated list, or LOW:HIGH:COUNT spread evenly in the logarithm."""

    name = "values"

    def __init__(self, convert: Callable[[str], Any], *, whole: bool) -> None:
        self._convert, self._whole = convert, whole

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if ":" in value:
                low, high, count = value.split(":")
                ends = float(low), float(high)
                if not 0 < ends[0] < ends[1] < 1e100 or not 1 <= int(count) <= 10**6:
                    raise ValueError
                spread = np.geomspace(*ends, int(count))
                if not self._whole:
                    return spread
                # Beyond any number of data points all sizes are equally wrong.
                return np.unique(np.minimum(spread, 2.0**62).round().astype(np.int64))
            if "," in value:
                return [self._convert(part) for part in value.split(",")]
            return int(value)
        except ValueError:
            self.fail(
                "expected a count, a list like 1,2,4 or LOW:HIGH:COUNT with 0 < LOW < HIGH, "
                f"got {value!r}"
            )


@cli.command("phase-diagram")
@click.option(
    "--observable",
    type=click.Choice(["stability", "sharpening"]),
    default="stability",
    help="Growth of the loss, or of the largest NTK eigenvalue.",
)
@click.option(
    "--n-data",
    type=int,
    metavar="D",
    show_default="200, sharpening: 60",
    help="Data points of a random model.",
)
@click.option(
    "--n-params",
    type=int,
    metavar="P",
    show_default="400, sharpening: 240",
    help="Parameters of a random model.",
)
@click.option(
    "--spectrum",
    show_default="gaussian, sharpening: power-law",
    metavar="LAW",
    help="NTK spectrum of a random model: gaussian (independent Jacobian entries), "
    "marchenko-pastur (its deterministic quantiles), power-law[:EXPONENT], or "
    "outliers:V1,V2,... above a bulk of ones.",
)
@click.option("--jacobian", metavar="FILE", help="Use this Jacobian, shape (D, P).")
@click.option("--ntk", metavar="FILE", help="Use this NTK, shape (D, D), with P = D.")
@click.option(
    "--eigenvalues",
    metavar="FILE",
    help="Use these NTK eigenvalues, shape (D,), with random eigenvectors and P = D. "
    "FILE: an .npy file, or one array of an .npz file as FILE.npz:name.",
)
@click.option(
    "--curvature",
    type=float,
    show_default="0, sharpening: 0.003",
    metavar="SCALE",
    help="Standard deviation of independent Gaussian curvature; above 0 the model is quadratic.",
)
@click.option(
    "--residual", type=float, default=1.0, metavar="SCALE", help="Scale of the initial residual."
)
@click.option(
    "--learning-rates",
    type=_Values(float, whole=False),
    show_default="24, sharpening: 12",
    help="How many, spread around both edges; or a list like 0.1,0.2; or LOW:HIGH:COUNT.",
)
@click.option(
    "--batch-sizes",
    type=_Values(int, whole=True),
    show_default="12, sharpening: 8",
    help="How many, spread from 1 to D; or a list like 1,8,64; or LOW:HIGH:COUNT.",
)
@click.option("--momentum", type=float, default=0.0, help="Momentum, inside (-1, 1).")
@click.option("--nesterov", is_flag=True, help="Nesterov's momentum instead of the heavy ball.")
@click.option(
    "--weight-decay", type=float, default=0.0, help="Pull towards the initial parameters."
)
@click.option(
    "--sampling", type=click.Choice(SAMPLING_SCHEMES), default=SAMPLING_SCHEMES[0],
    help="How batches are drawn.",
)  # fmt: skip
@click.option("--steps", type=int, show_default="1000, sharpening: 60", help="SGD steps per run.")
@click.option(
    "--replicas",
    type=int,
    show_default="16, sharpening: 12",
    help="Runs per cell; for sharpening, antithetic pairs of curvature draws.",
)
@click.option(
    "--refine", type=int, default=12, help="Learning rates of the finer scan around the boundary."
)
@click.option("--seed", type=int, default=0, help="Seed of the model and of all batches.")
@click.option("--threads", type=int, default=None, help="Worker threads.  [default: all cores]")
@click.option(
    "--picture", default="phase-diagram.png", metavar="FILE", help="Picture: .png, .pdf or .svg."
)
@click.option(
    "--data", default="phase-diagram.nc", metavar="FILE", help="NetCDF file of the result."
)
def phase_diagram_command(**options: Any) -> None:
    """Draw the phase diagram of learning rate against batch size.

    Simulates SGD on a grid, predicts the edges of stability, writes a picture and a NetCDF file,
    and prints, per batch size, the predicted and the simulated critical learning rate and the
    simulated critical noise kernel norm K, to be set beside 1. With --observable sharpening:
    predicted and simulated growth of the largest NTK eigenvalue, with random curvature.
    """
    sharpening = options["observable"] == "sharpening"
    for name, values in _DEFAULTS.items():
        if options[name] is None:
            options[name] = values[sharpening]
    picture, data = Path(options["picture"]), Path(options["data"])
    _check_picture(options["picture"])
    inputs = [options[name] for name in _INPUTS if options[name] is not None]
    for path in (picture, data):
        check_writable(path)
        for file in inputs:
            if path.resolve() == array_path(file).resolve():
                raise InputError(f"outputs must not replace an input, got {path} for both")
    if picture.resolve() == data.resolve():
        raise InputError(f"--picture and --data must be different files, got {picture} twice")
    sgd = SGD(
        learning_rate=1.0,
        batch_size=1,
        momentum=options["momentum"],
        nesterov=options["nesterov"],
        weight_decay=options["weight_decay"],
        sampling=options["sampling"],
    )
    source = _source(options)
    began = time.perf_counter()
    if sharpening:
        _sharpening(source, sgd, options)
        click.echo(f"{time.perf_counter() - began:.1f} s\nwrote {picture} and {data}")
        return
    from quadmodel.phase import phase_diagram

    grid = phase_diagram(
        source,
        options["learning_rates"],
        options["batch_sizes"],
        sgd=sgd,
        steps=options["steps"],
        replicas=options["replicas"],
        seed=options["seed"],
        refine=options["refine"],
        threads=options["threads"],
        progress=True,
    )
    elapsed = time.perf_counter() - began
    # Both or none: each is moved into place only after both are written.
    with write_atomically(data) as partial_data, write_atomically(picture) as partial_picture:
        grid.to_netcdf(partial_data, engine="h5netcdf")
        _draw(grid, partial_picture)
    click.echo(_table(grid))
    done = grid.attrs["replica_steps"]
    click.echo(
        f"{elapsed:.1f} s, {done:,} replica-steps, {done / elapsed:,.0f} replica-steps per second"
    )
    click.echo(f"wrote {picture} and {data}")


def _sharpening(source: Ensemble | QuadraticModel, sgd: SGD, options: dict[str, Any]) -> None:
    """Map the growth of the largest eigenvalue, write both files and print the growths."""
    from quadmodel.sharpening_diagram import sharpening_diagram

    grid = sharpening_diagram(
        source,
        options["learning_rates"],
        options["batch_sizes"],
        sgd=sgd,
        steps=options["steps"],
        pairs=options["replicas"],
        seed=options["seed"],
        threads=options["threads"],
        progress=True,
    )
    picture, data = Path(options["picture"]), Path(options["data"])
    with write_atomically(data) as partial_data, write_atomically(picture) as partial_picture:
        grid.to_netcdf(partial_data, engine="h5netcdf")
        _draw(grid, partial_picture)
    both = {"predicted": grid.predicted_growth, "simulated": grid.simulated_growth}
    for name, growth in both.items():
        frame = growth.to_pandas()
        frame.index.name, frame.columns.name = "learning rate", "batch size"
        click.echo(
            f"{name} growth of the largest NTK eigenvalue in {options['steps']} steps, share"
        )
        click.echo(frame.to_string(float_format=lambda value: f"{value:.2e}", na_rep="-"))


def _source(options: dict[str, Any]) -> Ensemble | QuadraticModel:
    """Return the ensemble or model that the options describe."""
    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

    given = [name for name in _INPUTS if options[name] is not None]
    if len(given) > 1:
        raise InputError(f"one of --jacobian, --ntk, --eigenvalues must be given, got {given}")
    curvature = as_number("--curvature", options["curvature"], least=0.0, most=1e100)
    scale = as_number("--residual", options["residual"], least=0.0, most=1e100)
    seed = options["seed"]
    if not given:
        law = _law(options["spectrum"])
        n_data, n_params = options["n_data"], options["n_params"]
        if law is spectra.MarchenkoPastur:
            law = spectra.MarchenkoPastur(n_params / n_data)
        return Ensemble(n_data, n_params, jacobian=law, curvature=curvature, residual=scale)
    (name,) = given
    array = load_array(options[name])
    if name == "eigenvalues":
        values = as_array(f"--{name}", array, (None,))
        return Ensemble(len(values), len(values), values, curvature=curvature, residual=scale)
    array = as_array(f"--{name}", array, (None, None))
    if name == "ntk":
        array = QuadraticModel.from_ntk(array).jacobian
    # Residual and curvature as an ensemble of this shape draws them.
    n_data, n_params = array.shape
    drawn = Ensemble(n_data, n_params, curvature=curvature, residual=scale).sample(seed)
    return QuadraticModel(drawn.residual, array, drawn.curvature, drawn.curvature_law)


def _law(text: str) -> Any:
    """Return the spectral law named on the command line."""
    name, _, detail = text.partition(":")
    try:
        if name == "gaussian" and not detail:
            return spectra.IndependentGaussian()
        if name == "marchenko-pastur" and not detail:
            return spectra.MarchenkoPastur
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


def _draw(grid: xr.Dataset, picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    from quadmodel import plot

    if "simulated_growth" in grid:
        figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
        for ax, quantity in zip(axes, ("predicted_growth", "simulated_growth"), strict=True):
            plot.sharpening_diagram(grid, ax, quantity=quantity)
    else:
        figure, ax = plt.subplots(figsize=(8, 6), layout="constrained")
        draw = plot.persistent_edge if "run" in grid.dims else plot.phase_diagram
        draw(grid, ax)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def _table(grid: xr.Dataset) -> str:
    """Return critical learning rates and critical K per batch size, as text."""
    import pandas as pd

    from quadmodel.compare import critical_noise_kernel_norm

    mean = critical_noise_kernel_norm(grid)
    typical = critical_noise_kernel_norm(grid, growth="typical")

    def number(value: float) -> str:
        return "-" if np.isnan(value) else f"{value:.4g}"

    def interval(table: xr.Dataset, name: str) -> list[str]:
        columns = (table[f"{name}{end}"].values for end in ("", "_low", "_high"))
        return [
            "-" if np.isnan(v) else f"{number(v)} [{number(low)}, {number(high)}]"
            for v, low, high in zip(*columns, strict=True)
        ]

    rows = pd.DataFrame(
        {
            "batch size": grid.batch_size.values,
            "predicted (K = 1, exact)": [
                number(v) for v in grid.critical_learning_rate.sel(norm="exact").values
            ],
            "edge": [number(v) for v in grid.edge_of_stability.values],
            "simulated, mean square": interval(mean, "learning_rate"),
            "simulated, typical": interval(typical, "learning_rate"),
            "critical K": interval(mean, "noise_kernel_norm"),
        }
    )
    pooled = [float(mean[f"pooled_noise_kernel_norm{end}"]) for end in ("", "_low", "_high")]
    verdict = (
        "simulated critical K, all batch sizes: not found inside the grid"
        if np.isnan(pooled[0])
        else "simulated critical K, all batch sizes: "
        f"{pooled[0]:.4f} [{pooled[1]:.4f}, {pooled[2]:.4f}] (95%), predicted: 1"
    )
    return f"critical learning rate (1 / NTK eigenvalue)\n{rows.to_string(index=False)}\n{verdict}"


@cli.command("validate")
@click.option("--quick", is_flag=True, help="Under a minute instead of under ten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--picture",
    default="validate.png",
    metavar="FILE",
    help="Picture of runs that train at the stochastic edge, for the full battery.",
)
@click.option("--seed", type=int, default=0, help="Seed of models, batches and curvatures.")
@click.option("--threads", type=int, default=None, help="Worker threads.  [default: all cores]")
@click.pass_context
def validate_command(
    context: click.Context,
    quick: bool,
    as_json: bool,
    picture: str,
    seed: int,
    threads: int | None,
) -> None:
    """Compare the theory's closed forms with Monte Carlo, one row each.

    Exits with 1 where a row differs by more than chance would give in one of a million batteries.
    The full battery also follows runs with curvature that grows with the NTK, which train at the
    stochastic edge: their noise kernel norms are printed and drawn, and are no verdict.
    """
    import json

    from quadmodel.validate import validate

    if not quick:
        _check_picture(picture)
    began = time.perf_counter()
    found = validate(quick=quick, seed=seed, threads=threads, progress=True)
    frame = found.to_dataframe()
    edge = None if quick else _persistent_edge(Path(picture), seed, threads)
    if as_json:
        tables = {"rows": frame.reset_index()}
        if edge is not None:
            tables["persistent_edge"] = edge
        rows = {
            name: [{key: _or_null(value) for key, value in row.items()} for row in records]
            for name, records in ((name, t.to_dict("records")) for name, t in tables.items())
        }
        summary = {key: _or_null(value) for key, value in found.attrs.items()}
        click.echo(json.dumps({**summary, **rows}, indent=1, allow_nan=False))
    else:
        frame = frame.assign(verdict=np.where(frame.agrees, "agrees", "DIFFERS"))
        columns = ["predicted", "measured", "standard_error", "z", "verdict"]
        shown = frame[columns].reset_index()
        click.echo(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        worst, bound, verdict = (found.attrs[name] for name in ("worst", "bound", "verdict"))
        elapsed = time.perf_counter() - began
        click.echo(
            f"{len(frame)} rows, {elapsed:.0f} s, |z| <= {worst:.2f} ({bound:.2f}): {verdict}"
        )
        if edge is not None:
            click.echo("\nruns at the persistent edge, medians over the last third of the steps")
            click.echo(edge.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
            click.echo(f"wrote {picture}")
    context.exit(0 if found.attrs["verdict"] == "agree" else 1)


def _or_null(value: Any) -> Any:
    """Return a value as JSON knows it: it has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _check_picture(picture: str) -> None:
    if Path(picture).suffix not in _FORMATS:
        raise InputError(f"--picture must end in {', '.join(_FORMATS)}, got {picture}")
    check_writable(picture)


def _persistent_edge(picture: Path, seed: int, threads: int | None) -> pd.DataFrame:
    """Run the persistent edge, draw it, and return one line per run."""
    from quadmodel.persistent_edge import late_table, persistent_edge

    found = persistent_edge(seed=seed, threads=threads, progress=True)
    with write_atomically(picture) as partial:
        _draw(found, partial)
    table = late_table(found)
    frame = table.sel(quantile=0.5).drop_vars("quantile").to_dataframe().reset_index()
    exact = table.noise_kernel_norm_exact.stack(row=("strength", "run"))
    frame["exact_low"], frame["exact_high"] = exact.sel(quantile=0.25), exact.sel(quantile=0.75)
    return frame


@cli.command("derive")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a file differs.")
@click.option("--root", default=".", metavar="DIR", help="Folder of the checkout to write to.")
@click.pass_context
def derive_command(context: click.Context, names: tuple[str, ...], check: bool, root: str) -> None:
    """Derive the theory's equations and write them.

    NAME is a number, like 03, or the name of what to derive, or all; without any, list them. The
    documents go to derivations/, the module of formulas to quadmodel/theory/.
    """
    top = Path(root)
    if not top.is_dir():
        raise InputError(f"--root must be an existing folder, got {root}")
    from quadmodel.symbolic.targets import chosen, targets

    if not names and not check:
        for target in targets():
            click.echo(f"{target.name:24}{target.path:42}{target.title}")
        return
    selected = chosen(names or ("all",))
    outputs = [top / target.path for target in selected]
    if not check:
        for target, output in zip(selected, outputs, strict=True):
            if not output.parent.is_dir():
                raise InputError(
                    f"--root must be a checkout with {Path(target.path).parent}/, got {root}"
                )
            check_writable(output)
    texts = [target.text() for target in selected]
    stale = [
        output
        for output, text in zip(outputs, texts, strict=True)
        if not output.is_file() or output.read_bytes() != text.encode()
    ]
    if check:
        for output in outputs:
            click.echo(f"{'differs' if output in stale else 'same':9}{output}")
        context.exit(1 if stale else 0)
    for output, text in zip(outputs, texts, strict=True):
        with write_atomically(output) as partial:
            partial.write_bytes(text.encode())
        click.echo(f"{'wrote' if output in stale else 'same':9}{output}")


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2."""
    try:
        sys.exit(cli(prog_name="quadmodel", standalone_mode=False))
    except click.ClickException as error:
        _complain(error.format_message())
    except (InputError, MemoryError, OSError) as error:
        _complain(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)


def _complain(message: str) -> None:
    click.echo(f"quadmodel: error: {' '.join(message.split())}", err=True)
    sys.exit(2)
