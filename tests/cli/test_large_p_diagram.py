"""quadmodel large-p-diagram: files, table, defaults, refusals."""

import re

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.cli import large_p_diagram_command
from quadmodel.studies import large_p_phases as module
from tests.cli.command import written

COMMAND = "large-p-diagram"
OUTPUTS = {f"{COMMAND}.png", f"{COMMAND}.nc"}
SMALL = ["--n-data", "6", "--learning-rates", "0.1,0.5,1.5,4", "--batch-sizes", "1,6"]
SMALL += ["--steps", "64", "--replicas", "4", "--refine", "2", "--curvature-strength", "0.5"]


def ensemble(n_data=6, n_params=12, strength=0.5, **options):
    defaults = {"jacobian": qm.spectra.PowerLaw(1.0), "curvature": strength / n_params**0.5}
    return qm.Ensemble(n_data, n_params, **{**defaults, **options})


def expected(source=None, **options):
    defaults = {"steps": 64, "replicas": 4, "refine": 2}
    return qm.large_p_phase_diagram(
        source or ensemble(), [0.1, 0.5, 1.5, 4.0], [1, 6], **defaults | options
    )


def saved():
    with xr.open_dataset(f"{COMMAND}.nc", engine="h5netcdf") as grid:
        return grid.load()


def assert_equal(grid, wanted):
    for name in wanted.data_vars:
        np.testing.assert_array_equal(grid[name], wanted[name], err_msg=str(name))
    assert grid.attrs == wanted.attrs


# ---- what is written and printed


def test_files_and_table(run):
    code, out, err = run(COMMAND, *SMALL)
    assert (code, err) == (0, "")
    assert written() == OUTPUTS
    assert_equal(saved(), expected())
    assert matplotlib.image.imread(f"{COMMAND}.png").shape[:2] == (900, 1050)
    lines = out.splitlines()
    title = (
        "critical learning rate (1 / NTK eigenvalue), large-P limit, truncation order 2, q = 0.5"
    )
    assert lines[0] == title
    assert [line.split()[0] for line in lines[2:4]] == ["1", "6"]
    assert lines[4].startswith("simulated critical K, all batch sizes: ")
    assert "predicted: 1" not in lines[4]
    assert re.match(r"[\d.]+ s, [\d,]+ replica-steps, ", lines[5])
    assert "12" not in re.split(r"\W+", title)  # P, which has no meaning


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("options", "source", "changed"),
    [
        (["--truncation-order", "3"], {}, {"truncation_order": 3}),
        (["--seed", "5", "--threads", "1"], {}, {"seed": 5}),
        (["--curvature-strength", "0.8"], {"strength": 0.8}, {}),
        (["--n-params", "50"], {"n_params": 50}, {}),
        (["--spectrum", "gaussian"], {"jacobian": qm.spectra.IndependentGaussian()}, {}),
        (["--residual", "0.5"], {"residual": 0.5}, {}),
        (["--momentum", "0.5"], {}, {"sgd": qm.SGD(1.0, 1, momentum=0.5)}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_function(options, source, changed, run):
    code, _, err = run(COMMAND, *SMALL, *options)
    assert (code, err) == (0, "")
    assert_equal(saved(), expected(ensemble(**source), **changed))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", ["phase-diagram", COMMAND])
def test_strength_is_short_for_a_scale(command, run):
    grid = ["--n-data", "6", "--n-params", "16", "--steps", "64", "--replicas", "2"]
    grid += [
        "--learning-rates",
        "0.1,0.5",
        "--batch-sizes",
        "1,6",
        "--refine",
        "0",
        "--data",
        f"{COMMAND}.nc",
    ]
    grids = []
    for option in (["--curvature-strength", "0.4"], ["--curvature", "0.1"]):
        assert run(command, *grid, *option)[0] == 0
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
    code, out, err = run(COMMAND, *SMALL[2:], option, file)
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
    code, _, err = run(COMMAND, *small, "--jacobian", "wide.npy")
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

        monkeypatch.setattr(module, "large_p_phase_diagram", work)
        assert run(COMMAND, *arguments) == (2, "", "quadmodel: error: no work\n")
        (call,) = calls
        return call

    return received


def test_defaults(received):
    source, rates, sizes, options = received()
    assert source.spec() == ensemble(40, 80, 1.0).spec()
    assert (rates, sizes) == (16, 8)
    assert (options["steps"], options["replicas"]) == (1000, 8)
    assert options["truncation_order"] == 2


def test_given_options_are_no_defaults(received):
    source, *_ = received("--n-data", "10")
    assert source.spec() == ensemble(10, 20, 1.0).spec()
    source, *_ = received("--curvature", "0.01")
    assert source.spec() == ensemble(40, 80, curvature=0.01).spec()


def test_help_shows_the_defaults(run):
    defaults = {option.name: option.default for option in large_p_diagram_command.params}
    assert (defaults["n_data"], defaults["curvature_strength"]) == (40, 1.0)
    assert re.search(r"\[default:\s+\(2\s+D\)\]", run(COMMAND, "--help")[1])


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--truncation-order", "0"], ["truncation_order", "0"]),
        (["--truncation-order", "x"], ["--truncation-order"]),
        (["--truncation-order", "30"], ["the large-P limit", "GiB"]),
        (["--precision", "mixed"], ["--precision"]),
        (["--curvature", "0.1"], ["--curvature", "--curvature-strength", "0.1", "0.5"]),
        (["--curvature-strength", "0"], ["source", "curvature", "linear"]),
        (["--curvature-strength", "-1"], ["--curvature-strength", "-1"]),
        (["--curvature-strength", "nan"], ["--curvature-strength", "nan"]),
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

    monkeypatch.setattr(module, "measure_growth_in_limit", work)
    refuse(*arguments, names=words, base=[COMMAND, *SMALL])
