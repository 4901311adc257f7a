"""quadmodel phase-diagram --limit large-p: files, table, defaults, refusals."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.cli import _pictures as pictures
from quadmodel.cli import phase_diagram_command
from quadmodel.cli.phase_diagram import DEFAULTS
from quadmodel.studies import phases as phase
from tests.cli.command import OUTPUTS, written

LIMIT = ["--limit", "large-p"]
SMALL = [*LIMIT, "--n-data", "6", "--learning-rates", "0.1,0.5,1.5,4", "--batch-sizes", "1,6"]
SMALL += ["--steps", "64", "--replicas", "4", "--refine", "2", "--strength", "0.5"]


def ensemble(n_data=6, n_params=12, strength=0.5, **options):
    defaults = {"jacobian": qm.spectra.PowerLaw(1.0), "curvature": strength / n_params**0.5}
    return qm.Ensemble(n_data, n_params, **{**defaults, **options})


def expected(source=None, **options):
    defaults = {"steps": 64, "replicas": 4, "refine": 2, "limit": "large-p"}
    return qm.phase_diagram(
        source or ensemble(), [0.1, 0.5, 1.5, 4.0], [1, 6], **defaults | options
    )


def saved():
    with xr.open_dataset("phase-diagram.nc", engine="h5netcdf") as grid:
        return grid.load()


def assert_equal(grid, wanted):
    for name in wanted.data_vars:
        np.testing.assert_array_equal(grid[name], wanted[name], err_msg=str(name))
    assert grid.attrs == wanted.attrs


@pytest.fixture
def undrawn(monkeypatch):
    """No picture, which takes longest."""
    monkeypatch.setattr(pictures, "draw", lambda _, picture: picture.write_text("picture"))


# ---- what is written and printed


def test_files_and_table(run):
    code, out, err = run("phase-diagram", *SMALL)
    assert (code, err) == (0, "")
    assert written() == OUTPUTS
    assert_equal(saved(), expected())
    assert matplotlib.image.imread("phase-diagram.png").shape[:2] == (900, 1200)
    lines = out.splitlines()
    title = "critical learning rate (1 / NTK eigenvalue), large-P limit, level 2, q = 0.5"
    assert lines[0] == title
    assert [line.split()[0] for line in lines[2:4]] == ["1", "6"]
    assert lines[4].startswith("simulated critical K, all batch sizes: ")
    assert re.match(r"[\d.]+ s, [\d,]+ replica-steps, ", lines[5])
    assert "12" not in re.split(r"\W+", title)  # P, which has no meaning


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("options", "source", "changed"),
    [
        (["--level", "3"], {}, {"level": 3}),
        (["--seed", "5", "--threads", "1"], {}, {"seed": 5}),
        (["--strength", "0.8"], {"strength": 0.8}, {}),
        (["--n-params", "50"], {"n_params": 50}, {}),
        (["--spectrum", "gaussian"], {"jacobian": qm.spectra.IndependentGaussian()}, {}),
        (["--residual", "0.5"], {"residual": 0.5}, {}),
        (["--momentum", "0.5"], {}, {"sgd": qm.SGD(1.0, 1, momentum=0.5)}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_function(options, source, changed, run):
    code, _, err = run("phase-diagram", *SMALL, *options)
    assert (code, err) == (0, "")
    assert_equal(saved(), expected(ensemble(**source), **changed))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("limit", [[], LIMIT], ids=["simulated", "large-p"])
def test_strength_is_short_for_a_scale(limit, run):
    grid = ["--n-data", "6", "--n-params", "16", "--steps", "64", "--replicas", "2"]
    grid += ["--learning-rates", "0.1,0.5", "--batch-sizes", "1,6", "--refine", "0", *limit]
    grids = []
    for option in (["--strength", "0.4"], ["--curvature", "0.1"]):
        assert run("phase-diagram", *grid, *option)[0] == 0
        grids.append(saved())
    assert_equal(*grids)
    assert "scale=0.1" in grids[0].attrs["curvature"]


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
    code, out, err = run("phase-diagram", *SMALL, option, file)
    assert (code, err) == (0, "")
    grid = saved()
    assert grid.attrs["n_data"] == 12
    assert "n_params" not in grid.attrs
    assert grid.attrs["curvature_strength"] == pytest.approx(0.5)
    assert out.splitlines()[0].endswith("q = 0.5")
    residual = qm.Ensemble(12, n_params).sample(0).residual
    if option == "--jacobian":
        law = qm.curvature.IndependentCurvature(0.5 / 30**0.5)
        model = qm.QuadraticModel(residual, np.load(file), None, law)
        np.testing.assert_array_equal(grid.mean_growth, expected(model).mean_growth)


def test_a_file_of_many_parameters_draws_no_curvature(run):
    """It would take 320 GB."""
    np.save("wide.npy", np.random.default_rng(0).standard_normal((4, 100_000)))
    small = [*SMALL[2:], "--batch-sizes", "1,4", "--learning-rates", "1e-5,1e-3"]
    code, _, err = run("phase-diagram", *LIMIT, *small, "--jacobian", "wide.npy")
    assert (code, err) == (0, "")


# ---- defaults


@pytest.fixture
def received(run, monkeypatch):
    """Run the command as far as the work; return what the function was called with."""

    def received(*arguments):
        calls = []

        def work(source, rates, sizes, **options):
            calls.append((source, rates, sizes, options))
            raise InputError("no work")

        monkeypatch.setattr(phase, "phase_diagram", work)
        assert run("phase-diagram", *arguments) == (2, "", "quadmodel: error: no work\n")
        (call,) = calls
        return call

    return received


def test_defaults(received):
    source, rates, sizes, options = received(*LIMIT)
    assert source.spec() == ensemble(40, 80, 1.0).spec()
    assert (rates, sizes) == (16, 8)
    assert (options["steps"], options["replicas"]) == (1000, 8)
    assert (options["limit"], options["level"]) == ("large-p", None)


def test_given_options_are_no_defaults(received):
    source, *_ = received(*LIMIT, "--n-data", "10")
    assert source.spec() == ensemble(10, 20, 1.0).spec()
    source, *_ = received(*LIMIT, "--curvature", "0.01")
    assert source.spec() == ensemble(40, 80, curvature=0.01).spec()
    assert received()[3]["limit"] is None


def test_help_shows_the_defaults():
    shown = {option.name: option.show_default for option in phase_diagram_command.params}
    assert shown["n_data"] == "200, sharpening: 60, large-p: 40"
    assert shown["n_params"] == "400, sharpening: 240, large-p: 2 D"
    assert shown["strength"] == "large-p: 1"
    assert shown["steps"] == "1000, sharpening: 60"
    for name, (stability, _, limit) in DEFAULTS.items():
        if limit not in (stability, None):
            assert f"large-p: {limit if isinstance(limit, str) else f'{limit:g}'}" in shown[
                name
            ] or (name == "spectrum" and limit in shown[name])


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "small"], ["--limit", "large-p"]),
        (["--level", "0"], ["level", "0"]),
        (["--level", "x"], ["--level"]),
        (["--level", "30"], ["the large-P limit", "GiB"]),
        (["--precision", "mixed"], ["precision", "float64", "limit"]),
        (["--observable", "sharpening"], ["--limit", "--observable sharpening"]),
        (["--curvature", "0.1"], ["--curvature", "--strength", "0.1", "0.5"]),
        (["--strength", "0"], ["source", "curvature", "linear"]),
        (["--strength", "-1"], ["--strength", "-1"]),
        (["--strength", "nan"], ["--strength", "nan"]),
        (["--n-data", "0"], ["n_data", "0"]),
        (["--spectrum", "marchenko-pastur", "--n-data", "0"], ["n_data", "0"]),
        (["--n-params", "0"], ["n_params", "0"]),
        (["--n-data", "5000"], ["the large-P limit", "GiB"]),
        (["--steps", "31"], ["steps", "31"]),
    ],
    ids=" ".join,
)
def test_refusals(arguments, words, refuse, monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(phase, "measure_cells_in_limit", work)
    refuse(*arguments, names=words, base=SMALL)


def test_level_without_a_limit(refuse):
    refuse("--level", "2", names=["--level", "--limit", "2"])


def test_interrupt_leaves_outputs_as_they_were(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    Path("phase-diagram.nc").write_text("precious")
    monkeypatch.setattr(phase, "measure_cells_in_limit", interrupt)
    assert run("phase-diagram", *SMALL)[0] == 130
    assert written() == {"phase-diagram.nc"}
    assert Path("phase-diagram.nc").read_text() == "precious"
