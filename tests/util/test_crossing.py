"""Where noisy curves cross zero: coverage of the intervals over random curves, and refusals."""

import numpy as np
import pytest
from scipy.stats import binom, t

from quadmodel._util.crossing import monotone_crossing, rising_line

# Probability that a right interval fails any of the tests here that count coverage.
FAMILY_WISE_ERROR = 1e-6


def fits(n_curves, *, kink=False, bias=0.0, seed=0):
    """Return t = (found - true) / standard error of lines through noisy random curves."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(n_curves):
        slope, sigma, true = rng.uniform(0.01, 5), 10 ** rng.uniform(-4, -1), rng.uniform(-2, 2)
        half = 10 * sigma / slope / np.sqrt(8)
        low = 0.3 * half if kink else half
        x = np.linspace(true - low, true + (1.7 * half if kink else half), 8)
        growth = slope * (x - true)
        if kink:
            growth = np.maximum(growth, -0.02 * sigma)
        y = growth + bias * sigma + sigma * rng.standard_normal(8)
        line = rising_line(x, y, np.full(8, 0.6 * sigma))
        if line is not None:
            scores.append((line.at - true) / line.standard_error / t.ppf(0.975, line.freedom))
    return np.array(scores)


@pytest.mark.parametrize("kink", [False, True])
def test_interval_of_a_line_covers(kink):
    """Of the lines that are believed, at least 93 % of the 95 % intervals hold the crossing."""
    scores = fits(2000, kink=kink)
    assert len(scores) > 1000
    misses = int(np.sum(np.abs(scores) > 1))
    assert binom.sf(misses - 1, len(scores), 0.07) > FAMILY_WISE_ERROR


def test_interval_of_biased_values_does_not_cover():
    """The negative control: values shifted by their own standard error."""
    scores = fits(2000, bias=1.0)
    assert binom.sf(np.sum(np.abs(scores) > 1) - 1, len(scores), 0.07) < FAMILY_WISE_ERROR


def test_scatter_that_is_small_by_luck_is_not_believed():
    x = np.linspace(-1, 1, 8)
    exact = rising_line(x, 2 * (x - 0.1), np.full(8, 1e-12))
    honest = rising_line(x, 2 * (x - 0.1), np.full(8, 0.2))
    assert exact.at == pytest.approx(0.1, abs=1e-12)
    assert exact.standard_error < 1e-11
    assert honest.standard_error == pytest.approx(0.1 / np.sqrt(8), rel=0.02)


def test_values_below_a_kink_are_left_out():
    x = np.linspace(-0.6, 1.7, 8)
    noise = 1e-3 * np.random.default_rng(1).standard_normal(8)
    line = rising_line(x, np.maximum(x - 0.2, -1e-3) + noise, np.full(8, 1e-3))
    assert line.left_out in (2, 3)  # one of those below lies on the line, nearly
    assert abs(line.at - 0.2) < 5 * line.standard_error


@pytest.mark.parametrize(
    "curve",
    [
        lambda x: 0.0 * x,  # does not rise
        lambda x: x + 3.0,  # crosses before
        lambda x: x - 3.0,  # crosses after
        lambda x: 40 * np.expm1(3 * (x - 0.3)),  # curved above its crossing as well
    ],
)
def test_no_line_is_drawn(curve):
    x = np.linspace(-1, 1, 8)
    noise = 1e-2 * np.random.default_rng(0).standard_normal(8)
    assert rising_line(x, curve(x) + noise, np.full(8, 1e-2)) is None


def test_monotone_crossing_needs_a_crossing():
    x = np.linspace(0, 1, 6)
    assert np.isnan(monotone_crossing(x, 1 + x, np.full(6, 0.1)).at)
    assert np.isnan(monotone_crossing(x[:1], x[:1], np.ones(1)).at)
    assert monotone_crossing(x, x - 0.5, np.full(6, 1e-9)).at == pytest.approx(0.5)
