"""quadmodel phase-diagram: what it writes and prints."""

import os
import re
import subprocess
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel
from quadmodel.cli import phase_diagram_command
from quadmodel.cli.phase_diagram import _table
from quadmodel.plot._setting import is_linear
from tests.cli.command import COMMAND, ENVIRONMENT, OUTPUTS, SMALL, TINY, written
from tests.plot_grids import phase_grid


def check_report(out, grid):
    lines = out.splitlines()
    assert lines[0] == "critical learning rate (1 / NTK eigenvalue)"
    for column in ("batch size", "predicted (K = 1, exact)", "edge", "critical K"):
        assert column in lines[1]
    assert "simulated, mean square" in lines[1]
    assert "simulated, typical" in lines[1]
    rows = lines[2 : 2 + grid.sizes["batch_size"]]
    assert [int(row.split()[0]) for row in rows] == grid.batch_size.values.tolist()
    for row, b in zip(rows, grid.batch_size, strict=True):
        predicted, edge = (float(number) for number in row.split()[1:3])
        exact = grid.critical_learning_rate.sel(norm="exact", batch_size=b)
        assert predicted == pytest.approx(float(exact), rel=1e-3)
        assert edge == pytest.approx(float(grid.edge_of_stability.sel(batch_size=b)), rel=1e-3)
    pooled, *unsettled, speed, wrote = lines[2 + len(rows) :]
    critical = quadmodel.critical_noise_kernel_norm(grid)
    few = np.isfinite(critical.learning_rate.values) & ~critical.resolved.values
    assert len(unsettled) == few.any()
    if unsettled:
        names = ", ".join(str(b) for b in grid.batch_size.values[few])
        assert unsettled[0].startswith(f"not settled, and left out, at batch size {names}: ")
    number = r"\d+\.\d{4}"
    beside = "predicted: 1" if is_linear(grid.attrs) else "K of the initial NTK; .*"
    interval = rf"{number} \[{number}, {number}\] \(95%\), {beside}"
    assert re.fullmatch(
        "simulated critical K, all batch sizes: "
        rf"(not found inside the grid|none settled|{interval})",
        pooled,
    )
    found = re.fullmatch(
        r"([\d.]+) s, ([\d,]+) replica-steps, [\d,]+ replica-steps per second", speed
    )
    assert found
    assert int(found[2].replace(",", "")) == grid.attrs["replica_steps"]
    return wrote


