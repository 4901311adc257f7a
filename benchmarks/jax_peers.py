"""SGD on the quadratic and on the linear model in JAX, as its users write it and as best we can.

A *step* takes one replica (or, in lockstep, all of them) through one step on a batch that is given
as a mask over all data, or as the list of its rows. A *draw* turns an entry of the source, a random
key or a batch drawn beforehand, into that batch. All arrays are arguments: constants would be
folded. `scale` is learning rate over batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax, random
from jax import numpy as jnp
from numpy.typing import NDArray

from quadmodel import LowRankCurvature, QuadraticModel

# Without this JAX has no double precision.
jax.config.update("jax_enable_x64", True)

Arrays = tuple[Any, ...]
Step = Callable[..., Any]


def arrays_of(model: QuadraticModel, precision: str) -> Arrays:
    """Return the model's arrays in JAX, as the steps of its kind take them."""
    if model.curvature is None:
        arrays: Arrays = (model.ntk(),)
    elif isinstance(model.curvature, LowRankCurvature):
        low_rank = model.curvature
        stacked = np.concatenate([model.jacobian[:, None], low_rank.vectors], axis=1)
        arrays = (stacked, low_rank.coefficients, model.residual)
    else:
        arrays = (model.curvature, model.jacobian, model.residual)
    return tuple(jnp.asarray(a, dtype=precision) for a in arrays)


def start_of(model: QuadraticModel, replicas: int, precision: str) -> Any:
    """Return the initial state of all replicas."""
    if model.curvature is None:
        return jnp.tile(jnp.asarray(model.residual, dtype=precision), (replicas, 1))
    return jnp.zeros((replicas, model.n_params), dtype=precision)


# Steps of one replica.


def linear_masked(arrays: Arrays, z: Any, mask: Any, scale: Any) -> Any:
    """Step the residual of the linear model by one product with the whole NTK."""
    (ntk,) = arrays
    return z - scale * len(z) * (ntk @ jnp.where(mask, z, 0))


def linear_rows(arrays: Arrays, z: Any, batch: Any, scale: Any) -> Any:
    """Step the residual of the linear model by the batch's rows of the NTK."""
    (ntk,) = arrays
    return z - scale * len(z) * (z[batch] @ ntk[batch])


def dense_masked(arrays: Arrays, theta: Any, mask: Any, scale: Any) -> Any:
    """Step the parameters, with the residuals of all data."""
    curvature, jacobian, residual = arrays
    curved = curvature @ theta
    z = residual + (jacobian + 0.5 * curved) @ theta
    return theta - scale * (jnp.where(mask, z, 0) @ (jacobian + curved))


def low_rank_masked(arrays: Arrays, theta: Any, mask: Any, scale: Any) -> Any:
    """Step the parameters, curvature of low rank, with Jacobian and vectors stacked."""
    stacked, coefficients, residual = arrays
    along = stacked @ theta
    bent = coefficients * along[:, 1:]
    z = residual + along[:, 0] + 0.5 * (bent * along[:, 1:]).sum(axis=1)
    weight = jnp.concatenate([jnp.ones_like(z)[:, None], bent], axis=1)
    weight = jnp.where(mask, z, 0)[:, None] * weight
    return theta - scale * jnp.einsum("ak,akp->p", weight, stacked)


def _on_rows(step: Step, arrays: Arrays, theta: Any, batch: Any, scale: Any) -> Any:
    return step(tuple(a[batch] for a in arrays), theta, True, scale)


dense_rows = partial(_on_rows, dense_masked)
low_rank_rows = partial(_on_rows, low_rank_masked)


# Steps of all replicas: `z` has shape (replicas, n_data), `theta` (replicas, n_params).


def linear_product(arrays: Arrays, z: Any, mask: Any, scale: Any) -> Any:
    """Step all residuals of the linear model by one product with the NTK."""
    (ntk,) = arrays
    return z - z.shape[1] * (jnp.where(mask, scale[:, None] * z, 0) @ ntk)


def dense_product(arrays: Arrays, theta: Any, mask: Any, scale: Any) -> Any:
    """Step all replicas by one product of their parameters with the whole of Q."""
    curvature, jacobian, residual = arrays
    n_data, n_params = jacobian.shape
    curved = theta @ curvature.reshape(n_data * n_params, n_params).T
    curved = curved.reshape(len(theta), n_data, n_params)
    z = residual + jnp.einsum("rap,rp->ra", jacobian + 0.5 * curved, theta)
    gradient = jnp.einsum("ra,rap->rp", jnp.where(mask, z, 0), jacobian + curved)
    return theta - scale[:, None] * gradient


