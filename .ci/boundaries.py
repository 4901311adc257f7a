"""Count how often traced intervals hold the exact critical learning rate, and what they cost.

A maintainer's command, not in the gate: python .ci/boundaries.py [--settings N] [--seed S].
Settings are those of intervals.py, each traced by default; then the twelve default batch sizes of
one ensemble are traced, and replica-steps set beside those of grids.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from intervals import setting

import quadmodel as qm

RTOL = 0.01


class Outcome(NamedTuple):
    """A traced critical learning rate and its interval, over the exact one."""

    words: str
    value: float
    low: float
    high: float
    resolved: bool
    precise: bool
    replica_steps: int
    of_grid: float  # replica-steps per column of a grid with the last runs' steps and replicas

    @property
    def half(self) -> float:
        """Half the width of the interval in the logarithm."""
        return float(np.log(self.high / self.low) / 2)


def measure(seed: int, number: int) -> Outcome:
    """Trace one setting."""
    ntk, sgd, words = setting(seed, number)
    found = qm.trace_boundary(ntk, [sgd.batch_size], sgd=sgd, rtol=RTOL, seed=number, threads=1)
    found = found.isel(batch_size=0)
    exact = qm.critical_learning_rate(ntk, sgd, norm="exact")
    return Outcome(
        words,
        *(float(found[f"critical_learning_rate{end}"]) / exact for end in ("", "_low", "_high")),
        bool(found.resolved),
        bool(found.precise),
        int(found.replica_steps),
        float(found.steps * found.replicas),
    )


def coverage(outcomes: list[Outcome]) -> bool:
    """Print what the intervals hold; whether that is what 95 % intervals do."""
    known = [one for one in outcomes if one.resolved]
    held = sum(one.low <= 1 <= one.high for one in known)
    precise = sum(one.precise for one in outcomes)
    half = np.array([one.half for one in known])
    score = np.array([np.log(one.value) / one.half * 1.96 for one in known])
    few = len(outcomes) - len(known)
    print(
        f"{len(outcomes)} settings: {held} hold it, {len(known) - held} miss it, {few} unresolved; "
        f"{precise} within {RTOL:.0%}\n"
        f"half width: median {np.median(half):.4f}, ninth in ten {np.quantile(half, 0.9):.4f}, "
        f"largest {half.max():.4f}; log in standard errors: mean {score.mean():.2f}\n"
        f"replica-steps: {sum(one.replica_steps for one in outcomes):.3g}, median "
        f"{np.median([one.replica_steps for one in outcomes]):.3g}"
    )
    enough = few <= 0.05 * len(outcomes) and precise >= 0.95 * len(outcomes)
    return bool(enough and held >= 0.9 * len(known))


def cost() -> bool:
    """Print the cost of twelve batch sizes beside those of grids; whether a tenth is kept."""
    ensemble = qm.Ensemble(200, 400)
    found = qm.trace_boundary(ensemble, 12, rtol=RTOL, threads=1)
    edges = qm.phase_boundaries(ensemble.sample(0).ntk(), found.batch_size.values)
    low = 0.4 * float(edges.critical_learning_rate.min())
    columns = np.log(1.6 * float(edges.edge_of_stability.max()) / low) / (2 * RTOL)
    taken = found.attrs["replica_steps"]
    same = float((found.steps * found.replicas).sum()) * columns
    default = columns * found.sizes["batch_size"] * found.attrs["steps"] * found.attrs["replicas"]
    print(
        f"{found.sizes['batch_size']} batch sizes of {ensemble}: {taken:.3g} replica-steps; a grid "
        f"of {columns:.0f} learning rates, {2 * RTOL:.0%} apart, takes {same:.3g} with the steps "
        f"and replicas of the last runs (share {taken / same:.3f}), {default:.3g} with the default "
        f"ones, which are too few (share {taken / default:.3f}), and as a phase diagram "
        f"{3 * default:.3g} (share {taken / default / 3:.3f})"
    )
    return taken <= same / 10


def main() -> int:
    """Print a line per setting, the counts, and the cost; 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    numbers = range(asked.first, asked.first + asked.settings)
    outcomes = []
    with ProcessPoolExecutor(asked.jobs) as pool:
        found = pool.map(measure, [asked.seed] * len(numbers), numbers)
        for number, one in zip(numbers, found, strict=True):
            outcomes.append(one)
            inside = one.low <= 1 <= one.high
            verdict = ("holds it" if inside else "MISSES it") if one.resolved else "unresolved"
            print(
                f"{number:4d} {verdict:10s} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}] "
                f"{one.replica_steps / 1e6:5.1f}e6 replica-steps, {one.of_grid / 1e6:.2f}e6 per "
                f"column; {one.words}",
                flush=True,
            )
    held = coverage(outcomes)
    return 0 if cost() and held else 1


if __name__ == "__main__":
    sys.exit(main())
