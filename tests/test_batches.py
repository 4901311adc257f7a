"""Batches: known answers of the generator, pure functions, exact laws of the sampling schemes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import chi2

from quadmodel._util.checks import InputError
from quadmodel.batches import batch_indices, draw_batch, philox
from tests.oracles import enumeration

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
AXES = ("seed", "model", "replica", "step")
FAMILY_WISE_ERROR = 1e-6  # of each of the statistical tests, over all its cases together

# Random123, kat_vectors: counter, key, result of philox4x32 with 10 rounds.
pytestmark = pytest.mark.kernels
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    found = philox(*np.array(counter, np.uint32), *np.array(key, np.uint32))
    assert " ".join(f"{int(word):08x}" for word in found) == expected


def test_seed_is_key_and_the_rest_is_counter():
    seed, model, replica, step, n_data = 0xA4093822_13198A2E, 2**32 - 3, 7, 2**31 + 5, 1000
    random_words = [
        int(word)
        for block in range(3)
        for word in philox(
            *np.array([block, step, replica, model], np.uint32),
            *np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32),
        )
    ]
    where = {"seed": seed, "model": model, "replica": replica, "step": step}
    drawn = batch_indices(n_data, 10, sampling="with_replacement", **where)
    assert drawn.tolist() == [word * n_data >> 32 for word in random_words[:10]]
    shuffled = list(range(n_data))
    for i, word in enumerate(random_words[:10]):  # Fisher-Yates from the front
        j = i + (word * (n_data - i) >> 32)
        shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
    assert batch_indices(n_data, 10, **where).tolist() == shuffled[:10]
    chosen = [i for i, word in enumerate(random_words[:12]) if word < 2**32 * 5 // 12]
    assert batch_indices(12, 5, sampling="bernoulli", **where).tolist() == chosen


@pytest.mark.parametrize("sampling", SCHEMES)
def test_pure_function(sampling):
    arguments = list(itertools.product((1, 2**40), (0, 3), (0, 5), (0, 9)))

    def draw(values):
        where = dict(zip(AXES, values, strict=True))
        return batch_indices(50, 7, sampling=sampling, **where).tolist()

    forwards = [draw(values) for values in arguments]
    assert [draw(values) for values in reversed(arguments)] == forwards[::-1]
    assert [draw(values) for values in arguments for _ in range(2)][::2] == forwards


@pytest.mark.parametrize("scheme", range(3), ids=SCHEMES)
def test_buffers_carry_nothing_over(scheme):
    n_data, batch_size = 9, 4
    order, swaps, batch = np.arange(n_data), np.empty(n_data, np.int64), np.empty(n_data, np.int64)
    for step in range(50):
        length = draw_batch(
            np.uint64(3), 1, 2, step, scheme, n_data, batch_size, order, swaps, batch
        )
        np.testing.assert_array_equal(order, np.arange(n_data))
        alone = batch_indices(
            n_data, batch_size, seed=3, model=1, replica=2, step=step, sampling=SCHEMES[scheme]
        )
        np.testing.assert_array_equal(batch[:length], alone)


@pytest.mark.parametrize("sampling", SCHEMES)
def test_distinct_arguments_give_distinct_batches(sampling):
    corners = (0, 1, 2**31, 2**32 - 1)
    seeds = (0, 1, 2**32, 2**64 - 1)
    drawn = {
        tuple(
            batch_indices(2000, 20, seed=s, model=m, replica=r, step=t, sampling=sampling).tolist()
        )
        for s, m, r, t in itertools.product(seeds, corners, corners, corners)
    }
    assert len(drawn) == 4**4


def test_without_replacement_is_distinct():
    for step, batch_size in enumerate((1, 2, 3, 17, 63, 64)):
        batch = batch_indices(64, batch_size, seed=5, step=step)
        assert len(batch) == batch_size == len(set(batch.tolist()))
        assert batch.min() >= 0
        assert batch.max() < 64
    assert sorted(batch.tolist()) == list(range(64))  # the last one is full


def test_lengths():
    assert len(batch_indices(10, 10, seed=0, sampling="with_replacement")) == 10
    everything = batch_indices(10, 10, seed=0, sampling="bernoulli")
    assert everything.tolist() == list(range(10))
    lengths = {len(batch_indices(10, 1, seed=0, step=t, sampling="bernoulli")) for t in range(99)}
    assert {0, 1, 2} <= lengths  # an empty batch is a batch


def counted(n_data, batch_size, sampling, axis, count):
    """Return how often each point is in each of `count` batches that differ along `axis`."""
    fixed = dict.fromkeys(AXES, 11)
    rows = np.zeros((count, n_data), np.int64)
    for k in range(count):
        batch = batch_indices(n_data, batch_size, sampling=sampling, **{**fixed, axis: k})
        np.add.at(rows[k], batch, 1)
    return rows


def chi_square_p_value(rows, law):
    """Return the p-value of the observed multiplicities under a law over whole batches."""
    seen = Counter(map(tuple, rows.tolist()))
    assert set(seen) <= set(law)
    expected = np.array([law[key] for key in law]) * len(rows)
    observed = np.array([seen[key] for key in law])
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(chi2.sf(statistic, len(law) - 1))


def exact_law(n_data, batch_size, sampling):
    """Return the probability of every batch, by its multiplicities."""
    return {
        tuple(round(w * batch_size / n_data) for w in weights): float(probability)
        for probability, weights in enumeration.rational_batches(n_data, batch_size, sampling)
    }


@pytest.mark.statistical
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("sampling", SCHEMES)
def test_law_of_whole_batches(sampling, axis):
    rows = counted(5, 2, sampling, axis, 4000)
    law = exact_law(5, 2, sampling)
    assert chi_square_p_value(rows, law) > FAMILY_WISE_ERROR / (len(SCHEMES) * len(AXES))
    # negative control: one point's batches come half as often again
    tilted = {key: p * (1.5 if key[0] else 1.0) for key, p in law.items()}
    total = sum(tilted.values())
    tilted = {key: p / total for key, p in tilted.items()}
    assert chi_square_p_value(rows, tilted) < FAMILY_WISE_ERROR / (len(SCHEMES) * len(AXES))


def inclusion_scores(rows, n_data, batch_size, sampling):
    """Return z-scores of the inclusion frequencies of all points and of all pairs."""
    drawn = enumeration.batches(n_data, batch_size, sampling)
    probability = np.array([p for p, _ in drawn])
    included = np.array([w > 0 for _, w in drawn])
    pairs = [(i, i) for i in range(n_data)] + list(itertools.combinations(range(n_data), 2))
    scores = []
    for i, j in pairs:
        p = probability[included[:, i] & included[:, j]].sum()
        seen = ((rows[:, i] > 0) & (rows[:, j] > 0)).mean()
        scores.append((seen - p) / np.sqrt(p * (1 - p) / len(rows)))
    return np.array(scores)


@pytest.mark.statistical
@pytest.mark.parametrize("sampling", SCHEMES)
def test_inclusion_of_points_and_pairs(sampling):
    n_data, batch_size = 8, 3
    rows = counted(n_data, batch_size, sampling, "step", 20_000)
    scores = inclusion_scores(rows, n_data, batch_size, sampling)
    bound = -ndtri(FAMILY_WISE_ERROR / (len(SCHEMES) * scores.size) / 2)
    assert np.abs(scores).max() < bound
    for wrong in set(SCHEMES) - {sampling}:  # negative control: the other schemes' pairs
        assert np.abs(inclusion_scores(rows, n_data, batch_size, wrong)).max() > bound


@pytest.mark.statistical
@pytest.mark.parametrize("axis", AXES)
def test_neighbouring_batches_are_independent(axis):
    rows = counted(4, 1, "without_replacement", axis, 8001).argmax(axis=1)

    def p_value(first, second):
        table = np.zeros((4, 4))
        np.add.at(table, (first, second), 1)
        expected = len(first) / 16
        return chi2.sf(((table - expected) ** 2 / expected).sum(), 15)

    assert p_value(rows[:-1], rows[1:]) > FAMILY_WISE_ERROR / len(AXES)
    copied = np.where(np.arange(8000) % 5, rows[1:], rows[:-1])  # negative control
    assert p_value(rows[:-1], copied) < FAMILY_WISE_ERROR / len(AXES)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n_data": 0}, "n_data"),
        ({"n_data": 2**31}, "n_data"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 11}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": None}, "seed"),
        ({"model": -1}, "model"),
        ({"replica": 2**32}, "replica"),
        ({"step": -1}, "step"),
        ({"step": True}, "step"),
        ({"sampling": "shuffled"}, "sampling"),
    ],
)
def test_bad_input(changed, named):
    arguments = {"n_data": 10, "batch_size": 3, "seed": 0, **changed}
    with pytest.raises(InputError, match=f"^{named} must be"):
        batch_indices(arguments.pop("n_data"), arguments.pop("batch_size"), **arguments)
