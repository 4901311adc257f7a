"""Ensembles: what was asked for is what the model has; seeds, shorthands, refusals."""

import math

import numpy as np
import pytest

from quadmodel import ensemble as ensemble_module
from quadmodel._util.checks import InputError
from quadmodel.ensemble import Ensemble
from quadmodel.laws.curvature import (
    IndependentCurvature,
    KroneckerCurvature,
    RandomLowRankCurvature,
)
from quadmodel.laws.eigenvectors import EigenvectorLaw, Haar, Localised
from quadmodel.laws.residuals import AlignedResidual, GaussianResidual
from quadmodel.spectra import (
    FromStieltjes,
    GivenEigenvalues,
    IndependentGaussian,
    MarchenkoPastur,
    Outliers,
    PowerLaw,
)


@pytest.mark.parametrize("shape", [(20, 50), (20, 20), (20, 8)])
@pytest.mark.parametrize("law", [PowerLaw(), Outliers([3.0]), "marchenko-pastur"])
@pytest.mark.parametrize("vectors", [None, Localised(0.2, 0.9)])
def test_the_ntk_has_the_spectrum_of_the_law(shape, law, vectors):
    law = MarchenkoPastur(shape[1] / shape[0]) if law == "marchenko-pastur" else law
    model = Ensemble(*shape, jacobian=law, eigenvectors=vectors).sample(seed=1)
    np.testing.assert_allclose(model.eigensystem[0], law.eigenvalues(*shape), atol=1e-12)


class Axes(EigenvectorLaw):
    """The data points themselves."""

    def sample(self, rng, n_data):
        return np.eye(n_data)


def test_the_ntk_has_the_eigenvectors_of_the_law():
    model = Ensemble(4, 9, jacobian=[4.0, 3.0, 2.0, 1.0], eigenvectors=Axes()).sample(0)
    np.testing.assert_allclose(model.ntk(), np.diag([4.0, 3.0, 2.0, 1.0]), atol=1e-13)


def test_an_eigenvector_law_leaves_the_gaussian_spectrum_as_drawn():
    plain = Ensemble(12, 30, IndependentGaussian(2.0)).sample(4)
    turned = Ensemble(12, 30, IndependentGaussian(2.0), Axes()).sample(4)
    np.testing.assert_allclose(turned.eigensystem[0], plain.eigensystem[0], rtol=1e-12)
    np.testing.assert_allclose(turned.ntk(), np.diag(plain.eigensystem[0]), atol=1e-12)


def gaussian_z_scores(scale, seed=2):
    """z-scores of mean, variance and fourth moment of the default Jacobian's entries."""
    entries = Ensemble(300, 400, IndependentGaussian(scale)).sample(seed).jacobian.ravel()
    return np.array(
        [
            ((entries**k).mean() - exact) / ((entries**k).std() / math.sqrt(entries.size))
            for k, exact in ((1, 0.0), (2, 1.0), (4, 3.0))
        ]
    )


def test_the_default_jacobian_has_gaussian_entries_of_its_scale():
    # 3 assertions; |z| < 5.1 keeps the family-wise error below 1e-6.
    assert np.abs(gaussian_z_scores(1.0)).max() < 5.1
    assert np.abs(gaussian_z_scores(1.03)).max() > 5.1  # negative control


def test_the_right_singular_vectors_do_not_prefer_a_parameter():
    # E J_ai^2 = tr(ntk)/P for every parameter; 6 assertions, |z| < 5.3 for an error of 1e-6.
    ensemble = Ensemble(3, 6, jacobian=[4.0, 1.0, 0.25])
    squares = np.array([(ensemble.sample(seed).jacobian ** 2).sum(0) for seed in range(1000)])
    z = (squares.mean(0) - 3 * 5.25 / 6) / (squares.std(0) / math.sqrt(1000))
    assert np.abs(z).max() < 5.3


