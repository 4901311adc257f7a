"""large_p_edge(): its layout, its runs, outcomes, the table, the picture, refusals."""

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
from quadmodel.studies import large_p_outcomes as module

mpl.use("agg")

import matplotlib.pyplot as plt

from tests.assertions import assert_same_bits

N_DATA, NORMS, SIZES, STRENGTHS = 6, (0.3, 0.9), (1, 2, 4), (0.0, 0.8)
PER_STEP = ("noise_kernel_norm", "noise_kernel_norm_exact", "scaled_largest_eigenvalue", "loss")
PER_RUN = ("largest_norm", "final_norm", "final_norm_exact", "final_loss")
GRID = ("curvature_strength", "batch_size", "initial_norm")


def sweep(initial_norms=NORMS, batch_sizes=SIZES, curvature_strengths=STRENGTHS, **options):
    defaults = {"replicas": 2, "n_data": N_DATA, "steps": 150, "record_every": 5, "seed": 3}
    return qm.large_p_edge(
        initial_norms, batch_sizes, curvature_strengths, **{**defaults, **options}
    )


@pytest.fixture(scope="module")
def found():
    return sweep()


# ---- layout


def test_layout(found):
    run = (*GRID, "replica")
    assert {name: found[name].dims for name in found.data_vars} == {
        **dict.fromkeys(PER_STEP, (*run, "step")),
        **dict.fromkeys((*PER_RUN, "divergence_step", "outcome"), run),
        "learning_rate": ("batch_size", "initial_norm"),
    }
    assert dict(found.sizes) == {
        "curvature_strength": 2, "batch_size": 3, "initial_norm": 2, "replica": 2, "step": 31
    }  # fmt: skip
    assert found.step.values.tolist() == list(range(0, 151, 5))
    assert found.step.attrs["units"] == found.divergence_step.attrs["units"] == "SGD steps"
    for name in found.data_vars:
        assert "long_name" in found[name].attrs
    assert found.attrs == {
        "kind": "edge at large P", "truncation_order": 2, "steps": 150, "seed": "3",
        "quadmodel_version": qm.__version__, "n_data": N_DATA,
    }  # fmt: skip


@pytest.mark.parametrize(("steps", "expected"), [(250, range(0, 251, 2)), (7, range(8))], ids=str)
def test_a_hundred_records_by_default(steps, expected):
    one = sweep([0.3], [2], [0.5], replicas=1, steps=steps, record_every=None)
    assert one.step.values.tolist() == list(expected)


