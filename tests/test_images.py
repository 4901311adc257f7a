"""Every picture beside a committed image, in light and dark; and that nothing drawn is unseen.

New images: ``pytest tests/test_images.py --mpl-generate-path=tests/images``, and look at them.
"""

import matplotlib as mpl
import numpy as np
import pytest

pytest.importorskip("pytest_mpl", reason="needs pytest-mpl, of the extra test")
mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

import quadmodel as qm
from tests import picture_data as data
from tests.pictures import close_figures  # noqa: F401

STYLES = {"light": "default", "dark": "dark_background"}
# Small: what is compared are shapes and colours; texts are compared by the other tests.
SIZE = {"figure.dpi": 60, "savefig.dpi": 60, "font.family": "DejaVu Sans"}
# Root mean square of the difference, out of 255: other processors, fonts' hinting.
TOLERANCE = 8
PICTURES = {
    "boundary": lambda ax: qm.plot.boundary(data.boundary(), ax),
    "large_p_edge": lambda ax: qm.plot.large_p_edge(data.large_p(), ax),
    "loss": lambda ax: qm.plot.loss(data.run(), data.prediction(), ax),
    "mean_field": lambda ax: qm.plot.mean_field(data.prediction(), data.run(), ax),
    "mean_field_edge": lambda ax: qm.plot.mean_field_edge(data.edges(), ax),
    "network": lambda ax: qm.plot.network(data.run().isel(replica=[0]), ax),
    "network_outcomes": lambda ax: qm.plot.network_outcomes(data.network_grid(), ax),
    "network_runs": lambda ax: qm.plot.network_runs(data.network_grid(), ax),
    "persistent_edge": lambda ax: qm.plot.persistent_edge(data.persistent(), ax),
    "phase_diagram": lambda ax: qm.plot.phase_diagram(data.grid(), ax),
    "separation": lambda ax: qm.plot.separation(data.areas(), ax),
    "sharpening": lambda ax: qm.plot.sharpening(data.expected(), None, ax),
    "sharpening_diagram": lambda ax: qm.plot.sharpening_diagram(data.sharpening_grid(), ax),
    "spectrum": lambda ax: qm.plot.spectrum(1 / np.arange(1.0, 101.0), ax),
    "trajectory": lambda ax: qm.plot.trajectory(data.run(), ax),
}


def figure_of(name, style):
    with plt.style.context([STYLES[style], SIZE]):
        figure, ax = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
        PICTURES[name](ax)
        figure.canvas.draw()
    return figure


@pytest.mark.mpl_image_compare(
    baseline_dir="images", style="default", tolerance=TOLERANCE, savefig_kwargs={"metadata": {}}
)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PICTURES)
def test_image(name, style):
    figure = figure_of(name, style)
    assert unseen(figure.axes[0], name) == []
    return figure


def test_every_picture_is_here():
    assert sorted(PICTURES) == dir(qm.plot)


def unseen(ax, name=""):
    """Return lines without a rim that are hardly told from what lies behind them."""
    covered = name.endswith("diagram")  # by coloured cells
    behind = luminance("white" if covered else ax.get_facecolor())
    lines = [line for line in ax.lines if not line.get_path_effects()]
    return [line for line in lines if contrast(luminance(line.get_color()), behind) < 1.5]


def test_black_on_dark_is_not_seen():
    with plt.style.context("dark_background"):
        ax = plt.subplots()[1]
        ax.plot([0, 1], [0, 1], color="black")
        assert len(unseen(ax)) == 1


def luminance(colour):
    """Return the relative luminance of WCAG 2."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)