def test_one_seed_gives_one_model():
    ensemble = Ensemble(6, 9, PowerLaw(), curvature=0.1)
    one, again, other = ensemble.sample(7), ensemble.sample(7), ensemble.sample(8)
    for name in ("residual", "jacobian", "curvature"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
        assert np.abs(getattr(one, name) - getattr(other, name)).max() > 1e-3


@pytest.mark.parametrize("law", [IndependentGaussian(), PowerLaw()])
def test_a_change_of_one_law_leaves_the_other_draws(law):
    base = Ensemble(6, 9, law).sample(7)
    for curvature in (0.1, KroneckerCurvature(), RandomLowRankCurvature(2, 1.0)):
        curved = Ensemble(6, 9, law, curvature=curvature).sample(7)
        np.testing.assert_array_equal(curved.jacobian, base.jacobian)
        np.testing.assert_array_equal(curved.residual, base.residual)
    doubled = Ensemble(6, 9, law, residual=2.0).sample(7)
    np.testing.assert_array_equal(doubled.jacobian, base.jacobian)
    np.testing.assert_array_equal(doubled.residual, 2.0 * base.residual)
    localised = Ensemble(6, 9, law, Localised(0.5, 0.9)).sample(7)
    np.testing.assert_array_equal(localised.residual, base.residual)
    np.testing.assert_allclose(localised.eigensystem[0], base.eigensystem[0], rtol=1e-10)


def test_streams_of_the_parts_differ():
    model = Ensemble(2, 2, curvature=1.0).sample(0)
    rows = [model.jacobian.ravel()[:2], model.residual, model.curvature.ravel()[:2]]
    assert len({round(float(row[0]), 6) for row in rows}) == 3
    assert abs(np.corrcoef(*residual_and_jacobian(2000))[0, 1]) < 5.0 / math.sqrt(2000)


def residual_and_jacobian(n_data):
    model = Ensemble(n_data, 1).sample(3)
    return model.residual, model.jacobian[:, 0]


@pytest.mark.parametrize("law", [IndependentGaussian(), PowerLaw()])
def test_residual_laws_see_the_modes_of_the_model(law):
    model = Ensemble(10, 6, law, residual=AlignedResidual([2], scale=3.0)).sample(0)
    mode = model.eigensystem[1][:, 2]
    assert abs(mode @ model.residual) == pytest.approx(3.0 * math.sqrt(10.0), rel=1e-10)
    part = Ensemble(10, 6, law, residual=GaussianResidual(1.0, 0.3)).sample(0)
    eigenvalues, vectors = part.eigensystem
    null = ((vectors.T @ part.residual) ** 2)[eigenvalues == 0.0].sum()
    assert null / (part.residual @ part.residual) == pytest.approx(0.3, rel=1e-10)


def test_shorthands_are_written_out():
    ensemble = Ensemble(2, 3, jacobian=np.array([1.0, 2.0]), curvature=0.05, residual=2)
    assert ensemble.jacobian == GivenEigenvalues([2.0, 1.0])
    assert ensemble.curvature == IndependentCurvature(0.05)
    assert ensemble.residual == GaussianResidual(2.0)
    assert Ensemble(2, 3, curvature=0.0).sample(0).curvature is None
    assert ensemble == Ensemble(2, 3, [1.0, 2.0], None, 0.05, 2.0)
    assert hash(ensemble) == hash(Ensemble(2, 3, [1.0, 2.0], None, 0.05, 2.0))


@pytest.mark.parametrize("curvature", [None, 0.1, RandomLowRankCurvature(3, 0.1)])
def test_nbytes_is_what_a_model_takes(curvature):
    ensemble = Ensemble(5, 7, curvature=curvature)
    assert ensemble.sample(0).nbytes == ensemble.nbytes


def test_spec_is_flat_and_repr_is_short():
    ensemble = Ensemble(40, 50, jacobian=np.linspace(1.0, 2.0, 40), curvature=0.1)
    spec = ensemble.spec()
    assert spec["n_data"] == 40
    assert spec["eigenvectors"] == repr(Haar())
    assert spec["curvature"] == "IndependentCurvature(scale=0.1)"
    assert spec["residual"] == "GaussianResidual(scale=1.0, null_fraction=None)"
    assert all(isinstance(value, int | str) for value in spec.values())
    assert eval(spec["jacobian"], {"GivenEigenvalues": GivenEigenvalues}) == ensemble.jacobian
    assert len(repr(ensemble)) < 350
    assert repr(ensemble).startswith("Ensemble(n_data=40, n_params=50, jacobian=GivenEig")


def test_memory_is_checked_before_anything_is_drawn(monkeypatch):
    def fail(*_):
        raise AssertionError("work began")

    monkeypatch.setattr(ensemble_module.Ensemble, "_sample_jacobian", fail)
    ensemble = Ensemble(10_000, 100_000, jacobian=PowerLaw(), curvature=0.1)
    assert ensemble.nbytes == 8 * (10_000 + 10**9 + 10**14)
    with pytest.raises(
        MemoryError, match=r"^a model of Ensemble\(n_data=10000.* needs 7.45e\+05 GiB"
    ):
        ensemble.sample(0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Ensemble(0, 3), r"^n_data must be an integer >= 1, got 0"),
        (lambda: Ensemble(3, 2.5), r"^n_params must be an integer >= 1, got 2.5"),
        (lambda: Ensemble(3, 4, jacobian=[1.0, 2.0]), r"^values must hold n_data=3 numbers, got 2"),
        (lambda: Ensemble(3, 4, jacobian="flat"), r"^values must hold real numbers"),
        (lambda: Ensemble(3, 4, MarchenkoPastur(2.0)), r"^ratio must be n_params/n_data=1.33333"),
        (
            lambda: Ensemble(3, 4, FromStieltjes(lambda x: 1 / (x - 0.5), 1.0, 0.5)),
            r"^eigenvalues must be asked of a law with a density",
        ),
        (lambda: Ensemble(3, 4, eigenvectors=np.eye(3)), r"^eigenvectors must be an Eigenvector"),
        (
            lambda: Ensemble(3, 4, curvature=-0.1),
            r"^curvature must be a finite number >= 0, got -0.1",
        ),
        (lambda: Ensemble(3, 4, curvature="big"), r"^curvature must be None, a number or a Curv"),
        (lambda: Ensemble(3, 4, curvature=KroneckerCurvature(np.eye(4))), r"^data_covariance must"),
        (lambda: Ensemble(3, 4, residual=None), r"^residual must be a number or a ResidualLaw"),
        (lambda: Ensemble(3, 4, residual=math.inf), r"^residual must be a finite number >= 0"),
        (lambda: Ensemble(3, 4).sample(-1), r"^seed must be an integer >= 0, got -1"),
        (lambda: Ensemble(3, 4).sample(None), r"^seed must be an integer >= 0, got None"),
        (
            lambda: Ensemble(3, 4, eigenvectors=Localised(0.1, 0.5)).sample(0),
            r"^row_fraction must give between",
        ),
        (
            lambda: Ensemble(3, 4, residual=GaussianResidual(1.0, 0.5)).sample(0),
            r"^null_fraction must be 0 where",
        ),
    ],
)
def test_bad_input(make, match):
    with pytest.raises(InputError, match=match):
        make()
