"""Largest eigenvalue of the noise kernel matrix: Lanczos, single precision first."""

from __future__ import annotations

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import _noise
from quadmodel.theory._noise import perron, rayleigh
from tests.theory._cases import random_ntk


def dense_matrix(vectors, response):
    """Return the noise kernel matrix itself, entry by entry."""
    return np.array(
        [[(v * w) @ response @ (v * w) for w in vectors] for v in vectors]
    )  # fmt: skip


def problem(kind, n_data=40):
    rng = np.random.default_rng(n_data)
    if kind == "random":
        ntk = rng.normal(size=(n_data, 2 * n_data))
        ntk = ntk @ ntk.T / n_data
    elif kind == "circulant":
        row = np.exp(-np.minimum(np.arange(n_data), n_data - np.arange(n_data)) / 3.0)
        ntk = row[(np.arange(n_data)[:, None] - np.arange(n_data)) % n_data]
    else:  # points that know nothing of each other: the vector sits on one of them
        ntk = np.diag(np.geomspace(1.0, 3.0, n_data))
    lam, vectors = np.linalg.eigh(ntk)
    eta = 1.2 / lam[-1]
    response = eta * np.outer(lam, lam) / (lam[:, None] + lam - eta * np.outer(lam, lam))
    return vectors, response


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
@pytest.mark.parametrize("large", [30, 10**6], ids=["single first", "double"])
@pytest.mark.parametrize("kind", ["random", "circulant", "localised"])
def test_root_and_vector(kind, large, scale, monkeypatch):
    monkeypatch.setattr(_noise, "_LARGE", large)
    vectors, response = problem(kind)
    values, columns = np.linalg.eigh(dense_matrix(vectors, response))
    found = perron(vectors, scale * response)
    assert found.value / scale == pytest.approx(values[-1], rel=1e-11)
    assert found.value / scale > values[-2] * (1 + 1e-9)
    close = perron(vectors, scale * response, found.vector, residual=1e-11)
    np.testing.assert_allclose(close.vector, np.abs(columns[:, -1]), atol=1e-9)
    assert rayleigh(vectors, response, close.vector) == pytest.approx(values[-1], rel=1e-11)
    # From a guess that sees a single point.
    point = perron(vectors, response, np.eye(len(vectors))[3])
    assert point.value == pytest.approx(values[-1], rel=1e-10)


def test_single_precision_alone_would_be_seen():
    vectors, response = problem("random")
    exact = perron(vectors, response).value
    rough = perron(vectors.astype(np.float32), response.astype(np.float32)).value
    assert abs(rough / exact - 1) > 1e-10


def test_large_problem_by_both_ways(monkeypatch):
    """As large as what starts in single precision by itself."""
    model = qm.Ensemble(_noise._LARGE, 2 * _noise._LARGE).sample(0)
    sgd = qm.SGD(0.3, 10)
    both = []
    for large in (_noise._LARGE, 10**6):
        monkeypatch.setattr(_noise, "_LARGE", large)
        both.append(qm.noise_kernel_norm(model.ntk(), sgd, norm="exact"))
    assert both[0] == pytest.approx(both[1], rel=1e-11)


@pytest.mark.parametrize("n_data", [6, 40])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_response_that_is_not_finite_is_passed_on(n_data, value):
    """At an edge, and where a discount meets a decay by rounding; LAPACK would raise."""
    vectors = np.linalg.eigh(random_ntk(1, n_data, n_data))[1]
    response = np.ones((n_data, n_data))
    response[2, 2] = value
    found = perron(vectors, response)
    np.testing.assert_equal(found.value, value)
    assert np.isfinite(found.vector).all()


def test_extreme_responses_of_few_points():
    vectors = np.linalg.eigh(random_ntk(1, 8, 8))[1]
    response = np.random.default_rng(0).uniform(size=(8, 8))
    response += response.T
    expected = perron(vectors, response).value
    for scale in (1e-290, 1e290):
        assert perron(vectors, scale * response).value / scale == pytest.approx(expected)


@pytest.mark.parametrize("response", [0.0, np.inf])
def test_without_a_product_the_guess_is_returned_with_norm_1(response):
    start = np.array([3.0, 0.0, 4.0])
    found = perron(np.eye(3), np.full((3, 3), response), start)
    assert found.value == response
    np.testing.assert_allclose(found.vector, [0.6, 0.0, 0.8], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "huge", "residual", "searches"),
    [
        (np.float64, 1000, None, 2),
        (np.float64, 40, None, 1),  # good to 1e-9 from single precision
        (np.float64, 40, 1e-8, 2),
        (np.float32, 1000, None, 1),  # nothing to gain
        (np.float32, 40, 1e-3, 1),
    ],
)
def test_when_single_precision_is_all(dtype, huge, residual, searches, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    lam = rng.uniform(0.5, 2, 60)
    response = 1 / (lam[:, None] + lam)
    exact = perron(vectors, response).value
    monkeypatch.setattr(_noise, "_SMALL", 5)
    monkeypatch.setattr(_noise, "_LARGE", 30)
    monkeypatch.setattr(_noise, "_HUGE", huge)
    calls, real = [], _noise.largest_eigenpair
    monkeypatch.setattr(
        _noise, "largest_eigenpair", lambda *a, **o: (calls.append(1), real(*a, **o))[1]
    )
    found = perron(vectors.astype(dtype), response, residual=residual)
    assert len(calls) == searches
    assert found.value == pytest.approx(exact, rel=1e-8 if dtype == np.float64 else 1e-5)
