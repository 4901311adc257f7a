"""Fixtures that run the command line in an empty folder."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from quadmodel.cli import main
from quadmodel.studies import phases
from tests.cli.command import TINY, contents


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
def undrawn(monkeypatch):
    """No picture is drawn, which takes longest."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path: path.write_text("picture"))


@pytest.fixture
def refuse(run, monkeypatch):
    """Run with bad input: exit code 2, one line that names the argument, nothing written."""

    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(phases, "measure_growth", work)

    def refuse(*arguments, names, base=("phase-diagram", *TINY)):
        before = contents()
        code, out, err = run(*base, *arguments)
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
