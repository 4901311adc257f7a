"""What pictures share: colours and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One colour per quantity in all pictures; distinguishable with colour-blind eyes (Okabe, Ito).
SIMULATION, THEORY = "#0072B2", "#D55E00"


def axes(ax: Axes | None) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 5), layout="constrained")[1]
