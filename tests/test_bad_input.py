"""Bad input to the public functions: one line that names the argument, no warning, no work.

The command line's is in tests/cli/test_bad_input.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.laws.curvature import (
    IndependentCurvature,
    KroneckerCurvature,
    RandomLowRankCurvature,
)

NTK = np.diag([2.0, 1.0, 0.5])
SGD = qm.SGD(0.1, 1)
MODEL = qm.QuadraticModel(np.ones(3), np.eye(3, 5))
CURVED = qm.Ensemble(3, 5, curvature=0.1)
HUGE = 10**5000  # of which Python writes no text
RUNS = xr.Dataset({"loss": (("replica", "step"), np.ones((2, 3)))}, {"step": [0, 1, 2]})


class Tensor:
    """What NumPy can't read, like a tensor with a gradient or one on a device."""

    ndim, shape, dtype = 2, (3, 3), np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nUse detach().")

    def __repr__(self):
        return "tensor([[2., 0., 0.],\n        [0., 1., 0.]], requires_grad=True)"


# What is given, and words of the refusal.
ARRAYS = {
    "a tensor with a gradient": (Tensor(), "NumPy can't read.*requires grad|got.*Tensor"),
    "masked": (np.ma.MaskedArray(NTK, mask=np.eye(3) > 0), "masked values, got 3 of them"),
    "ragged": ([[1.0], [1.0, 2.0]], "ragged"),
    "empty": (np.empty((0, 0)), r"must not be empty|got \(0, 0\)"),
    "three axes": (np.ones((2, 2, 2)), r"got \(2, 2, 2\)|3 dimensions"),
    "complex": (NTK * 1j, "dtype complex"),
    "text": (np.array([["a", "b"], ["c", "d"]]), "dtype <U1"),
    "bool": (np.eye(3) > 0, "dtype bool"),
    "dates": (np.full((2, 2), np.datetime64("2024-01-01")), "dtype datetime64"),
    "objects": (np.array([[{}, 1], [2, None]], dtype=object), "dtype object"),
    "records": (np.zeros((2, 2), dtype=[("a", float)]), "dtype "),
    "NaN": (np.where(NTK == 1, np.nan, NTK), r"finite numbers, got nan at \(1, 1\)"),
    "infinite": (np.where(NTK == 1, -np.inf, NTK), r"finite numbers, got -inf at \(1, 1\)"),
    "integers without end": ([[10**400, 0], [0, 1]], "dtype object"),
    "beyond double precision": (NTK * np.longdouble("1e4000"), "finite numbers, got inf"),
    "a scalar": (2.0, r"got \(\)|0 dimensions"),
    "a dictionary": ({"ntk": NTK}, "dtype object|dict with 0 dimensions"),
    "the name of a file": ("ntk.npy", "dtype <U7|str with 0 dimensions"),
    "a Dataset": (xr.Dataset({"ntk": (("row", "column"), NTK)}), "got a Dataset"),
}
MATRICES = ARRAYS | {
    "None": (None, "dtype object|NoneType with 0 dimensions"),
    "not square": (np.ones((2, 3)), r"square matrix, got shape \(2, 3\)"),
    "not symmetric": (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric, got entries"),
    "indefinite": (np.array([[1.0, 2.0], [2.0, 1.0]]), "semidefinite.*got the eigenvalue -1"),
    "double precision as bad as single": (np.diag([180.0, 1, -8e-6]), "got the eigenvalue -8e-06"),
}
VECTORS = {
    "a tensor with a gradient": ARRAYS["a tensor with a gradient"],
    "masked": (np.ma.MaskedArray(np.ones(3), mask=[1, 0, 1]), "masked values, got 2 of them"),
    "ragged": ([1.0, [1.0, 2.0]], "ragged"),
    "empty": ([], "must not be empty"),
    "a matrix": (NTK, r"got \(3, 3\)"),
    "complex": ([1j, 1, 1], "dtype complex"),
    "NaN": ([1.0, 1.0, math.nan], r"finite numbers, got nan at \(2,\)"),
    "text": (["1", "2", "3"], "dtype <U1"),
    "a scalar": (1.0, r"got \(\)"),
}
TAKES_AN_NTK = {
    "noise_kernel_norm: ntk": lambda x: qm.noise_kernel_norm(x, SGD),
    "critical_learning_rate: ntk": lambda x: qm.critical_learning_rate(x, SGD, norm="exact"),
    "phase_boundaries: ntk": lambda x: qm.phase_boundaries(x, [1]),
    "typical_growth: ntk": lambda x: qm.typical_growth(x, SGD),
    "from_ntk: ntk": qm.QuadraticModel.from_ntk,
    "phase_diagram: source|ntk": lambda x: qm.phase_diagram(x, 3, 2),
    "trace_boundary: source|ntk": lambda x: qm.trace_boundary(x, 2),
    "lyapunov_exponent: model|ntk": lambda x: qm.lyapunov_exponent(x, SGD, 10),
    "plot.spectrum: model|ntk": qm.plot.spectrum,
}
TAKES_A_MATRIX = {
    "QuadraticModel: jacobian": lambda x: qm.QuadraticModel(np.ones(3), x),
    "KroneckerCurvature: data_covariance": KroneckerCurvature,
    "LowRankCurvature: coefficients": lambda x: qm.LowRankCurvature(x, np.ones((3, 3, 5))),
}
TAKES_A_VECTOR = {
    "QuadraticModel: residual": lambda x: qm.QuadraticModel(x, np.eye(3)),
    "from_ntk: residual": lambda x: qm.QuadraticModel.from_ntk(NTK, x),
    "loss: theta": qm.QuadraticModel(np.ones(3), np.eye(3)).loss,
    "GivenEigenvalues: values": qm.spectra.GivenEigenvalues,
}
SIZES = {
    "half": ([1, 2.5], r"got 2\.5$"),
    "half in an array": (np.array([1.0, 2.5]), r"got 2\.5$"),
    "true": ([True, 2], "got True$"),
    "a number as text": ([1, "2"], "got '2'$"),
    "none": ([], "got none$"),
    "empty array": (np.array([]), "got none$"),
    "zero": ([0, 1], "got 0$"),
    "negative": (np.array([-1.0]), r"got -1$"),
    "too large": ([1, 4], "got 4$"),
    "huge": ([HUGE], "got int that can't be shown$"),
    "NaN": ([1, math.nan], "got nan$"),
    "infinite": ([math.inf], "got inf$"),
    "ragged": ([[1], [1, 2]], r"got \[1\]$|ragged"),
    "two axes": (np.array([[1, 2]]), r"got \[1, 2\]$"),
    "masked": (np.ma.MaskedArray([1, 2], mask=[True, False]), "masked values, got 1 "),
    "complex": ([1 + 0j], r"got \(1\+0j\)$"),
    "a tensor": (Tensor(), "NumPy can't read"),
    "a dictionary": ({1: 2}, "got {1: 2}$"),
    "None": (None, "got None$"),
    "text": ("all", "got 'all'$"),
}
TAKES_SIZES = {
    "phase_boundaries: batch_sizes": lambda x: qm.phase_boundaries(NTK, x),
    "phase_diagram: batch_sizes": lambda x: qm.phase_diagram(NTK, 3, x),
    "trace_boundary: batch_sizes": lambda x: qm.trace_boundary(NTK, x),
    "sharpening_diagram: batch_sizes": lambda x: qm.sharpening_diagram(CURVED, 3, x),
}
RATES = {
    "negative": ([-0.1, 0.2], r"> 0, got -0\.1"),
    "zero": ([0.0, 0.1], "> 0, got 0"),
    "twice": ([0.1, 0.1], "different ones"),
    "NaN": ([0.1, math.nan], "got nan"),
    "empty": ([], "must not be empty"),
    "ragged": ([[0.1], [0.1, 0.2]], "ragged"),
    "text": (["0.1", "0.2"], "dtype <U3"),
    "bool": ([True, False], "dtype bool"),
    "a half count": (2.5, r"got 2\.5"),
    "a negative count": (-3, "got -3"),
    "a huge count": (HUGE, "can't be shown"),
    "tiny": ([1e-200, 1.0], "got 1e-200"),
    "masked": (np.ma.MaskedArray([0.1, 0.2], mask=[True, False]), "masked values"),
    "a tensor": (Tensor(), "NumPy can't read"),
    "None": (None, "got None"),
}
TAKES_RATES = {
    "phase_diagram: learning_rates": lambda x: qm.phase_diagram(NTK, x, 2),
    "sharpening_diagram: learning_rates": lambda x: qm.sharpening_diagram(CURVED, x, 2),
}
INTEGERS = {
    "half": (2.5, r"an integer .* got 2\.5$"),
    "a float": (2.0, r"an integer .* got 2\.0$"),
    "text": ("2", "an integer .* got '2'$"),
    "bool": (True, "an integer .* got True$"),
    "NaN": (math.nan, "an integer .* got nan$"),
    "negative": (-1, "an integer .* got -1$"),
    "huge": (HUGE, "an integer .* got int that can't be shown$"),
    "negative huge": (-HUGE, "an integer .* got int that can't be shown$"),
    "an array": (np.ones((40, 40), int), "an integer .* got array.*1, 1, .*[.]{3}$"),
    "a fraction": (Fraction(1, 2), r"an integer .* got Fraction\(1, 2\)$"),
    "complex": (1j, "an integer .* got 1j$"),
}
TAKES_AN_INTEGER = {
    "SGD: batch_size": lambda x: qm.SGD(0.1, x),
    "simulate: steps": lambda x: qm.simulate(MODEL, SGD, x),
    "simulate: replicas": lambda x: qm.simulate(MODEL, SGD, 2, replicas=x),
    "simulate: seed": lambda x: qm.simulate(MODEL, SGD, 2, seed=x),
    "simulate: model_index": lambda x: qm.simulate(MODEL, SGD, 2, model_index=x),
    "simulate: record_every": lambda x: qm.simulate(MODEL, SGD, 2, record_every=x),
    "simulate: threads": lambda x: qm.simulate(MODEL, SGD, 2, threads=x),
    "predict: steps": lambda x: qm.predict(MODEL, SGD, x),
    "expected_ntk: record_every": lambda x: qm.expected_ntk(
        MODEL, SGD, 2, curvature=0.1, record_every=x
    ),
    "Ensemble: n_data": lambda x: qm.Ensemble(x, 5),
    "Ensemble: n_params": lambda x: qm.Ensemble(3, x),
    "Ensemble.sample: seed": CURVED.sample,
    "RandomLowRankCurvature: rank": lambda x: RandomLowRankCurvature(x, 1.0),
    "phase_diagram: refine": lambda x: qm.phase_diagram(NTK, 3, 2, refine=x),
    "phase_diagram: replicas": lambda x: qm.phase_diagram(NTK, 3, 2, replicas=x),
    "large_p_limit: truncation_order": lambda x: qm.large_p_limit(
        CURVED, SGD, 2, truncation_order=x
    ),
    "large_p_edge: n_data": lambda x: qm.large_p_edge(n_data=x),
    "lyapunov_exponent: burn_in": lambda x: qm.lyapunov_exponent(NTK, SGD, 10, burn_in=x),
    "sample_ntk: batch_sequences": lambda x: qm.sample_ntk(
        MODEL, SGD, 2, replicas=2, curvature=0.1, batch_sequences=x
    ),
    "persistent_edge: n_params": lambda x: qm.persistent_edge(n_params=x),
    "validate: seed": lambda x: qm.validate(seed=x),
}
NUMBERS = {
    "NaN": (math.nan, "got nan$"),
    "infinite": (math.inf, "got inf$"),
    "text": ("0.1", "got '0.1'$"),
    "bool": (True, "got True$"),
    "complex": (0.1j, "got 0.1j$"),
    "huge": (HUGE, "got inf$"),
    "an array": (np.array([0.1, 0.2]), r"got array\(\[0.1, 0.2\]\)$"),
    "a tensor": (Tensor(), r"got tensor\("),
    "negative": (-1.0, "got -1.0$"),
}
TAKES_A_NUMBER = {
    "SGD: learning_rate": lambda x: qm.SGD(x, 1),
    "SGD: momentum": lambda x: qm.SGD(0.1, 1, x),
    "SGD: weight_decay": lambda x: qm.SGD(0.1, 1, weight_decay=x),
    "critical_learning_rate: level": lambda x: qm.critical_learning_rate(NTK, SGD, level=x),
    "IndependentCurvature: scale": IndependentCurvature,
    "Ensemble: curvature": lambda x: qm.Ensemble(3, 5, curvature=x),
    "Ensemble: residual": lambda x: qm.Ensemble(3, 5, residual=x),
    "PowerLaw: exponent": qm.spectra.PowerLaw,
    "GaussianResidual: null_fraction": lambda x: qm.residuals.GaussianResidual(1.0, x),
    "validate: family_wise_error": lambda x: qm.validate(family_wise_error=x),
    "compare: family_wise_error": lambda x: qm.compare(RUNS, RUNS, family_wise_error=x),
    "persistent_edge: initial_norm": lambda x: qm.persistent_edge(initial_norm=x),
    "persistent_edge: curvature_strengths": lambda x: qm.persistent_edge([x]),
}
OTHERS = {
    "another word": ("other", "must be"),
    "a number": (2, "must be"),
    "a tensor": (Tensor(), "must be"),
    "a list": (["a", 3], "must be"),
    "bytes": (b"exact", "must be"),
}
TAKES_A_CHOICE = {
    "SGD: sampling": lambda x: qm.SGD(0.1, 1, sampling=x),
    "SGD: nesterov": lambda x: qm.SGD(0.1, 1, nesterov=x),
    "noise_kernel_norm: norm": lambda x: qm.noise_kernel_norm(NTK, SGD, norm=x),
    "predict: method": lambda x: qm.predict(MODEL, SGD, 2, method=x),
    "simulate: precision": lambda x: qm.simulate(MODEL, SGD, 2, precision=x),
    "simulate: observables": lambda x: qm.simulate(MODEL, SGD, 2, observables=x),
    "Ensemble: eigenvectors": lambda x: qm.Ensemble(3, 5, eigenvectors=x),
    "QuadraticModel: curvature_law": lambda x: qm.QuadraticModel(np.ones(3), np.eye(3), None, x),
    "simulate: model": lambda x: qm.simulate(x, SGD, 2),
    "predict: model": lambda x: qm.predict(x, SGD, 2),
    "expected_ntk: model": lambda x: qm.expected_ntk(x, SGD, 2),
    "sample_ntk: model": lambda x: qm.sample_ntk(x, SGD, 2, replicas=2),
    "large_p_limit: model": lambda x: qm.large_p_limit(x, SGD, 2),
    "sharpening_diagram: source": lambda x: qm.sharpening_diagram(x, 3, 2),
    "large_p_phase_diagram: source": lambda x: qm.large_p_phase_diagram(x, 3, 2),
    "simulate: sgd": lambda x: qm.simulate(MODEL, x, 2),
    "predict: sgd": lambda x: qm.predict(MODEL, x, 2),
    "phase_diagram: sgd": lambda x: qm.phase_diagram(NTK, 3, 2, sgd=x),
    "noise_kernel_norm: sgd": lambda x: qm.noise_kernel_norm(NTK, x),
    "plot.spectrum: ax": lambda x: qm.plot.spectrum(MODEL, x),
    "plot.loss: ax": lambda x: qm.plot.loss(RUNS, None, x),
}
DATASETS = {
    "None": (None, "got a NoneType$"),
    "an array": (NTK, "got a ndarray$"),
    "a model": (MODEL, "got a QuadraticModel$"),
    "a DataArray": (RUNS.loss, "got a DataArray$"),
    "an empty one": (xr.Dataset(), "got one without '"),
    "a mean over runs": (RUNS.mean(), "got one (without|whose) '"),
    "no steps": (RUNS.isel(step=[]), "got one (without|whose) '|has no 'step'"),
    "something else": (xr.Dataset({"loss": ("x", [1.0])}), "got one (without|whose) '"),
}
TAKES_A_DATASET = {
    "compare: sim": lambda x: qm.compare(x, RUNS),
    "compare: pred": lambda x: qm.compare(RUNS, x),
    "critical_noise_kernel_norm: grid": qm.critical_noise_kernel_norm,
    "late_time_quartiles: found": qm.late_time_quartiles,
    "outcome_table: found": qm.outcome_table,
    "plot.phase_diagram: grid": qm.plot.phase_diagram,
    "plot.sharpening_diagram: grid": qm.plot.sharpening_diagram,
    "plot.persistent_edge: found": qm.plot.persistent_edge,
    "plot.large_p_edge: found": qm.plot.large_p_edge,
    "plot.loss: sim": qm.plot.loss,
    "plot.mean_field: pred": qm.plot.mean_field,
    "plot.mean_field_edge: edges": qm.plot.mean_field_edge,
    "plot.sharpening: pred": qm.plot.sharpening,
}
TABLE = [
    pytest.param(call, given, words, name.partition(": ")[2], id=f"{name} {kind}")
    for calls, kinds in [
        (TAKES_AN_NTK, MATRICES),
        (TAKES_A_MATRIX, ARRAYS),
        (TAKES_A_VECTOR, VECTORS),
        (TAKES_SIZES, SIZES),
        (TAKES_RATES, RATES),
        (TAKES_AN_INTEGER, INTEGERS),
        (TAKES_A_NUMBER, NUMBERS),
        (TAKES_A_CHOICE, OTHERS),
        (TAKES_A_DATASET, DATASETS),
    ]
    for (name, call), (kind, (given, words)) in product(calls.items(), kinds.items())
]


@pytest.mark.parametrize("call", [qm.noise_kernel_norm, qm.critical_learning_rate])
def test_a_model_in_place_of_its_ntk(call):
    with pytest.raises(InputError, match=r"^ntk must be an NTK.* give model\.ntk\(\)$"):
        call(MODEL, SGD)


def refused(call, given, words, name):
    """Assert that a call is refused in one line that names the argument, with these words."""
    with pytest.raises(InputError, match=words) as error:
        call(given)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    assert any(f"{option} " in message for option in name.split("|"))


@pytest.mark.parametrize(("call", "given", "words", "name"), TABLE)
def test_refusal(call, given, words, name):
    refused(call, given, words, name)
