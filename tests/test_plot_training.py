"""Pictures of K and the largest eigenvalue along training."""

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from tests import picture_data as data
from tests.pictures import close_figures, draw, labelled, legend, title  # noqa: F401

K_EXACT, TOP = "K, exact", r"$\eta\lambda_{\max}$ of the NTK"
STOCHASTIC = "K = 1, stochastic edge"
DETERMINISTIC = r"$\eta\lambda_{\max}$ = 2, deterministic edge"
NORMS = ["noise_kernel_norm", "noise_kernel_norm_finite", "noise_kernel_norm_exact"]


def test_network():
    run = data.run()
    artists, ax = draw(qm.plot.network, run)
    assert ax.get_xlabel() == "SGD steps"
    assert ax.get_ylabel() == r"K and $\eta\lambda_{\max}$ (no units)"
    assert legend(ax) == [
        K_EXACT, "K, finite D", "K, paper's limit", TOP, STOCHASTIC, DETERMINISTIC,
    ]  # fmt: skip
    drawn = labelled(artists, K_EXACT)
    np.testing.assert_array_equal(drawn.get_xdata(), run.step)
    np.testing.assert_array_equal(drawn.get_ydata(), run.noise_kernel_norm_exact[0])
    top = labelled(artists, TOP)
    np.testing.assert_allclose(top.get_ydata(), 0.1 * run.ntk_largest_eigenvalue[0], rtol=1e-15)
    assert len({labelled(artists, label).get_color() for label in legend(ax)}) == 6
    assert "100 data points" in title(ax)
    assert "3 replicas" in title(ax)


def test_network_of_a_tracked_run():
    """Seldom measured, with a schedule of learning rates and standard errors, one replica."""
    run = data.run().isel(replica=[0]).drop_vars(NORMS[:2])
    run = run.where((run.step % 20 == 0) | (run.step < 0))
    run["learning_rate"] = ("step", np.linspace(0.1, 0.05, run.sizes["step"]))
    run["noise_kernel_norm_exact_standard_error"] = 0.1 * run.noise_kernel_norm_exact
    artists, ax = draw(qm.plot.network, run)
    drawn = labelled(artists, K_EXACT)
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(0, 101, 20))
    assert labelled(artists, TOP).get_ydata()[-1] == pytest.approx(
        0.05 * float(run.ntk_largest_eigenvalue[0, -1]), rel=1e-15
    )
    assert len(ax.collections) == 1


def test_without_replicas_and_with_momentum():
    run = data.run().isel(replica=0, drop=True).assign_attrs(momentum=0.5)
    _, ax = draw(qm.plot.network, run)
    assert DETERMINISTIC not in legend(ax)
    _, ax = draw(qm.plot.trajectory, run)
    assert legend(ax) == ["start", "end", STOCHASTIC]


def test_runs_that_diverge_end_in_the_picture():
    run = data.run()
    run.noise_kernel_norm_exact[0, 9:] = np.inf
    artists, _ = draw(qm.plot.network, run)
    assert len(labelled(artists, K_EXACT).get_xdata()) == 9
    artists, _ = draw(qm.plot.trajectory, run)
    assert len(artists[0].get_xdata()) == 9


def test_trajectory():
    run = data.run()
    artists, ax = draw(qm.plot.trajectory, run)
    assert ax.get_xlabel() == r"$\eta\lambda_{\max}$ of the NTK (no units)"
    assert ax.get_ylabel() == "noise kernel norm K (exact)"
    assert legend(ax) == ["start", "end", STOCHASTIC, DETERMINISTIC]
    for n, path in enumerate(artists[::3][:3]):
        np.testing.assert_allclose(path.get_xdata(), 0.1 * run.ntk_largest_eigenvalue[n])
        np.testing.assert_array_equal(path.get_ydata(), run.noise_kernel_norm_exact[n])
    _, ax = draw(qm.plot.trajectory, run.drop_vars(NORMS[1:]))
    assert ax.get_ylabel() == "noise kernel norm K (paper's limit)"


@pytest.mark.parametrize("picture", [qm.plot.network, qm.plot.trajectory])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda run: run.to_dataframe(), "got a DataFrame"),
        (lambda run: run.drop_vars("ntk_largest_eigenvalue"), "without 'ntk_largest_eigenvalue'"),
        (lambda run: run.drop_vars(NORMS), "without 'noise_kernel_norm'"),
        (lambda run: run.drop_attrs(), "without 'learning_rate'"),
    ],
)
def test_refusals(picture, edit, words):
    with pytest.raises(InputError, match=words):
        picture(edit(data.run()))


def test_spectrum_of_an_ntk_and_of_eigenvalues():
    ntk = np.diag([0.5, 2.0, 1.0])
    for given in (ntk, [0.5, 2.0, 1.0], qm.QuadraticModel.from_ntk(ntk)):
        (points,), _ = draw(qm.plot.spectrum, given)
        np.testing.assert_allclose(points.get_ydata(), [2.0, 1.0, 0.5], rtol=1e-12)
