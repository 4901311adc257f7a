"""Datasets that show themselves as a table of few rows."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr


class Table(xr.Dataset):
    """A Dataset that is shown as a table; in every other way like any Dataset.

    Subclasses say what is in the table. What has lost the variables that this needs, by a
    selection or otherwise, is shown like any Dataset.
    """

    __slots__ = ()

    def _summary(self) -> tuple[str, pd.DataFrame]:
        """Return a heading and the table."""
        raise NotImplementedError

    def _shown(self) -> tuple[str, pd.DataFrame] | None:
        try:
            return self._summary()
        except (KeyError, AttributeError, ValueError, IndexError):
            return None

    def __repr__(self) -> str:
        """Show heading and table."""
        shown = self._shown()
        if shown is None:
            return super().__repr__()
        heading, table = shown
        return f"{heading}\n{table.to_string(float_format=_number)}"

    def _repr_html_(self) -> str:
        """Show heading and table in a notebook."""
        shown = self._shown()
        if shown is None:
            return super()._repr_html_()
        heading, table = shown
        html = table.to_html(float_format=_number, border=0)
        return f"<div><b>{escape(heading)}</b>{html}</div>"


class Comparison(Table):
    """Rows of simulation beside prediction: a line per variable, the worst row of each."""

    __slots__ = ()

    def _summary(self) -> tuple[str, pd.DataFrame]:
        """Return the verdict, and per variable its number of rows and the worst of them."""
        attrs: Any = self.attrs
        agrees, worst_of_all = bool(self.agrees.all()), float(abs(self.z).max())
        rows = pd.DataFrame(
            {name: self[name].values for name in ("variable", "step", "mode", "z", "agrees")}
            | {name: self[name].values for name in ("predicted", "measured", "standard_error")}
        )
        parts = []
        for name, part in rows.groupby("variable", sort=False):
            worst = part.iloc[int(np.argmax(np.abs(part.z)))]
            parts.append(
                {
                    "variable": name,
                    "rows": len(part),
                    "outside": int((~part.agrees).sum()),
                    "worst |z|": abs(float(worst.z)),
                    "at step": int(worst.step),
                    "predicted there": float(worst.predicted),
                    "measured there": float(worst.measured),
                    "standard error": float(worst.standard_error),
                }
            )
        if not parts:
            raise ValueError
        heading = (
            f"{'agree' if agrees else 'disagree'}: worst |z| {worst_of_all:.2f} of "
            f"{len(rows)} rows, allowed {attrs['bound']:.2f}"
        )
        return heading, pd.DataFrame(parts).set_index("variable").rename_axis(None)


class Critical(Table):
    """Where a simulation turns unstable: a row per batch size."""

    __slots__ = ()

    def _summary(self) -> tuple[str, pd.DataFrame]:
        """Return the pooled critical K, and K and learning rate per batch size."""
        attrs: Any = self.attrs
        low, middle, high = (
            float(self[f"pooled_noise_kernel_norm{end}"]) for end in ("_low", "", "_high")
        )
        heading = (
            f"critical K ({attrs['norm']}, {attrs['growth']} growth): "
            f"{middle:.4g} [{low:.4g}, {high:.4g}] at {attrs['confidence']:g} confidence"
        )
        names = [
            f"{name}{end}"
            for name in ("noise_kernel_norm", "learning_rate")
            for end in ("", "_low", "_high")
        ]
        table = self[[*names, "resolved"]].to_dataframe()[[*names, "resolved"]]
        short = {name: name.replace("noise_kernel_norm", "K").replace("_", " ") for name in names}
        return heading, table.rename(columns=short).rename_axis("B")


class Margins(Table):
    """Noise kernel norms and the distance to the edges: a row per edge."""

    __slots__ = ()

    def _summary(self) -> tuple[str, pd.DataFrame]:
        """Return the setting, and a row per noise kernel norm and one for the other edge."""
        rate, size = float(self.learning_rate), int(self.batch_size)
        rows = {
            f"K = 1, {norm}": {
                "K": float(self.noise_kernel_norm.sel(norm=norm)),
                "learning rate at the edge": float(self.critical_learning_rate.sel(norm=norm)),
                "margin": float(self.margin.sel(norm=norm)),
            }
            for norm in self.norm.values
        }
        rows["deterministic"] = {
            "K": float("nan"),
            "learning rate at the edge": float(self.edge_of_stability),
            "margin": float(self.deterministic_margin),
        }
        heading = f"learning rate {rate:g}, batch size {size}; margin: factor up to the edge"
        table = pd.DataFrame(rows).T
        return heading, table


def _number(value: float) -> str:
    return f"{value:.4g}"
