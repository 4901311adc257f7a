"""Try the validity flags of `expected_ntk` on random settings against Monte Carlo.

A maintainer's command, not in the gate: python .ci/validity.py [--settings N] [--seed S].
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

import quadmodel as qm
from quadmodel.laws.curvature import CurvatureLaw

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
# A prediction is right within this share of the change, or within so many standard errors.
TOLERANCE, SIGMAS = 0.15, 3.0
# Antithetic pairs of curvature draws: at first, and at most if the standard error stays above a
# share of the change.
FIRST, MOST, PRECISE = 48, 384, 0.03


@dataclass(frozen=True)
class Setting:
    """What is predicted and simulated."""

    model: qm.QuadraticModel
    sgd: qm.SGD
    law: CurvatureLaw
    steps: int
    words: str


def setting(rng: np.random.Generator) -> Setting:
    """Draw a setting: spectra, residuals, optimizers, schemes, curvatures from weak to hopeless."""
    n_data = int(np.exp(rng.uniform(np.log(2), np.log(14))))
    n_params = int(np.ceil(n_data * rng.uniform(1.2, 5)))
    spectrum = rng.choice(["random", "power", "outlier"])
    jacobian = rng.normal(size=(n_data, n_params))
    if spectrum != "random":
        left, _, right = np.linalg.svd(jacobian, full_matrices=False)
        lam = np.arange(1.0, n_data + 1) ** -rng.uniform(0, 2)
        if spectrum == "outlier":
            lam = rng.uniform(0.5, 1, n_data)
            lam[0] = rng.uniform(2, n_data + 2)
        jacobian = (left * np.sqrt(n_data * lam / lam.mean())) @ right
    where = rng.choice(["spread", "top", "point", "slow"])
    residual = rng.normal(size=n_data)
    model = qm.QuadraticModel(residual, jacobian)
    lam, vectors = model.eigensystem
    if where == "top":
        residual = residual + 3 * n_data**0.5 * vectors[:, 0]
    elif where == "point":
        residual[0] += 3 * n_data**0.5
    elif where == "slow":
        residual = vectors @ (vectors.T @ residual / np.sqrt(lam))
    model = qm.QuadraticModel(residual, jacobian)
    size = int(np.exp(rng.uniform(0, np.log(n_data + 1))))
    momentum = 0.0 if rng.random() < 0.4 else float(rng.uniform(-0.3, 0.9))
    sgd = qm.SGD(
        1.0,
        min(size, n_data),
        momentum,
        bool(momentum and rng.random() < 0.5),
        0.0 if rng.random() < 0.6 else float(lam.mean() * 10 ** rng.uniform(-2, 0)),
        str(rng.choice(SCHEMES)),
    )
    edge = min(
        qm.edge_of_stability(model.ntk(), sgd),
        qm.critical_learning_rate(model.ntk(), sgd, norm="exact"),
    )
    near = rng.random() < 0.25
    share = rng.uniform(0.9, 0.995) if near else np.exp(rng.uniform(np.log(0.02), np.log(0.9)))
    sgd = replace(sgd, learning_rate=float(share * edge))
    steps = int(np.exp(rng.uniform(np.log(10), np.log(201))))
    # Share of the NTK's trace by which it grows until all residuals are gone, roughly.
    strength = np.exp(rng.uniform(np.log(1e-3), np.log(10)))
    distance = float(residual @ np.linalg.solve(model.ntk(), residual)) / n_data
    scale = np.sqrt(strength * lam.mean() * n_data / n_params / distance)
    law: CurvatureLaw = qm.curvature.IndependentCurvature(scale)
    kind = rng.choice(["independent", "data", "both"], p=[0.6, 0.2, 0.2])
    if kind != "independent":
        over_data = (vectors * lam / lam.mean()) @ vectors.T
        root = rng.normal(size=(n_params, 2 * n_params))
        over = root @ root.T / (2 * n_params) if kind == "both" else None
        law = qm.curvature.KroneckerCurvature(over_data, over, scale=scale)
    words = (
        f"{n_data:2} {n_params:3} {spectrum:7} {where:6} {kind:11} {sgd.sampling[:7]} "
        f"B {sgd.batch_size:2} rate {share:.3f} mu {momentum:5.2f}{' nesterov' * sgd.nesterov} "
        f"rho {sgd.weight_decay:.3f} {steps:3} steps, strength {strength:.4f}"
    )
    return Setting(model, sgd, law, steps, words)


def simulated(s: Setting, seed: int) -> tuple[xr.Dataset, xr.Dataset, int]:
    """Return mean and standard error of the change of trace and largest eigenvalue, and pairs."""
    drawn: list[xr.Dataset] = []
    pairs = FIRST
    while True:
        run = qm.sample_ntk(
            s.model, s.sgd, s.steps, replicas=pairs, curvature=s.law, batch_sequences=2,
            record_every=max(1, s.steps // 4), seed=seed + len(drawn),
        )  # fmt: skip
        drawn.append(run[["ntk_trace"]].assign(top=run.ntk_eigenvalue.isel(mode=0, drop=True)))
        both = xr.concat([d.drop_vars("replica") for d in drawn], "replica")
        change = both - both.isel(step=0, replica=0)
        with np.errstate(invalid="ignore"):
            mean, error = change.mean("replica"), change.std("replica", ddof=1)
        error = error / both.sizes["replica"] ** 0.5
        last = mean.ntk_trace[-1]
        total = both.sizes["replica"]
        if not np.isfinite(last) or total >= MOST or error.ntk_trace[-1] < PRECISE * abs(last):
            return mean, error, total
        pairs = total


def right(predicted: xr.DataArray, mean: xr.DataArray, error: xr.DataArray) -> xr.DataArray:
    """Return whether a predicted change agrees with the simulated one; not where runs diverge."""
    with np.errstate(invalid="ignore"):
        off = np.abs(mean - predicted)
        near = (off < TOLERANCE * np.abs(predicted)) | (off < SIGMAS * error)
    return near & np.isfinite(mean)


def tried(s: Setting, seed: int) -> xr.Dataset:
    """Return, over steps, whether the predictions of a setting are flagged and whether right."""
    mean, error, pairs = simulated(s, seed)
    predicted = qm.expected_ntk(
        s.model, s.sgd, s.steps, curvature=s.law, record_every=int(mean.step[1])
    )
    change = predicted[["ntk_trace"]].assign(top=predicted.ntk_eigenvalue.isel(mode=0, drop=True))
    change = change - change.isel(step=0)
    with np.errstate(invalid="ignore"):
        precise = error.ntk_trace < PRECISE * 2 * np.abs(change.ntk_trace)
    return (
        xr.Dataset(
            {
                "change": change.ntk_trace,
                "simulated": mean.ntk_trace,
                "error": error.ntk_trace,
                "relative_error": predicted.relative_error,
                "valid": predicted.valid,
                "right": right(change.ntk_trace, mean.ntk_trace, error.ntk_trace),
                "precise": precise,
                "diffusion": diffusion(predicted),
                "top_valid": predicted.eigenvalue_valid.isel(mode=0, drop=True),
                "top_right": right(change.top, mean.top, error.top),
            }
        )
        .isel(step=slice(1, None))
        .assign_attrs(pairs=pairs, setting=s.words)
    )


def diffusion(predicted: xr.Dataset) -> xr.DataArray:
    """Return the diffusive part of the trace over its start: the flag of earlier versions."""
    return predicted.diffusive.sum("mode") / predicted.ntk_trace.isel(step=0)


def table(results: list[xr.Dataset], flag: str, truth: str) -> tuple[int, int, int, int]:
    """Return how many last records are flagged, flagged but wrong, right, right and flagged."""
    flags = np.array([bool(r[flag][-1]) for r in results])
    rights = np.array([bool(r[truth][-1]) for r in results])
    return (
        int(flags.sum()),
        int((flags & ~rights).sum()),
        int(rights.sum()),
        int((flags & rights).sum()),
    )


def main() -> None:
    """Print a line per setting and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    results = []
    for number in range(asked.settings):
        s = setting(np.random.default_rng([asked.seed, number]))
        result = tried(s, 1000 * number)
        results.append(result)
        last = result.isel(step=-1)
        verdict = {(True, False): "WRONG", (False, True): "missed"}.get(
            (bool(last.valid), bool(last.right)), ""
        )
        print(
            f"{number:3} {s.words:125} predicted {float(last.change):10.3g} "
            f"simulated {float(last.simulated):10.3g} +- {float(last.error):8.2g} "
            f"estimated error {float(last.relative_error):8.2g} {verdict}",
            flush=True,
        )
    print(f"\n{'last step':32} flagged valid, of these wrong; right, of these flagged valid")
    results = [r.assign(old=r.diffusion < 0.1) for r in results]
    sharp = [r for r in results if bool(r.precise[-1])]
    near = [r for r in sharp if 0.01 < float(r.relative_error[-1]) < 0.1]
    for name, some, flag, truth in (
        ("trace", results, "valid", "right"),
        ("trace, where known to 6 %", sharp, "valid", "right"),
        ("trace, estimate 1 to 10 %", near, "valid", "right"),
        ("largest eigenvalue", results, "top_valid", "top_right"),
        ("trace, diffusive part below 0.1", results, "old", "right"),
    ):
        flagged, wrong, good, found = table(some, flag, truth)
        print(
            f"{name:32} {flagged:4} {wrong:4} ({wrong / max(flagged, 1):6.1%}); "
            f"{good:4} {found:4} ({found / max(good, 1):4.0%})"
        )


if __name__ == "__main__":
    main()
