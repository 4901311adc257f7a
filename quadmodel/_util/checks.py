"""Checks at the door: every message is one line that says what was expected and what came."""

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


# Beyond this no integer is a size or a number of steps that could be worked with.
LARGEST = 2**64


class InputError(ValueError):
    """An argument, file or option that can't be worked with; the message is one line."""


def shown(value: Any, length: int = 60) -> str:
    """Return a value as a message shows it: in one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a value that can't be shown, like an integer of 5000 digits
        text = f"{type(value).__name__} that can't be shown"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def as_integer(name: str, value: Any, *, low: int = 1, high: int = LARGEST) -> int:
    """Return `value` as an int in ``low..high``, or raise InputError."""
    wanted = f"an integer >= {low}" if high == LARGEST else f"an integer between {low} and {high}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be {wanted}, got {shown(value)}")
    integer = int(value)
    if not low <= integer <= high:
        raise InputError(f"{name} must be {wanted}, got {shown(integer)}")
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
        raise InputError(f"{name} must be {wanted}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        number = math.inf
    if not (math.isfinite(number) and above < number < below and least <= number <= most):
        raise InputError(f"{name} must be {wanted}, got {number!r}")
    return number


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or raise InputError."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def as_raw_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return `value` as whatever array NumPy makes of it, or raise InputError."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        count = int(np.sum(value.mask))
        raise InputError(f"{name} must not hold masked values, got {count} of them")
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # tensors with gradients or on a device, Datasets, ragged lists
        if "inhomogeneous" in str(error):
            raise InputError(f"{name} must be an array of one shape, got a ragged one") from None
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"{name} must be an array, got a {type(value).__name__} that NumPy can't read: {why}"
        ) from None


def n_axes(name: str, value: ArrayLike) -> int:
    """Return the number of axes of an array, or raise InputError."""
    return as_raw_array(name, value).ndim


def as_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return `value` as a C-contiguous float64 array of `shape` (None: any length >= 1)."""
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    raw = as_raw_array(name, value)
    if raw.size == 0 and raw.ndim == len(shape):
        raise InputError(f"{name} must not be empty, got shape {raw.shape}")
    if raw.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold real numbers, got dtype {shown(str(raw.dtype))[1:-1]}")
    fits = raw.ndim == len(shape) and all(
        (n is None and have >= 1) or n == have for n, have in zip(shape, raw.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {wanted}, got {raw.shape}")
    with np.errstate(over="ignore"):  # extended precision beyond double, refused below
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
    return n_axes(name, given) == 0


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


def as_batch_size(size: Any, high: int = LARGEST) -> int:
    """Return one of several batch sizes; floats will do that are whole, as arrays hold them."""
    if isinstance(size, float | np.floating) and float(size).is_integer():
        size = int(size)
    return as_integer("batch_sizes", size, high=high)


def as_batch_sizes(values: ArrayLike, n_data: int) -> IntArray:
    """Return different batch sizes in ascending order, spread from 1 to n_data if counted."""
    if is_count("batch_sizes", values):
        count = as_integer("batch_sizes", values, high=100_000)
        return np.unique(np.geomspace(1, n_data, count).round().astype(np.int64))
    sizes = as_sorted_list("batch_sizes", values, lambda size: as_batch_size(size, n_data))
    return np.array(sizes, dtype=np.int64)


def as_list(name: str, given: Any, check: Callable[[Any], Any]) -> list[Any]:
    """Return one value or more, each of them checked."""
    flat: list[Any]
    if isinstance(given, list | tuple | range):
        # Each as it is, arrays without axes unpacked: beside 2.5 an array would make 1 a float.
        flat = [v.item() if getattr(v, "ndim", None) == 0 else v for v in list[Any](given)]
    else:
        array = as_raw_array(name, given)
        flat = [array.item()] if array.ndim == 0 else array.tolist()
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


def tolerance_of(value: ArrayLike) -> float:
    """Return how far a matrix may be from symmetric or from positive semidefinite.

    Relative to its largest entry or eigenvalue: 1e-8 in double precision, and beyond that as the
    square root of the rounding error of the numbers that came, 2e-4 in single precision.
    """
    dtype = np.asarray(value).dtype
    eps = float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    return 1e-8 * math.sqrt(max(eps / float(np.finfo(np.float64).eps), 1.0))


def check_symmetric(name: str, array: FloatArray, tolerance: float) -> None:
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


def as_symmetric(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """Return an array that is symmetric in its last two axes, up to rounding of what came."""
    array = as_array(name, value, shape)
    tolerance = tolerance_of(value)
    check_symmetric(name, array, tolerance)
    if tolerance > tolerance_of(array):  # kernels that read one triangle would keep that one
        for matrix in array:
            matrix += matrix.T
            matrix *= 0.5
    return array


def check_memory(what: str, n_bytes: float) -> None:
    """Raise MemoryError if `n_bytes` exceed what the machine has free."""
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise MemoryError(
            f"{what} needs {n_bytes / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
        )
