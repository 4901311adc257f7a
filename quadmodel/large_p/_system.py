"""The large-P limit as a system of words: what it is made of, its state, and what is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, IntArray
from quadmodel.curvature import CurvatureLaw
from quadmodel.large_p import _kernel as kernels
from quadmodel.model import QuadraticModel, ntk_eigensystem
from quadmodel.optimizer import SAMPLING_SCHEMES, SGD
from quadmodel.theory._inputs import Spectrum
from quadmodel.theory.noise_kernel import norm_or_infinity

# A run counts as diverged when its squared norm passes this, as in a simulation.
_LIMIT = 1e100


@dataclass(frozen=True)
class System:
    """What drives the words: the initial model and the statistics of its curvature.

    Words are coordinates in an orthonormal basis: `jacobian` is square up to null modes, and the
    letters are `mixing`'s columns, R R^T = C, or the data points themselves (`unit`, R = 1).
    """

    jacobian: FloatArray
    residual: FloatArray
    mixing: FloatArray
    unit: bool
    strength: float
    n_params: int
    level: int

    @property
    def n_letters(self) -> int:
        """Number of letters."""
        return len(self.residual) if self.unit else int(self.mixing.shape[1])

    @property
    def sizes(self) -> list[int]:
        """Number of words of every length, from 0 to `level`."""
        return [int(self.jacobian.shape[1]) * self.n_letters**n for n in range(self.level + 1)]

    def mixed(self, letters: FloatArray) -> FloatArray:
        """Return R times an array along its first axis."""
        return letters if self.unit else self.mixing @ letters

    @cached_property
    def covariance(self) -> FloatArray:
        """Curvature covariance C over data points."""
        return np.eye(len(self.residual)) if self.unit else self.mixing @ self.mixing.T


def build(model: QuadraticModel, law: CurvatureLaw | None, level: int) -> System:
    """Return the system of a model; one without curvature has no letters."""
    n_data, n_params = model.n_data, model.n_params
    lam, vectors = model.eigensystem
    jacobian = np.ascontiguousarray((vectors * np.sqrt(n_data * lam))[:, lam > 0])
    nothing = np.empty((n_data, 0))
    over_data, over_parameters, scale = (
        (None, None, 0.0) if law is None else law.kronecker(n_data, n_params)
    )
    if over_parameters is not None and not np.array_equal(over_parameters, np.eye(n_params)):
        raise InputError(
            "curvature must have parameter_covariance None or the identity for the large-P limit, "
            f"got {law!r}"
        )
    if scale == 0.0 or (over_data is not None and not over_data.any()):
        return System(jacobian, model.residual, nothing, False, 0.0, n_params, 1)
    strength = scale * n_params**0.5
    if over_data is None or np.array_equal(over_data, np.eye(n_data)):
        return System(jacobian, model.residual, nothing, True, strength, n_params, level)
    variances, axes = ntk_eigensystem(over_data)
    mixing = np.ascontiguousarray((axes * np.sqrt(variances))[:, variances > 0])
    return System(jacobian, model.residual, mixing, False, strength, n_params, level)


@dataclass
class Lanes:
    """Words of every replica, one row each; `old` is one step behind, if there is momentum."""

    state: FloatArray
    old: FloatArray
    current: IntArray
    replica: IntArray
    diverged_at: IntArray


def start_lanes(system: System, sgd: SGD, replicas: int) -> Lanes:
    """Put every replica at the initial parameters."""
    n_words = sum(system.sizes)
    return Lanes(
        np.zeros((replicas, n_words)),
        np.zeros((replicas, n_words if sgd.momentum else 0)),
        np.zeros((replicas, system.n_letters), np.int64),
        np.arange(replicas),
        np.full(replicas, -1, dtype=np.int64),
    )


def bytes_needed(system: System, sgd: SGD, replicas: int, threads: int, draws: int) -> float:
    """Return the memory of states, and of stepping and measuring them."""
    n_words, n_data = float(min(sum(system.sizes), 10**300)), len(system.residual)
    copies = 2.0 if sgd.momentum else 1.0
    return 8.0 * (
        replicas * (copies * n_words + system.n_letters)
        + threads * (copies * n_words + n_words + (12.0 + 8.0 * draws) * n_data**2)
    )


def advance(
    system: System, sgd: SGD, lanes: Lanes, rows: slice, seed: int, index: int, t: int, n: int
) -> None:
    """Take n steps from step t with some lanes, in place."""
    kernels.advance(
        system.jacobian,
        system.residual,
        system.mixing,
        system.unit,
        system.strength,
        system.level,
        lanes.state[rows],
        lanes.old[rows],
        lanes.current[rows],
        lanes.replica[rows],
        lanes.diverged_at[rows],
        sgd.learning_rate,
        sgd.batch_size,
        sgd.momentum,
        sgd.nesterov,
        sgd.weight_decay,
        SAMPLING_SCHEMES.index(sgd.sampling),
        np.uint64(seed),
        index,
        t,
        n,
        _LIMIT,
    )


def words_at(system: System, sgd: SGD, lanes: Lanes, lane: int, step: int) -> list[FloatArray]:
    """Return a lane's words of every length, up to date, as matrices with first letters as rows."""
    state = lanes.state[lane]
    sizes = system.sizes
    if sgd.momentum or sgd.weight_decay:  # rows of the top level may lag; leave them so
        state, lower = state.copy(), sum(sizes[:-1])
        ahead = sgd.momentum if sgd.nesterov else 0.0
        decay = sgd.learning_rate * sgd.weight_decay
        kernels.settle(
            state[lower:],
            lanes.old[lane][lower:].copy(),
            lanes.current[lane],
            step,
            1 + sgd.momentum - decay * (1 + ahead),
            -sgd.momentum + decay * ahead,
        )
    edges = np.cumsum([0, *sizes])
    words = [state[a:b] for a, b in itertools.pairwise(edges)]
    rows = (w.reshape(system.n_letters, size) for w, size in zip(words[1:], sizes, strict=False))
    return [words[0], *rows]