def test_netcdf_round_trip(found, tmp_path):
    found.to_netcdf(tmp_path / "edge.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "edge.nc", engine="h5netcdf") as back:
        assert_same_bits(back.load(), found)


def test_values_are_sorted_and_one_needs_no_list():
    one = sweep([0.9, 0.3], 2, 0.8, steps=5)
    assert one.initial_norm.values.tolist() == [0.3, 0.9]
    assert one.batch_size.values.tolist() == [2]


# ---- the runs


def test_the_model():
    model = module.power_law_model(N_DATA, N_DATA, seed=4)
    lam = np.linalg.eigvalsh(model.ntk())[::-1]
    np.testing.assert_allclose(lam, 1 / np.arange(1, N_DATA + 1), rtol=1e-10)
    assert model.residual @ model.residual == pytest.approx(N_DATA, rel=1e-12)
    assert model.curvature is None


def test_noise_kernel_norm_at_the_start(found):
    start = found.isel(step=0)
    expected = start.initial_norm.broadcast_like(start.noise_kernel_norm)
    np.testing.assert_allclose(start.noise_kernel_norm, expected, rtol=1e-6)
    np.testing.assert_allclose(start.loss, 0.5)
    lam = 1 / np.arange(1, N_DATA + 1)
    for size in SIZES:
        for norm in NORMS:
            rate = float(found.learning_rate.sel(batch_size=size, initial_norm=norm))
            by_hand = rate * (N_DATA / size - 1) / N_DATA * np.sum(lam / (2 - rate * lam))
            assert by_hand == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_a_grid_point_is_one_of_large_p_limit(order):
    several = sweep(truncation_order=order, steps=40)
    model = module.power_law_model(N_DATA, N_DATA, seed=3)
    for q, size, norm in ((0.0, 2, 0.9), (0.8, 1, 0.3), (0.8, 4, 0.9)):
        law = qm.curvature.IndependentCurvature(q / N_DATA**0.5)
        here = several.sel(curvature_strength=q, batch_size=size, initial_norm=norm)
        rate = float(here.learning_rate)
        assert rate == qm.critical_learning_rate(
            model.ntk(), qm.SGD(1.0, size), norm="paper", level=norm
        )
        alone = qm.large_p_limit(
            replace(model, curvature_law=law), qm.SGD(rate, size), 40, truncation_order=order,
            replicas=2, seed=3, record_every=5, observables="all",
        )  # fmt: skip
        for name in ("noise_kernel_norm", "noise_kernel_norm_exact", "loss"):
            np.testing.assert_array_equal(here[name], alone[name])
            assert here[name].attrs == alone[name].attrs
        np.testing.assert_allclose(
            here.scaled_largest_eigenvalue, rate * alone.ntk_largest_eigenvalue, rtol=1e-12
        )
        np.testing.assert_array_equal(here.divergence_step, alone.divergence_step)


# ---- outcomes


def test_without_curvature_the_norm_stays(found):
    still = found.sel(curvature_strength=0.0)
    assert (np.ptp(still.noise_kernel_norm.values, axis=-1) < 1e-12).all()
    np.testing.assert_allclose(still.final_norm.isel(replica=0), [NORMS] * 3, rtol=1e-6)
    np.testing.assert_array_equal(still.sel(initial_norm=0.3).outcome, "stayed below")
    curved = found.sel(curvature_strength=0.8, initial_norm=0.3)
    assert (np.ptp(curved.noise_kernel_norm.values, axis=-1) > 1e-2).all()


def test_strong_curvature_diverges():
    gone = sweep([0.9], [1], [20.0])
    np.testing.assert_array_equal(gone.outcome, "diverged")
    assert (gone.divergence_step > 0).all()
    assert np.isposinf(gone.final_loss).all()
    assert np.isnan(gone.final_norm).all()
    assert np.isnan(gone.final_norm_exact).all()
    assert (gone.largest_norm > 0.89).all()


def test_a_step_that_is_small_still_trains():
    np.testing.assert_array_equal(sweep([0.3], [1], [0.5], steps=5).outcome, "still training")


def test_a_run_turns_back():
    """Past the edge on the way, and below it where the loss is gone."""
    back = qm.large_p_edge([0.45], [6], [1.0], replicas=2, steps=400)
    np.testing.assert_array_equal(back.outcome, "turned back")
    assert (back.noise_kernel_norm.max("step") == back.largest_norm).all()
    assert (back.largest_norm > 1).all()
    assert (back.final_norm < 0.9).all()
    assert (back.final_norm == back.noise_kernel_norm.isel(step=-1)).all()
    assert (back.final_loss < 5e-4).all()


@pytest.mark.parametrize(
    ("norm", "loss", "diverged_at", "outcome"),
    [
        ([0.5, 0.9, 0.7], 0.4e-3, -1, "stayed below"),
        ([0.5, 1.1, 0.7], 0.4e-3, -1, "turned back"),
        ([0.5, np.inf, 0.7], 0.4e-3, -1, "turned back"),
        ([1.5, 1.1, 0.7], 0.4e-3, -1, "turned back"),
        ([0.5, 0.9, 1.0], 0.4e-3, -1, "ended above"),
        ([0.5, 0.9, np.inf], 0.4e-3, -1, "ended above"),
        ([0.5, 1.1, 0.7], 0.6e-3, -1, "still training"),
        ([0.5, 1.1, 1.2], 0.6e-3, -1, "still training"),
        ([0.5, np.nan, np.nan], np.inf, 7, "diverged"),
        ([0.5, 0.9, 0.9], 0.4e-3, 20, "diverged"),  # after the last record
    ],
)
def test_outcomes(norm, loss, diverged_at, outcome):
    norm = np.array(norm)
    recorded = {
        "noise_kernel_norm": norm,
        "noise_kernel_norm_exact": 1.2 * norm,
        "loss": np.array([0.5, 0.5, loss]),
    }
    summary = module._summary(recorded, np.int64(diverged_at))
    values = {name: entry[1].item() for name, entry in summary.items()}
    assert values["outcome"] == outcome
    assert values["largest_norm"] == np.nanmax(norm)
    if outcome == "diverged":
        assert math.isnan(values["final_norm"])
        assert math.isnan(values["final_norm_exact"])
        assert values["final_loss"] == np.inf
    else:
        assert values["final_norm"] == norm[-1]
        assert values["final_norm_exact"] == 1.2 * norm[-1]
        assert values["final_loss"] == loss


# ---- what the result depends on


def test_same_bits(found):
    for threads in (1, 3):
        assert_same_bits(found, sweep(threads=threads))


def test_a_grid_point_depends_neither_on_others_nor_on_more_replicas(found):
    alone = sweep([0.9], [2], [0.8], replicas=1)
    for name in (*PER_STEP, *PER_RUN, "divergence_step", "outcome"):
        np.testing.assert_array_equal(alone[name][0, 0, 0, 0], found[name][1, 1, 1, 0])


def test_replicas_and_seeds_differ(found):
    assert (found.loss[..., 0, 1] != found.loss[..., 1, 1]).all()
    other = sweep(seed=2**64 - 1)
    assert (other.loss[..., 1] != found.loss[..., 1]).all()
    assert other.attrs["seed"] == str(2**64 - 1)


def test_progress_changes_nothing(found, capsys):
    assert_same_bits(found, sweep(progress=True))
    assert capsys.readouterr() == ("", "")


# ---- the table


@pytest.fixture
def edited(found):
    """Four runs of one grid point with given ends, and a grid point where all have diverged."""
    points = found.isel(curvature_strength=[0], batch_size=[0], replica=[0, 1, 0, 1]).copy(
        deep=True
    )
    points.divergence_step[...] = [[-1, -1, -1, 9], [9, 9, 9, 9]]
    points.outcome[...] = [
        ["turned back", "ended above", "turned back", "diverged"],
        ["diverged"] * 4,
    ]
    for name in PER_RUN:
        points[name][...] = [[[[3.0, np.inf, 1.0, np.nan], [np.nan] * 4]]]
    return points


def test_table(edited):
    table = module.outcome_table(edited)
    assert {name: table[name].dims for name in table.data_vars} == dict.fromkeys(
        (*PER_RUN, "outcome"), GRID
    )
    for name in PER_RUN:
        np.testing.assert_array_equal(table[name], [[[3.0, np.nan]]])
    assert table.outcome.values.tolist() == [
        [["2 turned back, 1 ended above, 1 diverged", "4 diverged"]]
    ]
    assert len(table.to_dataframe()) == 2


def test_table_of_another_dataset(found):
    for other in (found.isel(replica=0), found.drop_vars("outcome")):
        with pytest.raises(InputError, match=r"^found must be of large_p_edge\(\)"):
            module.outcome_table(other)


def test_table_with_dimensions_in_another_order(found):
    turned = found.transpose("replica", "initial_norm", ...)
    xr.testing.assert_identical(module.outcome_table(turned), module.outcome_table(found))


# ---- the picture


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_picture(found):
    fig, ax = plt.subplots()
    artists = qm.plot.large_p_edge(found, ax)
    fig.canvas.draw()
    assert all(artist.axes is ax for artist in artists)
    points = np.concatenate([np.column_stack(artist.get_data()) for artist in artists])
    assert len(points) == found.outcome.size
    assert len(np.unique(points, axis=0)) == len(points)  # none hides another
    # Runs stand beside their start, nearer to it than to any other.
    nearest = np.abs(np.log(points[:, :1] / np.array(NORMS))).argmin(axis=1)
    final = found.final_norm.transpose("initial_norm", ...)
    for n, ends in enumerate(final.values):
        drawn = points[nearest == n, 1]
        assert len(drawn) == ends.size
        assert set(ends[np.isfinite(ends)]) <= set(drawn)
    (edge,) = (line for line in ax.lines if list(line.get_ydata()) == [1, 1])
    assert edge.get_color() == "black"
    (stays,) = (artist for artist in ax.collections if artist.get_label() == "at the start")
    assert [segment[0, 1] for segment in stays.get_segments()] == list(NORMS)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    seen = [outcome for outcome in module.OUTCOMES if (found.outcome == outcome).any()]
    assert labels == ["at the start", *(f"B = {size}" for size in SIZES), *seen]


def test_a_marker_per_outcome_and_a_colour_per_batch_size(edited):
    artists = qm.plot.large_p_edge(edited)
    assert len({artist.get_color() for artist in artists}) == 1
    heights = {}
    for artist in artists:
        inside = artist.get_transform() == artist.axes.transData
        heights.setdefault(artist.get_marker(), []).append((inside, list(artist.get_ydata())))
    # One that ended beyond the deterministic edge and those that diverged: above the data.
    assert heights == {
        "v": [(True, [3.0, 1.0])], "^": [(False, [0.95])], "x": [(False, [0.95] * 5)]
    }  # fmt: skip


def test_picture_knows_the_outcomes():
    assert tuple(qm.plot._at_the_edge._OUTCOMES) == module.OUTCOMES


def test_picture_where_all_runs_diverge():
    gone = sweep([0.5, 0.9], [1], [20.0])
    fig, ax = plt.subplots()
    qm.plot.large_p_edge(gone, ax)
    fig.canvas.draw()
    assert ax.get_ylim()[1] > 1


def test_picture_of_another_dataset():
    other = qm.persistent_edge([0.5], replicas=1, n_data=6, n_params=10, steps=5)
    with pytest.raises(InputError, match=r"^found must be of large_p_edge\(\)"):
        qm.plot.large_p_edge(other)


# ---- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"initial_norms": []}, "^initial_norms must hold at least one, got none$"),
        ({"initial_norms": [0.3, 0.0]}, "^initial_norms must be a finite number > 0, got 0.0$"),
        ({"initial_norms": [math.nan]}, "^initial_norms must be"),
        ({"initial_norms": [math.inf]}, "^initial_norms must be"),
        ({"initial_norms": [[0.3], [0.3, 0.9]]}, "^initial_norms must be a list of numbers"),
        ({"initial_norms": [0.3, 0.3]}, r"^initial_norms must be different ones, got \[0.3, 0.3\]"),
        ({"initial_norms": "low"}, "^initial_norms must be"),
        ({"batch_sizes": []}, "^batch_sizes must hold"),
        ({"batch_sizes": [0]}, "^batch_sizes must be an integer between 1 and 5, got 0$"),
        ({"batch_sizes": [N_DATA]}, "^batch_sizes must be an integer between 1 and 5, got 6$"),
        ({"batch_sizes": [1.5]}, "^batch_sizes must be"),
        ({"curvature_strengths": []}, "^curvature_strengths must hold"),
        ({"curvature_strengths": [-0.5]}, "^curvature_strengths must be"),
        ({"curvature_strengths": None}, "^curvature_strengths must be"),
        ({"truncation_order": 0}, "^truncation_order must be"),
        ({"n_data": 1}, "^n_data must be"),
        ({"steps": 0}, "^steps must be"),
        ({"steps": 2**32}, "^steps must be"),
        ({"replicas": 0}, "^replicas must be"),
        ({"replicas": 2**32}, "^replicas must be"),
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
        sweep(**changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [{"truncation_order": 60}, {"truncation_order": 10**9}, {"replicas": 2**32 - 1}],
    ids=str,
)
def test_refuses_what_does_not_fit_in_memory(options, monkeypatch):
    _no_work(monkeypatch)
    with pytest.raises(MemoryError, match=r"^the large-P limit needs .* are free$"):
        sweep(**options)


def test_memory_is_that_of_the_threads_that_run(monkeypatch):
    sweep([0.3], [2], [0.5], threads=1, steps=5)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * N_DATA**3))
    _no_work(monkeypatch)
    with pytest.raises(MemoryError, match=r"^the large-P limit needs"):
        sweep([0.3], [2], [0.5], threads=1, steps=5)


def _no_work(monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    monkeypatch.setattr(module, "power_law_model", work)
