"""Bad input on the command line: one line, exit code 2, no warning, no work, nothing written.

What the Python functions refuse is in tests/test_bad_input.py.
"""

import os
import stat
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from quadmodel.studies import (
    boundaries,
    large_p_outcomes,
    large_p_phases,
    persistence,
    phases,
    sharpening,
    validation,
)
from tests.cli.command import COMMAND, ENVIRONMENT, contents

HUGE = "9" * 5000

# Options of a command, and words of the refusal, the option or the file among them.
PER_COMMAND = {
    "phase-diagram": [
        (["--n-data", "0"], "n_data"),
        (["--n-data", "-3"], "n_data"),
        (["--n-data", "2.5"], "--n-data"),
        (["--n-data", ""], "--n-data"),
        (["--n-data", str(10**12)], "GiB"),
        (["--n-data", str(10**30)], "n_data"),
        (["--n-data", HUGE], "--n-data"),
        (["--n-data", str(10**12), "--spectrum", "power-law"], "GiB"),
        (["--n-params", str(10**15)], "GiB"),
        (["--n-params", "nan"], "--n-params"),
        (["--spectrum", ""], "--spectrum"),
        (["--spectrum", "power-law:nan"], "--spectrum"),
        (["--spectrum", "outliers:1,,2"], "--spectrum"),
        (["--curvature", "-1"], "--curvature"),
        (["--curvature", "1e200"], "--curvature"),
        (["--curvature", "much"], "--curvature"),
        (["--curvature-strength", "inf"], "--curvature-strength"),
        (["--residual", "1e101"], "--residual"),
        (["--learning-rates", ""], "--learning-rates"),
        (["--learning-rates", "0.1,0.2,"], "--learning-rates"),
        (["--learning-rates", "1e-200,1"], "learning_rates"),
        (["--learning-rates", "0.1;0.2"], "--learning-rates"),
        (["--learning-rates", "1:2:1000001"], "--learning-rates"),
        (["--learning-rates", HUGE], "--learning-rates"),
        (["--batch-sizes", ""], "--batch-sizes"),
        (["--batch-sizes", "1,2.5"], "--batch-sizes"),
        (["--batch-sizes", f"1,{HUGE}"], "--batch-sizes"),
        (["--batch-sizes", "1,1e400"], "--batch-sizes"),
        (["--batch-sizes", "1:inf:3"], "--batch-sizes"),
        (["--momentum", "1"], "momentum"),
        (["--momentum", ""], "--momentum"),
        (["--weight-decay", "-1e-9"], "weight_decay"),
        (["--sampling", "Bernoulli "], "--sampling"),
        (["--steps", "31"], "steps"),
        (["--steps", "3000000000"], "steps"),
        (["--replicas", "1"], "replicas"),
        (["--replicas", "99999999"], "replicas"),
        (["--refine", "-1"], "refine"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--seed", "1.0"], "--seed"),
        (["--seed", HUGE], "--seed"),
        (["--threads", "0"], "threads"),
        (["--threads", "-1"], "threads"),
        (["--precision", "float32"], "precision"),
        (["--precision", ""], "precision"),
        (["--picture", ""], "--picture"),
        (["--picture", "p.PNG"], "--picture"),
        (["--picture", "no/where.png"], "--picture no/where.png"),
        (["--picture", "folder.png"], "--picture folder.png"),
        (["--picture", "x" * 300 + ".png"], "--picture x"),
        (["--data", ""], "--data"),
        (["--data", "folder"], "--data folder"),
        (["--data", "folder/"], "--data folder"),
        (["--data", "ntk.npy/d.nc"], "--data ntk.npy/d.nc"),
        (["--data", "/dev/null"], "--data /dev/null"),
        (["--data", "pipe"], "--data pipe"),
        (["--data", "precious.nc"], "--data precious.nc must not exist yet"),
        (["--picture", "precious.png"], "--picture precious.png must not exist yet"),
        (["--picture", "link.png"], "--picture link.png must not exist yet"),
        (["--ntk", ""], "--ntk"),
        (["--ntk", "no.npy"], "--ntk no.npy"),
        (["--ntk", "folder"], "--ntk folder"),
        (["--ntk", "pipe"], "--ntk pipe"),
        (["--ntk", "/dev/null"], "--ntk /dev/null"),
        (["--ntk", "x" * 300], "--ntk x"),
        (["--ntk", "asymmetric.npy"], "--ntk asymmetric.npy"),
        (["--ntk", "indefinite.npy"], "--ntk indefinite.npy"),
        (["--ntk", "nearly.npy"], "--ntk nearly.npy"),
        (["--ntk", "nan.npy"], "--ntk nan.npy"),
        (["--ntk", "inf.npy"], "--ntk inf.npy"),
        (["--ntk", "zero.npy"], "must not vanish"),
        (["--ntk", "scalar.npy"], "--ntk scalar.npy"),
        (["--ntk", "vector.npy"], "--ntk vector.npy"),
        (["--ntk", "cube.npy"], "--ntk cube.npy"),
        (["--ntk", "empty.npy"], "--ntk empty.npy"),
        (["--ntk", "jacobian.npy"], "--ntk jacobian.npy"),
        (["--ntk", "complex.npy"], "--ntk complex.npy"),
        (["--ntk", "bool.npy"], "--ntk bool.npy"),
        (["--ntk", "words.npy"], "--ntk words.npy"),
        (["--ntk", "pickled.npy"], "--ntk pickled.npy"),
        (["--ntk", "text.npy"], "--ntk text.npy"),
        (["--ntk", "nothing.npy"], "--ntk nothing.npy"),
        (["--ntk", "truncated.npy"], "--ntk truncated.npy"),
        (["--ntk", "truncated.npz:ntk"], "--ntk truncated.npz"),
        (["--ntk", "several.npz"], "--ntk several.npz"),
        (["--ntk", "several.npz:"], "--ntk several.npz"),
        (["--ntk", "several.npz:NTK"], "--ntk several.npz"),
        (["--jacobian", ""], "--jacobian"),
        (["--jacobian", "vector.npy"], "--jacobian vector.npy"),
        (["--jacobian", "words.npy"], "--jacobian words.npy"),
        (["--jacobian", "ntk.npy", "--ntk", "ntk.npy"], "--jacobian, --ntk"),
        (["--jacobian", "ntk.npy", "--n-data", "12"], "--n-data"),
        (["--jacobian", "ntk.npy", "--data", "ntk.npy"], "ntk.npy"),
        (["--eigenvalues", ""], "--eigenvalues"),
        (["--eigenvalues", "ntk.npy"], "--eigenvalues ntk.npy"),
        (["--eigenvalues", "negative.npy"], "--eigenvalues negative.npy"),
        (["--eigenvalues", "scalar.npy"], "--eigenvalues scalar.npy"),
        (["--nesterov"], "--nesterov"),
        (["--overwrite=no"], "--overwrite"),
        (["--steps", "64", "more"], "more"),
        (["--no-such-option"], "--no-such-option"),
    ],
    "large-p-diagram": [
        (["--truncation-order", "0"], "truncation_order"),
        (["--truncation-order", "1001"], "truncation_order"),
        (["--truncation-order", "30"], "GiB"),
        (["--curvature-strength", "-1"], "--curvature-strength"),
        (["--ntk", ""], "--ntk"),
        (["--data", "precious.nc"], "--data precious.nc"),
        (["--steps", "2"], "steps"),
    ],
    "trace-boundary": [
        (["--kind", "mean"], "kind must be one of"),
        (["--kind", "typical", "--curvature", "0.01", "--n-data", "4", "--n-params", "6"], "kind"),
        (["--rtol", "0"], "rtol"),
        (["--rtol", "1%"], "--rtol"),
        (["--momenta", "0,high"], "--momenta must be a list like 0,0.5,0.9, got '0,high'"),
        (["--momenta", "0,1"], "momenta"),
        (["--momenta", ""], "--momenta"),
        (["--batch-sizes", "0"], "batch_sizes"),
        (["--learning-rates", "3"], "--learning-rates"),
        (["--steps", "31"], "steps"),
        (["--precision", "half"], "precision"),
        (["--ntk", "zero.npy"], "must not vanish"),
        (["--ntk", "nan.npy"], "--ntk nan.npy"),
        (["--data", "precious.nc"], "--data precious.nc"),
    ],
    "sharpening-diagram": [
        (["--curvature", "nan"], "--curvature"),
        (["--replicas", "1"], "--replicas"),
        (["--steps", "0"], "steps"),
        (["--batch-sizes", "0"], "batch_sizes"),
        (["--batch-sizes", "1,61"], "batch_sizes"),
        (["--n-params", "30"], "full row rank"),
        (["--ntk", "zero.npy"], "row rank"),
        (["--picture", "precious.png"], "--picture precious.png"),
    ],
    "persistent-edge": [
        (["--curvature-strengths", ""], "--curvature-strengths"),
        (["--curvature-strengths", "1,-1"], "curvature_strengths"),
        (["--curvature-strengths", "nan"], "curvature_strengths"),
        (["--initial-norm", "0"], "initial_norm"),
        (["--batch-size", "101"], "batch_size"),
        (["--batch-size", "0"], "batch_size"),
        (["--n-params", "99"], "n_params"),
        (["--n-params", str(10**9)], "GiB"),
        (["--n-params", HUGE], "--n-params"),
        (["--n-data", str(10**30), "--n-params", str(10**30)], "n_data"),
        (["--steps", "-1"], "steps"),
        (["--replicas", "0"], "replicas"),
        (["--data", "precious.nc"], "--data precious.nc"),
    ],
    "large-p-edge": [
        (["--initial-norms", "0.5,0.5"], "initial_norms"),
        (["--initial-norms", "high"], "--initial-norms"),
        (["--batch-sizes", "40"], "batch_sizes"),
        (["--batch-sizes", "2,2"], "batch_sizes"),
        (["--curvature-strengths", "1e101"], "curvature_strengths"),
        (["--n-data", "1"], "n_data"),
        (["--truncation-order", "40"], "GiB"),
        (["--picture", "precious.png"], "--picture precious.png"),
    ],
    "validate": [
        (["--seed", "-1"], "seed"),
        (["--threads", "0"], "threads"),
        (["--quickly"], "--quickly"),
    ],
    "derive": [
        (["no-such-name"], "no-such-name"),
        (["all", "--root", "no-such-folder"], "--root"),
        (["03", "--root", "folder"], "--root"),
    ],
}
TABLE = [
    pytest.param(command, options, words, id=f"{command} {' '.join(o[:40] for o in options)}")
    for command, cases in PER_COMMAND.items()
    for options, words in cases
]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A folder with bad files of every kind, and good ones that nobody may touch."""
    folder = tmp_path_factory.mktemp("crowded")
    rng = np.random.default_rng(0)
    jacobian = rng.standard_normal((12, 30))
    ntk = jacobian @ jacobian.T / 12
    arrays = {
        "jacobian": jacobian, "ntk": ntk, "asymmetric": jacobian[:, :12],
        "indefinite": np.diag([1.0, 2.0, -1.0]), "nearly": np.diag([180.0, 1.0, -8e-6]),
        "nan": np.where(np.eye(12) > 0, np.nan, ntk), "inf": np.diag([np.inf, 1.0]),
        "zero": np.zeros((3, 3)), "scalar": np.float64(2), "vector": np.ones(8),
        "cube": np.ones((2, 2, 2)), "empty": np.ones((0, 0)), "complex": np.eye(3) * 1j,
        "bool": np.eye(3) > 0, "words": np.array([["a"]]), "negative": np.array([1.0, -1.0]),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "pickled.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.savez(folder / "several.npz", jacobian=jacobian, ntk=ntk)
    for name, length in (("ntk.npy", 200), ("several.npz", 400)):
        whole = (folder / name).read_bytes()
        (folder / f"truncated{Path(name).suffix}").write_bytes(whole[:length])
    (folder / "text.npy").write_text("hello\n")
    (folder / "nothing.npy").touch()
    for name in ("folder", "folder.png"):
        (folder / name).mkdir()
    for name in ("precious.nc", "precious.png"):
        (folder / name).write_text("precious")
    (folder / "link.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def idle(monkeypatch):
    """No command may begin its work."""

    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    for module, name in [
        (phases, "measure_growth"), (boundaries, "trace_unit"),
        (large_p_phases, "measure_growth_in_limit"),
        (sharpening, "growth_of_pair"), (persistence, "simulate"),
        (large_p_outcomes, "large_p_limit"), (validation, "SUITE"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, work)


@pytest.mark.skipif(os.name != "posix", reason="pipes, devices and links")
@pytest.mark.parametrize(("command", "options", "words"), TABLE)
def test_refusal(command, options, words, crowded, idle, run, monkeypatch):
    monkeypatch.chdir(crowded)
    before = contents()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = run(command, *options)
    assert (code, out) == (2, ""), err[-500:]
    assert err.startswith("quadmodel: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert words in err
    assert len(err) < 700
    assert contents() == before
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


PROCESSES = [
    (["--batch-sizes", "1,2.5"], "--batch-sizes"),
    (["--ntk", "nan.npy"], "--ntk nan.npy"),
    (["--data", "precious.nc"], "--overwrite"),
]


@pytest.mark.parametrize(("options", "words"), PROCESSES, ids=lambda value: str(value))
def test_refusal_by_a_process(options, words, crowded):
    before = {path.name: path.lstat().st_mtime_ns for path in crowded.iterdir()}
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, env=ENVIRONMENT, cwd=crowded
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr
    assert {path.name: path.lstat().st_mtime_ns for path in crowded.iterdir()} == before
