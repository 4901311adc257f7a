"""The nonlinear edge, which the front end does not compute: shares of the linear model's edge."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from quadmodel.explorer._spectra import Family

TABULATED_SIZES = (1, 4, 16, 40, 70, 100)
# Of the curvature: q = sigma sqrt(P), where eigenvalues and residuals are of order 1.
CURVATURE_STRENGTHS = (0.0, 2.0, 4.0, 8.0)


@cache
def tables() -> dict[str, Any]:
    """Return the shares, per spectrum, as .ci/explorer_tables.py has tabulated them."""
    found = (files("quadmodel.explorer") / "tables.json").read_text("utf-8")
    return dict(json.loads(found))


def share(family: Family, parameter: float, batch_size: float, strength: float) -> float:
    """Return the nonlinear edge over the linear model's, as the front end does; NaN if none.

    Linear interpolation in the logarithm of the batch size, in the curvature strength and in the
    parameter or its logarithm.
    """
    values = np.array(tables()[family.name], dtype=float)
    scale = np.log if family.logarithmic else np.asarray
    values = _between(scale(np.array(family.tabulated)), scale(parameter), values)
    values = np.concatenate([np.ones((1, values.shape[1])), values])
    values = _between(np.array(CURVATURE_STRENGTHS), strength, values)
    return float(_between(np.log(TABULATED_SIZES), math.log(batch_size), values))


def _between(grid: Any, at: Any, values: Any) -> Any:
    """Interpolate linearly along the first axis."""
    k = int(np.clip(np.searchsorted(grid, at, side="right") - 1, 0, len(grid) - 2))
    right = (at - grid[k]) / (grid[k + 1] - grid[k])
    if right in (0.0, 1.0):  # beside it there may be no value
        return values[k + int(right)]
    return (1 - right) * values[k] + right * values[k + 1]
