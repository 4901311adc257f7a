"""QuadraticModel: residual, Jacobian and curvature of one model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.checks import FloatArray, InputError, as_array, check_memory, check_symmetric
from quadmodel._util.files import open_npz, write_atomically
from quadmodel.curvature import Curvature, CurvatureLaw, LowRankCurvature


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticModel:
    r"""A model whose residuals are quadratic in its parameters.

    Parameters
    ----------
    residual : array_like, shape (n_data,)
        :math:`z_0`, output minus target at the initial parameters.
    jacobian : array_like, shape (n_data, n_params)
        :math:`J_0 = \partial z/\partial\theta` at the initial parameters.
    curvature : None, array_like of shape (n_data, n_params, n_params), or LowRankCurvature
        :math:`Q = \partial J/\partial\theta`, symmetric in its last two indices. None makes
        the model linear.
    curvature_law : CurvatureLaw, optional
        The law that the curvature was drawn from, where it is known: predictions of its mean effect
        need it.

    Raises
    ------
    InputError
        If shapes don't fit, entries are not finite, or the curvature is not symmetric.

    Notes
    -----
    .. math:: z(\theta) = z_0 + J_0\theta + \tfrac12 Q(\theta,\theta),\quad
              J(\theta) = J_0 + Q(\theta,\cdot),\quad
              L = |z|^2/(2D),\quad \Theta = JJ^\top/D

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.

    Examples
    --------
    >>> import quadmodel as qm
    >>> model = qm.QuadraticModel(residual=[1.0, -1.0], jacobian=[[1.0, 0.0], [0.0, 2.0]])
    >>> model.loss()
    0.5
    >>> model.ntk()
    array([[0.5, 0. ],
           [0. , 2. ]])
    """

    residual: FloatArray
    jacobian: FloatArray
    curvature: Curvature = None
    curvature_law: CurvatureLaw | None = None

    def __post_init__(self) -> None:
        """Check shapes, finiteness and symmetry once."""
        jacobian = as_array("jacobian", self.jacobian, (None, None))
        n_data, n_params = jacobian.shape
        object.__setattr__(self, "jacobian", jacobian)
        object.__setattr__(self, "residual", as_array("residual", self.residual, (n_data,)))
        wanted = (n_data, n_params, n_params)
        if isinstance(self.curvature, LowRankCurvature):
            if self.curvature.shape != wanted:
                raise InputError(f"curvature must have shape {wanted}, got {self.curvature.shape}")
        elif self.curvature is not None:
            curvature = as_array("curvature", self.curvature, wanted)
            check_symmetric("curvature", curvature)
            object.__setattr__(self, "curvature", curvature)

    @classmethod
    def from_ntk(cls, ntk: ArrayLike, residual: ArrayLike | None = None) -> QuadraticModel:
        r"""Build the linear model with a given NTK and as many parameters as data points.

        Parameters
        ----------
        ntk : array_like, shape (n_data, n_data)
            :math:`\Theta = JJ^\top/D`, symmetric positive semidefinite.
        residual : array_like, shape (n_data,), optional
            Initial residual; ones if left out.

        Returns
        -------
        QuadraticModel
            Its Jacobian is the symmetric square root of :math:`D\,\Theta`.

        Raises
        ------
        InputError
            If `ntk` is not symmetric positive semidefinite.
        """
        eigenvalues, vectors = ntk_eigensystem(as_array("ntk", ntk, (None, None)))
        n_data = len(eigenvalues)
        jacobian = (vectors * np.sqrt(n_data * eigenvalues)) @ vectors.T
        return cls(np.ones(n_data) if residual is None else residual, jacobian)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> QuadraticModel:
        """Read a model written by `save`, or any .npz file with the same names.

        Parameters
        ----------
        path : path-like
            An .npz file with arrays `residual`, `jacobian` and, optionally, `curvature` or
            `curvature_coefficients` and `curvature_vectors`.

        Returns
        -------
        QuadraticModel
            The model.

        Raises
        ------
        InputError
            If the file is missing, damaged, pickled, or lacks an array.
        """
        arrays = open_npz(path, required=("residual", "jacobian"))
        curvature: Any = arrays.get("curvature")
        if "curvature_coefficients" in arrays and "curvature_vectors" in arrays:
            curvature = LowRankCurvature(
                arrays["curvature_coefficients"], arrays["curvature_vectors"]
            )
        return cls(arrays["residual"], arrays["jacobian"], curvature)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model as .npz; an interrupted write leaves no file.

        Parameters
        ----------
        path : path-like
            Where to write; an existing file is replaced.

        Raises
        ------
        InputError
            If the place can't be written.
        """
        arrays = {"residual": self.residual, "jacobian": self.jacobian}
        if isinstance(self.curvature, LowRankCurvature):
            arrays["curvature_coefficients"] = self.curvature.coefficients
            arrays["curvature_vectors"] = self.curvature.vectors
        elif self.curvature is not None:
            arrays["curvature"] = self.curvature
        with write_atomically(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @property
    def n_data(self) -> int:
        """Number of data points D."""
        return len(self.jacobian)

    @property
    def n_params(self) -> int:
        """Number of parameters P."""
        return int(self.jacobian.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        held = 0 if self.curvature is None else self.curvature.nbytes
        return self.residual.nbytes + self.jacobian.nbytes + held

    def residual_at(self, theta: ArrayLike) -> FloatArray:
        r"""Return the residual :math:`z(\theta)`.

        Parameters
        ----------
        theta : array_like, shape (n_params,)
            Displacement from the initial parameters.

        Returns
        -------
        ndarray, shape (n_data,)
            Residual.

        Raises
        ------
        InputError
            If `theta` has the wrong shape or is not finite.
        """
        theta = as_array("theta", theta, (self.n_params,))
        return self.residual + 0.5 * (self.jacobian + self._jacobian_at(theta)) @ theta

    def jacobian_at(self, theta: ArrayLike) -> FloatArray:
        r"""Return the Jacobian :math:`J(\theta)`.

        Parameters
        ----------
        theta : array_like, shape (n_params,)
            Displacement from the initial parameters.

        Returns
        -------
        ndarray, shape (n_data, n_params)
            Jacobian.

        Raises
        ------
        InputError
            If `theta` has the wrong shape or is not finite.
        """
        return self._jacobian_at(as_array("theta", theta, (self.n_params,)))

    def _jacobian_at(self, theta: FloatArray) -> FloatArray:
        if self.curvature is None:
            return self.jacobian.copy()
        if isinstance(self.curvature, LowRankCurvature):
            return self.jacobian + self.curvature.times(theta)
        return self.jacobian + self.curvature @ theta

    def ntk(self, theta: ArrayLike | None = None) -> FloatArray:
        r"""Return the neural tangent kernel :math:`JJ^\top/D`.

        Parameters
        ----------
        theta : array_like, shape (n_params,), optional
            Displacement from the initial parameters; zero if left out.

        Returns
        -------
        ndarray, shape (n_data, n_data)
            NTK, in units of 1 / learning rate.

        Raises
        ------
        InputError
            If `theta` has the wrong shape or is not finite.
        """
        jacobian = self.jacobian if theta is None else self.jacobian_at(theta)
        return jacobian @ jacobian.T / self.n_data

    def loss(self, theta: ArrayLike | None = None) -> float:
        r"""Return the mean squared loss :math:`|z|^2/(2D)`.

        Parameters
        ----------
        theta : array_like, shape (n_params,), optional
            Displacement from the initial parameters; zero if left out.

        Returns
        -------
        float
            Loss over all data points.

        Raises
        ------
        InputError
            If `theta` has the wrong shape or is not finite.
        """
        z = self.residual if theta is None else self.residual_at(theta)
        return float(z @ z) / (2 * self.n_data)

    @cached_property
    def eigensystem(self) -> tuple[FloatArray, FloatArray]:
        """Eigenvalues (descending) and eigenvectors (columns) of the initial NTK."""
        return ntk_eigensystem(self.ntk())

    def __repr__(self) -> str:
        """Show shapes, bytes and a summary of the spectrum."""
        kind = "none"
        if isinstance(self.curvature, LowRankCurvature):
            kind = f"low rank {self.curvature.coefficients.shape[1]}"
        elif self.curvature is not None:
            kind = "dense"
        trace = float(np.sum(self.jacobian**2)) / self.n_data
        largest = "" if self.n_data > 2000 else f", largest eigenvalue {self.eigensystem[0][0]:.4g}"
        return (
            f"QuadraticModel(n_data={self.n_data}, n_params={self.n_params}, curvature: {kind}, "
            f"{self.nbytes / 1e6:.3g} MB, NTK: trace {trace:.4g}{largest}, "
            f"loss {self.loss():.4g})"
        )


def ntk_eigensystem(ntk: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues (descending, rounding noise set to zero) and eigenvectors (columns).

    Raises InputError if the matrix is not square, not symmetric, or has a clearly negative
    eigenvalue.
    """
    if ntk.ndim != 2 or ntk.shape[0] != ntk.shape[1]:
        raise InputError(f"ntk must be a square matrix, got shape {ntk.shape}")
    check_memory("the eigendecomposition of the NTK", 4.0 * ntk.nbytes)
    check_symmetric("ntk", ntk)
    ascending, vectors = np.linalg.eigh(0.5 * (ntk + ntk.T))
    return clean_eigenvalues(ascending[::-1]), np.ascontiguousarray(vectors[:, ::-1])


def clean_eigenvalues(descending: FloatArray) -> FloatArray:
    """Set eigenvalues to zero that are zero up to rounding; raise InputError for negative ones."""
    largest = float(np.abs(descending).max())
    lowest = float(descending.min())
    if lowest < -1e-8 * largest:
        raise InputError(
            f"ntk must be positive semidefinite, got the eigenvalue {lowest:.4g} "
            f"(largest {largest:.4g})"
        )
    rounding = 4 * len(descending) * np.finfo(np.float64).eps * largest
    return np.where(descending > rounding, descending, 0.0)
