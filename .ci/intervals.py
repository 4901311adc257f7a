"""Count how often the interval of the simulated critical K holds 1, on random settings.

A maintainer's command, not in the gate: python .ci/intervals.py [--settings N] [--seed S].
Each setting is a phase diagram of one batch size, otherwise by default.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

import quadmodel as qm

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")


class Setting(NamedTuple):
    """What is simulated: an NTK, and SGD with its batch size."""

    ntk: np.ndarray
    sgd: qm.SGD
    words: str


class Outcome(NamedTuple):
    """The simulated critical K; `resolved` as the diagram says, NaN where nothing crosses."""

    words: str
    norm: float
    low: float
    high: float
    resolved: bool
    replica_steps: int


def setting(seed: int, number: int) -> Setting:
    """Draw spectrum, eigenvectors, batch size, sampling scheme and momentum."""
    rng = np.random.default_rng([seed, number])
    n_data = int(np.exp(rng.uniform(np.log(40), np.log(201))))
    if rng.random() < 0.5:
        ratio = rng.uniform(1.5, 4)
        ntk = qm.Ensemble(n_data, int(ratio * n_data)).sample(int(rng.integers(2**31))).ntk()
        words = f"Gaussian Jacobian, P/D {ratio:.1f}"
    else:
        condition = 10 ** rng.uniform(0.3, 4)
        kind = rng.choice(["geometric", "log-uniform", "few large"])
        lam = np.geomspace(1, 1 / condition, n_data)
        if kind == "log-uniform":
            lam = condition ** -rng.random(n_data)
        elif kind == "few large":
            lam = rng.uniform(1, 3, n_data) / condition
            lam[: n_data // 8] = rng.uniform(0.2, 1, n_data // 8)
        uneven = float(rng.choice([0.0, 0.17]))  # log-deviation of row norms; a real network's
        rows = np.linalg.qr(rng.standard_normal((n_data, n_data)))[0] * np.sqrt(lam)
        rows *= np.exp(uneven * rng.standard_normal(n_data))[:, None]
        ntk = rows @ rows.T
        words = f"{kind}, condition {condition:.0f}, row norms {uneven}"
    size = min(int(np.exp(rng.uniform(0, np.log(n_data / 2 + 1)))), n_data // 2)
    momentum = 0.0 if rng.random() < 0.25 else float(rng.uniform(-0.3, 0.9))
    nesterov = bool(momentum > 0 and rng.random() < 0.25)
    sgd = qm.SGD(1.0, size, momentum, nesterov, sampling=str(rng.choice(SCHEMES)))
    kind = "Nesterov" if nesterov else "momentum"
    return Setting(
        ntk, sgd, f"D {n_data}, B {size}, {sgd.sampling}, {kind} {momentum:.2f}, {words}"
    )


def measure(seed: int, number: int) -> Outcome:
    """Simulate one setting."""
    ntk, sgd, words = setting(seed, number)
    grid = qm.phase_diagram(ntk, batch_sizes=[sgd.batch_size], sgd=sgd, seed=number, threads=1)
    found = qm.critical_noise_kernel_norm(grid).isel(batch_size=0)
    return Outcome(
        words,
        *(float(found[f"noise_kernel_norm{end}"]) for end in ("", "_low", "_high")),
        bool(found.resolved),
        grid.attrs["replica_steps"],
    )


def main() -> int:
    """Print a line per setting and the counts; 1 if the coverage is not that of 95 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    numbers = range(asked.first, asked.first + asked.settings)
    held = missed = unresolved = 0
    with ProcessPoolExecutor(asked.jobs) as pool:
        outcomes = pool.map(measure, [asked.seed] * len(numbers), numbers)
        for number, one in zip(numbers, outcomes, strict=True):
            inside = one.low <= 1 <= one.high
            held, missed = held + (one.resolved and inside), missed + (one.resolved and not inside)
            unresolved += not one.resolved
            verdict = ("holds 1" if inside else "MISSES 1") if one.resolved else "unresolved"
            print(
                f"{number:4d} {verdict:10s} {one.norm:.4f} [{one.low:.4f}, {one.high:.4f}] "
                f"{one.replica_steps / 1e6:5.1f}e6 replica-steps; {one.words}",
                flush=True,
            )
    print(f"{len(numbers)} settings: {held} hold 1, {missed} miss it, {unresolved} unresolved")
    few = unresolved <= 0.05 * len(numbers)
    return 0 if few and 0.925 * len(numbers) <= held + unresolved <= 0.995 * len(numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
