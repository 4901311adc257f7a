"""Pictures of the NTK's growth and of the persistent edge: what is drawn where."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import QuadMesh

import quadmodel as qm
from quadmodel._util.checks import InputError
from tests.pictures import K_LINES, close_figures, draw, labelled, legend, title  # noqa: F401

PARTS = ("progressive", "conservative", "diffusive")
PREDICTED = "mean-field theory (finite norm)"
SUM, SIMULATED = "sum: closed form", "simulated (2 standard errors)"
ENSEMBLE = qm.Ensemble(6, 20, qm.spectra.PowerLaw(1.0), curvature=0.005)
INITIAL = [f"initial {line}" for line in K_LINES]
DIVERGED, BEYOND = "a replica diverged", "second order does not hold"
QUANTITIES = ("simulated_growth", "predicted_growth")


@pytest.fixture(scope="module")
def growth():
    """expected_ntk() and sample_ntk() of one model."""
    model, sgd = ENSEMBLE.sample(0), qm.SGD(0.2, 2)
    return (
        qm.expected_ntk(model, sgd, 10, record_every=2),
        qm.sample_ntk(model, sgd, 10, replicas=3, record_every=5),
    )


@pytest.fixture(scope="module")
def grid():
    """The last row lies above the edge: no prediction, and diverged runs."""
    return qm.sharpening_diagram(ENSEMBLE, [0.1, 0.3, 60.0], [1, 6], steps=12, replicas=2)


@pytest.fixture(scope="module")
def found():
    """The last strength diverges."""
    return qm.persistent_edge([0.5, 1.0, 50.0], replicas=2, n_data=6, n_params=10, steps=20)


def horizontal(ax, at):
    lines = [line for line in ax.lines if len(line.get_ydata())]
    return [line for line in lines if line.get_ydata()[0] == at == line.get_ydata()[-1]]


# ---- sharpening


@pytest.mark.parametrize("mode", [0, 3])
def test_sharpening(growth, mode):
    pred, sim = growth
    artists, ax = draw(qm.plot.sharpening, pred, sim, mode=mode)
    assert ax.get_xlabel() == "SGD steps"
    assert ax.get_ylabel() == "NTK growth (1 / learning rate)"
    assert legend(ax) == [SUM, *PARTS, SIMULATED]
    for part in PARTS:
        line = labelled(artists, part)
        np.testing.assert_array_equal(line.get_xdata(), pred.step)
        np.testing.assert_array_equal(line.get_ydata(), pred[part].isel(mode=mode))
    total = sum(labelled(artists, part).get_ydata() for part in PARTS)
    np.testing.assert_allclose(labelled(artists, SUM).get_ydata(), total, rtol=1e-9, atol=1e-15)
    assert len({labelled(artists, label).get_color() for label in (*PARTS, SUM)}) == 4
    assert horizontal(ax, 0)


def test_simulated_growth_and_its_errors(growth):
    pred, sim = growth
    artists, ax = draw(qm.plot.sharpening, pred, sim, mode=1)
    (points,) = ax.containers
    per_replica = sim.ntk_projection.values[:, :, 1] - sim.ntk_projection.values[:, :1, 1]
    mean, error = per_replica.mean(axis=0), per_replica.std(axis=0, ddof=1) / 3**0.5
    assert points[0] in artists
    np.testing.assert_array_equal(points[0].get_xdata(), [0, 5, 10])
    np.testing.assert_allclose(np.asarray(points[0].get_ydata(), dtype=float), mean)
    ends = np.array([segment[:, 1] for segment in points[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([mean - 2 * error, mean + 2 * error], axis=1))
    assert (error[1:] > 0).all()


def test_sharpening_without_a_simulation(growth):
    artists, ax = draw(qm.plot.sharpening, growth[0])
    assert legend(ax) == [SUM, *PARTS]
    assert not ax.containers
    np.testing.assert_array_equal(
        labelled(artists, "progressive").get_ydata(), growth[0].progressive.isel(mode=0)
    )


def test_sharpening_of_replicas_that_diverge(growth):
    model, far = ENSEMBLE.sample(0), qm.SGD(60.0, 2)
    sim = qm.sample_ntk(model, far, 10, replicas=2, record_every=5)
    assert np.isinf(sim.ntk_projection).any()
    _, ax = draw(qm.plot.sharpening, growth[0], sim)
    assert legend(ax) == [SUM, *PARTS, SIMULATED]


@pytest.mark.parametrize("mode", [-1, 6, 0.5])
def test_mode_that_does_not_exist(growth, mode):
    with pytest.raises(InputError, match=r"^mode must be an integer between 0 and 5, got "):
        qm.plot.sharpening(growth[0], mode=mode)
    assert plt.get_fignums() == []


# ---- sharpening diagram


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_sharpening_diagram(grid, quantity):
    artists, ax = draw(qm.plot.sharpening_diagram, grid, quantity=quantity)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "batch size (data points)"
    assert ax.get_ylabel() == "learning rate (1 / NTK eigenvalue)"
    (mesh,) = [a for a in artists if isinstance(a, QuadMesh)]
    values = grid[quantity].transpose("learning_rate", "batch_size").values
    shown = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(values.shape)
    np.testing.assert_array_equal(shown, np.where(np.isfinite(values), values, np.nan))
    assert np.isfinite(shown).any()
    assert np.isnan(shown[-1]).all()
    x, y = mesh.get_coordinates()[0, :, 0], mesh.get_coordinates()[:, 0, 1]
    for edges, centres in ((x, grid.batch_size.values), (y, grid.learning_rate.values)):
        assert (edges[:-1] < centres).all()
        assert (centres < edges[1:]).all()
    what = "simulated" if quantity == "simulated_growth" else "predicted"
    assert mesh.colorbar.ax.get_ylabel() == f"{what} growth (share of the initial value)"


def test_simulated_growth_is_the_default(grid):
    ours, _ = draw(qm.plot.sharpening_diagram, grid)
    theirs, _ = draw(qm.plot.sharpening_diagram, grid, quantity="simulated_growth")
    np.testing.assert_array_equal(ours[0].get_array(), theirs[0].get_array())


def test_colours_saturate_at_the_growth_without_batch_noise(grid):
    for quantity in QUANTITIES:
        artists, _ = draw(qm.plot.sharpening_diagram, grid, quantity=quantity)
        reach = float(np.abs(grid.predicted_growth.values[:2, -1]).max())
        assert (artists[0].norm.vmin, artists[0].norm.vmax) == (-reach, reach)
        grows, shrinks = (artists[0].cmap(artists[0].norm(v)) for v in (reach, -reach))
        assert grows[0] > grows[2]  # red
        assert shrinks[2] > shrinks[0]  # blue


def test_edges_over_the_grid(grid):
    artists, ax = draw(qm.plot.sharpening_diagram, grid)
    edges = ["deterministic edge", *INITIAL[::-1]]
    assert legend(ax)[-4:] == edges
    for name, label in zip(grid.norm.values, INITIAL, strict=True):
        line = labelled(artists, label)
        np.testing.assert_array_equal(line.get_xdata(), grid.batch_size)
        np.testing.assert_array_equal(line.get_ydata(), grid.critical_learning_rate.sel(norm=name))
    edge = labelled(artists, "deterministic edge")
    np.testing.assert_array_equal(edge.get_ydata(), grid.edge_of_stability)
    assert len({labelled(artists, label).get_color() for label in edges}) == 4


def cells(artist, grid):
    """Return which cells of the grid a collection of cells covers."""
    covered = np.zeros((3, 2), bool)
    for path in artist.get_paths():
        low, high = path.vertices.min(axis=0), path.vertices.max(axis=0)
        across = (low[0] < grid.batch_size.values) & (grid.batch_size.values < high[0])
        up = (low[1] < grid.learning_rate.values) & (grid.learning_rate.values < high[1])
        covered |= up[:, None] & across[None, :]
    return covered


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_grey_means_diverged_and_hatched_not_valid(grid, quantity):
    artists, ax = draw(qm.plot.sharpening_diagram, grid, quantity=quantity)
    hatched = labelled(artists, BEYOND)
    assert hatched.get_hatch()
    np.testing.assert_array_equal(cells(hatched, grid), np.isnan(grid.predicted_growth))
    faces = artists[0].to_rgba(artists[0].get_array().reshape(3, 2))
    assert (faces[-1, :, 3] == 0).all()
    assert (faces[0, :, 3] == 1).all()
    if quantity == "predicted_growth":
        assert DIVERGED not in legend(ax)
    else:
        grey = labelled(artists, DIVERGED)
        assert not grey.get_hatch()
        np.testing.assert_array_equal(cells(grey, grid), np.isinf(grid.simulated_growth))


def test_hatched_where_the_grid_says_so(grid):
    valid = np.array([[True, False], [True, True], [False, True]])
    flagged = grid.assign(valid=(("learning_rate", "batch_size"), valid))
    artists, _ = draw(qm.plot.sharpening_diagram, flagged)
    np.testing.assert_array_equal(cells(labelled(artists, BEYOND), grid), ~valid)
    everywhere = grid.assign(valid=(("learning_rate", "batch_size"), np.ones((3, 2), bool)))
    _, ax = draw(qm.plot.sharpening_diagram, everywhere)
    assert BEYOND not in legend(ax)


def test_growth_within_its_errors_is_marked(grid):
    edited = grid.copy(deep=True)
    edited.simulated_growth[:2] = [[0.02, -0.02], [0.03, -0.01]]
    edited.standard_error[:2] = [[0.011, 0.001], [0.001, 0.006]]
    artists, _ = draw(qm.plot.sharpening_diagram, edited)
    for label, at in (("below 2 standard errors", [(0, 0), (1, 1)]), ("shrinks", [(0, 1)])):
        marks = labelled(artists, label).get_offsets()
        x, y = artists[0].get_coordinates()[0, :, 0], artists[0].get_coordinates()[:, 0, 1]
        found = [
            (np.searchsorted(y, up) - 1, np.searchsorted(x, across) - 1) for across, up in marks
        ]
        assert found == at
    _, ax = draw(qm.plot.sharpening_diagram, edited, quantity="predicted_growth")
    assert "shrinks" not in legend(ax)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_diagram_without_any_prediction(grid, quantity):
    nothing = grid.drop_vars("valid").assign(predicted_growth=np.nan * grid.predicted_growth)
    nothing.predicted_growth.attrs = grid.predicted_growth.attrs
    artists, ax = draw(qm.plot.sharpening_diagram, nothing, quantity=quantity)
    assert legend(ax)[-4:] == ["deterministic edge", *INITIAL[::-1]]
    assert cells(labelled(artists, BEYOND), grid).all()


def test_title_of_the_diagram(grid):
    _, ax = draw(qm.plot.sharpening_diagram, grid)
    assert title(ax) == (
        "simulated growth of the largest NTK eigenvalue 6 data points, 20 parameters, "
        "power law NTK (exponent 1), independent curvature (scale 0.005), Gaussian residual, "
        r"batches without replacement, 12 steps, 2 replicas $\times$ 2 batch sequences"
    )


def test_diagram_where_the_largest_batch_is_not_predicted(grid):
    edited = grid.copy(deep=True)
    edited.predicted_growth[:, -1] = np.nan
    artists, _ = draw(qm.plot.sharpening_diagram, edited)
    assert artists[0].norm.vmin < artists[0].norm.vmax


def test_diagram_without_curvature():
    still = qm.sharpening_diagram(ENSEMBLE, [0.1], [1], steps=2, replicas=2, curvature=0.0)
    artists, _ = draw(qm.plot.sharpening_diagram, still)
    assert artists[0].get_coordinates().shape == (2, 2, 2)


def test_dimensions_in_another_order(grid):
    ours, _ = draw(qm.plot.sharpening_diagram, grid)
    theirs, _ = draw(qm.plot.sharpening_diagram, grid.transpose())
    np.testing.assert_array_equal(ours[0].get_array(), theirs[0].get_array())


def test_quantity_that_does_not_exist(grid):
    with pytest.raises(InputError, match=r"^quantity must be one of simulated_growth, pred"):
        qm.plot.sharpening_diagram(grid, quantity="conservative")
    assert plt.get_fignums() == []


# ---- persistent edge


def test_persistent_edge(found):
    artists, ax = draw(qm.plot.persistent_edge, found)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("SGD steps", "noise kernel norm (exact)")
    assert legend(ax) == ["q = 0.5", "q = 1", "q = 50", PREDICTED, "diverged"]
    assert ax.get_legend().get_title().get_text() == "curvature strength"
    assert horizontal(ax, 1)
    low, high = ax.get_ylim()
    assert low == 0
    assert 1 < high < 2
    assert len(artists) == 8  # what is predicted to diverge at once has no line
    for n, line in enumerate(artists[6:]):
        assert line.get_linestyle() == "--"
        np.testing.assert_array_equal(
            line.get_ydata(), found.mean_field_noise_kernel_norm_finite[n]
        )
        assert line.get_color() == artists[2 * n].get_color()
    artists = artists[:6]
    for n, line in enumerate(artists):
        strength, replica = divmod(n, 2)
        np.testing.assert_array_equal(line.get_xdata(), found.step)
        np.testing.assert_array_equal(
            line.get_ydata(), found.noise_kernel_norm_exact[strength, replica].values
        )
        assert line.get_color() == artists[2 * strength].get_color()
    assert len({line.get_color() for line in artists}) == 3


def test_persistent_edge_of_replicas_that_all_diverge(found):
    gone = found.isel(curvature_strength=[2])
    assert (gone.divergence_step >= 0).all()
    assert np.isnan(gone.noise_kernel_norm_exact).any()
    _, ax = draw(qm.plot.persistent_edge, gone)
    assert legend(ax) == ["q = 50", "diverged"]
    # Nothing but the start is finite: a cross, no line.
    crosses = [line for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in crosses] == [[0], [0]]
    assert crosses[0].get_label() == "q = 50"


def test_persistent_edge_without_a_prediction(found):
    runs = found.drop_vars([name for name in found if str(name).startswith("mean_field_")])
    artists, ax = draw(qm.plot.persistent_edge, runs)
    assert len(artists) == 6
    assert legend(ax) == ["q = 0.5", "q = 1", "q = 50", "diverged"]


def test_persistent_edge_beyond_the_deterministic_edge(found):
    edited = found.copy(deep=True)
    edited.noise_kernel_norm_exact[0, 0, 5:] = np.inf
    draw(qm.plot.persistent_edge, edited)


# ---- all three


def test_given_axes(growth, grid, found):
    figure, axes = plt.subplots(1, 3, figsize=(20, 5), layout="constrained")
    calls = [
        (qm.plot.sharpening, growth),
        (qm.plot.sharpening_diagram, (grid,)),
        (qm.plot.persistent_edge, (found,)),
    ]
    for ax, (function, args) in zip(axes, calls, strict=True):
        artists, used = draw(function, *args, ax)
        assert used is ax
        assert {a for a in artists if a.axes is not None} <= set(ax.findobj())
    assert plt.get_fignums() == [figure.number]


def test_new_figure_each_time(growth, grid, found):
    for function, args in [
        (qm.plot.sharpening, growth),
        (qm.plot.sharpening_diagram, (grid,)),
        (qm.plot.persistent_edge, (found,)),
    ]:
        first, second = draw(function, *args)[1], draw(function, *args)[1]
        assert first.figure is not second.figure


def test_another_dataset(growth, grid, found):
    for function, name, others in [
        (
            qm.plot.sharpening,
            "pred must be a Dataset from expected_ntk()",
            (growth[1], grid, found),
        ),
        (
            qm.plot.sharpening_diagram,
            "grid must be a Dataset from sharpening_diagram()",
            (*growth, found),
        ),
        (
            qm.plot.persistent_edge,
            "found must be a Dataset from persistent_edge()",
            (*growth, grid),
        ),
    ]:
        for other in others:
            with pytest.raises(InputError) as refused:
                function(other)
            assert str(refused.value).startswith(f"{name}, got one without ")
    assert plt.get_fignums() == []
