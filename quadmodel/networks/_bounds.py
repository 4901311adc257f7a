"""The noise kernel norms that need no eigenvectors: the paper's and the finite one."""

from __future__ import annotations

import math

import numpy as np

from quadmodel._util.checks import FloatArray
from quadmodel.networks._estimate import Estimate, mean_of
from quadmodel.networks._krylov import ritz_pairs, top_eigenvectors
from quadmodel.networks._noise_map import Kernel
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory._noise_blocks import mode_response

# Eigenvectors treated exactly; dimensions of the other Krylov spaces; what is drawn at once, and at
# most.
_TOP, _STEPS, _PROBES, _MOST = 12, 60, 8, 1024
_TOLERANCE = 1e-3


def bound(
    kernel: Kernel,
    sgd: SGD,
    norm: str,
    per_point: int,
    relative_error: float,
    rng: np.random.Generator,
) -> Estimate:
    r"""Return :math:`\gamma\,\mathrm{tr}f(\Theta)/(Dr)`, f the response of a mode, r `per_point`.

    Notes
    -----
    Stochastic Lanczos quadrature: for random signs s, :math:`s^\top f(\Theta)s` is unbiased for the
    trace, and Gauss quadrature in the Krylov space of s gives it. The top eigenvectors are
    projected out of s and added exactly: without them the variance would be theirs.

    References
    ----------
    .. [1] S. Ubaru, J. Chen, Y. Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075; R. Meyer et al.,
       arXiv:2010.09649 for the exact part.
    """
    n = kernel.n_data * kernel.n_outputs
    values, vectors, largest = top_eigenvectors(kernel.product, n, _TOP, rng)
    if sgd.learning_rate >= formulas.noiseless_edge(largest, sgd):
        return Estimate(math.inf, 0.0)

    def response(lam: FloatArray) -> FloatArray:
        return mode_response(np.clip(lam, 0, largest), sgd, kernel.population, norm)

    def quadrature(lam: FloatArray, weights: FloatArray) -> FloatArray:
        return np.asarray((response(lam) * weights**2).sum(1))

    top = float(response(values).sum())
    samples = np.empty(0)
    while True:
        short = len(samples) < 2 * _PROBES or _relative(samples, top) > relative_error
        if not short or len(samples) >= _MOST:
            break
        signs = rng.choice(np.array([-1.0, 1.0]), (_PROBES, n))
        ritz = ritz_pairs(
            kernel.product,
            signs,
            _STEPS,
            without=vectors,
            settled=quadrature,
            tolerance=_TOLERANCE,
        )
        samples = np.append(samples, quadrature(ritz.values, ritz.weights))
    rest = mean_of(samples)
    scale = kernel.population * per_point
    return Estimate((top + rest.value) / scale, rest.standard_error / scale)


def _relative(samples: FloatArray, exact: float) -> float:
    mean = mean_of(samples)
    total = exact + mean.value
    return mean.standard_error / total if total > 0 else 0.0
