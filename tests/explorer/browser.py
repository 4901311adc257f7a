"""Headless Chromium, driven by Selenium, and JupyterLab for it."""

import importlib.util
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import quadmodel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PATIENCE = 300.0  # machines may be busy
_OPENINGS = 3  # of a notebook that draws nothing
_AGAIN = 10.0  # seconds until cells are run once more
_MISSING = [
    name
    for name, there in (
        ("chromium", CHROMIUM),
        ("chromedriver", DRIVER),
        ("selenium", importlib.util.find_spec("selenium")),
    )
    if not there
]
needs_browser = pytest.mark.skipif(
    bool(_MISSING), reason=f"{', '.join(_MISSING)}: not there to open a page with"
)


@contextmanager
def browser():
    """Open a browser; its windows have no scrollbars."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver, width, height=900, scheme="light"):
    """Give the page a width in pixels of its own, and a colour scheme."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def find(driver, selector):
    return driver.find_element("css selector", f".quadmodel-explorer {selector}")


def slider(driver, name):
    return find(driver, f'[data-setting="{name}"]')


def picture(driver, panel):
    """Return a panel's pixels."""
    return find(driver, f'[data-panel="{panel}"] .chart').screenshot_as_png


def wait(condition, patience=PATIENCE):
    """Wait until a condition holds, and return what it is."""
    end = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def complaints(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def jupyterlab(folder, *cells):
    """Serve a notebook of some cells; yields its address."""
    notebook = {
        "cells": [
            {"cell_type": "code", "id": f"cell{n}", "execution_count": None, "metadata": {},
             "outputs": [], "source": cell}
            for n, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }  # fmt: skip
    (folder / "explorer.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings, token = folder / "settings", secrets.token_hex()
    environment = os.environ | {
        "PYTHONPATH": str(Path(quadmodel.__file__).parents[1]),
        **{f"JUPYTER_{n}_DIR": str(settings) for n in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(settings / "lab"),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    log = folder / "server.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait(lambda: _answers(port) or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?token={token}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


# Where the notebook stands; answers dialogs, such as that for a kernel, on the way. It does not ask
# whether the kernel is idle: JupyterLab learns that from messages that pass before it listens where
# the machine is busy, and then knows no more until something runs.
_STATE = """
document.querySelectorAll(".jp-Dialog .jp-mod-accept").forEach((button) => button.click());
const open = [...(window.jupyterapp?.shell.widgets("main") ?? [])];
const panel = open.find((widget) => widget.context?.path === "explorer.ipynb");
const session = panel?.sessionContext;
const kernel = session?.session?.kernel;
const prompts = [...(panel?.node.querySelectorAll(".jp-InputPrompt") ?? [])];
return {
  ready: Boolean(panel?.isRevealed && session.isReady && kernel?.connectionStatus === "connected"),
  running: prompts.some((prompt) => prompt.textContent.includes("*")),
  kernel: [kernel?.connectionStatus, kernel?.status].join(", "),
  shown: document.body.innerText.slice(0, 2000),
};
"""
_RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
_END_KERNELS = """
const ended = window.jupyterapp?.serviceManager.sessions.shutdownAll().catch(() => null);
return Promise.race([ended, new Promise((done) => setTimeout(done, 10000))]).then(() => null);
"""


def run_all_cells(driver, address):
    """Run a notebook until an explorer is drawn; if none is, from the start, with a new kernel."""
    for _ in range(_OPENINGS):
        driver.get(address)
        if _drawn(driver, time.monotonic() + PATIENCE / _OPENINGS):
            return
        state = driver.execute_script(_STATE)
        driver.execute_script(_END_KERNELS)
    raise AssertionError(f"nothing was drawn: {state}")


def _drawn(driver, end):
    """Run cells until an explorer is drawn; whether one is."""
    run = -math.inf
    while time.monotonic() < end:
        if driver.find_elements("css selector", ".quadmodel-explorer .chart svg"):
            return True
        state = driver.execute_script(_STATE)
        # What shows widgets may come after the notebook; cells that run would replace what they
        # have drawn if they were run again.
        if state["ready"] and not state["running"] and time.monotonic() > run + _AGAIN:
            driver.execute_script(_RUN)
            run = time.monotonic()
        time.sleep(0.2)
    return False
