"""Newton's method and the secant method inside a bracket."""

import math

import pytest

from quadmodel._util.roots import newton_in_bracket


def root_of(function, guess, low, high, tolerance=1e-14):
    """Return the root and how often the function was called."""
    calls = []

    def counted(x):
        assert low < x < high
        calls.append(x)
        return function(x)

    root = newton_in_bracket(counted, guess, low, high, step_tolerance=tolerance)
    assert root == calls[-1]
    return root, len(calls)


@pytest.mark.parametrize("slope", ["given", "chord"])
@pytest.mark.parametrize("guess", [1e-6, 0.3, 0.7, 1.9])
@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_pole_at_the_end(level, guess, slope):
    """x / (2 - x) in the logarithms grows from minus infinity to infinity."""

    def function(u):
        x = math.exp(u)
        return math.log(x / (2 - x) / level), 2 / (2 - x) if slope == "given" else math.nan

    found, calls = root_of(function, math.log(guess), -math.inf, math.log(2.0))
    assert math.exp(found) == pytest.approx(2 * level / (1 + level), rel=1e-12)
    assert calls < 40


@pytest.mark.parametrize(
    ("function", "root"),
    [
        *((lambda x, slope=slope: (x - 0.5, slope), 0.5) for slope in (0.0, -1.0, math.inf)),
        (lambda x: (-math.inf if x < 0.3 else math.inf, math.nan), 0.3),
        # Newton steps lead away from the root of the cube root, to both sides in turn.
        (lambda x: (math.cbrt(x - 0.1), 1 / (3 * math.cbrt(x - 0.1) ** 2 + 1e-300)), 0.1),
    ],
    ids=["zero slope", "negative slope", "infinite slope", "jump", "cube root"],
)
def test_bisection_where_steps_are_no_good(function, root):
    found, calls = root_of(function, 0.9, -1.0, 1.5)
    assert found == pytest.approx(root, rel=1e-12)
    assert calls < 100


@pytest.mark.parametrize("root", [3e5, 1e-3, 7.0])
def test_infinite_end(root):
    found, calls = root_of(lambda x: (1 - root / x, math.nan), 1.0, 0.0, math.inf)
    assert found == pytest.approx(root, rel=1e-13)
    assert calls < 60


def test_tolerances():
    cube = newton_in_bracket(
        lambda x: (x**3 - 8, 3 * x**2), 3.0, 0.0, 4.0, step_tolerance=0.0, value_tolerance=1e-3
    )
    assert 1e-9 < abs(cube - 2) < 1e-4
    # without any, the search ends at neighbouring numbers
    jump, _ = root_of(lambda x: (-1.0 if x < 1.2345 else 1.0, 0.0), 1.5, 1.0, 2.0, tolerance=0.0)
    assert jump == pytest.approx(1.2345, rel=1e-15)
