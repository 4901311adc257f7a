"""Compare a learning rate that holds K with others, on a network and digits.

A maintainer's command, not in the gate: python .ci/control.py [--labels random] [--steps N]. A
fully connected network with squared errors on 300 digits, batches of 4, five seeds. Compared at
equal steps, and at the time of the process that the constant rate takes: constant (finite K of 0.2
at the start), the best constant, the best of warmup with cosine, CDAT (arXiv:2407.06183; 2s times
|g|^2/|g H g| of batches, with moving means), and HoldK by the trace and by exact K. What is tuned
is tuned on three other seeds, by the loss at equal steps.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import quadmodel as qm
from quadmodel.networks import data, models
from quadmodel.networks._descent import Batches, Descent, NetworkLearner
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._losses import SquaredError
from quadmodel.networks._records import HELD_AS, Probe, Snapshot

SEEDS, TUNING, SIZE, POINTS = (0, 1, 2, 3, 4), (100, 101, 102), 4, 300
LEVELS = (0.1, 0.2, 0.4, 0.8)
SHARES = (0.25, 0.5, 1.0)
TARGETS = (0.25, 0.5, 0.8)
Schedule = Callable[["Training"], float]


class Training:
    """A run whose learning rate a schedule sets before every step."""

    def __init__(self, labels: str, steps: int, seed: int) -> None:
        """Draw network and data."""
        points = data.mnist(n_data=POINTS, seed=seed)
        torch.manual_seed(seed)
        self.net = models.fully_connected(784, 1, width=32)
        self.steps, targets = steps, points.targets(labels, seed=seed)
        self.at = Linearisation(self.net, points.inputs, targets)
        values = np.maximum(np.linalg.eigvalsh(qm.networks.ntk(self.net, points.inputs)), 0)
        self.rate_at = lambda level: qm.critical_learning_rate(
            values, qm.SGD(1.0, SIZE), norm="finite", level=level
        )
        learner = NetworkLearner(
            self.net, self.at.inputs, self.at.targets, SquaredError(), list(self.at.params)
        )
        sgd = qm.SGD(1.0, SIZE)
        batches = Batches("independent", POINTS, sgd, seed)
        self.descent = Descent(learner, sgd, batches, 1e6)

    def loss(self) -> float:
        """Return the loss over all data, +inf after divergence."""
        if self.descent.diverged_at >= 0:
            return math.inf
        with torch.no_grad():
            outputs = self.net(self.at.inputs)
            return float(self.at.loss.value(outputs, self.at.targets).mean())

    def run(self, schedule: Schedule) -> tuple[list[float], list[float]]:
        """Return process times and losses, every fiftieth of the run."""
        times, losses, spent = [0.0], [self.loss()], 0.0
        for _ in range(50):
            began = time.process_time()
            for _ in range(self.steps // 50):
                self.descent.learning_rate = schedule(self)
                self.descent.advance(1)
            spent += time.process_time() - began
            times.append(spent)
            losses.append(self.loss())
        return times, losses


def constant(level: float) -> Callable[[Training], Schedule]:
    """Hold the learning rate of an initial K."""
    return lambda training: (lambda rate: lambda _: rate)(training.rate_at(level))


def cosine(level: float) -> Callable[[Training], Schedule]:
    """Rise over a tenth of the run, fall to zero by a cosine."""

    def make(training: Training) -> Schedule:
        peak = training.rate_at(level)

        def rate(run: Training) -> float:
            share = (run.descent.step + 1) / run.steps
            if share < 0.1:
                return 10 * share * peak
            return peak * (math.cos((share - 0.1) / 0.9 * math.pi / 2) ** 2 + 1e-9)

        return rate

    return make


def cdat(share: float, every: int = 5, kept: float = 0.9) -> Callable[[Training], Schedule]:
    """Take 2 `share` |g|^2/|g H g|, moving means of both; 1 is the edge of the batches."""

    def make(training: Training) -> Schedule:
        means, rate = np.zeros(2), [0.0]

        def renewed(run: Training) -> float:
            step = run.descent.step
            if step % every == 0:
                points = run.descent.batches.at(step)[0]
                gradient = run.at.gradient(points)
                curved = abs(float(gradient @ run.at.hessian_product(gradient[None], points)[0]))
                means[:] = kept * means + (1 - kept) * np.array([gradient @ gradient, curved])
                rate[0] = 2 * share * means[0] / max(means[1], 1e-30)
            return rate[0]

        return renewed

    return make


def hold(target: float, norm: str, points: int, every: int) -> Callable[[Training], Schedule]:
    """Follow the package's rule."""
    rule = qm.HoldK(target, norm=norm, every=every)

    def make(training: Training) -> Schedule:
        probe = Probe(points=points)
        chosen = torch.from_numpy(probe.subset(POINTS))
        part = Linearisation(training.net, training.at.inputs[chosen], training.at.targets[chosen])

        def norm_at(rate: float) -> float:
            snapshot = Snapshot(part, training.at, qm.SGD(rate, SIZE), probe, [])
            return snapshot.value(HELD_AS[norm]).value

        rate = [rule.settled(norm_at, training.rate_at(0.5 * target))]

        def renewed(run: Training) -> float:
            step = run.descent.step
            if step and step % every == 0 and run.descent.diverged_at < 0:
                rate[0] = rule.renewed(rate[0], norm_at(rate[0]))
            return rate[0]

        return renewed

    return make


