"""persistent_edge(): its models, its runs, the table of their late times, refusals."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import xarray as xr
from scipy.stats import norm

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies import persistence as module
from tests.assertions import assert_same_bits
from tests.oracles import dense_noise_kernel

FAMILY_WISE_ERROR = 1e-6
N_DATA, N_PARAMS, STRENGTHS = 6, 10, (0.5, 1.0)
NORMS = ("noise_kernel_norm", "noise_kernel_norm_finite", "noise_kernel_norm_exact")
PER_STEP = (*NORMS, "scaled_largest_eigenvalue", "loss")
PREDICTED = tuple(f"mean_field_{name}" for name in PER_STEP if name != "noise_kernel_norm_exact")
FINITE = "mean_field_noise_kernel_norm_finite"


def follow(curvature_strengths=STRENGTHS, **options):
    defaults = {"replicas": 2, "n_data": N_DATA, "n_params": N_PARAMS, "steps": 60, "seed": 3}
    return qm.persistent_edge(curvature_strengths, **{**defaults, **options})


@pytest.fixture(scope="module")
def found():
    return follow()


# ---- layout


def test_layout(found):
    point = ("curvature_strength", "replica")
    assert {name: found[name].dims for name in found.data_vars} == {
        **dict.fromkeys(PER_STEP, (*point, "step")), "learning_rate": point,
        "divergence_step": point, **dict.fromkeys(PREDICTED, ("curvature_strength", "step")),
    }  # fmt: skip
    assert found.curvature_strength.values.tolist() == list(STRENGTHS)
    assert found.replica.values.tolist() == [0, 1]
    assert found.step.values.tolist() == list(range(61))
    assert found.step.attrs["units"] == found.divergence_step.attrs["units"] == "SGD steps"
    assert found.learning_rate.attrs["units"] == "1 / NTK eigenvalue"
    assert found.scaled_largest_eigenvalue.attrs["units"] == "1"
    for name in found.data_vars:
        assert {"long_name", "units"} <= set(found[name].attrs)
    assert found.divergence_step.dtype.kind == "i"
    assert found.attrs == {
        "kind": "persistent edge", "initial_norm": 0.2, "steps": 60, "seed": "3",
        "quadmodel_version": qm.__version__, "n_data": N_DATA, "n_params": N_PARAMS,
        "batch_size": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"steps": 250}, range(0, 251, 2)),
        ({"steps": 7}, range(8)),
        ({"steps": 10, "record_every": 4}, [0, 4, 8, 10]),
    ],
    ids=str,
)
def test_a_hundred_records_by_default(options, steps):
    assert follow([0.5], replicas=1, **options).step.values.tolist() == list(steps)


def test_netcdf_round_trip(found, tmp_path):
    found.to_netcdf(tmp_path / "edge.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "edge.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(back.load(), found)


# ---- the models


def test_jacobian_and_residual():
    model = module.aligned_model(0.7, N_DATA, N_PARAMS, seed=4)
    assert (model.n_data, model.n_params) == (N_DATA, N_PARAMS)
    lam = np.linalg.eigvalsh(model.ntk())[::-1]
    np.testing.assert_allclose(lam, 1 / np.arange(1, N_DATA + 1), rtol=1e-10)
    assert model.residual @ model.residual == pytest.approx(N_DATA, rel=1e-12)


def test_law_is_as_strong_along_a_mode_as_its_eigenvalue():
    model = module.aligned_model(0.7, N_DATA, N_PARAMS, seed=4)
    over_data, over_parameters, scale = model.curvature_law.kronecker(N_DATA, N_PARAMS)
    ntk = model.ntk()
    np.testing.assert_allclose(over_data, ntk * N_DATA / np.trace(ntk), rtol=0, atol=1e-12)
    assert over_parameters is None
    assert scale == pytest.approx(0.7 / math.sqrt(N_PARAMS), rel=1e-12)


def test_another_curvature_strength_differs_by_scale_only():
    one, two, none = (module.aligned_model(q, N_DATA, N_PARAMS, seed=4) for q in (0.5, 1.5, 0.0))
    for other in (two, none):
        np.testing.assert_array_equal(one.jacobian, other.jacobian)
        np.testing.assert_array_equal(one.residual, other.residual)
    np.testing.assert_allclose(two.curvature, 3 * one.curvature, rtol=1e-12)
    np.testing.assert_array_equal(none.curvature, 0)


def test_another_seed_differs_in_every_part():
    one, two = (module.aligned_model(0.5, N_DATA, N_PARAMS, seed=seed) for seed in (4, 5))
    assert (one.jacobian != two.jacobian).all()
    assert (one.residual != two.residual).all()
    assert (one.curvature != two.curvature).all()


@pytest.mark.parametrize("part", range(4))
def test_curvature_shares_no_stream_with_the_rest(part):
    """Jacobian, eigenvectors, curvature and residual of an ensemble's model have one each."""
    model = module.aligned_model(0.5, N_DATA, N_PARAMS, seed=4)
    stream = np.random.default_rng(np.random.SeedSequence(4, spawn_key=(part,)))
    assert (model.curvature_law.sample(stream, N_DATA, N_PARAMS) != model.curvature).all()


