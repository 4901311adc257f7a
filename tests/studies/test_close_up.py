"""Close-ups: critical K whatever the batch size, and what is said where steps are too few."""

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.crossing import rising_line
from quadmodel.studies._close_up import POINTS, Guess, _elsewhere, _Window

# Standard errors that a right pooled K stays within, but for a probability below 1e-6.
BOUND = 5.0
SIZES = (1, 2, 4, 8)
# Standard error of growth in the tests of windows.
ERROR = 1e-3


def pooled(grid, norm="exact"):
    """Return log K pooled over batch sizes and its standard error."""
    found = qm.critical_noise_kernel_norm(grid, norm=norm)
    value, low, high = (
        float(np.log(found[f"pooled_noise_kernel_norm{end}"])) for end in ("", "_low", "_high")
    )
    return value, (high - low) / (2 * 1.959964)


@pytest.fixture(scope="module")
def grid():
    return qm.phase_diagram(qm.Ensemble(60, 120), 12, SIZES, steps=1000, replicas=8, seed=1)


@pytest.mark.slow
def test_pooled_critical_norm_is_one(grid):
    value, error = pooled(grid)
    assert abs(value) < BOUND * error
    assert error < 0.01
    assert grid.close_settled.all()


@pytest.mark.slow
def test_pooled_norm_of_the_closure_is_not(grid):
    """The negative control: K that is not exact is below 1 at the crossing."""
    value, error = pooled(grid, norm="finite")
    assert value < -BOUND * error


@pytest.mark.slow
def test_steps_go_with_the_slope(grid):
    """Small batches: growth rises slowly with the learning rate, and runs are long."""
    steps = grid.close_steps.sel(kind="mean").values
    assert (np.diff(steps) < 0).all()
    growth = grid.close_growth.sel(kind="mean").values
    assert growth.shape == (len(SIZES), POINTS)
    assert (growth[:, 0] < 0).all()
    assert (growth[:, -1] > 0).all()


@pytest.mark.slow
def test_too_few_steps_are_said_and_left_out():
    lam = np.geomspace(1, 1e-4, 40)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    few = qm.phase_diagram((vectors * lam) @ vectors.T, 12, [1], steps=32, replicas=4)
    found = qm.critical_noise_kernel_norm(few)
    assert not found.resolved.any()
    needed = int(found.needed_steps[0])
    assert needed > 32
    assert found.attrs["unresolved"] == f"batch size 1: steps={needed}"
    assert np.isnan(found.pooled_noise_kernel_norm)


def rounds(curve, error=ERROR):
    """Return where windows lead that are chosen by noisy values of a curve, round after round."""
    rng = np.random.default_rng(0)
    window, guess = _Window(-1.0, 1.0, 128, 64), Guess(0.0, 0.1, 1.0, -2.0, 2.0)
    for _ in range(12):
        x = window.learning_rates()
        errors = np.full(x.size, error)
        growth = curve(x) + error * rng.standard_normal(x.size)
        line = rising_line(x, growth, errors)
        if line is not None:
            return line
        window, _slope = _elsewhere(window, growth, errors, guess, 1.0)
    return None


@pytest.mark.parametrize(
    "curve",
    [
        lambda x: np.where(x > 0.3, np.expm1(4 * (x - 0.3)), -1e-4),  # a plateau, then bent
        lambda x: np.expm1(5 * (x - 0.3)),  # bent throughout
        lambda x: 0.3 * (x - 1.4),  # crosses above all values
        lambda x: 0.3 * (x + 1.4),  # and below
        lambda x: 1.2e-3 * (x - 0.3),  # lost in noise
    ],
)
def test_windows_end_where_growth_is_straight(curve):
    line = rounds(curve)
    assert line is not None
    # Growth there: zero within the errors of a line through five values, times the bound.
    assert abs(float(curve(np.array(line.at)))) < BOUND * ERROR


def test_noise_free_columns_have_no_close_up():
    full = qm.phase_diagram(qm.Ensemble(10, 20), 6, [10], steps=64, replicas=2)
    assert np.isnan(full.close_growth).all()
    assert not full.close_settled.any()


def test_quadratic_models_have_no_close_up():
    curved = qm.phase_diagram(qm.Ensemble(6, 12, curvature=0.05), 4, [2], steps=64, replicas=2)
    assert not [name for name in curved.data_vars if str(name).startswith("close_")]
    assert curved.attrs["refine"] == 12
