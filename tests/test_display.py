"""What objects show of themselves, in text and in notebooks: short, and without hidden work."""

import numpy as np
import pytest

import quadmodel as qm
from quadmodel import model as model_module

LAWS = [
    qm.spectra.PowerLaw(1.5),
    qm.spectra.MarchenkoPastur(2.0),
    qm.spectra.GivenEigenvalues(np.linspace(1.0, 2.0, 500)),
    qm.spectra.Outliers(np.linspace(3.0, 9.0, 50)),
    qm.spectra.FromDensity(lambda x: np.full_like(x, 0.25), support=(0, 4)),
    qm.curvature.IndependentCurvature(0.1),
    qm.curvature.KroneckerCurvature(data_covariance=np.eye(30)),
    qm.eigenvectors.Haar(),
    qm.eigenvectors.Localised(0.1, 0.9),
    qm.residuals.GaussianResidual(2.0),
    qm.residuals.AlignedResidual([0, 1]),
]


@pytest.fixture(scope="module")
def comparison():
    model, sgd = qm.Ensemble(6, 12).sample(seed=0), qm.SGD(0.05, 2)
    sim = qm.simulate(model, sgd, 6, replicas=20, observables=["loss", "mode_energy"])
    return qm.compare(sim, qm.predict(model, sgd, 6))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_laws(law):
    assert len(repr(law)) < 120
    assert repr(law).startswith(f"{type(law).__name__}(")
    html = law._repr_html_()
    assert f"<b>{type(law).__name__}</b>" in html
    assert len(html) < 700


def test_a_law_of_the_users_without_fields():
    class Ones(qm.residuals.ResidualLaw):
        def sample(self, rng, eigenvalues, eigenvectors):
            return np.ones(len(eigenvalues))

    assert "Ones" in Ones()._repr_html_()


def test_few_eigenvalues_are_shown_one_by_one():
    few, many = [2.0, 1.0], np.linspace(1.0, 2.0, 30)
    assert repr(qm.spectra.GivenEigenvalues(few)) == "GivenEigenvalues(values=(2.0, 1.0))"
    shown = repr(qm.spectra.GivenEigenvalues(many))
    assert shown.startswith("GivenEigenvalues(values=<30 from 2 to 1, sha256 ")
    assert shown != repr(qm.spectra.GivenEigenvalues(many + 1e-9))


def test_sgd():
    assert repr(qm.SGD(0.1, 2)) == "SGD(learning_rate=0.1, batch_size=2)"
    text = repr(qm.SGD(0.1, 2, momentum=0.5, sampling="bernoulli"))
    assert text == "SGD(learning_rate=0.1, batch_size=2, momentum=0.5, sampling='bernoulli')"
    assert eval(text, {"SGD": qm.SGD}) == qm.SGD(0.1, 2, momentum=0.5, sampling="bernoulli")
    html = qm.SGD(0.1, 2)._repr_html_()
    assert "0.1 / NTK eigenvalue" in html
    assert "without replacement" in html


def test_ensemble():
    html = qm.Ensemble(1000, 2000, curvature=0.01)._repr_html_()
    for shown in ("1,000", "2,000", "IndependentGaussian", "IndependentCurvature", "32 GB"):
        assert shown in html


def test_model():
    model = qm.Ensemble(4, 6, [4.0, 3.0, 2.0, 1.0], curvature=0.1).sample(seed=0)
    html = model._repr_html_()
    for shown in ("dense, shape (4, 6, 6)", "4 / learning rate", "10 / learning rate"):
        assert shown in html
    assert "made up" in qm.QuadraticModel.from_ntk(np.eye(2))._repr_html_()


def test_large_models_are_not_diagonalised_to_be_shown(monkeypatch):
    def refuse(*_):
        raise AssertionError("diagonalised")

    large = qm.QuadraticModel(np.ones(1200), np.ones((1200, 2)))
    monkeypatch.setattr(model_module, "ntk_eigensystem", refuse)
    assert "largest" not in repr(large)
    assert "largest" not in large._repr_html_()
    with pytest.raises(AssertionError, match="diagonalised"):
        repr(qm.QuadraticModel(np.ones(2), np.ones((2, 2))))


def test_what_is_known_is_shown():
    large = qm.QuadraticModel(np.ones(1200), np.ones((1200, 2)))
    object.__setattr__(large, "eigensystem", (np.array([2.0]), None))
    assert "largest eigenvalue 2," in repr(large)


def test_comparison(comparison):
    heading, columns, *rows = repr(comparison).splitlines()
    assert heading.startswith("agree: worst |z| ")
    assert f"of {comparison.sizes['comparison']} rows" in heading
    assert "outside" in columns
    assert [row.split()[:2] for row in rows] == [["loss", "7"], ["mode_energy", "42"]]
    html = comparison._repr_html_()
    assert "<table" in html
    assert "mode_energy" in html


def test_the_worst_row_is_shown(comparison):
    wrong = comparison.copy(deep=True)
    wrong.z[3], wrong.agrees[3], wrong.measured[3] = -50.0, False, 123.0
    heading, _, loss, _ = repr(wrong).splitlines()
    assert heading.startswith("disagree: worst |z| 50.00")
    assert loss.split()[:5] == ["loss", "7", "1", "50", "3"]
    assert "123" in loss


def test_a_part_of_a_comparison_is_shown_as_such(comparison):
    assert "of 3 rows" in repr(comparison.isel(comparison=slice(3)))
    assert "Data variables" in repr(comparison.drop_vars("z"))
    assert "xr-wrap" in comparison.drop_vars("z")._repr_html_()


def test_critical_noise_kernel_norm():
    grid = qm.phase_diagram(qm.Ensemble(10, 20), 6, [1, 2], steps=64, replicas=4, refine=0)
    found = qm.critical_noise_kernel_norm(grid)
    heading, _, _, *rows = repr(found).splitlines()
    assert heading.startswith("critical K (exact, mean growth): ")
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert "learning rate high" in found._repr_html_()


def test_stability_margins():
    ntk, sgd = np.diag([2.0, 1.0, 0.5]), qm.SGD(0.1, 1)
    found = qm.stability_margins(ntk, sgd)
    for norm in ("paper", "finite", "exact"):
        at = found.sel(norm=norm)
        assert at.noise_kernel_norm == qm.noise_kernel_norm(ntk, sgd, norm=norm)
        assert at.critical_learning_rate == qm.critical_learning_rate(ntk, sgd, norm=norm)
        assert float(at.margin) * 0.1 == pytest.approx(float(at.critical_learning_rate), rel=1e-15)
    assert found.edge_of_stability == 1.0
    assert found.deterministic_margin == 10.0
    assert repr(found).splitlines()[-1].split() == ["deterministic", "NaN", "1", "10"]
    assert list(qm.stability_margins([2.0, 1.0], sgd).norm.values) == ["paper", "finite"]


def test_artists_are_not_printed_by_notebooks():
    artists = qm.plot.spectrum(qm.Ensemble(4, 6).sample(seed=0))
    assert isinstance(artists, list)
    assert artists._ipython_display_() is None
