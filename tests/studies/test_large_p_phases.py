"""large_p_phase_diagram(): beside diagrams of many parameters, layout, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import psutil
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.large_p import growth
from quadmodel.studies import _diagram
from quadmodel.studies import large_p_phases as module
from tests.assertions import assert_same_bits

N_PARAMS = 600
SPECTRUM = 1 / np.arange(1, 13)
ENSEMBLE = qm.Ensemble(12, N_PARAMS, SPECTRUM, curvature=1.0 / N_PARAMS**0.5)
SMALL = qm.Ensemble(6, 40, 1 / np.arange(1, 7), curvature=0.1)
MOMENTUM = qm.SGD(1.0, 1, momentum=0.3, nesterov=True, weight_decay=0.05, sampling="bernoulli")
SIGNS = ("mean_growth", "typical_growth")


def diagram(
    source=SMALL,
    rates=(0.1, 0.5, 1.5, 4.0),
    sizes=(1, 2, 6),
    study=qm.large_p_phase_diagram,
    **options,
):
    defaults = {"steps": 64, "replicas": 4, "refine": 2, "seed": 1}
    return study(source, rates, sizes, **{**defaults, **options})


# ---- beside a simulation


@pytest.fixture(scope="module")
def direct():
    """Six hundred parameters; all batches are those of the limit."""
    return wide(study=qm.phase_diagram)


@pytest.fixture(scope="module")
def limits():
    return {order: wide(truncation_order=order) for order in (1, 2, 3)}


def wide(**options):
    return diagram(ENSEMBLE, 10, (1, 3, 12), steps=400, replicas=8, refine=6, **options)


def critical(grid):
    found = qm.critical_noise_kernel_norm(grid)
    low, high = (float(found[f"pooled_noise_kernel_norm_{end}"]) for end in ("low", "high"))
    return float(found.pooled_noise_kernel_norm), (high - low) / (2 * 1.96)


def test_predictions_are_those_of_the_start(direct, limits):
    for name in ("noise_kernel_norm", "critical_learning_rate", "predicted_phase"):
        np.testing.assert_array_equal(limits[2][name], direct[name])
    np.testing.assert_array_equal(limits[2].learning_rate, direct.learning_rate)


def test_growth_has_the_same_signs(direct, limits):
    """But where it turns; the mean's hangs on its fastest run."""
    for name in SIGNS:
        differs = {n: int(((g[name] > 0) != (direct[name] > 0)).sum()) for n, g in limits.items()}
        assert differs[3] <= 1
        assert differs[3] <= differs[2] <= differs[1] <= 4
    slow = limits[3].isel(learning_rate=0), direct.isel(learning_rate=0)
    np.testing.assert_allclose(*(grid.typical_growth for grid in slow), rtol=0.3)


@pytest.mark.statistical
def test_critical_noise_kernel_norm(direct, limits):
    """Within five standard errors and the scatter of curvature draws; order 1 is farther off."""
    wanted, error = critical(direct)
    found, gap, bound = {}, {}, {}
    for order, grid in limits.items():
        found[order], its_error = critical(grid)
        gap[order] = abs(found[order] - wanted)
        bound[order] = 5 * math.hypot(error, its_error) + 2 * wanted / N_PARAMS**0.5
    assert gap[3] < bound[3]
    assert gap[1] > bound[1]
    assert abs(found[3] - found[2]) < 0.5 * abs(found[2] - found[1])
    assert wanted < 0.9  # the curvature lowers it: a linear model's is 1


def test_a_grid_point_is_that_of_large_p_limit():
    grid = diagram(replicas=3, refine=0, steps=64)
    flat = [(rate, size) for rate in grid.learning_rate.values for size in (1, 2, 6)]
    for n, (rate, size) in enumerate(flat):
        alone = qm.large_p_limit(
            SMALL, qm.SGD(rate, size), 64, replicas=3 * len(flat), seed=1, observables=["loss"]
        ).isel(replica=slice(3 * n, 3 * n + 3))
        last = alone.loss.sel(step=64).values
        point = grid.sel(learning_rate=rate, batch_size=size)
        diverged = np.mean(~(last <= 10 * float(alone.loss[0, 0])))
        assert float(point.fraction_diverged) == pytest.approx(diverged)
        np.testing.assert_allclose(point.final_loss, np.median(last), rtol=1e-12, atol=1e-20)


