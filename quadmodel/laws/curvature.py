"""Curvature Q, the gradient of the Jacobian: arrays, arrays of low rank, and laws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_array,
    as_integer,
    as_number,
    check_symmetric,
    tolerance_of,
)
from quadmodel._util.display import law_html
from quadmodel._util.results import checksum

__all__ = [
    "CurvatureLaw",
    "IndependentCurvature",
    "KroneckerCurvature",
    "LowRankCurvature",
    "RandomLowRankCurvature",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)


@dataclass(frozen=True, eq=False)
class LowRankCurvature:
    r"""Curvature of low rank: :math:`Q_a = \sum_r s_{ar}\, u_{ar} u_{ar}^\top`.

    Parameters
    ----------
    coefficients : array_like, shape (n_data, rank)
        The :math:`s_{ar}`, in units of the residual.
    vectors : array_like, shape (n_data, rank, n_params)
        The :math:`u_{ar}`, in units of 1 / parameter.

    Raises
    ------
    InputError
        If shapes don't fit or entries are not finite.

    Examples
    --------
    >>> import quadmodel as qm
    >>> curvature = qm.LowRankCurvature(coefficients=[[2.0]], vectors=[[[1.0, 3.0]]])
    >>> curvature.shape
    (1, 2, 2)
    >>> curvature.dense()
    array([[[ 2.,  6.],
            [ 6., 18.]]])
    >>> curvature.times([1.0, 0.0])
    array([[2., 6.]])
    """

    coefficients: FloatArray
    vectors: FloatArray

    def __post_init__(self) -> None:
        """Check shapes once."""
        coefficients = as_array("coefficients", self.coefficients, (None, None))
        vectors = as_array("vectors", self.vectors, (*coefficients.shape, None))
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "vectors", vectors)

    def __eq__(self, other: object) -> bool:
        """Compare coefficients and vectors, number by number."""
        if not isinstance(other, LowRankCurvature):
            return NotImplemented
        return np.array_equal(self.coefficients, other.coefficients) and np.array_equal(
            self.vectors, other.vectors
        )

    def __hash__(self) -> int:
        """Return a hash that equal ones share."""
        return hash((self.shape, *self.coefficients.ravel().tolist()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (n_data, n_params, n_params) of the array that it stands for."""
        n_data, _, n_params = self.vectors.shape
        return n_data, n_params, n_params

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.coefficients.nbytes + self.vectors.nbytes

    def dense(self) -> FloatArray:
        """Return the full array.

        Returns
        -------
        ndarray, shape (n_data, n_params, n_params)
            :math:`Q_{aij}`.
        """
        u = self.vectors
        return np.asarray(np.einsum("ar,ari,arj->aij", self.coefficients, u, u, optimize=True))

    def times(self, theta: FloatArray) -> FloatArray:
        r"""Return :math:`Q(\theta,\cdot)`.

        Parameters
        ----------
        theta : ndarray, shape (n_params,)
            Displacement from the initial parameters.

        Returns
        -------
        ndarray, shape (n_data, n_params)
            Change of the Jacobian at `theta`.
        """
        u = self.vectors
        return np.asarray(np.einsum("ar,ari->ai", self.coefficients * (u @ theta), u))


Curvature = FloatArray | LowRankCurvature | None


class CurvatureLaw(ABC):
    """Law of the curvature, with mean zero.

    Examples
    --------
    A law of your own has two methods:

    >>> import numpy as np, quadmodel as qm
    >>> class Diagonal(qm.curvature.CurvatureLaw):
    ...     def sample(self, rng, n_data, n_params):
    ...         return rng.standard_normal((n_data, n_params))[:, :, None] * np.eye(n_params)
    ...
    ...     def nbytes(self, n_data, n_params):
    ...         return 8 * n_data * n_params**2
    >>> qm.Ensemble(4, 8, curvature=Diagonal()).sample(seed=0).curvature.shape
    (4, 8, 8)
    """

    def _repr_html_(self) -> str:
        """Show kind and parameters in a notebook."""
        return law_html(self)

    @abstractmethod
    def sample(
        self, rng: np.random.Generator, n_data: int, n_params: int
    ) -> FloatArray | LowRankCurvature:
        """Draw the curvature.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        ndarray of shape (n_data, n_params, n_params), or LowRankCurvature
            Symmetric in its last two indices. A draw needs memory for a few more matrices.

        Raises
        ------
        InputError
            If the law doesn't fit these numbers.
        """

    def kronecker(
        self, n_data: int, n_params: int
    ) -> tuple[FloatArray | None, FloatArray | None, float]:
        r"""Return C, S and the scale of a covariance :math:`\sigma^2C_{ab}(S_{ik}S_{jl}+\dots)`.

        Parameters
        ----------
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        tuple of ndarray (n_data, n_data), ndarray (n_params, n_params) and float
            None for a unit matrix.

        Raises
        ------
        InputError
            If the covariance is of another kind, or doesn't fit these numbers.
        """
        raise InputError(
            "curvature must have a Kronecker covariance (IndependentCurvature, "
            f"KroneckerCurvature), got {self!r}"
        )

    @abstractmethod
    def nbytes(self, n_data: int, n_params: int) -> int:
        """Return the bytes that a draw takes.

        Parameters
        ----------
        n_data, n_params : int
            Data points and parameters.

        Returns
        -------
        int
            Bytes.

        Raises
        ------
        InputError
            If the law doesn't fit these numbers.
        """


