"""Compiled loops of the linear model: residuals of many replicas, stepped together.

A replica has its own learning rate, batch size and number in the random stream. In every step all
replicas draw their batches; then the columns of the NTK are added for all of them, or, for replicas
with large batches, by one matrix product. NTK and coefficients may be in single precision;
residuals are in double precision always, and coefficients then in units of the residual's norm, so
that they neither overflow nor vanish.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, IntArray
from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.batches import BERNOULLI, draw_batch
from quadmodel.simulation._kernels.aligned import aligned_zeros
from quadmodel.simulation._kernels.arguments import AnyFloats
from quadmodel.simulation._kernels.columns import BLOCK, Terms, add_columns
from quadmodel.simulation._kernels.sums import fused, squared_norm
from quadmodel.simulation._kernels.vectors import lowest_bit

# Share of the data in a batch from which on its columns are sorted into blocks of data points: a
# block's part of the NTK then stays in the nearest cache.
_SORTED_FROM = 0.06
# Share of the data in a batch from which on a matrix product is faster than adding columns, if
# there are at least so many data points.
_PRODUCT_FROM, _PRODUCT_DATA = 0.6, 64
# Replicas per matrix product.
_PRODUCT_ROWS = 512


class Residuals(NamedTuple):
    """Residuals that are stepped together, padded, with what belongs to each replica."""

    z: FloatArray
    z_old: FloatArray
    learning_rate: FloatArray
    batch_size: IntArray
    number: IntArray
    active: NDArray[np.bool_]  # not frozen
    squared_norm: FloatArray


class Products(NamedTuple):
    """Rows that wait for a product with the NTK: coefficients per data point, and whose they are.

    `coefficients` are zero between products.
    """

    replica: IntArray
    coefficients: AnyFloats
    product: AnyFloats


class Workspace(NamedTuple):
    """What a step writes to, besides the residuals."""

    order: IntArray
    swaps: IntArray
    batch: IntArray
    # How often each data point is in a batch, and a bit for each that is; zero between uses.
    times: IntArray
    marks: NDArray[np.uint32]
    first: IntArray  # where each block's list of columns begins
    terms: Terms
    products: Products


def gathered(replicas, which, length, plain):
    """Return padded copies of some replicas' residuals, with what belongs to them.

    From NumPy, like the workspace: there is nothing to compile. Without momentum and weight decay
    (`plain`) no step asks for `z_old`.
    """
    z = padded(replicas.state[which], length)
    return Residuals(
        z,
        z if plain else padded(replicas.old[which], length),
        replicas.learning_rate[which],
        replicas.batch_size[which],
        replicas.number[which],
        replicas.diverged_at[which] < 0,
        squared_norms(z),
    )


def padded(rows, length):
    """Return a copy of rows, filled up with zeros to `length`."""
    wide = aligned_zeros(len(rows), length, dtype=rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide


def squared_norms(rows):
    """Return the squared norm of each row, rounded as steps round it."""
    return np.fromiter((squared_norm(row) for row in rows), np.float64, len(rows))


def workspace(batch_size, ntk, scheme):
    """Return the workspace of replicas with these batch sizes."""
    n_data, count = len(ntk), len(batch_size)
    blocks, rows = -(-n_data // BLOCK), min(count, _PRODUCT_ROWS)
    # The first block's list has space for all batches whose columns are not sorted into blocks.
    drawn = count * n_data if scheme == BERNOULLI else int(batch_size.sum())
    first = np.arange(blocks) * (count * BLOCK) + drawn * (np.arange(blocks) > 0)
    most = blocks * count * BLOCK + drawn
    terms = Terms(
        np.empty((blocks, count + 1), np.int64),
        np.empty(most, np.int32),
        np.empty(most, ntk.dtype),
        np.ones(count),
    )
    products = Products(
        np.empty(rows, np.int64),
        np.zeros((rows, n_data), ntk.dtype),
        np.empty((rows, n_data), ntk.dtype),
    )
    return Workspace(
        np.arange(n_data),
        np.empty(n_data, np.int64),
        np.empty(n_data, np.int64),
        np.zeros(n_data, np.int64),
        np.zeros(-(-n_data // 32), np.uint32),
        first,
        terms,
        products,
    )


@compiled
def advance_linear(model, state, work, options, limit, first_step, n_steps, diverged_at):
    r"""Step residuals, in place.

    One whose squared norm leaves [0, limit) is frozen, and `diverged_at` says after which step; NaN
    fails that test too.

    Notes
    -----
    z' = z + mu (z - z_old) - eta Theta W u - eta rho (u - z_0), with u = z + nu (z - z_old), where
    nu is mu for Nesterov, else 0, and W = diag(D/B times the number of times a point was drawn).
    Residuals in units of the labels, eta Theta and eta rho without unit.
    """
    for t in range(first_step, first_step + n_steps):
        step(model, state, options, t, work)
        for a in range(len(diverged_at)):
            if state.active[a] and not state.squared_norm[a] < limit:
                diverged_at[a] = t + 1
                state.active[a] = False


@compiled_inner
def step(model, state, options, t, work):
    """Take one step with every active replica: see `advance_linear` for the formula.

    The coefficients -eta (D/B) u_i of the columns in a batch are collected first, in one of three
    ways by the size of the batch, then momentum and weight decay are applied, and the columns are
    added last, for all replicas together.
    """
    # Arrays are taken out of their named tuples first: every access in a loop would count
    # references, which takes time.
    momentum, nesterov, weight_decay, scheme, seed, model_index = options
    columns, lanes, _, ntk, start = model
    residuals, old, rate, size, number, active, squared = state
    order, swaps, batch, times, marks, first, terms, products = work
    begin, picked, coefficient, unit = terms
    row_of, rows, _ = products
    extrapolation = momentum if nesterov else 0.0
    plain = momentum == 0.0 and weight_decay == 0.0
    n_data = len(ntk)
    waiting = 0 * n_data  # a plain 0 is a type of its own, for which more is compiled
    for block in range(len(begin)):
        begin[block, 0] = first[block]
    for a in range(len(residuals)):
        for block in range(len(begin)):
            begin[block, a + 1] = begin[block, a]
        if not active[a]:
            continue
        z, z_old, eta, b = residuals[a], old[a], rate[a], size[a]
        length = draw_batch(
            seed, model_index, number[a], t, scheme, n_data, b, order, swaps, batch
        )  # fmt: skip
        if ntk.itemsize < residuals.itemsize and squared[a] > 0:
            unit[a] = np.sqrt(squared[a])
        scale = -eta * n_data / b / unit[a]
        if length >= _PRODUCT_FROM * n_data and n_data >= _PRODUCT_DATA:
            _collect_row(z, z_old, extrapolation, scale, batch, length, rows[waiting])
            row_of[waiting] = a
            waiting += 1
        elif length >= _SORTED_FROM * n_data:
            _mark(batch, length, times, marks)
            _collect_sorted(
                z, z_old, extrapolation, scale, times, marks, begin, picked, coefficient, a
            )
        else:
            _collect_list(
                z, z_old, extrapolation, scale, batch, length, begin, picked, coefficient, a
            )
        if not plain:
            for j in range(n_data):
                moved = z[j] - z_old[j]
                z_old[j] = z[j]
                z[j] += momentum * moved - eta * weight_decay * (
                    z[j] + extrapolation * moved - start[j]
                )
        if waiting == len(row_of):
            _add_products(products, waiting, ntk, unit, residuals)
            waiting = 0
    if waiting > 0:
        _add_products(products, waiting, ntk, unit, residuals)
    add_columns(columns, lanes, n_data, terms, residuals)
    for a in range(len(residuals)):
        if active[a]:
            squared[a] = squared_norm(residuals[a])


# The three ways to collect the coefficients scale u_i of a batch of replica a. Inlined: calls with
# so many arrays would take as long as the additions of a small batch.


@njit(inline="always")
def _collect_row(z, z_old, extrapolation, scale, batch, length, row):
    """Large batch: a coefficient for every data point, for a matrix product."""
    for k in range(length):
        i = batch[k]
        # Added, since a point may be drawn more than once.
        row[i] += scale * (z[i] + extrapolation * (z[i] - z_old[i]))


@njit(inline="always")
def _collect_sorted(z, z_old, extrapolation, scale, times, marks, begin, picked, coefficient, a):
    """Medium batch: each data point once, in ascending order, in the list of its block."""
    for m in range(len(marks)):
        block, bits = m // (BLOCK // 32), marks[m]
        at = begin[block, a + 1]
        while bits != 0:
            i = 32 * m + lowest_bit(bits)
            bits &= bits - np.uint32(1)
            picked[at] = i
            coefficient[at] = scale * times[i] * (z[i] + extrapolation * (z[i] - z_old[i]))
            times[i] = 0
            at += 1
        begin[block, a + 1], marks[m] = at, 0


@njit(inline="always")
def _collect_list(z, z_old, extrapolation, scale, batch, length, begin, picked, coefficient, a):
    """Small batch: its data points as they were drawn, in the list of the first block."""
    at = begin[0, a]
    for k in range(length):
        i = batch[k]
        picked[at + k] = i
        coefficient[at + k] = scale * (z[i] + extrapolation * (z[i] - z_old[i]))
    begin[0, a + 1] = at + length


@compiled_inner
def _mark(batch, length, times, marks):
    """Count how often each data point is in a batch, and set a bit for each that is."""
    for k in range(length):
        i = batch[k]
        times[i] += 1
        marks[i >> 5] |= np.uint32(1 << (i & 31))


@compiled_inner
def _add_products(products, count, ntk, unit, state):
    """Add Theta times each of the first `count` rows to its replica, and clear the rows."""
    replica, coefficients, product = products
    np.dot(coefficients[:count], ntk, product[:count])
    for a in range(count):
        z, by = state[replica[a]], unit[replica[a]]
        for j in range(len(ntk)):
            z[j] = fused(by, product[a, j], z[j])
            coefficients[a, j] = 0.0
