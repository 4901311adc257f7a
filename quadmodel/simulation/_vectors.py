"""Vectors of 64 bytes for Numba: values that the compiled kernels keep in registers.

`load`, `store`, `spread`, `fma` and a few unrolled loops over tuples of vectors. Loops written with
them say which number stays where, which plain loops leave to the compiler's luck: the symmetric
product below them reaches the speed of a matrix product. A width of 64 bytes needs AVX-512 to pay;
`AVAILABLE` says whether this processor has it.
"""

# mypy: ignore-errors

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

BYTES = 64
AVAILABLE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Vector(types.Type):
    """Numba's type of a vector: its element type and how many there are."""

    def __init__(self, dtype) -> None:
        self.dtype = dtype
        self.width = 8 * BYTES // dtype.bitwidth
        super().__init__(f"Vector({dtype} x {self.width})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_FLOATS[vector.dtype], vector.width))


def _pointer(context, builder, kind, array, at, vector=None):
    """Return the pointer to an element of a contiguous array, or to a vector there."""
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [at])
    return pointer if vector is None else builder.bitcast(pointer, ir.PointerType(vector))


def _plus(builder, at, number):
    return builder.add(at, ir.Constant(_I64, number))


def _spread(builder, scalar, vector):
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, nothing, _indices([0] * vector.count))


def _indices(values):
    return ir.Constant(ir.VectorType(_I32, len(values)), values)


def _fma(builder, a, b, c):
    vector = a.type
    bits = 32 if isinstance(vector.element, ir.FloatType) else 64
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * 3),
        f"llvm.fma.v{vector.count}f{bits}",
    )
    return builder.call(function, [a, b, c])


def _elements(context, builder, kind, array, at, count, vector):
    """Return `count` elements from `at` on, each spread over a vector."""
    return [
        _spread(
            builder,
            builder.load(_pointer(context, builder, kind, array, _plus(builder, at, k))),
            vector,
        )
        for k in range(count)
    ]


@intrinsic
def load(typing, array, at):
    """Return the vector that starts at element `at` of a flat array."""
    result = Vector(array.dtype)

    def code(context, builder, signature, arguments):
        vector = context.get_value_type(result)
        pointer = _pointer(context, builder, array, *arguments, vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return result(array, types.intp), code


@intrinsic
def store(typing, array, at, vector):
    """Write a vector to element `at` of a flat array and those that follow."""

    def code(context, builder, signature, arguments):
        data, place, value = arguments
        pointer = _pointer(context, builder, array, data, place, value.type)
        builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic(prefer_literal=True)
def loads(typing, array, at, stride, count):
    """Return a tuple of `count` (a literal) vectors, `stride` elements apart."""
    vector = Vector(array.dtype)
    result = types.UniTuple(vector, count.literal_value)

    def code(context, builder, signature, arguments):
        data, at, stride, _ = arguments
        found = []
        for _ in range(count.literal_value):
            kind = context.get_value_type(vector)
            pointer = _pointer(context, builder, signature.args[0], data, at, kind)
            found.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
            at = builder.add(at, stride)
        return context.make_tuple(builder, result, found)

    return result(array, types.intp, types.intp, count), code


@intrinsic
def stores(typing, array, at, stride, vectors):
    """Write a tuple of vectors, `stride` elements apart."""

    def code(context, builder, signature, arguments):
        data, at, stride, values = arguments
        for value in cgutils.unpack_tuple(builder, values):
            pointer = _pointer(context, builder, array, data, at, value.type)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
            at = builder.add(at, stride)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code


@intrinsic
def spread(typing, scalar):
    """Return a vector of equal elements."""
    result = Vector(scalar)

    def code(context, builder, signature, arguments):
        return _spread(builder, arguments[0], context.get_value_type(result))

    return result(scalar), code


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
        return _fma(builder, *arguments)

    return a(a, a, a), code


@intrinsic
def add_multiple(typing, sums, scalar, array, at):
    """Return sums_k + scalar v_k, v_k being the vectors that follow each other from `at` on."""

    def code(context, builder, signature, arguments):
        sums_, scalar_, array_, at_ = arguments
        sums_ = cgutils.unpack_tuple(builder, sums_)
        kind, bytes_ = sums_[0].type, array.dtype.bitwidth // 8
        by = _spread(builder, scalar_, kind)
        for k, sum_ in enumerate(sums_):
            place = _plus(builder, at_, k * kind.count)
            value = builder.load(
                _pointer(context, builder, array, array_, place, kind), align=bytes_
            )
            sums_[k] = _fma(builder, by, value, sum_)
        return context.make_tuple(builder, sums, sums_)

    return sums(sums, scalar, array, types.intp), code


@intrinsic
def add_to(typing, array, at, factor, vectors):
    """Add a multiple of vectors that follow each other to doubles from element `at` on."""

    def code(context, builder, signature, arguments):
        data, at, factor_, values = arguments
        for value in cgutils.unpack_tuple(builder, values):
            for part in _as_doubles(builder, value):
                pointer = _pointer(context, builder, array, data, at, part.type)
                by = _spread(builder, factor_, part.type)
                sum_ = _fma(builder, by, part, builder.load(pointer, align=8))
                builder.store(sum_, pointer, align=8)
                at = _plus(builder, at, part.type.count)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float64, vectors), code


