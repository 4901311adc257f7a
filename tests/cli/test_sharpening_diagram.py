"""quadmodel sharpening-diagram: files, table, defaults, refusals."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies import phases
from quadmodel.studies import sharpening as module
from tests.cli.command import written

COMMAND = "sharpening-diagram"
OUTPUTS = {f"{COMMAND}.png", f"{COMMAND}.nc"}
SMALL = ["--n-data", "8", "--n-params", "20", "--learning-rates", "0.2,0.5,60"]
SMALL += ["--batch-sizes", "1,8", "--steps", "6", "--replicas", "3"]
ENSEMBLE = qm.Ensemble(8, 20, qm.spectra.PowerLaw(0.5), curvature=0.03)


def expected(source=ENSEMBLE, rates=(0.2, 0.5, 60.0), sizes=(1, 8), **options):
    return qm.sharpening_diagram(source, rates, sizes, **{"steps": 6, "replicas": 3, **options})


def saved():
    with xr.open_dataset(f"{COMMAND}.nc", engine="h5netcdf") as grid:
        return grid.load()


# ---- what is written and printed


def test_files(run):
    code, out, err = run(COMMAND, *SMALL)
    assert (code, err) == (0, "")
    assert out.endswith(f"wrote {COMMAND}.png and {COMMAND}.nc\n")
    assert written() == OUTPUTS
    grid, wanted = saved(), expected()
    xr.testing.assert_equal(grid.drop_vars("norm"), wanted.drop_vars("norm"))
    assert grid.norm.values.tolist() == wanted.norm.values.tolist()
    assert grid.attrs == wanted.attrs
    picture = matplotlib.image.imread(f"{COMMAND}.png")
    assert picture.shape[:2] == (825, 1800)
    for panel in np.array_split(picture[..., :3], 2, axis=1):  # predicted beside simulated
        assert np.ptp(panel) > 0.5
        assert (np.ptp(panel, axis=-1) > 0.2).any()  # in colour


def test_panels(run, monkeypatch):
    drawn = []

    def draw(grid, ax, *, quantity):
        drawn.append((quantity, ax.get_subplotspec().colspan.start))
        xr.testing.assert_equal(grid, expected())

    monkeypatch.setattr(qm.plot, "sharpening_diagram", draw)
    assert run(COMMAND, *SMALL)[0] == 0
    assert drawn == [("predicted_growth", 0), ("simulated_growth", 1)]


@pytest.mark.usefixtures("undrawn")
def test_table(run):
    code, out, err = run(COMMAND, *SMALL)
    assert (code, err) == (0, "")
    lines, grid = out.splitlines(), expected()
    assert len(lines) == 2 * 6 + 2
    for n, name in enumerate(("predicted", "simulated")):
        title, head, index, *rows = lines[6 * n : 6 * n + 6]
        assert title == f"{name} growth of the largest NTK eigenvalue in 6 steps, share"
        assert head.split() == ["batch", "size", "1", "8"]
        assert index.strip() == "learning rate"
        for row, rate in zip(rows, (0.2, 0.5, 60.0), strict=True):
            at, *growths = row.split()
            assert float(at) == rate
            values = grid[f"{name}_growth"].sel(learning_rate=rate).values
            for text, value in zip(growths, values, strict=True):
                assert text == ("-" if np.isnan(value) else f"{value:.2e}")
    assert np.isnan(grid.predicted_growth).any()
    assert np.isinf(grid.simulated_growth).any()
    assert re.fullmatch(r"\d+\.\d s", lines[-2])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--seed", "3"], {"seed": 3}),
        (["--threads", "1"], {"threads": 1}),
        (["--curvature", "0.01"], {"curvature": 0.01}),
        (["--curvature-strength", "0.05"], {"curvature": 0.05 / 20**0.5}),
        (["--replicas", "5"], {"replicas": 5}),
        (["--steps", "9"], {"steps": 9}),
        (["--learning-rates", "4", "--batch-sizes", "3"], {"rates": 4, "sizes": 3}),
        (
            ["--momentum", "0.5", "--nesterov", "--weight-decay", "0.1", "--sampling", "bernoulli"],
            {
                "sgd": qm.SGD(
                    1.0, 1, momentum=0.5, nesterov=True, weight_decay=0.1, sampling="bernoulli"
                )
            },
        ),
        (
            ["--spectrum", "gaussian", "--residual", "0.5"],
            {"source": qm.Ensemble(8, 20, curvature=0.03, residual=0.5)},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_function(options, changed, run):
    code, _, err = run(COMMAND, *SMALL, *options)
    assert (code, err) == (0, "")
    grid, wanted = saved(), expected(**changed)
    xr.testing.assert_equal(grid.drop_vars("norm"), wanted.drop_vars("norm"))
    assert grid.attrs == wanted.attrs
    if "threads" not in changed:
        assert not grid.simulated_growth.equals(expected().simulated_growth)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("option", "file", "n_params"),
    [
        ("--jacobian", "jacobian.npy", 30),
        ("--ntk", "ntk.npy", 12),
        ("--eigenvalues", "eigenvalues.npy", 12),
    ],
)
def test_arrays_from_files(option, file, n_params, run, arrays):
    rates = ["--learning-rates", "0.05,0.1", "--batch-sizes", "2,12"]
    code, _, err = run(COMMAND, *SMALL[4:], option, file, *rates)
    assert (code, err) == (0, "")
    grid = saved()
    assert (grid.attrs["n_data"], grid.attrs["n_params"]) == (12, n_params)
    assert grid.attrs["curvature"] == "IndependentCurvature(scale=0.03)"
    largest = 3.0
    if option != "--eigenvalues":
        largest = np.linalg.eigvalsh(np.load("ntk.npy"))[-1]
    np.testing.assert_allclose(grid.edge_of_stability, 2 / largest)
    assert np.isfinite(grid.simulated_growth).all()


def test_another_picture(run):
    names = ["--picture", "p.svg", "--data", "d.nc"]
    assert run(COMMAND, *SMALL, *names)[0] == 0
    assert Path("p.svg").read_bytes().startswith(b"<?xml")
    assert written() == {"p.svg", "d.nc"}


# ---- defaults

STABILITY = {
    "n_data": 200, "n_params": 400, "spectrum": "gaussian", "curvature": 0.0,
    "learning_rates": 24, "batch_sizes": 12, "steps": 1000, "replicas": 16,
}  # fmt: skip
GROWTH = {
    "n_data": 60, "n_params": 120, "spectrum": "power-law:0.5", "curvature": 0.03,
    "learning_rates": 12, "batch_sizes": 8, "steps": 60, "replicas": 32,
}  # fmt: skip
GIVEN = {
    "n_data": 30, "n_params": 70, "spectrum": "outliers:9", "curvature": 0.01,
    "learning_rates": 5, "batch_sizes": 6, "steps": 40, "replicas": 4,
}  # fmt: skip
LAWS = {
    "gaussian": qm.spectra.IndependentGaussian(),
    "power-law:0.5": qm.spectra.PowerLaw(0.5),
    "outliers:9": qm.spectra.Outliers([9.0]),
}


@pytest.fixture
def received(run, monkeypatch):
    """Run a command as far as the work; return what the study was called with."""

    def received(command, *arguments):
        calls = []

        def work(source, rates, sizes, **options):
            calls.append((source, rates, sizes, options))
            raise InputError("no work")

        monkeypatch.setattr(phases, "phase_diagram", work)
        monkeypatch.setattr(module, "sharpening_diagram", work)
        assert run(command, *arguments) == (2, "", "quadmodel: error: no work\n")
        (call,) = calls
        return call

    return received


def check(call, values):
    source, rates, sizes, options = call
    assert source.spec() == qm.Ensemble(
        values["n_data"], values["n_params"], LAWS[values["spectrum"]],
        curvature=values["curvature"],
    ).spec()  # fmt: skip
    assert (rates, sizes) == (values["learning_rates"], values["batch_sizes"])
    assert options["steps"] == values["steps"]
    assert options["replicas"] == values["replicas"]


COMMANDS = {"phase-diagram": STABILITY, COMMAND: GROWTH}


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults(command, received):
    check(received(command), COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", GIVEN)
def test_a_given_option_is_no_default(name, command, received):
    values = {**COMMANDS[command], name: GIVEN[name]}
    option = "--" + name.replace("_", "-")
    check(received(command, option, str(GIVEN[name])), values)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_defaults(command, run):
    text = run(command, "--help")[1]
    for name, default in COMMANDS[command].items():
        option = "--" + name.replace("_", "-")
        assert re.search(rf"{option} .*?\[default:\s+{default}\]", text, re.DOTALL)


# ---- refusals


@pytest.fixture
def refused(refuse, monkeypatch):
    def refused(*arguments, names):
        def work(*_, **__):
            raise AssertionError("work started before the input was checked")

        monkeypatch.setattr(module, "growth_of_pair", work)
        monkeypatch.setattr(module.sharpening, "forecasts", work)
        return refuse(*arguments, names=names, base=[COMMAND, *SMALL])

    return refused


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--learning-rates", "0", ["learning", "rates"]),
        ("--learning-rates", "0.1,-1", ["learning", "rates"]),
        ("--batch-sizes", "1,9", ["batch", "sizes", "8", "9"]),
        ("--steps", "0", ["steps"]),
        ("--replicas", str(2**32), ["--replicas"]),
        ("--seed", str(2**64), ["seed"]),
        ("--threads", "0", ["threads"]),
        ("--curvature", "0", ["curvature"]),
        ("--n-params", "5", ["jacobian", "rank", "n_data=8"]),
    ],
)
def test_refusals(option, value, words, refused):
    refused(option, value, names=words)


@pytest.mark.parametrize("value", ["1", "0", "-2"])
def test_replicas_are_named_as_on_the_command_line(value, refused):
    refused("--replicas", value, names=["--replicas"])