@pytest.mark.slow
def test_end_to_end(tmp_path):
    done = subprocess.run(
        [*COMMAND, *SMALL], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stderr == ""  # no progress bar in a pipe, no warnings
    assert written() == OUTPUTS
    picture = mpl.image.imread("phase-diagram.png")
    assert picture.shape[:2] == (900, 1050)
    assert picture.std() > 0
    with xr.open_dataset("phase-diagram.nc", engine="h5netcdf") as grid:
        assert dict(grid.mean_growth.sizes) == {"learning_rate": 6, "batch_size": 3}
        assert grid.sizes["scan"] == 2
        assert grid.attrs["kind"] == "phase diagram"
        wrote = check_report(done.stdout, grid)
        pooled = float(quadmodel.critical_noise_kernel_norm(grid).pooled_noise_kernel_norm)
        if np.isfinite(pooled):
            assert f"all batch sizes: {pooled:.4f} [" in done.stdout
    assert wrote == "wrote phase-diagram.png and phase-diagram.nc"
    for name in OUTPUTS:
        assert Path(name).stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_end_to_end_again_with_another_thread_count(run):
    run("phase-diagram", *SMALL, "--threads", "1", "--data", "here.nc")
    subprocess.run(
        [*COMMAND, *SMALL, "--threads", "2", "--data", "there.nc", "--overwrite"],
        env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with xr.open_dataset("here.nc") as here, xr.open_dataset("there.nc") as there:
        xr.testing.assert_identical(here, there)


def test_same_as_the_function(run):
    assert run("phase-diagram", *SMALL, "--seed", "3")[0] == 0
    grid = quadmodel.phase_diagram(
        quadmodel.Ensemble(20, 40), 6, 3, steps=64, replicas=4, refine=2, seed=3
    )
    with xr.open_dataset("phase-diagram.nc") as saved:
        xr.testing.assert_equal(saved, grid)


@pytest.fixture
def succeed(run, undrawn):
    """Run without drawing, which takes longest; check the report and return the grid."""

    def succeed(*arguments, base=TINY):
        code, out, err = run("phase-diagram", *base, *arguments)
        assert (code, err) == (0, "")
        assert written() >= OUTPUTS
        assert not [name for name in written() if name.startswith(".")]
        with xr.open_dataset("phase-diagram.nc") as grid:
            check_report(out, grid)
            return grid.load()

    return succeed


def test_report_of_a_run_in_this_process(succeed):
    succeed(base=SMALL)


@pytest.mark.parametrize(
    ("option", "file", "n_params"),
    [
        ("--jacobian", "jacobian.npy", 30),
        ("--jacobian", "single.npz", 30),
        ("--jacobian", "single.npz:only", 30),
        ("--jacobian", "several.npz:jacobian", 30),
        ("--ntk", "ntk.npy", None),
        ("--ntk", "several.npz:ntk", None),
        ("--eigenvalues", "eigenvalues.npy", 12),
        ("--eigenvalues", "several.npz:eigenvalues", 12),
    ],
)
def test_arrays_from_files(succeed, arrays, option, file, n_params):
    grid = succeed(option, file, base=TINY[4:])
    assert (grid.attrs["n_data"], grid.attrs.get("n_params")) == (12, n_params)
    assert grid.batch_size.values.tolist() == [1, 12]
    largest = 3.0
    if option != "--eigenvalues":
        largest = np.linalg.eigvalsh(np.load("ntk.npy"))[-1]
    assert float(grid.edge_of_stability[-1]) == pytest.approx(2 / largest)


def test_curvature(succeed):
    grid = succeed("--curvature", "0.01")
    assert "curvature" in " ".join(map(str, [*grid.attrs, *grid.attrs.values()])).lower()
    linear = quadmodel.phase_diagram(
        quadmodel.Ensemble(20, 40), 3, 2, replicas=2, refine=0, steps=32
    )
    np.testing.assert_array_equal(grid.edge_of_stability, linear.edge_of_stability)
    assert not np.array_equal(grid.final_loss, linear.final_loss)


def test_curvature_on_a_given_jacobian(succeed, arrays):
    options = ["--curvature", "0.01", "--residual", "0.5"]
    succeed("--jacobian", "jacobian.npy", *options, base=TINY[4:])


@pytest.mark.parametrize(
    "law", ["gaussian", "marchenko-pastur", "power-law", "power-law:0.5", "outliers:20,10"]
)
def test_spectra(succeed, law):
    succeed("--spectrum", law)


def test_edge_of_outliers(succeed):
    grid = succeed("--spectrum", "outliers:20,10")
    assert float(grid.edge_of_stability[-1]) == pytest.approx(2 / 20)


@pytest.mark.parametrize(
    ("options", "attribute", "value"),
    [
        (["--momentum", "0.5"], "momentum", 0.5),
        (["--momentum", "-0.3"], "momentum", -0.3),
        (["--momentum", "0.5", "--nesterov"], "nesterov", 1),
        (["--weight-decay", "0.1"], "weight_decay", 0.1),
        (["--sampling", "with_replacement"], "sampling", "with_replacement"),
        (["--sampling", "bernoulli"], "sampling", "bernoulli"),
        (["--seed", str(2**64 - 1)], "seed", str(2**64 - 1)),
    ],
)
def test_options_reach_the_simulation(succeed, options, attribute, value):
    assert succeed(*options).attrs[attribute] == value


@pytest.mark.parametrize(
    ("option", "value", "coordinate", "expected"),
    [
        ("--learning-rates", "0.2,0.1", "learning_rate", [0.1, 0.2]),
        ("--learning-rates", "0.01:1:3", "learning_rate", [0.01, 0.1, 1.0]),
        ("--batch-sizes", "8,1", "batch_size", [1, 8]),
        ("--batch-sizes", "1:16:3", "batch_size", [1, 4, 16]),
        ("--batch-sizes", "1:3:9", "batch_size", [1, 2, 3]),
        ("--batch-sizes", "1", "batch_size", [1]),
    ],
)
def test_values(succeed, option, value, coordinate, expected):
    np.testing.assert_allclose(succeed(option, value)[coordinate], expected)


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_other_pictures(run, suffix, start):
    code, out, err = run("phase-diagram", *TINY, "--picture", f"p.{suffix}", "--data", "d.nc")
    assert (code, err) == (0, "")
    assert out.endswith(f"wrote p.{suffix} and d.nc\n")
    assert Path(f"p.{suffix}").read_bytes().startswith(start)
    assert written() == {f"p.{suffix}", "d.nc"}


def test_existing_outputs_are_kept(refuse):
    for name in OUTPUTS:
        Path(name).write_text("old")
    refuse(names=["--picture phase-diagram.png and --data phase-diagram.nc", "--overwrite"])
    refuse("--data", "new.nc", names=["--picture phase-diagram.png must not exist yet"])
    refuse("--picture", "new.png", names=["--data phase-diagram.nc must not exist yet"])
    assert {Path(name).read_text() for name in OUTPUTS} == {"old"}


def test_existing_outputs_are_replaced_on_request(run):
    for name in OUTPUTS:
        Path(name).write_text("old")
    assert run("phase-diagram", *TINY, "--overwrite")[0] == 0
    assert Path("phase-diagram.png").read_bytes().startswith(b"\x89PNG")
    with xr.open_dataset("phase-diagram.nc") as grid:
        assert grid.attrs["kind"] == "phase diagram"


def test_help(run):
    code, out, err = run("phase-diagram", "--help")
    assert (code, err) == (0, "")
    assert re.match(r"Usage: .*\bquadmodel phase-diagram \[OPTIONS\]\n", out)
    named = phase_diagram_command.params
    assert len(named) >= 19
    for option in named:
        assert option.help, option.name
        assert all(name in out for name in option.opts)
        assert option.help.split()[0] in out
    assert "--help" in out
    assert re.search(r"\[default:\s+1000\]", out)
    assert run("phase-diagram", "-h")[1] == out


def test_help_of_the_group_and_version(run):
    listed = re.findall(r"^  ([a-z][a-z-]+)  ", run("--help")[1], re.MULTILINE)
    assert listed == [
        "derive", "explore", "large-p-diagram", "large-p-edge", "network", "persistent-edge",
        "phase-diagram", "plot", "sharpening-diagram", "status", "trace-boundary", "validate",
    ]  # fmt: skip
    assert run("--version")[:2] == (0, f"quadmodel, version {quadmodel.__version__}\n")


def test_what_the_critical_norm_of_a_quadratic_model_is_set_beside():
    grid = phase_grid(np.geomspace(0.01, 2, 12), [1, 4, 16], curvature="law")
    rates = np.array([0.2, 0.5, 0.99]) * grid.edge_of_stability.values
    norms = np.array([[0.6, 0.7, 5.0]] * grid.sizes["norm"])
    grid = grid.assign(
        mean_field_critical_learning_rate=("batch_size", rates),
        mean_field_noise_kernel_norm=(("norm", "batch_size"), norms),
    )
    lines = _table(grid).splitlines()
    assert lines[-1].endswith("predicted by mean-field theory: 0.6 to 0.7")
    assert lines[1].endswith("predicted (mean field) its K")
    assert lines[2].endswith(" 0.6")


@pytest.mark.parametrize(
    ("attrs", "beside"),
    [
        ({"curvature": "None"}, "predicted: 1"),
        (
            {"curvature": "IndependentCurvature(scale=0.1)"},
            "K of the initial NTK; 1 is the linear model's value, not a prediction",
        ),
        (
            {"limit": "large-p", "truncation_order": 2, "curvature_strength": 0.5},
            "K of the initial NTK; 1 is the linear model's value, not a prediction",
        ),
    ],
)
def test_what_the_critical_norm_is_set_beside(attrs, beside):
    grid = phase_grid(np.geomspace(0.01, 2, 12), [1, 4, 16], **attrs)
    last = _table(grid).splitlines()[-1]
    number = r"\d+\.\d{4}"
    found = re.fullmatch(
        rf"simulated critical K, all batch sizes: {number} \[{number}, {number}\] \(95%\), (.*)",
        last,
    )
    assert found
    assert found[1] == beside
