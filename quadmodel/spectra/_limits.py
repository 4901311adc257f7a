"""Spectra in infinite dimension: Marchenko-Pastur, a density, a Stieltjes transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_array, as_number
from quadmodel.spectra._base import SpectralLaw, function_name, padded

_GRID = 2**16  # angles in the cumulative sum of a density; quantiles are then good to about 1e-8


class _ContinuousLaw(SpectralLaw):
    r"""A density on an interval, and possibly an atom at zero.

    Integrals run over the angle :math:`\varphi` in
    :math:`\lambda = a + (b-a)\cos^2(\varphi/2)`: a square root or inverse square root of the
    density at an edge of the support is smooth in :math:`\varphi`.
    """

    _atom = 0.0  # weight of the eigenvalue zero

    @property
    def _interval(self) -> tuple[float, float]:
        raise NotImplementedError

    def _angular_density(self, angle: FloatArray) -> FloatArray:
        """Density times dlambda/dangle, inside (0, pi)."""
        raise NotImplementedError

    def _breaks(self) -> list[float]:
        """Angles where the angular density turns sharply."""
        return []

    def _position(self, angle: FloatArray) -> FloatArray:
        lower, upper = self._interval
        position: FloatArray = lower + (upper - lower) * np.cos(0.5 * angle) ** 2
        return position

    @property
    def edge(self) -> float:
        """Upper end of the support."""
        return self._interval[1]

    def law(self, n_data: int, n_params: int) -> SpectralLaw:
        """Return the law itself; see `SpectralLaw.law`."""
        return self

    def average(self, function: Callable[[Any], Any]) -> float:
        """Integrate by adaptive quadrature; see `SpectralLaw.average`."""
        from scipy.integrate import quad

        def integrand(angle: float) -> float:
            at = np.array([angle])
            return float(function(self._position(at)[0]) * self._angular_density(at)[0])

        size = max(abs(integrand(angle)) for angle in np.linspace(0.0, math.pi, 17)[1:-1])
        integral, error, *_ = quad(
            integrand, 0.0, math.pi, points=self._breaks() or None, limit=400,
            epsabs=1e-15 * size, epsrel=1e-13, full_output=True,
        )  # fmt: skip
        if not error <= 1e-9 * max(abs(integral), size):
            raise InputError(
                f"function must be smooth on the support {self._interval}, "
                f"got the integral {integral:.6g} with error {error:.2g}"
            )
        return float(integral) + (self._atom * float(function(np.float64())) if self._atom else 0.0)

    def _quantiles(self, n_data: int, count: int) -> FloatArray:
        """Largest `count` of the quantiles at (i + 1/2)/n_data, from the top."""
        half = 0.5 * math.pi / _GRID
        middle = np.linspace(half, math.pi - half, _GRID)
        mass = np.append(0.0, np.cumsum(self._angular_density(middle)))
        mass *= (1.0 - self._atom) / mass[-1]
        wanted = (np.arange(count) + 0.5) / n_data
        return self._position(np.interp(wanted, mass, np.linspace(0.0, math.pi, _GRID + 1)))


@dataclass(frozen=True)
class MarchenkoPastur(_ContinuousLaw):
    r"""Limit spectrum of a Jacobian with independent entries of finite variance.

    Parameters
    ----------
    ratio : float
        :math:`r = P/D > 0`, held as both grow.
    scale : float, optional
        Standard deviation :math:`\sigma > 0` of an entry, in units of the Jacobian.

    Raises
    ------
    InputError
        If a value is not positive; from `eigenvalues`, if `ratio` is not `n_params / n_data`.

    Notes
    -----
    Support :math:`[a, b] = \sigma^2(\sqrt r \mp 1)^2`, mean :math:`\sigma^2 r`, an atom of
    weight :math:`1 - r` at zero if :math:`r < 1`, and

    .. math:: \rho(\lambda) = \frac{\sqrt{(b-\lambda)(\lambda-a)}}{2\pi\sigma^2\lambda},\quad
              m(x) = \frac{2}{x - \sigma^2(r-1) + \sqrt{(x-a)(x-b)}}

    References
    ----------
    .. [1] V. Marchenko, L. Pastur, Math. USSR-Sbornik 1 (1967) 457.

    Examples
    --------
    >>> from quadmodel.spectra import MarchenkoPastur
    >>> law = MarchenkoPastur(ratio=4.0)
    >>> law.edge, law.mean
    (9.0, 4.0)
    >>> round(law.average(lambda value: value**2), 12)
    20.0
    """

    ratio: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check every field once."""
        object.__setattr__(self, "ratio", as_number("ratio", self.ratio, above=0.0))
        object.__setattr__(self, "scale", as_number("scale", self.scale, above=0.0))
        object.__setattr__(self, "_atom", max(1.0 - self.ratio, 0.0))

    @property
    def _interval(self) -> tuple[float, float]:
        root = math.sqrt(self.ratio)
        return (self.scale * (root - 1.0)) ** 2, (self.scale * (root + 1.0)) ** 2

    def _angular_density(self, angle: FloatArray) -> FloatArray:
        # The half-angle form of radius^2 sin^2 / lambda stays finite for ratio 1 at lambda = 0.
        lower, upper = self._interval
        sine, cosine = np.sin(0.5 * angle), np.cos(0.5 * angle)
        shape = (sine * cosine) ** 2 / (lower + (upper - lower) * cosine**2)
        density: FloatArray = (upper - lower) ** 2 / (2.0 * math.pi * self.scale**2) * shape
        return density

    def _breaks(self) -> list[float]:
        # Near ratio 1 the angular density dips at lambda = a within this width, which the nodes
        # of a quadrature could step over.
        width = abs(math.sqrt(self.ratio) - 1.0) / self.ratio**0.25
        distances = [width * 10.0**k for k in range(17)] if width else []
        return [math.pi - distance for distance in distances if distance < 1.0]

    @property
    def mean(self) -> float:
        """Mean eigenvalue, the variance of an entry times the ratio."""
        return self.scale**2 * self.ratio

    def stieltjes(self, x: float) -> float:
        """Return the closed form; see `SpectralLaw.stieltjes`."""
        x = as_number("x", x, above=self.edge)
        lower, upper = self._interval
        root = math.sqrt((x - lower) * (x - upper))
        return 2.0 / (x - self.scale**2 * (self.ratio - 1.0) + root)

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return quantiles; see `SpectralLaw.eigenvalues`."""
        if not math.isclose(self.ratio * n_data, n_params, rel_tol=1e-9):
            raise InputError(
                f"ratio must be n_params/n_data={n_params / n_data:g}, got {self.ratio:g}"
            )
        return padded(self._quantiles(n_data, min(n_data, n_params)), n_data, n_params)


@dataclass(frozen=True, repr=False)
class FromDensity(_ContinuousLaw):
    r"""A law with a given density.

    Parameters
    ----------
    density : callable
        :math:`\rho(\lambda)`, elementwise on arrays, in units of the learning rate.
    support : tuple of float
        :math:`(a, b)` with :math:`0 \le a < b`, in units of 1 / learning rate. The density is
        evaluated inside only.

    Raises
    ------
    InputError
        If the density is negative, or integrates to 1 with an error above 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> from quadmodel.spectra import FromDensity
    >>> FromDensity(lambda x: np.sqrt(x * (4 - x)) / (2 * np.pi), support=(0, 4)).mean
    2.0
    """

    density: Callable[[FloatArray], FloatArray]
    support: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the density once."""
        lower, upper = as_array("support", self.support, (2,)).tolist()
        upper = as_number("the upper end of support", upper, above=max(lower, 0.0))
        lower = as_number("the lower end of support", lower, least=0.0)
        object.__setattr__(self, "support", (lower, upper))
        if not callable(self.density):
            raise InputError(f"density must be a function, got {self.density!r}")
        points = self._position(np.linspace(0.001, math.pi - 0.001, 1000))
        values = as_array("the density on its support", self.density(points), (1000,))
        if values.min() < 0.0:
            raise InputError(f"density must not be negative, got {values.min():.4g}")
        total = self.average(lambda _: 1.0)
        if abs(total - 1.0) > 1e-6:
            raise InputError(f"density must integrate to 1 on {self.support}, got {total:.8g}")

    def __repr__(self) -> str:
        """Show the function by its name: an address says nothing."""
        return f"FromDensity({function_name(self.density)}, support={self.support})"

    @property
    def _interval(self) -> tuple[float, float]:
        return self.support

    def _angular_density(self, angle: FloatArray) -> FloatArray:
        radius = 0.5 * (self.support[1] - self.support[0])
        density: FloatArray = self.density(self._position(angle)) * radius * np.sin(angle)
        return density

    @property
    def mean(self) -> float:
        """Mean eigenvalue, by quadrature."""
        return self.average(float)

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Return quantiles; see `SpectralLaw.eigenvalues`."""
        return padded(self._quantiles(n_data, n_data), n_data, n_params)


@dataclass(frozen=True, init=False, repr=False)
class FromStieltjes(SpectralLaw):
    r"""A limit law known by its Stieltjes transform only; it has no `eigenvalues` or `average`.

    Parameters
    ----------
    transform : callable
        :math:`m(x) = \int d\rho(\lambda)/(x-\lambda)` for a float above `edge`, positive.
    edge, mean : float
        Largest point of the support and mean eigenvalue, in units of 1 / learning rate.

    Raises
    ------
    InputError
        If no law on [0, edge] with this mean has this transform at twice the edge.

    Notes
    -----
    The check is Jensen's inequality and its converse:
    :math:`1/(x-\bar\lambda) \le m(x) \le (1-\bar\lambda/e)/x + (\bar\lambda/e)/(x-e)`.

    Examples
    --------
    >>> import math, quadmodel as qm
    >>> def semicircle(x):  # on [0, 4]
    ...     return (x - 2 - math.sqrt(x * (x - 4))) / 2
    >>> law = qm.spectra.FromStieltjes(semicircle, edge=4.0, mean=2.0)
    >>> sgd = qm.SGD(learning_rate=0.1, batch_size=10)
    >>> round(qm.noise_kernel_norm(law, sgd, norm="paper", n_data=100), 3)
    1.031
    """

    transform: Callable[[float], float]
    _edge: float
    _mean: float

    def __init__(self, transform: Callable[[float], float], edge: float, mean: float) -> None:
        """Check every field once."""
        if not callable(transform):
            raise InputError(f"transform must be a function, got {transform!r}")
        edge = as_number("edge", edge, above=0.0)
        mean = as_number("mean", mean, above=0.0, most=edge)
        value = as_number("transform(2*edge)", transform(2.0 * edge))
        least, most = 1.0 / (2.0 * edge - mean), (1.0 + mean / edge) / (2.0 * edge)
        if not least * (1.0 - 1e-9) <= value <= most * (1.0 + 1e-9):
            raise InputError(
                f"transform(2*edge) must lie between {least:.6g} and {most:.6g} "
                f"for edge {edge:g} and mean {mean:g}, got {value:.6g}"
            )
        object.__setattr__(self, "transform", transform)
        object.__setattr__(self, "_edge", edge)
        object.__setattr__(self, "_mean", mean)

    def __repr__(self) -> str:
        """Show the function by its name: an address says nothing."""
        return f"FromStieltjes({function_name(self.transform)}, edge={self.edge}, mean={self.mean})"

    @property
    def edge(self) -> float:
        """Largest point of the support."""
        return self._edge

    @property
    def mean(self) -> float:
        """Mean eigenvalue."""
        return self._mean

    def law(self, n_data: int, n_params: int) -> SpectralLaw:
        """Return the law itself; see `SpectralLaw.law`."""
        return self

    def average(self, function: Callable[[Any], Any]) -> float:
        """Refuse: see `SpectralLaw.average`."""
        raise InputError("average must be asked of a law with a density, got FromStieltjes")

    def stieltjes(self, x: float) -> float:
        """Return the given transform; see `SpectralLaw.stieltjes`."""
        return float(self.transform(as_number("x", x, above=self.edge)))

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Refuse: see `SpectralLaw.eigenvalues`."""
        raise InputError("eigenvalues must be asked of a law with a density, got FromStieltjes")
