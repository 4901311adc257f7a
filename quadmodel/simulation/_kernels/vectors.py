"""Vectors for Numba: values that the compiled kernels keep in registers.

`load`, `store`, `spread`, `fma` and a few unrolled loops over tuples of vectors; `vector_blocks`
has more. Loops written with them say which number stays where, which plain loops leave to the
compiler's luck: the symmetric product reaches the speed of a matrix product.

How wide a vector is belongs to its type: what makes vectors is given `lanes`, a tuple as long as
the vector has pieces of 16 bytes. The compiler splits vectors that are wider than a register;
`shapes` says which widths suit a processor.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# What memory is aligned and padded to, whatever the width: the widest vector, and a cache line.
BYTES = 64
# Bytes of a piece of a vector, and the lanes of the widest.
PIECE = 16
WIDE = (0,) * (BYTES // PIECE)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


def padded_params(n_params, dtype):
    """Return the number of parameters rounded up to whole vectors of any width."""
    width = BYTES // np.dtype(dtype).itemsize
    return -(-n_params // width) * width


class Vector(types.Type):
    """Numba's type of a vector: its element type and how many there are."""

    def __init__(self, dtype, lanes) -> None:
        self.dtype = dtype
        self.width = 8 * PIECE * len(lanes) // dtype.bitwidth
        super().__init__(f"Vector({dtype} x {self.width})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector) -> None:
        super().__init__(manager, vector, ir.VectorType(FLOATS[vector.dtype], vector.width))


def pointer_to(context, builder, kind, array, at, vector=None):
    """Return the pointer to an element of a contiguous array, or to a vector there."""
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [at])
    return pointer if vector is None else builder.bitcast(pointer, ir.PointerType(vector))


def plus(builder, at, number):
    return builder.add(at, ir.Constant(_I64, number))


def spread_out(builder, scalar, vector):
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, indices([0] * vector.count))


def indices(values):
    return ir.Constant(ir.VectorType(_I32, len(values)), values)


def fused_multiply_add(builder, a, b, c):
    """Return a b + c, of vectors or numbers; rounded once where the processor can, else twice.

    What the compiler makes of it depends on the processor alone, not on what is around it.
    """
    kind, element, count = a.type, a.type, ""
    if isinstance(kind, ir.VectorType):
        element, count = kind.element, f"v{kind.count}"
    bits = 32 if isinstance(element, ir.FloatType) else 64
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.{count}f{bits}"
    )
    return builder.call(function, [a, b, c])


def elements(context, builder, kind, array, at, count, vector):
    """Return `count` elements from `at` on, each spread over a vector."""
    return [
        spread_out(
            builder,
            builder.load(pointer_to(context, builder, kind, array, plus(builder, at, k))),
            vector,
        )
        for k in range(count)
    ]


