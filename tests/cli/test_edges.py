"""quadmodel persistent-edge and large-p-edge: files, tables, refusals."""

import re

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel.studies import large_p_outcomes, persistence
from tests.cli.command import written

PERSISTENT = [
    "persistent-edge", "--curvature-strengths", "0.5,1.0", "--replicas", "2", "--n-data", "10",
    "--n-params", "20", "--steps", "60", "--initial-norm", "0.3", "--batch-size", "3",
]  # fmt: skip
LARGE_P = [
    "large-p-edge", "--initial-norms", "0.3,0.9", "--batch-sizes", "1,2", "--n-data", "6",
    "--curvature-strengths", "0.3,1.0", "--steps", "60", "--replicas", "2",
]  # fmt: skip
COMMANDS = {"persistent-edge": PERSISTENT, "large-p-edge": LARGE_P}


def persistent(strengths=(0.5, 1.0), **changed):
    defaults = {
        "replicas": 2, "n_data": 10, "n_params": 20, "steps": 60, "initial_norm": 0.3,
        "batch_size": 3,
    }  # fmt: skip
    return qm.persistent_edge(strengths, **defaults | changed)


def large_p(**changed):
    options = {"n_data": 6, "steps": 60, "replicas": 2} | changed
    return qm.large_p_edge([0.3, 0.9], [1, 2], [0.3, 1.0], **options)


def check_saved(name, wanted):
    with xr.open_dataset(f"{name}.nc", engine="h5netcdf") as found:
        for variable in wanted.variables:
            np.testing.assert_array_equal(found[variable], wanted[variable], err_msg=str(variable))
        assert found.attrs == wanted.attrs


@pytest.mark.parametrize("name", COMMANDS)
def test_files_and_table(name, run):
    code, out, err = run(*COMMANDS[name])
    assert (code, err) == (0, "")
    assert written() == {f"{name}.png", f"{name}.nc"}
    wanted = persistent() if name == "persistent-edge" else large_p()
    check_saved(name, wanted)
    assert np.ptp(matplotlib.image.imread(f"{name}.png")) > 0.5
    title, head, *rows, seconds, last = out.splitlines()
    assert title.startswith("medians over ")
    assert "curvature_strength" in head.split()
    n_rows = wanted.divergence_step.size // (1 if name == "persistent-edge" else 2)
    assert len(rows) == n_rows
    assert re.fullmatch(r"\d+\.\d s", seconds)
    assert last == f"wrote {name}.png and {name}.nc"


@pytest.mark.usefixtures("undrawn")
def test_quartiles_of_the_persistent_edge(run):
    _, head, *rows = run(*PERSISTENT)[1].splitlines()[:-2]
    columns = head.split()
    for row in rows:
        values = dict(zip(columns, row.split(), strict=True))
        low, middle, high = (
            float(values[c]) for c in ("exact_low", "noise_kernel_norm_exact", "exact_high")
        )
        assert low <= middle <= high


@pytest.mark.usefixtures("undrawn")
def test_predicted_norm_beside_the_simulated(run):
    _, head, *rows = run(*PERSISTENT)[1].splitlines()[:-2]
    column = head.split().index("predicted_finite")
    norms = persistent().mean_field_noise_kernel_norm_finite.isel(step=-1).values
    printed = [float(row.split()[column]) for row in rows]
    np.testing.assert_allclose(printed, np.repeat(norms, 2), atol=5e-4)


@pytest.mark.usefixtures("undrawn")
def test_a_table_of_replicas_that_diverge(run):
    strong = ["--curvature-strengths", "40", "--initial-norm", "1.5"]
    code, out, err = run(*PERSISTENT, *strong)
    assert (code, err) == (0, "")
    assert "NaN" in out
    check_saved("persistent-edge", persistent([40.0], initial_norm=1.5))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("name", "options", "changed"),
    [
        ("persistent-edge", ["--seed", "3", "--threads", "1"], {"seed": 3}),
        ("large-p-edge", ["--seed", "3", "--threads", "1"], {"seed": 3}),
        ("large-p-edge", ["--truncation-order", "3"], {"truncation_order": 3}),
    ],
)
def test_options_reach_the_study(name, options, changed, run):
    assert run(*COMMANDS[name], *options)[0] == 0
    check_saved(name, (persistent if name == "persistent-edge" else large_p)(**changed))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("persistent-edge", ["--curvature-strengths", "1,x"], ["--curvature-strengths", "1,x"]),
        ("persistent-edge", ["--curvature-strengths", "-1"], ["curvature_strengths", "-1"]),
        ("persistent-edge", ["--n-params", "5"], ["n_params", "5"]),
        ("persistent-edge", ["--batch-size", "11"], ["batch_size", "11"]),
        ("large-p-edge", ["--initial-norms", "0"], ["initial_norms", "0"]),
        ("large-p-edge", ["--batch-sizes", "2.5"], ["--batch-sizes", "2.5"]),
        ("large-p-edge", ["--batch-sizes", "6"], ["batch_sizes", "6"]),
        ("large-p-edge", ["--truncation-order", "0"], ["truncation_order", "0"]),
        *((name, ["--picture", "edge.jpeg"], ["--picture", "edge.jpeg"]) for name in COMMANDS),
        *((name, ["--data", "no/edge.nc"], ["no", "existing folder"]) for name in COMMANDS),
        *((name, ["--seed", "-1"], ["seed", "-1"]) for name in COMMANDS),
        *((name, ["--threads", "0"], ["threads", "0"]) for name in COMMANDS),
    ],
)
def test_refusals(name, arguments, words, refuse, monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(persistence, "simulate", work)
    monkeypatch.setattr(large_p_outcomes, "large_p_limit", work)
    refuse(*arguments, names=words, base=COMMANDS[name])
