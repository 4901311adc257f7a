"""How results are labelled: variables with long names and units, and what a result is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quadmodel._util.version import __version__

# What xarray takes for a variable: dimensions, values, attributes.
Variable = tuple[str | tuple[str, ...], Any, dict[str, Any]]


def variable(
    dims: str | tuple[str, ...], values: Any, long_name: str | None = None, units: str | None = None
) -> Variable:
    """Return values with their dimensions, long name and units, as far as they have them."""
    named = {"long_name": long_name, "units": units}
    return dims, values, {key: text for key, text in named.items() if text is not None}


def step_coordinate(recorded: Any) -> Variable:
    """Return the coordinate of the recorded steps."""
    return variable("step", recorded, units="SGD steps")


def attributes(kind: str, source: Mapping[str, Any], **run: Any) -> dict[str, Any]:
    """Return the attributes of a result.

    Parameters
    ----------
    kind : str
        What the result is.
    source : mapping
        What was trained and how: numbers of data points and parameters, options of SGD.
    **run
        Options of the run, `seed` among them. It is kept as text: files hold no integers of 64 bits
        without sign.

    Returns
    -------
    dict
        All of these, in this order, and the package version between the run and the source.
    """
    run["seed"] = str(run["seed"])
    return {"kind": kind, **run, "quadmodel_version": __version__, **source}
