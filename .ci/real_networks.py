"""Train a fully connected network on 1,000 digits and print where K settles.

A maintainer's command, not in the gate: python .ci/real_networks.py [--labels random] [--steps N]
[--sizes B ...] [--levels K ...].
Squared errors, one output, batches of up to 16 from the package's own sampler, three seeds, three
learning rates at which K starts below 0.5. Prints, per run, the median over the last third of
training of exact K, the paper's K and the scaled largest eigenvalue; then medians over seeds.
"""

import argparse
import sys
import time

import numpy as np
import pandas as pd
import torch

import quadmodel as qm
from quadmodel.networks import data

LEVELS, SIZES, SEEDS = (0.1, 0.2, 0.4), (4, 16, 1), (0, 1, 2)
NAMES = (
    "loss", "accuracy", "ntk_largest_eigenvalue", "ntk_trace", "noise_kernel_norm",
    "noise_kernel_norm_exact", "row_norm_spread",
)  # fmt: skip


def network(width: int, seed: int) -> torch.nn.Module:
    """Return 784-width-width-1 with tanh units."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(784, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, width),
        torch.nn.Tanh(),
        torch.nn.Linear(width, 1),
    )


def one_run(asked: argparse.Namespace, size: int, level: float, seed: int) -> dict[str, float]:
    """Return a line of the table."""
    points = data.mnist(n_data=asked.points, seed=seed)
    targets = points.targets(asked.labels, seed=seed)
    net = network(asked.width, seed)
    values = np.maximum(np.linalg.eigvalsh(qm.networks.ntk(net, points.inputs)), 0.0)
    rate = qm.critical_learning_rate(values, qm.SGD(1.0, size), norm="finite", level=level)
    began = time.perf_counter()
    late = np.linspace(0.7 * asked.steps, asked.steps, 4).astype(int).tolist()
    run = qm.networks.track(
        net,
        points.inputs,
        targets,
        qm.SGD(rate, size),
        asked.steps,
        probe=qm.networks.Probe(every=late, points=asked.points, observables=NAMES),
        seed=seed,
    ).isel(replica=0)
    third = run.median("step")
    line = {
        "B": size,
        "initial K": level,
        "seed": seed,
        "learning rate": rate,
        "exact K": float(third.noise_kernel_norm_exact),
        "lowest": float(run.noise_kernel_norm_exact.min()),
        "highest": float(run.noise_kernel_norm_exact.max()),
        "paper's K": float(third.noise_kernel_norm),
        "eta lambda_max": rate * float(third.ntk_largest_eigenvalue),
        "trace grows by": float(third.ntk_trace) / values.sum(),
        "row spread": float(third.row_norm_spread),
        "loss": float(third.loss),
        "diverged at": int(run.divergence_step),
        "s": time.perf_counter() - began,
    }
    print(" ".join(f"{value:.4g}" for value in line.values()), flush=True)
    return line


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", default="random", choices=("random", "parity"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--levels", type=float, nargs="+", default=LEVELS)
    asked = parser.parse_args()
    print(vars(asked), flush=True)
    lines = [
        one_run(asked, size, level, seed)
        for size in asked.sizes
        for level in asked.levels
        for seed in SEEDS
    ]
    frame = pd.DataFrame(lines)
    columns = ["exact K", "paper's K", "eta lambda_max", "trace grows by", "row spread", "loss"]
    kept = frame[frame["diverged at"] < 0]
    table = kept.groupby(["B", "initial K"])[columns].median()
    table["exact K, range"] = kept.groupby(["B", "initial K"])["exact K"].agg(
        lambda k: f"{k.min():.2f} to {k.max():.2f}"
    )
    table["diverged"] = frame.groupby(["B", "initial K"])["diverged at"].agg(
        lambda k: (k >= 0).sum()
    )
    print(frame.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    print(table.to_string(float_format=lambda v: f"{v:.3g}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
