"""Laws of the NTK eigenvectors: spread evenly over the data, or concentrated on some points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_number
from quadmodel._util.display import law_html

__all__ = [
    "EigenvectorLaw",
    "Haar",
    "Localised",
    "haar_frame",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)


class EigenvectorLaw(ABC):
    """Law of the orthogonal matrix of NTK eigenvectors.

    Examples
    --------
    A law of your own has one method; this one gives every data point a mode of its own:

    >>> import numpy as np, quadmodel as qm
    >>> class OnePointEach(qm.eigenvectors.EigenvectorLaw):
    ...     def sample(self, rng, n_data):
    ...         return np.eye(n_data)
    >>> model = qm.Ensemble(2, 4, [2.0, 1.0], OnePointEach()).sample(seed=0)
    >>> bool(np.allclose(model.ntk(), [[2.0, 0.0], [0.0, 1.0]]))
    True
    """

    def _repr_html_(self) -> str:
        """Show kind and parameters in a notebook."""
        return law_html(self)

    @abstractmethod
    def sample(self, rng: np.random.Generator, n_data: int) -> FloatArray:
        """Draw the eigenvectors.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of randomness.
        n_data : int
            Data points.

        Returns
        -------
        ndarray, shape (n_data, n_data)
            Orthogonal; columns are modes, in descending order of eigenvalue.

        Raises
        ------
        InputError
            If the law doesn't fit `n_data`.
        """


@dataclass(frozen=True)
class Haar(EigenvectorLaw):
    """Eigenvectors uniformly distributed over the orthogonal group: delocalised.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> vectors = qm.eigenvectors.Haar().sample(np.random.default_rng(0), n_data=5)
    >>> bool(np.allclose(vectors @ vectors.T, np.eye(5)))
    True
    """

    def sample(self, rng: np.random.Generator, n_data: int) -> FloatArray:
        """Draw the eigenvectors; see `EigenvectorLaw.sample`."""
        return haar_frame(rng, n_data, n_data)


@dataclass(frozen=True)
class Localised(EigenvectorLaw):
    r"""Leading eigenvectors that are concentrated on a few data points.

    Parameters
    ----------
    row_fraction : float
        Fraction of the data points, inside (0, 1/2], on which the leading modes are concentrated.
        These :math:`n` heavy points (`row_fraction` times :math:`D`, rounded) are chosen at random.
    share : float
        Part :math:`s`, between 0 and 1, of the squared norm of each of the :math:`n` leading modes
        that lies on the heavy points.

    Raises
    ------
    InputError
        If a value lies outside its range; from `sample`, if no point or more than half of the
        points would be heavy.

    Notes
    -----
    A leading mode is :math:`\sqrt s\,o` on the heavy points and :math:`\sqrt{1-s}\,o'` on the
    others, with :math:`o` from a Haar-distributed :math:`n \times n` matrix and :math:`o'` from a
    Haar-distributed frame. The other :math:`D-n` modes are a Haar-distributed basis of the
    complement. At `share` = `row_fraction` all points have equal parts on average.

    Examples
    --------
    Where few points carry the leading modes, exact K lies above the finite one:

    >>> import quadmodel as qm
    >>> law = qm.eigenvectors.Localised(row_fraction=0.1, share=0.9)
    >>> ntk = qm.Ensemble(40, 80, qm.spectra.PowerLaw(1.0), law).sample(seed=0).ntk()
    >>> sgd = qm.SGD(learning_rate=0.1, batch_size=2)
    >>> exact, finite = (qm.noise_kernel_norm(ntk, sgd, norm=norm) for norm in ("exact", "finite"))
    >>> exact > 1.5 * finite
    True
    """

    row_fraction: float
    share: float

    def __post_init__(self) -> None:
        """Check every field once."""
        fraction = as_number("row_fraction", self.row_fraction, above=0.0, most=0.5)
        object.__setattr__(self, "row_fraction", fraction)
        object.__setattr__(self, "share", as_number("share", self.share, least=0.0, most=1.0))

    def sample(self, rng: np.random.Generator, n_data: int) -> FloatArray:
        """Draw the eigenvectors; see `EigenvectorLaw.sample`."""
        n_heavy = round(self.row_fraction * n_data)
        if not 1 <= n_heavy <= n_data // 2:
            raise InputError(
                f"row_fraction must give between 1 and n_data/2={n_data // 2} heavy points, "
                f"got {n_heavy} from {self.row_fraction:g}"
            )
        heavy = np.zeros(n_data, dtype=bool)
        heavy[rng.choice(n_data, n_heavy, replace=False)] = True
        vectors = rng.standard_normal((n_data, n_data))
        inside = haar_frame(rng, n_heavy, n_heavy)
        outside = haar_frame(rng, n_data - n_heavy, n_heavy)
        vectors[heavy, :n_heavy] = np.sqrt(self.share) * inside
        vectors[~heavy, :n_heavy] = np.sqrt(1.0 - self.share) * outside
        # Orthonormalising keeps the leading columns and turns the Gaussian ones into a
        # Haar-distributed basis of the complement.
        return _orthonormalise(vectors)


def haar_frame(rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
    """Draw an orthonormal frame, uniformly distributed over the Stiefel manifold.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    rows, columns : int
        Shape, with ``columns <= rows``.

    Returns
    -------
    ndarray, shape (rows, columns)
        Orthonormal columns.

    References
    ----------
    .. [1] F. Mezzadri, arXiv:math-ph/0609050, section 5.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> frame = qm.eigenvectors.haar_frame(np.random.default_rng(0), rows=5, columns=2)
    >>> bool(np.allclose(frame.T @ frame, np.eye(2)))
    True
    """
    return _orthonormalise(rng.standard_normal((rows, columns)))


def _orthonormalise(vectors: FloatArray) -> FloatArray:
    """Gram-Schmidt by QR, with positive diagonal: without the signs the frame is not Haar."""
    frame, triangle = np.linalg.qr(vectors)
    frame *= np.copysign(1.0, np.diagonal(triangle))
    return np.asarray(frame)
