"""From slider to changed pixel: python -m benchmarks.explorer, from the top of the repository.

In headless Chromium, arrow keys move the explorer's sliders one after the other, on the page and in
JupyterLab, there while Python simulates. A time goes from the event's own time stamp to the end of
the first frame that shows another picture.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from quadmodel._util.version import __version__
from quadmodel.explorer.page import page
from tests.explorer.browser import browser, jupyterlab, resize, run_all_cells, slider, wait

RESULTS = Path(__file__).with_name("EXPLORER.md")
GOALS = {"page": 50, "JupyterLab": 200}  # milliseconds, of 95 %
SLIDERS = ("learning_rate", "batch_size", "momentum", "weight_decay", "curvature_strength")
NOTEBOOK = "import quadmodel as qm\nexplorer = qm.explore()\nexplorer"
# Listens after the explorer has; a message sent within a frame arrives when it has been painted.
MEASURE = """
const root = document.querySelector(".quadmodel-explorer");
const shown = () => [...root.querySelectorAll(".chart")].map((c) => c.innerHTML).join("");
window.latencies = [];
root.addEventListener("input", (event) => {
  const before = shown();
  let frames = 0;
  const look = () => {
    if (shown() === before) return ++frames < 20 && requestAnimationFrame(look);
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.latencies.push(performance.now() - event.timeStamp);
    port2.postMessage(null);
  };
  requestAnimationFrame(look);
});
"""


def measured(driver: Any, count: int, pause: float) -> list[float]:
    """Return the milliseconds of `count` steps of sliders."""
    from selenium.webdriver.common.keys import Keys

    driver.execute_script(MEASURE)
    for n in range(count):
        key = Keys.ARROW_RIGHT if n // len(SLIDERS) % 4 < 2 else Keys.ARROW_LEFT
        slider(driver, SLIDERS[n % len(SLIDERS)]).send_keys(key)
        time.sleep(pause)
    # A step at the end of a slider changes nothing.
    wait(lambda: len(driver.execute_script("return window.latencies")) >= 0.7 * count)
    return [float(value) for value in driver.execute_script("return window.latencies")]


def on_the_page(driver: Any, count: int) -> list[float]:
    """Measure on the page, opened from a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "explorer.html"
        file.write_text(page(), encoding="utf-8")
        driver.get(file.as_uri())
        return measured(driver, count, 0.05)


def in_jupyterlab(driver: Any, count: int) -> tuple[list[float], list[float]]:
    """Measure in JupyterLab, and how long a simulation takes to be drawn after a step."""
    from selenium.webdriver.common.keys import Keys

    drawn = '[data-panel="loss"] .simulated'
    with tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder), NOTEBOOK) as address:
        run_all_cells(driver, address)
        wait(lambda: driver.find_elements("css selector", drawn))
        found, simulated = measured(driver, count, 0.05), []
        for _ in range(10):
            wait(lambda: driver.find_elements("css selector", drawn))
            slider(driver, "learning_rate").send_keys(Keys.ARROW_LEFT)
            began = time.perf_counter()
            wait(lambda: not driver.find_elements("css selector", drawn))
            wait(lambda: driver.find_elements("css selector", drawn))
            simulated.append(1e3 * (time.perf_counter() - began))
        return found, simulated


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--count", type=click.IntRange(20), default=200, help="Steps of sliders.")
@click.option("--write", is_flag=True, help=f"Write benchmarks/{RESULTS.name}.")
def main(count: int, write: bool) -> None:
    """Time the explorer from slider to changed pixel."""
    with browser() as driver:
        resize(driver, 1280)
        times = {"page": on_the_page(driver, count)}
        times["JupyterLab"], simulated = in_jupyterlab(driver, count)
    lines = ["| | steps | median | 95 % | goal | |", "|---|---|---|---|---|---|"]
    for place, values in times.items():
        middle, most = np.percentile(values, (50, 95))
        verdict = "reached" if most < GOALS[place] else "missed"
        row = (
            place,
            len(values),
            f"{middle:.0f} ms",
            f"{most:.0f} ms",
            f"{GOALS[place]} ms",
            verdict,
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}"
    command = f"`python -m benchmarks.explorer --count {count}`"
    table = "\n".join(lines)
    text = f"""# From slider to changed pixel

{command}, quadmodel {__version__}, {date.today()}, {machine}, headless Chromium without a GPU.

{table}

In JupyterLab a new simulation (100 data points, 200 parameters, curvature, four runs of 200 steps)
is drawn {np.median(simulated):.0f} ms after the step (median of {len(simulated)}).
"""
    click.echo(text)
    if write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
