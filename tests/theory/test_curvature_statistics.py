"""Statistics of curvature and Jacobian, by their definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.theory._curvature import curvature_statistics

N_DATA, N_PARAMS = 4, 7


def covariances(given):
    rng = np.random.default_rng(0)
    data, params = (rng.standard_normal((n, n)) for n in (N_DATA, N_PARAMS))
    return (data @ data.T, params @ params.T) if given else (np.eye(N_DATA), np.eye(N_PARAMS))


@pytest.mark.parametrize(
    ("scale_of_residual", "scale_of_jacobian"),
    [(1.0, 1.0), (1e-60, 1.0), (3e70, 1.0), (1.0, 1e-60), (1.0, 3e70), (3e70, 3e70)],
)
@pytest.mark.parametrize("given", [False, True])
def test_by_definition(given, scale_of_residual, scale_of_jacobian):
    over_data, over_params = covariances(given)
    law = qm.curvature.IndependentCurvature(0.3)
    if given:
        law = qm.curvature.KroneckerCurvature(over_data, over_params, 0.3)
    plain = qm.Ensemble(N_DATA, N_PARAMS).sample(1)
    model = qm.QuadraticModel(
        residual=scale_of_residual * plain.residual, jacobian=scale_of_jacobian * plain.jacobian
    )
    known = curvature_statistics(model, law)
    assert known.unit is not given
    power = math.log2(known.unit_of_ntk)
    assert power == int(power)
    assert power % 2 == 0
    unit = math.sqrt(known.unit_of_ntk)
    rows = model.jacobian / unit
    lam, vectors = np.linalg.eigh(rows @ rows.T / N_DATA)
    lam, vectors = lam[::-1], vectors[:, ::-1]
    assert 0.25 <= lam[0] < 4
    vectors = vectors * np.sign(np.sum(vectors * known.vectors, axis=0))
    np.testing.assert_allclose(known.lam, lam, rtol=1e-12)
    np.testing.assert_allclose(known.vectors, vectors, atol=1e-12)
    own = vectors.T @ model.residual
    of_residual = 2.0 ** math.frexp(np.abs(model.residual).max())[1]
    np.testing.assert_allclose(known.residual, own / of_residual, atol=1e-12)
    scale = 0.3 * of_residual / known.unit_of_ntk
    turned = vectors.T @ rows
    inverse = np.linalg.pinv(turned)
    twice = over_params @ over_params
    for found, expected in (
        (known.over_data, scale**2 * vectors.T @ over_data @ vectors),
        (known.outer, turned @ over_params @ turned.T),
        (known.inner, inverse.T @ over_params @ inverse),
        (known.inner_twice, inverse.T @ twice @ inverse),
        (known.skew, turned @ over_params @ inverse),
        (known.twice, turned @ twice @ inverse),
        (known.trace, np.trace(over_params)),
        (known.trace_twice, np.trace(twice)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert known.n_params == N_PARAMS


def test_a_curvature_beyond_floats_is_infinite():
    model = qm.QuadraticModel(
        residual=np.full(2, 1e300), jacobian=1e-80 * np.eye(2, 3), curvature=None
    )
    known = curvature_statistics(model, qm.curvature.IndependentCurvature(1.0))
    assert np.isposinf(np.diagonal(known.over_data)).all()


def test_the_jacobian_must_have_full_rank():
    model = qm.Ensemble(N_DATA, N_PARAMS).sample(1)
    rows = model.jacobian.copy()
    rows[-1] = rows[0]
    with pytest.raises(InputError, match=r"full row rank n_data=4, got 3"):
        curvature_statistics(replace(model, jacobian=rows), qm.curvature.IndependentCurvature(0.1))
