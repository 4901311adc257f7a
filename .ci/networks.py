"""Try the estimates of quadmodel.networks at size, beside dense ones.

A maintainer's command, not in the gate: python .ci/networks.py [--points D] [--draws N]
[--no-large] [--only-tracking]. First exact K without the NTK, beside that from the NTK, of Gaussian
Jacobians with rows of equal and of unequal norm and flat and falling spectra; then, of a network
with a million parameters, K by quadrature: within 60 s on 2 cores. Last, what track() adds to the
time of training when it records the bound of K every 50 steps.
"""

import argparse
import sys
import time

import numpy as np
import torch

import quadmodel as qm

SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The most standard errors an estimate may be off, and its most relative standard error.
MOST_ERRORS, MOST_RELATIVE = 3.0, 0.03


class GivenJacobian(torch.nn.Module):
    """A linear network whose Jacobian is a given matrix: inputs are the numbers of its rows."""

    def __init__(self, rows: np.ndarray) -> None:
        """Take rows of shape (D, P)."""
        super().__init__()
        self.rows = torch.as_tensor(rows)
        self.theta = torch.nn.Parameter(torch.zeros(rows.shape[1], dtype=torch.float64))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return outputs of shape (points, 1)."""
        return (self.rows[points] @ self.theta)[:, None]


def against_dense(n_data: int, spread: float, decay: float, seed: int) -> bool:
    """Print a line for one Jacobian; False if the estimate is too far off or too uncertain."""
    rng = np.random.default_rng([seed, n_data])
    rows = rng.standard_normal((n_data, 2 * n_data)) * np.arange(1.0, 2 * n_data + 1) ** -decay
    rows *= np.exp(spread * rng.standard_normal(n_data))[:, None]
    kernel = rows @ rows.T / n_data
    values = np.linalg.eigvalsh(kernel)
    rate = qm.critical_learning_rate(values, qm.SGD(1.0, 8), norm="paper", level=0.5)
    sgd = qm.SGD(rate, 8)
    began = time.perf_counter()
    dense = qm.noise_kernel_norm(kernel, sgd)
    middle = time.perf_counter()
    found = qm.networks.noise_kernel_norm(
        GivenJacobian(rows), torch.arange(n_data), None, sgd, method="matrix_free", seed=seed
    )
    ended = time.perf_counter()
    errors = abs(found.value - dense) / found.standard_error
    relative = found.standard_error / found.value
    print(
        f"D {n_data}, log-deviation {spread:.2f}, decay {decay:.1f}: exact K {dense:.4f} "
        f"({middle - began:.1f} s), without the NTK {found.value:.4f} +- {found.standard_error:.4f}"
        f" ({ended - middle:.1f} s), {errors:.1f} standard errors, relative {relative:.2%}",
        flush=True,
    )
    return errors <= MOST_ERRORS and relative <= MOST_RELATIVE


def large(n_data: int = 2000) -> bool:
    """Print K of a network with a million parameters and the time it took."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 1000),
        torch.nn.Tanh(),
        torch.nn.Linear(1000, 215),
        torch.nn.Tanh(),
        torch.nn.Linear(215, 10),
    )
    n_params = sum(p.numel() for p in net.parameters())
    inputs = torch.randn(n_data, 784)
    sharpness = qm.networks.largest_eigenvalue(net, inputs, tolerance=1e-2).value
    sgd = qm.SGD(0.3 / sharpness, 8)
    began = time.perf_counter()
    found = qm.networks.noise_kernel_norm(net, inputs, None, sgd, norm="finite")
    seconds = time.perf_counter() - began
    relative = found.standard_error / found.value
    print(
        f"P {n_params}, D {n_data}, 10 outputs, {torch.get_num_threads()} threads: finite K "
        f"{found.value:.4f} +- {found.standard_error:.4f} (relative {relative:.2%}) in "
        f"{seconds:.1f} s",
        flush=True,
    )
    return seconds <= 60 and relative < MOST_RELATIVE


def tracking(n_data: int = 2000, steps: int = 200) -> None:
    """Print the time that recording K every 50 steps adds, per batch size and observable.

    Of the process, not of the clock: a busy machine changes that less.
    """
    torch.manual_seed(0)
    inputs, targets = torch.randn(n_data, 784), torch.randint(10, (n_data,))
    for size in (16, 128):
        for width in (128, 512):

            def train(
                names: tuple[str, ...], points: int, size: int = size, width: int = width
            ) -> float:
                net = torch.nn.Sequential(
                    torch.nn.Linear(784, width),
                    torch.nn.Tanh(),
                    torch.nn.Linear(width, width // 4),
                    torch.nn.Tanh(),
                    torch.nn.Linear(width // 4, 10),
                )
                every = 50 if names else [0]
                probe = qm.networks.Probe(every=every, points=points, observables=names)
                began = time.process_time()
                qm.networks.track(
                    net, inputs, targets, qm.SGD(0.01, size), steps, loss="cross_entropy",
                    probe=probe,
                )  # fmt: skip
                return time.process_time() - began

            name = ("noise_kernel_norm_trace",)
            train(name, 10)  # loads everything
            bare = train((), 1)
            added = {n: (train(name, n) - bare) / bare for n in (30, 100, n_data)}
            print(
                f"width {width}, B {size}: {1e3 * bare / steps:.2f} ms a step; "
                "the bound by the trace, every 50 steps, adds "
                + ", ".join(f"{share:.1%} ({n} points)" for n, share in added.items()),
                flush=True,
            )


def main() -> int:
    """Print the table; 1 if a line of it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--no-large", action="store_true")
    parser.add_argument("--only-tracking", action="store_true")
    asked = parser.parse_args()
    if asked.only_tracking:
        tracking()
        return 0
    passed = [
        against_dense(asked.points, spread, decay, seed)
        for seed in range(asked.draws)
        for decay in (0.0, 0.7)
        for spread in SPREADS
    ]
    if not asked.no_large:
        passed.append(large())
    if not asked.no_large:
        tracking()
    print(f"{sum(passed)} of {len(passed)} pass")
    # Of many draws one in 400 may be further off than three standard errors.
    return 0 if sum(passed) >= len(passed) - max(0, len(passed) // 100) else 1


if __name__ == "__main__":
    sys.exit(main())
