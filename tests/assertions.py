"""Assertions about Datasets that many tests share."""

import numpy as np


def assert_same_bits(first, second, *, attrs: bool = True) -> None:
    """Compare all variables of two Datasets, and their attributes unless these may differ."""
    assert set(first.variables) == set(second.variables)
    for name in first.variables:
        np.testing.assert_array_equal(first[name], second[name], err_msg=str(name))
    assert not attrs or first.attrs == second.attrs
