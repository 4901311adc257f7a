"""What a diagram's axis may be given as: how many values, or the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, InputError, as_array, as_integer, as_number


def is_count(name: str, given: Any) -> bool:
    """Return whether the number of values is given, not the values themselves."""
    try:
        return np.ndim(given) == 0
    except ValueError:
        raise InputError(f"{name} must be a count or a list of numbers, got a ragged one") from None


def as_count_or_values(name: str, given: Any) -> int | list[Any]:
    """Return the number of values that are to be chosen, or those given, not yet checked."""
    if is_count(name, given):
        return as_integer(name, given, high=100_000)
    array = np.asarray(given)
    if array.ndim > 1:
        raise InputError(f"{name} must be a count or a list of numbers, got shape {array.shape}")
    if array.size == 0:
        raise InputError(f"{name} must hold at least one, got none")
    return list(array.tolist())


def as_learning_rates(values: Any) -> FloatArray:
    """Return two or more different learning rates in ascending order."""
    rates = np.sort(as_array("learning_rates", values, (None,)))
    if rates[0] <= 0:
        raise InputError(f"learning_rates must be > 0, got {rates[0]:g}")
    for rate in rates[[0, -1]]:
        as_number("learning_rates", rate, least=1e-100, most=1e100)
    if np.unique(rates).size < rates.size or rates.size < 2:
        raise InputError(f"learning_rates must be at least 2 different ones, got {rates.tolist()}")
    return rates


def as_batch_sizes(values: Any, n_data: int) -> NDArray[np.int64]:
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