def runs_of(
    asked: argparse.Namespace, make: Callable[[Training], Schedule], seeds: tuple[int, ...]
) -> list[tuple[list[float], list[float]]]:
    """Return process times and losses of a rule's runs."""
    found = []
    for seed in seeds:
        training = Training(asked.labels, asked.steps, seed)
        found.append(training.run(make(training)))
    return found


def typical(losses: list[float]) -> float:
    """Return the geometric mean; +inf if a run diverged."""
    return float(np.exp(np.mean(np.log(losses))))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", default="random", choices=("random", "parity"))
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    kinds: dict[str, dict[str, Callable[[Training], Schedule]]] = {
        "constant, K = 0.2 at the start": {"": constant(0.2)},
        "best constant": {f"K = {x}": constant(x) for x in LEVELS},
        "best warmup + cosine": {f"peak K = {x}": cosine(x) for x in LEVELS},
        "best CDAT": {f"{x} of the edge": cdat(x) for x in SHARES},
        "HoldK(0.5) by the trace": {"": hold(0.5, "trace", 100, 50)},
        "best HoldK by the trace": {f"K = {x}": hold(x, "trace", 100, 50) for x in TARGETS},
        "HoldK(0.5), exact": {"": hold(0.5, "exact", 300, 100)},
    }
    rows, budget = [], {}
    for name, options in kinds.items():
        option = next(iter(options))
        if len(options) > 1:
            tried = {
                each: typical([losses[-1] for _, losses in runs_of(asked, make, TUNING)])
                for each, make in options.items()
            }
            option = min(tried, key=lambda each: tried[each])
        runs = runs_of(asked, options[option], SEEDS)
        best = typical([losses[-1] for _, losses in runs])
        if not budget:
            budget = {seed: run[0][-1] for seed, run in zip(SEEDS, runs, strict=True)}
        in_time = [
            float(np.interp(budget[seed], times, losses))
            for seed, (times, losses) in zip(SEEDS, runs, strict=True)
        ]
        row = {
            "rule": name,
            "chosen": option,
            "loss at equal steps": best,
            "over seeds": " ".join(f"{losses[-1]:.2g}" for _, losses in runs),
            "at equal time": typical(in_time),
            "s": float(np.mean([times[-1] for times, _ in runs])),
        }
        print(row, flush=True)
        rows.append(row)
    print(vars(asked))
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
