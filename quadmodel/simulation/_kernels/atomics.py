"""Counters that threads of compiled code share, without the interpreter."""

# mypy: ignore-errors

from __future__ import annotations

import platform
from threading import Lock

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from quadmodel.simulation._kernels.vectors import pointer_to

# What a processor is told while a thread only looks at a counter: another one on the same core may
# go first.
_PAUSES = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "amd64": ("llvm.x86.sse2.pause", ()),
    "arm64": ("llvm.aarch64.hint", (1,)),
    "aarch64": ("llvm.aarch64.hint", (1,)),
}


@intrinsic
def look_at(typing, counters, at):
    """Return a counter as all other threads have left it."""

    def code(context, builder, signature, arguments):
        pointer = pointer_to(context, builder, counters, *arguments)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(counters, types.intp), code


@intrinsic
def set_to(typing, counters, at, value):
    """Set a counter; whoever sees it sees all that was written before."""

    def code(context, builder, signature, arguments):
        data, place, new = arguments
        pointer = pointer_to(context, builder, counters, data, place)
        builder.store_atomic(new, pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.intp, types.int64), code


@intrinsic
def count_up(typing, counters, at):
    """Add one to a counter and return the sum."""

    def code(context, builder, signature, arguments):
        pointer, one = pointer_to(context, builder, counters, *arguments), ir.IntType(64)(1)
        return builder.add(builder.atomic_rmw("add", pointer, one, "seq_cst"), one)

    return types.int64(counters, types.intp), code


@intrinsic
def count_up_from(typing, counters, at, value):
    """Add one to a counter if it still has this value; return whether it had."""

    def code(context, builder, signature, arguments):
        data, place, old = arguments
        pointer, new = pointer_to(context, builder, counters, data, place), ir.IntType(64)(1)
        both = builder.cmpxchg(pointer, old, builder.add(old, new), "seq_cst", "seq_cst")
        return builder.extract_value(both, 1)

    return types.boolean(counters, types.intp, types.int64), code


@intrinsic
def pause(typing):
    """Let a moment pass."""

    def code(context, builder, signature, arguments):
        name, given = _PAUSES.get(platform.machine().lower(), (None, ()))
        if name is not None:
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [number] * len(given))
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(function, [number(value) for value in given])
        return context.get_dummy_value()

    return types.void(), code


if config.DISABLE_JIT:
    _one_at_a_time = Lock()

    def look_at(counters, at):
        return counters[at]

    def set_to(counters, at, value):
        counters[at] = value

    def count_up(counters, at):
        with _one_at_a_time:
            counters[at] += 1
            return counters[at]

    def count_up_from(counters, at, value):
        with _one_at_a_time:
            had = counters[at] == value
            counters[at] += had
            return had

    def pause():
        pass