def test_momentum_decay_and_correlated_curvature():
    law = qm.curvature.KroneckerCurvature(np.diag([1.0, 2.0, 0.5, 1.0, 1.0, 0.0]), scale=0.02)
    source = replace(SMALL, curvature=law, n_params=200)
    options = {"sgd": MOMENTUM, "steps": 200, "rates": (0.05, 0.2, 3.0, 8.0)}
    limit, wanted = diagram(source, **options), diagram(source, study=qm.phase_diagram, **options)
    for name in SIGNS:
        np.testing.assert_array_equal(limit[name] > 0, wanted[name] > 0)
    assert limit.attrs["curvature_strength"] == pytest.approx(0.02 * 200**0.5)


def test_full_batches_are_followed_once():
    grid = diagram(replicas=5, refine=0)
    full = grid.sel(batch_size=6)
    assert set(np.unique(full.fraction_diverged)) <= {0.0, 1.0}
    np.testing.assert_allclose(full.mean_growth_standard_error, 0, atol=1e-15)
    assert grid.attrs["replica_steps"] == 64 * 4 * (5 + 5 + 1)


def test_diverged_and_converged_replicas_are_frozen(monkeypatch):
    steps = []
    advance = growth.advance

    def count(system, update, replicas, rows, step, n_steps):
        steps.append((update.learning_rate, n_steps))
        advance(system, update, replicas, rows, step, n_steps)

    monkeypatch.setattr(growth, "advance", count)
    one = qm.Ensemble(2, 40, [1.0, 1.0], curvature=1e-3)
    grid = diagram(one, (0.1, 0.9, 30.0), [2], steps=800, refine=0)
    assert [sum(n for r, n in steps if r == rate) for rate in (0.1, 0.9, 30.0)] == [300, 100, 100]
    assert np.isposinf(grid.final_loss[2])
    assert (grid.mean_growth[:2] < 0).all()
    assert float(grid.mean_growth[2, 0]) > 1


# ---- layout


@pytest.mark.parametrize("given", [{}, {"truncation_order": 1}, {"truncation_order": 3}], ids=str)
def test_layout(given):
    grid, plain = diagram(**given), diagram(study=qm.phase_diagram)
    assert set(grid.variables) == set(plain.variables)
    for name in grid.variables:
        assert grid[name].dims == plain[name].dims
        assert grid[name].attrs == plain[name].attrs
        assert grid[name].dtype.kind == plain[name].dtype.kind
    assert "n_params" not in grid.attrs
    assert grid.attrs["limit"] == "large-p"
    assert grid.attrs["truncation_order"] == given.get("truncation_order", 2)
    assert grid.attrs["curvature_strength"] == pytest.approx(0.1 * 40**0.5)
    special = {"limit", "truncation_order", "curvature_strength"}
    assert set(grid.attrs) == (set(plain.attrs) - {"n_params", "curvature_hash"}) | special
    for name in set(grid.attrs) - special - {"replica_steps"}:
        assert grid.attrs[name] == plain.attrs[name]


def test_parameters_are_named_where_the_start_depends_on_them():
    gaussian = diagram(replace(SMALL, jacobian=qm.spectra.IndependentGaussian()))
    assert gaussian.attrs["jacobian"] == "IndependentGaussian(scale=1.0) with n_params=40"


def test_parameters_matter_by_the_strength_only():
    """The rest of the start is drawn the same."""
    many = replace(SMALL, n_params=160, curvature=0.05)
    one, two = diagram(), diagram(many)
    for name in SIGNS:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-6)


def test_netcdf_round_trip(tmp_path):
    grid = diagram()
    grid.to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "grid.nc", engine="h5netcdf") as back:
        assert back.attrs == grid.attrs
        np.testing.assert_array_equal(back.mean_growth, grid.mean_growth)


def test_picture_names_the_limit():
    mpl.use("agg")
    import matplotlib.pyplot as plt

    ax = qm.plot.phase_diagram(diagram())[0].axes
    title = ax.get_title().replace("\n", " ")
    assert title.startswith("6 data points, large-P limit (order 2), ")
    assert "q = 0.632, " in title
    plt.close("all")