@pytest.fixture(scope="module")
def along_modes():
    """Curvature along three modes over many draws: entries above, and those on the diagonal."""
    above = np.triu_indices(12, 1)
    off, on = [], []
    for seed in range(400):
        model = module.aligned_model(0.7, 3, 12, seed=seed)
        curvature = np.tensordot(model.eigensystem[1].T, model.curvature, axes=1)
        off.append(curvature[:, *above])
        on.append(np.diagonal(curvature, axis1=1, axis2=2))
    return np.hstack(off), np.hstack(on)


def z_scores(samples, variances):
    """Mean squares of uncorrelated Gaussian rows and their products, against `variances`."""
    expected = np.diag(variances)
    count = samples.shape[1]
    spread = np.sqrt((np.outer(variances, variances) + expected**2) / count)
    return ((samples @ samples.T / count - expected) / spread)[np.triu_indices(len(expected))]


BOUND = norm.isf(FAMILY_WISE_ERROR / 2 / 12)  # six moments, on the diagonal and off it
LAM = 1 / np.arange(1, 4)


@pytest.mark.statistical
def test_drawn_curvature_follows_the_law(along_modes):
    """Mean squares known to 1 and 2 %, twelve rows wrong by chance once in a million."""
    variances = 0.7**2 / 12 * LAM / LAM.mean()
    off, on = along_modes
    assert np.abs(z_scores(off, variances)).max() < BOUND
    assert np.abs(z_scores(on, 2 * variances)).max() < BOUND


@pytest.mark.statistical
@pytest.mark.parametrize(
    "wrong",
    [np.ones(3), LAM**2 / np.mean(LAM**2), np.sqrt(LAM) / np.mean(np.sqrt(LAM)), LAM],
    ids=["independent of the NTK", "its square", "its root", "not over the mean"],
)
def test_drawn_curvature_follows_no_other_law(wrong, along_modes):
    assert np.abs(z_scores(along_modes[0], 0.7**2 / 12 * wrong)).max() > BOUND


# ---- the runs


@pytest.mark.parametrize("initial_norm", [0.2, 0.6])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_noise_kernel_norm_at_the_start(initial_norm, batch_size):
    found = follow(steps=1, initial_norm=initial_norm, batch_size=batch_size)
    lam = 1 / np.arange(1, N_DATA + 1)
    start = found.isel(step=0)
    for rate in found.learning_rate.values.ravel():
        by_hand = rate * (N_DATA / batch_size - 1) / N_DATA * np.sum(lam / (2 - rate * lam))
        assert by_hand == pytest.approx(initial_norm, rel=1e-6)
    np.testing.assert_allclose(start.noise_kernel_norm, initial_norm, rtol=1e-6)
    for replica in range(2):
        ntk = module.aligned_model(0.5, N_DATA, N_PARAMS, seed=3 + replica).ntk()
        exact = dense_noise_kernel.noise_kernel_norm(
            ntk, qm.SGD(float(found.learning_rate[0, replica]), batch_size)
        )
        np.testing.assert_allclose(start.noise_kernel_norm_exact[:, replica], exact, rtol=1e-6)
    np.testing.assert_allclose(start.loss, 0.5)
    np.testing.assert_allclose(start.scaled_largest_eigenvalue, found.learning_rate)


