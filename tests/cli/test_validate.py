"""quadmodel validate: table, JSON, exit code, refusals."""

import json
import math
import subprocess
from functools import partial

import pytest

import quadmodel as qm
from quadmodel._util import checks as _validation
from quadmodel.studies import _validation as suite
from quadmodel.studies import validation as module
from tests.cli.command import COMMAND, ENVIRONMENT, contents, written

TINY = suite.Effort(40, ntk_replicas=4, large_replicas=2, growth_steps=64, threads=None, seed=0)
GOOD = [("loss at step 10", 0.5, 0.504, 0.004), ("log growth, K = 0.8", -0.02, -0.0201, 0.0002)]
BAD = ("loss, a wrong one", 1.0, 2.0, 0.1)


@pytest.fixture
def rows(monkeypatch):
    """Put known rows in the place of the validation suite."""

    def rows(*rows):
        monkeypatch.setattr(module, "SUITE", [lambda _effort: [suite.Row(*row) for row in rows]])

    return rows


def refuse_constant(text):
    raise AssertionError(f"not JSON: {text}")


strict = partial(json.loads, parse_constant=refuse_constant)


def test_table(run, rows):
    rows(*GOOD)
    code, out, err = run("validate", "--quick")
    assert (code, err) == (0, "")
    head, first, second, summary = out.splitlines()
    assert head.split() == ["row", "predicted", "measured", "standard_error", "z", "verdict"]
    assert first.split()[-5:] == ["0.5", "0.504", "0.004", "1", "agrees"]
    assert first.strip().startswith("loss at step 10 ")
    assert second.split()[-5:] == ["-0.02", "-0.0201", "0.0002", "-0.5", "agrees"]
    assert summary.startswith("2 rows, 0 s, |z| <= 1.00 (")
    assert summary.endswith("): agree")
    assert written() == set()


def test_a_row_that_differs_is_named_and_ends_in_1(run, rows):
    rows(*GOOD, BAD)
    code, out, err = run("validate", "--quick")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["agrees", "agrees", "DIFFERS"]
    assert lines[3].strip().startswith("loss, a wrong one ")
    assert lines[4].endswith(": disagree")


@pytest.mark.parametrize("bad", [False, True])
def test_json(bad, run, rows):
    rows(*GOOD, *([BAD] if bad else []))
    code, out, err = run("validate", "--quick", "--json", "--seed", "7")
    assert (code, err) == (int(bad), "")
    found = strict(out)
    assert found["verdict"] == ("disagree" if bad else "agree")
    assert found["seed"] == "7"
    assert found["quick"] == 1
    assert found["worst"] == pytest.approx(10.0 if bad else 1.0)
    assert found["quadmodel_version"] == qm.__version__
    assert [row["row"] for row in found["rows"]] == [g[0] for g in GOOD] + [BAD[0]] * bad
    assert found["rows"][0] == {
        "row": "loss at step 10", "predicted": 0.5, "measured": 0.504, "standard_error": 0.004,
        "z": pytest.approx(1.0), "agrees": True,
    }  # fmt: skip
    assert found["rows"][-1]["agrees"] is not bad
    assert written() == set()


def test_the_suite_itself(run, monkeypatch):
    """What is printed is what validate() returns, in table and JSON; one thread or two."""
    monkeypatch.setattr(module, "_QUICK", TINY)
    monkeypatch.setattr(module, "SUITE", suite.SUITE[:3])
    table = qm.validate(quick=True, seed=3)
    code, out, _ = run("validate", "--quick", "--json", "--seed", "3", "--threads", "1")
    found = strict(out)
    assert code == (0 if table.attrs["verdict"] == "agree" else 1)
    assert {name: found[name] for name in table.attrs} == table.attrs
    for name in table.variables:
        assert [row[name] for row in found["rows"]] == table[name].values.tolist()
    same, out, _ = run("validate", "--quick", "--seed", "3", "--threads", "2")
    assert same == code
    lines = out.splitlines()[1:-1]
    assert len(lines) == table.sizes["row"]
    for line, name, z in zip(lines, table.row.values, table.z.values, strict=True):
        assert line.strip().startswith(name)
        assert float(line.split()[-2]) == pytest.approx(z, rel=1e-3)


@pytest.mark.parametrize("number", [math.nan, math.inf], ids=str)
def test_a_row_without_a_number_differs(number, run, rows):
    rows(*GOOD, ("diverged", 1.0, number, 0.1))
    code, out, err = run("validate", "--quick")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["agrees", "agrees", "DIFFERS"]
    assert lines[4].endswith(": disagree")


@pytest.mark.parametrize("number", [math.nan, math.inf], ids=str)
def test_json_of_a_row_without_a_number(number, run, rows):
    rows(*GOOD, ("diverged", 1.0, number, 0.1))
    code, out, _ = run("validate", "--quick", "--json")
    assert code == 1
    found = strict(out)
    assert [row["agrees"] for row in found["rows"]] == [True, True, False]


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], ["seed", "-1"]),
        (["--seed", str(2**64)], ["seed"]),
        (["--seed", "x"], ["--seed", "x"]),
        (["--seed", "0.5"], ["--seed", "0.5"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--threads", "-2"], ["threads", "-2"]),
        (["--threads", "many"], ["--threads", "many"]),
        (["--jsn"], ["--jsn"]),
        (["--json", "yes"], ["yes"]),
        (["--full"], ["--full"]),
        (["--picture", "edge.png"], ["--picture"]),
    ],
)
@pytest.mark.parametrize("quick", [["--quick"], []], ids=["quick", "full"])
def test_refusals_are_one_line(arguments, words, quick, run, monkeypatch):
    refused(run, monkeypatch, *quick, *arguments, words=words)


def refused(run, monkeypatch, *arguments, words):
    def work(_):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(module, "SUITE", [work])
    before = contents()
    code, out, err = run("validate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("quadmodel: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err
    assert contents() == before


def test_too_little_memory_is_one_line(run, rows, monkeypatch):
    def part(_):
        _validation.check_memory("the draws of the curvature", 1e18)
        yield suite.Row(*BAD)

    monkeypatch.setattr(module, "SUITE", [part])
    code, out, err = run("validate", "--quick")
    assert (code, out) == (2, "")
    assert err.startswith("quadmodel: error: the draws of the curvature needs ")
    assert err.count("\n") == 1


def test_help_as_a_process():
    command = [*COMMAND[:-1], "validate", "--help"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    for option in ("--quick", "--json", "--seed", "--threads"):
        assert option in done.stdout
    assert done.stderr == ""
