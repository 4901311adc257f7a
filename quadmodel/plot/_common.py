"""What pictures share: colours and new axes."""

from __future__ import annotations

from typing import Any

# Colours of all pictures, distinguishable to colour-blind readers (palette of Okabe and Ito).
SIMULATION, THEORY = "#0072B2", "#D55E00"


def new_axes() -> Any:
    """Return the Axes of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7, 5), layout="constrained")[1]
