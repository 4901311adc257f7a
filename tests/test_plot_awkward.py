"""Pictures of awkward input: nothing overlaps, is cut off, is listed unseen or hides another."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import quadmodel as qm
from quadmodel.plot._common import Line, coinciding, number
from quadmodel.plot._setting import is_linear, law_in_words, setting
from tests.pictures import close_figures, draw, labelled, legend, overlaps, title  # noqa: F401
from tests.plot_grids import ATTRS, LONG, phase_grid

USUAL = (np.geomspace(0.01, 2, 12), [1, 2, 5, 12, 30, 100])
GRIDS = {
    "usual": USUAL,
    "one batch size": (USUAL[0], [3]),
    "2 x 2": ([0.01, 1.5], [1, 100]),
    "60 x 40": (np.geomspace(0.01, 2, 60), np.arange(1, 41)),
    "all stable": (np.geomspace(1e-6, 1e-5, 4), [1, 2, 4]),
    "all unstable": (np.geomspace(1e3, 1e9, 4), [1, 2, 4]),
}
STYLES = {"paper": {"font.size": 7.0}, "dark": "dark_background", "large": {"font.size": 15.0}}
SIZES = {"paper": (3.4, 3.6), "large": (9.0, 8.0)}


def picture_in(style, function, *args, **options):
    """Draw in a style, in the size of a figure that goes with it."""
    with plt.style.context(STYLES[style]):
        size = SIZES.get(style, (7.0, 5.5))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
        return draw(function, *args, ax=ax, **options)


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_grids(grid):
    artists, ax = draw(qm.plot.phase_diagram, phase_grid(*grid))
    ticks = [tick.get_loc() for tick in ax.xaxis.get_major_ticks()]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)  # batch sizes are whole numbers
    assert artists[0].get_rasterized()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("attrs", [{}, LONG], ids=["usual", "long names"])
def test_styles(style, attrs):
    picture_in(style, qm.plot.phase_diagram, phase_grid(*USUAL, **attrs))


def test_overlaps_are_found():
    """The check itself: texts on one another and beyond the border."""
    figure, ax = plt.subplots()
    assert overlaps(figure) == []
    ax.text(0.5, 0.5, "one")
    ax.text(0.51, 0.5, "two")
    ax.set_title("long " * 50)
    assert {("one", "two")} < set(overlaps(figure))
    assert len(overlaps(figure)) == 2


def test_growth_that_is_nowhere_known():
    grid = phase_grid(*USUAL)
    grid["mean_growth"] = grid.mean_growth * np.nan
    _, ax = draw(qm.plot.phase_diagram, grid)
    assert "simulated boundary (95%)" not in legend(ax)


# ---- lines that coincide, or are not there


def norm_lines(ax):
    return [name for name in legend(ax) if name.startswith("K = 1")]


@pytest.mark.parametrize(
    ("apart", "names"),
    [
        (1.2, ["K = 1, exact", "K = 1, finite D", "K = 1, paper's limit"]),
        (1.0, ["K = 1, exact = finite D = paper's limit"]),
        (1.0001, ["K = 1, exact = finite D = paper's limit"]),
    ],
)
def test_norms_that_coincide_are_drawn_once(apart, names):
    artists, ax = draw(qm.plot.phase_diagram, phase_grid(*USUAL, apart=apart))
    assert norm_lines(ax) == names
    assert labelled(artists, names[0]).get_color() == "black"


@pytest.mark.slow
def test_norms_that_coincide_in_part():
    """Each has its line, and the upper ones leave gaps that show the lower ones."""
    grid = phase_grid(*USUAL, apart=1.0)
    grid.critical_learning_rate[1, 0] *= 1.3
    artists, ax = draw(qm.plot.phase_diagram, grid)
    assert norm_lines(ax) == ["K = 1, exact = paper's limit", "K = 1, finite D"]
    grid.critical_learning_rate[0, 1] *= 1.3
    artists, ax = draw(qm.plot.phase_diagram, grid)
    exact, finite, paper = (labelled(artists, name) for name in norm_lines(ax))
    assert exact.get_zorder() < finite.get_zorder() < paper.get_zorder()
    assert (exact.is_dashed(), finite.is_dashed(), paper.is_dashed()) == (False, True, True)
    edge = labelled(artists, r"deterministic edge, $\eta\lambda_{\max}$ = 2")
    assert edge.get_zorder() < exact.get_zorder()
    assert edge.get_linewidth() > exact.get_linewidth() + 2


def test_coinciding():
    x = np.arange(3.0)
    lines = [Line("", x, y) for y in ([1, 2, 3], [1, 2, 3.001], [1, 2, 3.5], [1, 2, np.nan])]
    assert coinciding(lines, (0, 10), log=False) == [[0, 1], [2], [3]]
    assert coinciding(lines, (0, 1000), log=False) == [[0, 1, 2], [3]]
    lines.append(Line("", x[:2], np.array([1.0, 2.0])))
    assert coinciding(lines, (0.1, 10), log=True) == [[0, 1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("values", "there"),
    [
        ([np.nan] * 6, False),
        ([1e-9] * 6, False),
        ([np.nan, 0.1, np.nan, np.nan, np.nan, np.nan], True),
        ([0.1, 0.1, np.nan, 0.2, 0.2, 0.3], True),
    ],
)
def test_typical_edge_is_listed_where_it_is_seen(values, there):
    grid = phase_grid(*USUAL)
    grid["typical_critical_learning_rate"] = ("batch_size", values)
    artists, ax = draw(qm.plot.phase_diagram, grid)
    name = "typical edge, predicted"
    assert (name in legend(ax)) == there
    if values[0] != values[0] and there:
        # Alone in its column, it is a line through the column's cells.
        x = labelled(artists, name).get_xdata()
        alone = x[np.isfinite(labelled(artists, name).get_ydata())]
        assert alone[0] < USUAL[1][1] < alone[1]


# ---- marks


def test_unresolved_boundaries_are_hollow():
    grid = phase_grid(*USUAL)
    flags = np.array([True, False, True, True, True, True])
    _, ax = draw(qm.plot.phase_diagram, grid.assign(settled=("batch_size", flags)))
    filled, hollow = (
        next(c for c in ax.containers if c.get_label() == f"simulated boundary{end}")[0]
        for end in (" (95%)", ", unresolved")
    )
    assert list(hollow.get_xdata()) == [2]
    assert 2 not in filled.get_xdata()
    assert mpl.colors.same_color(hollow.get_markerfacecolor(), "white")
    assert mpl.colors.same_color(filled.get_markerfacecolor(), "black")


@pytest.mark.slow
def test_growth_that_is_not_settled_is_hatched():
    grid = phase_grid(*USUAL)
    settled = np.ones(grid.mean_growth.shape, bool)
    settled[3, 2] = False
    plane = ("learning_rate", "batch_size")
    artists, _ = draw(qm.plot.phase_diagram, grid.assign(settled=(plane, settled)))
    hatched = labelled(artists, "growth not settled")
    assert hatched.get_hatch()
    (path,) = hatched.get_paths()
    assert path.contains_point((grid.batch_size[2], grid.learning_rate[3]))
    _, ax = draw(qm.plot.phase_diagram, grid.assign(settled=(plane, settled | True)))
    assert "growth not settled" not in legend(ax)


@pytest.mark.slow
def test_marks_do_not_hide_each_other():
    grid = phase_grid(*GRIDS["60 x 40"])
    artists, ax = draw(qm.plot.phase_diagram, grid)
    points = next(c for c in ax.containers if c.get_label() == "simulated boundary (95%)")[0]
    marks = labelled(artists, "intermittent")
    pixels = ax.figure.dpi / 72
    circles = ax.transData.transform(np.column_stack(points.get_data()))
    crosses = ax.transData.transform(marks.get_offsets())
    apart = np.linalg.norm(circles[:, None] - crosses[None], axis=-1).min()
    assert apart > points.get_markersize() / 2 * pixels  # the middle of no cross is covered


# ---- words


@pytest.mark.parametrize(
    ("text", "what", "words"),
    [
        ("IndependentGaussian(scale=1.0)", "NTK", "independent Gaussian NTK"),
        ("PowerLaw(exponent=1.0, scale=2.5)", "NTK", "power law NTK (exponent 1, scale 2.5)"),
        (
            "GivenEigenvalues(values=(3.0, 2.0, 1.0, 0.5, 0.25, 0.1))",
            "NTK",
            "given eigenvalues NTK",
        ),
        ("Outliers(values=(5.0, 3.0), bulk=1.0)", "NTK", "outliers NTK (values (5, 3), bulk 1)"),
        (
            "IndependentGaussian(scale=1.0) with n_params=20",
            "NTK",
            "independent Gaussian NTK (P = 20)",
        ),
        (
            "KroneckerCurvature(data_covariance=<10x10, sha256 a3c81aeea2e1>, scale=0.3)",
            "curvature",
            "Kronecker curvature (scale 0.3)",
        ),
        ("GaussianResidual(scale=1.0, null_fraction=None)", "residual", "Gaussian residual"),
    ],
)
def test_laws_in_words(text, what, words):
    assert law_in_words(text, what) == words


def test_the_whole_setting():
    attrs = ATTRS | {"momentum": 0.9, "nesterov": 1, "weight_decay": 1e-3, "sampling": "bernoulli"}
    assert setting(attrs) == [
        "100 data points",
        "200 parameters",
        "independent Gaussian NTK",
        "no curvature",
        "Nesterov momentum 0.9",
        "weight decay 0.001",
        "Bernoulli batches",
        "1,000 steps",
        "16 replicas",
    ]
    _, ax = draw(qm.plot.phase_diagram, phase_grid(*USUAL, **attrs))
    assert title(ax) == ", ".join(setting(attrs))


def test_setting_of_an_ntk():
    """Its parameters are unknown, and nothing is said of them."""
    attrs = {name: ATTRS[name] for name in ("n_data", "momentum", "weight_decay", "sampling")}
    attrs["model"] = "QuadraticModel(n_data=100, from an NTK, curvature: none, 0.1 MB)"
    assert setting(attrs)[:3] == ["100 data points", "given NTK", "no curvature"]
    assert "parameter" not in " ".join(setting(attrs))


@pytest.mark.parametrize(
    ("attrs", "linear"),
    [
        ({"curvature": "None"}, True),
        ({"curvature": "IndependentCurvature(scale=0.01)"}, False),
        (
            {
                "curvature": "None",
                "limit": "large-p",
                "truncation_order": 2,
                "curvature_strength": 0.5,
            },
            False,
        ),
        ({"model": "QuadraticModel(n_data=8, n_params=8, curvature: none, 1 MB)"}, True),
        ({"model": "QuadraticModel(n_data=8, n_params=8, curvature: dense, 1 MB)"}, False),
    ],
)
def test_linear_or_not(attrs, linear):
    assert is_linear(attrs) == linear
    _, ax = draw(qm.plot.phase_diagram, phase_grid(*USUAL, **attrs))
    assert ("K = 1, exact" in legend(ax)) == linear
    assert ("initial K = 1, exact" in legend(ax)) != linear


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0005, "0.0005"),
        (-0.001, "\N{MINUS SIGN}0.001"),
        (20_000, "20000"),
        (1e-5, "$10^{-5}$"),
        (-1e6, "$-10^{6}$"),
        (2.5e-7, r"$2.5\times 10^{-7}$"),
    ],
)
def test_ticks_are_plain_where_they_fit(value, text):
    assert number(value) == text


# ---- losses


def test_loss_of_one_replica_that_is_predicted():
    """Noise-free: simulated and predicted coincide, and there is no band and no median."""
    model, sgd = qm.Ensemble(6, 12).sample(0), qm.SGD(0.1, 6)
    sim, pred = qm.simulate(model, sgd, 10, replicas=1), qm.predict(model, sgd, 10)
    _, ax = draw(qm.plot.loss, sim, pred)
    assert legend(ax) == ["the replica, predicted mean"]


def test_loss_of_replicas_that_diverge():
    model, sgd = qm.Ensemble(6, 12).sample(0), qm.SGD(50.0, 1)
    sim, pred = qm.simulate(model, sgd, 200, replicas=4), qm.predict(model, sgd, 200)
    assert not np.isfinite(sim.loss).all()
    _, ax = draw(qm.plot.loss, sim, pred)
    assert "mean of replicas" in legend(ax)
