"""What the front end computes, against the package's theory."""

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.explorer._spectra import FAMILIES
from tests.explorer.javascript import evaluate, needs_node

pytestmark = needs_node
SETTINGS = [
    qm.SGD(0.05, 3),
    qm.SGD(0.05, 100),
    qm.SGD(0.02, 1, sampling="with_replacement"),
    qm.SGD(0.02, 20, 0.8, sampling="bernoulli"),
    qm.SGD(0.03, 7, 0.6, nesterov=True),
    qm.SGD(0.03, 7, -0.5, nesterov=True, weight_decay=0.2),
    qm.SGD(0.05, 30, 0.3, weight_decay=0.1, sampling="with_replacement"),
    qm.SGD(5.0, 10),
]
SPECTRA = {
    "power law": FAMILIES["power-law"].eigenvalues(0.7),
    "outliers": FAMILIES["outliers"].eigenvalues(10.0),
    "with a null space": qm.spectra.MarchenkoPastur(0.5).eigenvalues(100, 50),
    "one point": np.ones(1),
}
CASES = [
    (name, sgd) for name, lam in SPECTRA.items() for sgd in SETTINGS if sgd.batch_size <= len(lam)
]
STEPS = 60


@pytest.fixture(scope="module")
def found():
    data = [{"lam": SPECTRA[name].tolist(), "sgd": sgd.spec()} for name, sgd in CASES]
    return evaluate(
        f"""
        const found = data.map(({{lam, sgd}}) => ({{
          edge: deterministicEdge(lam, sgd),
          paper: noiseKernelNorm(lam, sgd, "paper"),
          finite: noiseKernelNorm(lam, sgd, "finite"),
          critical: criticalLearningRate(lam, sgd, "finite"),
          critical_paper: criticalLearningRate(lam, sgd, "paper"),
          loss: Array.from(meanLoss(lam, lam.map((_, k) => 1 + 0.1 * k), sgd, {STEPS})),
        }}));
        """,
        data,
    )


def each(found):
    return ((SPECTRA[name], sgd, here) for (name, sgd), here in zip(CASES, found, strict=True))


def test_norms_and_edges(found):
    for lam, sgd, here in each(found):
        assert here["edge"] == pytest.approx(qm.edge_of_stability(lam, sgd), rel=1e-13)
        for norm in ("paper", "finite"):
            expected = qm.noise_kernel_norm(lam, sgd, norm=norm)
            assert here[norm] == pytest.approx(expected, rel=1e-12)


def test_critical_learning_rates(found):
    for lam, sgd, here in each(found):
        for name, norm in (("critical", "finite"), ("critical_paper", "paper")):
            expected = qm.critical_learning_rate(lam, sgd, norm=norm)
            assert here[name] == pytest.approx(expected, rel=1e-11)


def test_mean_loss(found):
    for lam, sgd, here in each(found):
        n = len(lam)
        jacobian = np.diag(np.sqrt(n * lam))
        model = qm.QuadraticModel(np.sqrt(1 + 0.1 * np.arange(n)), jacobian)
        expected = qm.predict(model, sgd, STEPS, method="modes", record_every=1).loss.values
        finite, loss = expected < 1e200, np.array(here["loss"], dtype=float)
        assert np.allclose(loss[finite], expected[finite], rtol=1e-11)
        assert np.isinf(loss[~finite]).all()


def test_the_comparison_notices_another_sampling_scheme(found):
    lam, sgd, here = next(each(found))
    other = qm.SGD(sgd.learning_rate, sgd.batch_size, sampling="with_replacement")
    assert here["finite"] != pytest.approx(qm.noise_kernel_norm(lam, other), rel=1e-3)
