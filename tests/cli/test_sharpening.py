"""quadmodel phase-diagram --observable sharpening: files, table, defaults, refusals."""

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
from quadmodel.studies import sharpening as module
from tests.cli.command import OUTPUTS, written

SHARPENING = ["--observable", "sharpening"]
SMALL = [*SHARPENING, "--n-data", "8", "--n-params", "20", "--learning-rates", "0.2,0.5,60"]
SMALL += ["--batch-sizes", "1,8", "--steps", "6", "--replicas", "3"]
ENSEMBLE = qm.Ensemble(8, 20, qm.spectra.PowerLaw(1.0), curvature=0.003)


def expected(source=ENSEMBLE, rates=(0.2, 0.5, 60.0), sizes=(1, 8), **options):
    return qm.sharpening_diagram(source, rates, sizes, **{"steps": 6, "pairs": 3, **options})


def saved():
    with xr.open_dataset("phase-diagram.nc", engine="h5netcdf") as grid:
        return grid.load()


@pytest.fixture
def undrawn(monkeypatch):
    """No picture, which takes longest."""
    monkeypatch.setattr(pictures, "draw", lambda _, picture: picture.write_text("picture"))


# ---- what is written and printed


def test_files(run):
    code, out, err = run("phase-diagram", *SMALL)
    assert (code, err) == (0, "")
    assert out.endswith("wrote phase-diagram.png and phase-diagram.nc\n")
    assert written() == OUTPUTS
    grid, wanted = saved(), expected()
    xr.testing.assert_equal(grid.drop_vars("norm"), wanted.drop_vars("norm"))
    assert grid.norm.values.tolist() == wanted.norm.values.tolist()
    assert grid.attrs == wanted.attrs
    picture = matplotlib.image.imread("phase-diagram.png")
    assert picture.shape[:2] == (750, 1950)
    for panel in np.array_split(picture[..., :3], 2, axis=1):  # predicted beside simulated
        assert np.ptp(panel) > 0.5
        assert (np.ptp(panel, axis=-1) > 0.2).any()  # in colour


def test_panels(run, monkeypatch):
    drawn = []

    def draw(grid, ax, *, quantity):
        drawn.append((quantity, ax.get_subplotspec().colspan.start))
        xr.testing.assert_equal(grid, expected())

    monkeypatch.setattr(qm.plot, "sharpening_diagram", draw)
    assert run("phase-diagram", *SMALL)[0] == 0
    assert drawn == [("predicted_growth", 0), ("simulated_growth", 1)]


@pytest.mark.usefixtures("undrawn")
def test_table(run):
    code, out, err = run("phase-diagram", *SMALL)
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
        (["--strength", "0.05"], {"curvature": 0.05 / 20**0.5}),
        (["--replicas", "5"], {"pairs": 5}),
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
            {"source": qm.Ensemble(8, 20, curvature=0.003, residual=0.5)},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_reach_the_function(options, changed, run):
    code, _, err = run("phase-diagram", *SMALL, *options)
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
    code, _, err = run("phase-diagram", *SMALL, option, file, *rates)
    assert (code, err) == (0, "")
    grid = saved()
    assert (grid.attrs["n_data"], grid.attrs["n_params"]) == (12, n_params)
    assert grid.attrs["curvature"] == "IndependentCurvature(scale=0.003)"
    largest = 3.0
    if option != "--eigenvalues":
        largest = np.linalg.eigvalsh(np.load("ntk.npy"))[-1]
    np.testing.assert_allclose(grid.edge_of_stability, 2 / largest)
    assert np.isfinite(grid.simulated_growth).all()


def test_another_picture(run):
    names = ["--picture", "p.svg", "--data", "d.nc"]
    assert run("phase-diagram", *SMALL, *names)[0] == 0
    assert Path("p.svg").read_bytes().startswith(b"<?xml")
    assert written() == {"p.svg", "d.nc"}


# ---- defaults

STABILITY = {
    "n_data": 200, "n_params": 400, "spectrum": "gaussian", "curvature": 0.0,
    "learning_rates": 24, "batch_sizes": 12, "steps": 1000, "replicas": 16,
}  # fmt: skip
GROWTH = {
    "n_data": 60, "n_params": 240, "spectrum": "power-law", "curvature": 0.003,
    "learning_rates": 12, "batch_sizes": 8, "steps": 60, "replicas": 12,
}  # fmt: skip
GIVEN = {
    "n_data": 30, "n_params": 70, "spectrum": "outliers:9", "curvature": 0.01,
    "learning_rates": 5, "batch_sizes": 6, "steps": 40, "replicas": 4,
}  # fmt: skip
LAWS = {
    "gaussian": qm.spectra.IndependentGaussian(),
    "power-law": qm.spectra.PowerLaw(1.0),
    "outliers:9": qm.spectra.Outliers([9.0]),
}


@pytest.fixture
def received(run, monkeypatch):
    """Run the command as far as the work; return which function was called and with what."""

    def received(*arguments):
        calls = []

        def stand_in(name):
            def work(source, rates, sizes, **options):
                calls.append((name, source, rates, sizes, options))
                raise InputError("no work")

            return work

        monkeypatch.setattr(phase, "phase_diagram", stand_in("stability"))
        monkeypatch.setattr(module, "sharpening_diagram", stand_in("sharpening"))
        assert run("phase-diagram", *arguments) == (2, "", "quadmodel: error: no work\n")
        (call,) = calls
        return call

    return received


