"""How results are labelled: variables with long names and units, and what a result is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, IntArray, check_memory
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


def count_records(steps: int, record_every: int) -> int:
    """Return how many steps are recorded; see `recorded_steps`."""
    return -(-steps // record_every) + 1


def recorded_steps(steps: int, record_every: int) -> IntArray:
    """Return the steps that are recorded: every so many from 0 on, and always the last one."""
    check_memory("the recorded steps", 16.0 * count_records(steps, record_every))
    if record_every >= steps:
        return np.array([0, steps], dtype=np.int64)
    every = np.arange(0, steps + 1, record_every, dtype=np.int64)
    return every if every[-1] == steps else np.append(every, steps)


def checksum(*arrays: FloatArray | None) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of shapes and contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none")
        else:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").data)
    return digest.hexdigest()[:12]


def attributes(kind: str, source: Mapping[str, Any], **run: Any) -> dict[str, Any]:
    """Return the attributes of a result.

    Parameters
    ----------
    kind : str
        What the result is.
    source : mapping
        What was trained and how: numbers of data points and parameters, options of SGD.
    **run
        Options of the run. A `seed` is kept as text: files hold no integers of 64 bits without
        sign.

    Returns
    -------
    dict
        All of these, in this order, and the package version between the run and the source.
    """
    if "seed" in run:
        run["seed"] = str(run["seed"])
    return {"kind": kind, **run, "quadmodel_version": __version__, **source}


def check_result(
    name: str,
    found: Any,
    maker: str,
    variables: Mapping[str, Sequence[str]],
    attrs: Sequence[str] = (),
) -> None:
    """Raise InputError unless `found` holds what is needed of a result of `maker`.

    `variables` maps names of variables to dimensions that they must have.
    """
    from xarray import Dataset

    wanted = f"{name} must be a Dataset from {maker}"
    if not isinstance(found, Dataset):
        raise InputError(f"{wanted}, got a {type(found).__name__}")
    for variable_name, dims in variables.items():
        if variable_name not in found.variables:
            raise InputError(f"{wanted}, got one without {variable_name!r}")
        for dim in dims:
            if not found[variable_name].sizes.get(dim):
                raise InputError(f"{wanted}, got one whose {variable_name!r} has no {dim!r}")
    for attribute in attrs:
        if attribute not in found.attrs:
            raise InputError(f"{wanted}, got one without the attribute {attribute!r}")
