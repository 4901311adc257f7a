"""Laws of the edge: recovered where they hold, and tried on a language model."""

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm

PANELS = qm.datasets.llm_edge()


def grid(critical, sizes, rates, steepness=6.0):
    """Return logistic shares around critical learning rates."""
    z = steepness * np.log(np.asarray(rates)[None, :] / np.asarray(critical)[:, None])
    return xr.DataArray(1 / (1 + np.exp(-z)), coords={"batch_size": sizes, "learning_rate": rates})


def test_the_law_is_recovered():
    sizes, rates = np.array([1, 4, 16, 64, 256]), np.geomspace(0.01, 10, 25)
    critical = 1 / (1 / (0.1 * sizes) + 1 / 2.5)
    found = qm.fit_edge_law(grid(critical, sizes, rates))
    np.testing.assert_allclose(found.critical_learning_rate, critical, rtol=1e-3)
    assert float(found.rate_per_batch_size) == pytest.approx(0.1, rel=1e-3)
    assert float(found.deterministic_edge) == pytest.approx(2.5, rel=1e-3)
    assert float(found.steepness) == pytest.approx(6.0, rel=1e-2)


@pytest.mark.parametrize("law", ["flat", "proportional"])
def test_simple_laws(law):
    sizes, rates = np.array([1, 2, 4]), np.geomspace(0.01, 10, 25)
    critical = 0.3 * (sizes if law == "proportional" else np.ones(3))
    found = qm.fit_edge_law(grid(critical, sizes, rates), law=law)
    np.testing.assert_allclose(found.critical_learning_rate, critical, rtol=1e-3)
    infinite = "deterministic_edge" if law == "proportional" else "rate_per_batch_size"
    assert np.isinf(found[infinite])
    both = qm.fit_edge_law(grid(critical, sizes, rates))
    assert float(both.log_likelihood) >= float(found.log_likelihood) - 1e-6


def test_edges_of_the_theory_follow_the_law():
    # A power law: what K = 1 predicts over all batch sizes, by two numbers, nearly.
    values = np.arange(1.0, 2001) ** -1.0
    sizes = np.array([1, 2, 4, 8, 16, 32])
    critical = [qm.critical_learning_rate(values, qm.SGD(1.0, int(b)), norm="paper") for b in sizes]
    rates = np.geomspace(0.05, 4, 40)
    found = qm.fit_edge_law(grid(critical, sizes, rates, 20.0))
    np.testing.assert_allclose(found.critical_learning_rate, critical, rtol=0.15)
    flat = qm.fit_edge_law(grid(critical, sizes, rates, 20.0), law="flat")
    assert np.abs(np.log(flat.critical_learning_rate / critical)).max() > 0.5


def shares_of_others(base_batch_size, law):
    """Return misclassified shares of all panels, fitted on each other one of the same base."""
    panels = np.flatnonzero(PANELS.base_batch_size == base_batch_size)
    found = []
    for own in panels:
        fitted = qm.fit_edge_law(PANELS.unstable_fraction.isel(panel=own), law=law)
        found += [
            qm.misclassified_share(PANELS.unstable_fraction.isel(panel=other), fitted)
            for other in panels
            if other != own
        ]
    return found


@pytest.mark.parametrize("base_batch_size", [1, 64])
def test_one_panel_of_a_language_model_predicts_the_others(base_batch_size):
    assert np.mean(shares_of_others(base_batch_size, "two_edges")) <= 0.02
    # The negative control: an edge that does not know the batch size.
    assert 0.1 <= np.mean(shares_of_others(base_batch_size, "flat")) <= 0.25


@pytest.mark.parametrize("base_batch_size", [1, 64])
def test_the_panels_do_not_reach_the_bend(base_batch_size):
    # eta_c = a B does as well here: these batch sizes say nothing of the deterministic edge.
    assert np.mean(shares_of_others(base_batch_size, "proportional")) <= 0.02
    for panel in np.flatnonzero(PANELS.base_batch_size == base_batch_size):
        fitted = qm.fit_edge_law(PANELS.unstable_fraction.isel(panel=panel))
        assert float(fitted.deterministic_edge) > 2 * float(PANELS.learning_rate.max())


def test_what_is_no_grid_of_shares():
    some = PANELS.unstable_fraction.isel(panel=0)
    with pytest.raises(ValueError, match="must be a DataArray"):
        qm.fit_edge_law(some.values)
    with pytest.raises(ValueError, match="got panel, batch_size, learning_rate"):
        qm.fit_edge_law(PANELS.unstable_fraction)
    with pytest.raises(ValueError, match="between 0 and 1"):
        qm.fit_edge_law(some + 1)
    with pytest.raises(ValueError, match="both sides"):
        qm.fit_edge_law(some * 0)
    with pytest.raises(ValueError, match="law must be one of"):
        qm.fit_edge_law(some, law="straight")
    fitted = qm.fit_edge_law(some)
    with pytest.raises(ValueError, match=r"got also \[16, 32, 64, 128, 256\]"):
        qm.misclassified_share(PANELS.unstable_fraction.isel(panel=5), fitted)
