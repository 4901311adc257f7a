"""The noise kernel norm K and the learning rates where training turns unstable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from quadmodel._util.checks import LARGEST, InputError, as_batch_size, as_list, as_number
from quadmodel._util.results import Variable, attributes, variable
from quadmodel.optimizer import SGD
from quadmodel.spectra import SpectralLaw
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory import _noise
from quadmodel.theory._inputs import (
    NORMS,
    LimitSpectrum,
    Spectrum,
    as_finite_spectrum,
    as_norm,
    as_spectrum,
    check_sgd,
    on_one_blas_thread,
)


class _Grid(NamedTuple):
    """Learning rates and batch sizes that a closed form goes through."""

    sgd: SGD
    learning_rates: list[float]
    batch_sizes: list[int]
    swept: list[str]  # which of the two were given

    @classmethod
    def over(
        cls, n_data: int, sgd: SGD, learning_rates: ArrayLike | None, batch_sizes: ArrayLike | None
    ) -> _Grid:
        """Check what was given; what was not is that of `sgd`."""
        if batch_sizes is None:
            check_sgd(sgd, n_data)
        elif not isinstance(sgd, SGD):
            raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
        given = {"learning_rate": learning_rates, "batch_size": batch_sizes}
        rates = sgd.learning_rate if learning_rates is None else learning_rates
        sizes = sgd.batch_size if batch_sizes is None else batch_sizes
        return cls(
            sgd,
            as_list("learning_rates", rates, lambda v: as_number("learning_rates", v, above=0.0)),
            as_list("batch_sizes", sizes, lambda size: as_batch_size(size, n_data)),
            [name for name, values in given.items() if values is not None],
        )

    def labelled(
        self, variables: dict[str, Variable], spectrum: Spectrum | LimitSpectrum, **options: Any
    ) -> xr.Dataset:
        """Return the Dataset, without the axes that were not asked for."""
        settings = {k: v for k, v in self.sgd.spec().items() if k not in self.swept}
        coords = {
            "learning_rate": variable(
                "learning_rate", self.learning_rates, units="1 / NTK eigenvalue"
            ),
            "batch_size": variable("batch_size", self.batch_sizes, units="data points"),
        }
        held = {dim for dims, *_ in variables.values() for dim in np.atleast_1d(dims)}
        found = xr.Dataset(
            variables,
            coords={name: coords[name] for name in coords if name in held},
            attrs=attributes("closed form", spectrum.spec() | settings, **options),
        )
        alone = [name for name in coords if name in held and name not in self.swept]
        return found.squeeze(alone, drop=True)


_WHAT_NORMS_LEAVE_OUT = (
    "paper: many data points without replacement, whatever the sampling scheme; "
    "finite: a lower bound of exact, so that its edge may lie in the unstable region"
)


@overload
def noise_kernel_norm(
    ntk: Any, sgd: SGD, *, norm: str | None = None, n_data: int | None = None
) -> float: ...
@overload
def noise_kernel_norm(
    ntk: Any,
    sgd: SGD,
    *,
    norm: str | None = None,
    n_data: int | None = None,
    learning_rates: ArrayLike,
    batch_sizes: ArrayLike | None = None,
) -> xr.Dataset: ...
@overload
def noise_kernel_norm(
    ntk: Any,
    sgd: SGD,
    *,
    norm: str | None = None,
    n_data: int | None = None,
    learning_rates: None = None,
    batch_sizes: ArrayLike,
) -> xr.Dataset: ...
@on_one_blas_thread
def noise_kernel_norm(
    ntk: Any,
    sgd: SGD,
    *,
    norm: str | None = None,
    n_data: int | None = None,
    learning_rates: ArrayLike | None = None,
    batch_sizes: ArrayLike | None = None,
) -> float | xr.Dataset:
    r"""Return the noise kernel norm K: below 1, the noise of a batch decays in mean square.

    Parameters
    ----------
    ntk : array_like of shape (n_data, n_data) or (n_data,), LinearOperator or SpectralLaw
        Neural tangent kernel :math:`\Theta = JJ^\top/D`, or all its eigenvalues
        :math:`\lambda_\alpha`, or their law in infinite dimension. Units of 1 / learning rate. An
        operator of SciPy gives products with the kernel, wherever they are computed; from 6000 data
        points on, eigenvectors are in single precision, which leaves an error of about 1e-6.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    norm : {"exact", "finite", "paper"}, optional
        "exact": the Perron root of the noise kernel matrix; with :math:`\eta\lambda_{\max}` below
        its edge, SGD on the linear model is stable in mean square exactly where it is below 1.
        "finite": the closure in modes, from eigenvalues alone; a lower bound of the exact norm, so
        that 1 or more certifies instability, and less does not certify stability. "paper": the
        high-dimensional limit of [1]_ without replacement, which does not know the sampling scheme.
        "exact" needs the matrix, and is the default with one; "finite" is without.
    n_data : int, optional
        Number of data points D, to be given with a spectral law.
    learning_rates, batch_sizes : array_like, optional
        Values to go through instead of those of `sgd`; the NTK is diagonalised once for all.

    Returns
    -------
    float or xarray.Dataset
        K, without unit; +inf at and above the deterministic edge of stability, 0 for full batches
        below it. With `learning_rates` or `batch_sizes`, a Dataset with `noise_kernel_norm` over
        them (learning_rate, batch_size).

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite and finite, the batch is larger than the
        data, or "exact" comes without the matrix.

    Notes
    -----
    With :math:`\beta = B/D`, batch weight covariance :math:`\gamma(I - \kappa 11^\top/D)` and no
    momentum,

    .. math::
        K_\mathrm{paper} = \frac{\eta(1/\beta-1)}{D}\sum_\alpha
            \frac{\lambda_\alpha}{2-\eta\lambda_\alpha},
        \qquad
        K_\mathrm{finite} = \frac{\eta\gamma}{D}\sum_\alpha
            \frac{\lambda_\alpha}{2-\eta\lambda_\alpha(1-\kappa\gamma/D)}

    and :math:`K_\mathrm{exact} = \lambda_{\max}(G)`,
    :math:`G_{ij} = \gamma\sum_{\alpha\beta}
    V_{i\alpha}V_{j\alpha}S_{\alpha\beta}V_{i\beta}V_{j\beta}`, with
    :math:`S_{\alpha\beta} = 1/(1/S^0_{\alpha\beta} + \kappa\gamma/D)`,
    :math:`S^0_{\alpha\beta} = \eta/(1/\lambda_\alpha+1/\lambda_\beta-\eta)`. Momentum, Nesterov and
    weight decay change :math:`S^0` only. The uniform vector gives
    :math:`K_\mathrm{finite}\le K_\mathrm{exact}`. For a law with Stieltjes transform
    :math:`m(x) = \int d\rho/(x-\lambda)`, the mean is
    :math:`\int\lambda/(2-\eta\lambda)\,d\rho = (2/\eta^2)m(2/\eta) - 1/\eta`.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.
    .. [2] The exact norm goes beyond [1]_: derivations/03-noise-kernel.md; compare R. Mulayoff,
       T. Michaeli, arXiv:2306.07850, Theorem 3.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> round(qm.noise_kernel_norm(np.full(100, 1.0), qm.SGD(learning_rate=0.2, batch_size=10)), 6)
    1.0
    >>> rates = np.geomspace(0.01, 1.0, 5)
    >>> qm.noise_kernel_norm(
    ...     np.full(100, 1.0), qm.SGD(0.2, 10), learning_rates=rates, batch_sizes=[1, 10, 100]
    ... ).noise_kernel_norm.shape
    (5, 3)
    """
    spectrum = as_spectrum(ntk, n_data=n_data)
    norm = as_norm(norm, spectrum)
    if learning_rates is None and batch_sizes is None:
        check_sgd(sgd, spectrum.n_data)
        return _noise.norm_or_infinity(spectrum, sgd, norm)
    grid = _Grid.over(spectrum.n_data, sgd, learning_rates, batch_sizes)
    rates = np.array(grid.learning_rates)
    values = np.stack(
        [
            _noise.norms_along(spectrum, sgd._at(batch_size=size), rates, norm)
            for size in grid.batch_sizes
        ],
        axis=1,
    )
    found = variable(("learning_rate", "batch_size"), values, "noise kernel norm", "1")
    return grid.labelled({"noise_kernel_norm": found}, spectrum, norm=norm)


@overload
def edge_of_stability(ntk: Any, sgd: SGD) -> float: ...
@overload
def edge_of_stability(
    ntk: Any, sgd: SGD, *, learning_rates: ArrayLike, batch_sizes: ArrayLike | None = None
) -> xr.Dataset: ...
@overload
def edge_of_stability(
    ntk: Any, sgd: SGD, *, learning_rates: None = None, batch_sizes: ArrayLike
) -> xr.Dataset: ...
@on_one_blas_thread
def edge_of_stability(
    ntk: Any,
    sgd: SGD,
    *,
    learning_rates: ArrayLike | None = None,
    batch_sizes: ArrayLike | None = None,
) -> float | xr.Dataset:
    r"""Return the learning rate at which training without batch noise turns unstable.

    Parameters
    ----------
    ntk : array_like of shape (n_data, n_data) or (n_data,), or SpectralLaw
        Neural tangent kernel, its eigenvalues, or their law. Units of 1 / learning rate.
    sgd : SGD
        Momentum and weight decay; its learning rate and batch size don't matter.
    learning_rates, batch_sizes : array_like, optional
        Values to go through, for a Dataset beside that of :func:`noise_kernel_norm`.

    Returns
    -------
    float or xarray.Dataset
        Learning rate; +inf for a vanishing NTK. With `learning_rates` or `batch_sizes`, a Dataset
        with `edge_of_stability` (batch_size), the same for all of them, and `margin`
        (learning_rate, batch_size), the factor by which the learning rate may grow up to the edge.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite and finite.

    Notes
    -----
    :math:`\eta(\lambda_{\max}+\rho) = 2` for plain SGD, :math:`2(1+\mu)` for the heavy ball,
    :math:`2(1+\mu)/(1+2\mu)` for Nesterov (:math:`1-1/\mu` where :math:`\mu<-1/3`).

    References
    ----------
    .. [1] derivations/03-noise-kernel.md (Schur-Cohn conditions); J. Cohen et al.,
       arXiv:2103.00065, for the name.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.edge_of_stability([4.0, 1.0], qm.SGD(learning_rate=1.0, batch_size=1))
    0.5
    >>> sgd = qm.SGD(learning_rate=1.0, batch_size=1)
    >>> qm.edge_of_stability([4.0, 1.0], sgd, learning_rates=[0.1, 0.25]).margin.values.tolist()
    [5.0, 2.0]
    """
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    spectrum = LimitSpectrum(ntk, LARGEST) if isinstance(ntk, SpectralLaw) else as_spectrum(ntk)
    edge = formulas.noiseless_edge(spectrum.edge, sgd)
    if learning_rates is None and batch_sizes is None:
        return edge
    grid = _Grid.over(spectrum.n_data, sgd, learning_rates, batch_sizes)
    rates, sizes = np.array(grid.learning_rates), np.ones(len(grid.batch_sizes))
    unit = "1 / NTK eigenvalue"
    return grid.labelled(
        {
            "edge_of_stability": variable(
                "batch_size", edge * sizes, "deterministic edge of stability", unit
            ),
            "margin": variable(
                ("learning_rate", "batch_size"),
                np.outer(edge / rates, sizes),
                "deterministic edge over learning rate",
                "1",
            ),
        },
        spectrum,
    )


@overload
def critical_learning_rate(
    ntk: Any, sgd: SGD, *, norm: str | None = None, level: float = 1.0, n_data: int | None = None
) -> float: ...
@overload
def critical_learning_rate(
    ntk: Any,
    sgd: SGD,
    *,
    norm: str | None = None,
    level: float = 1.0,
    n_data: int | None = None,
    batch_sizes: ArrayLike,
) -> xr.Dataset: ...
@on_one_blas_thread
def critical_learning_rate(
    ntk: Any,
    sgd: SGD,
    *,
    norm: str | None = None,
    level: float = 1.0,
    n_data: int | None = None,
    batch_sizes: ArrayLike | None = None,
) -> float | xr.Dataset:
    r"""Return the learning rate at which the noise kernel norm reaches `level`.

    Parameters
    ----------
    ntk : array_like of shape (n_data, n_data) or (n_data,), or SpectralLaw
        Neural tangent kernel, its eigenvalues, or their law. Units of 1 / learning rate.
    sgd : SGD
        Batch size, momentum, weight decay and sampling scheme; its learning rate is ignored.
    norm : {"exact", "finite", "paper"}, optional
        Which noise kernel norm, as for :func:`noise_kernel_norm`: by default "exact" from a matrix,
        else "finite", whose learning rate may lie above the exact one. "paper" does not know the
        sampling scheme.
    level : float, optional
        Value of K to reach, positive; 1 is the stochastic edge of stability.
    n_data : int, optional
        Number of data points D, to be given with a spectral law.
    batch_sizes : array_like, optional
        Batch sizes to go through instead of that of `sgd`; the NTK is diagonalised once for all.

    Returns
    -------
    float or xarray.Dataset
        Learning rate, at most the deterministic edge; the edge itself where K jumps over `level`
        there, as for full batches. With `batch_sizes`, a Dataset with `critical_learning_rate`
        over them (batch_size); :func:`phase_boundaries` gives all norms and both edges.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite and finite, `level` is not positive, or
        "exact" comes without the matrix.

    Notes
    -----
    K grows with the learning rate from 0 to its value at the edge, so the root is bracketed by 0
    and :func:`edge_of_stability`: Newton's method in the logarithms inside this bracket, with the
    slope of the exact K from its Perron vector, and secants for the other two.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3; derivations/03-noise-kernel.md.
    .. [2] R. Mulayoff, T. Michaeli, arXiv:2306.07850, Theorem 3: the same exact threshold.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> sgd = qm.SGD(learning_rate=1.0, batch_size=10)
    >>> round(qm.critical_learning_rate(np.full(100, 1.0), sgd), 4)
    0.2
    >>> found = qm.critical_learning_rate(np.full(100, 1.0), sgd, batch_sizes=[1, 10])
    >>> found.critical_learning_rate.round(4).values.tolist()
    [0.02, 0.2]
    """
    level = as_number("level", level, above=0.0)
    spectrum = as_spectrum(ntk, n_data=n_data)
    norm = as_norm(norm, spectrum)
    if batch_sizes is None:
        check_sgd(sgd, spectrum.n_data)
        return _noise.critical_on_spectrum(spectrum, sgd, norm, level)
    grid = _Grid.over(spectrum.n_data, sgd, None, batch_sizes)
    values = [
        _noise.critical_on_spectrum(spectrum, sgd._at(batch_size=size), norm, level)
        for size in grid.batch_sizes
    ]
    what = f"learning rate where the noise kernel norm is {level:g}"
    found = variable("batch_size", values, what, "1 / NTK eigenvalue")
    found_for = {"critical_learning_rate": found}
    return grid.labelled(found_for, spectrum, norm=norm, level=level)


@on_one_blas_thread
def phase_boundaries(
    ntk: ArrayLike | Spectrum,
    batch_sizes: Sequence[int] | NDArray[np.integer],
    sgd: SGD | None = None,
) -> xr.Dataset:
    r"""Return the stochastic and the deterministic edge, and where they cross, per batch size.

    Parameters
    ----------
    ntk : array_like, shape (n_data, n_data) or (n_data,)
        Neural tangent kernel or its eigenvalues; the exact edge needs the matrix.
    batch_sizes : sequence of int
        Batch sizes, between 1 and n_data.
    sgd : SGD, optional
        Momentum, weight decay and sampling scheme; plain SGD if left out.

    Returns
    -------
    xarray.Dataset
        `critical_learning_rate` (norm, batch_size), with norm "paper", "finite" and, from a matrix,
        "exact" (the coordinate's comment says what the first two leave out); `edge_of_stability`
        (batch_size); and the number `crossing_batch_size`: where the small-learning-rate form of
        K = 1 meets the edge, :math:`\mathrm{tr}(\Theta)/\lambda_{\max}` for plain SGD. Below it
        noise limits the learning rate, above it the largest eigenvalue does.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite, or a batch size does not fit.

    Notes
    -----
    Small learning rates: :math:`K \to \eta\sum_\alpha\lambda_\alpha^2/(\lambda_\alpha+\rho)
    /(2B(1-\mu))`.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> edges = qm.phase_boundaries(np.linspace(0.1, 1.0, 50), [1, 5, 25])
    >>> bool((edges.critical_learning_rate < edges.edge_of_stability).all())
    True
    """
    spectrum = as_finite_spectrum(ntk)
    template = SGD(learning_rate=1.0, batch_size=1) if sgd is None else sgd
    sizes = as_list("batch_sizes", batch_sizes, lambda size: as_batch_size(size, spectrum.n_data))
    if not isinstance(template, SGD):
        raise InputError(f"sgd must be an SGD, got {type(template).__name__}")
    norms = NORMS if spectrum.vectors is not None else NORMS[:2]
    critical = [
        [_noise.critical_on_spectrum(spectrum, template._at(batch_size=b), n) for b in sizes]
        for n in norms
    ]
    lam, edge = spectrum.eigenvalues, formulas.noiseless_edge(spectrum.edge, template)
    top = spectrum.edge or 1.0  # the unit, in which no square overflows
    responses = generated.small_rate_response(
        lam[lam > 0] / top, template.weight_decay / top, template.momentum
    )
    crossing = edge * top * float(np.sum(responses)) if responses.size else float("nan")
    attrs = attributes("phase boundaries", spectrum.spec() | template.spec())
    found = labelled_boundaries(norms, sizes, np.array(critical), edge, crossing)
    return found.assign_attrs(attrs)


def labelled_boundaries(
    norms: Sequence[str],
    sizes: Sequence[int],
    critical: NDArray[np.float64],
    edge: float,
    crossing: float,
) -> xr.Dataset:
    """Label critical learning rates, shape (norms, batch sizes), and what all of them share."""
    unit = "1 / NTK eigenvalue"
    return xr.Dataset(
        {
            "critical_learning_rate": variable(
                ("norm", "batch_size"),
                critical,
                "learning rate where the noise kernel norm is 1",
                unit,
            ),
            "edge_of_stability": variable(
                "batch_size",
                np.full(len(sizes), edge),
                "deterministic edge of stability",
                unit,
            ),
            "crossing_batch_size": variable(
                (), crossing, "batch size where both edges meet", "data points"
            ),
        },
        coords={
            "norm": (
                "norm",
                list(norms),
                {"long_name": "which noise kernel norm", "comment": _WHAT_NORMS_LEAVE_OUT},
            ),
            "batch_size": variable("batch_size", list(sizes), units="data points"),
        },
    )
