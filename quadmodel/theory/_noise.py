"""Evaluation of the noise kernel norm on checked input; public functions stand beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from quadmodel._util.checks import FloatArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory import _generated as generated
from quadmodel.theory._inputs import LimitSpectrum, Spectrum, need_vectors
from quadmodel.theory._perron import perron, rayleigh, root_in_log


def norm_on_spectrum(
    spectrum: Spectrum | LimitSpectrum, sgd: SGD, norm: str, *, growth: float = 1.0
) -> float:
    """Return K, its kernel discounted by `growth` per step; the caller has checked stability."""
    n_data = spectrum.n_data
    covariance = (
        formulas.paper_weight_covariance if norm == "paper" else formulas.batch_weight_covariance
    )
    gamma, kappa = covariance(sgd, n_data)
    if gamma == 0.0:
        return 0.0
    if norm == "exact":
        lam, vectors = need_vectors(spectrum)
        response = _dressed(lam[:, None], lam[None, :], sgd, gamma, kappa, growth)
        return gamma * perron(vectors, response).root
    if isinstance(spectrum, LimitSpectrum):
        return gamma * _law_average(spectrum, sgd, gamma, kappa)
    lam = spectrum.eigenvalues
    return gamma * float(_dressed(lam, lam, sgd, gamma, kappa, growth).mean())


def _dressed(
    lam: FloatArray, other: FloatArray, sgd: SGD, gamma: float, kappa: float, growth: float
) -> FloatArray:
    bare = formulas.bare_response(lam, other, sgd, growth=growth)
    return formulas.dressed_response(bare, gamma, kappa, lam.size)


def _law_average(spectrum: LimitSpectrum, sgd: SGD, gamma: float, kappa: float) -> float:
    """Return the mean over the law of the dressed diagonal response.

    Heavy ball without weight decay has one simple pole, whose mean the Stieltjes transform gives;
    everything else needs the density.
    """
    eta, law = sgd.learning_rate, spectrum.law
    p, q = generated.heavy_ball_pole(eta, sgd.momentum, gamma, kappa, spectrum.n_data)
    if sgd.nesterov or sgd.weight_decay > 0 or q < 0:
        return law.average(
            lambda lam: formulas.dressed_response(
                formulas.bare_response(lam, lam, sgd), gamma, kappa, spectrum.n_data
            )
        )
    if q * spectrum.edge <= 1e-8 * p:  # far from the pole the difference below cancels
        return float(eta * law.mean / p)
    return float(eta * generated.mean_over_law(p / q, q, law.stieltjes(p / q)))


def exact_root_in_learning_rate(
    spectrum: Spectrum | LimitSpectrum, sgd: SGD, edge: float, level: float
) -> float:
    """Return the learning rate below `edge` where the exact K reaches `level`, or `edge`.

    The slope at each step follows from the Perron vector, which also is the next step's guess.
    """
    lam, vectors = need_vectors(spectrum)
    gamma, kappa = formulas.batch_weight_covariance(sgd, spectrum.n_data)
    if gamma == 0.0 or not np.isfinite(edge):
        return edge
    vector: FloatArray | None = None

    def response(learning_rate: float) -> FloatArray:
        at = replace(sgd, learning_rate=learning_rate)
        return gamma * _dressed(lam[:, None], lam[None, :], at, gamma, kappa, 1.0)

    def value_and_slope(learning_rate: float) -> tuple[float, float]:
        nonlocal vector
        found = perron(vectors, response(learning_rate), vector)
        vector = found.vector
        lower = learning_rate * (1 - 1e-5)
        beside = rayleigh(vectors, response(lower), vector)
        slope = math.log(found.root / beside) if 0 < beside < np.inf else math.inf
        return found.root, slope / math.log(learning_rate / lower)

    guess = root_in_learning_rate(
        lambda trial: norm_on_spectrum(spectrum, trial, "finite"), sgd, edge, level
    )
    return root_in_log(value_and_slope, guess, edge, level)


def root_in_learning_rate(
    norm_at: Callable[[SGD], float], sgd: SGD, edge: float, level: float
) -> float:
    """Return the learning rate below `edge` where K reaches `level`, or `edge` if it never does."""
    if not np.isfinite(edge):
        return edge

    def excess(learning_rate: float) -> float:
        # K/(1+K) is bounded, so that the pole at the edge can end the bracket.
        value = norm_at(replace(sgd, learning_rate=learning_rate))
        return (1.0 if np.isinf(value) else value / (1 + value)) - level / (1 + level)

    return _root(excess, 1e-14 * edge, edge * (1 - 1e-14), otherwise=edge)


def root_in_growth(norm_at: Callable[[float], float], slowest: float) -> float:
    """Return the growth factor above `slowest` at which the discounted K is 1."""

    def shortfall(growth: float) -> float:
        value = norm_at(growth)
        return 0.5 - (1.0 if not np.isfinite(value) else value / (1 + value))

    high = 2 * max(slowest, 1.0)
    while shortfall(high) < 0:
        high *= 2
    # Close in from above: next to `slowest` the discounted responses are mere rounding.
    gap = high - slowest
    while gap > 1e-14 * high:
        low = slowest + gap / 2
        if shortfall(low) < 0:
            return _root(shortfall, low, slowest + gap, otherwise=low)
        gap /= 2
    return slowest


def _root(function: Callable[[float], float], low: float, high: float, otherwise: float) -> float:
    if function(low) * function(high) > 0:
        return otherwise
    return float(brentq(function, low, high, xtol=1e-15 * high, rtol=1e-14, maxiter=500))
