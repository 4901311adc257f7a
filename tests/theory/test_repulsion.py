"""How far fluctuations of the NTK push its eigenvalues apart, against dense linear algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import _generated as generated

N_DATA, N_PARAMS = 3, 5


def covariances(seed):
    """Two random covariances, of curvature over data points and over parameters."""
    rng = np.random.default_rng(seed)
    roots = (rng.standard_normal((n, n)) for n in (N_DATA, N_PARAMS))
    return rng, *(root @ root.T for root in roots)


@pytest.mark.parametrize("seed", range(3))
def test_fluctuation_between_two_modes(seed):
    """E (v_a^T (dJ J^T + J dJ^T) v_b)^2 with dJ_i = Q_i theta, term by term.

    E Q_ipq Q_jrs = C_ij (S_pr S_qs + S_ps S_qr) contracted with theta twice.
    """
    rng, over_data, over_parameters = covariances(seed)
    jacobian, theta = rng.standard_normal((N_DATA, N_PARAMS)), rng.standard_normal(N_PARAMS)
    entries = np.einsum("pr,qs->pqrs", over_parameters, over_parameters)
    moment = entries + np.einsum("ps,qr->pqrs", over_parameters, over_parameters)
    of_change = np.einsum("ij,pqrs,q,s->ipjr", over_data, moment, theta, theta)
    outer = jacobian @ over_parameters @ jacobian.T
    along = jacobian @ over_parameters @ theta
    fluctuation, distance = np.outer(along, along), theta @ over_parameters @ theta
    for a, b in itertools.combinations(range(N_DATA), 2):
        to_pair = np.zeros((N_DATA, N_PARAMS))
        to_pair[a], to_pair[b] = jacobian[b], jacobian[a]
        expected = np.einsum("ip,ipjr,jr->", to_pair, of_change, to_pair)
        found = generated.mode_fluctuation(
            distance,
            *(over_data[a, a], over_data[b, b], over_data[a, b]),
            *(outer[a, a], outer[b, b], outer[a, b]),
            *(fluctuation[a, a], fluctuation[b, b], fluctuation[a, b]),
        )
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("coupling", [1e-3, 0.7])
def test_shift_is_that_of_two_coupled_modes(gap, coupling):
    high = np.linalg.eigvalsh([[gap / 2, coupling], [coupling, -gap / 2]])[1]
    shift = generated.eigenvalue_shift(gap, coupling**2)
    assert shift == pytest.approx(high - gap / 2, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("sgd", [qm.SGD(0.3, 2), qm.SGD(0.2, 1, 0.6, True, 0.1)])
def test_unit_covariance_of_parameters_is_no_covariance(sgd):
    """With data that are correlated: order matters in the products with their covariance."""
    rng, over_data, _ = covariances(7)
    jacobian = rng.standard_normal((N_DATA, N_PARAMS))
    model = qm.QuadraticModel(rng.standard_normal(N_DATA), jacobian)
    given, left_out = (
        qm.expected_ntk(
            model, sgd, 9, curvature=qm.curvature.KroneckerCurvature(over_data, unit, 0.01)
        )
        for unit in (np.eye(N_PARAMS), None)
    )
    for name in ("ntk", "progressive", "conservative", "diffusive", "repulsion", "mixing"):
        np.testing.assert_allclose(left_out[name], given[name], rtol=1e-9, atol=1e-13)
