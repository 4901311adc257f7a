r"""Linear optimizers with memory, and the second moments of the linear model under them.

An optimizer combines its latest iterates and takes the gradient at another combination of them:

.. math:: \theta_{t+1} = \sum_k p_k\theta_{t-k} - \eta\,[J^\top W_t z(\varphi_t)/D + \rho\varphi_t],
          \qquad \varphi_t = \sum_k c_k\theta_{t-k}

so that the linear model's residual, with u the residual at :math:`\varphi`, moves by
:math:`z_{t+1} = \sum_k p_kz_{t-k} - \eta\Theta W_tu_t - \eta\rho(u_t - z_0)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sympy as sp

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.indices import DATA, Index, Term, data_indices
from quadmodel.symbolic.algebra.matrices import as_matrix, matrix_of
from quadmodel.symbolic.algebra.names import eta, mu, rho
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta
from quadmodel.symbolic.algebra.sampling import SamplingScheme, average_batches

# Responses of an optimizer that remembers m points solve a linear system of m^2 equations.
LONGEST_MEMORY = 4

NTK = Tensor("Theta", (DATA, DATA), (0, 0))
_WEIGHTS = Tensor("w", (DATA,))
_START = Tensor("z0", (DATA,))


@dataclass(frozen=True)
class LinearOptimizer:
    r"""A linear optimizer with memory: plain SGD, the heavy ball, Nesterov's method and others.

    Parameters
    ----------
    update : sequence of SymPy expression
        :math:`p_0, p_1, \dots` of :math:`\theta_{t+1} = \sum_k p_k\theta_{t-k} - \eta g_t`;
        they sum to 1. At most 4.
    extrapolation : sequence of SymPy expression
        :math:`c_0, c_1, \dots` of the point :math:`\sum_k c_k\theta_{t-k}` where the gradient
        :math:`g_t` is taken; they sum to 1.

    Raises
    ------
    InputError
        If there are too many coefficients, none, or a sum is not 1.

    Examples
    --------
    Gradients at a point half a step ahead:

    >>> import sympy as sp
    >>> from quadmodel import symbolic
    >>> ahead = symbolic.LinearOptimizer(update=(1,), extrapolation=(sp.Rational(3, 2), -sp.S.Half))
    >>> ahead.recursion(sp.Symbol("x"))
    [1 - 3*x/2, x/2]
    """

    update: tuple[sp.Expr, ...]
    extrapolation: tuple[sp.Expr, ...]

    def __post_init__(self) -> None:
        """Check the sums and fill up the shorter list with zeros."""
        memory = max(len(self.update), len(self.extrapolation))
        for name in ("update", "extrapolation"):
            given = tuple(sp.nsimplify(c, rational=True) for c in getattr(self, name))
            if not 1 <= len(given) <= LONGEST_MEMORY:
                raise InputError(
                    f"{name} must hold 1 to {LONGEST_MEMORY} coefficients, got {len(given)}"
                )
            total = sp.simplify(sp.Add(*given))
            if total != 1:
                raise InputError(f"{name} must sum to 1, got {total}")
            object.__setattr__(self, name, given + (sp.S.Zero,) * (memory - len(given)))

    @property
    def memory(self) -> int:
        """Number of earlier points that one step needs."""
        return len(self.update)

    def recursion(self, decay: sp.Expr) -> list[sp.Expr]:
        r"""Return :math:`a_k` of the noise-free :math:`z_{t+1} = \sum_k a_k z_{t-k}`.

        Parameters
        ----------
        decay : SymPy expression
            :math:`x = \eta(\lambda+\rho)` of the mode.

        Returns
        -------
        list of SymPy expression
        """
        pairs = zip(self.update, self.extrapolation, strict=True)
        return [sp.expand(p - decay * c) for p, c in pairs]


PLAIN_SGD = LinearOptimizer((1,), (1,))
HEAVY_BALL = LinearOptimizer((1 + mu, -mu), (1,))
NESTEROV = LinearOptimizer((1 + mu, -mu), (1 + mu, -mu))


def linear_optimizer(*, momentum: bool = False, nesterov: bool = False) -> LinearOptimizer:
    r"""Return one of the three usual optimizers, with momentum :math:`\mu`.

    Parameters
    ----------
    momentum, nesterov : bool, optional
        Neither for plain SGD, `momentum` for the heavy ball, `nesterov` for Nesterov's method.

    Returns
    -------
    LinearOptimizer

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.linear_optimizer(momentum=True).update
    (mu + 1, -mu)
    """
    return NESTEROV if nesterov else HEAVY_BALL if momentum else PLAIN_SGD


def history(age: int) -> Tensor:
    """Return the residual of some steps ago."""
    return Tensor(f"z{age}" if age else "z", (DATA,))


def moment(age: int, other: int) -> Tensor:
    r"""Return the second moment :math:`E[z_{t-k}z_{t-l}^\top]`, :math:`k \le l` (M at 0)."""
    name = f"M{age}{other}" if other else "M"
    return Tensor(name, (DATA, DATA), (0, 0) if age == other else ())


def second_moments(
    optimizer: LinearOptimizer,
    *,
    weight_decay: bool = False,
    sampling: str | SamplingScheme | None = None,
) -> dict[int, Polynomial]:
    r"""Return :math:`E[z_{t+1}z_{t+1-l}^\top]` for l = 0, 1, ... in index form.

    Parameters
    ----------
    optimizer : LinearOptimizer
        The update rule.
    weight_decay : bool, optional
        Whether to keep :math:`\rho`.
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`; None leaves :math:`\gamma, \kappa`.

    Returns
    -------
    dict of int to Polynomial
        By l, as many as the optimizer remembers, with free indices a and b.
    """
    a, b = data_indices("ab")
    moved = _moved(optimizer, a, weight_decay)
    products = {0: moved * _moved(optimizer, b, weight_decay)}
    products |= {age: moved * history(age - 1)(b) for age in range(1, optimizer.memory)}
    return {
        age: _paired(average_batches(product, _WEIGHTS, sampling), optimizer.memory)
        for age, product in products.items()
    }


def second_moment_equation(
    sampling: str | SamplingScheme | None = None,
    *,
    optimizer: LinearOptimizer | None = None,
    momentum: bool = False,
    nesterov: bool = False,
    weight_decay: bool = False,
) -> sp.Eq | tuple[sp.Eq, ...]:
    r"""Return the exact second moment of the linear model after one more step.

    Parameters
    ----------
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`; None leaves :math:`\gamma, \kappa`.
    optimizer : LinearOptimizer, optional
        An update rule of your own, instead of the next two.
    momentum, nesterov : bool, optional
        As for :func:`linear_optimizer`.
    weight_decay : bool, optional
        Whether to keep :math:`\rho`.

    Returns
    -------
    Equation, or a tuple of them
        :math:`M = E[z_tz_t^\top]`, shape (D, D), in the loss's unit; with momentum an equation for
        :math:`M01 = E[z_tz_{t-1}^\top]` too, and M11 the earlier M. With weight decay m, m1 are the
        mean residuals and z0 that at the start.

    Raises
    ------
    InputError
        If the scheme is unknown.

    Notes
    -----
    SGD: :math:`M' = (I-\eta\Theta)M(I-\eta\Theta)
    + \eta^2\gamma\,\Theta[\mathrm{diag}(M) - \kappa M/D]\Theta`.

    References
    ----------
    .. [1] derivations/02-second-moment.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> equation = symbolic.second_moment_equation()
    >>> equation.lhs
    M'
    """
    chosen = optimizer or linear_optimizer(momentum=momentum, nesterov=nesterov)
    equations = []
    for age, polynomial in second_moments(
        chosen, weight_decay=weight_decay, sampling=sampling
    ).items():
        symbol = matrix_of(moment(0, age))
        left = sp.MatrixSymbol(f"{sp.latex(symbol)}'", *symbol.shape)
        equations.append(sp.Eq(left, as_matrix(polynomial, *data_indices("ab"))))
    return equations[0] if len(equations) == 1 else tuple(equations)


def noise_covariance(sampling: str | SamplingScheme | None = None) -> Polynomial:
    r"""Return the covariance of the batch noise :math:`(w_a-1)u_a` for a random residual u.

    Parameters
    ----------
    sampling : str, SamplingScheme or None, optional
        As for :func:`~quadmodel.symbolic.weight_moment`.

    Returns
    -------
    Polynomial
        In :math:`U = E[uu^\top]`: :math:`\gamma(\delta_{ab}U_{aa} - \kappa U_{ab}/D)`.
    """
    a, b = data_indices("ab")
    product = (_WEIGHTS(a) - 1) * (_WEIGHTS(b) - 1) * Tensor("U", (DATA, DATA), (0, 0))(a, b)
    return average_batches(product, _WEIGHTS, sampling)


class ModeMoments(NamedTuple):
    """One step of the second moment between two modes, and the other moments that it needs.

    The next second moment is the sum of the first three parts: what is propagated, what weight
    decay's force adds, and the noise that is injected.
    """

    propagated: sp.Expr
    forced: sp.Expr
    injected: sp.Expr
    cross: sp.Expr
    mean: sp.Expr
    at_gradient: sp.Expr
    noise: sp.Expr


def mode_moments() -> ModeMoments:
    r"""Return one step of the second moment between two modes, for a memory of two points.

    Returns
    -------
    ModeMoments
        For the recursion :math:`z_{t+1} = az_t - bz_{t-1} + c - f\omega_t` (a prime marks the
        other mode): in the second moments :math:`N = E z_tz_t'`, :math:`X = E z_tz_{t-1}'`,
        :math:`X' = E z_{t-1}z_t'`, :math:`O = E z_{t-1}z_{t-1}'` and the means
        :math:`m = E z_t`, :math:`n = E z_{t-1}`. `noise` is the covariance :math:`\Omega` of
        :math:`\omega`, in the moment U at the point where the gradient is taken and
        :math:`E = V^\top\mathrm{diag}(U)V`.

    References
    ----------
    .. [1] derivations/02-second-moment.md.
    """
    z, y, a, b, c, f, noise, m, n = sp.symbols("z y a b c f omega m n")
    z_, y_, a_, b_, c_, f_, noise_, m_, n_ = sp.symbols("z' y' a' b' c' f' omega' m' n'")
    N, X, X_, before, Omega = sp.symbols("N X X' O Omega")
    pairs = {z * z_: N, z * y_: X, y * z_: X_, y * y_: before, noise * noise_: Omega}
    means = {z: m, y: n, noise: 0, z_: m_, y_: n_, noise_: 0}

    def mean_of(product: sp.Expr) -> sp.Expr:
        # The batch's noise is uncorrelated with the residuals: its mean is zero for each of them.
        moments = {p * q: 0 for p in (z, y) for q in (noise_,)} | {noise * q: 0 for q in (z_, y_)}
        return sp.expand(product).subs(pairs | moments).subs(means)

    propagated = mean_of((a * z - b * y) * (a_ * z_ - b_ * y_))
    whole = mean_of((a * z - b * y + c - f * noise) * (a_ * z_ - b_ * y_ + c_ - f_ * noise_))
    injected = sp.expand(whole.coeff(Omega)) * Omega
    p, q = sp.symbols("p q")
    U, E = sp.symbols("U E")
    i, k = data_indices("ab")
    covariance, moments = noise_covariance(), Tensor("U", (DATA, DATA), (0, 0))
    return ModeMoments(
        propagated,
        sp.collect(sp.expand(whole - propagated - injected), [c_, c]),
        injected,
        mean_of((a * z - b * y + c - f * noise) * z_),
        mean_of(a * z - b * y + c - f * noise),
        mean_of((p * z - q * y) * (p * z_ - q * y_)),
        covariance.coefficient(delta(i, k) * moments(i, i)) * E
        + covariance.coefficient(moments(i, k)) * U,
    )


def _combined(coefficients: Sequence[sp.Expr], index: Index) -> Polynomial:
    total = constant(0)
    for age, coefficient in enumerate(coefficients):
        total = total + history(age)(index) * coefficient
    return total


def _moved(optimizer: LinearOptimizer, a: Index, weight_decay: bool) -> Polynomial:
    c = Index(DATA, "c")
    gradient = (NTK(a, c) * _WEIGHTS(c) * _combined(optimizer.extrapolation, c)).sum(c)
    if weight_decay:
        gradient = gradient + rho * (_combined(optimizer.extrapolation, a) - _START(a))
    moved: Polynomial = _combined(optimizer.update, a) - gradient * eta
    return moved


def _paired(polynomial: Polynomial, memory: int) -> Polynomial:
    """Put second moments in place of pairs of residuals; the start is a fixed vector."""
    ages = {history(age): age for age in range(memory)}

    def terms() -> Iterator[Term]:
        for scale, factors, summed in polynomial.opened():
            others = [f for f in factors if f[0] not in ages]
            random = sorted((ages[t], i) for t, (i, *_) in factors if t in ages)
            if len(random) == 2:
                (age, i), (other, k) = random
                others.append((moment(age, other), (i, k)))
            elif len(random) == 1:
                ((age, i),) = random
                others.append((Tensor(f"m{age}" if age else "m", (DATA,)), (i,)))
            yield scale, others, summed

    return Polynomial.collect(terms())
