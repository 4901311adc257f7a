"""phase_diagram(): layout, phases, theory beside simulation, same bits, a real network's NTK."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.simulation.growth import measure_growth
from quadmodel.studies._close_up import POINTS
from quadmodel.studies._diagram import PHASES, UNDECIDED
from quadmodel.theory.typical import typical_critical_learning_rate
from tests.assertions import assert_same_bits

STABLE, INTERMITTENT, STOCHASTIC, DETERMINISTIC = PHASES
NORMS = ("paper", "finite", "exact")
MEASURED = (
    "mean_growth", "mean_growth_standard_error", "typical_growth", "typical_growth_standard_error",
    "growth_steps", "fraction_diverged", "final_loss",
)  # fmt: skip
CLOSE = ("close_learning_rate", "close_growth", "close_growth_standard_error")
ABOUT_CLOSE = tuple(
    f"close_{name}" for name in ("correction", "steps", "replicas", "settled", "needed_steps")
)
ENSEMBLE = qm.Ensemble(12, 24, qm.spectra.PowerLaw(0.5))
MOMENTUM = qm.SGD(1.0, 1, momentum=0.3, weight_decay=0.05, sampling="with_replacement")


def diagram(source=ENSEMBLE, rates=9, sizes=(1, 4, 12), **options):
    return qm.phase_diagram(source, rates, sizes, **{"steps": 256, "replicas": 8, **options})


@pytest.fixture(scope="module")
def grid():
    return diagram(seed=3)


def test_layout(grid):
    plane, scan = ("learning_rate", "batch_size"), ("batch_size", "scan")
    close = ("kind", "batch_size")
    assert {name: grid[name].dims for name in grid.data_vars} == {
        **dict.fromkeys(MEASURED, plane),
        **{f"scan_{name}": scan for name in MEASURED},
        "noise_kernel_norm": ("norm", *plane),
        "scan_noise_kernel_norm": ("norm", *scan),
        "scan_learning_rate": scan,
        "phase": plane,
        "predicted_phase": plane,
        "critical_learning_rate": ("norm", "batch_size"),
        "typical_critical_learning_rate": ("batch_size",),
        "edge_of_stability": ("batch_size",),
        "crossing_batch_size": (),
        **dict.fromkeys(CLOSE, (*close, "close")),
        "close_noise_kernel_norm": ("norm", *close, "close"),
        **dict.fromkeys(ABOUT_CLOSE, close),
    }
    sizes = {"learning_rate": 9, "batch_size": 3, "norm": 3, "scan": 6, "kind": 2, "close": 8}
    assert dict(grid.sizes) == sizes
    assert grid.norm.values.tolist() == list(NORMS)
    assert grid.batch_size.values.tolist() == [1, 4, 12]
    assert all("long_name" in grid[name].attrs for name in grid.data_vars)
    expected = {"kind": "phase diagram", "seed": "3", "steps": 256, "replicas": 8, "refine": 6}
    assert {name: grid.attrs[name] for name in expected} == expected
    assert "learning_rate" not in grid.attrs
    assert "batch_size" not in grid.attrs


def test_layout_with_as_many_batch_sizes_as_points_of_a_close_up():
    grid = diagram(rates=5, sizes=tuple(range(1, POINTS + 1)), steps=128)
    per_size = ("kind", "batch_size")
    assert grid.close_growth.dims == (*per_size, "close")
    assert {grid[name].dims for name in ABOUT_CLOSE} == {per_size}


def test_spread_axes():
    grid = diagram(rates=7, sizes=4, refine=0, steps=32, replicas=2)
    rates, critical = grid.learning_rate.values, grid.critical_learning_rate
    np.testing.assert_allclose(np.diff(np.log(rates)), math.log(rates[-1] / rates[0]) / 6)
    assert rates[0] < float(critical.min())
    assert rates[-1] > float(grid.edge_of_stability.max())
    assert grid.batch_size.values.tolist() == [1, 2, 5, 12]


def test_phases_follow_the_growth_rates(grid):
    mean, typical = grid.mean_growth.values > 0, grid.typical_growth.values > 0
    for (i, j), phase in np.ndenumerate(grid.phase.values):
        beyond = float(grid.learning_rate[i]) >= float(grid.edge_of_stability[j])
        if not mean[i, j] and not typical[i, j]:
            assert phase == STABLE
        elif beyond:
            assert phase == DETERMINISTIC
        elif not typical[i, j]:
            assert phase == INTERMITTENT
        else:
            assert phase == STOCHASTIC
    found = set(grid.phase.values.ravel().tolist())
    assert {STABLE, STOCHASTIC, DETERMINISTIC} <= found
    assert (grid.phase[0] == STABLE).all()
    assert (grid.phase[-1] == DETERMINISTIC).all()
    assert INTERMITTENT not in grid.phase.sel(batch_size=12)


def test_intermittent_phase_lies_between_the_edges():
    """Just above the mean-square threshold of B = 1 the mean grows while typical runs shrink."""
    model = qm.Ensemble(12, 24).sample(0)
    critical = qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, 1), norm="exact")
    grid = diagram(model, critical * np.array([0.8, 1.02, 2.0]), [1], steps=2048, replicas=64)
    assert grid.phase.values[:, 0].tolist() == [STABLE, INTERMITTENT, STOCHASTIC]


@pytest.fixture(scope="module")
def wide():
    """A wide intermittent phase at 80 of 200 points: 0.9% of the learning rate."""
    model = qm.Ensemble(200, 400).sample(0)
    sgd = qm.SGD(1.0, 80)
    mean = qm.critical_learning_rate(model.ntk(), sgd, norm="exact")
    typical = typical_critical_learning_rate(model.ntk(), sgd)
    edge = qm.edge_of_stability(model.ntk(), sgd)
    rates = [0.97 * mean, (mean * typical) ** 0.5, 1.03 * typical, 1.1 * edge]
    return diagram(model, rates, [80, 200], refine=0, steps=1024, replicas=64)


@pytest.mark.statistical
def test_predicted_phases_are_the_simulated_ones(wide):
    """In the middle of the predicted phase both growth rates are more than 5 errors from 0."""
    expected = [STABLE, INTERMITTENT, STOCHASTIC, DETERMINISTIC]
    assert wide.predicted_phase.sel(batch_size=80).values.tolist() == expected
    assert wide.phase.sel(batch_size=80).values.tolist() == expected
    for name in ("mean_growth", "typical_growth"):
        point = wide.isel(learning_rate=1).sel(batch_size=80)
        assert abs(float(point[name])) > 5 * float(point[f"{name}_standard_error"])


def test_predicted_phases(wide, grid):
    for found in (wide, grid):
        for (i, j), phase in np.ndenumerate(found.predicted_phase.values):
            rate = float(found.learning_rate[i])
            mean = float(found.critical_learning_rate.sel(norm="exact")[j])
            typical = float(found.typical_critical_learning_rate[j])
            if rate < mean:
                assert phase == STABLE
            elif rate >= float(found.edge_of_stability[j]):
                assert phase == DETERMINISTIC
            elif math.isnan(typical):
                assert phase == UNDECIDED
            else:
                assert phase == (INTERMITTENT if rate < typical else STOCHASTIC)
    # twelve points are too few for a prediction
    assert np.isnan(grid.typical_critical_learning_rate.sel(batch_size=1))
    assert UNDECIDED in grid.predicted_phase.sel(batch_size=1)
    # full batches have no noise
    full = wide.sel(batch_size=200)
    assert float(full.typical_critical_learning_rate) == float(full.edge_of_stability)
    assert set(full.predicted_phase.values.tolist()) == {STABLE, DETERMINISTIC}


def test_typical_edge_is_drawn(wide, grid):
    mpl.use("agg")
    import matplotlib.pyplot as plt

    label = "typical edge, predicted"
    for found in (wide, grid.drop_vars("typical_critical_learning_rate")):
        artists = qm.plot.phase_diagram(found)
        drawn = [line for line in artists if line.get_label() == label]
        assert len(drawn) == (found is wide)
        for line in drawn:
            np.testing.assert_array_equal(
                line.get_ydata(), found.typical_critical_learning_rate.values
            )
    plt.close("all")


def test_null_space_does_not_hide_stability():
    """Growth is that on the range of the NTK, however long the runs."""
    model = qm.Ensemble(8, 5, qm.spectra.PowerLaw(0.5)).sample(5)
    critical = qm.critical_learning_rate(model.ntk(), qm.SGD(1.0, 4), norm="exact")
    grid = diagram(model, critical * np.array([0.2, 0.5]), [4, 8], steps=2048, refine=0)
    assert (grid.phase == STABLE).all()
    assert (grid.typical_growth < -0.1).all()
    assert (grid.mean_growth < -0.1).all()


def norms(ntk, sgd, rate, size):
    at = qm.SGD(float(rate), int(size), sgd.momentum, sgd.nesterov, sgd.weight_decay, sgd.sampling)
    return [qm.noise_kernel_norm(ntk, at, norm=norm) for norm in NORMS]


@pytest.mark.parametrize("sgd", [qm.SGD(1.0, 1), MOMENTUM], ids=["plain", "momentum"])
def test_theory_beside_the_simulation(sgd):
    grid = diagram(sgd=sgd, steps=64, replicas=2, refine=3)
    ntk = ENSEMBLE.sample(0).ntk()
    for i, rate in enumerate(grid.learning_rate.values):
        for j, size in enumerate(grid.batch_size.values):
            np.testing.assert_allclose(
                grid.noise_kernel_norm[:, i, j], norms(ntk, sgd, rate, size), rtol=1e-9
            )
            fine = grid.scan_learning_rate.values[j]
            for k in np.flatnonzero(np.isfinite(fine)):
                np.testing.assert_allclose(
                    grid.scan_noise_kernel_norm[:, j, k], norms(ntk, sgd, fine[k], size), rtol=1e-9
                )
    edges = qm.phase_boundaries(ntk, grid.batch_size.values, sgd)
    for name in edges.data_vars:
        np.testing.assert_allclose(grid[name], edges[name], rtol=1e-12)
    for size, edge in zip(
        grid.batch_size.values, grid.typical_critical_learning_rate.values, strict=True
    ):
        expected = typical_critical_learning_rate(ntk, replace(sgd, batch_size=int(size)))
        assert edge == pytest.approx(expected, rel=1e-9, nan_ok=True)
    edge = qm.edge_of_stability(ntk, sgd)
    np.testing.assert_allclose(grid.edge_of_stability, edge)
    assert {grid.attrs[k] for k in ("momentum", "weight_decay")} == {sgd.momentum, sgd.weight_decay}


def test_deterministic_edge_of_full_batches(grid):
    """Without noise growth changes sign at the edge, for one run as for all."""
    full = grid.sel(batch_size=12)
    above = grid.learning_rate.values >= float(full.edge_of_stability)
    np.testing.assert_array_equal(full.mean_growth > 0, above)
    np.testing.assert_array_equal(full.typical_growth > 0, above)
    np.testing.assert_array_equal(full.fraction_diverged, above.astype(float))
    lam = ENSEMBLE.sample(3).eigensystem[0]
    relaxed = above  # the largest mode wins at once; below, slow modes are close to each other
    fastest = 2 * np.log(np.abs(1 - grid.learning_rate.values[:, None] * lam)).max(axis=1)
    np.testing.assert_allclose(full.mean_growth[relaxed], fastest[relaxed], rtol=1e-6)
    found = qm.critical_noise_kernel_norm(grid)
    edge = float(full.edge_of_stability)
    low, high = (float(found[f"learning_rate_{end}"].sel(batch_size=12)) for end in ("low", "high"))
    assert low < edge < high


def test_scan_lies_between_the_columns_that_change_sign(grid):
    rates = grid.learning_rate.values
    for j in range(grid.sizes["batch_size"]):
        fine = grid.scan_learning_rate.values[j]
        assert np.isfinite(fine).all()
        assert (np.diff(fine) > 0).all()
        signs = [grid[f"{kind}_growth"].values[:, j] > 0 for kind in ("mean", "typical")]
        low = min(max(np.argmax(sign) - 1, 0) for sign in signs)
        high = max(
            min(len(rates) - 1 - np.argmin(sign[::-1]) + 1, len(rates) - 1) for sign in signs
        )
        np.testing.assert_allclose(fine, np.geomspace(rates[low], rates[high], 8)[1:-1])
        for name in MEASURED:
            assert not np.isnan(grid[f"scan_{name}"][j]).any()


def test_scan_and_grid_share_no_batches(monkeypatch):
    """Three sets of replicas per grid point, each with replica numbers of its own."""
    seen = set()

    def measure(model, points, *args, **options):
        seen.add((points.first_replica, 3 * points.place.total * points.replicas))
        return measure_growth(model, points, *args, **options)

    monkeypatch.setattr("quadmodel.studies.phases.measure_growth", measure)
    diagram(steps=64)
    (first, count), (second, _) = sorted(seen)
    assert first + count <= second


def test_scan_is_missing_where_nothing_changes_sign():
    grid = diagram(rates=[0.01, 0.02], sizes=[1, 12])
    assert (grid.phase == STABLE).all()
    for name in (*MEASURED, "learning_rate", "noise_kernel_norm"):
        assert np.isnan(grid[f"scan_{name}"]).all()
    assert np.isnan(qm.critical_noise_kernel_norm(grid).learning_rate).all()
    assert diagram(refine=0).sizes["scan"] == 0


def test_sources():
    model = ENSEMBLE.sample(seed=5)
    by_ensemble, by_model = diagram(seed=5), diagram(model, seed=5)
    by_ntk = diagram(model.ntk(), seed=5)
    for name in by_ensemble.data_vars:
        np.testing.assert_array_equal(by_ensemble[name], by_model[name], err_msg=str(name))
    for name in (*NORMS,):  # the residual of a bare NTK is another one: same stability only
        np.testing.assert_allclose(
            by_ensemble.critical_learning_rate.sel(norm=name),
            by_ntk.critical_learning_rate.sel(norm=name),
            rtol=1e-9,
        )
    assert by_ensemble.attrs["n_params"] == 24
    # An NTK does not tell how many parameters there are.
    assert "n_params" not in by_ntk.attrs
    assert "n_params" not in by_ntk.attrs["model"]
    assert by_ensemble.attrs["source_hash"] == by_model.attrs["source_hash"] == model.source_hash
    assert by_ntk.attrs["source_hash"] == qm.QuadraticModel.from_ntk(model.ntk()).source_hash


@pytest.mark.parametrize(
    "source", [ENSEMBLE, qm.Ensemble(6, 8, curvature=0.05)], ids=["linear", "quadratic"]
)
def test_same_bits(source):
    sizes = (1, 3, 6)
    runs = [diagram(source, 7, sizes, threads=threads, refine=4) for threads in (1, 2, 1)]
    assert_same_bits(runs[0], runs[1])
    assert_same_bits(runs[0], runs[2])
    other = diagram(source, 7, sizes, seed=1, refine=4)
    assert (other.mean_growth != runs[0].mean_growth).all()


def test_batches_depend_on_the_seed():
    """With the model fixed, another seed gives other runs of the same theory."""
    model = ENSEMBLE.sample(0)
    one, two = diagram(model, sizes=[1, 4], seed=0), diagram(model, sizes=[1, 4], seed=2**63)
    np.testing.assert_array_equal(one.noise_kernel_norm, two.noise_kernel_norm)
    assert (one.mean_growth != two.mean_growth).all()


def test_quadratic_source():
    source = qm.Ensemble(8, 12, curvature=0.02)
    edge = qm.edge_of_stability(source.sample(0).ntk(), qm.SGD(1.0, 1))
    grid = diagram(source, edge * np.array([0.02, 0.2, 2.0, 4.0]), [2, 8], refine=0)
    assert (grid.phase[0] == STABLE).all()
    assert (grid.phase[-1] == DETERMINISTIC).all()
    assert (grid.fraction_diverged[-1] == 1).all()
    assert np.isposinf(grid.final_loss[-1]).all()
    assert (grid.fraction_diverged[0] == 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "digits"}, "^source must be an Ensemble"),
        ({"source": [1.0, 2.0]}, "^source must be an Ensemble"),
        ({"source": -np.eye(3)}, "^ntk must be positive semidefinite"),
        ({"source": np.zeros((3, 3))}, "NTK must not vanish"),
        ({"rates": 1}, "^learning_rates must be"),
        ({"rates": 2.5}, "^learning_rates must be"),
        ({"rates": [0.1]}, "^learning_rates must be"),
        ({"rates": [0.1, 0.1]}, "^learning_rates must be"),
        ({"rates": [0.0, 0.1]}, "^learning_rates must be > 0"),
        ({"rates": [0.1, math.nan]}, "^learning_rates must hold finite"),
        ({"rates": [[0.1, 0.2]]}, "^learning_rates must have shape"),
        ({"rates": [[0.1], [0.1, 0.2]]}, "^learning_rates must be"),
        ({"sizes": [[1], [1, 2]]}, "^batch_sizes must be"),
        ({"sizes": 0}, "^batch_sizes must be"),
        ({"sizes": []}, "^batch_sizes must hold at least one"),
        ({"sizes": [0]}, "^batch_sizes must be"),
        ({"sizes": [13]}, "^batch_sizes must be"),
        ({"sizes": [2.5]}, "^batch_sizes must be"),
        ({"sizes": [2, 2]}, "^batch_sizes must be"),
        ({"sgd": 0.1}, "^sgd must be"),
        ({"steps": 31}, "^steps must be"),
        ({"replicas": 1}, "^replicas must be"),
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**64}, "^seed must be"),
        ({"refine": -1}, "^refine must be"),
        ({"threads": 0}, "^threads must be"),
    ],
    ids=str,
)
def test_bad_input(changed, message):
    sizes = (1, 2, 3) if "source" in changed else (1, 4, 12)
    with pytest.raises(InputError, match=message):
        diagram(**{"sizes": sizes, **changed})


def test_netcdf_round_trip(grid, tmp_path):
    path = tmp_path / "grid.nc"
    grid.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as back:
        back.load()
    texts = ["phase", "predicted_phase", "norm"]
    xr.testing.assert_identical(back.drop_vars(texts), grid.drop_vars(texts))
    for name in texts:
        assert back[name].values.tolist() == grid[name].values.tolist()
    xr.testing.assert_identical(
        qm.critical_noise_kernel_norm(back), qm.critical_noise_kernel_norm(grid)
    )


# ---- the NTK of a network on handwritten digits

DIGITS = (1, 2, 8, 32)


@pytest.mark.parametrize(
    ("which", "expected"),
    [("ntk_initial", [1.15, 1.14, 1.08, 1.68]), ("ntk_trained", [1.11, 1.10, 1.08, 1.89])],
)
def test_exact_norm_of_digits_where_the_finite_one_is_one(which, expected):
    ntk = qm.datasets.digits_ntk()[which].values
    for batch_size, value in zip(DIGITS, expected, strict=True):
        eta = qm.critical_learning_rate(ntk, qm.SGD(1.0, batch_size), norm="finite")
        found = qm.noise_kernel_norm(ntk, qm.SGD(eta, batch_size), norm="exact")
        assert found == pytest.approx(value, abs=0.006)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("which", ["ntk_initial", "ntk_trained"])
@pytest.mark.parametrize("batch_size", DIGITS)
def test_stability_of_digits(batch_size, which):
    """Simulated mean-square edge at the exact K = 1; the typical one not below."""
    ntk = qm.datasets.digits_ntk()[which].values
    predicted = qm.critical_learning_rate(ntk, qm.SGD(1.0, batch_size), norm="exact")
    grid = diagram(
        ntk, np.geomspace(0.8, 1.3, 7) * predicted, [batch_size],
        steps=2500, replicas=64, refine=6, seed=batch_size,
    )  # fmt: skip
    confidence = 1 - 1e-6 / (4 * len(DIGITS))
    mean, typical = (
        qm.critical_noise_kernel_norm(grid, growth=growth, confidence=confidence).isel(batch_size=0)
        for growth in ("mean", "typical")
    )
    assert float(mean.learning_rate_low) < predicted < float(mean.learning_rate_high)
    assert float(mean.noise_kernel_norm_low) < 1 < float(mean.noise_kernel_norm_high)
    # negative control: the interval tells the exact threshold from that of the finite-size K
    if batch_size < 32:  # there the two are too close to each other
        finite = qm.critical_learning_rate(ntk, qm.SGD(1.0, batch_size), norm="finite")
        assert float(mean.learning_rate_high) < finite
    if np.isfinite(typical.learning_rate):  # it may lie beyond the scan
        assert float(typical.learning_rate_high) > float(mean.learning_rate_low)


def test_nonlinear_edge_beside_the_simulation():
    """Growth changes sign within 15 % of the mean-field edge; K = 1 is not where."""
    curved = qm.Ensemble(60, 120, jacobian=np.linspace(1, 0.1, 60), curvature=0.2)
    grid = qm.phase_diagram(curved, 12, [3], steps=300, replicas=8, seed=1)
    found = qm.critical_noise_kernel_norm(grid).isel(batch_size=0)
    edge = float(grid.mean_field_critical_learning_rate[0])
    assert found.learning_rate == pytest.approx(edge, rel=0.15)
    assert edge < 0.95 * float(grid.critical_learning_rate.sel(norm="exact")[0])
    norm = float(grid.mean_field_noise_kernel_norm.sel(norm="exact")[0])
    assert 0.3 < norm < 0.95
    linear = qm.phase_diagram(replace(curved, curvature=None), 4, [3], steps=64, replicas=2)
    assert "mean_field_critical_learning_rate" not in linear


def test_no_nonlinear_edge_where_the_theory_has_none():
    law = qm.curvature.RandomLowRankCurvature(2, 0.05)
    grid = qm.phase_diagram(qm.Ensemble(8, 16, curvature=law), 4, [2], steps=64, replicas=2)
    assert "mean_field_critical_learning_rate" not in grid
