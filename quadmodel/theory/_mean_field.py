"""The mean-field theory's two-time functions, step by step: derivations/09-mean-field.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel.optimizer import SGD
from quadmodel.theory import _formulas as formulas

# Rows of a triangle that are multiplied at once, at least.
_BLOCK = 64
# Oscillations that have decayed by so much may be averaged over; those that need more recent steps
# than this are kept whole.
_DECAYED, _MOST_RECENT = 1e-3, 200


@dataclass(frozen=True)
class Groups:
    """Groups of data points, each with a noise level of its own.

    Parameters
    ----------
    size : ndarray, shape (n_groups,)
        Data points in each group.
    share : ndarray, shape (n_modes, n_groups)
        Sum over a group of the squared entries of an eigenvector, mean of those in a bin of modes.
    overlap : ndarray, shape (n_groups, n_groups, n_modes, n_modes)
        Product of the two groups' scalar products of a pair of eigenvectors, summed over the pairs
        in two bins, divided by the size of the first group.
    start : ndarray, shape (n_groups, n_modes, n_modes)
        Mean over a group of the product of two bins' parts of a point's initial residual.
    """

    size: FloatArray
    share: FloatArray
    overlap: FloatArray
    start: FloatArray


@dataclass(frozen=True)
class Statistics:
    r"""What the mean-field theory knows of a model.

    Parameters
    ----------
    lam, weight, energy, over_data : ndarray, shape (n_modes,)
        Of every bin of modes: NTK eigenvalue; share of the D modes, of sum 1; mean squared residual
        of a mode at the start; the curvature's variance along it, of weighted mean 1.
    n_data : int
        D.
    strength : float
        :math:`\hat q^2 = \sigma^2P/D`.
    density : float
        D/P; 0 is the limit of infinitely many parameters per data point.
    groups : Groups, optional
        Groups of points with noise levels of their own.
    """

    lam: FloatArray
    weight: FloatArray
    energy: FloatArray
    over_data: FloatArray
    n_data: int
    strength: float
    density: float
    groups: Groups | None = None


class Means(NamedTuple):
    """Means at one step, at the iterate."""

    squared_residual: FloatArray  # of a mode, per bin
    response_to_start: FloatArray  # of a mode's residual to its initial one
    squared_distance: float
    own_motion: FloatArray  # of the modes that are followed: what they add to their eigenvalue


class _Row(NamedTuple):
    """Two-time functions between the present step and the columns of the past."""

    response: FloatArray  # of parameters that meet no residuals, to a force: U
    mean_response: FloatArray  # averaged over all parameters: u
    overlap: FloatArray  # theta_t . theta_s: C
    spread: FloatArray  # covariance of what curvature noise does to parameters: delta U N U^T
    squared_distance: float
    own_spread: float
    residual_response: FloatArray  # per bin, to a force on residuals: R without its diagonal
    cross: FloatArray  # per bin, covariance of the present force on residuals with past ones
    to_forces: FloatArray  # per bin, covariance of the present residual with past forces
    squared_residual: FloatArray  # per bin


class MeanField:
    r"""Mean-field theory of SGD on the quadratic model, advanced one step at a time.

    Notes
    -----
    The letters of the two-time functions are those of derivations/09-mean-field.md. In every mode
    :math:`(I-cM+\eta\lambda U)\,\zeta = \psi+\sqrt\lambda\,U\nu`, where U, M and the covariances of
    the forces are common to all modes: one matrix is kept per bin of modes, the response
    :math:`R = (I-cM+\eta\lambda U)^{-1}`, and everything else is made of weighted sums over bins.

    A column stands for `width` steps of the past, over which functions of time are averaged: one
    step each, until `merge` is called.
    """

    def __init__(
        self,
        known: Statistics,
        sgd: SGD,
        capacity: int,
        *,
        follow: IntArray | None = None,
        keep: bool = False,
    ) -> None:
        self.known, self.sgd = known, sgd
        self.gamma, self.kappa = formulas.batch_weight_covariance(sgd, known.n_data)
        self.columns = 0
        self.width = np.ones(capacity)
        bins, square = known.lam.size, (capacity, capacity)
        # U, R_1 U, C, H, N, delta U N U^T, C^2; on request also u, G, Z, F
        asked = ("u", "G", "Z", "F") if keep else ()
        names = ("U", "V", "C", "H", "N", "X", "S", *asked)
        self.shared = {name: np.zeros(square) for name in names}
        self.responses = np.zeros((bins, *square))
        # Variances of batch noise averaged over a column: all of it, and what weights share of it.
        self.noise = np.zeros((bins, capacity))
        self.shared_noise = np.zeros((bins, capacity))
        self.levels = np.zeros((0 if known.groups is None else known.groups.size.size, capacity))
        # Of the bins whose own motion is followed: E zeta zeta^T times u, and times C. Products are
        # kept, not their factors: early in a run all of them vary within a column.
        self.follow = np.zeros(0, np.int64) if follow is None else follow
        self.followed_responses = np.zeros((self.follow.size, *square))
        self.followed_overlaps = np.zeros((self.follow.size, *square))
        # Response of the iterate to forces, now and one step before.
        self._iterate, self._before = np.zeros(capacity), np.zeros(capacity)
        self._ahead = sgd.momentum if sgd.nesterov else 0.0
        self.level = 0.0  # mean squared residual where the last gradient was taken

    def step(self, *, measure: bool = True) -> Means | None:
        """Take one step; return the means before it, if they are asked for."""
        n, known = self.columns, self.known
        response = (1 + self._ahead) * self._iterate[:n] - self._ahead * self._before[:n]
        row = self._row(response)
        found = None
        if measure:
            at_iterate = self._row(self._iterate[:n].copy()) if self._ahead else row
            to_start = 1.0 + at_iterate.residual_response @ self.width[:n]
            found = Means(
                at_iterate.squared_residual,
                to_start,
                at_iterate.squared_distance,
                self._own_motion(at_iterate),
            )
        self.level = float(known.weight @ row.squared_residual)
        self._draw_batch(row)
        past = self._times_column(row.to_forces * self.width[:n])
        own = (row.squared_residual + self.noise[:, n])[:, None]
        zeta = np.concatenate([past, own], axis=1)
        self._remember(row, zeta)
        self._advance(row, zeta)
        self.columns += 1
        return found

    def merge(self, memory: int) -> None:
        """Average pairs of neighbouring columns whose age is more than `memory` of their widths.

        What is averaged are functions of time, and noises as such: what acts later only through
        functions that vary little over a column is kept as it is.
        """
        n = self.columns
        width = self.width[:n]
        starts = _mergeable(width, memory)
        if starts.size == n:
            return
        merged = np.add.reduceat(width, starts)
        m = merged.size

        def averaged(values: FloatArray, axis: int) -> FloatArray:
            shape = [1] * values.ndim
            shape[axis] = n
            total = np.add.reduceat(values * width.reshape(shape), starts, axis=axis)
            shape[axis] = m
            return np.asarray(total / merged.reshape(shape))

        followed = (*self.followed_responses, *self.followed_overlaps)
        for array in (*self.shared.values(), *self.responses, *followed):
            square = averaged(averaged(array[:n, :n], 0), 1)
            array[:n, :n] = 0.0
            array[:m, :m] = square
        for array in (self.noise, self.shared_noise, self.levels):
            of_mean = np.add.reduceat(array[:, :n] * width**2, starts, axis=1) / merged**2
            array[:, :n] = 0.0
            array[:, :m] = of_mean
        for array in (self._iterate, self._before):
            mean = averaged(array[:n], 0)
            array[:n] = 0.0
            array[:m] = mean
        self.width[:m] = merged
        self.width[m:n] = 1.0
        self.columns = m

    # ---- functions between now and the past

    def _row(self, response: FloatArray) -> _Row:
        """Return the two-time functions of the point that forces have moved by `response`."""
        n, known, eta = self.columns, self.known, self.sgd.learning_rate
        width, past = self.width[:n], {name: a[:n, :n] for name, a in self.shared.items()}
        weighted = response * width
        mean_response = response - eta * known.density * (weighted @ past["V"])
        to_parameters = (weighted @ past["H"]) * width
        overlap, squared_distance = past["U"] @ to_parameters, float(to_parameters @ response)
        to_noise = known.density * (weighted @ past["N"]) * width
        spread, own_spread = past["U"] @ to_noise, float(to_noise @ response)

        lam, c, energy = (v[:, None] for v in (known.lam, known.over_data, known.energy))
        memory = -eta * known.strength * overlap * mean_response
        feedback = eta * lam * response - c * memory
        residual_response = -self._times_row(feedback * width)

        half = 0.5 * known.strength * known.density * c
        cross = energy + half * overlap**2 + lam * spread
        own = (energy + half * squared_distance * squared_distance + lam * own_spread)[:, 0]
        r = residual_response * width
        to_forces = cross + energy * r.sum(axis=1, keepdims=True) + r * self.noise[:, :n]
        to_forces += half * (r @ past["S"]) + lam * (r @ past["X"])
        squared = own + np.einsum("aj,aj->a", r, cross + to_forces)
        return _Row(
            response, mean_response, overlap, spread, squared_distance, own_spread,
            residual_response, cross, to_forces, squared,
        )  # fmt: skip

    def _times_row(self, vectors: FloatArray) -> FloatArray:
        """Return every bin's row vector times its R."""
        product = np.zeros_like(vectors)
        for rows, end in _parts(vectors.shape[1]):
            part = vectors[:, None, rows]
            product[:, :end] += np.matmul(part, self.responses[:, rows, :end])[:, 0]
        return product

    def _times_column(self, vectors: FloatArray) -> FloatArray:
        """Return every bin's R times its column vector."""
        product = np.empty_like(vectors)
        for rows, end in _parts(vectors.shape[1]):
            column = vectors[:, :end, None]
            product[:, rows] = np.matmul(self.responses[:, rows, :end], column)[:, :, 0]
        return product

    def _own_motion(self, row: _Row) -> FloatArray:
        r"""Return what the followed modes' own residuals add to their diagonal NTK elements.

        With the mode's c and lambda, and E zeta zeta^T over D: twice the sum over r < s < t of
        :math:`\eta^2\hat q^2c\,u(t,s)u(s,r)[\lambda+\hat q^2c\,C(t,r)]`, and
        :math:`\eta^2\hat q^4c^2u(t,s)u(t,s')C(s,s')` over all pairs.
        """
        n, known = self.columns, self.known
        found = np.zeros(self.follow.size)
        if not n or not self.follow.size:
            return found
        width, scale = self.width[:n], self.sgd.learning_rate**2 * known.strength / known.n_data
        to_now = row.mean_response * width
        for k, a in enumerate(self.follow):
            c = known.over_data[a]
            qc = known.strength * c
            source = (known.lam[a] + qc * row.overlap) * width
            first = 2 * to_now @ (self.followed_responses[k, :n, :n] @ source)
            second = qc * (to_now @ self.followed_overlaps[k, :n, :n] @ to_now)
            found[k] = scale * c * (first + second)
        return found

    # ---- batch noise

    def _draw_batch(self, row: _Row) -> None:
        r"""Note the variance of the batch noise of this step, in every bin.

        :math:`\gamma(\ell-\kappa\,E z_\alpha^2/D)`, with the mean squared residual :math:`\ell` of
        all points, or with those of groups weighted by the mode's share in each.
        """
        known, n = self.known, self.columns
        shared = self.gamma * self.kappa * row.squared_residual / known.n_data
        if known.groups is None:
            level = float(known.weight @ row.squared_residual)
            noise = np.full(known.lam.size, self.gamma * level)
        else:
            self.levels[:, n] = self._group_levels(row, known.groups)
            noise = self.gamma * (known.groups.share @ self.levels[:, n])
        self.noise[:, n], self.shared_noise[:, n] = noise - shared, shared

    def _group_levels(self, row: _Row, groups: Groups) -> FloatArray:
        """Return the mean squared residual of the points of each group."""
        n, known = self.columns, self.known
        members = known.weight * known.n_data
        r = row.residual_response * self.width[:n]
        to_start = 1.0 + r.sum(axis=1)
        from_batches = np.einsum("aj,aj->a", r**2, self.noise[:, :n] + self.shared_noise[:, :n])
        # What does not come from the initial residual nor from independent noise of the points.
        rest = row.squared_residual - known.energy * to_start**2 - from_batches
        levels = np.einsum("gab,a,b->g", groups.start, to_start, to_start)
        levels += (members * rest) @ groups.share / groups.size
        if n:
            pairs = (r[None] * self.levels[:, None, :n]) @ r.T  # (groups, bins, bins)
            levels += self.gamma * (groups.overlap.reshape(len(levels), -1) @ pairs.ravel())
        return np.asarray(levels)

    # ---- the past

    def _remember(self, row: _Row, zeta: FloatArray) -> None:
        """Make the present a column of the past."""
        n, known, eta = self.columns, self.known, self.sgd.learning_rate
        width, shared = self.width[:n], self.shared
        self.width[n] = 1.0
        self.responses[:, n, :n] = row.residual_response
        self.responses[:, n, n] = 1.0
        shared["U"][n, :n] = row.response
        for name, values, own in (
            ("C", row.overlap, row.squared_distance),
            ("S", row.overlap**2, row.squared_distance * row.squared_distance),
            ("X", row.spread, row.own_spread),
        ):
            shared[name][n, :n] = shared[name][:n, n] = values
            shared[name][n, n] = own
        of_ntk = known.weight * known.lam
        r1 = of_ntk @ row.residual_response
        shared["V"][n, :n] = (r1 * width) @ shared["U"][:n, :n] + of_ntk.sum() * row.response
        z, f = (known.weight * known.over_data) @ zeta, of_ntk @ zeta
        noise = eta**2 * known.strength * z * shared["C"][n, : n + 1]
        shared["N"][n, : n + 1] = shared["N"][: n + 1, n] = noise
        whole, v = self.width[: n + 1], shared["V"]
        both = v[: n + 1, : n + 1] @ (whole * noise)
        both += (v[n, :n] * width) @ shared["N"][:n, : n + 1]
        h = noise + eta**2 * f - eta * known.density * both
        shared["H"][n, : n + 1] = shared["H"][: n + 1, n] = h
        if "Z" in shared:
            shared["u"][n, :n] = row.mean_response
            shared["G"][n, :n] = (known.weight * known.over_data) @ row.residual_response
            shared["G"][n, n] = 1.0
            shared["Z"][n, : n + 1] = shared["Z"][: n + 1, n] = z
            shared["F"][n, : n + 1] = shared["F"][: n + 1, n] = f
        for k, a in enumerate(self.follow):
            self.followed_responses[k, n, :n] = row.mean_response * zeta[a, :n]
            both = shared["C"][n, : n + 1] * zeta[a]
            self.followed_overlaps[k, n, : n + 1] = self.followed_overlaps[k, : n + 1, n] = both

    def _advance(self, row: _Row, zeta: FloatArray) -> None:
        """Step the response of the iterate to forces, that of the present step included."""
        n, known, sgd = self.columns, self.known, self.sgd
        eta, sigma_squared = sgd.learning_rate, known.strength * known.density
        of_data = known.weight * known.over_data
        z, g = of_data @ zeta[:, :n], of_data @ row.residual_response
        memory = eta**2 * known.strength * z * row.mean_response
        memory -= eta * sigma_squared * g * row.overlap
        pull = eta * (sgd.weight_decay + sigma_squared * row.squared_distance)
        now, before = self._iterate[:n], self._before[:n]
        following = now + sgd.momentum * (now - before) - pull * row.response
        following += (memory * self.width[:n]) @ self.shared["U"][:n, :n]
        self._before[:n] = now
        self._iterate[:n] = following
        self._iterate[n] = 1.0


