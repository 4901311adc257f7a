"""Progress bars: shown on a terminal and in a notebook, silent elsewhere."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tqdm
import tqdm.auto

import quadmodel
from quadmodel._util.progress import progress_bar

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(quadmodel.__file__).parents[1])}
LOOP = """
from quadmodel._util.progress import progress_bar
with progress_bar(3, what="steps", show={show}) as bar:
    for _ in range(3):
        bar.update()
print("done")
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fake_ipython(monkeypatch, config):
    shell = None if config is None else SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def count_to_three(stream, monkeypatch, *, show):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(3, what="steps", show=show) as bar:
        for _ in range(3):
            bar.update()
    return stream.getvalue()


@pytest.mark.parametrize("show", [True, False])
def test_silent_in_a_pipe(show):
    done = subprocess.run(
        [sys.executable, "-c", LOOP.format(show=show)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.skipif(os.name != "posix", reason="no pseudo-terminals")
@pytest.mark.parametrize("show", [True, False])
def test_on_a_pseudo_terminal(show):
    import termios

    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # without a width tqdm draws nothing
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOOP.format(show=show)],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            check=True,
            env=ENVIRONMENT,
        )
        os.set_blocking(ours, False)
        shown = b""
        with contextlib.suppress(BlockingIOError):  # nothing more to read
            while part := os.read(ours, 4096):
                shown += part
    finally:
        os.close(theirs)  # only now: what nobody has read may be lost with it
        os.close(ours)
    assert done.stdout == "done\n"
    assert (b"steps" in shown) is show
    assert (b"3" in shown) is show


def test_shown_on_a_terminal(monkeypatch):
    text = count_to_three(Terminal(), monkeypatch, show=True)
    assert "steps:   0%" in text
    assert "0/3" in text
    # The bar is wiped when it is done: what stands last is blank.
    assert text.endswith("\r")
    assert text.rstrip("\r").rpartition("\r")[2].strip() == ""


def test_not_asked_for(monkeypatch):
    assert count_to_three(Terminal(), monkeypatch, show=False) == ""


def test_silent_if_standard_error_is_no_terminal(monkeypatch):
    assert count_to_three(io.StringIO(), monkeypatch, show=True) == ""


def test_silent_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with progress_bar(1, what="steps", show=False) as bar:
        bar.update()


def test_notebook(monkeypatch):
    asked = {}

    def widget(**options):
        asked.update(options)
        return "widget"

    fake_ipython(monkeypatch, {"IPKernelApp": {}})
    monkeypatch.setattr(tqdm.auto, "tqdm", widget)
    assert progress_bar(7, what="steps", show=True) == "widget"
    assert (asked["total"], asked["desc"]) == (7, "steps")
    assert asked["disable"] is False  # never None: a notebook's stderr is no terminal


def test_not_asked_for_in_a_notebook(monkeypatch):
    fake_ipython(monkeypatch, {"IPKernelApp": {}})
    assert progress_bar(7, what="steps", show=False).disable


@pytest.mark.parametrize("config", [None, {}, {"TerminalInteractiveShell": {}}])
def test_ipython_without_a_kernel_is_no_notebook(monkeypatch, config):
    fake_ipython(monkeypatch, config)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = progress_bar(1, what="steps", show=True)
    assert isinstance(bar, tqdm.tqdm)
    assert bar.disable
    bar.close()


def test_without_ipython(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(1, what="steps", show=True) as bar:
        assert type(bar) is tqdm.tqdm
        assert not bar.disable
