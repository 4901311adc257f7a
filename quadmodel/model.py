"""QuadraticModel: residual, Jacobian and curvature of one model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    as_array,
    as_symmetric,
    check_memory,
    check_symmetric,
    shown,
    tolerance_of,
)
from quadmodel._util.display import bytes_shown, html_table
from quadmodel._util.files import (
    open_npz,
    settings_from_arrays,
    settings_to_arrays,
    write_atomically,
)
from quadmodel._util.results import checksum
from quadmodel.laws.curvature import LAWS, Curvature, CurvatureLaw, LowRankCurvature

# What a representation may cost: products of numbers that are done in about 50 ms.
_MOST_PRODUCTS = 5e8


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
    Models are equal if their arrays and curvature laws are. Arrays of less than double precision
    may be symmetric up to their rounding (2e-4 of the largest entry in single precision, else
    1e-8).

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

    # Checksum of what came where that was an NTK: then the parameters are made up.
    _ntk_hash: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        """Check shapes, finiteness and symmetry once."""
        if not (self.curvature_law is None or isinstance(self.curvature_law, CurvatureLaw)):
            raise InputError(
                f"curvature_law must be None or a CurvatureLaw, got {shown(self.curvature_law)}"
            )
        jacobian = as_array("jacobian", self.jacobian, (None, None))
        n_data, n_params = jacobian.shape
        object.__setattr__(self, "jacobian", jacobian)
        object.__setattr__(self, "residual", as_array("residual", self.residual, (n_data,)))
        wanted = (n_data, n_params, n_params)
        if isinstance(self.curvature, LowRankCurvature):
            if self.curvature.shape != wanted:
                raise InputError(f"curvature must have shape {wanted}, got {self.curvature.shape}")
        elif self.curvature is not None:
            curvature = as_symmetric("curvature", self.curvature, wanted)
            object.__setattr__(self, "curvature", curvature)

    @classmethod
    def from_ntk(cls, ntk: ArrayLike, residual: ArrayLike | None = None) -> QuadraticModel:
        r"""Build the linear model with a given NTK and as many parameters as data points.

        Parameters
        ----------
        ntk : array_like, shape (n_data, n_data)
            :math:`\Theta = JJ^\top/D`, symmetric positive semidefinite up to rounding: relative to
            its largest entry and eigenvalue 1e-8 in double precision, 2e-4 in single precision.
        residual : array_like, shape (n_data,), optional
            Initial residual; ones if left out.

        Returns
        -------
        QuadraticModel
            Its Jacobian is the symmetric square root of :math:`D\,\Theta`. What is said of it in
            results is the checksum of the NTK and no number of parameters.

        Raises
        ------
        InputError
            If `ntk` is not symmetric positive semidefinite.

        Examples
        --------
        >>> import quadmodel as qm
        >>> qm.QuadraticModel.from_ntk([[2.0, 0.0], [0.0, 0.5]]).jacobian
        array([[2., 0.],
               [0., 1.]])
        """
        matrix = as_array("ntk", ntk, (None, None))
        eigenvalues, vectors = ntk_eigensystem(matrix, tolerance_of(ntk))
        n_data = len(eigenvalues)
        jacobian = (vectors * np.sqrt(n_data * eigenvalues)) @ vectors.T
        model = cls(np.ones(n_data) if residual is None else residual, jacobian)  # type: ignore[arg-type]
        given = (matrix,) if residual is None else (matrix, model.residual)
        object.__setattr__(model, "_ntk_hash", checksum(*given))
        return model

    @classmethod
    def load(cls, path: str | PathLike[str]) -> QuadraticModel:
        """Read a model written by `save`, or any .npz file with the same names.

        Parameters
        ----------
        path : path-like
            An .npz file with arrays `residual`, `jacobian` and, optionally, `curvature` or
            `curvature_coefficients` and `curvature_vectors`; what `save` adds about the curvature's
            law and an NTK.

        Returns
        -------
        QuadraticModel
            The model, equal to the one that was saved.

        Raises
        ------
        InputError
            If the file is missing, damaged, pickled, lacks an array, or holds what makes no model.
        """
        arrays = open_npz(path, required=("residual", "jacobian"))
        try:
            model = cls(
                arrays["residual"],
                arrays["jacobian"],
                _curvature_from(arrays),
                settings_from_arrays("curvature_law", arrays, LAWS),
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if "ntk_hash" in arrays:
            object.__setattr__(model, "_ntk_hash", str(arrays["ntk_hash"]))
        return model

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model as .npz; an interrupted write leaves no file.

        Parameters
        ----------
        path : path-like
            Where to write; an existing file is replaced.

        Raises
        ------
        InputError
            If the place can't be written, or the curvature has a law that is not the package's:
            files hold no code.

        Examples
        --------
        >>> import tempfile, quadmodel as qm
        >>> from pathlib import Path
        >>> model = qm.Ensemble(3, 5, curvature=0.1).sample(seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(Path(folder) / "model.npz")
        ...     qm.QuadraticModel.load(Path(folder) / "model.npz") == model
        True
        """
        arrays: dict[str, Any] = {"residual": self.residual, "jacobian": self.jacobian}
        if isinstance(self.curvature, LowRankCurvature):
            arrays["curvature_coefficients"] = self.curvature.coefficients
            arrays["curvature_vectors"] = self.curvature.vectors
        elif self.curvature is not None:
            arrays["curvature"] = self.curvature
        law = self.curvature_law
        if law is not None and type(law) not in LAWS:
            raise InputError(
                f"curvature_law must be one of {', '.join(kind.__name__ for kind in LAWS)} to be "
                f"saved, got {shown(law)}: save dataclasses.replace(model, curvature_law=None)"
            )
        if law is not None:
            arrays |= settings_to_arrays("curvature_law", law)
        if self._ntk_hash is not None:
            arrays["ntk_hash"] = np.array(self._ntk_hash)
        with write_atomically(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)

    def __eq__(self, other: object) -> bool:
        """Compare residual, Jacobian, curvature and its law, number by number."""
        if not isinstance(other, QuadraticModel):
            return NotImplemented
        curvature, others = self.curvature, other.curvature
        if isinstance(curvature, np.ndarray) and isinstance(others, np.ndarray):
            same = np.array_equal(curvature, others)
        else:
            same = type(curvature) is type(others) and curvature == others
        return (
            same
            and np.array_equal(self.residual, other.residual)
            and np.array_equal(self.jacobian, other.jacobian)
            and self.curvature_law == other.curvature_law
        )

    def __hash__(self) -> int:
        """Return a hash that equal models share."""
        return hash((self.jacobian.shape, *self.residual.tolist()))

    @cached_property
    def source_hash(self) -> str:
        """Twelve digits of the SHA-256 of residual and Jacobian; or of the NTK that came."""
        return self._ntk_hash or checksum(self.residual, self.jacobian)

    def spec(self, *, with_curvature: bool = False) -> dict[str, Any]:
        """Return what attributes of results say about the model.

        Parameters
        ----------
        with_curvature : bool, optional
            Say which draw of the curvature it is: for results that depend on it.

        Returns
        -------
        dict
            `n_data`; `n_params`, unless the model stands for an NTK, which does not tell;
            `source_hash`; and `curvature_hash`, in the same form, if there is a curvature.
        """
        known: dict[str, Any] = {"n_data": self.n_data}
        if self._ntk_hash is None:
            known["n_params"] = self.n_params
        known["source_hash"] = self.source_hash
        q = self.curvature
        if with_curvature and q is not None:
            parts = (q.coefficients, q.vectors) if isinstance(q, LowRankCurvature) else (q,)
            known["curvature_hash"] = checksum(*parts)
        return known

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
        """Show shapes, bytes and a summary of the spectrum, as far as it costs nothing."""
        known = "from an NTK" if self._ntk_hash else f"n_params={self.n_params}"
        largest = self._largest_eigenvalue()
        top = "" if largest is None else f", largest eigenvalue {largest:.4g}"
        return (
            f"QuadraticModel(n_data={self.n_data}, {known}, curvature: {self._kind()}, "
            f"{self.nbytes / 1e6:.3g} MB, NTK: trace {self._trace():.4g}{top}, "
            f"loss {self.loss():.4g})"
        )

    def _repr_html_(self) -> str:
        """Show the same in a notebook."""
        kind, largest = self._kind(), self._largest_eigenvalue()
        shape = "" if self.curvature is None else f", shape {self.curvature.shape}"
        rows = {
            "data points": f"{self.n_data:,}",
            "parameters": "of an NTK: made up" if self._ntk_hash else f"{self.n_params:,}",
            "curvature": kind + shape,
            "memory": bytes_shown(self.nbytes),
            "loss": f"{self.loss():.4g}",
            "NTK: trace": f"{self._trace():.4g} / learning rate",
        }
        if largest is not None:
            rows["NTK: largest eigenvalue"] = f"{largest:.4g} / learning rate"
        return html_table("Quadratic model", rows)

    def _kind(self) -> str:
        if isinstance(self.curvature, LowRankCurvature):
            return f"low rank {self.curvature.coefficients.shape[1]}"
        return "none" if self.curvature is None else "dense"

    def _trace(self) -> float:
        return float(np.vdot(self.jacobian, self.jacobian)) / self.n_data

    def _largest_eigenvalue(self) -> float | None:
        """Return it where it is known already or takes a moment."""
        products = self.n_data**2 * (self.n_params + 10 * self.n_data)
        if "eigensystem" not in self.__dict__ and products > _MOST_PRODUCTS:
            return None
        return float(self.eigensystem[0][0])


