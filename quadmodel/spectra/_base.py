"""Interface of the laws of the NTK spectrum, and the simplest law: given eigenvalues."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.checks import FloatArray, InputError, as_array, as_integer, as_number
from quadmodel._util.display import law_html, numbers_shown
from quadmodel._util.results import checksum

# So many values are shown one by one.
_FEW = 6


class SpectralLaw(ABC):
    r"""Law of the eigenvalues of the NTK :math:`\Theta = JJ^\top/D`.

    Notes
    -----
    Every subclass has `eigenvalues`. One with a limit law :math:`\rho` (the spectrum as the number
    of data points grows) has `edge`, `mean` and `average` too. Any other has the method `law`,
    which returns the law of the eigenvalues of one matrix, with `edge`, `mean` and `average`.

    Examples
    --------
    A law of your own has one method:

    >>> import numpy as np, quadmodel as qm
    >>> class Halving(qm.spectra.SpectralLaw):
    ...     def eigenvalues(self, n_data, n_params):
    ...         return 0.5 ** np.arange(n_data)
    >>> qm.Ensemble(3, 5, Halving()).sample(seed=0).eigensystem[0].round(12)
    array([1.  , 0.5 , 0.25])
    """

    def _repr_html_(self) -> str:
        """Show kind and parameters in a notebook."""
        return law_html(self)

    @abstractmethod
    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        r"""Return the eigenvalues of one matrix, without randomness.

        Parameters
        ----------
        n_data, n_params : int
            Data points :math:`D` and parameters :math:`P`.

        Returns
        -------
        ndarray, shape (n_data,)
            In descending order, at most :math:`\min(D, P)` of them non-zero, in units of
            1 / learning rate. For a continuous law: its quantiles at :math:`(i+1/2)/D`.

        Raises
        ------
        InputError
            If the law doesn't fit these numbers.
        """

    def check_fits(self, n_data: int, n_params: int) -> None:
        """Raise InputError where the law has no eigenvalues for these numbers."""
        self.eigenvalues(n_data, n_params)

    def spelled_out(self) -> str:
        """Return the representation with every parameter in full, as results hold it.

        Returns
        -------
        str
            That of ``repr()``, unless this is shortened.
        """
        return repr(self)

    def sample_eigenvalues(
        self, rng: np.random.Generator, n_data: int, n_params: int
    ) -> FloatArray:
        """Draw the eigenvalues of one matrix; those of `eigenvalues` unless the law is random.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        ndarray, shape (n_data,)
            In descending order, in units of 1 / learning rate.
        """
        return self.eigenvalues(n_data, n_params)

    def law(self, n_data: int, n_params: int) -> SpectralLaw:
        """Return the law to average over: the limit law where there is one.

        Parameters
        ----------
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        SpectralLaw
            A law with `edge`, `mean`, `stieltjes` and `average`; for a law that has no limit,
            the `GivenEigenvalues` of a matrix of this size.
        """
        return GivenEigenvalues(self.eigenvalues(n_data, n_params))

    @property
    def edge(self) -> float:
        """Largest point of the support, in units of 1 / learning rate."""
        raise self._no_limit("edge")

    @property
    def mean(self) -> float:
        r"""Mean eigenvalue :math:`\int\lambda\,d\rho`, in units of 1 / learning rate."""
        raise self._no_limit("mean")

    def average(self, function: Callable[[Any], Any]) -> float:
        r"""Return :math:`\int f(\lambda)\,d\rho(\lambda)`.

        Parameters
        ----------
        function : callable
            :math:`f`, called with one float64 number at a time; smooth on the support.

        Returns
        -------
        float
            The average, to a relative accuracy of about 1e-12.

        Raises
        ------
        InputError
            If the law has neither density nor atoms, or the integral does not converge.
        """
        raise self._no_limit("average")

    def stieltjes(self, x: float) -> float:
        r"""Return the Stieltjes transform :math:`m(x) = \int d\rho(\lambda)/(x-\lambda)`.

        Parameters
        ----------
        x : float
            A point above the edge, in units of 1 / learning rate.

        Returns
        -------
        float
            Positive, in units of the learning rate.

        Raises
        ------
        InputError
            If `x` is not above the edge, or the law has no limit law.
        """
        x = as_number("x", x, above=self.edge)
        return self.average(lambda value: 1.0 / (x - value))

    def _no_limit(self, what: str) -> InputError:
        return InputError(
            f"{what} must be asked of a law with a limit, got {type(self).__name__}, which depends "
            "on the size of the matrix: ask .law(n_data, n_params)"
        )


@dataclass(frozen=True, repr=False)
class GivenEigenvalues(SpectralLaw):
    r"""All :math:`D` eigenvalues, given one by one.

    Parameters
    ----------
    values : array_like, shape (n_data,)
        Non-negative, in any order (kept in descending order); in units of 1 / learning rate.

    Raises
    ------
    InputError
        If a value is negative or not finite.

    Notes
    -----
    As a law: an atom of weight :math:`1/D` at every value.

    Examples
    --------
    >>> import quadmodel as qm
    >>> law = qm.spectra.GivenEigenvalues([0.5, 2.0, 1.0])
    >>> law.edge, law.eigenvalues(n_data=3, n_params=8)
    (2.0, array([2. , 1. , 0.5]))
    """

    values: Sequence[float] | FloatArray

    def __post_init__(self) -> None:
        """Check the values once and sort them."""
        object.__setattr__(self, "values", descending("values", self.values))

    def __repr__(self) -> str:
        """Show few values, or count, range and checksum of many."""
        return f"GivenEigenvalues(values={values_shown(self.values)})"

    def spelled_out(self) -> str:
        """Return the representation with every value; see `SpectralLaw.spelled_out`."""
        return f"GivenEigenvalues(values={self.values!r})"

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return the values; see `SpectralLaw.eigenvalues`."""
        if len(self.values) != n_data:
            raise InputError(f"values must hold n_data={n_data} numbers, got {len(self.values)}")
        values = np.array(self.values)
        return padded(values[values > 0.0], n_data, n_params)

    @property
    def edge(self) -> float:
        """Largest value."""
        return float(self.values[0])

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return self.average(float)

    def average(self, function: Callable[[Any], Any]) -> float:
        """Return the mean of `function` over the values; see `SpectralLaw.average`."""
        return math.fsum(function(value) for value in np.array(self.values)) / len(self.values)


def descending(name: str, values: ArrayLike) -> tuple[float, ...]:
    """Return non-negative numbers in descending order."""
    array = as_array(name, values, (None,))
    if array.min() < 0.0:
        raise InputError(f"{name} must not be negative, got {array.min():.6g}")
    return tuple(np.sort(array)[::-1].tolist())


def values_shown(values: Sequence[float] | FloatArray) -> str:
    """Return few numbers in full; count, range and checksum of many."""
    if len(values) <= _FEW:
        return repr(tuple(values))
    return f"{numbers_shown(values)[:-1]}, sha256 {checksum(np.asarray(values))}>"


def padded(nonzero: FloatArray, n_data: int, n_params: int) -> FloatArray:
    """Fill up with zeros to n_data eigenvalues, of which min(n_data, n_params) may be others."""
    rank = min(as_integer("n_data", n_data), as_integer("n_params", n_params))
    if len(nonzero) > rank:
        raise InputError(
            f"non-zero eigenvalues must be at most min(n_data={n_data}, n_params={n_params}), "
            f"got {len(nonzero)}"
        )
    eigenvalues = np.zeros(n_data)
    eigenvalues[: len(nonzero)] = nonzero
    return eigenvalues


def function_name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