def test_a_run_is_one_of_simulate(found):
    for n, strength in enumerate(STRENGTHS):
        for replica in range(2):
            model = module.aligned_model(strength, N_DATA, N_PARAMS, seed=3 + replica)
            rate = float(found.learning_rate[n, replica])
            alone = qm.simulate(
                model, qm.SGD(rate, 2), 60, seed=3, model_index=replica, record_every=1,
                observables=(*NORMS, "ntk_largest_eigenvalue", "loss"),
            ).isel(replica=0)  # fmt: skip
            here = found.isel(curvature_strength=n, replica=replica)
            for name in (*NORMS, "loss"):
                np.testing.assert_array_equal(here[name], alone[name])
                assert found[name].attrs == alone[name].attrs
            np.testing.assert_allclose(
                here.scaled_largest_eigenvalue, rate * alone.ntk_largest_eigenvalue, rtol=1e-12
            )
            assert int(here.divergence_step) == int(alone.divergence_step)


def test_replicas_differ_and_curvature_strengths_share_them(found):
    assert (found.loss[:, 0, 1:] != found.loss[:, 1, 1:]).all()
    np.testing.assert_array_equal(found.learning_rate[0], found.learning_rate[1])
    weak = follow([0.0, 1e-6])
    np.testing.assert_allclose(weak.loss[0], weak.loss[1], rtol=1e-3)


def test_without_curvature_the_norms_stay(found):
    still = follow([0.0])
    np.testing.assert_allclose(still.noise_kernel_norm, 0.2, rtol=1e-6)
    for name in NORMS:
        assert (np.ptp(still[name].values, axis=-1) < 1e-10).all()
        assert (np.ptp(found[name].values, axis=-1) > 1e-3).all()


def test_divergence():
    gone = follow([0.5, 50.0])
    assert (gone.divergence_step[0] == -1).all()
    assert (gone.divergence_step[1] > 0).all()
    late = gone.isel(step=-1)
    assert np.isposinf(late.loss[1]).all()
    for name in (*NORMS, "scaled_largest_eigenvalue"):
        assert np.isfinite(gone[name][0]).all()
        assert np.isnan(late[name][1]).all()


# ---- the prediction


@pytest.mark.parametrize("strength", STRENGTHS)
def test_prediction_is_that_of_mean_field_theory(strength, found):
    """Of equal squared residuals along the modes, which is the mean over replicas."""
    lam = 1 / np.arange(1, N_DATA + 1)
    law = qm.curvature.KroneckerCurvature(
        np.diag(lam * N_DATA / lam.sum()), scale=strength / N_PARAMS**0.5
    )
    sgd = qm.SGD(float(found.learning_rate[1, 0]), 2)
    theory = qm.mean_field(
        np.diag(lam), sgd, 60, curvature=law, residual=np.ones(N_DATA), n_params=N_PARAMS,
        record_every=1,
    )  # fmt: skip
    theory["scaled_largest_eigenvalue"] = sgd.learning_rate * theory.ntk_largest_eigenvalue
    here = found.sel(curvature_strength=strength)
    for name in PREDICTED:
        alone = theory[name.removeprefix("mean_field_")]
        kept = here[name].values[: np.argmax(alone.values < 5e-4) or None]
        assert kept.size > 40
        np.testing.assert_allclose(kept, alone[: kept.size], rtol=1e-6)
        assert np.isnan(here[name][kept.size :]).all()


