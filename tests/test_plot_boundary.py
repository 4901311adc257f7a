"""Traced boundaries in pictures: marks, bars, colours, over a phase diagram and alone."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import quadmodel as qm
from quadmodel._util.checks import InputError
from tests.pictures import close_figures, draw, legend, title  # noqa: F401
from tests.plot_grids import ATTRS, phase_grid

SIZES = [1, 4, 16]


def traced(values=(0.02, 0.08, 0.3), resolved=(True, True, True), momenta=None, **attrs):
    value, known = np.array(values), np.array(resolved)
    dims, coords = ("batch_size",), {"batch_size": SIZES}
    if momenta is not None:
        value = value[:, None] / (1 + np.arange(len(momenta)))
        known = np.repeat(known[:, None], len(momenta), axis=1)
        dims, coords = ("batch_size", "momentum"), coords | {"momentum": momenta}
    variables = {
        "critical_learning_rate": (dims, value),
        "critical_learning_rate_low": (dims, 0.9 * value),
        "critical_learning_rate_high": (dims, 1.2 * value),
        "resolved": (dims, known),
    }
    return xr.Dataset(variables, coords, ATTRS | {"boundary": "mean_square"} | attrs)


def bars(artists):
    return [a for a in artists if isinstance(a, LineCollection)]


def marks(artists):
    return [a for a in artists if isinstance(a, Line2D) and a.get_marker() == "D"]


def test_alone():
    artists, ax = draw(qm.plot.boundary, traced())
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "batch size (data points)"
    assert ax.get_ylabel() == "learning rate (1 / NTK eigenvalue)"
    assert title(ax).startswith("100 data points, 200 parameters")
    assert list(legend(ax)) == ["traced, mean square (95%)"]
    (drawn,) = marks(artists)
    np.testing.assert_array_equal(drawn.get_xdata(), SIZES)
    np.testing.assert_array_equal(drawn.get_ydata(), [0.02, 0.08, 0.3])
    (lines,) = bars(artists)
    segments = np.array(lines.get_segments())
    np.testing.assert_allclose(segments[:, :, 1], np.outer([0.02, 0.08, 0.3], [0.9, 1.2]))


def test_over_a_phase_diagram():
    ax = Figure(layout="constrained").subplots()
    qm.plot.phase_diagram(phase_grid(np.geomspace(0.01, 2, 12), SIZES), ax)
    before = ax.get_xlim(), ax.get_ylim(), ax.get_title(), list(legend(ax))
    qm.plot.boundary(traced(values=(1e-4, 0.08, 0.3)), ax)  # the first one is outside
    qm.plot.boundary(traced(boundary="typical"), ax)
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_title()) == before[:3]
    added = ["traced, mean square (95%)", "traced, typical (95%)"]
    assert set(legend(ax)) == {*before[3], *added}


def test_axes_with_something_in_them_keep_their_limits():
    ax = Figure(layout="constrained").subplots()
    ax.plot([1, 2], [0.1, 0.2])
    ax.set_title("mine")
    before = ax.get_xlim(), ax.get_ylim(), "mine", "linear"
    qm.plot.boundary(traced(), ax)
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_title(), ax.get_xscale()) == before


def test_what_is_not_resolved_is_hollow_and_what_is_not_found_left_out():
    found = traced(values=(np.nan, 0.08, 0.3), resolved=(False, False, True))
    artists, ax = draw(qm.plot.boundary, found)
    assert set(legend(ax)) == {
        "traced, mean square (95%)", "traced, mean square, unresolved",
    }  # fmt: skip
    faces = {float(m.get_xdata()[0]): to_hex(m.get_markerfacecolor()) for m in marks(artists)}
    assert faces == {4.0: "#ffffff", 16.0: "#000000"}


def test_nothing_found():
    ax = Figure(layout="constrained").subplots()
    assert qm.plot.boundary(traced(values=[np.nan] * 3, resolved=[False] * 3), ax) == []
    assert legend(ax) == []


def test_a_colour_per_momentum():
    artists, ax = draw(qm.plot.boundary, traced(momenta=[-0.5, 0.0, 0.9]))
    assert list(legend(ax)) == [
        f"traced, mean square, momentum {m} (95%)" for m in ("−0.5", "0", "0.9")
    ]
    assert len({m.get_color() for m in marks(artists)}) == 3


def test_colours_of_kinds():
    colours = [
        marks(draw(qm.plot.boundary, traced(boundary=kind))[0])[0].get_color()
        for kind in ("mean_square", "typical", "deterministic")
    ]
    assert len(set(colours)) == 3


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (3.0, "got a float"),
        (phase_grid([0.1, 0.2], [1, 2]), "without 'critical_learning_rate_low'"),
        (traced().drop_vars("resolved"), "without 'resolved'"),
        (traced().drop_attrs(), "without the attribute 'boundary'"),
    ],
)
def test_other_results_are_refused(found, words):
    with pytest.raises(InputError, match=r"found must be a Dataset from trace_boundary\(\)") as no:
        qm.plot.boundary(found)
    assert words in str(no.value)


def test_axes_of_another_kind_are_refused():
    with pytest.raises(InputError, match="ax must be None or matplotlib Axes"):
        qm.plot.boundary(traced(), "here")
