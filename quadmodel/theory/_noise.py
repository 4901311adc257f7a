"""The noise kernel norm K: its matrix, largest eigenvalue and roots.

Inputs are validated in noise_kernel.py and moments.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel._util.lanczos import Eigenpair, largest_eigenpair
from quadmodel._util.roots import newton_in_bracket
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory._inputs import LimitSpectrum, Spectrum, need_vectors
from quadmodel.theory._noise_products import noise_kernel_matrix, noise_kernel_product, rayleigh

# Below this size the matrix is built whole.
_SMALL = 24
# From this size on the first iterations are in single precision, from the other one on all are, and
# only a Rayleigh quotient follows.
_LARGE, _HUGE = 500, 3000
_TOLERANCE = 1e-12
# Maps a learning rate or a growth factor to K and its slope, which is NaN where it isn't known.
NormAndSlope = Callable[[float], tuple[float, float]]


def norm_or_infinity(spectrum: Spectrum | LimitSpectrum, sgd: SGD, norm: str) -> float:
    """Return K on checked input; +inf at and above the deterministic edge."""
    if norm == "exact":
        need_vectors(spectrum)
    if sgd.learning_rate >= formulas.noiseless_edge(spectrum.edge, sgd):
        return float("inf")
    return norm_on_spectrum(spectrum, sgd, norm)


def norm_on_spectrum(spectrum: Spectrum | LimitSpectrum, sgd: SGD, norm: str) -> float:
    """Return K at a learning rate below the deterministic edge."""
    n_data = spectrum.n_data
    covariance = (
        formulas.paper_weight_covariance if norm == "paper" else formulas.batch_weight_covariance
    )
    gamma, kappa = covariance(sgd, n_data)
    if gamma == 0.0:
        return 0.0
    if norm == "exact":
        return _exact_norm(spectrum, sgd).value
    if isinstance(spectrum, LimitSpectrum):
        return gamma * _law_average(spectrum, sgd, gamma, kappa)
    lam = spectrum.eigenvalues
    return gamma * float(_dressed(lam, lam, sgd, gamma, kappa, n_data).mean())


def norms_along(
    spectrum: Spectrum | LimitSpectrum, sgd: SGD, learning_rates: FloatArray, norm: str
) -> FloatArray:
    """Return K at some learning rates on checked input; +inf at and above the deterministic edge.

    Exact ones take the Perron vector of the learning rate before as a start.
    """
    norms, start = np.empty(len(learning_rates)), None
    noisy = formulas.batch_weight_covariance(sgd, spectrum.n_data)[0] > 0
    edge = formulas.noiseless_edge(spectrum.edge, sgd)
    for n, rate in enumerate(learning_rates.tolist()):
        at = sgd._at(learning_rate=rate)
        if norm == "exact" and noisy and rate < edge:
            norms[n], start = _exact_norm(spectrum, at, start)
        else:
            norms[n] = norm_or_infinity(spectrum, at, norm)
    return norms


def _exact_norm(
    spectrum: Spectrum | LimitSpectrum, sgd: SGD, start: FloatArray | None = None
) -> Eigenpair:
    """Return exact K with its Perron vector, `start` being a guess of it."""
    lam, vectors = need_vectors(spectrum)
    gamma, kappa = formulas.batch_weight_covariance(sgd, spectrum.n_data)
    response = _dressed(lam[:, None], lam[None, :], sgd, gamma, kappa, spectrum.n_data)
    found = perron(vectors, response, start)
    return found._replace(value=gamma * found.value)


def norm_of_bins(lam: FloatArray, weight: FloatArray, n_data: int, sgd: SGD, norm: str) -> float:
    """Return K of eigenvalues with weights; +inf at and above the deterministic edge."""
    if sgd.learning_rate >= formulas.noiseless_edge(float(lam.max()), sgd):
        return math.inf
    covariance = (
        formulas.paper_weight_covariance if norm == "paper" else formulas.batch_weight_covariance
    )
    gamma, kappa = covariance(sgd, n_data)
    return gamma * float(weight @ _dressed(lam, lam, sgd, gamma, kappa, n_data)) if gamma else 0.0


def _dressed(
    lam: FloatArray,
    other: FloatArray,
    sgd: SGD,
    gamma: float,
    kappa: float,
    n_data: int,
    growth: float = 1.0,
) -> FloatArray:
    bare = formulas.bare_response(lam, other, sgd, growth=growth)
    return formulas.dressed_response(bare, gamma, kappa, n_data)


def _law_average(spectrum: LimitSpectrum, sgd: SGD, gamma: float, kappa: float) -> float:
    """Return the mean over the law of the dressed diagonal response.

    Heavy ball without weight decay has one simple pole, whose mean the Stieltjes transform gives;
    everything else needs the density.
    """
    eta, law = sgd.learning_rate, spectrum.law
    p, q = generated.heavy_ball_pole(eta, sgd.momentum, gamma, kappa, spectrum.n_data)
    if sgd.nesterov or sgd.weight_decay > 0 or q < 0:
        return law.average(lambda lam: _dressed(lam, lam, sgd, gamma, kappa, spectrum.n_data))
    if q * spectrum.edge <= 1e-8 * p:  # far from the pole the difference below cancels
        return float(eta * law.mean / p)
    return float(eta * generated.mean_over_law(p / q, q, law.stieltjes(p / q)))


def perron_vector(spectrum: Spectrum, sgd: SGD) -> FloatArray:
    """Return the Perron vector of the noise kernel matrix: how noise spreads over the data."""
    return _exact_norm(spectrum, sgd).vector


def critical_on_spectrum(
    spectrum: Spectrum | LimitSpectrum, sgd: SGD, norm: str, level: float = 1.0
) -> float:
    """Return the learning rate where K reaches `level`, or the edge if it stays below."""
    if norm == "exact":
        need_vectors(spectrum)
    edge = formulas.noiseless_edge(spectrum.edge, sgd)
    if not np.isfinite(edge):
        return edge
    closure = "finite" if norm == "exact" else norm
    found = _root_in_learning_rate(
        lambda rate: (norm_on_spectrum(spectrum, sgd._at(learning_rate=rate), closure), math.nan),
        edge,
        edge,
        level,
    )
    if norm == "exact" and formulas.batch_weight_covariance(sgd, spectrum.n_data)[0] > 0:
        found = _root_in_learning_rate(_exact_norm_and_slope(spectrum, sgd), found, edge, level)
    return found


def _exact_norm_and_slope(spectrum: Spectrum | LimitSpectrum, sgd: SGD) -> NormAndSlope:
    """Return the function from learning rate to exact K and its slope.

    The slope follows from the Perron vector, which is also the start at the next learning rate.
    """
    lam, vectors = need_vectors(spectrum)
    gamma, kappa = formulas.batch_weight_covariance(sgd, spectrum.n_data)
    vector: FloatArray | None = None

    def response(learning_rate: float) -> FloatArray:
        at = sgd._at(learning_rate=learning_rate)
        return gamma * _dressed(lam[:, None], lam[None, :], at, gamma, kappa, spectrum.n_data)

    def value_and_slope(learning_rate: float) -> tuple[float, float]:
        nonlocal vector
        norm, vector = perron(vectors, response(learning_rate), vector)
        lower = learning_rate * (1 - 1e-5)
        change = norm - rayleigh(vectors, response(lower), vector)
        return norm, change / (learning_rate - lower)

    return value_and_slope


def _root_in_learning_rate(
    norm_and_slope: NormAndSlope, guess: float, edge: float, level: float
) -> float:
    """Return where K, which grows from 0, reaches `level`; `edge` if it stays below up to there."""

    def excess(log_fraction: float) -> tuple[float, float]:
        # In logarithms of the fraction of the edge, in which K is linear at small learning rates.
        rate = edge * math.exp(log_fraction)
        norm, slope = norm_and_slope(rate)
        if not 0 < norm < math.inf:
            return (-math.inf if norm <= 0 else math.inf), math.inf
        return math.log(norm / level), slope * rate / norm

    if guess == edge:
        # Nothing is known: K may stay below the level, and jump over it at the edge.
        if excess(-1e-14)[0] < 0:
            return edge
        guess = edge / 2
    return edge * math.exp(
        newton_in_bracket(
            excess,
            math.log(guess / edge),
            -math.inf,
            0.0,
            step_tolerance=1e-15,
            value_tolerance=1e-13,
        )
    )


class Growth(NamedTuple):
    """Growth factor r of the second moment, where the noise kernel discounted by r has norm 1."""

    factor: float
    per_point: FloatArray  # Perron vector: mean squared residuals of the data points
    response: FloatArray  # of the pairs of modes, discounted
    slope: float  # -dK/dr


def exact_growth(
    lam: FloatArray, vectors: FloatArray, sgd: SGD, guess: float, start: FloatArray
) -> Growth | None:
    """Return the exact growth; None where it is, up to rounding, the decay of the slowest mode.

    `lam` holds positive eigenvalues only, `start` is a guess of the Perron vector.
    """
    n_data = len(vectors)
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    slowest = formulas.noiseless_decay(lam, sgd)
    found = Growth(slowest, start, np.empty(0), math.nan)

    def responses(growth: float) -> FloatArray:
        return gamma * _dressed(lam[:, None], lam[None, :], sgd, gamma, kappa, n_data, growth)

    def norm_and_slope(growth: float) -> tuple[float, float]:
        nonlocal found
        response = responses(growth)
        norm, vector = perron(vectors, response, found.per_point, residual=1e-11)
        if not math.isfinite(norm):
            return norm, math.nan
        overlap = (vectors.T @ (vector[:, None] * vectors)) ** 2
        step = 1e-6 * (growth - slowest)
        slope = float(np.vdot(response - responses(growth + step), overlap)) / step
        found = Growth(growth, vector, response, slope)
        return norm, slope

    root = _root_in_growth(norm_and_slope, slowest, guess)
    return None if root is None else found


def closure_growth(lam: FloatArray, sgd: SGD, n_data: int) -> float | None:
    """Return the growth factor in the delocalised closure, or None as `exact_growth` does."""
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    slowest = formulas.noiseless_decay(lam, sgd)

    def norm_at(growth: float) -> tuple[float, float]:
        response = _dressed(lam, lam, sgd, gamma, kappa, n_data, growth)
        return gamma * float(response.sum()) / n_data, math.nan

    return _root_in_growth(norm_at, slowest, slowest)


def _root_in_growth(norm_and_slope: NormAndSlope, slowest: float, guess: float) -> float | None:
    """Return the growth factor above `slowest` at which the discounted K is 1, or None."""

    def excess(growth: float) -> tuple[float, float]:
        # 1/K is concave in the growth, so that Newton steps from below never pass the root.
        norm, slope = norm_and_slope(growth)
        if not math.isfinite(norm):
            return -1.0, math.inf
        return 1 / norm - 1, slope / norm**2

    if guess <= slowest * (1 + 1e-6):
        guess = slowest + 1e-3 * max(slowest, 1e-3)
    root = newton_in_bracket(excess, guess, slowest, math.inf, step_tolerance=1e-13 * guess)
    return root if root - slowest > 1e-12 * root else None


def perron(
    vectors: FloatArray,
    response: FloatArray,
    start: FloatArray | None = None,
    *,
    residual: float | None = None,
) -> Eigenpair:
    r"""Return the largest eigenvalue of the noise kernel matrix, without its factor gamma.

    `vectors` are the eigenvectors V of the NTK in columns, `response` is the nonnegative response S
    of the pairs of modes, `start` a nonnegative guess of the eigenvector. The eigenvalue is good to
    a relative 1e-12 (1e-9 from 3000 data points on, and what is left by single precision where
    `vectors` have it), the vector as good as it needs to be for that, or until its residual is
    `residual` of the eigenvalue.

    Notes
    -----
    .. math:: \textstyle\sum_{\alpha\beta} V_{i\alpha}V_{j\alpha}S_{\alpha\beta}V_{i\beta}V_{j\beta}

    Lanczos; from the uniform vector its first value is the finite-size K. One product costs as much
    as a matrix product; no :math:`D^2\times D^2` matrix is formed. Large problems are iterated in
    single precision first: that leaves an error of the vector of about 1e-5, whose square is left
    in the eigenvalue, and double precision does the rest.
    """
    n_data = len(vectors)
    guess = np.ones(n_data) if start is None else np.maximum(start, 0.0)
    # A Krylov space never leaves the data points that share modes with its first vector.
    guess = guess + 1e-8 * guess.max()
    scale = float(response.max())
    if not 0 < scale < np.inf:
        return Eigenpair(scale, guess / np.linalg.norm(guess))
    scaled = response / scale
    if n_data <= _SMALL:
        values, columns = np.linalg.eigh(noise_kernel_matrix(vectors, scaled))
        return Eigenpair(float(values[-1]) * scale, np.abs(columns[:, -1]))
    if n_data >= _LARGE:
        rough = partial(
            noise_kernel_product,
            vectors.astype(np.float32, copy=False),
            scaled.astype(np.float32, copy=False),
        )
        _, guess = largest_eigenpair(
            lambda d: rough(d.astype(np.float32)).astype(np.float64),
            guess,
            error=1e-9,
            residual=1e-5,
            check_every=1,
        )
        guess = np.abs(guess)
        if vectors.dtype == np.float32 or (n_data >= _HUGE and residual is None):
            return Eigenpair(rayleigh(vectors, scaled, guess) * scale, guess)
    root, vector = largest_eigenpair(
        partial(noise_kernel_product, vectors, scaled),
        guess,
        error=_TOLERANCE if residual is None else 0.0,
        residual=residual or 0.0,
        check_every=1,
    )
    return Eigenpair(root * scale, np.abs(vector))
