r"""Moments of the batch weights, of any order, for any coincidence of the data points.

For a product :math:`w_{i_1}\cdots w_{i_k}` what matters is which indices are equal: a partition of
the k places into blocks. A sampling scheme gives the moment when blocks of these sizes meet
*different* points; sums over free indices need it expanded in Kronecker deltas, by Moebius
inversion over the lattice of partitions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy as sp
from sympy.functions.combinatorial.numbers import stirling
from sympy.utilities.iterables import multiset_partitions

from quadmodel._util.checks import InputError
from quadmodel.optimizer import SAMPLING_SCHEMES
from quadmodel.symbolic.algebra.indices import Index
from quadmodel.symbolic.algebra.names import B, D, gamma, kappa
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta

# A product of k weights has Bell(k) coincidence patterns: 4140 at 8.
HIGHEST_ORDER = 8


@dataclass(frozen=True)
class SamplingScheme:
    r"""A law of exchangeable batch weights, given by its mixed moments.

    Parameters
    ----------
    name : str
        Name, for messages.
    moment : callable
        Takes block sizes :math:`(k_1, \dots, k_m)`, descending, and returns
        :math:`E[w_1^{k_1}\cdots w_m^{k_m}]` for m different data points, as a SymPy expression.

    Examples
    --------
    Full batches, whose weights are all 1:

    >>> from quadmodel import symbolic
    >>> scheme = symbolic.SamplingScheme("full batches", lambda sizes: 1)
    >>> symbolic.weight_covariance(scheme)
    (0, 0)
    """

    name: str
    moment: Callable[[tuple[int, ...]], Any]

    @classmethod
    def from_moments(cls, moments: Mapping[Sequence[int], Any]) -> SamplingScheme:
        r"""Make a scheme from a table of moments.

        Parameters
        ----------
        moments : mapping of tuple of int to SymPy expression
            E.g. ``{(1,): 1, (2,): E[w_i^2], (1, 1): E[w_i w_j]}``.

        Returns
        -------
        SamplingScheme

        Raises
        ------
        InputError
            On use, where a moment is needed that the table does not hold.
        """
        if not all(isinstance(sizes, tuple) for sizes in moments):
            raise InputError(f"moments must be by tuples of block sizes, got {list(moments)}")
        table = {tuple(sorted(k, reverse=True)): sp.sympify(v) for k, v in moments.items()}

        def moment(sizes: tuple[int, ...]) -> sp.Expr:
            if sizes not in table:
                raise InputError(
                    f"moments must hold block sizes {sizes} for a product of {sum(sizes)} weights, "
                    f"got {', '.join(map(str, table))}"
                )
            return table[sizes]

        return cls("given moments", moment)


def _without_replacement(sizes: tuple[int, ...]) -> sp.Expr:
    blocks = len(sizes)
    return (D / B) ** sum(sizes) * _falling(B, blocks) / _falling(D, blocks)


def _with_replacement(sizes: tuple[int, ...]) -> sp.Expr:
    # Powers of a multiplicity in falling factorials, whose multinomial moments are B^(l) / D^l.
    ways = itertools.product(*([(n, stirling(k, n)) for n in range(1, k + 1)] for k in sizes))
    total = sp.Add(
        *(
            sp.Mul(*(weight for _, weight in way))
            * _falling(B, sum(n for n, _ in way))
            / D ** sum(n for n, _ in way)
            for way in ways
        )
    )
    return (D / B) ** sum(sizes) * total


def _bernoulli(sizes: tuple[int, ...]) -> sp.Expr:
    return (D / B) ** (sum(sizes) - len(sizes))


def _second_order(sizes: tuple[int, ...]) -> sp.Expr:
    known = {(1,): sp.S.One, (2,): 1 + gamma * (1 - kappa / D), (1, 1): 1 - gamma * kappa / D}
    if sizes not in known:
        raise InputError(
            f"sampling must be one of {', '.join(SAMPLING_SCHEMES)} for products of "
            f"{sum(sizes)} weights, got None: gamma and kappa give products of 2"
        )
    return known[sizes]


_SCHEMES = {
    "without_replacement": SamplingScheme("without_replacement", _without_replacement),
    "with_replacement": SamplingScheme("with_replacement", _with_replacement),
    "bernoulli": SamplingScheme("bernoulli", _bernoulli),
    # Any scheme with mean 1 and this covariance: enough for second moments.
    None: SamplingScheme("gamma and kappa", _second_order),
}


def as_scheme(sampling: str | SamplingScheme | None) -> SamplingScheme:
    r"""Return the scheme of that name; None has :math:`\gamma` and :math:`\kappa` as symbols."""
    if isinstance(sampling, SamplingScheme):
        return sampling
    if sampling is not None and sampling not in SAMPLING_SCHEMES:
        raise InputError(
            f"sampling must be a SamplingScheme, None or one of {', '.join(SAMPLING_SCHEMES)}, "
            f"got {sampling!r}"
        )
    return _SCHEMES[sampling]


def weight_moment(
    pattern: Sequence[Any], sampling: str | SamplingScheme | None = "without_replacement"
) -> sp.Expr:
    r"""Return :math:`E[w_{i_1}\cdots w_{i_k}]` for a coincidence pattern of the data points.

    Parameters
    ----------
    pattern : sequence
        A label per factor; equal labels are the same data point: "iij" for
        :math:`E[w_i^2w_j]`. At most 8 factors.
    sampling : str, SamplingScheme or None, optional
        "without_replacement", "with_replacement", "bernoulli", moments of your own, or None for any
        scheme with :math:`\mathrm{Cov}(w) = \gamma(I-\kappa 11^\top/D)` (2 factors at most).

    Returns
    -------
    SymPy expression
        A rational function of D and B, without unit.

    Raises
    ------
    InputError
        If the pattern is too long or the scheme unknown.

    Notes
    -----
    With m different points among k factors, without replacement
    :math:`(D/B)^k B^{\underline m}/D^{\underline m}`, Bernoulli :math:`(D/B)^{k-m}`; with
    replacement powers of a multiplicity are written in falling factorials.

    References
    ----------
    .. [1] derivations/01-batch-weights.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.weight_moment("ii", "bernoulli")
    D/B
    """
    _check_order(len(pattern))
    sizes = sorted((list(pattern).count(label) for label in dict.fromkeys(pattern)), reverse=True)
    return sp.factor(as_scheme(sampling).moment(tuple(sizes))) if sizes else sp.S.One


def weight_covariance(
    sampling: str | SamplingScheme | None = "without_replacement",
) -> tuple[sp.Expr, sp.Expr]:
    r"""Return :math:`\gamma, \kappa` of :math:`\mathrm{Cov}(w) = \gamma(I - \kappa 11^\top/D)`.

    Parameters
    ----------
    sampling : str, SamplingScheme or None, optional
        As for :func:`weight_moment`.

    Returns
    -------
    tuple of two SymPy expressions
        Both without unit.

    Raises
    ------
    InputError
        If the scheme is unknown.

    Notes
    -----
    :math:`\gamma = E w_i^2 - E w_iw_j`, :math:`\kappa\gamma/D = (E w_i)^2 - E w_iw_j`; without
    variance :math:`\kappa` may be anything and is 0.

    References
    ----------
    .. [1] derivations/01-batch-weights.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> symbolic.weight_covariance("bernoulli")
    (-(B - D)/B, 0)
    """
    scheme = as_scheme(sampling)
    mean, square, product = (scheme.moment(sizes) for sizes in ((1,), (2,), (1, 1)))
    size = sp.factor(square - product)
    if size == 0:
        return size, sp.S.Zero
    return size, sp.factor(D * (mean**2 - product) / size)


def fluctuations(sampling: str | SamplingScheme | None = "without_replacement") -> SamplingScheme:
    r"""Return the law of :math:`x = w - 1`, the fluctuation of the batch weights.

    Parameters
    ----------
    sampling : str, SamplingScheme or None, optional
        As for :func:`weight_moment`.

    Returns
    -------
    SamplingScheme

    Raises
    ------
    InputError
        If the scheme is unknown.

    Notes
    -----
    :math:`E\prod_b x_b^{k_b} = \sum_{l\le k}\prod_b(-1)^{k_b-l_b}\binom{k_b}{l_b}
    E\prod_b w_b^{l_b}`.

    References
    ----------
    .. [1] derivations/07-typical-stability.md.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> from quadmodel.symbolic.algebra.sampling import fluctuations
    >>> symbolic.weight_moment("ii", fluctuations("bernoulli"))
    -(B - D)/B
    """
    scheme = as_scheme(sampling)

    def moment(sizes: tuple[int, ...]) -> sp.Expr:
        total = sp.S.Zero
        for powers in itertools.product(*(range(size + 1) for size in sizes)):
            ways = math.prod(map(math.comb, sizes, powers)) * (-1) ** (sum(sizes) - sum(powers))
            kept = tuple(sorted((k for k in powers if k), reverse=True))
            total += ways * (scheme.moment(kept) if kept else 1)
        return sp.factor(total)

    return SamplingScheme(f"fluctuations of {scheme.name}", moment)


def average_batches(
    polynomial: Polynomial, weights: Tensor, sampling: str | SamplingScheme | None = None
) -> Polynomial:
    r"""Average a polynomial over one step's batch weights.

    Parameters
    ----------
    polynomial : Polynomial
        What to average.
    weights : Tensor
        The weights of that step.
    sampling : str, SamplingScheme or None, optional
        As for :func:`weight_moment`.

    Returns
    -------
    Polynomial

    Raises
    ------
    InputError
        If a term holds more than 8 of the weights, or the scheme gives no moments of that order.

    References
    ----------
    .. [1] derivations/01-batch-weights.md.

    Examples
    --------
    >>> from quadmodel.symbolic.algebra import indices, polynomials, sampling
    >>> a, b = indices.data_indices("ab")
    >>> w = polynomials.Tensor("w", (indices.DATA,))
    >>> sampling.average_batches(w(a) * w(b), w, "bernoulli")
    (1) + (-1 + D/B)*delta_ab
    """
    scheme = as_scheme(sampling)
    _check_order(polynomial.degree(weights))

    def rule(group: Sequence[tuple[Index, ...]]) -> Iterator[Polynomial]:
        for blocks in partitions(len(group)):
            scale = delta_coefficient(tuple(sorted(map(len, blocks))), scheme)
            if scale == 0:
                continue
            piece = constant(scale)
            for first, *others in blocks:
                for other in others:
                    piece = piece * delta(group[first][0], group[other][0])
            yield piece

    return polynomial.expand(weights, rule)


def partitions(count: int) -> list[list[list[int]]]:
    """Return all partitions of `count` places into blocks."""
    return list(multiset_partitions(list(range(count))))


@cache
def delta_coefficient(sizes: tuple[int, ...], scheme: SamplingScheme) -> sp.Expr:
    r"""Return the coefficient of the deltas that join blocks of these sizes.

    .. math:: c(\pi) = \sum_{\sigma\le\pi}\mu(\sigma,\pi)\,E_\sigma,
              \qquad \mu(\sigma,\pi) = \prod_{b\in\pi}(-1)^{n_b-1}(n_b-1)!

    with :math:`n_b` the number of blocks of the finer partition :math:`\sigma` in block b.
    """
    terms = []
    for parts in itertools.product(*(partitions(size) for size in sizes)):
        weight = math.prod((-1) ** (len(p) - 1) * math.factorial(len(p) - 1) for p in parts)
        finer = tuple(sorted((len(block) for p in parts for block in p), reverse=True))
        terms.append(weight * scheme.moment(finer))
    return sp.factor(sp.Add(*terms))


def _falling(base: sp.Expr, count: int) -> sp.Expr:
    return sp.Mul(*(base - n for n in range(count)))


def _check_order(order: int) -> None:
    if order > HIGHEST_ORDER:
        raise InputError(f"order must be at most {HIGHEST_ORDER} batch weights, got {order}")