def test_prediction_ends_where_a_coarse_past_does_not_resolve_it(monkeypatch):
    monkeypatch.setattr(module, "_LONGEST", 30)
    cut = follow(record_every=7)
    assert cut.step.values.tolist() == [0, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert np.isfinite(cut[FINITE][:, :5]).all()
    for name in PREDICTED:
        assert np.isnan(cut[name][:, 5:]).all()
    assert np.isfinite(follow(record_every=40)[FINITE][:, 0]).all()
    late = module.late_time_quartiles(cut)
    np.testing.assert_array_equal(late[FINITE], cut[FINITE][:, 4])


def test_prediction_that_diverges():
    gone = follow([0.5, 50.0])
    assert np.isfinite(gone[FINITE][0]).all()
    assert np.isnan(gone[FINITE][1, -1])
    assert np.isposinf(gone.mean_field_loss[1, -1])
    assert np.isnan(module.late_time_quartiles(gone)[FINITE][1])


def test_late_times_without_a_prediction(found):
    runs = found.drop_vars(list(PREDICTED))
    table = module.late_time_quartiles(runs)
    assert table.identical(module.late_time_quartiles(found).drop_vars(FINITE))


# ---- what the result depends on


def test_same_bits(found):
    for threads in (1, 2, 3):
        assert_same_bits(found, follow(threads=threads))


def test_a_grid_point_does_not_depend_on_the_others(found):
    alone = follow([1.0], replicas=1)
    for name in (*PER_STEP, "learning_rate", "divergence_step"):
        np.testing.assert_array_equal(alone[name][0, 0], found[name][1, 0])


def test_seed(found):
    other = follow(seed=2**64 - 1)
    assert (other.loss[..., 1:] != found.loss[..., 1:]).all()
    assert other.attrs["seed"] == str(2**64 - 1)


def test_progress_changes_nothing(found, capsys):
    assert_same_bits(found, follow(progress=True))
    assert capsys.readouterr() == ("", "")


def test_one_curvature_strength_needs_no_list(found):
    assert_same_bits(follow(1.0), follow([1.0]))


# ---- the table of late times


def test_late_time_quartiles(found):
    table = module.late_time_quartiles(found)
    assert {name: table[name].dims for name in table.data_vars} == {
        **dict.fromkeys(PER_STEP, ("quantile", "curvature_strength", "replica")),
        "divergence_step": ("curvature_strength", "replica"),
        "at_edge": ("curvature_strength", "replica"),
        FINITE: ("curvature_strength",),
    }
    assert table["quantile"].values.tolist() == [0.25, 0.5, 0.75]
    for name in PER_STEP:
        last_third = found[name].values[..., 41:]  # 20 of 61 records
        np.testing.assert_allclose(
            table[name], np.quantile(last_third, [0.25, 0.5, 0.75], axis=-1), rtol=1e-12
        )
    np.testing.assert_array_equal(table.divergence_step, found.divergence_step)


def edited(found, *, loss=None, diverged=()):
    """Runs with a given late loss, and some that diverge."""
    copy = found.copy(deep=True)
    if loss is not None:
        copy.loss[..., 41:] = np.reshape(loss, (2, 2, 1))
    for point in diverged:
        copy.divergence_step[point] = 50
        copy.loss[*point, 50:] = np.inf
        for name in (*NORMS, "scaled_largest_eigenvalue"):
            copy[name][*point, 50:] = np.nan
    return copy


def test_at_edge_is_neither_converged_nor_diverged(found):
    copy = edited(found, loss=[[0.9e-3, 1.1e-3], [0.3, 0.3]], diverged=[(1, 1)])
    table = module.late_time_quartiles(copy)
    assert table.at_edge.values.tolist() == [[False, True], [True, False]]
    # the median decides, not the mean
    copy.loss[0, 0, -9:] = 5.0
    assert not module.late_time_quartiles(copy).at_edge[0, 0]


def test_runs_that_diverged_have_no_late_times(found):
    table = module.late_time_quartiles(edited(found, diverged=[(0, 1)]))
    for name in PER_STEP:
        nothing = np.isnan(table[name]).all("quantile")
        assert nothing.values.tolist() == [[False, True], [False, False]]
        assert np.isfinite(table[name].where(~nothing, 0.0)).all()
        np.testing.assert_array_equal(
            table[name].isel(curvature_strength=1),
            module.late_time_quartiles(found)[name].isel(curvature_strength=1),
        )


def test_all_runs_diverged():
    gone = follow([50.0])
    assert (gone.divergence_step > 0).all()
    table = module.late_time_quartiles(gone)
    for name in PER_STEP:
        assert table[name].dims == ("quantile", "curvature_strength", "replica")
        assert np.isnan(table[name]).all()
    assert not table.at_edge.any()
    np.testing.assert_array_equal(table.divergence_step, gone.divergence_step)


@pytest.mark.parametrize("infinite", [4, 8, 12, 20])
def test_norms_beyond_the_deterministic_edge(infinite, found):
    """K is infinite there, and a run may come back."""
    copy = found.copy(deep=True)
    copy.noise_kernel_norm_exact[0, 0, 61 - infinite :] = np.inf
    late = np.sort(copy.noise_kernel_norm_exact[0, 0, 41:])
    quartiles = module.late_time_quartiles(copy).noise_kernel_norm_exact[:, 0, 0].values
    for quartile, share in zip(quartiles, (0.25, 0.5, 0.75), strict=True):
        low, high = late[math.floor(19 * share)], late[math.ceil(19 * share)]
        assert low <= quartile <= high


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_late_time_quartiles_of_few_records(steps):
    few = follow(steps=steps, record_every=2)
    table = module.late_time_quartiles(few)
    for name in PER_STEP:
        for quartile in table[name].values:
            np.testing.assert_array_equal(quartile, few[name].values[..., -1])


def test_late_time_quartiles_of_another_dataset(found):
    for other in (found.isel(step=0), found.drop_vars("scaled_largest_eigenvalue")):
        with pytest.raises(InputError, match=r"^found must be a Dataset from persistent_edge\(\)"):
            module.late_time_quartiles(other)


# ---- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"curvature_strengths": []}, "^curvature_strengths must hold at least one"),
        (
            {"curvature_strengths": [0.5, -0.5]},
            "^curvature_strengths must be a finite number >= 0, got -0.5$",
        ),
        ({"curvature_strengths": [math.nan]}, "^curvature_strengths must be"),
        ({"curvature_strengths": [math.inf]}, "^curvature_strengths must be"),
        ({"curvature_strengths": "strong"}, "^curvature_strengths must be"),
        ({"curvature_strengths": None}, "^curvature_strengths must be"),
        ({"curvature_strengths": [[0.5], [0.5, 1.0]]}, "^curvature_strengths must"),
        ({"replicas": 0}, "^replicas must be"),
        ({"replicas": 2**32}, "^replicas must be"),
        ({"replicas": 1.5}, "^replicas must be"),
        ({"initial_norm": 0.0}, "^initial_norm must be a finite number > 0, got 0.0$"),
        ({"initial_norm": math.inf}, "^initial_norm must be"),
        ({"initial_norm": "low"}, "^initial_norm must be"),
        ({"n_data": 0}, "^n_data must be"),
        ({"n_params": N_DATA - 1}, f"^n_params must be an integer >= {N_DATA}, got {N_DATA - 1}$"),
        ({"n_params": 12.5}, "^n_params must be"),
        ({"batch_size": 0}, "^batch_size must be"),
        ({"batch_size": N_DATA + 1}, f"^batch_size must be between 1 and n_data={N_DATA}, got 7$"),
        ({"steps": 0}, "^steps must be"),
        ({"steps": True}, "^steps must be"),
        ({"steps": 2**32}, "^steps must be"),  # batches are numbered with 32 bits
        ({"record_every": 0}, "^record_every must be"),
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**64}, "^seed must be"),
        ({"threads": 0}, "^threads must be"),
    ],
    ids=str,
)
def test_refusals(changed, message, monkeypatch):
    _no_work(monkeypatch)
    with pytest.raises(InputError, match=message) as refused:
        follow(**changed)
    assert "\n" not in str(refused.value)


def test_refuses_what_does_not_fit_in_memory(monkeypatch):
    """A curvature per thread that has work."""
    draw = 8 * N_DATA * N_PARAMS**2

    def free(n_bytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))

    free(100 * draw)
    follow([0.5], steps=1, threads=1)
    free(draw)
    _no_work(monkeypatch)
    with pytest.raises(MemoryError, match=r"^the curvatures needs? .* are free$"):
        follow([0.5], steps=1, threads=1)
    with pytest.raises(MemoryError, match=r"^the curvatures needs? .* are free$"):
        follow(replicas=2**32 - 1)


def _no_work(monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(module, "aligned_model", work)
    monkeypatch.setattr(module, "mean_field", work)
