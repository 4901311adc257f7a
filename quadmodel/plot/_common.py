"""What pictures share: colours, new axes, titles, legends, ticks, lines that may coincide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quadmodel._util.checks import FloatArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

from quadmodel._util.checks import InputError, shown

# Colours of all pictures, distinguishable to colour-blind readers (palette of Okabe and Ito).
SIMULATION, THEORY = "#0072B2", "#D55E00"
GREEN, PURPLE, ORANGE, SKY = "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
CYCLE = (SIMULATION, THEORY, GREEN, PURPLE, ORANGE, SKY, "#7F7F7F")

# Length of the lines in legends, in units of the font's size: a whole period of every dash.
_HANDLE = 2.8

# Decades beyond which logarithmic axes end: locators of ticks overflow near the largest numbers.
_FAR = 250.0

# Lines closer than this everywhere, as a share of the height of the axes, are drawn once.
_COINCIDE = 0.004


def check_axes(ax: Any) -> None:
    """Raise InputError unless `ax` is None or Axes to draw in."""
    from matplotlib.axes import Axes

    if not (ax is None or isinstance(ax, Axes)):
        raise InputError(f"ax must be None or matplotlib Axes, got {shown(ax)}")


def new_axes() -> Any:
    """Return the Axes of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 5.5), layout="constrained")[1]


def halo(width: float, colour: str = "white") -> list[Any]:
    """Return the effect that sets a line or mark of some width off from what lies beneath."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width + 1.4, foreground=colour)]


def ink(ax: Axes) -> Any:
    """Return the colour of lines and marks that must be seen on the background of the axes."""
    return ax.xaxis.label.get_color()


# ---- title and legend


def title(ax: Axes, parts: Sequence[str], heading: str | None = None) -> None:
    """Write the setting above the axes, parts joined by commas, in lines that fit its width."""
    # Without a layout engine nothing makes room for long titles.
    laid_out = ax.figure.canvas.figure.get_layout_engine() is not None
    text = ax.set_title("", fontsize="small" if laid_out else "x-small")
    width = 0.95 * _room(ax)
    lines = [heading] if heading else []
    line = ""
    for n, part in enumerate(parts):
        piece = part + ("," if n < len(parts) - 1 else "")
        text.set_text(f"{line} {piece}".strip())
        if line and text.get_window_extent().width > width:
            lines.append(line)
            line = piece
        else:
            line = text.get_text()
    text.set_text("\n".join([*lines, line] if line else lines))


def legend(ax: Axes, **options: Any) -> None:
    """Add a legend of what is labelled: below the axes where a layout engine makes room for it."""
    from matplotlib.transforms import ScaledTranslation

    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    figure = ax.figure.canvas.figure
    options = {"fontsize": "small", "title_fontsize": "small", **options}
    options |= {"handlelength": _HANDLE, "columnspacing": 1.2}
    if figure.get_layout_engine() is None:
        ax.legend(handles, labels, **options)
        return
    down = ScaledTranslation(0, -_height_below(ax), figure.dpi_scale_trans)
    ax.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + down,
        borderaxespad=0.0,
        ncols=_columns(ax, labels),
        frameon=False,
        **options,
    )


def _columns(ax: Axes, labels: Sequence[str]) -> int:
    """Return how many columns of a legend fit into the width of the axes."""
    text = ax.text(0, 0, "", fontsize="small")
    handle = float(text.get_fontsize()) * (_HANDLE + 2.5) * ax.figure.dpi / 72
    widest = 0.0
    for label in labels:
        text.set_text(label)
        widest = max(widest, text.get_window_extent().width + handle)
    text.remove()
    return max(1, min(len(labels), int(_room(ax) // widest)))


def _room(ax: Axes) -> float:
    """Return the width of the axes with their colour bar, in pixels."""
    place = ax.get_subplotspec()
    if place is None:
        return float(ax.get_window_extent().width)
    whole = place.get_topmost_subplotspec()
    figure: Any = ax.figure
    return float(whole.get_position(figure).width * figure.bbox.width)


def _height_below(ax: Axes) -> float:
    """Return how far tick labels and the label of the axis reach below the axes, in inches."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    labels = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    pads = rcParams["xtick.major.size"] + rcParams["xtick.major.pad"] + rcParams["axes.labelpad"]
    return float(1.3 * (labels + float(ax.xaxis.label.get_fontsize())) + pads + 2) / 72


