"""Laws of the initial residual: random, along chosen NTK modes, partly in the null space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_array, as_integer, as_number
from quadmodel._util.display import law_html

__all__ = [
    "AlignedResidual",
    "GaussianResidual",
    "ResidualLaw",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)


class ResidualLaw(ABC):
    """Law of the initial residual, given the eigensystem of the NTK.

    Examples
    --------
    A law of your own has one method; this one starts all data points at 1:

    >>> import numpy as np, quadmodel as qm
    >>> class Ones(qm.residuals.ResidualLaw):
    ...     def sample(self, rng, eigenvalues, eigenvectors):
    ...         return np.ones(len(eigenvalues))
    >>> qm.Ensemble(3, 5, residual=Ones()).sample(seed=0).loss()
    0.5
    """

    def _repr_html_(self) -> str:
        """Show kind and parameters in a notebook."""
        return law_html(self)

    @property
    def needs_modes(self) -> bool:
        """Whether `sample` uses the eigensystem, and not only the number of data points."""
        return True

    @abstractmethod
    def sample(
        self, rng: np.random.Generator, eigenvalues: FloatArray, eigenvectors: FloatArray
    ) -> FloatArray:
        """Draw the residual.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        eigenvalues : ndarray, shape (n_data,)
            Of the NTK, descending; those of the null space are exactly zero.
        eigenvectors : ndarray, shape (n_data, n_data)
            Of the NTK, in columns.

        Returns
        -------
        ndarray, shape (n_data,)
            Residual.

        Raises
        ------
        InputError
            If the law doesn't fit this NTK.
        """

    def mean_mode_energies(self, eigenvalues: FloatArray) -> FloatArray:
        r"""Return the mean squared residual along every mode, :math:`E(v_\alpha^\top z)^2`.

        Parameters
        ----------
        eigenvalues : ndarray, shape (n_data,)
            Of the NTK, descending; those of the null space are exactly zero.

        Returns
        -------
        ndarray, shape (n_data,)
            In units of the squared residual.

        Raises
        ------
        InputError
            If the law doesn't fit this NTK, or does not know them.
        """
        raise InputError(f"residual must know its mean mode energies, got {self!r}")


@dataclass(frozen=True)
class GaussianResidual(ResidualLaw):
    r"""Residual with independent Gaussian entries.

    Parameters
    ----------
    scale : float, optional
        Standard deviation :math:`s \ge 0` of an entry, in units of the residual.
    null_fraction : float, optional
        Part of :math:`|z|^2`, inside [0, 1), in the null space of the NTK, which no change of the
        parameters affects. If left out it is random, on average the share of zero eigenvalues.

    Raises
    ------
    InputError
        If a value lies outside its range; from `sample`, if `null_fraction` is positive and the
        NTK has no null space, as is usual with no fewer parameters than data points.

    Notes
    -----
    With `null_fraction`, the two parts of a Gaussian draw keep their directions and are
    rescaled; :math:`|z|^2` stays as drawn, :math:`Ds^2` on average.

    Examples
    --------
    Half of the squared residual where no parameters reach it:

    >>> import quadmodel as qm
    >>> law = qm.residuals.GaussianResidual(scale=2.0, null_fraction=0.5)
    >>> model = qm.Ensemble(20, 10, residual=law).sample(seed=0)
    >>> eigenvalues, vectors = model.eigensystem
    >>> along = (vectors.T @ model.residual) ** 2
    >>> round(float(along[eigenvalues == 0].sum() / along.sum()), 12)
    0.5
    """

    scale: float = 1.0
    null_fraction: float | None = None

    def __post_init__(self) -> None:
        """Check every field once."""
        object.__setattr__(self, "scale", as_number("scale", self.scale, least=0.0))
        if self.null_fraction is not None:
            object.__setattr__(self, "null_fraction", _as_fraction(self.null_fraction))

    @property
    def needs_modes(self) -> bool:
        """Whether a `null_fraction` is asked for."""
        return self.null_fraction is not None

    def sample(
        self, rng: np.random.Generator, eigenvalues: FloatArray, eigenvectors: FloatArray
    ) -> FloatArray:
        """Draw the residual; see `ResidualLaw.sample`."""
        residual = self.scale * rng.standard_normal(len(eigenvalues))
        if self.null_fraction is None:
            return residual
        null_part = _null_part(residual, eigenvalues, eigenvectors, self.null_fraction)
        norm = float(np.linalg.norm(residual))
        return _mix(residual - null_part, null_part, self.null_fraction, norm)

    def mean_mode_energies(self, eigenvalues: FloatArray) -> FloatArray:
        """Return the same for all modes, or for all of each part with a `null_fraction`."""
        energies = np.full(len(eigenvalues), self.scale**2)
        if self.null_fraction is None:
            return energies
        return _shared_out(energies, eigenvalues, self.null_fraction, energies.sum())


@dataclass(frozen=True)
class AlignedResidual(ResidualLaw):
    r"""Residual along chosen modes of the NTK.

    Parameters
    ----------
    modes : sequence of int
        Indices of the modes, all different; 0 is the mode with the largest eigenvalue. Their
        eigenvalues must not be zero.
    coefficients : array_like, shape (n_modes,), optional
        Components along these modes, in units of `scale`; Gaussian if left out. The sign of an
        eigenvector, and so that of a component, is a convention.
    scale : float, optional
        :math:`s > 0`, in units of the residual.
    null_fraction : float, optional
        Part of :math:`|z|^2`, inside [0, 1), in the null space of the NTK.

    Raises
    ------
    InputError
        If a value lies outside its range; from `sample`, if a mode has eigenvalue zero, or
        `null_fraction` is positive and the NTK has no null space.

    Notes
    -----
    Without `coefficients` the whole residual has :math:`|z|^2 = Ds^2` exactly. With them,
    :math:`v_k^\top z = s\,c_k` exactly, and a part in the null space is added, so that
    :math:`|z|^2 = s^2|c|^2/(1-f)` at `null_fraction` :math:`f`.

    Examples
    --------
    >>> import quadmodel as qm
    >>> law = qm.residuals.AlignedResidual(modes=[0], coefficients=[3.0])
    >>> model = qm.Ensemble(4, 8, [2.0, 1.0, 0.5, 0.25], residual=law).sample(seed=0)
    >>> vectors = model.eigensystem[1]
    >>> abs(vectors.T @ model.residual).round(9)
    array([3., 0., 0., 0.])
    """

    modes: Sequence[int]
    coefficients: Sequence[float] | FloatArray | None = None
    scale: float = 1.0
    null_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Check every field once."""
        put = object.__setattr__  # the dataclass is frozen
        modes = tuple(as_integer("a mode", mode, low=0) for mode in self.modes)
        if not modes or len(set(modes)) < len(modes):
            raise InputError(f"modes must be one or more different numbers, got {modes}")
        put(self, "modes", modes)
        if self.coefficients is not None:
            coefficients = as_array("coefficients", self.coefficients, (len(modes),))
            if not coefficients.any():
                raise InputError("coefficients must not all be zero, got zeros")
            put(self, "coefficients", tuple(coefficients.tolist()))
        put(self, "scale", as_number("scale", self.scale, above=0.0))
        put(self, "null_fraction", _as_fraction(self.null_fraction))

    def sample(
        self, rng: np.random.Generator, eigenvalues: FloatArray, eigenvectors: FloatArray
    ) -> FloatArray:
        """Draw the residual; see `ResidualLaw.sample`."""
        self._check_rank(int(np.count_nonzero(eigenvalues)))
        gaussian = rng.standard_normal(len(self.modes))
        background = rng.standard_normal(len(eigenvalues))
        if self.coefficients is None:
            coefficients, norm = gaussian, self.scale * len(eigenvalues) ** 0.5
        else:
            coefficients = self.scale * np.array(self.coefficients)
            norm = float(np.linalg.norm(coefficients)) / (1.0 - self.null_fraction) ** 0.5
        in_range = eigenvectors[:, list(self.modes)] @ coefficients
        null_part = _null_part(background, eigenvalues, eigenvectors, self.null_fraction)
        return _mix(in_range, null_part, self.null_fraction, norm)

    def mean_mode_energies(self, eigenvalues: FloatArray) -> FloatArray:
        """Return those of the chosen modes, and of the null space."""
        rank = int(np.count_nonzero(eigenvalues))
        self._check_rank(rank)
        energies = np.zeros(len(eigenvalues))
        if self.coefficients is None:
            energies[list(self.modes)] = 1.0
            total = self.scale**2 * len(eigenvalues)
        else:
            energies[list(self.modes)] = (self.scale * np.array(self.coefficients)) ** 2
            total = float(energies.sum()) / (1.0 - self.null_fraction)
        return _shared_out(energies, eigenvalues, self.null_fraction, total)

    def _check_rank(self, rank: int) -> None:
        if max(self.modes) >= rank:
            raise InputError(
                f"modes must be among the {rank} with non-zero eigenvalue, got {max(self.modes)}"
            )


