"""Command line: what a run writes and prints, and how it refuses bad input."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import quadmodel
from quadmodel import cli, phase
from quadmodel.cli import main, phase_diagram_command

COMMAND = [sys.executable, "-c", "from quadmodel.cli import main; main()", "phase-diagram"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(quadmodel.__file__).parents[1])}
GRID = ["--learning-rates", "6", "--batch-sizes", "3", "--replicas", "4", "--refine", "2"]
SIZE = ["--n-data", "20", "--n-params", "40"]
SMALL = [*SIZE, *GRID, "--steps", "64"]
TINY = [*SIZE, "--learning-rates", "3", "--batch-sizes", "2", "--replicas", "2"]
TINY += ["--refine", "0", "--steps", "32"]
OUTPUTS = {"phase-diagram.png", "phase-diagram.nc"}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arrays(tmp_path):
    """Good and bad input files."""
    rng = np.random.default_rng(0)
    jacobian = rng.standard_normal((12, 30))
    ntk = jacobian @ jacobian.T / 12
    np.save("jacobian.npy", jacobian)
    np.save("ntk.npy", ntk)
    np.save("eigenvalues.npy", np.linspace(0.5, 3, 12))
    np.savez("single.npz", only=jacobian)
    np.savez("several.npz", jacobian=jacobian, ntk=ntk, eigenvalues=np.linspace(0.5, 3, 12))
    np.save("asymmetric.npy", rng.standard_normal((8, 8)))
    np.save("indefinite.npy", np.diag([1.0, 2.0, -1.0]))
    np.save("nan.npy", np.where(np.eye(12) > 0, np.nan, ntk))
    np.save("negative.npy", np.array([1.0, -1.0]))
    np.save("vector.npy", np.ones(8))
    np.save("cube.npy", np.ones((2, 2, 2)))
    np.save("empty.npy", np.ones((0, 0)))
    np.save("complex.npy", np.eye(3) * 1j)
    np.save("words.npy", np.array([["a"]]))
    np.save("pickled.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    Path("truncated.npy").write_bytes(Path("jacobian.npy").read_bytes()[:200])
    Path("truncated.npz").write_bytes(Path("several.npz").read_bytes()[:400])
    Path("text.npy").write_text("hello\n")
    Path("nothing.npy").touch()
    Path("folder").mkdir()
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; return exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["quadmodel", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def refuse(run):
    """Run with bad input: exit code 2, one line that names the argument, nothing written."""

    def refuse(*arguments, names, base=TINY):
        before = contents()
        code, out, err = run("phase-diagram", *base, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("quadmodel: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        for name in [names] if isinstance(names, str) else names:
            assert name in err
        assert contents() == before
        return err

    return refuse


def contents():
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in Path().rglob("*")}


def written():
    return {path.name for path in Path().iterdir()}


# Runs that succeed


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
    pooled, speed, wrote = lines[2 + len(rows) :]
    number = r"\d+\.\d{4}"
    assert re.fullmatch(
        r"simulated critical K, all batch sizes: "
        rf"(not found inside the grid|{number} \[{number}, {number}\] \(95%\), predicted: 1)",
        pooled,
    )
    found = re.fullmatch(
        r"([\d.]+) s, ([\d,]+) replica-steps, [\d,]+ replica-steps per second", speed
    )
    assert found
    assert int(found[2].replace(",", "")) == grid.attrs["replica_steps"]
    return wrote


def test_end_to_end(tmp_path):
    done = subprocess.run(
        [*COMMAND, *SMALL], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stderr == ""  # no progress bar in a pipe, no warnings
    assert written() == OUTPUTS
    picture = mpl.image.imread("phase-diagram.png")
    assert picture.shape[:2] == (900, 1200)
    assert picture.std() > 0
    with xr.open_dataset("phase-diagram.nc", engine="h5netcdf") as grid:
        assert dict(grid.mean_growth.sizes) == {"learning_rate": 6, "batch_size": 3}
        assert grid.sizes["scan"] == 2
        assert grid.attrs["kind"] == "phase diagram"
        wrote = check_report(done.stdout, grid)
        pooled = float(quadmodel.critical_noise_kernel_norm(grid).pooled_noise_kernel_norm)
        assert f"all batch sizes: {pooled:.4f} [" in done.stdout
    assert wrote == "wrote phase-diagram.png and phase-diagram.nc"
    for name in OUTPUTS:
        assert Path(name).stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_end_to_end_again_with_another_thread_count(run):
    run("phase-diagram", *SMALL, "--threads", "1", "--data", "here.nc")
    subprocess.run(
        [*COMMAND, *SMALL, "--threads", "2", "--data", "there.nc"], env=ENVIRONMENT, check=True,
        stdout=subprocess.DEVNULL,
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
def succeed(run, monkeypatch):
    """Run without drawing, which takes longest; check the report and return the grid."""

    def succeed(*arguments, base=TINY):
        monkeypatch.setattr(cli, "_draw", lambda _, picture: picture.write_text("picture"))
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
        ("--ntk", "ntk.npy", 12),
        ("--ntk", "several.npz:ntk", 12),
        ("--eigenvalues", "eigenvalues.npy", 12),
        ("--eigenvalues", "several.npz:eigenvalues", 12),
    ],
)
def test_arrays_from_files(succeed, arrays, option, file, n_params):
    grid = succeed(option, file)
    assert (grid.attrs["n_data"], grid.attrs["n_params"]) == (12, n_params)
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
    succeed("--jacobian", "jacobian.npy", "--curvature", "0.01", "--residual", "0.5")


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


def test_existing_outputs_are_replaced(run):
    for name in OUTPUTS:
        Path(name).write_text("old")
    assert run("phase-diagram", *TINY)[0] == 0
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
    assert "[default: 1000]" in out
    assert run("phase-diagram", "-h")[1] == out


def test_help_of_the_group_and_version(run):
    assert "phase-diagram" in run("--help")[1]
    assert run("--version")[:2] == (0, f"quadmodel, version {quadmodel.__version__}\n")


# Bad input


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
        ("--eigenvalues", "negative.npy", ["negative, got -1"]),
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
    refuse(option, file, names=words)


def test_batch_size_above_the_array(refuse, arrays):
    refuse("--jacobian", "jacobian.npy", "--batch-sizes", "1,13", names=["batch", "12", "13"])


@pytest.mark.parametrize(
    "given", [("jacobian", "ntk"), ("ntk", "eigenvalues"), ("jacobian", "ntk", "eigenvalues")]
)
def test_two_sources(refuse, arrays, given):
    options = [part for name in given for part in (f"--{name}", f"{name}.npy")]
    refuse(*options, names=[*given, "one of"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--picture", "no/p.png"], ["output no", "existing folder"]),
        (["--data", "no/d.nc"], ["output no", "existing folder"]),
        (["--data", "text.npy/d.nc"], ["text.npy", "existing folder"]),
        (["--data", "folder"], ["output folder", "a folder"]),
        (["--picture", "p.jpg"], ["--picture", ".png, .pdf, .svg", "p.jpg"]),
        (["--picture", "p"], ["--picture", ".png, .pdf, .svg"]),
        (["--picture", "same.png", "--data", "same.png"], ["--picture", "--data", "twice"]),
        (["--picture", "folder/../a.png", "--data", "a.png"], ["--picture", "--data", "twice"]),
    ],
)
def test_outputs(refuse, arrays, options, words):
    refuse(*options, names=words)


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


@pytest.mark.parametrize("error", [MemoryError("no\nmemory"), KeyboardInterrupt()])
def test_existing_outputs_survive_a_failure(run, monkeypatch, error):
    def fail(*_, **__):
        raise error

    for name in OUTPUTS:
        Path(name).write_text("precious")
    monkeypatch.setattr(phase, "measure_cells", fail)
    code, out, err = run("phase-diagram", *TINY)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert (code, out.strip()) == (130 if interrupted else 2, "")
    assert err.strip().count("\n") == 0
    assert ("interrupted" if interrupted else "no memory") in err
    assert written() == OUTPUTS
    assert {Path(name).read_text() for name in OUTPUTS} == {"precious"}


def test_interrupt_while_writing_leaves_no_temporary_file(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", interrupt)
    assert run("phase-diagram", *TINY)[0] == 130
    assert written() == set()


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
        [sys.executable, "-c", code, "phase-diagram", *SIZE, *GRID, "--steps", "200000"],
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
    assert err.strip() == "interrupted; nothing was written"
    assert written() == {precious.name}
    assert precious.read_text() == "precious"


def test_complaint_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli._complain("first\n  second")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "quadmodel: error: first second\n"
