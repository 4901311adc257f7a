"""Monte Carlo against the exact second-moment recursion, over many kinds of training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.theory import _formulas

pytestmark = pytest.mark.statistical

FAMILY_WISE_ERROR = 1e-6  # over all configurations together
STEPS, REPLICAS = 12, 6000

# Jacobian law, eigenvector law, number of parameters, momentum, Nesterov, weight decay
LAWS = {
    "gaussian": (qm.spectra.IndependentGaussian(), None, 32, 0.0, False, 0.0),
    "power law": (qm.spectra.PowerLaw(1.0), None, 32, 0.0, False, 0.2),
    "outliers": (qm.spectra.Outliers([4.0, 2.0], 0.3), None, 16, 0.6, False, 0.0),
    "localised": (
        qm.spectra.PowerLaw(0.5), qm.eigenvectors.Localised(0.25, 0.9), 16, 0.5, True, 0.0
    ),
    "null space": (qm.spectra.IndependentGaussian(), None, 8, -0.4, False, 0.0),
    "null space, localised": (
        qm.spectra.Outliers([3.0], 1.0), qm.eigenvectors.Localised(0.2, 0.7), 9, -0.3, True, 0.1
    ),
    "marchenko-pastur": (qm.spectra.MarchenkoPastur(0.5), None, 8, 0.8, True, 0.0),
    "given": (qm.spectra.GivenEigenvalues(np.linspace(0.1, 1.0, 16)), None, 20, 0.8, False, 0.05),
}  # fmt: skip
N_DATA = 16
SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
CONFIGURATIONS = [
    (law, sampling, (1, 3, 8, N_DATA)[(k + j) % 4])
    for (k, law), (j, sampling) in itertools.product(enumerate(LAWS), enumerate(SCHEMES))
]


def contrast(law: str, sampling: str, batch_size: int):
    """Compare simulation and prediction of one configuration at K about 0.3."""
    spectrum, eigenvectors, n_params, momentum, nesterov, decay = LAWS[law]
    ensemble = qm.Ensemble(N_DATA, n_params, spectrum, eigenvectors)
    seed = 100 * list(LAWS).index(law) + 10 * SCHEMES.index(sampling) + batch_size
    model = ensemble.sample(seed)
    sgd = qm.SGD(1.0, batch_size, momentum, nesterov, decay, sampling)
    eta = qm.critical_learning_rate(model.ntk(), sgd, norm="exact", level=0.3)
    edge = qm.edge_of_stability(model.ntk(), sgd)
    eta = eta if eta < 0.99 * edge else 0.3 * edge  # a full batch has no noise and no K
    sgd = qm.SGD(eta, batch_size, momentum, nesterov, decay, sampling)
    sim = qm.simulate(model, sgd, STEPS, replicas=REPLICAS, seed=seed)
    pred = qm.predict(model, sgd, STEPS, method="exact")
    return qm.compare(sim, pred, family_wise_error=FAMILY_WISE_ERROR / len(CONFIGURATIONS))


@pytest.mark.parametrize(("law", "sampling", "batch_size"), CONFIGURATIONS)
def test_simulation_agrees_with_theory(law, sampling, batch_size):
    table = contrast(law, sampling, batch_size)
    assert table.attrs["verdict"] == "agree", table.to_dataframe().query("not agrees")
    assert set(table.variable.values) >= {"loss", "mode_energy", "noise_kernel_norm"}
    loss = table.isel(comparison=table.variable.values == "loss")
    assert loss.step.values.tolist() == list(range(STEPS + 1))
    # the comparison resolves the mean loss to a few per cent, or there is no noise at all
    assert float((loss.standard_error / loss.predicted).max()) < 0.03


@pytest.mark.parametrize("batch_size", [3, 8])
@pytest.mark.parametrize("law", LAWS)
def test_wrong_variance_of_the_batch_is_caught(law, batch_size, monkeypatch):
    """Negative control: the same comparison with (D - B)/(D - 1) replaced by 1."""
    right = _formulas.batch_weight_covariance

    def wrong(sgd, n_data):
        gamma, kappa = right(sgd, n_data)
        b = sgd.batch_size
        return gamma * (n_data - 1) / (n_data - b), kappa

    monkeypatch.setattr(_formulas, "batch_weight_covariance", wrong)
    table = contrast(law, "without_replacement", batch_size)
    loss = table.isel(comparison=table.variable.values == "loss")
    assert not loss.agrees.all()