def dense_row_by_row(arrays: Arrays, theta: Any, mask: Any, scale: Any) -> Any:
    """Step all replicas by a product with each row of Q in turn, whoever drew it."""

    def one(gradient: Any, row: Arrays) -> tuple[Any, None]:
        curvature, jacobian, residual, drew = row
        curved = theta @ curvature
        z = residual + ((jacobian + 0.5 * curved) * theta).sum(axis=1)
        return gradient + jnp.where(drew, z, 0)[:, None] * (jacobian + curved), None

    gradient, _ = lax.scan(one, jnp.zeros_like(theta), (*arrays, mask.T))
    return theta - scale[:, None] * gradient


def dense_sorted(arrays: Arrays, theta: Any, replicas: Any, scale: Any) -> Any:
    """Step all replicas by a product of each row of Q with those that drew it: our own algorithm.

    `replicas`, of shape (n_data, most replicas of a row), is filled up with the number of replicas.
    """
    nobody = jnp.zeros_like(theta[:1])
    point = jnp.concatenate([theta, nobody])

    def one(gradient: Any, row: Arrays) -> tuple[Any, None]:
        curvature, jacobian, residual, drew = row
        some = point[drew]
        curved = some @ curvature
        z = residual + ((jacobian + 0.5 * curved) * some).sum(axis=1)
        return gradient.at[drew].add(z[:, None] * (jacobian + curved)), None

    gradient, _ = lax.scan(one, jnp.zeros_like(point), (*arrays, replicas))
    return theta - scale[:, None] * gradient[:-1]


# Draws.


def given(entry: Any, batch_size: Any) -> Any:
    """Take a batch that was drawn beforehand."""
    return entry


def draw_mask(n_data: int, key: Any, batch_size: Any) -> Any:
    """Draw a batch without replacement, as a mask; `batch_size` may be traced."""
    return random.permutation(key, jnp.arange(n_data, dtype=jnp.int32)) < batch_size


def draw_rows(n_data: int, size: int, key: Any, batch_size: Any) -> Any:
    """Draw a batch without replacement, as its rows; `size` is known when compiling."""
    return random.choice(key, n_data, (size,), replace=False)


# Many steps.


def replica_by_replica(step: Step, draw: Callable[..., Any], at_once: int | None = None) -> Step:
    """Compile f(arrays, states, sources, scales, batch_sizes): a scan per replica, under vmap.

    `sources` has shape (replicas, steps, ...). With `at_once`, that many replicas at a time.
    """

    def advance(arrays: Arrays, states: Any, sources: Any, scales: Any, sizes: Any) -> Any:
        def one(replica: Arrays) -> Any:
            state, source, scale, size = replica

            def body(x: Any, entry: Any) -> tuple[Any, None]:
                return step(arrays, x, draw(entry, size), scale), None

            return lax.scan(body, state, source)[0]

        replicas = (states, sources, scales, sizes)
        if at_once is None:
            return jax.vmap(one)(replicas)
        return lax.map(one, replicas, batch_size=None if at_once == 1 else at_once)

    return jax.jit(advance)


def in_lockstep(step: Step) -> Step:
    """Compile f(arrays, states, batches, scales): a scan over steps of all replicas."""

    def advance(arrays: Arrays, states: Any, batches: Any, scales: Any) -> Any:
        def body(x: Any, batch: Any) -> tuple[Any, None]:
            return step(arrays, x, batch, scales), None

        return lax.scan(body, states, batches)[0]

    return jax.jit(advance)


def keys(seed: int, replicas: int, steps: int) -> Any:
    """Return random keys, shape (replicas, steps)."""
    return random.split(random.key(seed), (replicas, steps))


def replicas_by_row(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """List the replicas that drew each row, from masks (steps, replicas, n_data).

    Returns shape (steps, n_data, most replicas of a row), filled up with the number of replicas.
    """
    steps, replicas, n_data = masks.shape
    lists = np.full((steps, n_data, masks.sum(axis=1).max()), replicas, dtype=np.int32)
    for t in range(steps):
        for i in range(n_data):
            drew = np.flatnonzero(masks[t, :, i])
            lists[t, i, : drew.size] = drew
    return lists