@intrinsic
def load(typing, lanes, array, at):
    """Return the vector that starts at element `at` of a flat array."""
    result = Vector(array.dtype, lanes)

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(result)
        pointer = pointer_to(context, builder, array, *arguments[1:], vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return result(lanes, array, types.intp), code


@intrinsic
def store(typing, array, at, vector):
    """Write a vector to element `at` of a flat array and those that follow."""

    def code(context, builder, signature, arguments):
        data, place, value = arguments
        pointer = pointer_to(context, builder, array, data, place, value.type)
        builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def stores(typing, array, at, stride, vectors):
    """Write a tuple of vectors, `stride` elements apart."""

    def code(context, builder, signature, arguments):
        data, at, stride, values = arguments
        for value in cgutils.unpack_tuple(builder, values):
            pointer = pointer_to(context, builder, array, data, at, value.type)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
            at = builder.add(at, stride)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code


@intrinsic
def spread(typing, lanes, scalar):
    """Return a vector of equal elements."""
    result = Vector(scalar, lanes)

    def code(context, builder, signature, arguments):
        return spread_out(builder, arguments[1], context.get_value_type(result))

    return result(lanes, scalar), code


@intrinsic
def add(typing, a, b):
    """Return a + b."""

    def code(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return a(a, a), code


@intrinsic
def fma(typing, a, b, c):
    """Return a b + c."""

    def code(context, builder, signature, arguments):
        return fused_multiply_add(builder, *arguments)

    return a(a, a, a), code


@intrinsic
def add_multiple(typing, sums, scalar, array, at):
    """Return sums_k + scalar v_k, v_k being the vectors that follow each other from `at` on."""

    def code(context, builder, signature, arguments):
        sums_, scalar_, array_, at_ = arguments
        sums_ = cgutils.unpack_tuple(builder, sums_)
        kind, bytes_ = sums_[0].type, array.dtype.bitwidth // 8
        by = spread_out(builder, scalar_, kind)
        for k, sum_ in enumerate(sums_):
            place = plus(builder, at_, k * kind.count)
            value = builder.load(
                pointer_to(context, builder, array, array_, place, kind), align=bytes_
            )
            sums_[k] = fused_multiply_add(builder, by, value, sum_)
        return context.make_tuple(builder, sums, sums_)

    return sums(sums, scalar, array, types.intp), code


@intrinsic
def add_to(typing, array, at, factor, vectors):
    """Add a multiple of vectors that follow each other to an array from element `at` on.

    In the precision of the array, which is that of the vectors or double.
    """
    double, bytes_ = array.dtype == types.float64, array.dtype.bitwidth // 8

    def code(context, builder, signature, arguments):
        data, at, factor_, values = arguments
        for value in cgutils.unpack_tuple(builder, values):
            for part in _as_doubles(builder, value) if double else [value]:
                pointer = pointer_to(context, builder, array, data, at, part.type)
                by = spread_out(builder, factor_, part.type)
                sum_ = fused_multiply_add(builder, by, part, builder.load(pointer, align=bytes_))
                builder.store(sum_, pointer, align=bytes_)
                at = plus(builder, at, part.type.count)
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype, vectors), code


def _as_doubles(builder, value):
    """Return a vector as one or two vectors of doubles."""
    if isinstance(value.type.element, ir.DoubleType):
        return [value]
    half = value.type.count // 2
    halves = (indices(list(range(first, first + half))) for first in (0, half))
    wide = ir.VectorType(ir.DoubleType(), half)
    return [builder.fpext(builder.shuffle_vector(value, value, h), wide) for h in halves]


@intrinsic
def loads_like(typing, like, lanes, array, at, stride):
    """Return as many vectors as `like`, a tuple, is long, `stride` elements apart."""
    result = types.UniTuple(Vector(array.dtype, lanes), len(like))

    def code(context, builder, signature, arguments):
        _, _, data, at, stride = arguments
        kind, found = context.get_value_type(result.dtype), []
        for _ in range(len(like)):
            pointer = pointer_to(context, builder, array, data, at, kind)
            found.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
            at = builder.add(at, stride)
        return context.make_tuple(builder, result, found)

    return result(like, lanes, array, types.intp, types.intp), code


@intrinsic
def zeros_like(typing, rows, replicas, lanes, array):
    """Return a zero vector for every pair of elements of two tuples."""
    result = types.UniTuple(Vector(array.dtype, lanes), len(rows) * len(replicas))

    def code(context, builder, signature, arguments):
        zero = ir.Constant(context.get_value_type(result.dtype), None)
        return context.make_tuple(builder, result, [zero] * len(result))

    return result(rows, replicas, lanes, array), code


@intrinsic
def add_pairs(typing, sums, rows, array, places, at):
    """Return sums + rows_r v_l for every pair, v_l being the vector at array[places_l + at]."""
    replicas = len(places)

    def code(context, builder, signature, arguments):
        sums_, rows_, array_, places_, at_ = arguments
        sums_, rows_, places_ = (
            cgutils.unpack_tuple(builder, values) for values in (sums_, rows_, places_)
        )
        for a in range(replicas):
            place = builder.add(places_[a], at_)
            pointer = pointer_to(context, builder, array, array_, place, rows_[0].type)
            value = builder.load(pointer, align=array.dtype.bitwidth // 8)
            for r, row in enumerate(rows_):
                k = r * replicas + a
                sums_[k] = fused_multiply_add(builder, row, value, sums_[k])
        return context.make_tuple(builder, sums, sums_)

    return sums(sums, rows, array, places, types.intp), code


@intrinsic
def fetch(typing, lanes, array, at):
    """Ask for the cache lines of two vectors from element `at` on, for the second-level cache."""

    def code(context, builder, signature, arguments):
        _, data, at = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        for first in range(0, 2 * PIECE * len(lanes), BYTES):
            place = plus(builder, at, 8 * first // array.dtype.bitwidth)
            pointer = builder.bitcast(pointer_to(context, builder, array, data, place), byte)
            builder.call(function, [pointer, *(ir.Constant(_I32, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp), code


@intrinsic
def numbers_like(typing, like, array, at):
    """Return as many elements that follow each other as `like`, a tuple, is long."""
    result = types.UniTuple(array.dtype, len(like))

    def code(context, builder, signature, arguments):
        _, data, at = arguments
        kind = signature.args[1]
        places = (plus(builder, at, k) for k in range(len(like)))
        found = [builder.load(pointer_to(context, builder, kind, data, place)) for place in places]
        return context.make_tuple(builder, result, found)

    return result(like, array, types.intp), code


@intrinsic
def spreads_like(typing, rows, replicas, lanes, array, at, stride):
    """Return array[at + r stride + l], spread over a vector, for every pair of two tuples."""
    result = types.UniTuple(Vector(array.dtype, lanes), len(rows) * len(replicas))

    def code(context, builder, signature, arguments):
        _, _, _, data, at, stride = arguments
        kind, found = context.get_value_type(result.dtype), []
        for _ in range(len(rows)):
            found += elements(context, builder, array, data, at, len(replicas), kind)
            at = builder.add(at, stride)
        return context.make_tuple(builder, result, found)

    return result(rows, replicas, lanes, array, types.intp, types.intp), code


@intrinsic
def add_rows(typing, array, places, at, rows, weights):
    """Add sum_r weights_rl rows_r to the vector at array[places_l + at], for every l.

    Tuples of places, vectors and, for every pair, a number spread over a vector.
    """
    replicas = len(places)

    def code(context, builder, signature, arguments):
        array_, places_, at_, rows_, weights_ = arguments
        places_, rows_, weights_ = (
            cgutils.unpack_tuple(builder, values) for values in (places_, rows_, weights_)
        )
        for a in range(replicas):
            place = builder.add(places_[a], at_)
            pointer = pointer_to(context, builder, array, array_, place, rows_[0].type)
            value = builder.load(pointer, align=array.dtype.bitwidth // 8)
            for r, row in enumerate(rows_):
                value = fused_multiply_add(builder, weights_[r * replicas + a], row, value)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, places, types.intp, rows, weights), code


@intrinsic
def lowest_bit(typing, mask):
    """Return the place of the lowest bit of an unsigned integer that is set."""

    def code(context, builder, signature, arguments):
        found = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(found, _I64) if found.type != _I64 else found

    return types.intp(mask), code


if config.DISABLE_JIT:

    def lowest_bit(mask):
        return (int(mask) & -int(mask)).bit_length() - 1
