"""What tests of pictures share: drawing with checks, and finding what was drawn."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.text import Text

K_LINES = ["K = 1, paper's limit", "K = 1, finite D", "K = 1, exact"]
# Pixels by which boxes may overlap, since glyphs don't fill them.
SLACK = 1.0


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def draw(function, *args, **options):
    """Return artists and Axes, after checks that hold for every picture."""
    artists = function(*args, **options)
    assert artists
    assert all(isinstance(artist, Artist) for artist in artists)
    (ax,) = {artist.axes for artist in artists if artist.axes is not None}
    found = overlaps(ax.figure)  # which draws; warnings are errors here
    assert found == [] or len(ax.figure.axes) > 2  # one picture, with its colour bar
    check_legend(ax)
    return artists, ax


def legend(ax):
    found = ax.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def title(ax):
    """Return the title in one line."""
    return ax.get_title().replace("\n", " ")


def labelled(artists, label):
    (found,) = [artist for artist in artists if artist.get_label() == label]
    return found


def texts(figure):
    """Return the texts that are seen: of ticks only those inside the limits."""
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    hidden |= {id(tick.label1), id(tick.label2)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def overlaps(figure):
    """Return pairs of texts that overlap, and texts that the figure cuts off."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    found = [
        (a, b)
        for (a, p), (b, q) in itertools.combinations(boxes, 2)
        if min(p.x1, q.x1) - max(p.x0, q.x0) > SLACK and min(p.y1, q.y1) - max(p.y0, q.y0) > SLACK
    ]
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend() is not None]
    boxes += [("the legend", legend.get_window_extent(renderer)) for legend in legends]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        if min(box.x0, box.y0, width - box.x1, height - box.y1) < -SLACK:
            found.append((text, "the figure's border"))
    return found


def check_legend(ax):
    """Check that the legend lists what is labelled, each once, and that lines in it are seen."""
    listed = legend(ax)
    assert len(set(listed)) == len(listed)
    drawn = [artist for artist in [*ax.get_children(), *ax.containers] if is_labelled(artist)]
    assert sorted(listed) == sorted(artist.get_label() for artist in drawn)
    low, high = sorted(ax.get_ylim())
    for line in drawn:
        # Without points: an entry that explains a marker or a colour.
        if not isinstance(line, Line2D) or len(line.get_xdata()) < 2:
            continue
        y = np.asarray(line.get_ydata(), dtype=float)
        with np.errstate(invalid="ignore"):
            segments = np.stack([np.minimum(y[:-1], y[1:]), np.maximum(y[:-1], y[1:])])
            assert ((segments[0] <= high) & (segments[1] >= low)).any(), line.get_label()


def is_labelled(artist):
    label = artist.get_label()  # of an axis: a text
    return isinstance(label, str) and bool(label) and not label.startswith("_")
