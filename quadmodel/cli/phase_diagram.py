"""quadmodel phase-diagram."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from quadmodel._util.checks import InputError
from quadmodel._util.files import array_path, check_writable, write_atomically
from quadmodel.cli import _pictures as pictures
from quadmodel.cli._options import INPUTS, Values
from quadmodel.cli._options import source as source_of
from quadmodel.cli._sharpening import map_sharpening
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD

if TYPE_CHECKING:
    import xarray as xr

# What an option is where it is not given: for stability, for sharpening, in the large-P limit
DEFAULTS: dict[str, tuple[Any, Any, Any]] = {
    "n_data": (200, 60, 40),
    "n_params": (400, 240, "2 D"),
    "spectrum": ("gaussian", "power-law", "power-law"),
    "curvature": (0.0, 0.003, None),
    "strength": (None, None, 1.0),
    "learning_rates": (24, 12, 16),
    "batch_sizes": (12, 8, 8),
    "steps": (1000, 60, 1000),
    "replicas": (16, 12, 8),
}


def _shown(name: str) -> str:
    """Return how help shows the defaults of an option."""
    kinds = ("", "sharpening: ", "large-p: ")
    plain = [f"{v:g}" if isinstance(v, float) else v for v in DEFAULTS[name]]
    known = [
        f"{kind}{value}" for kind, value in zip(kinds, plain, strict=True) if value is not None
    ]
    return ", ".join(known[:2] if plain[2] == plain[0] else known)


@click.command("phase-diagram")
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
    show_default=_shown("n_data"),
    help="Data points of a random model.",
)
@click.option(
    "--n-params",
    type=int,
    metavar="P",
    show_default=_shown("n_params"),
    help="Parameters of a random model.",
)
@click.option(
    "--spectrum",
    show_default=_shown("spectrum"),
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
    show_default=_shown("curvature"),
    metavar="SCALE",
    help="Standard deviation of independent Gaussian curvature; above 0 the model is quadratic.",
)
@click.option(
    "--strength",
    type=float,
    show_default=_shown("strength"),
    metavar="Q",
    help="Curvature by its strength q = SCALE sqrt(P), in place of --curvature.",
)
@click.option(
    "--residual", type=float, default=1.0, metavar="SCALE", help="Scale of the initial residual."
)
@click.option(
    "--learning-rates",
    type=Values(float, whole=False),
    show_default=_shown("learning_rates"),
    help="How many, spread around both edges; or a list like 0.1,0.2; or LOW:HIGH:COUNT.",
)
@click.option(
    "--batch-sizes",
    type=Values(int, whole=True),
    show_default=_shown("batch_sizes"),
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
@click.option("--steps", type=int, show_default=_shown("steps"), help="SGD steps per run.")
@click.option(
    "--replicas",
    type=int,
    show_default=_shown("replicas"),
    help="Runs per cell; for sharpening, antithetic pairs of curvature draws.",
)
@click.option(
    "--refine", type=int, default=12, help="Learning rates of the finer scan around the boundary."
)
@click.option(
    "--precision",
    default="float64",
    metavar="NAME",
    help="float64, or mixed: NTK and curvature in single precision, runs in double.",
)
@click.option(
    "--limit",
    type=click.Choice(["large-p"]),
    help="Run SGD in the limit of many parameters P at fixed curvature strength q (--strength); "
    "P then only shapes a gaussian NTK spectrum and turns --curvature into q.",
)
@click.option(
    "--level",
    type=int,
    show_default="large-p: 2",
    metavar="L",
    help="With --limit, length of the words that are kept: more are more exact, at D times the "
    "memory and time each.",
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
    predicted and simulated growth of the largest NTK eigenvalue, with random curvature. With
    --limit large-p: the same as for stability, from runs with infinitely many parameters.
    """
    sharpening = options["observable"] == "sharpening"
    _fill(options, sharpening=sharpening)
    picture, data = Path(options["picture"]), Path(options["data"])
    pictures.check_picture(options["picture"])
    inputs = [options[name] for name in INPUTS if options[name] is not None]
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
    source = source_of(options)
    began = time.perf_counter()
    if sharpening:
        map_sharpening(source, sgd, options)
        click.echo(f"{time.perf_counter() - began:.1f} s\nwrote {picture} and {data}")
        return
    from quadmodel.studies.phases import phase_diagram

    grid = phase_diagram(
        source,
        options["learning_rates"],
        options["batch_sizes"],
        sgd=sgd,
        steps=options["steps"],
        replicas=options["replicas"],
        seed=options["seed"],
        refine=options["refine"],
        precision=options["precision"],
        limit=options["limit"],
        level=options["level"],
        threads=options["threads"],
        progress=True,
    )
    elapsed = time.perf_counter() - began
    # Both or none: each is moved into place only after both are written.
    with write_atomically(data) as partial_data, write_atomically(picture) as partial_picture:
        grid.to_netcdf(partial_data, engine="h5netcdf")
        pictures.draw(grid, partial_picture)
    click.echo(_table(grid))
    done = grid.attrs["replica_steps"]
    click.echo(
        f"{elapsed:.1f} s, {done:,} replica-steps, {done / elapsed:,.0f} replica-steps per second"
    )
    click.echo(f"wrote {picture} and {data}")


def _fill(options: dict[str, Any], *, sharpening: bool) -> None:
    """Put defaults where nothing is given; refuse what does not go together."""
    limit = options["limit"]
    for name in ("limit", "level"):
        if sharpening and options[name] is not None:
            raise InputError(
                f"--{name} must not be given with --observable sharpening, got {options[name]}"
            )
    if limit is None and options["level"] is not None:
        raise InputError(f"--level must not be given without --limit, got {options['level']}")
    curvature, strength = options["curvature"], options["strength"]
    if curvature is not None and strength is not None:
        raise InputError(
            f"--curvature and --strength must not both be given, got {curvature:g} and {strength:g}"
        )
    kind = 1 if sharpening else 0 if limit is None else 2
    for name, values in DEFAULTS.items():
        # One of the two says how strong curvature is.
        settled = name in ("curvature", "strength") and (curvature, strength) != (None, None)
        if options[name] is None and not settled:
            options[name] = values[kind]
    if options["n_params"] == "2 D":
        options["n_params"] = 2 * options["n_data"]


def _table(grid: xr.Dataset) -> str:
    """Return critical learning rates and critical K per batch size, as text."""
    import pandas as pd

    from quadmodel.comparison import critical_noise_kernel_norm

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
    title = "critical learning rate (1 / NTK eigenvalue)"
    if "limit" in grid.attrs:
        level, strength = grid.attrs["level"], grid.attrs["curvature_strength"]
        title += f", large-P limit, level {level}, q = {strength:.4g}"
    return f"{title}\n{rows.to_string(index=False)}\n{verdict}"
