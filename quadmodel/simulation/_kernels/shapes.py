"""How wide vectors are, and how many of them a kernel keeps in registers, by processor.

Registers have 64 bytes with AVX-512, 32 with AVX2, else 16 (SSE, NEON); there are 32 of them with
AVX-512 and on ARM, else 16. Kernels are compiled for shapes, which come to them as tuples whose
lengths are numbers of vectors: one process can use several.
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding
from numba import config

from quadmodel._util.checks import InputError
from quadmodel.simulation._kernels.vectors import PIECE

# The environment variable that chooses a width, for tests and comparisons.
VARIABLE = "QUADMODEL_VECTOR_BYTES"
CHOICES = (64, 32, 16, 0)

Count = tuple[int, ...]  # a tuple as long as something is often

# Names of processors, among those that `NUMBA_CPU_NAME` takes, that have wide registers.
_AVX512 = ("skylake-avx512", "cascadelake", "cooperlake", "cannonlake", "icelake", "tigerlake",
           "sapphirerapids", "emeraldrapids", "graniterapids", "rocketlake", "znver4", "znver5",
           "x86-64-v4")  # fmt: skip
_AVX2 = ("haswell", "broadwell", "skylake", "core-avx2", "alderlake", "znver", "x86-64-v3")


@dataclass(frozen=True)
class Shape:
    """What the kernels are compiled for, as tuples of these lengths.

    Attributes
    ----------
    bytes : int
        Width of a register.
    linear : tuple
        Pieces of 16 bytes of a vector of the linear model: one register.
    dense, dense_rows : tuple
        Pieces of a vector across replicas, and rows of Q that are taken together.
    low_rank, low_rank_replicas : tuple
        Pieces of a vector, and replicas that are taken together.
    """

    bytes: int
    linear: Count
    dense: Count
    dense_rows: Count
    low_rank: Count
    low_rank_replicas: Count


def _count(number: int) -> Count:
    return (0,) * number


def shape_of(register_bytes: int, many_registers: bool) -> Shape:
    """Return the shape for registers of that width, 32 of them or 16.

    Dense curvature keeps a sum and a point per row in registers, and two vectors for a column: 8
    rows fill half of 32 registers. Of 16 registers they fill all with 4 rows of vectors of two
    registers, which need fewer loads than 8 rows of one. Low rank keeps sums of five rows for each
    replica, and the rows.
    """
    one = _count(register_bytes // PIECE)
    if many_registers:
        return Shape(register_bytes, one, one, _count(8), one, _count(4))
    return Shape(register_bytes, one, one + one, _count(4), one, _count(2))


def current_shape() -> Shape | None:
    """Return the shape for this processor, or that which the environment variable asks for.

    None where plain loops are to run: without the compiler, or if the variable is 0.

    Raises
    ------
    InputError
        If ``QUADMODEL_VECTOR_BYTES`` is set to something else than 64, 32, 16 or 0.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen and chosen not in map(str, CHOICES):
        raise InputError(f"{VARIABLE} must be 64, 32, 16 or 0, got {chosen!r}")
    if config.DISABLE_JIT or chosen == "0":
        return None
    width = int(chosen) if chosen else register_bytes()
    return shape_of(width, width == 64 or _arm())


def linear_lanes() -> Count:
    """Return the pieces of a vector of the linear model; none without the compiler.

    Where plain loops are asked for they are those of the narrowest vectors.
    """
    if config.DISABLE_JIT:
        return ()
    return (current_shape() or shape_of(16, _arm())).linear


def vector_bytes() -> int:
    """Return the width of registers that runs are compiled for; 0 for plain loops."""
    shape = current_shape()
    return 0 if shape is None else shape.bytes


def register_bytes() -> int:
    """Return the width of registers of the processor that Numba compiles for."""
    if config.CPU_FEATURES is not None:
        features = set(str(config.CPU_FEATURES).split(","))
        return 64 if "+avx512f" in features else 32 if "+avx2" in features else 16
    name = config.CPU_NAME
    if name in (None, llvmlite.binding.get_host_cpu_name()):
        has = llvmlite.binding.get_host_cpu_features()
        return 64 if has.get("avx512f") else 32 if has.get("avx2") else 16
    return 64 if name.startswith(_AVX512) else 32 if name.startswith(_AVX2) else 16


def _arm() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")