@dataclass(frozen=True)
class IndependentCurvature(CurvatureLaw):
    r"""Gaussian curvature with independent entries.

    Parameters
    ----------
    scale : float
        :math:`\sigma \ge 0`, standard deviation of an off-diagonal entry, in units of residual /
        parameter squared.

    Raises
    ------
    InputError
        If `scale` is negative or not finite.

    Notes
    -----
    .. math:: E[Q_{aij}Q_{bkl}] = \sigma^2\delta_{ab}(\delta_{ik}\delta_{jl}+\delta_{il}\delta_{jk})

    so the variance is :math:`\sigma^2` off the diagonal and :math:`2\sigma^2` on it.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2.

    Examples
    --------
    >>> import quadmodel as qm
    >>> law = qm.curvature.IndependentCurvature(scale=0.1)
    >>> law.nbytes(n_data=10, n_params=100)
    800000
    >>> qm.Ensemble(4, 8, curvature=law).sample(seed=0).curvature.shape
    (4, 8, 8)
    """

    scale: float

    def __post_init__(self) -> None:
        """Check the field once."""
        object.__setattr__(self, "scale", as_number("scale", self.scale, least=0.0))

    def sample(self, rng: np.random.Generator, n_data: int, n_params: int) -> FloatArray:
        """Draw the curvature; see `CurvatureLaw.sample`."""
        curvature = np.empty((n_data, n_params, n_params))
        for matrix in curvature:
            rng.standard_normal(out=matrix)
            _symmetrise(matrix, self.scale)
        return curvature

    def kronecker(
        self, n_data: int, n_params: int
    ) -> tuple[FloatArray | None, FloatArray | None, float]:
        """Return two unit matrices and the scale; see `CurvatureLaw.kronecker`."""
        return None, None, self.scale

    def nbytes(self, n_data: int, n_params: int) -> int:
        """Return the bytes of the full array."""
        return 8 * n_data * n_params**2


