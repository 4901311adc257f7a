"""The exact noise kernel norm, eigendecomposition included."""

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import quadmodel as qm
from benchmarks import machine
from benchmarks.report import Result, Table, show
from benchmarks.timing import Settings, Spread, alternate, seconds_of

CRITICAL_AT = 2000
# Takes minutes, and 5 GB: once, without the eigendecomposition beside it.
_LARGEST = 10_000


def exact(settings: Settings) -> Result:
    """Time K from the NTK alone, and the learning rate where it is 1."""
    result, rows = Result(), []
    rounds = 1 if settings.quick else min(settings.rounds, 3)
    warm = np.diag(np.linspace(1.0, 2.0, 200))
    qm.noise_kernel_norm(warm, qm.SGD(0.1, 20), norm="exact")
    for n_data in (2000,) if settings.quick else (1000, 2000, 4000, _LARGEST):
        rng = np.random.default_rng(0)
        jacobian = rng.standard_normal((n_data, 2 * n_data)) / n_data**0.5
        ntk = jacobian @ jacobian.T
        sgd = qm.SGD(1.0, n_data // 10)
        sgd = qm.SGD(
            0.5 * qm.critical_learning_rate(np.diag(ntk), sgd, norm="paper"), sgd.batch_size
        )
        jobs: dict[str, Any] = {
            "K, exact": lambda ntk=ntk, sgd=sgd: qm.noise_kernel_norm(ntk, sgd, norm="exact"),
        }
        if n_data < _LARGEST:
            jobs["eigendecomposition alone (NumPy)"] = lambda ntk=ntk: np.linalg.eigh(ntk)
        if n_data == CRITICAL_AT and not settings.quick:
            jobs["critical learning rate, exact"] = lambda ntk=ntk, sgd=sgd: (
                qm.critical_learning_rate(ntk, sgd, norm="exact")
            )
        times: dict[str, list[float]] = {name: [] for name in jobs}
        with threadpool_limits(limits=settings.threads, user_api="blas"):
            for _ in range(rounds if n_data < _LARGEST else 1):
                for name, job in jobs.items():
                    times[name].append(seconds_of(job))
        spreads = {name: Spread.of(values) for name, values in times.items()}
        rows += [(name, str(n_data), show(spread) + " s") for name, spread in spreads.items()]
        result.measures[f"exact.{n_data}"] = spreads["K, exact"]
        if n_data == _LARGEST:
            growth = spreads["K, exact"].median / result.measures["exact.4000"].median
            result.measures["exact.growth"] = Spread.of([growth])
            continue
        # What nothing that starts from the NTK escapes, and what one more product with G takes.
        peak = alternate(
            [machine.square_product("float64", settings.threads)], Settings(1, 0.2, 1)
        )[0]
        product = 4.0 * n_data**3 / peak.rate.median
        alone = spreads["eigendecomposition alone (NumPy)"].median
        words = f"eigendecomposition alone {alone:.2g} s, a product with G {product:.2g} s at peak"
        result.ceilings[f"exact.{n_data}"] = words
        if "critical learning rate, exact" in jobs:
            result.measures["exact.critical"] = spreads["critical learning rate, exact"]
            result.ceilings["exact.critical"] = words
    note = "From the NTK as a matrix, B = D/10, at half the paper's critical learning rate."
    result.tables.append(Table("Exact noise kernel norm", ("what", "D", "seconds"), rows, note))
    return result
