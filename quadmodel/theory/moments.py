"""Late-time rate and floor of the mean loss of the linear model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator, cg

from quadmodel._util.checks import FloatArray, as_array, as_choice
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory import _noise
from quadmodel.theory._inputs import (
    CLOSURES,
    Spectrum,
    as_finite_spectrum,
    as_norm,
    check_sgd,
    need_vectors,
    on_one_blas_thread,
)
from quadmodel.theory._noise import norm_or_infinity
from quadmodel.theory._noise_products import noise_kernel_matrix, noise_kernel_product


@on_one_blas_thread
def late_time_rate(ntk: Any, sgd: SGD, *, norm: str | None = None) -> float:
    r"""Return the factor per step by which the mean loss grows at late times.

    Parameters
    ----------
    ntk : array_like, shape (n_data, n_data) or (n_data,)
        Neural tangent kernel or its eigenvalues, in units of 1 / learning rate.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    norm : {"exact", "finite"}, optional
        "exact": the spectral radius of the second-moment map; needs the matrix, and is the default
        with one. "finite": the delocalised closure, from eigenvalues alone, which may call an
        unstable run stable.

    Returns
    -------
    float
        Growth factor r of the mean loss on the range of the NTK, without unit; below 1 exactly
        where this noise kernel norm is below 1 and the learning rate is below the deterministic
        edge. +inf where learning rate times largest eigenvalue is above 1e50.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite, or "exact" comes without the matrix.

    Notes
    -----
    r is the root of K(r) = 1, K(r) being the noise kernel norm with the response n steps after the
    noise weighted by :math:`r^{-n-1}`. For plain SGD in the closure:
    :math:`(\eta^2\gamma/D)\sum_\alpha\lambda_\alpha^2/(r-a_\alpha) = 1` with
    :math:`a_\alpha = (1-\eta\lambda_\alpha)^2 - \kappa\eta^2\gamma\lambda_\alpha^2/D`.

    References
    ----------
    .. [1] The Volterra equation of arXiv:2404.19261, section 3, for exponential growth;
       derivations/03-noise-kernel.md.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> lam = np.linspace(0.5, 1.5, 100)
    >>> sgd = qm.SGD(learning_rate=0.1, batch_size=10)
    >>> bool(qm.late_time_rate(lam, sgd) < 1) == bool(qm.noise_kernel_norm(lam, sgd) < 1)
    True
    """
    spectrum = as_finite_spectrum(ntk)
    norm = as_norm(norm, spectrum, CLOSURES)
    check_sgd(sgd, spectrum.n_data)
    if norm == "exact":
        need_vectors(spectrum)
    return rate_on_spectrum(spectrum, sgd, norm)


def rate_on_spectrum(spectrum: Spectrum, sgd: SGD, norm: str) -> float:
    """Return the late-time growth factor on checked input."""
    if spectrum.edge == 0:
        return 1.0
    if formulas.beyond_floats(spectrum.edge, sgd):
        return float("inf")
    moving = spectrum.eigenvalues > 0
    lam, n_data = spectrum.eigenvalues[moving], spectrum.n_data
    found: float | None = None
    if formulas.batch_weight_covariance(sgd, n_data)[0] > 0:
        found = _noise.closure_growth(lam, sgd, n_data)
        if norm == "exact":
            vectors = need_vectors(spectrum)[1][:, moving]
            exact = _noise.exact_growth(lam, vectors, sgd, found or 0.0, np.ones(n_data))
            found = None if exact is None else exact.factor
    return formulas.noiseless_decay(lam, sgd) if found is None else found


@on_one_blas_thread
def loss_floor(ntk: Any, residual: ArrayLike, sgd: SGD, *, norm: str = "exact") -> float:
    r"""Return the mean loss that remains after infinitely many steps.

    Parameters
    ----------
    ntk : array_like, shape (n_data, n_data)
        Neural tangent kernel, in units of 1 / learning rate.
    residual : array_like, shape (n_data,)
        Initial residual :math:`z_0`.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    norm : {"exact", "finite"}, optional
        The exact recursion, or the delocalised closure, which may call an unstable run stable.

    Returns
    -------
    float
        :math:`\lim E L_t`, in the loss's unit; 0 where the parameters can fit every residual and
        there is no weight decay, +inf where training is unstable.

    Raises
    ------
    InputError
        If `ntk` is not symmetric positive semidefinite or `residual` does not fit it.

    Notes
    -----
    The mean residual converges to :math:`m_\alpha = \rho z_{0\alpha}/(\lambda_\alpha + \rho)`,
    without weight decay the part :math:`z_\perp` of :math:`z_0` in the null space, and remains a
    source of noise. The mean squared residuals x of the data points solve :math:`(I - G)x = d`, d
    being the source term due to m; in the closure, without weight decay,
    :math:`L_\infty = |z_\perp|^2/(2D)\cdot 1/(1-K_\mathrm{finite})`.

    References
    ----------
    .. [1] Fixed point of the linear model's second moment: derivations/02-second-moment.md and
       derivations/03-noise-kernel.md.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> ntk = np.diag([1.0, 1.0, 0.0])
    >>> round(qm.loss_floor(ntk, [1.0, 1.0, 3.0], qm.SGD(learning_rate=0.1, batch_size=3)), 6)
    1.5
    """
    as_choice("norm", norm, CLOSURES)
    spectrum = as_finite_spectrum(ntk)
    check_sgd(sgd, spectrum.n_data)
    need_vectors(spectrum)
    residual = as_array("residual", residual, (spectrum.n_data,))
    return floor_on_spectrum(spectrum, residual, sgd, norm)


def floor_on_spectrum(spectrum: Spectrum, residual: FloatArray, sgd: SGD, norm: str) -> float:
    """Return the floor on checked input."""
    if norm_or_infinity(spectrum, sgd, norm) >= 1:
        return float("inf")
    lam, vectors = need_vectors(spectrum)
    start = vectors.T @ residual
    if sgd.weight_decay == 0:
        kept = np.where(lam == 0, 1.0, 0.0)
    else:
        kept = generated.kept_fraction(lam, sgd.weight_decay)
    mean = kept * start
    # In units of its largest entry, so that no square underflows or overflows before the last.
    _, exponent = np.frexp(np.abs(mean).max())
    floor = _floor_of_mean(spectrum, np.ldexp(mean, -exponent), sgd, norm)
    with np.errstate(over="ignore"):
        return float(np.ldexp(floor, 2 * exponent))


def _floor_of_mean(spectrum: Spectrum, mean: FloatArray, sgd: SGD, norm: str) -> float:
    """Return the floor below the edges, from the modes' mean residuals at late times."""
    lam, _ = need_vectors(spectrum)
    n_data = spectrum.n_data
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    if gamma == 0 or not np.any(mean):
        return float(mean @ mean) / (2 * n_data)
    if norm == "finite":
        bare = formulas.bare_response(lam, lam, sgd)
        dressed = formulas.dressed_response(bare, gamma, kappa, n_data)
        own, share = generated.squared_residual_at_gradient(mean**2, dressed, gamma, kappa, n_data)
        point_noise = own.sum() / (1 - share.sum()) / n_data
        at_gradient = own + share * n_data * point_noise
    else:
        at_gradient, point_noise = _exact_at_gradient(spectrum, mean, sgd)
    source = generated.noise_covariance(at_gradient, point_noise, gamma, kappa, n_data)
    of_residual = formulas.bare_response(lam, lam, sgd, at_gradient=False)
    return float(mean @ mean + of_residual @ source) / (2 * n_data)


