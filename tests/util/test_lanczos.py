"""Lanczos with full reorthogonalisation, against spectra that are known."""

import numpy as np
import pytest

from quadmodel._util.lanczos import largest_eigenpair

SPECTRA = {
    "one": [-2.0],
    "two": [3.0, -5.0],
    "zero": np.zeros(6),
    "unit": np.ones(50),
    "one of rank one": [1.0, *np.zeros(60)],
    "negative": -np.linspace(1e-3, 7.0, 80),
    "far below": [1.0, *np.linspace(-1e3, -900.0, 30)],
    "small": 1e-120 * np.linspace(0, 1, 40),
    "large": 1e120 * np.linspace(-1, 1, 40),
    "twice": [2.0, 2.0, *np.linspace(0, 1.9, 100)],
    "close": [2.0, 2.0 - 1e-5, *np.linspace(0, 1.9, 100)],
    "bulk": np.linspace(0, 1, 300),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos(name):
    values, generator = np.array(SPECTRA[name]), np.random.default_rng(7)
    n = len(values)
    vectors = np.linalg.qr(generator.standard_normal((n, n)))[0]
    matrix = (vectors * values) @ vectors.T
    found = largest_eigenpair(lambda x: matrix @ x, generator.standard_normal(n))
    assert found.value == pytest.approx(values.max(), rel=1e-10, abs=1e-9 * np.abs(values).max())
    largest = np.abs(values).max()
    assert np.linalg.norm(found.vector) == pytest.approx(1, rel=1e-9)
    residual = np.linalg.norm(matrix @ found.vector - found.value * found.vector)
    assert residual <= 1e-8 * largest


@pytest.mark.parametrize("name", ["twice", "close", "bulk"])
def test_error_of_the_value_alone(name):
    """The squared residual over the gap stops earlier than the residual, just as good a value."""
    values, generator = np.array(SPECTRA[name]), np.random.default_rng(7)
    vectors = np.linalg.qr(generator.standard_normal((len(values),) * 2))[0]
    start, counts = generator.standard_normal(len(values)), []
    for tolerances in ({"residual": 1e-12}, {"residual": 0.0, "error": 1e-12}):
        products = []

        def product(x, products=products):
            products.append(x)
            return (vectors * values) @ (vectors.T @ x)

        found = largest_eigenpair(product, start, check_every=1, **tolerances)
        assert found.value == pytest.approx(values.max(), rel=1e-11)
        counts.append(len(products))
    assert counts[1] < counts[0]


def test_lanczos_stops_at_what_is_not_finite():
    for bad in (np.nan, np.inf):
        assert np.isnan(largest_eigenpair(lambda x, bad=bad: bad * np.ones(9), np.ones(9)).value)