def test_sources():
    model = SMALL.sample(1)
    law_only = qm.QuadraticModel(model.residual, model.jacobian, None, model.curvature_law)
    for source in (model, law_only):
        grid = diagram(source)
        for name in (*SIGNS, "final_loss", "noise_kernel_norm"):
            np.testing.assert_allclose(grid[name], diagram()[name], rtol=1e-6, atol=1e-9)
    # A draw of the curvature would take 640 GB.
    many = qm.Ensemble(2, 200_000, jacobian=[1.0, 0.5], curvature=0.5 / 200_000**0.5)
    assert np.isfinite(diagram(many, sizes=(1, 2)).mean_growth).all()


# ---- what the result depends on


def test_same_bits():
    one = diagram(sgd=MOMENTUM)
    for threads in (1, 2, 3):
        assert_same_bits(one, diagram(sgd=MOMENTUM, threads=threads))


def test_pieces_of_work_do_not_matter(monkeypatch):
    one = diagram()
    monkeypatch.setattr(growth, "_PIECES", 3)
    assert_same_bits(one, diagram())


def test_batches_depend_on_the_seed():
    model = SMALL.sample(1)
    one, two = diagram(model), diagram(model, seed=2)
    np.testing.assert_array_equal(one.noise_kernel_norm, two.noise_kernel_norm)
    noisy = slice(0, 2)
    assert (one.final_loss[0, noisy] != two.final_loss[0, noisy]).all()


def test_progress_changes_nothing(capsys):
    assert_same_bits(diagram(), diagram(progress=True))
    assert capsys.readouterr() == ("", "")


# ---- refusals

LowRank, Kronecker = qm.curvature.RandomLowRankCurvature, qm.curvature.KroneckerCurvature
DRAWN = SMALL.sample(0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truncation_order": 0}, "^truncation_order must be an integer between 1 and 1000, got 0"),
        ({"truncation_order": 1.5}, "^truncation_order must be an integer"),
        ({"truncation_order": 10**9}, "^truncation_order must be an integer"),
        ({"source": replace(SMALL, curvature=None)}, "^source must have curvature for the large-P"),
        ({"source": np.eye(6)}, "^source must have curvature for the large-P"),
        (
            {"source": qm.QuadraticModel(DRAWN.residual, DRAWN.jacobian, DRAWN.curvature)},
            "^source must have a curvature_law for the large-P limit, got a model without$",
        ),
        (
            {"source": replace(SMALL, curvature=LowRank(2, 0.1))},
            "^curvature must have a Kronecker covariance",
        ),
        (
            {"source": replace(SMALL, curvature=Kronecker(None, np.diag(np.arange(1.0, 41.0))))},
            "^curvature must have parameter_covariance None or the identity for the large-P",
        ),
    ],
    ids=str,
)
def test_refusals(changed, message, no_work):
    with pytest.raises(InputError, match=message) as refused:
        diagram(**changed)
    assert "\n" not in str(refused.value)


@pytest.fixture
def no_work(monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(_diagram.Diagram, "run", work)
    monkeypatch.setattr(module, "measure_growth_in_limit", work)
    return work


def test_refuses_what_does_not_fit_in_memory(no_work, monkeypatch):
    monkeypatch.setattr(qm.Ensemble, "sample", no_work)  # nor is a model drawn
    law = qm.spectra.PowerLaw(1.0)
    for source, options in (
        (replace(SMALL, n_params=40_000), {"truncation_order": 400}),
        (replace(SMALL, n_data=20_000, n_params=40_000, jacobian=law), {}),
    ):
        with pytest.raises(MemoryError, match=r"^the large-P limit needs .* are free$"):
            diagram(source, **options)
    with pytest.raises(MemoryError, match=r"^the large-P limit needs .* are free$"):
        diagram(DRAWN, truncation_order=400)
    monkeypatch.undo()
    one_replica = 8 * 6 * (1 + 6 + 36)
    monkeypatch.setattr(_diagram.Diagram, "run", no_work)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=40_000 + 20 * one_replica)
    )
    with pytest.raises(MemoryError, match=r"^the large-P limit needs .* are free$"):
        diagram(threads=100)


def test_memory_is_that_of_one_replica_per_thread(monkeypatch):
    free = SimpleNamespace(available=200_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    found = diagram(threads=1, replicas=20)  # together they take over a megabyte
    assert found.attrs["replicas"] == 20
