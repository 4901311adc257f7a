"""One replica of the large-P limit at one step: observables are computed when asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.large_p._finite_width import draw_ntks
from quadmodel.large_p._system import System
from quadmodel.model import clean_eigenvalues
from quadmodel.optimizer import SGD
from quadmodel.theory._inputs import Spectrum
from quadmodel.theory._noise import norm_or_infinity


class Snapshot:
    """Coefficients tau_0, tau_1, ... of a replica, with first data indices as rows."""

    def __init__(
        self,
        system: System,
        sgd: SGD,
        components: list[FloatArray],
        draws: int = 0,
        rng: Callable[[], np.random.Generator] = np.random.default_rng,
    ) -> None:
        """Keep what everything is computed from."""
        self._system, self._sgd, self._components = system, sgd, components
        self._draws, self._rng = draws, rng

    @cached_property
    def residual(self) -> FloatArray:
        """Residual of every data point."""
        system, components = self._system, self._components
        overlap = np.zeros(system.n_indices)
        for tau, higher in itertools.pairwise(components):
            overlap += higher @ tau.reshape(-1)
        moved = system.jacobian @ components[0] + system.curvature_strength * system.mixed(overlap)
        return np.asarray(system.residual + moved)

    @property
    def loss(self) -> float:
        """Mean squared residual over two."""
        return float(self.residual @ self.residual) / (2 * len(self.residual))

    @cached_property
    def _squared_norms(self) -> list[float]:
        """Squared norm of the coefficients of every order."""
        return [float(np.vdot(tau, tau)) for tau in self._components]

    @property
    def squared_distance(self) -> float:
        """Squared norm of the displacement."""
        return sum(self._squared_norms)

    @cached_property
    def ntk(self) -> FloatArray:
        """NTK of the system."""
        system, components = self._system, self._components
        n, q = system.n_indices, system.curvature_strength
        lowest = system.jacobian + q * system.mixed(components[1])
        # Inner products of the Jacobian's rows in the orders above 0, by first data index: what
        # Q creates with itself, what it annihilates with itself, and one with the other.
        products = sum(self._squared_norms[:-1]) * np.eye(n)
        for tau, higher in zip(components[:-2], components[2:], strict=True):
            products += higher @ higher.T
            crossed = (higher.reshape(n * n, -1) @ tau.reshape(-1)).reshape(n, n)
            products += crossed + crossed.T
        gram = lowest @ lowest.T
        gram += q**2 * system.mixed(system.mixed(products).T)
        return np.asarray(gram / len(gram))

    @cached_property
    def _ntks(self) -> FloatArray:
        """NTKs to average over: one, or draws at finite width."""
        system = self._system
        if not self._draws or not system.curvature_strength:
            return self.ntk[None]
        squared_distance = sum(self._squared_norms[:-1])
        moved = self.residual - system.residual
        return draw_ntks(system, self.ntk, squared_distance, moved, self._draws, self._rng())

    @cached_property
    def _eigensystem(self) -> tuple[FloatArray, FloatArray]:
        values, vectors = np.linalg.eigh(self._ntks)
        return _cleaned(values), vectors[:, :, ::-1]

    @cached_property
    def _values(self) -> FloatArray:
        if "_eigensystem" in self.__dict__:
            return self._eigensystem[0]
        return _cleaned(np.asarray(np.linalg.eigvalsh(self._ntks), dtype=np.float64))

    @property
    def ntk_eigenvalue(self) -> FloatArray:
        """NTK eigenvalues, descending."""
        return np.asarray(self._values.mean(axis=0))

    @property
    def ntk_largest_eigenvalue(self) -> float:
        """Largest NTK eigenvalue."""
        return float(self._values[:, 0].mean())

    @property
    def ntk_trace(self) -> float:
        """Sum of the NTK eigenvalues."""
        return float(self._values.sum(axis=1).mean())

    def _norm(self, norm: str) -> float:
        norms = [norm_or_infinity(Spectrum(lam), self._sgd, norm) for lam in self._values]
        return float(np.mean(norms))

    @property
    def noise_kernel_norm(self) -> float:
        """Noise kernel norm, in high dimension."""
        return self._norm("paper")

    @property
    def noise_kernel_norm_finite(self) -> float:
        """Noise kernel norm, at finite size."""
        return self._norm("finite")

    @property
    def noise_kernel_norm_exact(self) -> float:
        """Noise kernel norm, exact."""
        pairs = zip(*self._eigensystem, strict=True)
        return float(np.mean([norm_or_infinity(Spectrum(*p), self._sgd, "exact") for p in pairs]))

    @property
    def residual_overlap(self) -> float:
        """Share of the squared residual along the top eigenvector of the present NTK."""
        along = self._eigensystem[1][:, :, 0] @ self.residual
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.mean(along**2) / np.dot(self.residual, self.residual))


def _cleaned(ascending: FloatArray) -> FloatArray:
    """Return the eigenvalues of every NTK in descending order, rounding noise set to zero."""
    return np.stack([clean_eigenvalues(values[::-1]) for values in ascending])
