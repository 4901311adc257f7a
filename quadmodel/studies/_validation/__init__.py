"""The validation suite of :func:`quadmodel.validate`: rows of closed form against Monte Carlo."""

from collections.abc import Callable, Iterator

from quadmodel.studies._validation import curvature, growth, large_p, mean_field, moments
from quadmodel.studies._validation._rows import Effort, Row

SUITE: tuple[Callable[[Effort], Iterator[Row]], ...] = (
    moments.linear,
    moments.closure,
    moments.floor,
    moments.norms,
    moments.crossing,
    growth.rate,
    growth.edge,
    growth.one_step,
    growth.typical,
    growth.threshold,
    curvature.sharpening,
    curvature.response,
    curvature.conservative,
    large_p.large_p,
    mean_field.mean_field_theory,
)

__all__ = ["SUITE", "Effort", "Row"]