def _as_fraction(value: float) -> float:
    return as_number("null_fraction", value, least=0.0, below=1.0)


def _null_part(
    vector: FloatArray, eigenvalues: FloatArray, eigenvectors: FloatArray, fraction: float
) -> FloatArray:
    """Project on the null space, which must not be empty if `fraction` is positive."""
    null = eigenvectors[:, eigenvalues == 0.0]
    if fraction > 0.0 and null.shape[1] == 0:
        raise InputError(
            f"null_fraction must be 0 where the NTK has no null space, got {fraction:g}: "
            "take fewer parameters than data points"
        )
    if null.shape[1] == len(vector):
        raise InputError("the NTK must not be zero where null_fraction is given, got rank 0")
    return np.asarray(null @ (null.T @ vector))


def _mix(in_range: FloatArray, null: FloatArray, fraction: float, norm: float) -> FloatArray:
    """Rescale both parts so that their sum has `norm` and `null` a `fraction` of its square."""
    mixed = np.zeros_like(in_range)
    for part, share in ((in_range, 1.0 - fraction), (null, fraction)):
        size = float(np.linalg.norm(part))
        if share > 0.0 and size > 0.0:
            mixed += part * (norm * share**0.5 / size)
    return mixed


def _shared_out(
    energies: FloatArray, eigenvalues: FloatArray, fraction: float, total: float
) -> FloatArray:
    """Return energies of sum `total`, a `fraction` of it shared by the modes of the null space."""
    null = eigenvalues == 0.0
    if null.all() or (fraction > 0.0 and not null.any()):
        raise InputError(
            "null_fraction must be 0 where the NTK has no null space or is zero, "
            f"got {fraction:g}: take fewer parameters than data points"
        )
    shared = np.where(null, 0.0, energies)
    shared *= total * (1.0 - fraction) / shared.sum()
    if fraction > 0.0:
        shared[null] = total * fraction / np.count_nonzero(null)
    return shared
