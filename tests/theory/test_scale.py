"""Nothing depends on the units of NTK and residual, from 1e-150 to 1e150."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadmodel as qm
from quadmodel.theory.typical import typical_critical_learning_rate
from tests.theory._cases import MOMENTA, SCHEMES, random_ntk

scales = st.floats(-150, 150).map(lambda exponent: 10.0**exponent)
seeds = st.integers(0, 2**31)
optimizers = st.builds(
    lambda batch_size, memory, decay, sampling: qm.SGD(1.0, batch_size, *memory, decay, sampling),
    st.integers(1, 5),
    st.sampled_from(MOMENTA),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(SCHEMES),
)


def rescaled(sgd, learning_rate, scale):
    """Return the optimizer of an NTK that is so many times as large."""
    return replace(sgd, learning_rate=learning_rate / scale, weight_decay=sgd.weight_decay * scale)


def everything(ntk, residual, sgd, scale, amplitude):
    """Return what the theory says at a scale, in units of it."""
    at_edge = qm.edge_of_stability(ntk, sgd)
    sgd = rescaled(sgd, 0.3 * at_edge, scale)
    ntk, residual = scale * ntk, amplitude * residual
    found = {"edge": qm.edge_of_stability(ntk, sgd) * scale}
    for norm in ("paper", "finite", "exact"):
        found[f"K {norm}"] = qm.noise_kernel_norm(ntk, sgd, norm=norm)
        found[f"rate {norm}"] = qm.critical_learning_rate(ntk, sgd, norm=norm) * scale
    for norm in ("finite", "exact"):
        found[f"growth {norm}"] = qm.late_time_rate(ntk, sgd, norm=norm)
        found[f"floor {norm}"] = qm.loss_floor(ntk, residual, sgd, norm=norm) / amplitude**2
    found["crossing"] = float(qm.phase_boundaries(ntk, [1], sgd).crossing_batch_size)
    typical = qm.typical_growth(ntk, sgd)
    for name in ("typical_growth", "one_step_variance", "directions", "participation"):
        found[name] = float(typical[name])
    return found


@settings(max_examples=60, deadline=None)
@given(seed=seeds, sgd=optimizers, scale=scales, amplitude=scales, rank=st.integers(3, 9))
def test_predictions_do_not_depend_on_units(seed, sgd, scale, amplitude, rank):
    ntk = random_ntk(seed, 6, rank)
    residual = np.random.default_rng(seed).normal(size=6)
    expected = everything(ntk, residual, sgd, 1.0, 1.0)
    found = everything(ntk, residual, sgd, scale, amplitude)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert expected["K exact"] > 0 or sgd.batch_size == 6


@settings(max_examples=15, deadline=None)
@given(scale=scales)
def test_larger_data_and_typical_edge(scale):
    ntk, sgd = random_ntk(5, 40, 300), qm.SGD(1.0, 1, momentum=0.3)
    expected = typical_critical_learning_rate(ntk, sgd)
    found = typical_critical_learning_rate(scale * ntk, sgd) * scale
    assert found == pytest.approx(expected, rel=1e-8, nan_ok=True)
    critical = qm.critical_learning_rate(ntk, sgd)
    assert qm.critical_learning_rate(scale * ntk, sgd) * scale == pytest.approx(critical, rel=1e-11)


@settings(max_examples=30, deadline=None)
@given(scale=scales)
def test_laws(scale):
    sgd = qm.SGD(1.0, 3)
    critical = qm.critical_learning_rate(qm.spectra.GivenEigenvalues([1.0, 0.5]), sgd, n_data=30)
    law = qm.spectra.GivenEigenvalues([scale, 0.5 * scale])
    found = qm.critical_learning_rate(law, sgd, n_data=30) * scale
    assert found == pytest.approx(critical, rel=1e-11)


def test_beyond_the_squares_of_floats():
    """Where the square of the learning rate, or of the residual, is no number any more."""
    sgd = qm.SGD(0.2, 2)
    ntk = random_ntk(1, 12, 9)
    for scale in (1e165, 1e-165):
        for norm in ("paper", "finite", "exact"):
            value = qm.noise_kernel_norm(scale * ntk, rescaled(sgd, 0.2, scale), norm=norm)
            assert value == pytest.approx(qm.noise_kernel_norm(ntk, sgd, norm=norm), rel=1e-12)
    residual = np.ones(12)
    assert qm.loss_floor(ntk, 1e160 * residual, qm.SGD(0.02, 2)) == math.inf
    assert qm.loss_floor(ntk, 1e-170 * residual, qm.SGD(0.02, 2)) == 0.0
    for learning_rate in (1e55, 1e160, 1e300):
        beyond = replace(sgd, learning_rate=learning_rate)
        assert qm.late_time_rate(ntk, beyond) == math.inf
        assert not bool(qm.typical_growth(ntk, beyond).valid)
