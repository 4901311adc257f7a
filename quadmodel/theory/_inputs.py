"""What a prediction may be made from: an NTK matrix, its eigenvalues, or a spectral law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.blas import one_blas_thread
from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_array,
    as_choice,
    as_integer,
    n_axes,
    shown,
    tolerance_of,
)
from quadmodel._util.results import checksum
from quadmodel.model import QuadraticModel, clean_eigenvalues, ntk_eigensystem
from quadmodel.optimizer import SGD
from quadmodel.spectra import SpectralLaw

NORMS = ("paper", "finite", "exact")
CLOSURES = NORMS[1:]
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
    if n_axes("ntk", ntk) == 1:
        values = as_array("ntk", ntk, (None,))
        descending = clean_eigenvalues(np.sort(values)[::-1], tolerance_of(ntk))
        return Spectrum(descending, source_hash=checksum(values))
    matrix = as_array("ntk", ntk, (None, None))
    return Spectrum(*ntk_eigensystem(matrix, tolerance_of(ntk)), checksum(matrix))


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
