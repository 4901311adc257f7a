"""What the compiled loops are given: named tuples, whose fields Numba reads like attributes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import FloatArray, IntArray

Count = tuple[int, ...]  # a number, as the length of a tuple: part of the type
AnyFloats = NDArray[np.floating]  # in the precision that is chosen


class Options(NamedTuple):
    """Update rule and random stream that all replicas share."""

    momentum: float
    nesterov: bool
    weight_decay: float  # rho, in units of an NTK eigenvalue
    scheme: int  # number of the sampling scheme
    seed: np.uint64
    model_index: int


class LinearModel(NamedTuple):
    """A linear model: its NTK Theta and its residual at the start, which weight decay pulls to."""

    columns: AnyFloats  # Theta as `add_columns` reads it
    lanes: Count  # of its vectors
    padded_length: int  # numbers per replica in the workspace
    ntk: AnyFloats  # Theta again, for matrix products
    start: FloatArray


class DenseModel(NamedTuple):
    """Q, J and z_0."""

    curvature: AnyFloats
    jacobian: FloatArray
    residual: FloatArray


class PackedModel(NamedTuple):
    """One triangle of Q, J and z_0, and what `symmetric_product` keeps in registers."""

    curvature: AnyFloats
    jacobian: AnyFloats
    residual: FloatArray
    lanes: Count
    rows: Count
    column: Count  # lanes of a column of a block


class LowRankModel(NamedTuple):
    """Curvature sum_r s_r u_r u_r^T per data point: u, s, J and z_0."""

    vectors: AnyFloats
    coefficients: FloatArray
    jacobian: AnyFloats
    residual: FloatArray


class StackedModel(NamedTuple):
    """A model of low rank for vectors: J_i and all u_ir as rows one below the other, s and z_0."""

    rows: AnyFloats
    coefficients: FloatArray
    residual: FloatArray
    lanes: Count
    replicas: Count  # that are taken together
    most: Count  # rows that are taken together
    rest: Count  # and those that are left


class Buffers(NamedTuple):
    """What a step of a quadratic model writes to, besides the replicas.

    The replicas whose batch holds data point i are entries[pointer[i] : pointer[i + 1]]. The last
    row of `point` and `gradients` belongs to no replica: it stays zero, and fills up vectors.
    """

    point: AnyFloats  # where gradients are taken, shape (replicas + 1, padded parameters)
    batches: IntArray
    length: IntArray  # of each batch
    pointer: IntArray
    entries: IntArray
    gradients: AnyFloats  # shape (slabs, replicas + 1, padded parameters)


class Turns(NamedTuple):
    """How some steps are cut into pieces, which threads take in turn.

    In a step all replicas take their turn first, some at a time, then the data points, in
    `slabs * rounds` parts: in each round one part for every slab, so that no two threads add to the
    same gradients. After the last step the replicas have one more turn.
    """

    counters: IntArray  # next piece, pieces released, pieces done
    first_step: int
    n_steps: int
    chunks: int  # of replicas
    slabs: int  # arrays of gradients, each of all replicas, that are added up afterwards
    rounds: int
