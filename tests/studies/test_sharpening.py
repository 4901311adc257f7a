"""sharpening_diagram(): layout, its theory, its simulation, both side by side, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import xarray as xr
from scipy.stats import t as student

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies import sharpening as module
from tests.assertions import assert_same_bits

FAMILY_WISE_ERROR = 1e-6
SCALE = 0.002
ENSEMBLE = qm.Ensemble(8, 40, qm.spectra.PowerLaw(1.0), curvature=SCALE)
EDGE = qm.edge_of_stability(ENSEMBLE.sample(0).ntk(), qm.SGD(1.0, 1))
RATES, SIZES = (0.1 * EDGE, 0.25 * EDGE), (1, 2, 8)
OPTIMIZERS = {
    "plain": qm.SGD(1.0, 1),
    "Nesterov": qm.SGD(
        1.0, 1, momentum=0.5, nesterov=True, weight_decay=0.1, sampling="with_replacement"
    ),
}
PLANE = ("learning_rate", "batch_size")
GROWTHS = ("predicted_growth", "simulated_growth", "standard_error", "conservative")


def diagram(source=ENSEMBLE, rates=RATES, sizes=SIZES, **options):
    return qm.sharpening_diagram(source, rates, sizes, **{"steps": 6, "replicas": 4, **options})


@pytest.fixture(scope="module")
def grid():
    return diagram(seed=2)


# ---- layout


def test_layout(grid):
    assert {name: grid[name].dims for name in grid.data_vars} == {
        **dict.fromkeys(GROWTHS, PLANE),
        "relative_error": PLANE,
        "valid": PLANE,
        "critical_learning_rate": ("norm", "batch_size"),
        "edge_of_stability": ("batch_size",),
    }
    assert grid.learning_rate.values.tolist() == list(RATES)
    assert grid.batch_size.values.tolist() == list(SIZES)
    assert grid.norm.values.tolist() == ["paper", "finite", "exact"]
    for name in (*grid.data_vars, *PLANE):
        assert grid[name].attrs["long_name"]
    for name in GROWTHS:
        assert grid[name].attrs["units"] == "1 (share of the initial eigenvalue)"
    assert grid.relative_error.attrs["units"] == "1"
    assert grid.valid.dtype == bool
    for name in ("learning_rate", "critical_learning_rate", "edge_of_stability"):
        assert grid[name].attrs["units"] == "1 / NTK eigenvalue"
    assert grid.batch_size.attrs["units"] == "data points"
    assert grid.attrs == {
        "kind": "sharpening diagram", "steps": 6, "replicas": 4, "batch_sequences": 2, "seed": "2",
        "curvature": f"IndependentCurvature(scale={SCALE})", "valid_below": 0.1,
        "quadmodel_version": qm.__version__, "n_data": 8, "n_params": 40,
        "source_hash": ENSEMBLE.sample(2).source_hash,
        "momentum": 0.0, "nesterov": 0, "weight_decay": 0.0, "sampling": "without_replacement",
        **{name: ENSEMBLE.spec()[name] for name in ("jacobian", "eigenvectors", "residual")},
    }  # fmt: skip


def test_counts_are_spread_in_the_logarithm():
    found = diagram(rates=5, sizes=4, replicas=2, batch_sequences=1)
    np.testing.assert_allclose(found.learning_rate, np.geomspace(EDGE / 20, 0.95 * EDGE, 5))
    assert found.batch_size.values.tolist() == [1, 2, 4, 8]
    assert diagram(rates=1, sizes=20, replicas=2).batch_size.values.tolist() == list(range(1, 9))


def test_values_are_sorted():
    given = diagram(rates=np.array(RATES[::-1]), sizes=np.array([8, 1, 2]), seed=2)
    assert_same_bits(given, diagram(seed=2))


def test_netcdf_round_trip(grid, tmp_path):
    grid.to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "grid.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.drop_vars("norm"), grid.drop_vars("norm"))
        assert back.norm.values.tolist() == grid.norm.values.tolist()
        assert back.attrs == grid.attrs


# ---- what the grid points hold


@pytest.mark.parametrize("template", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_prediction_is_that_of_expected_ntk(template):
    found, model = diagram(sgd=template, seed=2), ENSEMBLE.sample(2)
    largest = np.linalg.eigvalsh(model.ntk())[-1]
    for rate in RATES:
        for size in SIZES:
            sgd = replace(template, learning_rate=rate, batch_size=size)
            last = qm.expected_ntk(model, sgd, 6, record_every=6).isel(step=-1)
            point = found.sel(learning_rate=rate, batch_size=size)
            growth = float(last.ntk_eigenvalue.max()) / largest - 1
            assert float(point.predicted_growth) == pytest.approx(growth, rel=1e-6, abs=1e-12)
            assert float(point.conservative) == pytest.approx(
                float(last.conservative[0]) / largest, rel=1e-9, abs=1e-15
            )
            assert float(point.relative_error) == pytest.approx(
                float(last.relative_error), rel=1e-9
            )
            top = last.isel(mode=int(last.ntk_eigenvalue.argmax("mode")))
            assert bool(point.valid) == bool(top.eigenvalue_valid)
    for name in ("momentum", "nesterov", "weight_decay", "sampling"):
        assert found.attrs[name] == template.spec()[name]


@pytest.mark.parametrize("template", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_simulation_is_that_of_sample_ntk(template):
    """Every grid point has the draws and batches that it has alone."""
    found, model = diagram(sgd=template, seed=2, batch_sequences=3), ENSEMBLE.sample(2)
    largest = np.linalg.eigvalsh(model.ntk())[-1]
    for rate in RATES:
        for size in SIZES:
            sgd = replace(template, learning_rate=rate, batch_size=size)
            alone = qm.sample_ntk(
                model,
                sgd,
                6,
                replicas=4,
                batch_sequences=3,
                record_every=6,
                seed=2,
                curvature=SCALE,
            )
            growth = alone.ntk_eigenvalue.values[:, -1, 0] / largest - 1
            point = found.sel(learning_rate=rate, batch_size=size)
            assert float(point.simulated_growth) == pytest.approx(growth.mean(), rel=1e-6)
            assert float(point.standard_error) == pytest.approx(
                growth.std(ddof=1) / math.sqrt(4), rel=1e-6
            )


def test_batch_noise_is_conservative(grid):
    noisy = grid.conservative.sel(batch_size=[1, 2])
    assert (noisy < 0).all()
    assert (noisy.sel(batch_size=1) < noisy.sel(batch_size=2)).all()
    np.testing.assert_allclose(grid.conservative.sel(batch_size=8), 0, atol=1e-18)


@pytest.mark.parametrize("template", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_boundaries(template):
    found = diagram(sgd=template, replicas=2)
    edges = qm.phase_boundaries(ENSEMBLE.sample(0).ntk(), list(SIZES), template)
    for name in ("critical_learning_rate", "edge_of_stability"):
        np.testing.assert_allclose(found[name], edges[name], rtol=1e-12)


def test_source_may_be_a_model_or_an_ensemble(grid):
    described = ("model", "jacobian", "eigenvectors", "residual")

    def measured(found):
        kept = {name: value for name, value in found.attrs.items() if name not in described}
        bare = found.copy()
        bare.attrs = kept
        return bare

    def check(source, **options):
        found = diagram(source, seed=2, **options)
        assert found.attrs["model"] == repr(source)
        assert_same_bits(measured(grid), measured(found))

    model = ENSEMBLE.sample(2)
    check(model)
    check(qm.QuadraticModel(model.residual, model.jacobian), curvature=SCALE)
    # only the law of a model's curvature is used, not its draw
    check(
        qm.QuadraticModel(model.residual, model.jacobian, 5 * model.curvature, model.curvature_law)
    )


def test_given_curvature_overrides_that_of_the_source(grid):
    law = qm.curvature.IndependentCurvature(2 * SCALE)
    for source in (ENSEMBLE, ENSEMBLE.sample(2)):
        found = diagram(source, seed=2, curvature=law)
        assert found.attrs["curvature"] == repr(law)
        # growth is of second order in the curvature
        for name in GROWTHS[:3]:
            np.testing.assert_allclose(found[name], 4 * grid[name], rtol=1e-2)


def test_without_curvature_nothing_grows():
    found = diagram(curvature=0.0)
    for name in GROWTHS:
        np.testing.assert_allclose(found[name], 0, atol=1e-12)


# ---- what the result depends on


def test_same_bits(grid):
    for threads in (1, 2, 3):
        assert_same_bits(grid, diagram(seed=2, threads=threads))


def test_seed():
    model = ENSEMBLE.sample(2)
    one, two = diagram(model, seed=0), diagram(model, seed=2**64 - 1)
    np.testing.assert_array_equal(one.predicted_growth, two.predicted_growth)
    assert (one.simulated_growth != two.simulated_growth).all()
    assert two.attrs["seed"] == str(2**64 - 1)
    assert (diagram(seed=0).predicted_growth != diagram(seed=2).predicted_growth).all()


def test_more_steps_grow_more(grid):
    longer = diagram(seed=2, steps=12).sel(batch_size=8)
    for name in GROWTHS[:2]:
        assert (longer[name] > 1.1 * grid[name].sel(batch_size=8)).all()


def test_progress_changes_nothing(grid, capsys):
    assert_same_bits(grid, diagram(seed=2, progress=True))
    assert capsys.readouterr() == ("", "")


# ---- theory beside simulation


@pytest.fixture(scope="module")
def sampled():
    """Standard errors of 1 to 3 % of the growth; fourth order is far below them."""
    return diagram(ENSEMBLE.sample(0), sizes=(2, 8), steps=12, replicas=600, seed=1)


def disagreeing(sampled, predicted):
    """Grid points whose z-score has a chance below FAMILY_WISE_ERROR over all of them."""
    z = (sampled.simulated_growth - predicted) / sampled.standard_error
    bound = student.isf(FAMILY_WISE_ERROR / 2 / z.size, sampled.attrs["replicas"] - 1)
    return np.abs(z.values) > bound


@pytest.mark.statistical
def test_prediction_agrees_with_simulation(sampled):
    """Four grid points, wrong by chance once in a million; the growth is known to 3 %."""
    assert (sampled.standard_error < 0.03 * sampled.predicted_growth).all()
    assert not disagreeing(sampled, sampled.predicted_growth).any()


@pytest.mark.statistical
@pytest.mark.parametrize(
    "wrong",
    [
        {"curvature": 1.2 * SCALE},
        {"steps": 10},
        {"sgd": qm.SGD(1.0, 1, momentum=0.2)},
        {"sgd": qm.SGD(1.0, 1, weight_decay=0.2)},
    ],
    ids=str,
)
def test_prediction_of_another_setting_does_not(wrong, sampled):
    other = diagram(
        ENSEMBLE.sample(0),
        sizes=(2, 8),
        **{"steps": 12, "replicas": 2, "batch_sequences": 1, **wrong},
    )
    found = disagreeing(sampled, other.predicted_growth)
    assert found.any()
    # more steps than are predicted are hardly seen where training is slow
    assert "steps" in wrong or found.all()


@pytest.mark.statistical
def test_prediction_of_another_batch_size_does_not(sampled):
    swapped = sampled.predicted_growth.isel(batch_size=[1, 0])
    found = disagreeing(sampled, swapped.assign_coords(batch_size=sampled.batch_size))
    assert found[1].all()


@pytest.mark.statistical
def test_prediction_without_the_conservative_part_does_not(sampled):
    lacking = sampled.predicted_growth - sampled.conservative
    assert disagreeing(sampled, lacking)[1].tolist() == [True, False]  # full batches have none


# ---- where second order does not hold


@pytest.fixture(scope="module")
def far():
    """At, above and far above the edge; strongest batch noise and none."""
    return diagram(rates=(0.25 * EDGE, EDGE, 20 * EDGE), sizes=(1, 8), steps=60, replicas=3)


def test_no_prediction_beyond_second_order(far):
    valid = (far.relative_error < far.attrs["valid_below"]).values
    for name in ("predicted_growth", "conservative"):
        np.testing.assert_array_equal(np.isfinite(far[name]), valid)
    assert valid.any()
    assert not valid.all()
    assert not (far.valid.values & ~valid).any()
    strong = diagram(curvature=2.0)
    assert np.isnan(strong.predicted_growth).all()
    assert (strong.relative_error > 1).all()
    assert not strong.valid.any()


def test_no_prediction_from_the_edge_on(far):
    beyond = far.isel(learning_rate=[1, 2])
    for name in ("predicted_growth", "conservative", "relative_error"):
        assert np.isnan(beyond[name]).all()


def test_diverged_growth_is_infinite(far):
    assert np.isposinf(far.simulated_growth.isel(learning_rate=2)).all()
    assert np.isfinite(far.simulated_growth.isel(learning_rate=0, batch_size=1))
    assert not np.isnan(far.simulated_growth).any()


def test_standard_error_of_diverged_growth_is_infinite(far):
    assert np.isposinf(far.standard_error.isel(learning_rate=2)).all()
    np.testing.assert_array_equal(
        np.isfinite(far.standard_error), np.isfinite(far.simulated_growth)
    )


# ---- refusals


@pytest.fixture
def no_work(monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(module, "growth_of_pair", work)
    monkeypatch.setattr(module.sharpening, "forecasts", work)


Kronecker, LowRank = qm.curvature.KroneckerCurvature, qm.curvature.RandomLowRankCurvature


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": np.eye(3)}, "^source must be an Ensemble or a QuadraticModel, got ndarray$"),
        ({"source": qm.Ensemble(8, 40)}, "^curvature must be given for a model that has no law"),
        ({"source": qm.Ensemble(8, 40).sample(0)}, "^curvature must be given for a model that"),
        ({"source": qm.Ensemble(8, 5, curvature=0.1)}, "^jacobian must have full row rank"),
        ({"curvature": -0.1}, "^scale must be"),
        ({"curvature": math.nan}, "^scale must be"),
        ({"curvature": "strong"}, "^scale must be"),
        ({"curvature": LowRank(2, 0.1)}, "^curvature must have a Kronecker covariance"),
        ({"curvature": Kronecker(np.eye(3))}, "^data_covariance must have shape"),
        ({"rates": 0}, "^learning_rates must be"),
        ({"rates": True}, "^learning_rates must be"),
        ({"rates": []}, "^learning_rates must"),
        ({"rates": [0.0, 0.1]}, "^learning_rates must be > 0, got 0$"),
        ({"rates": [0.1, -0.1]}, "^learning_rates must be"),
        ({"rates": [0.1, math.nan]}, "^learning_rates must hold finite"),
        ({"rates": [0.1, math.inf]}, "^learning_rates must hold finite"),
        ({"rates": [[0.1, 0.2]]}, "^learning_rates must have shape"),
        ({"rates": "0.1"}, "^learning_rates must be"),
        ({"sizes": 0}, "^batch_sizes must be"),
        ({"sizes": []}, "^batch_sizes must hold at least one"),
        ({"sizes": [8, 1, 8]}, "^batch_sizes must be different ones"),
        ({"sizes": [0, 1]}, "^batch_sizes must be"),
        ({"sizes": [1, 9]}, "^batch_sizes must be an integer between 1 and 8, got 9$"),
        ({"sizes": [2.5]}, "^batch_sizes must be"),
        ({"sizes": [[1, 2]]}, "^batch_sizes must be"),
        ({"rates": 0.5}, "^learning_rates must"),
        ({"rates": None}, "^learning_rates must"),
        ({"rates": [0.1, 0.2, 0.1]}, "^learning_rates must be different ones, got"),
        ({"rates": [[0.1], [0.1, 0.2]]}, "^learning_rates must"),
        ({"sizes": 2.5}, "^batch_sizes must"),
        ({"sizes": None}, "^batch_sizes must"),
        ({"sizes": [[1], [1, 2]]}, "^batch_sizes must"),
        ({"sgd": 0.1}, "^sgd must be an SGD, got float$"),
        ({"steps": 0}, "^steps must be"),
        ({"steps": 2.5}, "^steps must be"),
        ({"steps": 2**32}, "^steps must be"),  # batches are numbered with 32 bits
        ({"replicas": 1}, "^replicas must be .*2.*got 1$"),
        ({"replicas": True}, "^replicas must be"),
        ({"replicas": 2**32}, "^replicas must be"),
        ({"batch_sequences": 0}, "^batch_sequences must be"),
        ({"batch_sequences": 2**20 + 1}, "^batch_sequences must be"),
        ({"batch_sequences": "many"}, "^batch_sequences must be"),
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**64}, "^seed must be"),
        ({"seed": 0.5}, "^seed must be"),
        ({"threads": 0}, "^threads must be"),
        ({"threads": 1.5}, "^threads must be"),
    ],
    ids=str,
)
def test_refusals(changed, message, no_work):
    with pytest.raises(InputError, match=message) as refused:
        diagram(**changed)
    assert "\n" not in str(refused.value)


def test_refuses_what_does_not_fit_in_memory(monkeypatch):
    draw = 8 * 8 * 40**2

    def free(n_bytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))

    free(8 * draw)
    diagram(threads=1)
    free(2 * draw)

    def work(*_, **__):
        raise AssertionError("a curvature was drawn")

    monkeypatch.setattr(qm.curvature.IndependentCurvature, "sample", work)
    monkeypatch.setattr(module.sharpening, "forecasts", work)
    with pytest.raises(MemoryError, match=r"^the draws of the curvature needs? .* are free$"):
        diagram(threads=1)
    monkeypatch.undo()
    with pytest.raises(MemoryError, match=r"^the growths needs? .* are free$"):
        diagram(replicas=2**32 - 1)