def _curvature_from(arrays: dict[str, Any]) -> Any:
    """Return the curvature in a file, or raise InputError where there are two or a half."""
    factors = [n for n in ("curvature_coefficients", "curvature_vectors") if n in arrays]
    if len(factors) == 1 or (factors and "curvature" in arrays):
        held = [*factors, *(["curvature"] if "curvature" in arrays else [])]
        raise InputError(
            "curvature must be one array, or curvature_coefficients and curvature_vectors, "
            f"got {' and '.join(held)}"
        )
    return LowRankCurvature(*(arrays[n] for n in factors)) if factors else arrays.get("curvature")


def ntk_eigensystem(ntk: FloatArray, tolerance: float = 1e-8) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues (descending, rounding noise set to zero) and eigenvectors (columns).

    Raises InputError if the matrix is not square, or further than `tolerance` from symmetric or
    from positive semidefinite (:func:`quadmodel._util.checks.tolerance_of`).
    """
    if ntk.ndim != 2 or ntk.shape[0] != ntk.shape[1]:
        raise InputError(f"ntk must be a square matrix, got shape {ntk.shape}")
    check_memory("the eigendecomposition of the NTK", 4.0 * ntk.nbytes)
    check_symmetric("ntk", ntk, tolerance)
    ascending, vectors = np.linalg.eigh(0.5 * (ntk + ntk.T))
    return clean_eigenvalues(ascending[::-1], tolerance), np.ascontiguousarray(vectors[:, ::-1])


def clean_eigenvalues(descending: FloatArray, tolerance: float = 1e-8) -> FloatArray:
    """Set eigenvalues to zero that are zero up to rounding; raise InputError for negative ones."""
    largest = float(np.abs(descending).max())
    lowest = float(descending.min())
    if lowest < -tolerance * largest:
        raise InputError(
            f"ntk must be positive semidefinite up to {tolerance:.1g} of its largest eigenvalue, "
            f"got the eigenvalue {lowest:.4g} (largest {largest:.4g})"
        )
    rounding = 4 * len(descending) * np.finfo(np.float64).eps * largest
    return np.where(descending > rounding, descending, 0.0)
