r"""The mean-field theory: closed equations of two-time functions, exact in every power of q^2.

With D and P to infinity together, every mode of the NTK moves in the noise and the memory that the
average over the curvature leaves (:mod:`~quadmodel.symbolic.curvature_average`), whose kernels are
means over all modes. All equations are causal, and everything in them is a polynomial: after t
steps in the learning rate, :math:`\hat q^2 = \sigma^2P/D`, :math:`\delta = D/P`,
:math:`\gamma, \kappa/D` and the moments of the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy as sp

from quadmodel._util.checks import as_integer
from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.linear import PLAIN_SGD, LinearOptimizer
from quadmodel.symbolic.mode_ring import MOST_STEPS, Modes

Matrix = list[list[Any]]  # two-time functions; rows are the later times


class MeanField:
    r"""The theory's causal solution, one step at a time.

    Rows of all matrices are the later of two times. Over the modes' generators: `covariance`
    :math:`E\zeta(t)\zeta(s)` and `response` R, that of :math:`\zeta` to a force on it. Means over
    modes: `loss` :math:`E z^2` per mode, and the two-time functions C, Z, F, u, G of the text,
    u[t][s] the response to a force in step s. With the iterate x in place of the point y in their
    first argument, or in both: `u_seen`, `C_cross`, `C_seen`, and `seen` :math:`E z^2` there, over
    the modes.

    Parameters
    ----------
    modes : Modes
        Spectrum and setting.
    optimizer : LinearOptimizer, optional
        The update rule.
    noises : sequence, optional
        Variances of the batch noise of every step, instead of
        :math:`\gamma(\ell - \kappa E z^2/D)`.

    Notes
    -----
    With the response U of y to a force on the parameters that acts through the memory but not
    through the modes' own residuals, :math:`M = -\eta\hat q^2c\,C\circ u`,

    .. math:: (I - M + \eta\lambda U)\zeta = z_0 + \varphi + \xi + \sqrt\lambda U\nu,

    so that :math:`u = U - \eta\delta UR_1U` and :math:`C = U[N - \eta\delta(NU^\top R_1^\top
    + R_1UN) + \eta^2F]U^\top`, :math:`R_1` the mean of :math:`\lambda R`, F that of
    :math:`\lambda E\zeta\zeta^\top`, :math:`N = \eta^2\hat q^2Z\circ C`.

    References
    ----------
    .. [1] derivations/09-mean-field.md.

    Examples
    --------
    Two steps of full batches, without curvature:

    >>> from quadmodel import symbolic
    >>> modes = symbolic.modes_of_values([(1, 1, 1, 1)], q2=0, gamma=0, delta=0, kappa_D=0)
    >>> symbolic.MeanField(modes).run(2).loss[1]
    eta**2 - 2*eta + 1
    """

    def __init__(
        self,
        modes: Modes,
        optimizer: LinearOptimizer = PLAIN_SGD,
        noises: Sequence[Any] | None = None,
    ) -> None:
        self.modes, self.optimizer, self.noises = modes, optimizer, noises
        self.loss: list[Any] = []
        self.seen: list[Any] = []
        self.covariance: Matrix = []
        self.response: Matrix = []
        for name in ("C", "Z", "F", "u", "G", "U", "U_seen", "u_seen", "C_cross", "C_seen"):
            setattr(self, name, [])
        self._bare: dict[str, Matrix] = {"point": [], "iterate": []}
        self._R1: Matrix = []
        self._memory: Matrix = []
        self._forcing: Matrix = []
        self._white: list[Any] = []
        self._innovation: Matrix = []

    C: Matrix
    Z: Matrix
    F: Matrix
    u: Matrix
    G: Matrix
    U: Matrix
    U_seen: Matrix
    u_seen: Matrix
    C_cross: Matrix
    C_seen: Matrix

    def run(self, steps: int) -> MeanField:
        """Add the times up to the one after so many steps.

        Parameters
        ----------
        steps : int
            At most 6.

        Returns
        -------
        MeanField
            Itself.

        Raises
        ------
        InputError
            If there are too many steps.
        """
        steps = as_integer("steps", steps, low=0, high=MOST_STEPS)
        while len(self.loss) <= steps:
            self._responses(len(self.loss))
            self._two_times(len(self.loss))
            self._modes(len(self.loss))
        return self

    def _responses(self, t: int) -> None:
        """Add the rows of the responses to forces on the parameters before time t."""
        dot = self.modes.dot
        for place, name in (("point", "U"), ("iterate", "U_seen")):
            bare = self._bare_row(t, place)
            # H + H K U: a force, then all that the memory makes of its earlier effect
            row = list(bare)
            for s in range(t):
                for r in range(s + 1, t):
                    echo = dot(self._memory[r][s + 1 : r + 1], _column(self.U, s, s + 1, r + 1))
                    row[s] += self.modes.cut(bare[r] * echo)
            getattr(self, name).append(row)
        scale = self.modes.setting["eta"] * self.modes.setting["delta"]
        for full, name in (("U", "u"), ("U_seen", "u_seen")):
            row = getattr(self, full)[t]
            through = [dot(row[s:t], _column(self._R1, s, s, t)) for s in range(t)]
            getattr(self, name).append(
                [
                    row[s]
                    - self.modes.cut(scale * dot(through[s + 1 : t], _column(self.U, s, s + 1, t)))
                    for s in range(t)
                ]
            )

    def _bare_row(self, t: int, place: str) -> list[Any]:
        """Return the response at time t without curvature or residuals, to a force in each step."""
        from_expr = self.modes.ring
        setting = self.modes.setting
        values = {names.mu: sp.Symbol("mu")}
        update, points = (
            [
                from_expr(sp.sympify(c).subs(values)).compose(
                    from_expr(sp.Symbol("mu")), setting["mu"]
                )
                for c in given
            ]
            for given in (self.optimizer.update, self.optimizer.extrapolation)
        )

        def combined(coefficients: Sequence[Any], time: int, s: int) -> Any:
            total = from_expr.zero
            for age, coefficient in enumerate(coefficients):
                if s < time - age:
                    total += coefficient * self._bare["iterate"][time - age][s]
            return total

        if place == "point":  # which comes first
            row = []
            for s in range(t):
                moved = from_expr.one if s == t - 1 else combined(update, t - 1, s)
                if s < t - 1:
                    moved -= setting["eta"] * setting["rho"] * self._bare["point"][t - 1][s]
                row.append(moved)
            self._bare["iterate"].append(row)
            self._bare["point"].append([combined(points, t, s) for s in range(t)])
        return self._bare[place][t]

    def _two_times(self, t: int) -> None:
        """Add the rows of C, and of the forcing of the modes, at time t."""
        dot, cut = self.modes.dot, self.modes.cut
        eta, q2, delta = (self.modes.setting[name] for name in ("eta", "q2", "delta"))
        # N, and everything between the two U of C, over the times before t
        noise = [
            [cut(eta**2 * q2 * self._at(self.Z, r, q) * self._at(self.C, r, q)) for q in range(t)]
            for r in range(t)
        ]
        seen = [[dot(self.U[q], noise[r][:q]) for q in range(t)] for r in range(t)]  # N U^T
        across = [[dot(self._R1[q], seen[r][: q + 1]) for q in range(t)] for r in range(t)]
        inner = [
            [
                noise[r][q]
                - cut(eta * delta * (across[r][q] + across[q][r]))
                + eta**2 * self._at(self.F, r, q)
                for q in range(t)
            ]
            for r in range(t)
        ]

        def between(one: Sequence[Any], other: Sequence[Any], matrix: Matrix) -> Any:
            return dot(one, [dot(other, row[: len(other)]) for row in matrix[: len(one)]])

        self.C.append([between(self.U[t], self.U[s], inner) for s in range(t + 1)])
        self.C_cross.append([between(self.U_seen[t], self.U[s], inner) for s in range(t + 1)])
        self.C_seen.append([between(self.U_seen[t], self.U_seen[s], inner) for s in range(t + 1)])

        eigenvalue, factor, energy = self.modes.mode()
        sigma2 = q2 * delta

        def forcing(of: Matrix, one: Matrix, s: int) -> Any:
            by_noise = eigenvalue * delta * between(one[t], self.U[s], noise)
            return energy + cut(sigma2 * factor * of[t][s] ** 2) / 2 + cut(by_noise)

        self._forcing.append([forcing(self.C, self.U, s) for s in range(t + 1)])
        self._innovation = [[forcing(self.C_cross, self.U_seen, s) for s in range(t + 1)]]
        own = eigenvalue * delta * between(self.U_seen[t], self.U_seen[t], noise)
        self._own = energy + cut(sigma2 * factor * self.C_seen[t][t] ** 2) / 2 + cut(own)

    def _modes(self, t: int) -> None:
        """Add residual, force and response of the modes at time t, and the means over them."""
        dot, cut, mean = self.modes.dot, self.modes.cut, self.modes.mean
        eta, q2, delta = (self.modes.setting[name] for name in ("eta", "q2", "delta"))
        eigenvalue, factor, _ = self.modes.mode()

        def past(of_x: Matrix, u: Matrix, U: Matrix) -> list[Any]:
            return [
                -cut(eta * q2 * factor * of_x[t][s] * u[t][s]) - eta * eigenvalue * U[t][s]
                for s in range(t)
            ]

        now = past(self.C, self.u, self.U)
        response = [dot(now[s:], _column(self.response, s, s, t)) for s in range(t)]
        self.response.append([*response, self.modes.ring.one])

        # f(t) with earlier forces, then z(t) with them; the noise of a batch is white.
        shared = [dot(self.response[s], self._forcing[t][: s + 1]) for s in range(t)]
        row = [
            shared[s] + dot(now, [self._at(self.covariance, r, s) for r in range(t)])
            for s in range(t)
        ]
        square = self._forcing[t][t] + dot(now, shared) + dot(now, row)
        self.loss.append(mean(square))
        if self.noises is None:
            gamma, ratio = self.modes.setting["gamma"], self.modes.setting["kappa_D"]
            white = cut(gamma * (self.loss[t] - ratio * square))
        else:
            white = self.modes.ring(self.noises[t])
        self._white.append(white)
        self.covariance.append([*row, square + white])

        # The residual at the iterate
        then = past(self.C_cross, self.u_seen, self.U_seen)
        shared = [dot(self.response[s], self._innovation[0][: s + 1]) for s in range(t)]
        paired = [dot(then, [self._at(self.covariance, r, s) for r in range(t)]) for s in range(t)]
        self.seen.append(self._own + 2 * dot(then, shared) + dot(then, paired))

        self.Z.append([mean(factor * v) for v in self.covariance[t]])
        self.F.append([mean(eigenvalue * v) for v in self.covariance[t]])
        self.G.append([mean(factor * v) for v in self.response[t]])
        self._R1.append([mean(eigenvalue * v) for v in self.response[t]])
        self._memory.append(
            [
                cut(eta**2 * q2 * self.Z[t][s] * (self.u[t][s] if s < t else 0))
                - cut(eta * q2 * delta * self.G[t][s] * self.C[t][s])
                for s in range(t + 1)
            ]
        )

    @staticmethod
    def _at(matrix: Matrix, r: int, q: int) -> Any:
        return matrix[r][q] if r >= q else matrix[q][r]


def _column(matrix: Matrix, s: int, first: int, last: int) -> list[Any]:
    return [matrix[r][s] for r in range(first, last)]


def stationary_share() -> sp.Expr:
    r"""Return a mode's noise over the mean noise of all, where noise sustains itself.

    Returns
    -------
    SymPy expression
        In the pair response ``S0`` of the mode with itself: :math:`E z_\alpha^2/\ell` without
        curvature. Its mean over all modes is 1 at the stochastic edge, and K else.

    Notes
    -----
    The sum over time of the squared responses to the noise :math:`\xi_\alpha(s)` of one step is
    :math:`S^0`, so that :math:`e = \gamma S^0(\ell - \kappa e/D)`.

    References
    ----------
    .. [1] derivations/09-mean-field.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.mean_field.stationary_share().subs(symbolic.names.kappa, 0)
    S0*gamma
    """
    own, bare, level = sp.symbols("e S0 ell")
    gamma, kappa = names.gamma, names.kappa
    (noise,) = sp.solve(sp.Eq(own, gamma * bare * (level - kappa * own / names.D)), own)
    return sp.cancel(noise / level)
