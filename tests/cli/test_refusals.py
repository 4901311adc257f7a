"""How the command line refuses bad input and ends when interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
from matplotlib.figure import Figure

from quadmodel import cli
from quadmodel.studies import (
    boundaries,
    large_p_outcomes,
    large_p_phases,
    persistence,
    phases,
    sharpening,
)  # fmt: skip
from tests.cli.command import COMMAND, ENVIRONMENT, GRID, OUTPUTS, SIZE, TINY, written

STEPS = ["--steps", "40", "--replicas", "2"]
SHORT = [*SIZE, "--learning-rates", "3", "--batch-sizes", "2", *STEPS]
# Beside a file of data.
WITHOUT_SIZE = ["--learning-rates", "3", "--batch-sizes", "2", "--replicas", "2", "--steps", "40"]


@pytest.mark.parametrize("value", ["0", "-1", "0,2", "-3,2", "21,2", "2.5", "2.5,3", "x"])
def test_batch_sizes(refuse, value):
    refuse("--batch-sizes", value, names=["batch", "sizes"])


@pytest.mark.parametrize("value", ["3,x", ",", "2,2", "1:50:4", "1:20:0", "1:20:-3", "20:1:3"])
def test_batch_sizes_that_make_no_list(refuse, value):
    refuse("--batch-sizes", value, names=["batch", "sizes"])


@pytest.mark.parametrize(
    "value", ["0", "0,1", "-1,1", "-4", "nan", "nan,1", "inf", "inf,1", "0.5", "1", "x", "0.1,x"]
)
def test_learning_rates(refuse, value):
    refuse("--learning-rates", value, names=["learning", "rates"])


@pytest.mark.parametrize("value", ["0.1,0.1", "0.1,", "1:2", "1:2:0", "2:1:3", "nan:1:3", "0:1:3"])
def test_learning_rates_that_make_no_list(refuse, value):
    refuse("--learning-rates", value, names=["learning", "rates"])


@pytest.mark.parametrize("value", ["1", "-1", "-1.5", "nan", "inf", "x"])
def test_momentum(refuse, value):
    refuse("--momentum", value, names="momentum")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--weight-decay", "-1"),
        ("--weight-decay", "nan"),
        ("--weight-decay", "inf"),
        ("--sampling", "sorted"),
        ("--steps", "5"),
        ("--steps", "1e3"),
        ("--steps", "99999999999"),
        ("--replicas", "1"),
        ("--replicas", "-2"),
        ("--refine", "-1"),
        ("--seed", "-1"),
        ("--seed", str(2**64)),
        ("--threads", "0"),
        ("--n-data", "0"),
        ("--n-data", "x"),
        ("--n-params", "-5"),
        ("--n-params", "2.5"),
        ("--spectrum", "flat"),
        ("--spectrum", "power-law:x"),
        ("--spectrum", "gaussian:2"),
        ("--spectrum", "outliers"),
        ("--spectrum", "outliers:"),
    ],
)
def test_numbers_and_choices(refuse, option, value):
    name = option.removeprefix("--")
    err = refuse(option, value, names=[])
    assert name in err.replace("_", "-")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--curvature", "-1"),
        ("--curvature", "nan"),
        ("--residual", "-1"),
        ("--residual", "inf"),
        ("--spectrum", "power-law:-1"),
        ("--spectrum", "outliers:-1"),
        ("--spectrum", "outliers:nan"),
    ],
)
def test_parameters_of_laws(refuse, option, value):
    refuse(option, value, names=["must"])


def test_more_outliers_than_eigenvalues(refuse):
    refuse("--spectrum", "outliers:" + ",".join(["2"] * 21), names="eigenvalues")


@pytest.mark.parametrize(
    ("option", "file", "words"),
    [
        ("--ntk", "asymmetric.npy", ["ntk", "symmetric"]),
        ("--ntk", "indefinite.npy", ["ntk", "positive semidefinite"]),
        ("--ntk", "nan.npy", ["ntk", "finite"]),
        ("--ntk", "vector.npy", ["ntk", "shape", "(8,)"]),
        ("--ntk", "cube.npy", ["ntk", "shape", "(2, 2, 2)"]),
        ("--ntk", "jacobian.npy", ["ntk", "square", "(12, 30)"]),
        ("--ntk", "empty.npy", ["ntk", "(0, 0)"]),
        ("--ntk", "complex.npy", ["ntk", "real"]),
        ("--jacobian", "nan.npy", ["jacobian", "finite"]),
        ("--jacobian", "vector.npy", ["jacobian", "shape", "(8,)"]),
        ("--jacobian", "cube.npy", ["jacobian", "shape", "(2, 2, 2)"]),
        ("--jacobian", "words.npy", ["jacobian", "real"]),
        ("--eigenvalues", "jacobian.npy", ["eigenvalues", "shape", "(12, 30)"]),
        ("--eigenvalues", "negative.npy", ["negative.npy", "eigenvalue -1"]),
        ("--jacobian", "missing.npy", ["missing.npy", "no such file"]),
        ("--jacobian", "missing.npz:name", ["missing.npz", "no such file"]),
        ("--jacobian", "folder", ["folder", "directory"]),
        ("--jacobian", "truncated.npy", ["truncated.npy", "damaged"]),
        ("--jacobian", "truncated.npz", ["truncated.npz", "damaged"]),
        ("--jacobian", "truncated.npz:jacobian", ["truncated.npz", "damaged"]),
        ("--jacobian", "text.npy", ["text.npy", "damaged"]),
        ("--jacobian", "nothing.npy", ["nothing.npy", "damaged"]),
        ("--jacobian", "pickled.npy", ["pickled.npy", "pickled"]),
        ("--jacobian", "several.npz", ["several.npz", "FILE.npz:name", "eigenvalues"]),
        ("--jacobian", "several.npz:other", ["several.npz", "'other'", "eigenvalues"]),
    ],
)
def test_input_files(refuse, arrays, option, file, words):
    refuse(option, file, names=words, base=["phase-diagram", *WITHOUT_SIZE])


def test_batch_size_above_the_array(refuse, arrays):
    options = ["--jacobian", "jacobian.npy", "--batch-sizes", "1,13"]
    base = ["phase-diagram", *WITHOUT_SIZE]
    refuse(*options, names=["batch", "12", "13"], base=base)


@pytest.mark.parametrize(
    "given", [("jacobian", "ntk"), ("ntk", "eigenvalues"), ("jacobian", "ntk", "eigenvalues")]
)
def test_two_sources(refuse, arrays, given):
    options = [part for name in given for part in (f"--{name}", f"{name}.npy")]
    refuse(*options, names=[*given, "one of"])


MEANINGLESS = [
    *[
        ([f"--{source}", f"{source}.npy", *option], [option[0], f"--{source}", option[1]])
        for source in ("jacobian", "ntk", "eigenvalues")
        for option in (["--n-data", "5"], ["--n-params", "5"], ["--spectrum", "gaussian"])
    ],
    (["--curvature", "0.1", "--curvature-strength", "1"], ["--curvature ", "-strength", "0.1"]),
    (["--nesterov"], ["--nesterov", "--momentum"]),
    (["--nesterov", "--momentum", "0"], ["--nesterov", "--momentum"]),
]


@pytest.mark.parametrize(("options", "words"), MEANINGLESS, ids=lambda value: " ".join(value))
@pytest.mark.parametrize("command", ["phase-diagram", "large-p-diagram", "sharpening-diagram"])
def test_options_that_others_make_meaningless(command, options, words, refuse, arrays):
    refuse(*options, names=words, base=[command, *WITHOUT_SIZE])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--picture", "no/p.png"], ["no/", "existing folder"]),
        (["--data", "no/d.nc"], ["no/", "existing folder"]),
        (["--data", "text.npy/d.nc"], ["text.npy", "existing folder"]),
        (["--data", "folder"], ["--data folder", "a folder"]),
        (["--picture", "p.jpg"], ["--picture", ".png, .pdf, .svg", "p.jpg"]),
        (["--picture", "p"], ["--picture", ".png, .pdf, .svg"]),
        (["--picture", "same.png", "--data", "same.png"], ["--picture", "--data", "twice"]),
        (["--picture", "folder/../a.png", "--data", "a.png"], ["--picture", "--data", "twice"]),
    ],
)
def test_outputs(refuse, arrays, options, words):
    refuse(*options, names=words)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (("--jacobian", "jacobian.npy"), ("--data", "jacobian.npy")),
        (("--ntk", "several.npz:ntk"), ("--data", "folder/../several.npz")),
    ],
)
def test_output_that_would_replace_an_input(refuse, arrays, source, output):
    message = "outputs must not replace an input"
    refuse(*source, *output, names=message, base=["phase-diagram", *WITHOUT_SIZE])


def test_picture_that_is_a_folder(refuse):
    Path("folder.png").mkdir()
    refuse("--picture", "folder.png", names=["folder.png", "a folder"])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable to root"
)
def test_output_in_a_folder_without_permission(refuse):
    Path("locked").mkdir(mode=0o500)
    refuse("--data", "locked/d.nc", names=["locked", "writable"])


def test_model_that_does_not_fit_in_memory(refuse):
    refuse("--n-params", "1000000", "--curvature", "0.1", names=["n_params=1000000", "GiB"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], ["--bogus"]),
        (["--picture"], ["--picture", "argument"]),
        (["--nesterov=3"], ["--nesterov"]),
        (["extra"], ["extra"]),
    ],
)
def test_arguments_that_click_refuses(refuse, arguments, words):
    refuse(*arguments, names=words)


def test_unknown_command(run):
    code, out, err = run("phase")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "phase" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "word"), [(["--batch-sizes", "0"], "batch"), (["--ntk", "no.npy"], "no.npy")]
)
def test_refusal_in_a_process_of_its_own(arguments, word):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert written() == set()


# Runs that fail or are interrupted


@pytest.mark.parametrize(
    "options", [["--steps", "5"], ["--batch-sizes", "0"], ["--ntk", "missing.npy"]]
)
def test_existing_outputs_survive_a_refusal(refuse, options):
    for name in OUTPUTS:
        Path(name).write_text("precious")
    refuse(*options, names="must")
    assert {Path(name).read_text() for name in OUTPUTS} == {"precious"}


# Where each command's work begins, and options that make it small.
WORK = {
    "phase-diagram": (phases, "measure_growth", TINY),
    "trace-boundary": (
        boundaries, "trace_unit", [*SIZE, "--batch-sizes", "2", "--kind", "deterministic"]
    ),
    "large-p-diagram": (large_p_phases, "measure_growth_in_limit", ["--n-data", "6", *TINY[4:]]),
    "sharpening-diagram": (sharpening, "growth_of_pair", SHORT),
    "persistent-edge": (persistence, "simulate", ["--n-data", "6", "--n-params", "9", *STEPS]),
    "large-p-edge": (
        large_p_outcomes, "large_p_limit", ["--n-data", "6", "--batch-sizes", "2", *STEPS]
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize("error", [MemoryError("no\nmemory"), KeyboardInterrupt()], ids=repr)
def test_existing_outputs_survive_a_failure(error, command, run, monkeypatch):
    def fail(*_, **__):
        raise error

    outputs = {f"{command}.png", f"{command}.nc"}
    for name in outputs:
        Path(name).write_text("precious")
    module, work, options = WORK[command]
    monkeypatch.setattr(module, work, fail)
    code, out, err = run(command, *options, "--overwrite")
    interrupted = isinstance(error, KeyboardInterrupt)
    assert (code, out.strip()) == (130 if interrupted else 2, "")
    assert err.strip().count("\n") == 0
    assert ("interrupted" if interrupted else "no memory") in err
    # An interrupted sweep leaves what is finished.
    kept = {name for name in written() if name.endswith(".store")}
    assert written() == outputs | kept
    assert bool(kept) == ("finished units are kept in" in err)
    assert interrupted or not kept
    assert {Path(name).read_text() for name in outputs} == {"precious"}


@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize("stage", ["to_netcdf", "savefig"])
def test_both_files_or_none(stage, command, run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset if stage == "to_netcdf" else Figure, stage, interrupt)
    assert run(command, *WORK[command][2])[0] == 130
    assert written() == set()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_control_c():
    # A child of a background process ignores SIGINT unless it is told otherwise.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from quadmodel.cli import main; main()"
    )
    precious = Path("phase-diagram.nc")
    precious.write_text("precious")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "phase-diagram",
            *SIZE,
            *GRID,
            "--steps",
            "200000",
            "--overwrite",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        time.sleep(4)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert out == ""
    # The terminal shows ^C; the message starts on a line of its own.
    # A slow machine may not have finished a unit yet.
    kept = r"\d+ finished units? (are|is) kept in phase-diagram\.store: the same command .* goes on"
    assert re.match(rf"interrupted; ({kept}|nothing was written)", err.strip())
    assert written() - {"phase-diagram.store"} == {precious.name}
    assert precious.read_text() == "precious"


def test_complaint_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli._complain("first\n  second")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "quadmodel: error: first second\n"
