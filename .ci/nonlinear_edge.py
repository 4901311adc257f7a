"""Count the runs that diverge below and above the mean-field edge, at random settings.

A maintainer's command, not in the gate: python .ci/nonlinear_edge.py [--settings N] [--seed S]
[--limit]. Each setting is an ensemble of quadratic models, of which two are drawn and run eight
times. `--limit`: four runs of the limit of many parameters, truncated at order 3, at 100 data
points, which take 4 GB. Exits with 1 if a setting contradicts the edge.
"""

import argparse
import sys
from dataclasses import replace

import numpy as np

import quadmodel as qm

FACTORS = (0.9, 1.0, 1.1)
DRAWS, REPLICAS = 2, 8
# Curvature strength and batch size in the limit of many parameters; runs.
LIMIT = ((0.08, 50), (0.01, 20), (0.2, 2), (0.03, 5))
LIMIT_RUNS = 4
# At most, and at least, of the runs may diverge at the first and the last factor.
MOST, LEAST = 0.1, 0.6


def setting(seed: int, number: int) -> tuple[qm.Ensemble, qm.SGD, str]:
    """Draw spectrum, curvature strength, parameters, batch size, momentum and scheme."""
    rng = np.random.default_rng([seed, number])
    n_data = int(rng.integers(100, 141))
    ratio = float(rng.uniform(1.5, 3))
    x = (np.arange(n_data) + 0.5) / n_data
    kind = str(rng.choice(["bulk", "uniform", "Gaussian Jacobian"]))
    law = {
        "bulk": np.sort(0.07 + 0.93 * x**2)[::-1],
        "uniform": np.sort(0.1 + 0.9 * x)[::-1],
        "Gaussian Jacobian": qm.spectra.IndependentGaussian(),
    }[kind]
    strength = float(np.exp(rng.uniform(np.log(0.01), np.log(0.2))))
    n_params = int(ratio * n_data)
    size = max(1, int(n_data * np.exp(rng.uniform(np.log(1 / 50), np.log(1 / 2)))))
    momentum = float(rng.choice([0.0, 0.0, rng.uniform(0, 0.9)]))
    sgd = qm.SGD(
        1.0, size, momentum, sampling=str(rng.choice(["without_replacement", "bernoulli"]))
    )
    # In units of the mean eigenvalue, which is P/D for a Gaussian Jacobian.
    scale = (strength * n_data / n_params) ** 0.5 * (ratio if kind == "Gaussian Jacobian" else 1.0)
    words = (
        f"D {n_data}, P/D {ratio:.1f}, B {size}, {sgd.sampling}, momentum {momentum:.2f}, {kind}"
    )
    ensemble = qm.Ensemble(n_data, n_params, jacobian=law, curvature=scale)
    return ensemble, sgd, f"{words}, q^2 {strength:.3f}"


def in_the_limit() -> int:
    """Print a line per setting of the limit of many parameters; return how many are wrong."""
    wrong, n_data = 0, 100
    x = (np.arange(n_data) + 0.5) / n_data
    lam = np.sort(0.07 + 0.93 * x**2)[::-1]
    for strength, size in LIMIT:
        ensemble = qm.Ensemble(n_data, 2 * n_data, jacobian=lam, curvature=(strength / 2) ** 0.5)
        edge = qm.mean_field_edge(ensemble, [size], ratio=np.inf).isel(batch_size=0)
        steps, shares = int(edge.steps), []
        for factor in (FACTORS[0], FACTORS[-1]):
            sgd = qm.SGD(factor * float(edge.critical_learning_rate), size)
            runs = qm.large_p_limit(
                ensemble.sample(7), sgd, steps, replicas=LIMIT_RUNS, seed=11, truncation_order=3
            )
            shares.append(float((runs.divergence_step >= 0).mean()))
        bad = shares[0] > MOST or shares[1] < LEAST
        wrong += bad
        ends = f"{shares[0]:.2f} at {FACTORS[0]}, {shares[1]:.2f} at {FACTORS[-1]}"
        norm = float(edge.noise_kernel_norm_finite)
        verdict = "WRONG" if bad else "holds"
        print(f"{verdict} K {norm:.3f}, diverged {ends}; q^2 {strength}, B {size}", flush=True)
    return wrong


def main() -> int:
    """Print a line per setting; 1 if one of them contradicts the edge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", action="store_true", help="the limit of many parameters")
    asked = parser.parse_args()
    if asked.limit:
        return int(in_the_limit() > 0)
    wrong = 0
    for number in range(asked.settings):
        ensemble, sgd, words = setting(asked.seed, number)
        edge = qm.mean_field_edge(ensemble, [sgd.batch_size], sgd).isel(batch_size=0)
        steps = int(1.5 * max(edge.steps, 300))
        counts = np.zeros(len(FACTORS))
        for draw in range(DRAWS):
            model = ensemble.sample(draw)
            for k, factor in enumerate(FACTORS):
                at = replace(sgd, learning_rate=factor * float(edge.critical_learning_rate))
                runs = qm.simulate(
                    model, at, steps, replicas=REPLICAS, seed=draw, observables=("loss",),
                    record_every=steps,
                )  # fmt: skip
                counts[k] += int((runs.divergence_step >= 0).sum())
        share = counts / (DRAWS * REPLICAS)
        bad = share[0] > MOST or share[-1] < LEAST
        wrong += bad
        verdict, norm = "WRONG" if bad else "holds", float(edge.noise_kernel_norm_finite)
        ends = ", ".join(f"{s:.2f} at {f}" for s, f in zip(share, FACTORS, strict=True))
        print(f"{number:3d} {verdict} K {norm:.3f}, diverged {ends}; {words}", flush=True)
    print(f"{asked.settings} settings, {wrong} of them wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
