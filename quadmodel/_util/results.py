"""What Datasets are made of: labelled variables, and attributes that reproduce the result."""

from __future__ import annotations

from typing import Any

from quadmodel._util.version import __version__


def variable(
    dims: tuple[str, ...], values: Any, long_name: str, units: str = ""
) -> tuple[tuple[str, ...], Any, dict[str, str]]:
    """Return dimensions, values and attributes as xarray takes them; no units if empty."""
    attrs = {"long_name": long_name}
    return dims, values, attrs | {"units": units} if units else attrs


def attributes(kind: str, *, seed: int, **spec: Any) -> dict[str, Any]:
    """Return a Dataset's attributes: what it is, its specification, seed and package version."""
    # A seed may have 64 bits, more than NetCDF's signed integers.
    return {"kind": kind, **spec, "seed": str(seed), "quadmodel_version": __version__}
