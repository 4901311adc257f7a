"""Sums and products in an order that is written down, so that they round the same way always.

The compiler may not reorder what is written with these, and fuses products with sums exactly where
`fused` says so. Vectors have 64 bytes, of which narrower registers hold pieces. Results are the
same bits however often the code is optimised again, and on every processor that fuses them.
"""

# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from quadmodel._util.compiled import compiled
from quadmodel.simulation._kernels.vectors import (
    BYTES,
    WIDE,
    Vector,
    add,
    fma,
    fused_multiply_add,
    load,
)


@intrinsic
def fused(typing, a, b, c):
    """Return a b + c, of numbers; in single precision if all three are."""
    kind = types.float32 if {a, b, c} == {types.float32} else types.float64

    def code(context, builder, signature, arguments):
        return fused_multiply_add(builder, *arguments)

    return kind(kind, kind, kind), code


@intrinsic
def no_sums(typing, lanes, array):
    """Return a vector of zeros for sums over an array."""
    result = Vector(array.dtype, lanes)

    def code(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(result), None)

    return result(lanes, array), code


@intrinsic
def total(typing, vector):
    """Return the sum of a vector's elements: halves are added until one is left."""

    def code(context, builder, signature, arguments):
        (value,) = arguments
        while (half := value.type.count // 2) > 1:
            low, high = (_part(builder, value, first, half) for first in (0, half))
            value = builder.fadd(low, high)
        low, high = (builder.extract_element(value, ir.IntType(32)(k)) for k in (0, 1))
        return builder.fadd(low, high)

    return vector.dtype(vector), code


def _part(builder, value, first, count):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(value, value, mask)


@compiled
def dot(x, y):
    """Return the inner product of two contiguous arrays of one type."""
    n, width = len(x), BYTES // x.itemsize
    even = odd = no_sums(WIDE, x)
    k = 0
    while k + 2 * width <= n:
        even = fma(load(WIDE, x, k), load(WIDE, y, k), even)
        odd = fma(load(WIDE, x, k + width), load(WIDE, y, k + width), odd)
        k += 2 * width
    if k + width <= n:
        even = fma(load(WIDE, x, k), load(WIDE, y, k), even)
        k += width
    result = total(add(even, odd))
    while k < n:
        result = fused(x[k], y[k], result)
        k += 1
    return result


@compiled
def four_products(matrix, row, n, x, out):
    """Add the products of four rows, from `row` on, with x to their elements of `out`.

    Of the first n elements, a number of whole vectors.
    """
    q, stride, width = matrix.reshape(-1), matrix.shape[1], BYTES // x.itemsize
    at = row * stride
    a = b = c = d = no_sums(WIDE, x)
    for k in range(0, n, width):
        own = load(WIDE, x, k)
        a, b = fma(load(WIDE, q, at + k), own, a), fma(load(WIDE, q, at + stride + k), own, b)
        c = fma(load(WIDE, q, at + 2 * stride + k), own, c)
        d = fma(load(WIDE, q, at + 3 * stride + k), own, d)
    out[row] += total(a)
    out[row + 1] += total(b)
    out[row + 2] += total(c)
    out[row + 3] += total(d)


@compiled
def squared_norm(z):
    """Return the sum of the squares of a contiguous array."""
    return dot(z, z)


if config.DISABLE_JIT:

    def fused(a, b, c):
        return a * b + c

    def dot(x, y):
        result = x.dtype.type(0.0)
        for k in range(len(x)):
            result += x[k] * y[k]
        return result

    def four_products(matrix, row, n, x, out):
        for k in range(row, row + 4):
            out[k] += dot(matrix[k, :n], x[:n])
