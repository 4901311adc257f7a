"""What the front end is given: settings, and spectra with what belongs to them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from quadmodel.explorer._spectra import FAMILIES, N_DATA
from quadmodel.explorer._tables import CURVATURE_STRENGTHS, TABULATED_SIZES, tables

_EQUAL_ROWS = (
    "Where data points are alike (rows of equal size in all modes), exact K is finite K; else it "
    "lies above."
)
# The errors are those that .ci/explorer_tables.py --check has printed.
_ON_TABLE = (
    "Nonlinear edge: interpolated from a table of mean-field theory for plain SGD, two parameters "
    "per data point (Marchenko\N{EN DASH}Pastur: its own ratio). "
)
_ERROR = "At 18 random settings it was off by 1.3 % in the mean, at most 3.5 %."
_ERROR_BEYOND = (
    "For other optimizers and sampling schemes the table\N{RIGHT SINGLE QUOTATION MARK}s share of "
    "their own K = 1 is taken: at 18 random settings it was off by 6 % in the mean, at most 31 %."
)
# tests/explorer/test_panels.py tries it at some settings.
_NO_HOST = (
    "Typical edge: not on this page. For these spectra its prediction does not hold without strong "
    "momentum, unless all eigenvalues are equal, where it is that of K; qm.explore() draws it."
)
_NO_TYPICAL = "Typical edge: its prediction does not hold here."
# What edges and curves of K are functions of.
OF_EDGES = (
    "momentum", "nesterov", "weight_decay", "sampling", "spectrum", "parameter",
    "curvature_strength",
)  # fmt: skip
OF_NORMS = (
    "batch_size", "momentum", "nesterov", "weight_decay", "sampling", "spectrum", "parameter",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the controls set, as the front end starts."""

    learning_rate: float = 0.08
    batch_size: int = 10
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    sampling: str = "without_replacement"
    spectrum: str = "power-law"
    parameter: float = 0.5
    curvature_strength: float = 4.0
    steps: int = 200

    def state(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


def page_source() -> dict[str, Any]:
    """Return the page's spectra, with the table of their nonlinear edges."""
    return {
        "families": [family.described() for family in FAMILIES.values()],
        "n_data": N_DATA,
        "unit": 1.0,
        "residual": 1.0,
        "of_edges": OF_EDGES,
        "of_norms": OF_NORMS,
        "adjustable": True,
        "curved": False,
        "table": {
            "shares": tables(),
            "batch_sizes": TABULATED_SIZES,
            "curvature_strengths": CURVATURE_STRENGTHS,
        },
        "note_on_norms": _EQUAL_ROWS,
        "note_on_table": _ON_TABLE + _ERROR,
        "note_beyond_table": _ON_TABLE + _ERROR_BEYOND,
        "note_on_computed": "Nonlinear edge: mean-field theory of these settings.",
        "note_on_no_host": _NO_HOST,
        "note_on_no_typical": _NO_TYPICAL,
    }
