"""Exact SGD in the quadratic model, by enumeration: every batch and every curvature is visited.

One step with batch weights w, W = diag(w) and h = (learning rate) / D takes the residual z and
the Jacobian J to

    g = J^T W z,   z' = z - h J g + (h^2 / 2) Q(g, g),   J' = J - h Q(., g),

which is theta' = theta - h J(theta)^T W z(theta). Expectations are over independent batches and
over a discrete curvature Q with the covariance of the model. They are separated by powers of Q:
each quantity is a power series in e after Q -> e Q, cut after the highest order asked for.

No moment of Q or of the weights is used, and no number is rounded: integers and fractions only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracles.enumeration import rational_batches

Exact = NDArray[Any]  # of int64, or of Python numbers (dtype=object)
Rationals = Sequence[Any] | NDArray[Any]  # nested as deep as needed, of integers and fractions
Draws = Sequence[tuple[Fraction, Sequence[Fraction]]]  # (probability, weights) of every batch
Series = list[Exact | None]  # coefficients of e^0, e^1, ...; None is zero. First axis: values of Q
State = tuple[Series, Series]  # residual and Jacobian


def draw_list(
    n_data: int, batch_size: int, sampling: str = "without_replacement"
) -> list[tuple[Fraction, list[Fraction]]]:
    """List the batches that can occur as (probability, weights)."""
    return [
        (probability, list(weights))
        for probability, weights in rational_batches(n_data, batch_size, sampling)
        if probability > 0
    ]


def discrete_curvatures(n_data: int, n_params: int) -> tuple[Exact, Exact]:
    """Return the probabilities (N,) and values (N, D, P, P) of the discrete curvature.

    Entries are independent, up to symmetry: +1 or -1 off the diagonal, -2, 0, 0 or 2 on it. Then
    E[Q_ij Q_kl] = d_ik d_jl + d_il d_jk for each data point.
    """
    pairs = list(itertools.combinations_with_replacement(range(n_params), 2))
    on = [(-2, Fraction(1, 4)), (0, Fraction(1, 2)), (2, Fraction(1, 4))]
    off = [(-1, Fraction(1, 2)), (1, Fraction(1, 2))]
    chances, matrices = [], []
    for entries in itertools.product(*(on if i == j else off for i, j in pairs)):
        matrix = np.zeros((n_params, n_params), dtype=np.int64)
        for (i, j), (entry, _) in zip(pairs, entries, strict=True):
            matrix[i, j] = matrix[j, i] = entry
        chances.append(math.prod(chance for _, chance in entries))
        matrices.append(matrix)
    picked = np.indices((len(matrices),) * n_data).reshape(n_data, -1).T
    return np.array(chances, dtype=object)[picked].prod(axis=1), np.array(matrices)[picked]


def expected_moments(
    jacobian: Rationals,
    residual: Rationals,
    step_size: Fraction | int,
    draws: Draws,
    steps: int,
    mix: Rationals | None = None,
    root: Rationals | None = None,
    max_order: int = 2,
) -> dict[str, list[Exact]]:
    """Return means after `steps` steps: for each moment, its orders 0 to `max_order` in Q.

    Moments are "residual" E z, "jacobian" E J, "second_moment" E z z^T and "gram" E J J^T, as
    arrays of fractions. `step_size` is h, the learning rate over D. The curvature is
    Q_a = sum_b mix_ab root Qh_b root^T with Qh from `discrete_curvatures`, so that
    E[Q_aij Q_bkl] = C_ab (S_ik S_jl + S_il S_jk) with C = mix mix^T and S = root root^T.
    """
    # Integers Z, Y, V and K stand for z = Z / a, J = Y / b, h w = V / q and Q = K / k. Writing
    # z, J, h and Q for a z, b J, h / b^2 and b^2 Q / a leaves the step as it is. This makes the
    # first two integers, h w = V / (b^2 q) and e Q = 2 K u with u = e b^2 / (2 a k).
    Z, a = _integers(residual)
    Y, b = _integers(jacobian)
    n_data, n_params = Y.shape
    K, k, chances, of = _curvatures(n_data, n_params, mix, root)
    V, q = _integers([[_rational(step_size) * _rational(w) for w in ws] for _, ws in draws])
    q *= b**2
    unit = Fraction(b**2, 2 * a * k)

    start: State = ([Z[None], *[None] * max_order], [Y[None], *[None] * max_order])
    scaled_draws = [(_rational(p), v) for (p, _), v in zip(draws, V, strict=True)]
    shapes = {
        "residual": (n_data,),
        "jacobian": (n_data, n_params),
        "second_moment": (n_data, n_data),
        "gram": (n_data, n_data),
    }
    means = {
        name: [np.full(shape, Fraction(0), dtype=object) for _ in range(max_order + 1)]
        for name, shape in shapes.items()
    }
    for probability, (z, J) in _ends(start, K, scaled_draws, q, steps):
        # (series, what its integers are multiples of, its degree in z)
        moments = {
            "residual": (z, Fraction(1, a), 1),
            "jacobian": (J, Fraction(1, b), 0),
            "second_moment": (_product("na,nb->nab", z, z), Fraction(1, a**2), 2),
            "gram": (_product("nai,nbi->nab", J, J), Fraction(1, b**2), 0),
        }
        for name, (series, grain, degree) in moments.items():
            for order, coefficient in enumerate(series):
                if coefficient is None:
                    continue
                total = _weighted_sum(chances, coefficient).astype(object)
                scale = grain * unit**order / (of * q ** (steps * (order + degree)))
                means[name][order] += probability * scale * total
    return means


def _curvatures(
    n_data: int, n_params: int, mix: Rationals | None, root: Rationals | None
) -> tuple[Exact, int, Exact, int]:
    """All Q as integers with their denominator, and their probabilities likewise."""
    chances, Q = discrete_curvatures(n_data, n_params)
    denominator = 1
    if root is not None:
        R, r = _integers(root)
        Q = _dot("nail,jl->naij", _dot("nakl,ik->nail", Q, R), R)
        denominator *= r**2
    if mix is not None:
        A, r = _integers(mix)
        Q = _dot("ab,nbij->naij", A, Q)
        denominator *= r
    return Q, denominator, *_integers(chances)


def _ends(
    state: State, K: Exact, scaled_draws: list[tuple[Fraction, Exact]], q: int, steps: int
) -> Iterator[tuple[Fraction, State]]:
    """Yield (probability, last state) of every sequence of batches."""
    if steps == 0:
        yield Fraction(1), state
        return
    for probability, V in scaled_draws:
        for later, end in _ends(_step(state, K, V, q), K, scaled_draws, q, steps - 1):
            yield probability * later, end


def _step(state: State, K: Exact, V: Exact, q: int) -> State:
    """One step of z and J with h w = V / q and Q = 2 K u, in integers.

    After t steps, z = Z / q^t and J = Y, where Z and Y are series in u / q^t with integer
    coefficients. In powers of u / q^(t + 1), the coefficients of order n are q^n times larger;
    then G = Y^T V Z and

        Z' = q Z - Y G + (u / q^(t + 1)) K(G, G),   Y' = Y - 2 (u / q^(t + 1)) K(., G).
    """
    Z, Y = ([_times(x, q**n) for n, x in enumerate(series)] for series in state)
    G = _product("nai,na->ni", Y, [None if x is None else _dot("na,a->na", x, V) for x in Z])
    KG = _raised([None if x is None else _dot("naij,nj->nai", K, x) for x in G])
    YG = _product("nai,ni->na", Y, G)
    KGG = _product("nai,ni->na", KG, G)
    moved = [
        _plus(_plus(_times(x, q), _times(y, -1)), z) for x, y, z in zip(Z, YG, KGG, strict=True)
    ]
    return moved, [_plus(x, _times(y, -2)) for x, y in zip(Y, KG, strict=True)]


def _product(subscripts: str, left: Series, right: Series) -> Series:
    """Product of two series, each pair of coefficients by `subscripts`."""
    product: Series = [None] * len(left)
    for (m, x), (n, y) in itertools.product(enumerate(left), enumerate(right)):
        if x is not None and y is not None and m + n < len(product):
            product[m + n] = _plus(product[m + n], _dot(subscripts, x, y))
    return product


def _raised(series: Series) -> Series:
    """Multiply the series by its variable."""
    return [None, *series[:-1]]


def _dot(subscripts: str, left: Exact, right: Exact) -> Exact:
    """Like `np.einsum`; an axis of length 1 is repeated as needed."""
    labels, kept = subscripts.split("->")
    lengths: dict[str, int] = {}
    for names, factor in zip(labels.split(","), (left, right), strict=True):
        for name, length in zip(names, factor.shape, strict=True):
            lengths[name] = max(length, lengths.get(name, 1))
    terms = math.prod(length for name, length in lengths.items() if name not in kept)
    left, right = _with_room(terms * _largest(left) * _largest(right), left, right)
    result: Exact = np.einsum(subscripts, left, right)
    return result


def _weighted_sum(weights: Exact, terms: Exact) -> Exact:
    """Sum over the first axis."""
    flat = np.broadcast_to(terms, (len(weights), *terms.shape[1:])).reshape(len(weights), -1)
    return _dot("n,nx->x", weights, flat).reshape(terms.shape[1:])


def _plus(x: Exact | None, y: Exact | None) -> Exact | None:
    if x is None or y is None:
        return y if x is None else x
    x, y = _with_room(_largest(x) + _largest(y), x, y)
    return x + y


def _times(x: Exact | None, factor: int) -> Exact | None:
    if x is None:
        return None
    # the factor itself may be too large for int64
    (x,) = _with_room(max(_largest(x), 1) * abs(factor), x)
    return x * factor


def _largest(x: Exact) -> int:
    return max(int(x.max()), -int(x.min()))


def _with_room(bound: int, *arrays: Exact) -> tuple[Exact, ...]:
    """Return the arrays as int64 where a result up to `bound` fits, else with Python integers."""
    if bound < 2**63 and all(x.dtype == np.int64 for x in arrays):
        return arrays
    return tuple(x.astype(object) for x in arrays)


def _rational(value: Any) -> Fraction:
    """Fraction of Python integers; `value` may not be a float."""
    if isinstance(value, float | np.floating):
        raise TypeError(f"not exact: {value!r}")
    return Fraction(int(value.numerator), int(value.denominator))


def _integers(values: Rationals) -> tuple[Exact, int]:
    """Integers and the common denominator that they have to be divided by."""
    given = np.array(values, dtype=object)
    fractions = [_rational(value) for value in given.flat]
    denominator = math.lcm(*(value.denominator for value in fractions))
    whole = [value.numerator * (denominator // value.denominator) for value in fractions]
    fits = max(map(abs, whole)) < 2**63
    return np.array(whole, np.int64 if fits else object).reshape(given.shape), denominator