def check(call, values):
    name, source, rates, sizes, options = call
    assert source.spec() == qm.Ensemble(
        values["n_data"], values["n_params"], LAWS[values["spectrum"]],
        curvature=values["curvature"],
    ).spec()  # fmt: skip
    assert (rates, sizes) == (values["learning_rates"], values["batch_sizes"])
    assert options["steps"] == values["steps"]
    assert options["pairs" if name == "sharpening" else "replicas"] == values["replicas"]


@pytest.mark.parametrize(
    ("arguments", "name", "values"),
    [
        ([], "stability", STABILITY),
        (["--observable", "stability"], "stability", STABILITY),
        (SHARPENING, "sharpening", GROWTH),
    ],
    ids=["none", "stability", "sharpening"],
)
def test_defaults(arguments, name, values, received):
    call = received(*arguments)
    assert call[0] == name
    check(call, values)


@pytest.mark.parametrize("observable", ["stability", "sharpening"])
@pytest.mark.parametrize("name", GIVEN)
def test_a_given_option_is_no_default(name, observable, received):
    values = {**(GROWTH if observable == "sharpening" else STABILITY), name: GIVEN[name]}
    option = "--" + name.replace("_", "-")
    check(received("--observable", observable, option, str(GIVEN[name])), values)


def test_help_shows_both_defaults():
    shown = {option.name: option.show_default for option in phase_diagram_command.params}
    assert DEFAULTS.keys() == {*GROWTH, "strength"}
    for name in GROWTH:
        assert DEFAULTS[name][:2] == (STABILITY[name], GROWTH[name])
        stability = STABILITY[name]
        if name != "spectrum":
            stability = f"{stability:g}"
        assert shown[name].startswith(f"{stability}, sharpening: {GROWTH[name]}")


# ---- refusals


@pytest.fixture
def refused(refuse, monkeypatch):
    def refused(*arguments, names):
        def work(*_, **__):
            raise AssertionError("work started before the input was checked")

        monkeypatch.setattr(module, "growth_over_grid", work)
        monkeypatch.setattr(module.sharpening, "ntk_changes", work)
        return refuse(*arguments, names=names, base=SMALL)

    return refused


@pytest.mark.parametrize("value", ["growth", "Sharpening", "", "stability,sharpening"])
def test_unknown_observable(value, refuse):
    refuse("--observable", value, names=["--observable", "stability", "sharpening"])


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--learning-rates", "0", ["learning", "rates"]),
        ("--learning-rates", "0.5", ["learning", "rates", "0.5"]),
        ("--learning-rates", "0.1,-1", ["learning", "rates"]),
        ("--learning-rates", "0.1,nan", ["learning", "rates"]),
        ("--batch-sizes", "0", ["batch", "sizes"]),
        ("--batch-sizes", "1,9", ["batch", "sizes", "8", "9"]),
        ("--batch-sizes", "2.5", ["batch", "sizes"]),
        ("--steps", "0", ["steps"]),
        ("--replicas", "x", ["--replicas"]),
        ("--replicas", str(2**32), ["--replicas"]),
        ("--limit", "large-p", ["--limit", "--observable sharpening"]),
        ("--level", "2", ["--level", "--observable sharpening"]),
        ("--seed", "-1", ["seed", "-1"]),
        ("--seed", str(2**64), ["seed"]),
        ("--threads", "0", ["threads"]),
        ("--momentum", "1", ["momentum"]),
        ("--weight-decay", "-1", ["weight_decay"]),
        ("--sampling", "sorted", ["--sampling"]),
        ("--curvature", "-0.1", ["--curvature"]),
        ("--curvature", "0", ["curvature"]),
        ("--n-params", "5", ["jacobian", "rank", "n_data=8"]),
        ("--spectrum", "flat", ["--spectrum"]),
        ("--picture", "p.jpg", ["--picture", ".png"]),
        ("--picture", "no/p.png", ["no", "existing folder"]),
        ("--data", "no/d.nc", ["no", "existing folder"]),
        ("--ntk", "missing.npy", ["missing.npy"]),
    ],
)
def test_refusals(option, value, words, refused):
    refused(option, value, names=words)


@pytest.mark.parametrize("value", ["1", "0", "-2"])
def test_replicas_are_named_as_on_the_command_line(value, refused):
    refused("--replicas", value, names=["--replicas"])


@pytest.mark.parametrize("error", [MemoryError("no\nmemory"), KeyboardInterrupt()], ids=repr)
def test_existing_outputs_survive_a_failure(error, run, monkeypatch):
    def fail(*_, **__):
        raise error

    for name in OUTPUTS:
        Path(name).write_text("precious")
    monkeypatch.setattr(module, "growth_over_grid", fail)
    code, out, err = run("phase-diagram", *SMALL)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert (code, out.strip()) == (130 if interrupted else 2, "")
    assert err.strip().count("\n") == 0
    assert ("interrupted" if interrupted else "no memory") in err
    assert written() == OUTPUTS
    assert {Path(name).read_text() for name in OUTPUTS} == {"precious"}


@pytest.mark.parametrize("stage", ["to_netcdf", "draw"])
def test_both_files_or_none(stage, run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset if stage == "to_netcdf" else pictures, stage, interrupt)
    assert run("phase-diagram", *SMALL)[0] == 130
    assert written() == set()