def _as_doubles(builder, value):
    """Return a vector as one or two vectors of doubles."""
    if isinstance(value.type.element, ir.DoubleType):
        return [value]
    half = value.type.count // 2
    halves = (_indices(list(range(first, first + half))) for first in (0, half))
    wide = ir.VectorType(ir.DoubleType(), half)
    return [builder.fpext(builder.shuffle_vector(value, value, h), wide) for h in halves]


@intrinsic
def loads_like(typing, like, array, at, stride):
    """Return as many vectors as `like`, a tuple, is long, `stride` elements apart."""
    result = types.UniTuple(Vector(array.dtype), len(like))

    def code(context, builder, signature, arguments):
        _, data, at, stride = arguments
        kind, found = context.get_value_type(result.dtype), []
        for _ in range(len(like)):
            pointer = _pointer(context, builder, array, data, at, kind)
            found.append(builder.load(pointer, align=array.dtype.bitwidth // 8))
            at = builder.add(at, stride)
        return context.make_tuple(builder, result, found)

    return result(like, array, types.intp, types.intp), code


@intrinsic
def zeros_like(typing, rows, lanes, array):
    """Return a zero vector for every pair of elements of two tuples."""
    result = types.UniTuple(Vector(array.dtype), len(rows) * len(lanes))

    def code(context, builder, signature, arguments):
        zero = ir.Constant(context.get_value_type(result.dtype), None)
        return context.make_tuple(builder, result, [zero] * len(result))

    return result(rows, lanes, array), code


@intrinsic
def add_pairs(typing, sums, rows, array, places, at):
    """Return sums + rows_r v_l for every pair, v_l being the vector at array[places_l + at]."""
    lanes = len(places)

    def code(context, builder, signature, arguments):
        sums_, rows_, array_, places_, at_ = arguments
        sums_, rows_, places_ = (
            cgutils.unpack_tuple(builder, values) for values in (sums_, rows_, places_)
        )
        for lane in range(lanes):
            place = builder.add(places_[lane], at_)
            pointer = _pointer(context, builder, array, array_, place, rows_[0].type)
            value = builder.load(pointer, align=array.dtype.bitwidth // 8)
            for r, row in enumerate(rows_):
                k = r * lanes + lane
                sums_[k] = _fma(builder, row, value, sums_[k])
        return context.make_tuple(builder, sums, sums_)

    return sums(sums, rows, array, places, types.intp), code


@intrinsic(prefer_literal=True)
def fetch(typing, array, at, lines):
    """Ask for some (a literal) cache lines from element `at` on, for the second-level cache."""

    def code(context, builder, signature, arguments):
        data, at, _ = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        for k in range(lines.literal_value):
            place = _plus(builder, at, k * 512 // array.dtype.bitwidth)
            pointer = builder.bitcast(_pointer(context, builder, array, data, place), byte)
            builder.call(function, [pointer, *(ir.Constant(_I32, n) for n in (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp, lines), code


@intrinsic
def numbers_like(typing, like, array, at):
    """Return as many elements that follow each other as `like`, a tuple, is long."""
    result = types.UniTuple(array.dtype, len(like))

    def code(context, builder, signature, arguments):
        _, data, at = arguments
        kind = signature.args[1]
        places = (_plus(builder, at, k) for k in range(len(like)))
        found = [builder.load(_pointer(context, builder, kind, data, place)) for place in places]
        return context.make_tuple(builder, result, found)

    return result(like, array, types.intp), code


@intrinsic
def spreads_like(typing, rows, lanes, array, at, stride):
    """Return array[at + r stride + l], spread over a vector, for every pair of two tuples."""
    result = types.UniTuple(Vector(array.dtype), len(rows) * len(lanes))

    def code(context, builder, signature, arguments):
        _, _, data, at, stride = arguments
        kind, found = context.get_value_type(result.dtype), []
        for _ in range(len(rows)):
            found += _elements(context, builder, array, data, at, len(lanes), kind)
            at = builder.add(at, stride)
        return context.make_tuple(builder, result, found)

    return result(rows, lanes, array, types.intp, types.intp), code


@intrinsic
def add_rows(typing, array, places, at, rows, weights):
    """Add sum_r weights_rl rows_r to the vector at array[places_l + at], for every l.

    Tuples of places, vectors and, for every pair, a number spread over a vector.
    """
    lanes = len(places)

    def code(context, builder, signature, arguments):
        array_, places_, at_, rows_, weights_ = arguments
        places_, rows_, weights_ = (
            cgutils.unpack_tuple(builder, values) for values in (places_, rows_, weights_)
        )
        for lane in range(lanes):
            place = builder.add(places_[lane], at_)
            pointer = _pointer(context, builder, array, array_, place, rows_[0].type)
            value = builder.load(pointer, align=array.dtype.bitwidth // 8)
            for r, row in enumerate(rows_):
                value = _fma(builder, weights_[r * lanes + lane], row, value)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, places, types.intp, rows, weights), code


@intrinsic
def both_ways(typing, sums, own, array, at, other, back):
    """Use each element q_k = array[at + k] twice.

    Returns sums_k + q_k other for every k, and back + sum_k q_k own_k.
    """
    result = types.Tuple((sums, back))

    def code(context, builder, signature, arguments):
        sums_, own_, array_, at_, other_, back_ = arguments
        sums_, own_ = (cgutils.unpack_tuple(builder, values) for values in (sums_, own_))
        q = _elements(context, builder, array, array_, at_, len(own_), other_.type)
        for k in range(len(own_)):
            sums_[k] = _fma(builder, q[k], other_, sums_[k])
        for k in range(len(own_)):
            back_ = _fma(builder, q[k], own_[k], back_)
        done = context.make_tuple(builder, sums, sums_)
        return context.make_tuple(builder, result, [done, back_])

    return result(sums, own, array, types.intp, other, back), code


@intrinsic
def one_way(typing, sums, array, at, other):
    """Return sums_k + array[at + k] other for every k."""

    def code(context, builder, signature, arguments):
        sums_, array_, at_, other_ = arguments
        sums_ = cgutils.unpack_tuple(builder, sums_)
        q = _elements(context, builder, array, array_, at_, len(sums_), other_.type)
        added = [_fma(builder, *pair) for pair in zip(q, [other_] * len(q), sums_, strict=True)]
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
            rows[r] = builder.shuffle_vector(a, b, _indices(low))
            rows[r + step] = builder.shuffle_vector(a, b, _indices(high))
        step *= 2
    return rows


def _at(context, builder, kind, places, k):
    return builder.load(_pointer(context, builder, kind, places, ir.Constant(_I64, k)))


@intrinsic
def gather(typing, array, places, at, into):
    """Load a square block of doubles, write it transposed to `into` from at * width on.

    Its row k starts at array[places[k] + at]. `into` may be of single precision.
    """
    vector = Vector(into.dtype)

    def code(context, builder, signature, arguments):
        array_, places_, at, into_ = arguments
        kind, bytes_ = context.get_value_type(vector), into.dtype.bitwidth // 8
        wide, rows = ir.VectorType(ir.DoubleType(), vector.width), []
        for k in range(vector.width):
            place = builder.add(_at(context, builder, places, places_, k), at)
            pointer = _pointer(context, builder, array, array_, place, wide)
            row = builder.load(pointer, align=8)
            rows.append(row if kind == wide else builder.fptrunc(row, kind))
        place = builder.mul(at, ir.Constant(_I64, vector.width))
        for row in _transposed(builder, rows):
            pointer = _pointer(context, builder, into, into_, place, kind)
            builder.store(row, pointer, align=bytes_)
            place = _plus(builder, place, vector.width)
        return context.get_dummy_value()

    return types.void(array, places, types.intp, into), code


@intrinsic
def scatter(typing, array, places, at, source, base, base_at, factor):
    """Add factor[k] (base + row k) to array[places[k] + at] and what follows, in double precision.

    Row k is column k of the block that is contiguous in `source` from at * width on.
    """
    vector = Vector(source.dtype)

    def code(context, builder, signature, arguments):
        array_, places_, at, source_, base_, base_at, factor_ = arguments
        kind, bytes_ = context.get_value_type(vector), source.dtype.bitwidth // 8
        wide = ir.VectorType(ir.DoubleType(), vector.width)
        place, rows = builder.mul(at, ir.Constant(_I64, vector.width)), []
        for _ in range(vector.width):
            pointer = _pointer(context, builder, source, source_, place, kind)
            rows.append(builder.load(pointer, align=bytes_))
            place = _plus(builder, place, vector.width)
        pointer = _pointer(context, builder, base, base_, builder.add(base_at, at), wide)
        shared = builder.load(pointer, align=8)
        for k, row in enumerate(_transposed(builder, rows)):
            if kind != wide:
                row = builder.fpext(row, wide)
            place = builder.add(_at(context, builder, places, places_, k), at)
            pointer = _pointer(context, builder, array, array_, place, wide)
            by = _spread(builder, _at(context, builder, factor, factor_, k), wide)
            sum_ = _fma(builder, by, builder.fadd(shared, row), builder.load(pointer, align=8))
            builder.store(sum_, pointer, align=8)
        return context.get_dummy_value()

    return types.void(array, places, types.intp, source, base, types.intp, factor), code


@intrinsic
def lowest_bit(typing, word):
    """Return the place of the lowest bit of an unsigned word that is set."""

    def code(context, builder, signature, arguments):
        found = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.zext(found, _I64) if found.type != _I64 else found

    return types.intp(word), code


@njit(cache=True, nogil=True)
def aligned(count, like):
    """Return zeros that begin where a vector does; vectors that cross cache lines cost twice.

    Flat, of the type of the elements of `like`.
    """
    spare = BYTES // like.itemsize
    memory = np.zeros(count + spare, like.dtype)
    first = (-np.int64(memory.ctypes.data) % BYTES) // like.itemsize
    return memory[first : first + count]


def aligned_zeros(*shape, dtype=np.float64):
    """Return zeros of a shape that begin where a vector does.

    From NumPy, which asks for large pages of memory; Numba does not.
    """
    memory = np.zeros(np.dtype(dtype).itemsize * int(np.prod(shape)) + BYTES, np.uint8)
    first = -memory.ctypes.data % BYTES
    return memory[first : len(memory) - BYTES + first].view(dtype).reshape(shape)
