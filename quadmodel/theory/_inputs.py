"""What a prediction may be made from: an NTK matrix, its eigenvalues, or a spectral law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_array,
    as_choice,
    as_integer,
    check_memory,
    check_symmetric,
    n_axes,
    shown,
    tolerance_of,
)
from quadmodel._util.results import checksum
from quadmodel.model import QuadraticModel, clean_eigenvalues, ntk_eigensystem
from quadmodel.optimizer import SGD
from quadmodel.spectra import SpectralLaw
from quadmodel.theory.streaming import TOLERANCE, matrix_of

NORMS = ("paper", "finite", "exact")
CLOSURES = NORMS[1:]
# From this size on matrices are diagonalised in single precision.
SINGLE_FROM = 6000
# Smaller matrices BLAS leaves to one thread anyway.
_SPLIT = 24
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (descending) and, if a matrix was given, eigenvectors of an NTK."""

    eigenvalues: FloatArray
    vectors: FloatArray | None = None
    source_hash: str | None = None

    @property
    def n_data(self) -> int:
        """Number of data points D."""
        return len(self.eigenvalues)

    @property
    def edge(self) -> float:
        """Largest eigenvalue."""
        return float(self.eigenvalues[0])

    def spec(self) -> dict[str, Any]:
        """Return what attributes of results say about the NTK."""
        known = {} if self.source_hash is None else {"source_hash": self.source_hash}
        return {"n_data": self.n_data, **known}


@dataclass(frozen=True)
class LimitSpectrum:
    """A spectral law, standing for the eigenvalues of `n_data` points."""

    law: SpectralLaw
    n_data: int

    @property
    def edge(self) -> float:
        """Upper end of the support."""
        return self.law.edge

    def spec(self) -> dict[str, Any]:
        """Return what attributes of results say about the NTK."""
        return {"n_data": self.n_data, "jacobian": repr(self.law)}


def on_one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Give a public function the same bits for any number of threads, where it takes a matrix."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        ntk: Any = args[0] if args else kwargs.get("ntk")
        small = isinstance(ntk, np.ndarray) and (ntk.ndim < 2 or len(ntk) < _SPLIT)
        if small or isinstance(ntk, SpectralLaw):
            return function(*args, **kwargs)
        with one_blas_thread():
            return function(*args, **kwargs)

    return limited


def as_spectrum(ntk: Any, *, n_data: int | None = None) -> Spectrum | LimitSpectrum:
    """Check and unify the `ntk` argument of the public functions."""
    if isinstance(ntk, Spectrum | LimitSpectrum):
        return ntk
    if isinstance(ntk, SpectralLaw):
        if n_data is None:
            raise InputError("n_data must be given with a spectral law, got None")
        return LimitSpectrum(ntk, as_integer("n_data", n_data))
    spectrum = as_finite_spectrum(ntk)
    if n_data not in (None, spectrum.n_data):
        raise InputError(f"n_data must be that of ntk, {spectrum.n_data}, got {shown(n_data)}")
    return spectrum


def as_finite_spectrum(ntk: ArrayLike | Spectrum) -> Spectrum:
    """Check an NTK matrix, which is diagonalised, or a list of its eigenvalues."""
    if isinstance(ntk, Spectrum):
        return ntk
    if isinstance(ntk, QuadraticModel):
        raise InputError("ntk must be an NTK or its eigenvalues, got a model: give model.ntk()")
    if isinstance(ntk, LinearOperator):
        if ntk.shape[0] != ntk.shape[1]:
            raise InputError(f"ntk must be square, got an operator of shape {ntk.shape}")
        matrix = matrix_of("ntk", ntk.matmat, ntk.shape[0])
        return Spectrum(*_eigensystem(matrix, TOLERANCE), checksum(matrix))
    if n_axes("ntk", ntk) == 1:
        values = as_array("ntk", ntk, (None,))
        descending = clean_eigenvalues(np.sort(values)[::-1], tolerance_of(ntk))
        return Spectrum(descending, source_hash=checksum(values))
    matrix = as_array("ntk", ntk, (None, None))
    return Spectrum(*_eigensystem(matrix, tolerance_of(ntk)), checksum(matrix))


def _eigensystem(matrix: FloatArray, tolerance: float) -> tuple[FloatArray, Any]:
    large = len(matrix) >= SINGLE_FROM and matrix.shape == (len(matrix),) * 2
    return (_single_eigensystem if large else ntk_eigensystem)(matrix, tolerance)


def _single_eigensystem(matrix: FloatArray, tolerance: float) -> tuple[FloatArray, Any]:
    """Return eigenvalues and, in single precision, eigenvectors of a large NTK.

    In half the time and memory of double precision. Eigenvalues are off by about 1e-7 of the
    largest one, which itself is a Rayleigh quotient in double precision.
    """
    # The matrix itself aside: a copy, eigenvectors, the workspace of two; then responses in double
    # precision and what a product needs.
    check_memory("the eigendecomposition of the NTK", 20.0 * matrix.size)
    check_symmetric("ntk", matrix, tolerance)
    single = np.asarray(matrix, np.float32)
    ascending, vectors = scipy.linalg.eigh(
        single, driver="evd", overwrite_a=True, check_finite=False
    )
    values = clean_eigenvalues(ascending[::-1].astype(np.float64), max(tolerance, 2e-4))
    # What is below the rounding of single precision is noise, of either sign.
    values[values < 1e-7 * values[0]] = 0.0
    top = vectors[:, -1].astype(np.float64)
    values[0] = max(float(top @ matrix @ top / (top @ top)), float(values[0]) * (1 - 1e-5))
    return values, np.ascontiguousarray(vectors[:, ::-1])


def as_norm(
    norm: str | None, spectrum: Spectrum | LimitSpectrum, choices: tuple[str, ...] = NORMS
) -> str:
    """Return the checked norm; if None, the exact one, or the finite one where there is no matrix.

    The paper's norm is no default: it has no sampling scheme in it, and calls runs stable that
    aren't. The finite one is only a lower bound of the exact one, but there is no better one.
    """
    if norm is None:
        matrix = isinstance(spectrum, Spectrum) and spectrum.vectors is not None
        return "exact" if matrix else "finite"
    return as_choice("norm", norm, choices)


def need_vectors(spectrum: Spectrum | LimitSpectrum) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues and eigenvectors, or say that the matrix is needed."""
    if isinstance(spectrum, LimitSpectrum):
        raise InputError("ntk must be the full matrix for norm='exact', got a spectral law")
    if spectrum.vectors is None:
        raise InputError("ntk must be the full matrix for norm='exact', got eigenvalues only")
    return spectrum.eigenvalues, spectrum.vectors


def check_sgd(sgd: SGD, n_data: int) -> None:
    """Check that `sgd` is one and fits the number of data points."""
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    sgd.check_batch_size(n_data)
