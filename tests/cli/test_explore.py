"""The command line's page: one file that loads nothing."""

import re
import sys
from pathlib import Path

import pytest

from quadmodel.cli import main


def run(*arguments):
    sys.argv = ["quadmodel", "explore", *arguments]
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_the_page_is_one_file(capsys):
    assert run("--html", "page.html") == 0
    assert capsys.readouterr().out == "wrote page.html\n"
    text = Path("page.html").read_text("utf-8")
    assert "{{" not in text.split("<script")[0]
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=(?!\"data:)", text)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", text)
    assert not re.search(r"^import ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--html", "page.txt"], "--html must end in .html, got page.txt"),
        (["--html", ""], "--html must end in .html, got ''"),
        (["--html", "nowhere/page.html"], "existing folder"),
        (["--html", "kept.html"], "must not exist yet"),
    ],
)
def test_refusals_are_one_line(arguments, words, capsys):
    Path("kept.html").write_text("kept")
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert Path("kept.html").read_text() == "kept"


def test_overwrite():
    Path("page.html").write_text("old")
    assert run("--html", "page.html", "--overwrite") == 0
    assert Path("page.html").read_text("utf-8").startswith("<!doctype html>")
