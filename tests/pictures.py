"""What tests of pictures share: drawing with checks, and finding what was drawn."""

import matplotlib as mpl
import pytest

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist

K_LINES = ["K = 1, paper's limit", "K = 1, finite size", "K = 1, exact threshold"]


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
    ax.figure.canvas.draw()  # warnings are errors here
    return artists, ax


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def labelled(artists, label):
    (found,) = [artist for artist in artists if artist.get_label() == label]
    return found
