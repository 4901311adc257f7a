"""Spectra that belong to matrices of one size: power law, outliers, Gaussian Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quadmodel._util.checks import FloatArray, as_number
from quadmodel.spectra._base import SpectralLaw, descending, padded, values_shown
from quadmodel.spectra._limits import MarchenkoPastur


@dataclass(frozen=True)
class PowerLaw(SpectralLaw):
    r"""Eigenvalues :math:`\lambda_k = c\,k^{-\alpha}`, :math:`k = 1 \ldots \min(D, P)`.

    Parameters
    ----------
    exponent : float, optional
        :math:`\alpha \ge 0`.
    scale : float, optional
        :math:`c > 0`, the largest eigenvalue, in units of 1 / learning rate.

    Raises
    ------
    InputError
        If a value lies outside its range.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.spectra.PowerLaw(exponent=1.0, scale=6.0).eigenvalues(n_data=4, n_params=3)
    array([6., 3., 2., 0.])
    """

    exponent: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check every field once."""
        object.__setattr__(self, "exponent", as_number("exponent", self.exponent, least=0.0))
        object.__setattr__(self, "scale", as_number("scale", self.scale, above=0.0))

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return the power law; see `SpectralLaw.eigenvalues`."""
        k = np.arange(1.0, min(n_data, n_params) + 1.0)
        return padded(self.scale * k**-self.exponent, n_data, n_params)


@dataclass(frozen=True, repr=False)
class Outliers(SpectralLaw):
    """A few large eigenvalues above a bulk of equal ones.

    Parameters
    ----------
    values : array_like, shape (n_outliers,)
        The outliers, none below `bulk`; in units of 1 / learning rate.
    bulk : float, optional
        All other eigenvalues, non-negative, in units of 1 / learning rate.

    Raises
    ------
    InputError
        If a value is not finite, or `bulk` is negative or above an outlier.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.spectra.Outliers([9.0, 4.0], bulk=1.0).eigenvalues(n_data=5, n_params=8)
    array([9., 4., 1., 1., 1.])
    """

    values: Sequence[float] | FloatArray
    bulk: float = 1.0

    def __post_init__(self) -> None:
        """Check every field once and sort the outliers."""
        values = descending("values", self.values)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "bulk", as_number("bulk", self.bulk, least=0.0, most=values[-1]))

    def __repr__(self) -> str:
        """Show few values, or count, range and checksum of many."""
        return f"Outliers(values={values_shown(self.values)}, bulk={self.bulk})"

    def spelled_out(self) -> str:
        """Return the representation with every value; see `SpectralLaw.spelled_out`."""
        return f"Outliers(values={self.values!r}, bulk={self.bulk})"

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return outliers and bulk; see `SpectralLaw.eigenvalues`."""
        in_bulk = max(min(n_data, n_params) - len(self.values), 0)
        return padded(np.array([*self.values, *[self.bulk] * in_bulk]), n_data, n_params)


@dataclass(frozen=True)
class IndependentGaussian(SpectralLaw):
    r"""Spectrum of a Jacobian with independent Gaussian entries.

    Parameters
    ----------
    scale : float, optional
        Standard deviation :math:`\sigma > 0` of an entry, in units of the Jacobian.

    Raises
    ------
    InputError
        If `scale` is not positive.

    Notes
    -----
    `sample_eigenvalues` draws the matrix. `law` is the `MarchenkoPastur` law with ratio
    :math:`P/D`, and `eigenvalues` are its quantiles.

    Examples
    --------
    >>> import quadmodel as qm
    >>> law = qm.spectra.IndependentGaussian()
    >>> law.law(n_data=100, n_params=400)
    MarchenkoPastur(ratio=4.0, scale=1.0)
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the field once."""
        object.__setattr__(self, "scale", as_number("scale", self.scale, above=0.0))

    def law(self, n_data: int, n_params: int) -> MarchenkoPastur:
        """Return the limit law at this shape; see `SpectralLaw.law`."""
        return MarchenkoPastur(n_params / n_data, self.scale)

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return quantiles of the limit law; see `SpectralLaw.eigenvalues`."""
        return self.law(n_data, n_params).eigenvalues(n_data, n_params)

    def check_fits(self, n_data: int, n_params: int) -> None:
        """Accept all: any shape has independent entries."""

    def sample_eigenvalues(
        self, rng: np.random.Generator, n_data: int, n_params: int
    ) -> FloatArray:
        """Draw a Jacobian and return its eigenvalues; see `SpectralLaw.sample_eigenvalues`."""
        singular = np.linalg.svd(self.sample_jacobian(rng, n_data, n_params), compute_uv=False)
        return padded(np.asarray(singular**2 / n_data), n_data, n_params)

    def sample_jacobian(self, rng: np.random.Generator, n_data: int, n_params: int) -> FloatArray:
        """Draw a Jacobian.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        ndarray, shape (n_data, n_params)
            Independent entries.
        """
        jacobian = rng.standard_normal((n_data, n_params))
        jacobian *= self.scale
        return jacobian
