"""Pictures that commands write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quadmodel._util.checks import InputError
from quadmodel._util.files import check_writable

if TYPE_CHECKING:
    import xarray as xr

_FORMATS = (".png", ".pdf", ".svg")


def check_picture(picture: str) -> None:
    """Raise InputError unless the picture can be written under that name."""
    if Path(picture).suffix not in _FORMATS:
        raise InputError(f"--picture must end in {', '.join(_FORMATS)}, got {picture}")
    check_writable(picture)


def draw(grid: xr.Dataset, picture: Path) -> None:
    """Draw a Dataset as its kind is drawn, into a file."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    from quadmodel import plot

    if "simulated_growth" in grid:
        figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
        for ax, quantity in zip(axes, ("predicted_growth", "simulated_growth"), strict=True):
            plot.sharpening_diagram(grid, ax, quantity=quantity)
    else:
        figure, ax = plt.subplots(figsize=(8, 6), layout="constrained")
        plot.phase_diagram(grid, ax)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def draw_edges(persistent: xr.Dataset, limit: xr.Dataset, picture: Path) -> None:
    """Draw the persistent edge and, per curvature strength, the edge at large P, into a file."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    from quadmodel import plot

    strengths = limit.curvature_strength.values
    figure, axes = plt.subplots(
        1, 1 + len(strengths), figsize=(7 * (1 + len(strengths)), 5), layout="constrained"
    )
    plot.persistent_edge(persistent, axes[0])
    for ax, strength in zip(axes[1:], strengths, strict=True):
        plot.large_p_edge(limit.sel(curvature_strength=[strength]), ax)
        ax.set_title(f"large-P limit, q = {strength:g}")
    figure.savefig(picture, dpi=150)
    plt.close(figure)
