"""Blocks of a matrix held in vectors: symmetric products, and transposed loads and stores."""

# mypy: ignore-errors

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quadmodel.simulation._kernels.vectors import (
    FLOATS,
    Vector,
    elements,
    fused_multiply_add,
    indices,
    plus,
    pointer_to,
    spread_out,
)


@intrinsic
def both_ways(typing, sums, own, array, at, other, back):
    """Use each element q_k = array[at + k] twice.

    Returns sums_k + q_k other for every k, and back + sum_k q_k own_k.
    """
    result = types.Tuple((sums, back))

    def code(context, builder, signature, arguments):
        sums_, own_, array_, at_, other_, back_ = arguments
        sums_, own_ = (cgutils.unpack_tuple(builder, values) for values in (sums_, own_))
        q = elements(context, builder, array, array_, at_, len(own_), other_.type)
        for k in range(len(own_)):
            sums_[k] = fused_multiply_add(builder, q[k], other_, sums_[k])
        for k in range(len(own_)):
            back_ = fused_multiply_add(builder, q[k], own_[k], back_)
        done = context.make_tuple(builder, sums, sums_)
        return context.make_tuple(builder, result, [done, back_])

    return result(sums, own, array, types.intp, other, back), code


@intrinsic
def one_way(typing, sums, array, at, other):
    """Return sums_k + array[at + k] other for every k."""

    def code(context, builder, signature, arguments):
        sums_, array_, at_, other_ = arguments
        sums_ = cgutils.unpack_tuple(builder, sums_)
        q = elements(context, builder, array, array_, at_, len(sums_), other_.type)
        added = [
            fused_multiply_add(builder, *pair)
            for pair in zip(q, [other_] * len(q), sums_, strict=True)
        ]
        return context.make_tuple(builder, sums, added)

    return sums(sums, array, types.intp, other), code


def _transposed(builder, rows):
    """Exchange rows and columns of a square block, halves within ever larger blocks."""
    count, step = len(rows), 1
    while step < count:
        for r in (r for r in range(count) if not r & step):
            low = [c if not c & step else count + c - step for c in range(count)]
            high = [c + step if not c & step else count + c for c in range(count)]
            a, b = rows[r], rows[r + step]
            rows[r] = builder.shuffle_vector(a, b, indices(low))
            rows[r + step] = builder.shuffle_vector(a, b, indices(high))
        step *= 2
    return rows


def _at(context, builder, kind, places, k):
    return builder.load(pointer_to(context, builder, kind, places, ir.Constant(ir.IntType(64), k)))


@intrinsic
def gather(typing, lanes, array, places, at, into):
    """Load a square block, write it transposed to `into` from at * width on.

    Its row k starts at array[places[k] + at]. `into` may be of single precision when `array` is of
    double.
    """
    vector = Vector(into.dtype, lanes)
    from_bytes = array.dtype.bitwidth // 8

    def code(context, builder, signature, arguments):
        _, array_, places_, at, into_ = arguments
        kind, bytes_ = context.get_value_type(vector), into.dtype.bitwidth // 8
        wide, rows = ir.VectorType(FLOATS[array.dtype], vector.width), []
        for k in range(vector.width):
            place = builder.add(_at(context, builder, places, places_, k), at)
            pointer = pointer_to(context, builder, array, array_, place, wide)
            row = builder.load(pointer, align=from_bytes)
            rows.append(row if kind == wide else builder.fptrunc(row, kind))
        place = builder.mul(at, ir.Constant(ir.IntType(64), vector.width))
        for row in _transposed(builder, rows):
            pointer = pointer_to(context, builder, into, into_, place, kind)
            builder.store(row, pointer, align=bytes_)
            place = plus(builder, place, vector.width)
        return context.get_dummy_value()

    return types.void(lanes, array, places, types.intp, into), code


@intrinsic
def scatter(typing, lanes, array, places, at, source, base, base_at, factor):
    """Add factor[k] (base + row k) to array[places[k] + at] and what follows.

    Row k is column k of the block that is contiguous in `source` from at * width on. In the
    precision of `array`, which `base` and `factor` share.
    """
    vector = Vector(source.dtype, lanes)
    to_bytes = array.dtype.bitwidth // 8

    def code(context, builder, signature, arguments):
        _, array_, places_, at, source_, base_, base_at, factor_ = arguments
        kind, bytes_ = context.get_value_type(vector), source.dtype.bitwidth // 8
        wide = ir.VectorType(FLOATS[array.dtype], vector.width)
        place, rows = builder.mul(at, ir.Constant(ir.IntType(64), vector.width)), []
        for _ in range(vector.width):
            pointer = pointer_to(context, builder, source, source_, place, kind)
            rows.append(builder.load(pointer, align=bytes_))
            place = plus(builder, place, vector.width)
        pointer = pointer_to(context, builder, base, base_, builder.add(base_at, at), wide)
        shared = builder.load(pointer, align=to_bytes)
        for k, row in enumerate(_transposed(builder, rows)):
            if kind != wide:
                row = builder.fpext(row, wide)
            place = builder.add(_at(context, builder, places, places_, k), at)
            pointer = pointer_to(context, builder, array, array_, place, wide)
            by = spread_out(builder, _at(context, builder, factor, factor_, k), wide)
            sum_ = fused_multiply_add(
                builder, by, builder.fadd(shared, row), builder.load(pointer, align=to_bytes)
            )
            builder.store(sum_, pointer, align=to_bytes)
        return context.get_dummy_value()

    result = types.void(lanes, array, places, types.intp, source, base, types.intp, factor)
    return result, code
