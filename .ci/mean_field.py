"""Set mean_field() beside simulate() of the same models, and print where they part.

A maintainer's command, not in the gate: python .ci/mean_field.py [PART ...] [--draws N] [--seed S].
Every draw has eigenvectors, residual and curvature of its own; theory and simulation get the same.
Errors are standard errors over draws. Every curvature is run with both signs, which takes out what
is odd in it; batches are taken out by control variates: the linear model run on the same batches,
whose mean is known. Exits with 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

import quadmodel as qm

Array = NDArray[np.float64]
NAMES = {
    "loss": "loss",
    "squared_distance": "|theta|^2",
    "ntk_trace": "trace",
    "ntk_largest_eigenvalue": "lambda_max",
    "noise_kernel_norm_finite": "K_finite",
}
CONTROLS = ("loss", "squared_distance")
# The claims: of the loss, that both hold; of the trace, its own, or what its error allows.
SIGMAS, LOSS, TRACE, NORM = 3.0, 0.05, 0.003, 0.02
SIZES = (50, 100, 200, 400)
# Errors shrink as D to this power: the largest eigenvalue of a finite matrix lies below its limit.
POWERS = {"ntk_largest_eigenvalue": 2 / 3}
# Chi-squared of errors that shrink as 1/D may be as improbable as this, and no more.
IMPROBABLE = 1e-3
# Settings drawn at random.
RANDOM = 20


@dataclass(frozen=True)
class Setting:
    """What is predicted and simulated."""

    words: str
    n_data: int = 200
    n_params: int = 400
    batch: int = 20
    spectrum: str = "spread"
    strength: float = 0.03  # q^2 = sigma^2 P/D
    start: float = 0.5  # K at the start; at full batch the learning rate's share of the edge
    aligned: bool = False  # curvature covariance over data proportional to the NTK
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 40
    record_every: int = 10
    groups: int = 1
    memory: int | None = None
    claimed: bool = True  # that the theory holds here

    def eigenvalues(self) -> Array:
        """Return the NTK's eigenvalues."""
        x = (np.arange(self.n_data) + 0.5) / self.n_data
        k = np.arange(1.0, self.n_data + 1)
        lam = {
            "spread": np.sort(0.07 + 0.93 * x**2)[::-1],
            "x^2": np.sort(x**2)[::-1],
            "k^-0.7": k**-0.7,
            "k^-0.5": k**-0.5 / np.mean(k**-0.5),
        }[self.spectrum].copy()
        lam[self.n_params :] = 0.0
        return np.asarray(lam)

    def sgd(self) -> qm.SGD:
        """Return the optimizer."""
        lam, sgd = self.eigenvalues(), qm.SGD(1.0, self.batch, **self.options)
        if self.batch == self.n_data and sgd.sampling == "without_replacement":
            return replace(sgd, learning_rate=self.start * qm.edge_of_stability(lam, sgd))
        rate = qm.critical_learning_rate(lam, sgd, norm="finite", level=self.start)
        return replace(sgd, learning_rate=float(rate))

    def model(self, seed: int) -> qm.QuadraticModel:
        """Draw eigenvectors, residual and curvature."""
        ensemble = qm.Ensemble(self.n_data, self.n_params, jacobian=self.eigenvalues())
        linear = ensemble.sample(seed)
        scale = float(np.sqrt(self.strength * self.n_data / self.n_params))
        law: qm.curvature.CurvatureLaw = qm.curvature.IndependentCurvature(scale)
        if self.aligned:
            lam, vectors = linear.eigensystem
            law = qm.curvature.KroneckerCurvature(
                (vectors * lam / lam.mean()) @ vectors.T, scale=scale
            )
        rng = np.random.default_rng([seed, self.n_data, 1])
        drawn = law.sample(rng, self.n_data, self.n_params)
        return qm.QuadraticModel(linear.residual, linear.jacobian, drawn, law)


class Compared(NamedTuple):
    """Simulation over theory at the recorded steps past the start."""

    steps: Array
    error: dict[str, Array]  # mean over draws of simulated / predicted - 1; of K the difference
    standard_error: dict[str, Array]
    growth: float  # of the trace, predicted
    diverged: int  # of the runs


