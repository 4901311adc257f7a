"""The large-P limit against what direct simulation would cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import quadmodel as qm
from benchmarks import machine
from benchmarks.report import Result, Table, number, show
from benchmarks.timing import Program, Settings, Spread, alternate

# Truncation order, data points, batch size: the goals' sizes, and those of the direct run that is
# too large.
_SIZES = ((1, 1000, 10), (2, 100, 10), (3, 30, 5), (1, 200, 20), (2, 200, 20))
_DIRECT_PARAMS, _DIRECT = 4000, (200, 20)


def large_p(settings: Settings) -> Result:
    """Time one replica, loss alone; direct steps are taken at the peak of a matrix product."""
    result, rows = Result(), []
    programs = [_program(*size, settings) for size in _SIZES]
    peak = machine.square_product("float64", settings.threads)
    *timings, product = alternate([*programs, peak], settings)
    result.keep("Large-P limit", timings)
    operations = 2.0 * _DIRECT[1] * _DIRECT_PARAMS**2
    for (order, n_data, batch_size), timing in zip(_SIZES, timings, strict=True):
        key, ratio = f"large-p.{order}.{n_data}", ""
        result.measures[key] = timing.rate
        if (n_data, batch_size) == _DIRECT:
            times = Spread.of(timing.rates * operations / product.rates)
            result.measures[key], ratio = times, show(times)
        rows.append((str(order), str(n_data), str(batch_size), show(timing.rate), ratio))
    direct = number(float(np.median(product.rates)) / operations)
    note = (
        f"Direct: D, B = {_DIRECT}, P = {_DIRECT_PARAMS}, 2 B P^2 operations per step at the GEMM "
        f"peak, {direct} steps/s; its Q would need 25.6 GB."
    )
    columns = ("truncation order", "D", "B", "steps/s", "over direct at the GEMM peak")
    result.tables.append(Table("Large-P limit, one replica", columns, rows, note))
    return result


def _program(order: int, n_data: int, batch_size: int, settings: Settings) -> Program:
    model = qm.Ensemble(n_data, 2 * n_data, jacobian=1 / np.arange(1, n_data + 1)).sample(0)
    law = qm.curvature.IndependentCurvature(0.3 / model.n_params**0.5)
    curved = replace(model, curvature_law=law)
    sgd = qm.SGD(1.0, batch_size)
    sgd = qm.SGD(0.2 * qm.critical_learning_rate(model.ntk(), sgd, norm="finite"), batch_size)
    steps = 1000

    def run() -> None:
        qm.large_p_limit(
            curved,
            sgd,
            steps,
            truncation_order=order,
            record_every=steps,
            observables=["loss"],
            threads=settings.threads,
        )

    return Program(f"order {order}, D = {n_data}", "float64", run, float(steps))
