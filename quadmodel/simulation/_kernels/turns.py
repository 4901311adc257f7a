"""Steps of models with curvature, in pieces that threads take in turn.

A step has three parts. Replicas draw batches, and a list of the replicas of each data point is
made; data points add their gradients to the replicas that drew them; replicas apply their
gradients. Pieces are some replicas, which apply the gradients of the step before and draw, or some
data points. Those of a round are released when the round before has ended, and any thread that is
free takes the next one: none waits for a thread that has not come yet, and the same pieces are done
for any number of threads. They meet in compiled code: waking each other up through the interpreter
takes longer than a step of one replica.

A replica has its own learning rate, batch size and number in the random stream. One whose squared
norm leaves [0, limit) is frozen, and `diverged_at` says after which step; NaN fails that test too.
"""

# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

import numpy as np

from quadmodel._util.compiled import compiled, compiled_inner
from quadmodel.batches import draw_batch, in_order
from quadmodel.simulation._kernels.arguments import Turns
from quadmodel.simulation._kernels.atomics import count_up, count_up_from, look_at, pause, set_to
from quadmodel.simulation._kernels.sums import squared_norm

# What a thread has come to that is given no part: all pieces are taken, or the next round isn't
# released yet; or it has done as many as it was asked to.
ENDED, WAITING, MORE = -1, -2, 0
# Places of the counters: the next piece, pieces that are released, pieces that are done. In cache
# lines of their own, two apart since processors fetch them in pairs.
_NEXT, _RELEASED, _DONE = 0, 16, 32
# How often a thread looks for the next round before it returns: some ten microseconds.
_PATIENCE = 500


def turns(first_step: int, n_steps: int, chunks: int = 1, slabs: int = 1, rounds: int = 1) -> Turns:
    """Return the pieces of some steps, none of them taken; see `Turns`."""
    counters = np.zeros(48, np.int64)
    counters[_RELEASED] = chunks
    return Turns(counters, first_step, n_steps, chunks, slabs, rounds)


@compiled_inner
def next_part(replicas, options, limit, buffers, turns):
    """Take the next part of the data points and return it, or ENDED or WAITING.

    Pieces that are replicas are done on the way.
    """
    counters, first_step, n_steps, chunks, slabs, rounds = turns
    cycle = chunks + slabs * rounds
    for _ in range(_PATIENCE):
        piece = look_at(counters, _NEXT)
        if piece >= n_steps * cycle + chunks:
            return ENDED
        if piece >= look_at(counters, _RELEASED):
            pause()
        elif count_up_from(counters, _NEXT, piece):
            step, inside = piece // cycle, piece % cycle
            if inside >= chunks:
                return (inside - chunks) % slabs * rounds + (inside - chunks) // slabs
            first = inside * len(replicas.number) // chunks
            last = (inside + 1) * len(replicas.number) // chunks
            if step > 0:
                _apply_gradients(
                    replicas, options, limit, first_step + step - 1, buffers.gradients, first, last
                )
            if step < n_steps:
                _draw_batches(replicas, options, first_step + step, buffers, first, last)
            end_piece(buffers, turns)
    return WAITING


@compiled_inner
def end_piece(buffers, turns):
    """Say that a piece is done; the last one of a round releases the next round."""
    counters, _, n_steps, chunks, slabs, rounds = turns
    cycle, done = chunks + slabs * rounds, count_up(counters, _DONE)
    released = look_at(counters, _RELEASED)
    if done < released or done == n_steps * cycle + chunks:
        return
    inside = released % cycle
    if inside == chunks:
        _sort_by_point(buffers)
    set_to(counters, _RELEASED, released + (chunks if inside == 0 else slabs))


@compiled_inner
def _draw_batches(replicas, options, step, buffers, first, last):
    """Draw a batch for every one of some replicas that still runs.

    Writes phi, where the gradient is taken, to `buffers.point`.
    """
    # Arrays are taken out of their named tuples first: every access in a loop would count
    # references, which takes time.
    momentum, nesterov, _, scheme, seed, model_index = options
    state, old, _, batch_size, number, diverged_at = replicas
    point, batches, length, _, _, _ = buffers
    n_data = batches.shape[1]
    order, swaps = in_order(n_data), np.empty(n_data, np.int64)
    extrapolation = momentum if nesterov else 0.0
    for a in range(first, last):
        length[a] = 0
        if diverged_at[a] < 0:
            length[a] = draw_batch(
                seed, model_index, number[a], step, scheme, n_data, batch_size[a],
                order, swaps, batches[a],
            )  # fmt: skip
            for k in range(state.shape[1]):
                now = state[a, k]
                point[a, k] = now + extrapolation * (now - old[a, k])


@compiled_inner
def _sort_by_point(buffers):
    """List, for each data point, the replicas whose batch holds it (counting sort)."""
    _, batches, length, pointer, entries, _ = buffers
    n_data = len(pointer) - 1
    filled = np.zeros(n_data + 1, np.int64)
    for a in range(len(length)):
        for k in range(length[a]):
            filled[batches[a, k] + 1] += 1
    pointer[0] = 0
    for i in range(n_data):
        filled[i + 1] += filled[i]
        pointer[i + 1] = filled[i + 1]
    for a in range(len(length)):
        for k in range(length[a]):
            i = batches[a, k]
            entries[filled[i]] = a
            filled[i] += 1


@compiled_inner
def _apply_gradients(replicas, options, limit, step, gradients, first, last):
    """Step some replicas by the sum over the parts of `gradients`, and clear them."""
    momentum, nesterov, weight_decay, _, _, _ = options
    state, old, learning_rate, batch_size, _, diverged_at = replicas
    extrapolation = momentum if nesterov else 0.0
    for a in range(first, last):
        if diverged_at[a] >= 0:
            continue
        theta, theta_old, gradient = state[a], old[a], gradients[0, a]
        for part in range(1, len(gradients)):
            for k in range(len(gradient)):
                gradient[k] += gradients[part, a, k]
                gradients[part, a, k] = 0.0
        eta, per_point = learning_rate[a], 1.0 / batch_size[a]
        for k in range(len(theta)):
            moved = theta[k] - theta_old[k]
            theta_old[k] = theta[k]
            slope = gradient[k] * per_point + weight_decay * (theta[k] + extrapolation * moved)
            theta[k] += momentum * moved - eta * slope
            gradient[k] = 0.0
        if not squared_norm(theta) < limit:
            diverged_at[a] = step + 1


def in_turns(rows):
    """Return the loop in which a thread takes parts of the data points and calls `rows` for each.

    It is given `model` and what `next_part` is, takes up to `at_most` parts, and returns ENDED,
    WAITING or MORE. It is made for each kind of curvature, under a name of its own by which it is
    kept on disk: a compiled function that is given another one is not kept.
    """

    def advance(model, replicas, options, limit, buffers, turns, at_most):
        for _ in range(at_most):
            part = next_part(replicas, options, limit, buffers, turns)
            if part < 0:
                return part
            rows(model, buffers, part, turns.slabs * turns.rounds)
            end_piece(buffers, turns)
        return MORE

    advance.__module__, advance.__qualname__ = rows.__module__, f"{rows.__name__}_in_turns"
    return compiled(advance)