class Snapshot:
    """One lane at one step; observables are computed when they are asked for."""

    def __init__(
        self,
        system: System,
        sgd: SGD,
        words: list[FloatArray],
        draws: int,
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """Keep what everything is computed from."""
        self._system, self._sgd, self._words = system, sgd, words
        self._draws, self._rng = draws, rng

    @cached_property
    def residual(self) -> FloatArray:
        """Residual of every data point."""
        system, words = self._system, self._words
        overlap = np.zeros(system.n_letters)
        for word, longer in itertools.pairwise(words):
            overlap += longer @ word.reshape(-1)
        moved = system.jacobian @ words[0] + system.strength * system.mixed(overlap)
        return np.asarray(system.residual + moved)

    @property
    def loss(self) -> float:
        """Mean squared residual over two."""
        return float(self.residual @ self.residual) / (2 * len(self.residual))

    @cached_property
    def _energies(self) -> list[float]:
        """Squared norm of the words of every length."""
        return [float(np.vdot(w, w)) for w in self._words]

    @property
    def squared_distance(self) -> float:
        """Squared norm of the displacement."""
        return sum(self._energies)

    @cached_property
    def ntk(self) -> FloatArray:
        """NTK of the system."""
        system, words = self._system, self._words
        n = system.n_letters
        straight = system.jacobian + system.strength * system.mixed(words[1])
        letters = sum(self._energies[:-1]) * np.eye(n)
        for word, longer in zip(words[:-2], words[2:], strict=True):
            letters += longer @ longer.T
            crossed = (longer.reshape(n * n, -1) @ word.reshape(-1)).reshape(n, n)
            letters += crossed + crossed.T
        gram = straight @ straight.T
        gram += system.strength**2 * system.mixed(system.mixed(letters).T)
        return np.asarray(gram / len(gram))

    @cached_property
    def _ntks(self) -> FloatArray:
        """NTKs to average over: one, or draws at finite width."""
        if not self._draws or not self._system.strength:
            return self.ntk[None]
        system = self._system
        return _finite_width(
            self.ntk,
            system.covariance,
            system.strength,
            sum(self._energies[:-1]),
            self.residual - system.residual,
            system.n_params,
            self._draws,
            self._rng(),
        )

    @cached_property
    def _eigensystem(self) -> tuple[FloatArray, FloatArray]:
        values, vectors = np.linalg.eigh(self._ntks)
        return _clean(values[:, ::-1]), vectors[:, :, ::-1]

    @cached_property
    def _values(self) -> FloatArray:
        if "_eigensystem" in self.__dict__:
            return self._eigensystem[0]
        return _clean(np.asarray(np.linalg.eigvalsh(self._ntks)[:, ::-1], dtype=np.float64))

    @property
    def ntk_eigenvalue(self) -> FloatArray:
        """NTK eigenvalues, descending."""
        return np.asarray(self._values.mean(axis=0))

    @property
    def ntk_largest_eigenvalue(self) -> float:
        """Largest NTK eigenvalue."""
        return float(self._values[:, 0].mean())

    @property
    def ntk_trace(self) -> float:
        """Sum of the NTK eigenvalues."""
        return float(self._values.sum(axis=1).mean())

    def _norm(self, kind: str) -> float:
        norms = [norm_or_infinity(Spectrum(lam), self._sgd, kind) for lam in self._values]
        return float(np.mean(norms))

    @property
    def noise_kernel_norm(self) -> float:
        """Noise kernel norm, in high dimension."""
        return self._norm("paper")

    @property
    def noise_kernel_norm_finite(self) -> float:
        """Noise kernel norm, at finite size."""
        return self._norm("finite")

    @property
    def noise_kernel_norm_exact(self) -> float:
        """Noise kernel norm, exact."""
        pairs = zip(*self._eigensystem, strict=True)
        return float(np.mean([norm_or_infinity(Spectrum(*p), self._sgd, "exact") for p in pairs]))

    @property
    def residual_overlap(self) -> float:
        """Share of the squared residual along the top eigenvector of the present NTK."""
        along = self._eigensystem[1][:, :, 0] @ self.residual
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.mean(along**2) / np.dot(self.residual, self.residual))


