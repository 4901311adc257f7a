"""Laws of the NTK spectrum: eigenvalues of a finite matrix, averages over a limit law."""

from quadmodel.spectra._base import GivenEigenvalues, SpectralLaw
from quadmodel.spectra._finite import IndependentGaussian, Outliers, PowerLaw
from quadmodel.spectra._limits import FromDensity, FromStieltjes, MarchenkoPastur

__all__ = [
    "FromDensity",
    "FromStieltjes",
    "GivenEigenvalues",
    "IndependentGaussian",
    "MarchenkoPastur",
    "Outliers",
    "PowerLaw",
    "SpectralLaw",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)
