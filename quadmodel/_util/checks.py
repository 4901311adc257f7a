"""Checks at the door: every message says what was expected and what came."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class InputError(ValueError):
    """An argument, file or option that can't be worked with; the message is one line."""


def as_integer(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an int in ``low..high``, or raise InputError."""
    wanted = f"an integer >= {low}" if high is None else f"an integer between {low} and {high}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    integer = int(value)
    if integer < low or (high is not None and integer > high):
        raise InputError(f"{name} must be {wanted}, got {integer}")
    return integer


def as_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """Return `value` as a finite float between open and closed bounds, or raise InputError."""
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), ("<", below), (">=", least), ("<=", most))
        if math.isfinite(bound)
    ]
    wanted = "a finite number" + (" " + " and ".join(bounds) if bounds else "")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and above < number < below and least <= number <= most):
        raise InputError(f"{name} must be {wanted}, got {number!r}")
    return number


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or raise InputError."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def as_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return `value` as a C-contiguous float64 array of `shape` (None: any length >= 1)."""
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    try:
        raw = np.asarray(value)
    except ValueError:
        raise InputError(f"{name} must be an array of shape {wanted}, got a ragged one") from None
    if raw.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold real numbers, got dtype {raw.dtype}")
    fits = raw.ndim == len(shape) and all(
        (n is None and have >= 1) or n == have for n, have in zip(shape, raw.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {wanted}, got {raw.shape}")
    array = np.ascontiguousarray(raw, dtype=np.float64)
    flat = array.reshape(-1)
    parts = (flat[start : start + 2**20] for start in range(0, flat.size, 2**20))
    if not all(np.isfinite(part).all() for part in parts):  # a curvature may fill memory
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name} must hold finite numbers, got {array[where]} at {where}")
    return array


# ---- one value or several, along an axis of a diagram


def is_count(name: str, given: ArrayLike) -> bool:
    """Return whether the number of values is given, not the values themselves."""
    try:
        return np.ndim(given) == 0
    except ValueError:
        raise InputError(f"{name} must be a count or a list of numbers, got a ragged one") from None


def as_learning_rates(values: ArrayLike, *, least: int = 2) -> FloatArray:
    """Return different learning rates, at least so many, in ascending order."""
    rates = np.sort(as_array("learning_rates", values, (None,)))
    if rates[0] <= 0:
        raise InputError(f"learning_rates must be > 0, got {rates[0]:g}")
    for rate in rates[[0, -1]]:
        as_number("learning_rates", rate, least=1e-100, most=1e100)
    if np.unique(rates).size < rates.size or rates.size < least:
        wanted = "different ones" if least == 1 else f"at least {least} different ones"
        raise InputError(f"learning_rates must be {wanted}, got {rates.tolist()}")
    return rates


def as_batch_sizes(values: ArrayLike, n_data: int) -> IntArray:
    """Return different batch sizes in ascending order, spread from 1 to n_data if counted."""
    if is_count("batch_sizes", values):
        count = as_integer("batch_sizes", values, high=100_000)
        return np.unique(np.geomspace(1, n_data, count).round().astype(np.int64))
    sizes = sorted(as_integer("batch_sizes", b, high=n_data) for b in np.asarray(values).tolist())
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"batch_sizes must be different ones, got {sizes}")
    return np.array(sizes, dtype=np.int64)


def as_list(name: str, given: Any, check: Callable[[Any], Any]) -> list[Any]:
    """Return one value or more, each of them checked."""
    try:
        flat = np.ravel(given).tolist()
    except ValueError:
        raise InputError(f"{name} must be a list of numbers, got a ragged one") from None
    if not flat:
        raise InputError(f"{name} must hold at least one, got none")
    return [check(value) for value in flat]


def as_sorted_list(name: str, given: Any, check: Callable[[Any], Any]) -> list[Any]:
    """Return different values in ascending order, each of them checked."""
    values = sorted(as_list(name, given, check))
    if len(set(values)) < len(values):
        raise InputError(f"{name} must be different ones, got {values}")
    return values


# ---- matrices and memory


def check_symmetric(name: str, array: FloatArray, *, tolerance: float = 1e-8) -> None:
    """Raise InputError unless the last two axes of `array` are symmetric up to `tolerance`."""
    # No copy of the whole, and one matrix at a time: a curvature may fill memory.
    scale = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
    matrices = array.reshape(-1, *array.shape[-2:])
    gap = max((float(np.abs(m - m.T).max(initial=0.0)) for m in matrices), default=0.0)
    if gap > tolerance * scale:
        raise InputError(
            f"{name} must be symmetric, got entries that differ by {gap:.3g} "
            f"from their transpose (largest entry {scale:.3g})"
        )


def check_memory(what: str, n_bytes: float) -> None:
    """Raise MemoryError if `n_bytes` exceed what the machine has free."""
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise MemoryError(
            f"{what} needs {n_bytes / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
        )