def compare(s: Setting, draws: int, replicas: int, seed: int) -> Compared:
    """Run theory and simulation of some draws."""
    sgd = s.sgd()
    ratios: dict[str, list[Array]] = {name: [] for name in NAMES}
    controls: list[Array] = []
    growth, diverged = [], 0
    for draw in range(draws):
        model = s.model(1000 * seed + draw)
        theory = qm.mean_field(model, sgd, s.steps, record_every=s.record_every, groups=s.groups)
        both = [
            qm.simulate(
                one, sgd, s.steps, replicas=replicas, seed=seed, model_index=draw,
                record_every=s.record_every, precision="mixed", threads=1,
            )
            for one in antithetic(model)
        ]  # fmt: skip
        diverged += sum(int((runs.divergence_step >= 0).sum()) for runs in both)
        controls.append(control(model, sgd, s, replicas, seed, draw))
        growth.append(float(theory.ntk_trace[-1] / theory.ntk_trace[0]))
        for name, values in ratios.items():
            simulated = np.mean([runs[name].values[:, 1:] for runs in both], axis=0)
            predicted = theory[name].values[1:]
            off = simulated - predicted
            values.append(off if name == "noise_kernel_norm_finite" else off / predicted)
    error, standard_error = {}, {}
    for name, values in ratios.items():
        of_draws = adjusted(np.stack(values), np.stack(controls)).mean(axis=1)
        error[name] = of_draws.mean(axis=0)
        standard_error[name] = of_draws.std(axis=0, ddof=1) / draws**0.5
    steps = theory.step.values[1:]
    return Compared(steps, error, standard_error, float(np.mean(growth)), diverged)


def antithetic(model: qm.QuadraticModel) -> Iterator[qm.QuadraticModel]:
    """Return a model and the one of the opposite curvature, which is as likely."""
    yield model
    opposite = -np.asarray(model.curvature)
    yield qm.QuadraticModel(model.residual, model.jacobian, opposite, model.curvature_law)


def control(
    model: qm.QuadraticModel, sgd: qm.SGD, s: Setting, replicas: int, seed: int, draw: int
) -> Array:
    """Return what the linear model's runs on the same batches are off by from their mean.

    With axes (replica, step, control).
    """
    linear = qm.QuadraticModel(model.residual, model.jacobian)
    options: dict[str, Any] = {
        "record_every": s.record_every, "observables": CONTROLS, "threads": 1, "model_index": draw,
    }  # fmt: skip
    same = qm.simulate(linear, sgd, s.steps, replicas=replicas, seed=seed, **options)
    # The mean loss is known exactly; for that of the distance many other runs stand.
    many = qm.simulate(linear, sgd, s.steps, replicas=16 * replicas, seed=seed + 2**32, **options)
    exact = qm.predict(linear, sgd, s.steps, record_every=s.record_every)
    means = {"loss": exact.loss, "squared_distance": many.squared_distance.mean("replica")}
    relative = [same[name].values[:, 1:] / means[name].values[1:] - 1 for name in CONTROLS]
    return np.stack(relative, axis=-1)


def adjusted(values: Array, controls: Array) -> Array:
    """Return values (draw, replica, step) less what regression on the controls explains.

    The regression is within draws, one per step.
    """
    found = values.copy()
    for step in range(values.shape[2]):
        x, y = controls[:, :, step], values[:, :, step]
        dx, dy = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        wide = dx.reshape(-1, dx.shape[-1])
        if not np.isfinite(dy).all() or np.abs(wide).max() < 1e-9:
            continue
        found[:, :, step] -= x @ np.linalg.lstsq(wide, dy.ravel(), rcond=None)[0]
    return found


