"""Formulas at the ends of their range, where the general form is 0/0 or infinite."""

from __future__ import annotations

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import _formulas
from tests.theory._cases import SCHEMES


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_dressed_response_of_an_infinite_one_is_the_limit(kappa):
    gamma, n_data = 3.0, 7
    near, at = _formulas.dressed_response(np.array([1e12, np.inf]), gamma, kappa, n_data)
    if kappa:
        assert at == pytest.approx(near, rel=1e-9)
    else:
        assert near == 1e12
        assert at == np.inf


@pytest.mark.parametrize("sampling", SCHEMES)
def test_one_data_point_has_no_noise(sampling):
    sgd = qm.SGD(0.5, 1, sampling=sampling)
    gamma, kappa = _formulas.batch_weight_covariance(sgd, 1)
    assert gamma * (1 - kappa) == 0
    # With replacement it is drawn once, too; the formula for many draws stays as it is.
    assert (gamma, kappa) == {
        "without_replacement": (0, 1), "with_replacement": (1, 1), "bernoulli": (0, 0)
    }[sampling]  # fmt: skip
