"""Pictures of mean-field theory: the noise kernel norm along training, and the nonlinear edge."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from tests.pictures import close_figures, draw, labelled, legend, title  # noqa: F401

THEORY = "mean-field theory"
SIMULATED = "simulated, a line per replica"
NORM = "noise_kernel_norm_finite"


@pytest.fixture(scope="module")
def runs():
    model = qm.Ensemble(10, 20, curvature=0.1).sample(seed=0)
    sgd = qm.SGD(0.05, 2)
    sim = qm.simulate(model, sgd, 20, replicas=3, observables=(NORM, "loss"))
    return qm.mean_field(model, sgd, 20), sim


@pytest.fixture(scope="module")
def edges():
    """Made by hand: K at the edge falls; the largest batch is not seen to diverge."""
    norms = np.array([[1.0, 0.99, np.nan], [0.8, 0.7, np.nan], [0.6, 0.5, np.nan]])
    return xr.Dataset(
        {NORM: (("curvature_strength", "batch_size"), norms)},
        coords={"curvature_strength": [0.0, 0.1, 0.2], "batch_size": [1, 5, 50]},
        attrs={"n_data": 50, "n_params": 100, "batch_size": 1, "curvature_strength": 0.0},
    )


def test_mean_field(runs):
    pred, sim = runs
    artists, ax = draw(qm.plot.mean_field, pred, sim)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("SGD steps", "noise kernel norm (finite size)")
    assert legend(ax) == [SIMULATED, THEORY]
    assert ax.get_ylim()[0] == 0
    assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines)
    *simulated, predicted = artists
    for replica, line in enumerate(simulated):
        np.testing.assert_array_equal(line.get_xdata(), sim.step)
        np.testing.assert_array_equal(line.get_ydata(), sim[NORM].isel(replica=replica))
    np.testing.assert_array_equal(predicted.get_xdata(), pred.step)
    np.testing.assert_array_equal(predicted.get_ydata(), pred[NORM])
    assert predicted.get_color() != simulated[0].get_color()
    assert "10 data points, 20 parameters" in title(ax)
    assert "3 replicas" in title(ax)


def test_mean_field_alone(runs):
    artists, ax = draw(qm.plot.mean_field, runs[0])
    assert len(artists) == 1
    assert legend(ax) == [THEORY]
    assert "replica" not in title(ax)


def test_mean_field_of_one_replica_and_another_order(runs):
    pred, sim = runs
    assert legend(draw(qm.plot.mean_field, pred, sim.isel(replica=[1]))[1]) == ["simulated", THEORY]
    ours, theirs = (draw(qm.plot.mean_field, pred, s)[0] for s in (sim, sim.transpose()))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.get_ydata(), b.get_ydata())


def test_mean_field_that_diverges(runs):
    pred, sim = (one.copy(deep=True) for one in runs)
    pred[NORM][10:] = np.nan
    sim[NORM][:, 12:] = np.inf
    artists, ax = draw(qm.plot.mean_field, pred, sim)
    assert len(artists) == 4
    assert np.isfinite(ax.get_ylim()).all()


def test_mean_field_edge(edges):
    artists, ax = draw(qm.plot.mean_field_edge, edges)
    assert ax.get_xlabel() == "curvature strength"
    assert ax.get_ylabel() == "noise kernel norm (finite size) at the start"
    assert legend(ax) == ["B = 1", "B = 5"]  # nothing of the third is seen
    assert ax.get_legend().get_title().get_text() == "edge of the nonlinear model"
    assert any(list(line.get_ydata()) == [1, 1] for line in ax.lines)
    for n, size in enumerate((1, 5)):
        line = labelled(artists, f"B = {size}")
        np.testing.assert_array_equal(line.get_xdata(), edges.curvature_strength)
        np.testing.assert_array_equal(line.get_ydata(), edges[NORM][:, n])
    # What varies is no part of the setting.
    assert title(ax) == "50 data points, 100 parameters"


def test_unit_of_the_curvature_strength(edges):
    edges = edges.assign_coords(
        curvature_strength=edges.curvature_strength.assign_attrs(units="parameters")
    )
    assert draw(qm.plot.mean_field_edge, edges)[1].get_xlabel() == "curvature strength (parameters)"


def test_edges_of_the_package():
    """As the docstring says: results of mean_field_edge(), put together."""
    strengths = xr.Variable("curvature_strength", [0.1, 0.5])
    found = [
        qm.mean_field_edge(qm.Ensemble(20, 40, curvature=float(q)), [2, 5], steps=40, rtol=0.1)
        for q in strengths
    ]
    artists, ax = draw(qm.plot.mean_field_edge, xr.concat(found, strengths))
    assert legend(ax) == ["B = 2", "B = 5"]
    for line in artists:
        assert line.get_ydata()[1] < line.get_ydata()[0] < 1.05


def test_given_axes(runs, edges):
    _, axes = plt.subplots(1, 2, layout="constrained", figsize=(14, 6))
    qm.plot.mean_field(*runs, axes[0])
    qm.plot.mean_field_edge(edges, axes[1])
    assert len(plt.get_fignums()) == 1
    assert all(ax.lines for ax in axes)


def test_refusals(runs, edges):
    pred, sim = runs
    with pytest.raises(InputError, match=r"^pred must be a Dataset from mean_field\(\)"):
        qm.plot.mean_field(sim)
    with pytest.raises(InputError, match=r"^sim must be a Dataset from simulate\(\)"):
        qm.plot.mean_field(pred, pred)
    with pytest.raises(InputError, match=r"^edges must be a Dataset from mean_field_edge\(\) "):
        qm.plot.mean_field_edge(edges.isel(curvature_strength=0))
    for ax in ("left", 1):
        with pytest.raises(InputError, match=r"^ax must be None or matplotlib Axes"):
            qm.plot.mean_field(pred, ax=ax)
    assert not plt.get_fignums()
