"""Pictures: artists, labels with units, logarithmic axes, legends."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.lines import Line2D

import quadmodel as qm
from quadmodel._util.checks import InputError
from tests.pictures import K_LINES, close_figures, draw, labelled, legend, title  # noqa: F401

BOUNDARY = "simulated boundary (95%)"


@pytest.fixture(scope="module")
def grid():
    return qm.phase_diagram(qm.Ensemble(20, 40), 6, 3, steps=64, replicas=4, refine=2)


@pytest.fixture(scope="module")
def runs():
    model = qm.Ensemble(10, 20).sample(seed=0)
    sgd = qm.SGD(learning_rate=0.05, batch_size=5)
    return qm.simulate(model, sgd, steps=20, replicas=8), qm.predict(model, sgd, steps=20)


def without_crossing(grid, column):
    """Return a grid whose column stays stable everywhere and was not scanned."""
    edited = grid.copy(deep=True)
    edited.mean_growth[:, column] = -np.abs(edited.mean_growth[:, column]) - 1e-3
    for name in edited.data_vars:
        if str(name).startswith(("scan_", "close_")) and edited[name].dtype.kind == "f":
            edited[name].loc[{"batch_size": edited.batch_size[column]}] = np.nan
    return edited


def test_phase_diagram(grid):
    artists, ax = draw(qm.plot.phase_diagram, grid)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "batch size (data points)"
    assert ax.get_ylabel() == "learning rate (1 / NTK eigenvalue)"
    assert title(ax) == (
        "20 data points, 40 parameters, independent Gaussian NTK, no curvature, "
        "batches without replacement, 64 steps, 4 replicas"
    )
    edge = r"deterministic edge, $\eta\lambda_{\max}$ = 2"
    assert {*K_LINES, edge, BOUNDARY} <= set(legend(ax))
    for name, label in zip(grid.norm.values, K_LINES, strict=True):
        line = labelled(artists, label)
        assert isinstance(line, Line2D)
        np.testing.assert_array_equal(line.get_xdata(), grid.batch_size)
        np.testing.assert_array_equal(line.get_ydata(), grid.critical_learning_rate.sel(norm=name))
    np.testing.assert_array_equal(labelled(artists, edge).get_ydata(), grid.edge_of_stability)
    colours = {labelled(artists, label).get_color() for label in [*K_LINES, edge]}
    assert len(colours) == 4


def test_title_of_an_ntk_names_no_parameters():
    grid = qm.phase_diagram(np.diag([2.0, 1.0]), 2, 2, steps=32, replicas=2, refine=0)
    assert title(draw(qm.plot.phase_diagram, grid)[1]) == (
        "2 data points, given NTK, no curvature, batches without replacement, 32 steps, 2 replicas"
    )


def test_coloured_grid(grid):
    artists, ax = draw(qm.plot.phase_diagram, grid)
    (mesh,) = [a for a in artists if isinstance(a, QuadMesh)]
    growth = grid.mean_growth.transpose("learning_rate", "batch_size").values
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(growth.shape), growth)
    corners = mesh.get_coordinates()
    assert corners.shape == (7, 4, 2)
    x, y = corners[0, :, 0], corners[:, 0, 1]
    assert (x[:-1] < grid.batch_size.values).all()
    assert (grid.batch_size.values < x[1:]).all()
    assert (y[:-1] < grid.learning_rate.values).all()
    assert (grid.learning_rate.values < y[1:]).all()
    np.testing.assert_allclose(ax.get_xlim(), x[[0, -1]])
    np.testing.assert_allclose(ax.get_ylim(), y[[0, -1]])
    # Colour: symmetric around 0, where stability ends; with units.
    assert mesh.norm.vmin == -mesh.norm.vmax
    assert mesh.norm.vmax == np.abs(growth).max()
    assert mesh.norm(0.0) == pytest.approx(0.5)
    assert mesh.colorbar.ax.get_ylabel() == "growth of the mean loss (1 / step)"


def test_boundary(grid):
    artists, ax = draw(qm.plot.phase_diagram, grid)
    critical = qm.critical_noise_kernel_norm(grid)
    (points,) = [c for c in ax.containers if c.get_label() == BOUNDARY]
    found = np.isfinite(critical.learning_rate.values) & critical.resolved.values
    assert found.any()
    np.testing.assert_array_equal(points[0].get_xdata(), grid.batch_size.values[found])
    np.testing.assert_array_equal(points[0].get_ydata(), critical.learning_rate.values[found])
    assert points[0] in artists
    low, high = (np.array([s[i][1] for s in points[2][0].get_segments()]) for i in (0, 1))
    np.testing.assert_allclose(low, critical.learning_rate_low.values[found])
    np.testing.assert_allclose(high, critical.learning_rate_high.values[found])


def test_one_column_without_a_crossing(grid):
    edited = without_crossing(grid, 1)
    _, ax = draw(qm.plot.phase_diagram, edited)
    (points,) = [c for c in ax.containers if c.get_label() == BOUNDARY]
    resolved = qm.critical_noise_kernel_norm(edited).resolved.values
    assert resolved.any()
    assert not resolved[1]
    np.testing.assert_array_equal(points[0].get_xdata(), grid.batch_size.values[resolved])


def test_no_crossing_anywhere(grid):
    edited = grid
    for column in range(3):
        edited = without_crossing(edited, column)
    _, ax = draw(qm.plot.phase_diagram, edited)
    assert not ax.containers
    assert BOUNDARY not in legend(ax)
    assert set(K_LINES) <= set(legend(ax))


def test_intermittent_marks(grid):
    edited = grid.copy(deep=True)
    phase = np.full(edited.phase.shape, "stable", dtype="<U26")
    phase[2, 0] = phase[3, 1] = "intermittent"
    edited["phase"] = (("learning_rate", "batch_size"), phase)
    artists, ax = draw(qm.plot.phase_diagram, edited)
    marks = labelled(artists, "intermittent")
    assert isinstance(marks, PathCollection)
    # In their cells, left of the centres, where the simulated boundary is drawn.
    x, y = artists[0].get_coordinates()[0, :, 0], artists[0].get_coordinates()[:, 0, 1]
    for (across, up), row, column in zip(marks.get_offsets(), (2, 3), (0, 1), strict=True):
        assert x[column] < across < 0.9 * grid.batch_size[column]
        assert y[row] < up < y[row + 1]
    assert "intermittent" in legend(ax)


def test_no_intermittent_grid_points(grid):
    edited = grid.copy(deep=True)
    edited["phase"] = (("learning_rate", "batch_size"), np.full(edited.phase.shape, "stable"))
    artists, ax = draw(qm.plot.phase_diagram, edited)
    assert "intermittent" not in legend(ax)
    assert not [a for a in artists if isinstance(a, PathCollection)]


def test_dimensions_in_another_order(grid):
    ours, _ = draw(qm.plot.phase_diagram, grid)
    theirs, _ = draw(qm.plot.phase_diagram, grid.transpose())
    np.testing.assert_array_equal(ours[0].get_array(), theirs[0].get_array())


@pytest.mark.parametrize("changed", ["momentum", "weight_decay"])
def test_edge_label_without_the_plain_formula(grid, changed):
    _, ax = draw(qm.plot.phase_diagram, grid.assign_attrs({changed: 0.1}))
    assert "deterministic edge" in legend(ax)


def test_one_batch_size():
    grid = qm.phase_diagram(qm.Ensemble(10, 20), 4, [2], steps=32, replicas=2, refine=0)
    artists, ax = draw(qm.plot.phase_diagram, grid)
    assert artists[0].get_coordinates().shape == (5, 2, 2)
    low, high = ax.get_xlim()
    assert low < 2 < high


def test_growth_that_vanishes_everywhere(grid):
    edited = grid.copy(deep=True)
    for name in ("mean_growth", "scan_mean_growth"):
        edited[name] = edited[name] * 0
    draw(qm.plot.phase_diagram, edited)


def test_not_a_phase_diagram(runs):
    with pytest.raises((InputError, AttributeError)):
        qm.plot.phase_diagram(runs[0])


def test_loss(runs):
    sim, pred = runs
    artists, ax = draw(qm.plot.loss, sim, pred)
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("SGD steps", "loss")
    assert legend(ax) == [
        "10% to 90% of replicas",
        "mean of replicas",
        "median replica",
        "predicted mean",
    ]
    assert title(ax) == (
        r"10 data points, 20 parameters, $\eta$ = 0.05, B = 5, batches without replacement, "
        "20 steps, 8 replicas"
    )
    mean = sim.loss.mean("replica")
    np.testing.assert_allclose(labelled(artists, "mean of replicas").get_ydata(), mean)
    np.testing.assert_allclose(
        labelled(artists, "median replica").get_ydata(), sim.loss.median("replica")
    )
    np.testing.assert_array_equal(labelled(artists, "predicted mean").get_ydata(), pred.loss)
    band = labelled(artists, "10% to 90% of replicas")
    assert isinstance(band, PolyCollection)
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(float(sim.loss.quantile(0.1, "replica").min()))
    assert corners.max() == pytest.approx(float(sim.loss.quantile(0.9, "replica").max()))


def test_loss_of_the_large_p_limit():
    ensemble, sgd = qm.Ensemble(6, 20, curvature=0.01), qm.SGD(0.05, 2)
    sim = qm.simulate(ensemble.sample(0), sgd, 10, replicas=3)
    for replicas in (1, 4):
        limit = qm.large_p_limit(ensemble, sgd, 10, replicas=replicas)
        artists, _ = draw(qm.plot.loss, sim, limit)
        line = labelled(artists, "predicted mean")
        np.testing.assert_array_equal(line.get_ydata(), limit.loss.mean("replica"))


def test_loss_without_a_prediction(runs):
    artists, ax = draw(qm.plot.loss, runs[0])
    assert "predicted mean" not in legend(ax)
    assert len(artists) == 3


def test_loss_of_something_else(grid):
    with pytest.raises(InputError, match=r"^sim must be a Dataset from simulate\(\), got one with"):
        qm.plot.loss(grid)


def test_spectrum():
    model = qm.QuadraticModel.from_ntk(np.diag([4.0, 1.0, 0.25, 0.0]))
    (points,), ax = draw(qm.plot.spectrum, model)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank", "NTK eigenvalue (1 / learning rate)")
    assert ax.get_title() == "3 of 4 eigenvalues are not zero"
    np.testing.assert_array_equal(points.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(points.get_ydata(), [4.0, 1.0, 0.25])


def test_given_axes(grid, runs):
    calls = [
        (qm.plot.phase_diagram, (grid,)),
        (qm.plot.loss, runs),
        (qm.plot.spectrum, (qm.Ensemble(5, 10).sample(seed=0),)),
    ]
    figure, axes = plt.subplots(1, 3, layout="constrained")
    for ax, (function, args) in zip(axes, calls, strict=True):
        artists, used = draw(function, *args, ax)
        assert used is ax
        assert set(artists) <= set(ax.findobj())
    assert plt.get_fignums() == [figure.number]


def test_new_figure_each_time(runs):
    first, second = draw(qm.plot.loss, *runs)[1], draw(qm.plot.loss, *runs)[1]
    assert first.figure is not second.figure
    assert len(plt.get_fignums()) == 2
