"""The command line's derivations: list, write, compare, refuse."""

import subprocess
import sys
from pathlib import Path

import pytest

import quadmodel
from quadmodel.cli import main
from tests.cli.command import COMMAND, ENVIRONMENT

COMMITTED = Path(quadmodel.__file__).parents[1]


def run(*arguments):
    sys.argv = ["quadmodel", "derive", *arguments]
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture
def checkout():
    Path("derivations").mkdir()
    Path("quadmodel/theory").mkdir(parents=True)


def test_without_names_it_lists(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    documents = sorted(path.stem for path in (COMMITTED / "derivations").glob("*-*.md"))
    assert names == [*documents, "formulas", "javascript"]
    assert "01-batch-weights" in names
    assert all((COMMITTED / line.split()[1]).is_file() for line in lines)


def test_a_number_writes_its_document(checkout, capsys):
    assert run("01") == 0
    assert capsys.readouterr().out.split() == ["wrote", "derivations/01-batch-weights.md"]
    written = Path("derivations/01-batch-weights.md").read_bytes()
    assert written == (COMMITTED / "derivations/01-batch-weights.md").read_bytes()
    assert run("01-batch-weights") == 0
    assert capsys.readouterr().out.split()[0] == "same"


def test_formulas_go_to_the_theory(checkout):
    assert run("formulas") == 0
    written = Path("quadmodel/theory/_generated.py").read_bytes()
    assert written == (COMMITTED / "quadmodel/theory/_generated.py").read_bytes()


def test_javascript_goes_to_the_explorer():
    Path("quadmodel/explorer/front").mkdir(parents=True)
    assert run("javascript") == 0
    written = Path("quadmodel/explorer/front/formulas.js").read_bytes()
    assert written == (COMMITTED / "quadmodel/explorer/front/formulas.js").read_bytes()


def test_check_writes_nothing_and_tells_what_differs(checkout, capsys):
    assert run("--check", "01") == 1
    assert not list(Path("derivations").iterdir())
    run("01")
    capsys.readouterr()
    assert run("--check", "01") == 0
    document = Path("derivations/01-batch-weights.md")
    document.write_text(document.read_text().replace("gamma", "Gamma", 1))
    capsys.readouterr()
    assert run("--check", "01") == 1
    assert capsys.readouterr().out.split()[0] == "differs"


def test_root(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "derivations").mkdir(parents=True)
    assert run("01", "--root", str(elsewhere)) == 0
    assert (elsewhere / "derivations/01-batch-weights.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["99"], "01-batch-weights"),
        (["x"], "'x'"),
        (["01", "--root", "nowhere"], "--root must be an existing folder, got nowhere"),
        (["01"], "derivations/"),  # no checkout here
        (["formulas"], "quadmodel/theory/"),
        (["--chek"], "--chek"),
    ],
)
def test_refusals_are_one_line(arguments, words, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_nothing_is_written_where_one_of_several_can_not_be():
    Path("derivations").mkdir()
    assert run("01", "formulas") == 2
    assert not list(Path("derivations").iterdir())


def test_as_a_process():
    command = [*COMMAND[:-1], "derive"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "05-sharpening" in done.stdout
