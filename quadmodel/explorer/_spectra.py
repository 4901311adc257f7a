"""The spectra that the explorer offers: laws, with a parameter that a slider chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadmodel import spectra
from quadmodel._util.checks import FloatArray

N_DATA = 100
_OUTLIERS = 3


@dataclass(frozen=True)
class Family:
    """Spectra of one kind, normalised to a mean eigenvalue of 1.

    Parameters
    ----------
    name, label, parameter_label : str
        What it and its parameter are called, in Python and for readers.
    values : tuple of float
        Values of the parameter that the slider offers.
    default : float
        The first of them that is shown.
    tabulated : tuple of float
        Those for which edges are tabulated.
    logarithmic : bool
        Whether tables are interpolated in the logarithm of the parameter.
    law : callable
        Law of a parameter, on any scale.
    ratio : callable
        Parameters per data point.
    """

    name: str
    label: str
    parameter_label: str
    values: tuple[float, ...]
    default: float
    tabulated: tuple[float, ...]
    logarithmic: bool
    law: Callable[[float], spectra.SpectralLaw]
    ratio: Callable[[float], float] = lambda _: 2.0

    def n_params(self, parameter: float) -> int:
        """Return the number of parameters P."""
        return round(N_DATA * self.ratio(parameter))

    def eigenvalues(self, parameter: float) -> FloatArray:
        """Return all eigenvalues, descending."""
        found = self.law(parameter).eigenvalues(N_DATA, self.n_params(parameter))
        return np.asarray(found / found.mean())

    def described(self) -> dict[str, Any]:
        """Return what the front end needs."""
        return {
            "name": self.name,
            "label": self.label,
            "parameter_label": self.parameter_label,
            "values": self.values,
            "default": self.default,
            "tabulated": self.tabulated,
            "logarithmic": self.logarithmic,
            # 12 digits: what is drawn and what Python computes agree to them.
            "eigenvalues": [
                [float(f"{value:.12g}") for value in self.eigenvalues(p)] for p in self.values
            ],
        }


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "power-law",
            "power law",
            "Exponent",
            tuple(round(0.1 * k, 1) for k in range(16)),
            0.5,
            (0.0, 0.5, 1.0, 1.5),
            False,
            lambda exponent: spectra.PowerLaw(exponent),
        ),
        Family(
            "marchenko-pastur",
            "Marchenko\N{EN DASH}Pastur",
            "Parameters per data point",
            (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0),
            2.0,
            (1.0, 2.0, 4.0),
            True,
            lambda ratio: spectra.MarchenkoPastur(ratio),
            lambda ratio: ratio,
        ),
        Family(
            "outliers",
            "three outliers above a bulk",
            "Outlier over bulk",
            (2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0),
            10.0,
            (2.0, 10.0, 50.0),
            True,
            lambda value: spectra.Outliers([value] * _OUTLIERS),
        ),
    )
}
