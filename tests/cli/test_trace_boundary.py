"""quadmodel trace-boundary: files, table, refusals."""

import re

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel.cli.trace_boundary import _table, trace_boundary_command
from tests.cli.command import SIZE, written

SMALL = ["trace-boundary", *SIZE, "--batch-sizes", "2,5", "--steps", "64", "--rtol", "0.1"]
OUTPUTS = {"trace-boundary.png", "trace-boundary.nc"}


def check_saved(wanted):
    with xr.open_dataset("trace-boundary.nc", engine="h5netcdf") as found:
        for variable in wanted.variables:
            np.testing.assert_array_equal(found[variable], wanted[variable], err_msg=str(variable))
        assert found.attrs == wanted.attrs


def test_files_and_table(run):
    code, out, err = run(*SMALL, "--kind", "typical", "--seed", "3")
    assert (code, err) == (0, "")
    assert written() == OUTPUTS
    assert np.ptp(matplotlib.image.imread("trace-boundary.png")) > 0.5
    wanted = qm.trace_boundary(
        qm.Ensemble(20, 40), [2, 5], kind="typical", rtol=0.1, steps=64, seed=3
    )
    check_saved(wanted)
    title, head, *rows, cost, last = out.splitlines()
    assert title == "boundary (typical), in 1 / NTK eigenvalue, 95% intervals"
    assert head.split("  ")[-1].strip() == "critical K (exact)"
    number = r"(\d[\d.e-]*)"
    interval = rf"{number} \[{number}, {number}\]"
    for row, size in zip(rows, wanted.batch_size.values, strict=True):
        found = re.fullmatch(rf" *(\d+) +{interval} +{interval}", row)
        assert found
        one = wanted.sel(batch_size=size, norm="exact")
        values = [
            float(one[f"{name}{end}"])
            for name in ("critical_learning_rate", "noise_kernel_norm")
            for end in ("", "_low", "_high")
        ]
        assert [float(v) for v in found.groups()] == pytest.approx([size, *values], rel=1e-3)
    assert re.fullmatch(rf"\d+\.\d s, {wanted.attrs['replica_steps']:,} replica-steps", cost)
    assert last == "wrote trace-boundary.png and trace-boundary.nc"


def test_momenta_and_other_options(run, undrawn):
    options = ["--momenta", "0.5,-0.2", "--nesterov", "--momentum", "0.1", "--sampling"]
    code, out, err = run(*SMALL, "--kind", "deterministic", *options, "bernoulli")
    assert (code, err) == (0, "")
    sgd = qm.SGD(1.0, 1, 0.1, True, sampling="bernoulli")
    wanted = qm.trace_boundary(
        qm.Ensemble(20, 40), [2, 5], kind="deterministic", rtol=0.1, steps=64, sgd=sgd,
        momenta=[-0.2, 0.5],
    )  # fmt: skip
    check_saved(wanted)
    rows = out.splitlines()[2:6]
    assert [row.split()[:2] for row in rows] == [
        ["2", "-0.2"], ["2", "0.5"], ["5", "-0.2"], ["5", "0.5"],
    ]  # fmt: skip


def found(**values):
    one = {
        "critical_learning_rate": 0.5, "critical_learning_rate_low": 0.4,
        "critical_learning_rate_high": 0.6, "resolved": True, "precise": True, "needed_steps": 64,
    } | values  # fmt: skip
    attrs = {"steps": 64, "boundary": "mean_square"}
    return xr.Dataset(
        {name: ("batch_size", [value]) for name, value in one.items()}, {"batch_size": [3]}, attrs
    )


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ({}, "0.5 [0.4, 0.6]"),
        ({"critical_learning_rate": np.nan}, "- nothing turns unstable"),
        ({"resolved": False, "precise": False}, "unresolved: more --replicas"),
        ({"resolved": False, "needed_steps": 99}, "unresolved: --steps 99"),
        ({"precise": False}, "wider than --rtol: more --replicas"),
        ({"precise": False, "needed_steps": 99}, "wider than --rtol: --steps 99"),
    ],
)
def test_notes(values, ending):
    assert _table(found(**values)).endswith(ending)


def test_help(run):
    code, out, err = run("trace-boundary", "--help")
    assert (code, err) == (0, "")
    names = [name for option in trace_boundary_command.params for name in option.opts]
    assert {"--kind", "--rtol", "--momenta", "--batch-sizes", "--ntk", "--steps"} <= set(names)
    assert "--learning-rates" not in names
    assert all(name in out for name in names)
    assert all(option.help for option in trace_boundary_command.params)