def _parts(n: int) -> list[tuple[slice, int]]:
    """Return blocks of rows of a lower triangle, each with where its columns end."""
    size = max(_BLOCK, -(-n // 8))
    return [(slice(k, min(k + size, n)), min(k + size, n)) for k in range(0, n, size)]


def recent_steps(largest: float, sgd: SGD) -> float:
    """Return how many recent steps a coarse past must keep one by one; +inf if all of them.

    From half the deterministic edge on the fastest mode changes sign at every step, which an
    average over two steps hides: as many as it takes to decay. `largest` is the NTK's eigenvalue at
    the start; training moves it.
    """
    share = sgd.learning_rate / formulas.noiseless_edge(largest, sgd)
    if share <= 0.5:
        return 0.0
    left = max(2 * share - 1, max(sgd.momentum, 0.0) ** 0.5)  # of the mode, one step later
    kept = math.log(_DECAYED) / math.log(left) if left < 1 else math.inf
    return kept if kept <= _MOST_RECENT else math.inf


def columns_needed(steps: int, memory: int | None) -> int:
    """Return how many columns a run has at most."""
    if memory is None:
        return steps + 1
    return min(steps + 1, memory * (4 + math.ceil(math.log2(max(steps / memory, 1.0)))))


def _mergeable(width: FloatArray, memory: int) -> IntArray:
    """Return where columns start once those that are old enough for their width are joined."""
    ages = np.cumsum(width[::-1])[::-1] - width  # of the youngest step of each column
    starts, k = [], 0
    while k < width.size:
        starts.append(k)
        joined = k + 1 < width.size and width[k] == width[k + 1]
        k += 2 if joined and ages[k + 1] >= memory * width[k] else 1
    return np.array(starts, np.int64)