def _exact_at_gradient(
    spectrum: Spectrum, mean: FloatArray, sgd: SGD
) -> tuple[FloatArray, FloatArray]:
    """Return the modes' stationary squared residuals at the gradient, and diag(V^T diag(x) V).

    x are the stationary squared residuals of the data points at the gradient.
    """
    lam, vectors = need_vectors(spectrum)
    n_data = spectrum.n_data
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    bare = formulas.bare_response(lam[:, None], lam[None, :], sgd)
    dressed = formulas.dressed_response(bare, gamma, kappa, n_data)
    known = np.outer(mean, mean)
    own, share = generated.squared_residual_at_gradient(known, dressed, gamma, kappa, n_data)
    source = np.einsum("ia,ia->i", vectors @ own, vectors)
    per_point = _summed_noise(vectors, gamma * dressed, source)
    per_mode = vectors.T @ (per_point[:, None] * vectors)
    return np.diagonal(own + share * n_data * per_mode), np.diagonal(per_mode)


def _summed_noise(vectors: FloatArray, response: FloatArray, source: FloatArray) -> FloatArray:
    """Solve (I - G) x = source, the largest eigenvalue of the noise kernel matrix G below 1."""
    n_data, scale = len(vectors), np.abs(source).max()
    if scale == 0:
        return source
    operator = LinearOperator(
        (n_data, n_data),
        matvec=lambda d: np.ravel(d) - noise_kernel_product(vectors, response, d),
        dtype=np.float64,
    )
    found, failed = cg(operator, source / scale, rtol=1e-13, maxiter=20 * n_data)
    if failed:  # close to K = 1
        matrix = np.eye(n_data) - noise_kernel_matrix(vectors, response)
        found = np.linalg.solve(matrix, source / scale)
    return np.asarray(scale * found)
