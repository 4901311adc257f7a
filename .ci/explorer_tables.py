"""Tabulate the edge that the explorer's page can't compute itself, or try the table.

The nonlinear edge (mean-field theory, independent curvature, random residual) as a share of the
linear model's stochastic edge, for plain SGD. Without arguments: tabulate them for
the explorer's spectra, and write quadmodel/explorer/tables.json (some 20 minutes on one core). With
--check N: at N random settings in between, momentum, Nesterov, weight decay and sampling schemes
included, print interpolated and computed edge and how far they are apart; exit with 1 if those of
plain SGD are further apart than is claimed.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

import quadmodel as qm
from quadmodel.explorer._spectra import FAMILIES, N_DATA
from quadmodel.explorer._tables import CURVATURE_STRENGTHS, TABULATED_SIZES, share

FILE = Path("quadmodel/explorer/tables.json")
PRECISION = 0.01
# Largest error of an interpolated edge of plain SGD.
CLAIMED = 0.05


def nonlinear(family, parameter, sizes, strength, sgd):
    """Return the nonlinear edge over the linear model's."""
    lam, n_params = family.eigenvalues(parameter), family.n_params(parameter)
    found = qm.mean_field_edge(
        lam, sizes, sgd, curvature=strength / math.sqrt(n_params), residual=1.0, n_params=n_params,
        bins=16, rtol=PRECISION,
    ).critical_learning_rate.values  # fmt: skip
    return [float(f / linear(lam, size, sgd)) for size, f in zip(sizes, found, strict=True)]


def linear(lam, size, sgd):
    """Return the learning rate at which the linear model's finite K is 1."""
    return qm.critical_learning_rate(lam, at_size(sgd, size))


def at_size(sgd, size):
    """Return an SGD at another batch size."""
    return qm.SGD(**{**sgd.spec(), "batch_size": int(size)})


def rounded(values):
    """Return shares as they are written; None where there is no edge, or no prediction."""
    return [round(v, 4) if math.isfinite(v) else None for v in values]


def write():
    """Tabulate."""
    plain = qm.SGD(1.0, 1)
    table = {}
    for name, family in FAMILIES.items():
        table[name] = []
        for parameter in family.tabulated:
            found = [
                rounded(nonlinear(family, parameter, TABULATED_SIZES, strength, plain))
                for strength in CURVATURE_STRENGTHS[1:]
            ]
            table[name].append(found)
            print(name, parameter, found, flush=True)
    text = ",\n".join(f' "{name}": [\n{_lines(shares)}\n ]' for name, shares in table.items())
    FILE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _lines(shares):
    """Return a spectrum's shares as JSON: a block per parameter, a line per curvature strength."""
    rows = ["  [\n" + ",\n".join(f"   {json.dumps(r)}" for r in rows) + "\n  ]" for rows in shares]
    return ",\n".join(rows)


def check(count, seed):
    """Compare at random settings."""
    rng = np.random.default_rng(seed)
    errors = {"plain": [], "other": []}
    for n in range(count):
        family = list(FAMILIES.values())[n % len(FAMILIES)]
        parameter = float(rng.choice(family.values))
        size = int(np.rint(np.exp(rng.uniform(0, math.log(N_DATA)))))
        strength = float(np.round(rng.uniform(1, CURVATURE_STRENGTHS[-1]), 1))
        kind = ("plain", "other")[n // len(FAMILIES) % 2]
        sgd = qm.SGD(1.0, size)
        if kind == "other":
            sgd = qm.SGD(
                1.0, size, float(rng.uniform(0.2, 0.9)), bool(rng.integers(2)),
                float(rng.choice([0.0, 0.05])), str(rng.choice(["with_replacement", "bernoulli"])),
            )  # fmt: skip
        expected = share(family, parameter, size, strength)
        (found,) = nonlinear(family, parameter, [size], strength, sgd)
        error = expected / found - 1
        errors[kind].append(error)
        print(
            f"{family.name:17}{parameter:5.2f} B={size:<3} q={strength:3.1f} "
            f"mu={sgd.momentum:.2f} {'nesterov' if sgd.nesterov else '':8} "
            f"rho={sgd.weight_decay:.2f} {sgd.sampling:19} "
            f"table {expected:.3f} computed {found:.3f} {error:+.1%}",
            flush=True,
        )
    most = {}
    for kind, values in errors.items():
        away = np.abs([v for v in values if math.isfinite(v)])
        most[kind] = away.max()
        print(
            f"{kind}: {away.size} of {len(values)}, mean {away.mean():.1%}, most {most[kind]:.1%}"
        )
    if most["plain"] > CLAIMED:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=int, metavar="N", help="try N random settings")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.check is None:
        write()
    else:
        check(options.check, options.seed)
