"""How far SGD is from its edges: every noise kernel norm, and the factors up to instability."""

from __future__ import annotations

from typing import Any

from quadmodel._util.results import attributes, variable
from quadmodel._util.tables import Margins
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _noise
from quadmodel.theory._inputs import (
    NORMS,
    Spectrum,
    as_spectrum,
    check_sgd,
    on_one_blas_thread,
)


@on_one_blas_thread
def stability_margins(ntk: Any, sgd: SGD, *, n_data: int | None = None) -> Margins:
    r"""Return K of each kind, and by which factor the learning rate may grow up to both edges.

    Parameters
    ----------
    ntk : array_like of shape (n_data, n_data) or (n_data,), or SpectralLaw
        Neural tangent kernel, its eigenvalues, or their law. Units of 1 / learning rate.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    n_data : int, optional
        Number of data points D, to be given with a spectral law.

    Returns
    -------
    xarray.Dataset
        `noise_kernel_norm`, `critical_learning_rate` and `margin`, the last over the learning
        rate, over norm ("paper", "finite" and, from a matrix, "exact"); the numbers
        `edge_of_stability`, `deterministic_margin`, `learning_rate` and `batch_size`. Margins
        below 1 are instability. A text or a notebook shows it as a table.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite and finite, or the batch is larger than the
        data.

    Notes
    -----
    The margin of the exact norm is what counts; the others bound it, or are its limit: see
    :func:`quadmodel.noise_kernel_norm`.

    References
    ----------
    .. [1] derivations/03-noise-kernel.md.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> qm.stability_margins(np.full(100, 1.0), qm.SGD(learning_rate=0.1, batch_size=10))
    learning rate 0.1, batch size 10; margin: factor up to the edge
                       K  learning rate at the edge  margin
    K = 1, paper  0.4737                        0.2       2
    K = 1, finite 0.4762                        0.2       2
    deterministic    NaN                          2      20
    """
    spectrum = as_spectrum(ntk, n_data=n_data)
    check_sgd(sgd, spectrum.n_data)
    matrix = isinstance(spectrum, Spectrum) and spectrum.vectors is not None
    norms = NORMS if matrix else NORMS[:2]
    critical = [_noise.critical_on_spectrum(spectrum, sgd, norm) for norm in norms]
    edge, unit = formulas.noiseless_edge(spectrum.edge, sgd), "1 / NTK eigenvalue"
    return Margins(
        {
            "noise_kernel_norm": variable(
                "norm",
                [_noise.norm_or_infinity(spectrum, sgd, norm) for norm in norms],
                "noise kernel norm",
                "1",
            ),
            "critical_learning_rate": variable(
                "norm", critical, "learning rate where the noise kernel norm is 1", unit
            ),
            "margin": variable(
                "norm",
                [rate / sgd.learning_rate for rate in critical],
                "critical learning rate over learning rate",
                "1",
            ),
            "edge_of_stability": variable((), edge, "deterministic edge of stability", unit),
            "deterministic_margin": variable(
                (), edge / sgd.learning_rate, "deterministic edge over learning rate", "1"
            ),
            "learning_rate": variable((), sgd.learning_rate, "learning rate", unit),
            "batch_size": variable((), sgd.batch_size, "batch size", "data points"),
        },
        coords={"norm": list(norms)},
        attrs=attributes("stability margins", spectrum.spec() | sgd.spec()),
    )