# ---- ticks


def number(value: float, _: object = None) -> str:
    """Return a number as ticks show it: plain where that is short, else with a power of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -5 < exponent < 5:
        return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
    mantissa = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    if math.isclose(abs(mantissa), 1.0):
        return f"${'-' if value < 0 else ''}{power}$"
    return rf"${mantissa:.3g}\times {power}$"


def ticks(axis: Any, *, whole: bool = False) -> None:
    """Give an axis the ticks of all pictures, after its limits are set; `whole`: no fractions."""
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )

    axis.set_major_formatter(FuncFormatter(number))
    axis.set_minor_formatter(NullFormatter())
    nice = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=whole)
    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() != "log" or not 0 < low < high:
        axis.set_major_locator(nice)
        return
    decades = math.log10(high) - math.log10(low)
    subs = (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
    log = LogLocator(subs=subs, numticks=8)
    axis.set_major_locator(nice if decades < 0.7 else log)
    if whole:
        at = axis.get_major_locator().tick_values(low, high)
        axis.set_major_locator(FixedLocator([value for value in at if value >= 1]))
        axis.set_minor_locator(NullLocator())


def log_limits(values: Sequence[FloatArray]) -> tuple[float, float]:
    """Return limits of a logarithmic axis with a margin."""
    every = np.concatenate([np.ravel(some) for some in values])
    every = every[np.isfinite(every)]
    if every.size == 0:
        return 0.1, 10.0
    low, high = np.log10(every.min()), np.log10(every.max())
    margin = max(0.05 * (high - low), 0.02)
    return float(10.0 ** max(low - margin, -_FAR)), float(10.0 ** min(high + margin, _FAR))


# ---- lines


@dataclass
class Line:
    """A line to be drawn: where, what it is called, how it looks."""

    label: str
    x: FloatArray
    y: FloatArray
    style: dict[str, Any] = field(default_factory=dict)


def coinciding(lines: Sequence[Line], limits: tuple[float, float], *, log: bool) -> list[list[int]]:
    """Group lines that can't be told apart at all in axes with these limits.

    Parameters
    ----------
    lines : sequence of Line
        The lines.
    limits : (float, float)
        Ends of the vertical axis.
    log : bool
        Whether it is logarithmic.

    Returns
    -------
    list of list of int
        Positions in `lines`; every group is to be drawn once.
    """
    scale = np.log if log else np.asarray
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = [np.asarray(scale(np.asarray(line.y, dtype=np.float64))) for line in lines]
        reach = float(np.ptp(scale(np.asarray(limits, dtype=np.float64))))
    groups: list[list[int]] = []
    for n, line in enumerate(lines):
        for group in groups:
            other = lines[group[0]]
            if np.array_equal(line.x, other.x) and _same(
                heights[n], heights[group[0]], _COINCIDE * reach
            ):
                group.append(n)
                break
        else:
            groups.append([n])
    return groups


def _same(a: FloatArray, b: FloatArray, tolerance: float) -> bool:
    finite = np.isfinite(a)
    return bool(
        (finite == np.isfinite(b)).all() and (np.abs(a[finite] - b[finite]) <= tolerance).all()
    )


def seen(line: Line, limits: tuple[float, float]) -> bool:
    """Say whether any part of a line lies inside the limits of the vertical axis."""
    y = np.asarray(line.y, dtype=np.float64)
    pairs = np.stack([y[:-1], y[1:]]) if y.size > 1 else np.stack([y, y])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    low, high = min(limits), max(limits)
    return bool(((pairs.max(axis=0) >= low) & (pairs.min(axis=0) <= high)).any())


def draw_lines(ax: Axes, lines: Sequence[Line], *, joined: str = ", ") -> list[Artist]:
    """Draw lines inside limits that are set; those that coincide once, as the first of them."""
    limits = ax.get_ylim()
    lines = [line for line in lines if seen(line, limits)]
    artists: list[Artist] = []
    for group in coinciding(lines, limits, log=ax.get_yscale() == "log"):
        first = lines[group[0]]
        label = joined.join(lines[n].label for n in group)
        artists += ax.plot(first.x, first.y, label=label, **first.style)
    return artists