@dataclass(frozen=True, eq=False, repr=False)
class KroneckerCurvature(CurvatureLaw):
    r"""Gaussian curvature correlated between data points and between parameters.

    Parameters
    ----------
    data_covariance : array_like, shape (n_data, n_data), optional
        :math:`C`, symmetric positive semidefinite; the identity if left out.
    parameter_covariance : array_like, shape (n_params, n_params), optional
        :math:`S`, symmetric positive semidefinite; the identity if left out.
    scale : float, optional
        :math:`\sigma \ge 0`, in units of residual / parameter squared.

    Raises
    ------
    InputError
        If a matrix is not symmetric positive semidefinite, or `scale` is negative; from `sample`
        and `nbytes`, if a matrix has another size than the model.

    Notes
    -----
    .. math:: E[Q_{aij}Q_{bkl}] = \sigma^2 C_{ab}(S_{ik}S_{jl} + S_{il}S_{jk})

    drawn as :math:`Q_a = \sigma\sum_b (C^{1/2})_{ab}\, S^{1/2} G_b S^{1/2}` with independent
    symmetric :math:`G_b`; derivations/04-gradient-statistics.md for what follows from it.

    Examples
    --------
    Two data points whose curvatures are correlated:

    >>> import quadmodel as qm
    >>> law = qm.curvature.KroneckerCurvature(data_covariance=[[1.0, 0.9], [0.9, 1.0]], scale=0.1)
    >>> qm.Ensemble(2, 5, curvature=law).sample(seed=0).curvature.shape
    (2, 5, 5)
    """

    data_covariance: ArrayLike | None = None
    parameter_covariance: ArrayLike | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check every field once."""
        object.__setattr__(self, "scale", as_number("scale", self.scale, least=0.0))
        for name in ("data_covariance", "parameter_covariance"):
            given = getattr(self, name)
            if given is not None:
                matrix = as_array(name, given, (None, None))
                tolerance = tolerance_of(given)
                root = _square_root(name, matrix, tolerance)
                # Of less than double precision: the nearest covariance is kept.
                rounded = tolerance > tolerance_of(matrix)
                object.__setattr__(self, name, root @ root if rounded else matrix)

    def __eq__(self, other: object) -> bool:
        """Compare matrices and scale, number by number."""
        if not isinstance(other, KroneckerCurvature):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        """Return a hash that equal laws share."""
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        matrices = (self.data_covariance, self.parameter_covariance)
        # Adding 0 turns -0, which equals it but differs in its bits, into 0.
        held = (None if m is None else np.asarray(m) + 0.0 for m in matrices)
        return (self.scale, *(None if m is None else (m.shape, m.tobytes()) for m in held))

    def __repr__(self) -> str:
        """Show each matrix by shape and checksum."""
        data, parameter = _label(self.data_covariance), _label(self.parameter_covariance)
        return (
            f"KroneckerCurvature(data_covariance={data}, parameter_covariance={parameter}, "
            f"scale={self.scale})"
        )

    def sample(self, rng: np.random.Generator, n_data: int, n_params: int) -> FloatArray:
        """Draw the curvature; see `CurvatureLaw.sample`."""
        data, parameter, _ = self.kronecker(n_data, n_params)
        mixing = None if data is None else _square_root("data_covariance", data)
        shaping = None if parameter is None else _square_root("parameter_covariance", parameter)
        curvature = np.empty((n_data, n_params, n_params))
        rng.standard_normal(out=curvature)
        if mixing is not None:
            # By blocks of columns: the product of the whole would need a second array.
            flat = curvature.reshape(n_data, -1)
            width = max(flat.shape[1] // 32, 1)
            for start in range(0, flat.shape[1], width):
                flat[:, start : start + width] = mixing @ flat[:, start : start + width]
        for matrix in curvature:
            if shaping is not None:
                np.matmul(shaping @ matrix, shaping, out=matrix)
            _symmetrise(matrix, self.scale)
        return curvature

    def nbytes(self, n_data: int, n_params: int) -> int:
        """Return the bytes of the full array; see `CurvatureLaw.nbytes`."""
        for name, size in (("data_covariance", n_data), ("parameter_covariance", n_params)):
            matrix = getattr(self, name)
            if matrix is not None and len(matrix) != size:
                raise InputError(f"{name} must have shape {(size, size)}, got {matrix.shape}")
        return 8 * n_data * n_params**2

    def kronecker(
        self, n_data: int, n_params: int
    ) -> tuple[FloatArray | None, FloatArray | None, float]:
        """Return both matrices and the scale; see `CurvatureLaw.kronecker`."""
        self.nbytes(n_data, n_params)  # checks the sizes
        data, parameter = (
            None if matrix is None else np.asarray(matrix)
            for matrix in (self.data_covariance, self.parameter_covariance)
        )
        return data, parameter, self.scale


@dataclass(frozen=True)
class RandomLowRankCurvature(CurvatureLaw):
    r"""Curvature of low rank with independent Gaussian factors.

    Parameters
    ----------
    rank : int
        Number :math:`R` of terms in each :math:`Q_a = \sum_r s_{ar} u_{ar}u_{ar}^\top`.
    scale : float
        :math:`\sigma \ge 0`, standard deviation of an off-diagonal entry, in units of residual /
        parameter squared.

    Raises
    ------
    InputError
        If a value lies outside its range.

    Notes
    -----
    Entries of :math:`u` have variance 1, and :math:`s_{ar}` has variance :math:`\sigma^2/R`: so
    every off-diagonal entry has variance :math:`\sigma^2`, as in `IndependentCurvature`, and a
    diagonal one :math:`3\sigma^2`. Entries of one :math:`Q_a` are uncorrelated off the diagonal,
    but not independent.

    Examples
    --------
    >>> import quadmodel as qm
    >>> law = qm.curvature.RandomLowRankCurvature(rank=3, scale=0.1)
    >>> qm.Ensemble(4, 8, curvature=law).sample(seed=0).curvature.vectors.shape
    (4, 3, 8)
    """

    rank: int
    scale: float

    def __post_init__(self) -> None:
        """Check every field once."""
        object.__setattr__(self, "rank", as_integer("rank", self.rank))
        object.__setattr__(self, "scale", as_number("scale", self.scale, least=0.0))

    def sample(self, rng: np.random.Generator, n_data: int, n_params: int) -> LowRankCurvature:
        """Draw the curvature; see `CurvatureLaw.sample`."""
        coefficients = rng.standard_normal((n_data, self.rank)) * (self.scale / self.rank**0.5)
        return LowRankCurvature(coefficients, rng.standard_normal((n_data, self.rank, n_params)))

    def nbytes(self, n_data: int, n_params: int) -> int:
        """Return the bytes of the factors."""
        return 8 * n_data * self.rank * (1 + n_params)


# What a file may name; laws of other packages are code, which no file holds.
LAWS: tuple[type[CurvatureLaw], ...] = (
    IndependentCurvature,
    KroneckerCurvature,
    RandomLowRankCurvature,
)


def _symmetrise(matrix: FloatArray, scale: float) -> None:
    """Symmetrise independent entries: variance scale^2 off the diagonal, 2 scale^2 on it."""
    matrix += matrix.T
    matrix *= scale / np.sqrt(2.0)


def _square_root(name: str, matrix: FloatArray, tolerance: float = 1e-8) -> FloatArray:
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name} must be a square matrix, got shape {matrix.shape}")
    check_symmetric(name, matrix, tolerance)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    if eigenvalues[0] < -tolerance * abs(eigenvalues[-1]):
        raise InputError(
            f"{name} must be positive semidefinite, got the eigenvalue {eigenvalues[0]:.4g}"
        )
    root: FloatArray = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T
    return root


def _label(matrix: ArrayLike | None) -> str:
    if matrix is None:
        return "None"
    array = np.asarray(matrix)
    return f"<{'x'.join(map(str, array.shape))}, sha256 {checksum(array)}>"
