"""Spectrum of a known matrix plus independent noise: what the NTK becomes along training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_number
from quadmodel.spectra import SpectralLaw

_STEPS = 60
# Half the height of a contour in the logarithm of the eigenvalue, below pi.
_LOG_HEIGHT = 1.5
# Where a density is asked for, the height above the axis falls by so much at a time.
_DESCENT = 0.4
# Points of a round that looks for the edge, and the relative width at which it ends.
_SECTIONS, _ROUNDS, _EDGE = 32, 12, 1e-8


class _Solution(NamedTuple):
    """Solution of the equations at several points; `found` where Newton's steps ended."""

    resolvent: np.ndarray  # (points, bins)
    found: np.ndarray
    a: np.ndarray  # (points, 1)
    p: np.ndarray


@dataclass(frozen=True, eq=False)
class InformationPlusNoise(SpectralLaw):
    r"""Limit spectrum of :math:`(A+R)(A+R)^\top/D`, R of independent rows of noise.

    Parameters
    ----------
    lam, weight, over_data : ndarray, shape (n_bins,)
        Eigenvalues of :math:`AA^\top/D`, their shares, and the noise variance of a row of R along
        each eigenvector, of mean 1.
    noise : float
        Mean of the trace that R adds to an eigenvalue, in units of the eigenvalues.
    density : float
        D/P.

    Notes
    -----
    With :math:`T_\alpha` the mean resolvent :math:`1/(\Theta - x)` along a mode, :math:`e` the
    noise, :math:`\delta = D/P` and means over the modes,

    .. math:: T = \frac{1}{pc + \lambda/a - x},\quad a = 1 + e\delta\,\langle cT\rangle,\quad
              p = e\left[\delta\left\langle\frac{x-pc}{a(x-pc)-\lambda}\right\rangle
              + \frac{1-\delta}{a}\right]

    For :math:`\delta = 0` noise shifts every eigenvalue by :math:`ec`.

    References
    ----------
    .. [1] W. Hachem, P. Loubaton, J. Najim, math/0507172, theorem 2.4 (the equations);
       derivations/09-mean-field.md.
    """

    lam: FloatArray
    weight: FloatArray
    over_data: FloatArray
    noise: float
    density: float
    # Functions to be averaged are analytic in the strip between these eigenvalues.
    analytic_above: float = -np.inf
    analytic_below: float = np.inf

    def eigenvalues(self, n_data: int, n_params: int) -> FloatArray:
        """Refuse: nothing here needs quantiles."""
        raise InputError("eigenvalues must be asked of another law, this one has none")

    @property
    def mean(self) -> float:
        """Mean eigenvalue."""
        return float(self.weight @ self.lam) + self.noise

    @cached_property
    def edge(self) -> float:
        """Largest point of the support: where the equations cease to have a real solution."""
        low = float(np.max(self.lam))
        if self.noise == 0:
            return low
        if self.density == 0:
            return float(np.max(self.lam + self.noise * self.over_data))
        reach = np.sqrt(self.noise * np.max(self.over_data)) * (1 + np.sqrt(self.density))
        high = 1.01 * float(np.sqrt(low) + reach) ** 2
        for _ in range(_ROUNDS):
            points = np.linspace(low, high, _SECTIONS + 2)
            inside = ~self._solve(points[1:]).found
            last = int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0
            if last == _SECTIONS + 1:
                return np.nan
            low, high = float(points[last]), float(points[last + 1])
            if high - low < _EDGE * high:
                break
        return high

    def analytic_between(self, left: float, right: float) -> InformationPlusNoise:
        """Return this law for averages of functions that have their first poles there."""
        law = replace(self, analytic_above=left, analytic_below=right)
        law.__dict__["edge"] = self.edge  # not to be looked for again
        return law

    def stieltjes(self, x: float) -> float:
        """Return the mean of 1/(x - lambda) above the edge; see `SpectralLaw.stieltjes`."""
        x = as_number("x", x, above=self.edge)
        return float(-(self._solve(np.array([x])).resolvent @ self.weight)[0])

    def average(self, function: Callable[[Any], Any]) -> float:
        r"""Return the mean of an analytic function.

        Notes
        -----
        :math:`\frac{1}{2\pi i}\oint f(x)\,m(x)\,dx` along an ellipse around the support, by the
        trapezoidal rule, which converges geometrically. Where a pole at -w is near on the left, the
        ellipse is one of :math:`\log(x+w)`.
        """
        before, count = np.nan, 64
        while True:
            x, slope = self._contour(2 * np.pi * (np.arange(count) + 0.5) / count)
            m = -(self._solve(x).resolvent @ self.weight)
            found = float(np.mean(function(x) * m * slope / 1j).real)
            if abs(found - before) <= 1e-9 * abs(found) or count > 2000:
                return found
            before, count = found, 2 * count

    def _contour(self, angle: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """Return points around the support and, but no pole, and their derivative by the angle."""
        edge, pole = self.edge, -self.analytic_above
        left = -0.05 * edge
        right = edge + 0.5 * min(self.analytic_below - edge, edge)
        near = pole < -4 * left
        height = _LOG_HEIGHT if near else 0.5 * edge
        if near:
            left, right = np.log(pole) - 1, np.log(right + pole)
        centre, width = 0.5 * (left + right), 0.5 * (right - left)
        x = centre + width * np.cos(angle) + 1j * height * np.sin(angle)
        slope = -width * np.sin(angle) + 1j * height * np.cos(angle)
        return (np.exp(x) - pole, np.exp(x) * slope) if near else (x, slope)

    def smoothed_density(self, x: FloatArray, width: float) -> FloatArray:
        r"""Return the density at `x`, smoothed by a Cauchy law of half width `width`.

        Notes
        -----
        :math:`\operatorname{Im} m(x+iw)/\pi`: the mean over eigenvalues of
        :math:`(w/\pi)/((x-\lambda)^2+w^2)`. Solved far above the axis first, then nearer and nearer
        from the solution before.
        """
        height, found = max(self.edge, width), None
        while True:
            found = self._solve(x + 1j * height, found)
            if height == width:
                return np.asarray((found.resolvent @ self.weight).imag / np.pi)
            height = max(_DESCENT * height, width)

    def _solve(self, x: np.ndarray, near: _Solution | None = None) -> _Solution:
        """Solve at points outside the support, by Newton's steps from the noise-free solution.

        Right of the support the steps rise monotonically to the physical solution. At complex
        points they start from the solution `near` them, if there is one.
        """
        x = np.asarray(x)[:, None]
        lam, c, w, e, delta = self.lam, self.over_data, self.weight, self.noise, self.density
        complex_valued = np.iscomplexobj(x)
        a = np.ones_like(x, dtype=complex if complex_valued else float)
        p = np.zeros_like(a)
        if near is not None:
            a, p = near.a, near.p
        elif complex_valued:  # far from the axis the iteration contracts
            for _ in range(20):
                resolvent = 1 / (p * c + lam / a - x)
                a, p = self._iterate(x, a, p, resolvent)
        small = np.zeros(x.shape[0], bool)
        left = np.zeros(x.shape[0], bool)  # points where no solution is right of the support
        with np.errstate(all="ignore"):
            for _ in range(_STEPS):
                moved = x - p * c
                below = a * moved - lam
                inverse = 1 / below
                square = inverse**2
                first = a - 1 + e * delta * a * ((inverse * c) @ w)[:, None]
                second = p - e * (delta * ((moved * inverse) @ w)[:, None] + (1 - delta) / a)
                diagonal = 1 - e * delta * ((square * (c * lam)) @ w)[:, None]
                upper = e * delta * a**2 * ((square * c**2) @ w)[:, None]
                lower = e * (delta * ((square * moved**2) @ w)[:, None] + (1 - delta) / a**2)
                determinant = diagonal**2 - upper * lower
                if not complex_valued:
                    outside = (determinant > 0) & (a > 0) & (below > 0).all(axis=1, keepdims=True)
                    left |= ~outside[:, 0]
                step_a = (diagonal * first - upper * second) / determinant
                step_p = (diagonal * second - lower * first) / determinant
                a, p = a - step_a, p - step_p
                small = (np.abs(step_a) <= 1e-11) & (np.abs(step_p) <= 1e-11 * np.abs(x))
                small = small[:, 0]
                if (small | left).all():
                    break
            resolvent = 1 / (p * c + lam / a - x)
        return _Solution(resolvent, small & ~left, a, p)

    def _iterate(
        self, x: np.ndarray, a: np.ndarray, p: np.ndarray, resolvent: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return both unknowns once more, from the resolvent that they give."""
        c, w, e, delta = self.over_data, self.weight, self.noise, self.density
        following = 1 + e * delta * (resolvent @ (w * c))[:, None]
        shares = -((x - p * c) * resolvent / a) @ w
        return following, e * (delta * shares[:, None] + (1 - delta) / a)