def show(title: str, one: Compared) -> list[str]:
    """Print one comparison; return the claims that fail."""
    words = f"{title}; trace x {one.growth:.3f}"
    print(f"\n{words}" + (f"; {one.diverged} runs diverged" if one.diverged else ""))
    print(f"{'step':>12} " + " ".join(f"{int(step):>16}" for step in one.steps))
    for name, word in NAMES.items():
        percent = 1.0 if name == "noise_kernel_norm_finite" else 100.0
        cells = (
            f"{percent * e:+9.4f}±{percent * d:.4f}"
            if percent == 1.0
            else f"{100 * e:+9.2f}±{100 * d:.2f}"
            for e, d in zip(one.error[name], one.standard_error[name], strict=True)
        )
        print(f"{word:>12} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)
    failed = []
    loss, of_loss = np.abs(one.error["loss"]), one.standard_error["loss"]
    if not (loss <= SIGMAS * of_loss).all():
        failed.append(f"{title}: loss {SIGMAS:.0f} standard errors")
    if not (loss <= LOSS).all():
        failed.append(f"{title}: loss {LOSS:.0%}")
    if not (np.abs(one.error["ntk_trace"]) <= TRACE).all():
        failed.append(f"{title}: trace {TRACE:.1%}")
    return failed


def sizes(draws: int, replicas: int, seed: int) -> list[str]:
    """Print errors at growing sizes and whether they shrink as 1/D; return the claims that fail."""
    found: dict[int, Compared] = {}
    failed: list[str] = []
    for n_data in SIZES:
        s = Setting("", n_data, 2 * n_data, n_data // 10)
        # So that errors in units of 1/D are known about equally well at every size.
        count = int(draws * (SIZES[-1] / n_data) ** 1.5)
        found[n_data] = compare(s, count, replicas, seed)
        missed = show(f"D = {n_data}, {count} draws of {replicas} runs", found[n_data])
        failed += missed if n_data == SIZES[-1] else []
    print(
        "\nD times the error (D^(2/3) of lambda_max), if the same at every size; probability of its"
    )
    print("chi-squared")
    for name, word in NAMES.items():
        cells, data = [], np.array(SIZES, float) ** POWERS.get(name, 1.0)
        for k, step in enumerate(found[SIZES[-1]].steps):
            scaled = data * [found[n].error[name][k] for n in SIZES]
            error = data * [found[n].standard_error[name][k] for n in SIZES]
            weight = error**-2 / np.sum(error**-2)
            mean = weight @ scaled
            likely = stats.chi2.sf(np.sum(((scaled - mean) / error) ** 2), len(SIZES) - 1)
            cells.append(f"{mean:+8.2f}±{np.sum(error**-2) ** -0.5:.2f} ({likely:.3f})")
            if likely < IMPROBABLE:
                failed.append(f"{word} at step {int(step)}: does not shrink so")
        print(f"{word:>12} " + " ".join(f"{cell:>22}" for cell in cells))
    return failed


SETTINGS = (
    Setting("momentum 0.9", options={"momentum": 0.9}),
    Setting("Nesterov 0.8", options={"momentum": 0.8, "nesterov": True}),
    Setting("weight decay 0.05", options={"weight_decay": 0.05}),
    Setting("B = 1", batch=1),
    Setting("B = D, half the edge", batch=200),
    Setting("P = 1.5 D", n_params=300),
    Setting("power law k^-0.5", spectrum="k^-0.5"),
    Setting("power law k^-0.7, 16 groups", spectrum="k^-0.7", strength=0.002, groups=16),
    # Points are so uneven that their mean is not enough: shown for comparison.
    Setting("the same, one group", spectrum="k^-0.7", strength=0.002, claimed=False),
    Setting("C proportional to the NTK", aligned=True),
    Setting("P = 0.75 D", n_params=150),
    Setting("with replacement", options={"sampling": "with_replacement"}),
    Setting("bernoulli", options={"sampling": "bernoulli"}),
)


def settings(draws: int, replicas: int, seed: int) -> list[str]:
    """Print errors at other settings; return the claims that fail."""
    failed = []
    for s in SETTINGS:
        # Without batch noise, runs of one model are the same.
        runs = 1 if s.batch == s.n_data else replicas
        one = compare(s, draws if runs > 1 else 2 * draws, runs, seed)
        missed = show(f"D = {s.n_data}, P = {s.n_params}, {s.words}", one)
        failed += missed if s.claimed else []
    return failed


def drawn(seed: int, number: int) -> Setting:
    """Draw spectrum, P/D, batch size, optimizer, scheme, curvature and K at the start."""
    rng = np.random.default_rng([seed, number])
    spectrum = str(rng.choice(["spread", "k^-0.5"]))
    options: dict[str, Any] = {
        "sampling": str(rng.choice(["without_replacement", "with_replacement", "bernoulli"]))
    }
    if rng.random() < 0.5:
        options |= {"momentum": float(rng.uniform(-0.3, 0.9)), "nesterov": bool(rng.integers(2))}
    if rng.random() < 0.3:
        options["weight_decay"] = float(rng.uniform(0, 0.1))
    n_params = int(200 * rng.uniform(0.8, 3))
    batch = int(np.exp(rng.uniform(0, np.log(100))))
    strength = float(np.exp(rng.uniform(np.log(0.005), np.log(0.1))))
    start = float(rng.uniform(0.2, 0.6))
    aligned = bool(rng.integers(2))
    words = (
        f"{spectrum}, B {batch}, q^2 {strength:.3f}, K {start:.2f}, aligned {aligned}, {options}"
    )
    return Setting(
        words, 200, n_params, batch, spectrum, strength, start, aligned, options, record_every=20
    )


def at_random(draws: int, replicas: int, seed: int) -> list[str]:
    """Print errors at settings drawn at random; return the claims that fail."""
    failed = []
    for number in range(RANDOM):
        s = drawn(seed, number)
        failed += show(f"{number}: P = {s.n_params}, {s.words}", compare(s, draws, replicas, seed))
    print(
        f"\n{RANDOM} random settings, {len({line.split(':')[0] for line in failed})} with failures"
    )
    return failed


STABILISING = Setting(
    "k^-0.5, C proportional to the NTK", 300, 600, 6, "k^-0.5", 0.4, 0.3, True, {}, 500, 40
)
STABILISATIONS = (
    STABILISING,
    replace(STABILISING, strength=1.5),
    replace(STABILISING, strength=3.0),
    Setting(
        "spread, momentum 0.5, C proportional to the NTK", 300, 600, 12, "spread", 0.25, 0.4, True,
        {"momentum": 0.5}, 500, 40,
    ),
)  # fmt: skip
# Many modes so slow that some are not done after 20,000 steps.
LONG = Setting(
    "x^2, C proportional to the NTK", 150, 300, 8, "x^2", 0.05, 0.3, True, {}, 20_000, 2_000,
    memory=60,
)  # fmt: skip
LONGEST = (LONG, replace(LONG, strength=0.2))


def stabilisation(draws: int, replicas: int, seed: int) -> list[str]:
    """Print K along runs that approach the stochastic edge; return the claims that fail."""
    return _stabilisation(STABILISATIONS, draws, replicas, seed)


def long_runs(draws: int, replicas: int, seed: int) -> list[str]:
    """Print K along runs of 20,000 steps; return the claims that fail."""
    return _stabilisation(LONGEST, draws, replicas, seed)


def _stabilisation(settings: Sequence[Setting], draws: int, replicas: int, seed: int) -> list[str]:
    failed = []
    for s in settings:
        sgd = s.sgd()
        predicted, simulated = [], []
        for draw in range(draws):
            model = s.model(1000 * seed + draw)
            theory = qm.mean_field(
                model, sgd, s.steps, record_every=s.record_every, memory=s.memory
            )
            runs = qm.simulate(
                model, sgd, s.steps, replicas=replicas, seed=seed, model_index=draw,
                record_every=s.record_every, precision="mixed", threads=1,
            )  # fmt: skip
            predicted.append(theory)
            simulated.append(runs)
        title = f"D {s.n_data}, P {s.n_params}, B {s.batch}, {s.words}, q^2 {s.strength}"
        failed += show_stabilisation(title, predicted, simulated)
    return failed


def show_stabilisation(
    title: str, predicted: list[xr.Dataset], simulated: list[xr.Dataset]
) -> list[str]:
    """Print K, trace and loss of draws; return the claims that fail."""
    diverged = sum(int((runs.divergence_step >= 0).sum()) for runs in simulated)
    total = sum(runs.sizes["replica"] for runs in simulated)
    print(f"\n{title}; {diverged} of {total} runs diverged")
    steps = simulated[0].step.values
    print(f"{'step':>6} {'K simulated':>16} {'K predicted':>12} {'trace growth':>16} {'loss':>24}")
    worst = 0.0
    for k, step in enumerate(steps):
        cells = {}
        for name in ("noise_kernel_norm_finite", "ntk_trace", "loss"):
            start = np.array([float(t[name][0]) for t in predicted]) if name == "ntk_trace" else 1.0
            # Of the runs that go on: K of one that has diverged is not a number.
            of_draws = np.array([
                np.nanmean(np.where(np.isfinite(r[name][:, k]), r[name][:, k], np.nan))
                for r in simulated
            ]) / start  # fmt: skip
            theory = float(np.mean(np.array([float(t[name][k]) for t in predicted]) / start))
            error = of_draws.std(ddof=1) / len(of_draws) ** 0.5
            cells[name] = (float(of_draws.mean()), float(error), theory)
        norm, trace, loss = cells.values()
        worst = max(worst, abs(norm[0] - norm[2])) if np.isfinite(norm[2]) else np.inf
        print(
            f"{int(step):6d} {norm[0]:9.4f}±{norm[1]:.4f} {norm[2]:12.4f} "
            f"{trace[0]:8.3f}/{trace[2]:.3f} {loss[0]:10.3g}±{loss[1]:.1g} / {loss[2]:.3g}",
            flush=True,
        )
    print(f"largest difference of K: {worst:.4f}", flush=True)
    return [] if worst <= NORM else [f"{title}: K off by {worst:.3f}"]


PARTS = {
    "sizes": sizes, "settings": settings, "random": at_random, "stabilisation": stabilisation,
    "long": long_runs,
}  # fmt: skip


def main() -> int:
    """Print the tables; 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("errors in percent, of simulation over theory; of K the difference")
    failed = []
    for name in asked.parts or PARTS:
        failed += PARTS[name](asked.draws, asked.replicas, asked.seed)
    print("\n" + ("\n".join(["what fails:", *failed]) if failed else "every claim holds"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
