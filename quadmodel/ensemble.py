"""Ensemble: random statistics of Jacobian, curvature and residual, from which models are drawn."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_integer,
    as_number,
    check_memory,
    shown,
)
from quadmodel._util.display import bytes_shown, cut, html_table
from quadmodel.laws.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.laws.eigenvectors import EigenvectorLaw, Haar, haar_frame
from quadmodel.laws.residuals import GaussianResidual, ResidualLaw
from quadmodel.model import QuadraticModel, ntk_eigensystem
from quadmodel.spectra import GivenEigenvalues, IndependentGaussian, SpectralLaw


@dataclass(frozen=True, repr=False)
class Ensemble:
    r"""A family of random quadratic models.

    Parameters
    ----------
    n_data, n_params : int
        Data points :math:`D` and parameters :math:`P`.
    jacobian : SpectralLaw or array_like of shape (n_data,), optional
        Law of the NTK eigenvalues; an array is short for ``GivenEigenvalues(array)``.
    eigenvectors : EigenvectorLaw, optional
        Law of the NTK eigenvectors; ``Haar()`` if left out.
    curvature : CurvatureLaw or float, optional
        Law of the curvature; a number is short for ``IndependentCurvature(number)``, and None or
        0 makes the models linear.
    residual : ResidualLaw or float, optional
        Law of the initial residual; a number is short for ``GaussianResidual(number)``.

    Raises
    ------
    InputError
        If a value is of the wrong kind, or a law doesn't fit `n_data` and `n_params`.

    Notes
    -----
    .. math:: J = \sqrt D\, V\, \mathrm{diag}(\sqrt\lambda)\, U^\top

    with eigenvalues :math:`\lambda` and eigenvectors :math:`V` from their laws and :math:`U` a
    Haar-distributed :math:`P \times \min(D, P)` frame. Each of the four parts has its own random
    stream: a change of one law leaves the draws of the others as they were.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.

    Examples
    --------
    >>> import quadmodel as qm
    >>> ensemble = qm.Ensemble(4, 8, jacobian=[2.0, 1.0, 0.5, 0.25], curvature=0.05)
    >>> model = ensemble.sample(seed=0)
    >>> model.eigensystem[0].round(12)
    array([2.  , 1.  , 0.5 , 0.25])
    """

    n_data: int
    n_params: int
    jacobian: SpectralLaw | Sequence[float] | FloatArray = field(
        default_factory=IndependentGaussian
    )
    eigenvectors: EigenvectorLaw | None = None
    curvature: CurvatureLaw | float | None = None
    residual: ResidualLaw | float = 1.0

    def __post_init__(self) -> None:
        """Check every field once and write shorthands out."""
        put = object.__setattr__  # the dataclass is frozen
        put(self, "n_data", as_integer("n_data", self.n_data))
        put(self, "n_params", as_integer("n_params", self.n_params))
        if not (self.eigenvectors is None or isinstance(self.eigenvectors, EigenvectorLaw)):
            raise InputError(
                f"eigenvectors must be an EigenvectorLaw, got {shown(self.eigenvectors)}"
            )
        jacobian, curvature = _as_spectrum(self.jacobian), _as_curvature(self.curvature)
        put(self, "jacobian", jacobian)
        put(self, "curvature", curvature)
        put(self, "residual", _as_residual(self.residual))
        check_memory(f"a spectrum of n_data={self.n_data}", 24.0 * self.n_data)
        jacobian.check_fits(self.n_data, self.n_params)
        if curvature is not None:
            curvature.nbytes(self.n_data, self.n_params)

    @property
    def nbytes(self) -> int:
        """Bytes of one model."""
        curvature = _as_curvature(self.curvature)
        held = 0 if curvature is None else curvature.nbytes(self.n_data, self.n_params)
        return 8 * self.n_data * (1 + self.n_params) + held

    def sample(self, seed: int) -> QuadraticModel:
        """Draw a model.

        Parameters
        ----------
        seed : int
            Not negative; the same seed gives the same model.

        Returns
        -------
        QuadraticModel
            The model.

        Raises
        ------
        InputError
            If `seed` is not a non-negative integer, or a law doesn't fit the model.
        MemoryError
            If the model is larger than the free memory; nothing has been drawn then.
        """
        seed = as_integer("seed", seed, low=0)
        check_memory(f"a model of {self!r}", self.nbytes)
        streams = [np.random.SeedSequence(seed, spawn_key=(part,)) for part in range(4)]
        rngs = [np.random.Generator(np.random.PCG64(stream)) for stream in streams]

        jacobian, modes = self._sample_jacobian(rngs[0], rngs[1])
        residual = _as_residual(self.residual)
        if modes is None and residual.needs_modes:
            modes = ntk_eigensystem(jacobian @ jacobian.T / self.n_data)
        if modes is None:
            modes = np.full(self.n_data, np.nan), np.empty((self.n_data, 0))  # not used
        z = residual.sample(rngs[3], *modes)
        curvature = _as_curvature(self.curvature)
        q = None if curvature is None else curvature.sample(rngs[2], self.n_data, self.n_params)
        return QuadraticModel(z, jacobian, q, curvature)

    def _sample_jacobian(
        self, rng: np.random.Generator, rng_vectors: np.random.Generator
    ) -> tuple[FloatArray, tuple[FloatArray, FloatArray] | None]:
        """Draw the Jacobian, with the eigensystem of its NTK where that is known."""
        law = _as_spectrum(self.jacobian)
        if isinstance(law, IndependentGaussian) and self.eigenvectors is None:
            return law.sample_jacobian(rng, self.n_data, self.n_params), None
        left = (self.eigenvectors or Haar()).sample(rng_vectors, self.n_data)
        eigenvalues = law.sample_eigenvalues(rng, self.n_data, self.n_params)
        rank = min(self.n_data, self.n_params)
        right = haar_frame(rng, self.n_params, rank)
        jacobian = (left[:, :rank] * np.sqrt(self.n_data * eigenvalues[:rank])) @ right.T
        return jacobian, (eigenvalues, left)

    def spec(self) -> dict[str, Any]:
        """Return the fields as a dictionary that NetCDF attributes can hold.

        Returns
        -------
        dict
            Numbers, and laws as text; matrices and functions in a law by checksum and name.
        """
        return {
            "n_data": self.n_data,
            "n_params": self.n_params,
            "jacobian": _as_spectrum(self.jacobian).spelled_out(),
            "eigenvectors": repr(self.eigenvectors or Haar()),
            "curvature": repr(self.curvature),
            "residual": repr(self.residual),
        }

    def __repr__(self) -> str:
        """Show every field, long ones cut."""
        shown = self.spec() | {"jacobian": repr(self.jacobian)}
        fields = (f"{name}={cut(str(value))}" for name, value in shown.items())
        return f"Ensemble({', '.join(fields)})"

    def _repr_html_(self) -> str:
        """Show numbers, laws and the bytes of a model in a notebook."""
        spec = self.spec()
        return html_table(
            "Ensemble of quadratic models",
            {
                "data points": f"{self.n_data:,}",
                "parameters": f"{self.n_params:,}",
                "NTK eigenvalues": repr(self.jacobian),
                "NTK eigenvectors": spec["eigenvectors"],
                "curvature": "none" if self.curvature is None else spec["curvature"],
                "residual": spec["residual"],
                "a model": bytes_shown(self.nbytes),
            },
        )


def _as_spectrum(value: Any) -> SpectralLaw:
    return value if isinstance(value, SpectralLaw) else GivenEigenvalues(value)


def _as_curvature(value: Any) -> CurvatureLaw | None:
    if value is None or isinstance(value, CurvatureLaw):
        return value
    if not isinstance(value, numbers.Real):
        raise InputError(f"curvature must be None, a number or a CurvatureLaw, got {shown(value)}")
    scale = as_number("curvature", value, least=0.0)
    return IndependentCurvature(scale) if scale > 0.0 else None


def _as_residual(value: Any) -> ResidualLaw:
    if isinstance(value, ResidualLaw):
        return value
    if not isinstance(value, numbers.Real):
        raise InputError(f"residual must be a number or a ResidualLaw, got {shown(value)}")
    return GaussianResidual(as_number("residual", value, least=0.0))