def _clean(descending: FloatArray) -> FloatArray:
    """Set eigenvalues that are zero up to rounding to zero."""
    rounding = 4 * descending.shape[1] * np.finfo(np.float64).eps * descending[:, :1]
    return np.where(descending > rounding, descending, 0.0)


def _finite_width(
    ntk: FloatArray,
    covariance: FloatArray,
    strength: float,
    energy: float,
    moved: FloatArray,
    n_params: int,
    draws: int,
    rng: np.random.Generator,
) -> FloatArray:
    r"""Draw NTKs of P parameters, :math:`J = A + \sigma|\theta|C^{1/2}N`, around that of the limit.

    `energy` is :math:`|\theta|^2`, `moved` is :math:`z - z_0 = A\theta`. N is standard normal, but
    of variance 2 along :math:`\theta`, as Q's diagonal is. The limit's NTK holds the mean
    :math:`q^2|\theta|^2C/D` of the Gaussian part already; should it not (far from the start), the
    Gaussian part is made smaller, so that the mean stays what it is.
    """
    n_data = len(ntk)
    if not energy > 0.0:
        return ntk[None]
    along = moved / np.sqrt(n_data * energy)
    others = ntk - np.outer(along, along)
    size = strength**2 * energy / n_data
    values, vectors = np.linalg.eigh(others)
    whitened = vectors / np.sqrt(np.maximum(values, 1e-300 + 1e-14 * values[-1]))
    most = float(np.linalg.eigvalsh(whitened.T @ covariance @ whitened)[-1])
    size = min(size, 1.0 / most)
    fixed = np.concatenate([along[:, None], _root(others - size * covariance)], axis=1)
    normal = rng.standard_normal((draws, n_data, n_data + 1))
    normal[:, :, 0] *= np.sqrt(2.0)
    rest = _wishart_root(rng, draws, n_data, n_params - n_data - 1)
    root = np.sqrt(size / n_params) * _root(covariance)
    close, far = fixed + root @ normal, root @ rest
    return np.asarray(close @ close.transpose(0, 2, 1) + far @ far.transpose(0, 2, 1))


def _wishart_root(rng: np.random.Generator, draws: int, n: int, columns: int) -> FloatArray:
    """Return X such that X X^T is distributed as for normal X with that many columns (Bartlett)."""
    if columns < n:
        return rng.standard_normal((draws, n, columns))
    root = np.tril(rng.standard_normal((draws, n, n)), -1)
    root[:, range(n), range(n)] = np.sqrt(rng.chisquare(columns - np.arange(n), (draws, n)))
    return root


def _root(matrix: FloatArray) -> FloatArray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
