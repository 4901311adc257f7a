"""Growth of the typical loss of the linear model, to leading order beyond the second moment."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.checks import FloatArray, InputError, check_memory
from quadmodel._util.results import variable
from quadmodel._util.roots import newton_in_bracket
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas
from quadmodel.theory._fluctuation import eigenmatrices, one_step_fluctuation
from quadmodel.theory._inputs import (
    Spectrum,
    as_finite_spectrum,
    check_sgd,
    need_vectors,
    on_one_blas_thread,
)
from quadmodel.theory._noise import critical_on_spectrum, exact_growth
from quadmodel.theory.moments import rate_on_spectrum

# Estimate of the error of half the variance, relative to it, per unit of the variance accumulated
# while data points and modes relax, and of 1 / directions: calibrated by .ci/typical.py.
_OF_DATA, _OF_MODES, _OF_DIRECTIONS = 0.7, 0.15, 2.5
# Error at which the prediction is called valid, relative to the larger of mean growth and half the
# variance.
_VALID = 1 / 3


class Typical(NamedTuple):
    """The prediction at one learning rate and batch size."""

    mean: float  # growth per step of the log of the mean loss
    variance: float  # of the log loss per step
    relaxation: float  # steps in which the spread of the residual over the data relaxes
    memory: float  # steps in which the slowest mode forgets
    directions: float  # that carry the growth
    per_point: FloatArray  # mean squared residuals of the data points, up to a factor

    @property
    def growth(self) -> float:
        """Growth of the typical log loss per step."""
        return self.mean - self.variance / 2

    @property
    def error(self) -> float:
        """Estimate of the error of the growth."""
        relaxation = _OF_DATA * self.relaxation + _OF_MODES * self.memory
        relative = self.variance * relaxation + _OF_DIRECTIONS / self.directions
        return relative * self.variance / 2

    @property
    def valid(self) -> bool:
        """Whether the error is small against the larger of mean growth and half the variance."""
        return self.error <= _VALID * max(abs(self.mean), self.variance / 2)

    @property
    def participation(self) -> float:
        """1 where all data points share the squared residual equally, n_data where one has it."""
        shares = self.per_point
        return float(shares.size * np.sum(shares**2) / shares.sum() ** 2)


@on_one_blas_thread
def typical_growth(ntk: ArrayLike, sgd: SGD) -> xr.Dataset:
    r"""Predict how the loss of a typical run grows per step, and whether the prediction holds.

    Parameters
    ----------
    ntk : array_like, shape (n_data, n_data)
        Neural tangent kernel, in units of 1 / learning rate.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.

    Returns
    -------
    xarray.Dataset
        Numbers, all on the range of the NTK: `typical_growth`, of :math:`\log|z|^2` per step (twice
        the top Lyapunov exponent); `mean_growth`, :math:`\log r`, that of the mean loss;
        `one_step_variance` v; `relaxation_steps` :math:`\tau` and `memory_steps` :math:`\tau_m`, in
        which the spread over the data and the slowest mode relax; `directions` n of the residual
        that carry the growth; `participation` of the data, 1 where all points have the same mean
        squared residual, n_data where one has it all; `typical_growth_error` e, an estimate of
        its error; and `valid`: whether e is at most a third of the larger of :math:`v/2` and the
        absolute value of `mean_growth`.

    Raises
    ------
    InputError
        If `ntk` is not a symmetric positive semidefinite matrix, or vanishes.
    MemoryError
        If the moments don't fit in memory.

    Notes
    -----
    Let r, M and L be the growth factor, the eigenmatrix and the adjoint eigenmatrix of the
    second-moment map. :math:`\ell = z^\top Lz` has :math:`E[\ell'|z] = r\ell` for every z, hence

    .. math:: E\log(\ell'/\ell) \approx \log r - v/2,\qquad
              v = \frac{E_z\mathrm{Var}(\ell'|z)}{r^2E_z\ell^2},\quad z\sim N(0,M)

    with all parts of the variance: of second, third and fourth order in the batch weights. With
    momentum z is the pair of the last two residuals. M and L follow in closed form from the Perron
    vector of the noise kernel matrix discounted by r, at :math:`O(D^3)`.

    The prediction takes the residual of a typical run to be Gaussian with the covariance M, which
    is that of the runs that dominate the mean loss. The covariances of the two differ by the
    variance accumulated while the residual relaxes: :math:`v\tau`, where :math:`\tau` is
    :math:`-\partial K/\partial\log r` over the gap of the noise kernel (bounded by its diagonal),
    and :math:`v\tau_m`, where :math:`\tau_m` is the inverse gap between :math:`\log r` and the
    decay of the slowest mode. Where :math:`\ell` consists of few directions,
    :math:`n = 2(E\ell)^2/\mathrm{Var}\,\ell`, its fluctuations make v too small by up to
    :math:`1 + 2/n`, and by more where a slow mode dominates. The estimate

    .. math:: e = \frac v2\,(0.7\,v\tau + 0.15\,v\tau_m + 2.5/n)

    is calibrated at 1252 random settings (4 to 200 data points, exact K from 0.8 to 1.3, all
    sampling schemes and optimizers, five kinds of spectra, simulated by
    :func:`quadmodel.lyapunov_exponent`): all 261 that it calls valid were within a third of the
    larger of :math:`v/2` and :math:`|\log r|`, or 3 standard errors, nine of ten within 0.13; of
    the 586 that were so close it calls valid 45 %. The error was within e itself, or 3 standard
    errors, in 91 % of the valid ones. `.ci/typical.py` measures it anew.

    References
    ----------
    .. [1] derivations/07-typical-stability.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> ntk = qm.Ensemble(n_data=100, n_params=150).sample(seed=0).ntk()
    >>> sgd = qm.SGD(qm.critical_learning_rate(ntk, qm.SGD(1.0, 10), norm="exact"), 10)
    >>> found = qm.typical_growth(ntk, sgd)
    >>> bool(found.typical_growth < found.mean_growth)
    True
    """
    spectrum = _checked(ntk, sgd)
    at = typical_on_spectrum(spectrum, sgd)
    values = {
        "typical_growth": (at.growth, "growth rate of the typical loss", "1 / step"),
        "mean_growth": (at.mean, "growth rate of the mean loss", "1 / step"),
        "one_step_variance": (at.variance, "variance of the log loss per step", "1 / step"),
        "typical_growth_error": (at.error, "estimated error of the typical growth", "1 / step"),
        "relaxation_steps": (at.relaxation, "relaxation of the spread over data", "steps"),
        "memory_steps": (at.memory, "relaxation of the slowest mode", "steps"),
        "directions": (at.directions, "directions that carry the growth", "1"),
        "participation": (at.participation, "participation of the data", "1"),
        "valid": (at.valid, "whether the prediction holds", "1"),
    }
    return xr.Dataset(
        {name: variable((), *labelled) for name, labelled in values.items()},
        attrs={"kind": "prediction", "n_data": spectrum.n_data, **sgd.spec()},
    )


@on_one_blas_thread
def typical_critical_learning_rate(ntk: ArrayLike, sgd: SGD) -> float:
    r"""Predict the learning rate above which typical runs diverge.

    Parameters
    ----------
    ntk : array_like, shape (n_data, n_data)
        Neural tangent kernel, in units of 1 / learning rate.
    sgd : SGD
        Batch size, momentum, weight decay and sampling scheme; its learning rate is ignored.

    Returns
    -------
    float
        Learning rate, above the one where the mean loss diverges (K = 1, exact); NaN where the
        prediction does not hold. Without noise it is the deterministic edge.

    Raises
    ------
    InputError
        If `ntk` is not a symmetric positive semidefinite matrix, or vanishes.
    MemoryError
        If the moments don't fit in memory.

    Notes
    -----
    The first root of the growth :math:`\log r - v/2` of :func:`typical_growth` above the
    mean-square threshold. Between the two the phase is intermittent: the mean loss diverges,
    dominated by ever rarer runs, while a typical run converges.

    References
    ----------
    .. [1] derivations/07-typical-stability.md; beyond arXiv:2404.19261.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> ntk = qm.Ensemble(n_data=100, n_params=150).sample(seed=0).ntk()
    >>> sgd = qm.SGD(learning_rate=1.0, batch_size=40)
    >>> typical = qm.typical_critical_learning_rate(ntk, sgd)
    >>> bool(np.isnan(typical) or typical > 0)
    True
    """
    spectrum = _checked(ntk, sgd)
    return typical_critical_on_spectrum(spectrum, sgd)


def _checked(ntk: ArrayLike, sgd: SGD) -> Spectrum:
    spectrum = as_finite_spectrum(ntk)
    if spectrum.vectors is None:
        raise InputError("ntk must be the full matrix, got eigenvalues only")
    if spectrum.edge == 0:
        raise InputError("ntk must not vanish, got eigenvalues that are all zero")
    check_sgd(sgd, spectrum.n_data)
    check_memory("the prediction", 8.0 * 40 * spectrum.n_data**2)
    return spectrum


def typical_critical_on_spectrum(
    spectrum: Spectrum, sgd: SGD, mean_square: float | None = None
) -> float:
    """Return the typical critical learning rate on checked input, NaN where it does not hold.

    `mean_square` is the exact critical learning rate, where it is known.
    """
    if _noise_free(sgd, spectrum.n_data):
        return formulas.noiseless_edge(spectrum.edge, sgd)
    if mean_square is None:
        mean_square = critical_on_spectrum(spectrum, sgd, "exact")
    known: dict[float, Typical] = {}
    last = Typical(0.0, 0.0, 0.0, 0.0, 1.0, np.ones(spectrum.n_data))

    def growth(learning_rate: float) -> float:
        nonlocal last
        if learning_rate not in known:
            at = sgd._at(learning_rate=learning_rate)
            last = known[learning_rate] = typical_on_spectrum(spectrum, at, last)
        return known[learning_rate].growth

    low, high = mean_square, mean_square * (1 + 1e-3)
    while growth(low) < 0 and known[low].valid and growth(high) < 0:
        rise = (growth(high) - growth(low)) / (high - low)
        step = 4 * (high - low)
        if rise > 0:
            step = min(step, -1.2 * growth(high) / rise)
        low, high = high, high + step
    if not known[low].valid:
        return math.nan
    if growth(low) >= 0:  # noise that is mere rounding
        return low
    share = -growth(low) / (growth(high) - growth(low))
    root = newton_in_bracket(
        lambda learning_rate: (growth(learning_rate), math.nan),
        low + share * (high - low),
        low,
        high,
        step_tolerance=1e-11 * low,
    )
    return root if known[root].valid else math.nan


def typical_on_spectrum(spectrum: Spectrum, sgd: SGD, near: Typical | None = None) -> Typical:
    """Return the prediction on checked input; `near` is one at a similar learning rate."""
    if formulas.beyond_floats(spectrum.edge, sgd):
        unknown = math.nan
        return Typical(math.inf, unknown, unknown, unknown, unknown, np.ones(spectrum.n_data))
    lam, vectors = need_vectors(spectrum)
    lam, vectors = lam[lam > 0], vectors[:, lam > 0]
    found = None
    if not _noise_free(sgd, spectrum.n_data):
        guess = math.exp(near.mean) if near else rate_on_spectrum(spectrum, sgd, "finite")
        start = near.per_point if near else np.ones(spectrum.n_data)
        found = exact_growth(lam, vectors, sgd, guess, start)
    if found is None:  # the slowest mode decays more slowly than the noise it leaves behind
        decays = [formulas.noiseless_decay(lam[k : k + 1], sgd) for k in range(lam.size)]
        mean = math.log(max(decays)) if max(decays) > 0 else -math.inf
        return Typical(mean, 0.0, 0.0, 0.0, 1.0, vectors[:, int(np.argmax(decays))] ** 2)
    matrices = eigenmatrices(lam, vectors, sgd, found.factor, found.per_point)
    gap = _gap(vectors, found.response, found.per_point)
    decay = formulas.noiseless_decay(lam, sgd)
    variance, directions = one_step_fluctuation(lam, vectors, sgd, matrices)
    return Typical(
        math.log(found.factor),
        variance,
        found.slope * found.factor / gap,
        1 / math.log(found.factor / decay) if decay > 0 else 0.0,
        directions,
        found.per_point,
    )


def _noise_free(sgd: SGD, n_data: int) -> bool:
    """Whether all batches have the same weights."""
    gamma, kappa = formulas.batch_weight_covariance(sgd, n_data)
    return gamma * (1 - kappa / n_data) == 0


def _gap(vectors: FloatArray, response: FloatArray, perron_vector: FloatArray) -> float:
    """Return an upper bound on the gap of the noise kernel matrix below its Perron root 1.

    The second eigenvalue is bounded from below by the Rayleigh quotients of single points, made
    orthogonal to the Perron vector.
    """
    own = np.einsum("ia,ia->i", vectors**2 @ response, vectors**2)
    share = perron_vector**2
    others = share < 1 - 1e-9
    second = np.max((own[others] - share[others]) / (1 - share[others]), initial=0.0)
    return max(1 - float(second), 1e-15)
