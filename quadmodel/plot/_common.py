"""What pictures share: colours and new axes."""

from __future__ import annotations

from typing import Any

from quadmodel._util.checks import InputError, shown

# Colours of all pictures, distinguishable to colour-blind readers (palette of Okabe and Ito).
SIMULATION, THEORY = "#0072B2", "#D55E00"


def check_axes(ax: Any) -> None:
    """Raise InputError unless `ax` is None or Axes to draw in."""
    from matplotlib.axes import Axes

    if not (ax is None or isinstance(ax, Axes)):
        raise InputError(f"ax must be None or matplotlib Axes, got {shown(ax)}")


def new_axes() -> Any:
    """Return the Axes of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 5), layout="constrained")[1]
