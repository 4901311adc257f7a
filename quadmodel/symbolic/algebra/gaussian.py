r"""Gaussian averages by Wick's theorem, in index form.

A field is a tensor with mean zero whose second moments are a polynomial in other tensors, e.g. the
curvature, :math:`E[Q_{aij}Q_{bkl}] = C_{ab}(S_{ik}S_{jl} + S_{il}S_{jk})`. The average of a product
is the sum over all pairings. To second order in a field only its second moments matter, so those
results hold for every law with these second moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from quadmodel._util.checks import InputError
from quadmodel.symbolic.algebra.indices import (
    DATA,
    PARAMETERS,
    Index,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.names import s, sigma
from quadmodel.symbolic.algebra.polynomials import Polynomial, Tensor, constant, delta

# A product of n fields has (n-1)!! pairings: 945 at 10.
HIGHEST_ORDER = 10

CURVATURE = Tensor("Q", (DATA, PARAMETERS, PARAMETERS), (0, 1, 1))
JACOBIAN = Tensor("J", (DATA, PARAMETERS))
RESIDUAL = Tensor("z", (DATA,))
OVER_DATA = Tensor("C", (DATA, DATA), (0, 0))
OVER_PARAMETERS = Tensor("S", (PARAMETERS, PARAMETERS), (0, 0))

Indices = tuple[Index, ...]


class GaussianField:
    """A Gaussian tensor of mean zero.

    Parameters
    ----------
    tensor : Tensor
        The tensor.
    covariance : callable
        Takes the indices of two entries, as two tuples, and returns their covariance: a polynomial
        in which just these indices are free.

    Raises
    ------
    InputError
        If the covariance does not share the tensor's symmetries: the exchange of both entries, and
        that of slots of one class.

    Examples
    --------
    A residual whose entries are independent:

    >>> from quadmodel import symbolic
    >>> (a,) = symbolic.data_indices("a")
    >>> z = symbolic.Tensor("z", (a.space,))
    >>> field = symbolic.GaussianField(z, lambda one, other: symbolic.delta(one[0], other[0]))
    >>> symbolic.average((z(a) * z(a)).sum(a), field)
    (D)
    """

    def __init__(self, tensor: Tensor, covariance: Callable[[Indices, Indices], Polynomial]):
        self.tensor = tensor
        self.covariance = covariance
        if max(tensor.slots.count(space) for space in (DATA, PARAMETERS)) > 4:
            raise InputError(f"{tensor.name} must have at most 4 indices of a kind")
        first = _fresh(tensor, "abcd", "ijkl")
        second = _fresh(tensor, "efgh", "mnop")
        given = covariance(first, second)
        outside = [i.label for i in given.free if i not in (*first, *second)]
        if outside:
            raise InputError(
                f"covariance of {tensor.name} must have the indices of both entries only, got "
                f"{', '.join(map(str, outside))} too"
            )
        images = [("both entries", covariance(second, first))]
        for one, other in _exchanges(tensor):
            swapped = list(first)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            images.append(
                (f"indices {one + 1} and {other + 1}", covariance(tuple(swapped), second))
            )
        for what, image in images:
            if not given.equals(image):
                raise InputError(
                    f"covariance of {tensor.name} must be symmetric under the exchange of {what}, "
                    f"got {given} and {image}"
                )


def average(polynomial: Polynomial, *fields: GaussianField) -> Polynomial:
    r"""Average a polynomial over Gaussian fields, independent of each other.

    Parameters
    ----------
    polynomial : Polynomial
        What to average.
    *fields : GaussianField
        The fields to average over.

    Returns
    -------
    Polynomial

    Raises
    ------
    InputError
        If a term holds more than 10 of a field.

    Notes
    -----
    Wick: :math:`E[\phi_1\cdots\phi_{2n}] = \sum_{\text{pairings}}\prod E[\phi_i\phi_j]`.

    References
    ----------
    .. [1] derivations/04-gradient-statistics.md.

    Examples
    --------
    A closed loop over parameters becomes their number:

    >>> from quadmodel.symbolic.algebra import gaussian, indices
    >>> a, b = indices.data_indices("ab")
    >>> i, j = indices.parameter_indices("ij")
    >>> J = gaussian.JACOBIAN
    >>> gaussian.average((J(a, i) * J(b, i)).sum(i), gaussian.independent(J, scale=1))
    (P)*delta_ab
    """
    for field in fields:
        if polynomial.degree(field.tensor) > HIGHEST_ORDER:
            raise InputError(
                f"order must be at most {HIGHEST_ORDER} in {field.tensor.name}, got "
                f"{polynomial.degree(field.tensor)}"
            )
        polynomial = polynomial.expand(field.tensor, partial(_wick, field))
    return polynomial


def pairings(count: int) -> Iterator[list[tuple[int, int]]]:
    """Yield all ways to join `count` places in pairs; none if their number is odd."""

    def join(places: list[int]) -> Iterator[list[tuple[int, int]]]:
        if not places:
            yield []
            return
        first, *others = places
        for partner in others:
            for rest in join([p for p in others if p != partner]):
                yield [(first, partner), *rest]

    if count % 2 == 0:
        yield from join(list(range(count)))


def _wick(field: GaussianField, group: Sequence[Indices]) -> Iterator[Polynomial]:
    for pairing in pairings(len(group)):
        product = constant(1)
        for one, other in pairing:
            product = product * field.covariance(group[one], group[other])
        yield product


def kronecker_curvature(
    over_data: Callable[[Index, Index], Any] = OVER_DATA,
    over_parameters: Callable[[Index, Index], Any] = OVER_PARAMETERS,
) -> GaussianField:
    r"""Return the curvature with Kronecker covariance.

    .. math:: E[Q_{aij}Q_{bkl}] = C_{ab}(S_{ik}S_{jl} + S_{il}S_{jk})

    Parameters
    ----------
    over_data : callable, optional
        C: takes two data indices, returns a polynomial or a scalar.
    over_parameters : callable, optional
        S: takes two parameter indices.

    Returns
    -------
    GaussianField

    Raises
    ------
    InputError
        If C or S is not symmetric.

    References
    ----------
    .. [1] arXiv:2404.19261, section 2: independent entries, C = sigma^2 I, S = I.

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> (a, b), (i, j) = symbolic.data_indices("ab"), symbolic.parameter_indices("ij")
    >>> Q = symbolic.Tensor("Q", (a.space, i.space, i.space), (0, 1, 1))
    >>> symbolic.average((Q(a, i, j) * Q(b, i, j)).sum(i, j), symbolic.kronecker_curvature())
    (1)*C_ab*S_ii*S_jj + (1)*C_ab*S_ij*S_ij
    """

    def covariance(first: Indices, second: Indices) -> Polynomial:
        (a, i, j), (b, k, m) = first, second
        both = over_parameters(i, k) * over_parameters(j, m)
        both = both + over_parameters(i, m) * over_parameters(j, k)
        product: Polynomial = constant(1) * both * over_data(a, b)
        return product

    return GaussianField(CURVATURE, covariance)


def independent_curvature(scale: Any = sigma) -> GaussianField:
    r"""Return the curvature with independent entries, :math:`C = \sigma^2 I, S = I`.

    Parameters
    ----------
    scale : SymPy expression, optional
        Standard deviation of an entry off the diagonal; those on it have twice the variance.

    Returns
    -------
    GaussianField

    Examples
    --------
    >>> from quadmodel import symbolic
    >>> (a, b), (i, j) = symbolic.data_indices("ab"), symbolic.parameter_indices("ij")
    >>> Q = symbolic.Tensor("Q", (a.space, i.space, i.space), (0, 1, 1))
    >>> symbolic.average((Q(a, i, j) * Q(b, i, j)).sum(i, j), symbolic.independent_curvature())
    (P**2*sigma**2 + P*sigma**2)*delta_ab
    """
    return kronecker_curvature(lambda a, b: scale**2 * delta(a, b), delta)


def independent(tensor: Tensor, scale: Any = s) -> GaussianField:
    """Return a tensor with independent entries.

    Parameters
    ----------
    tensor : Tensor
        A tensor whose slots can't be exchanged: residual, Jacobian.
    scale : SymPy expression, optional
        Standard deviation of an entry.

    Returns
    -------
    GaussianField
    """

    def covariance(first: Indices, second: Indices) -> Polynomial:
        product = constant(scale**2)
        for one, other in zip(first, second, strict=True):
            product = product * delta(one, other)
        return product

    return GaussianField(tensor, covariance)


def _fresh(tensor: Tensor, data: str, parameters: str) -> Indices:
    names = {DATA: iter(data_indices(data)), PARAMETERS: iter(parameter_indices(parameters))}
    return tuple(next(names[space]) for space in tensor.slots)


def _exchanges(tensor: Tensor) -> Iterator[tuple[int, int]]:
    for one in range(len(tensor.slots)):
        for other in range(one + 1, len(tensor.slots)):
            if tensor.classes[one] == tensor.classes[other]:
                yield one, other
