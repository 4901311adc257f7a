"""Stores of every study: resumed, read while they are written, the same bits as without."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies import _diagram
from quadmodel.studies._validation import Row
from quadmodel.sweeps import DryRun, store
from quadmodel.sweeps.sweep import Sweep
from tests.assertions import assert_same_bits

ENSEMBLE = qm.Ensemble(12, 24, qm.spectra.PowerLaw(0.5))


def diagram(rates=5, sizes=(1, 4, 12), **options):
    return qm.phase_diagram(ENSEMBLE, rates, list(sizes), steps=64, replicas=4, seed=3, **options)


CALLS = {
    "phase diagram": diagram,
    "large-P phase diagram": lambda **options: qm.large_p_phase_diagram(
        qm.Ensemble(6, 400, curvature=0.5 / 20), 4, 2, steps=32, replicas=2, **options
    ),
    "boundary": lambda **options: qm.trace_boundary(
        ENSEMBLE, [2, 12], momenta=[0.0, 0.3], steps=64, replicas=4, rtol=0.1, **options
    ),
    "sharpening diagram": lambda **options: qm.sharpening_diagram(
        qm.Ensemble(8, 30, curvature=0.01), 3, [1, 8], steps=10, replicas=4, **options
    ),
    "persistent edge": lambda **options: qm.persistent_edge(
        [0.5, 1.0], replicas=2, n_data=8, n_params=16, steps=30, **options
    ),
    "edge at large P": lambda **options: qm.large_p_edge(
        [0.4, 4.0], [2], [0.5], n_data=6, steps=50, replicas=2, **options
    ),
}


class Stop(Exception):  # noqa: N818
    """Ends a sweep, as an interrupt would."""


def stopped(call, folder, monkeypatch, stage, after):
    """Run a sweep up to so many units of a stage."""
    keep, count = store.Folder.keep, [0]

    def keep_some(self, name, unit, record):
        if name == stage:
            count[0] += 1
            if count[0] > after:
                raise Stop
        keep(self, name, unit, record)

    with monkeypatch.context() as patch:
        patch.setattr(store.Folder, "keep", keep_some)
        with pytest.raises(Stop):
            call(store=folder, threads=1)


def stages(call):
    """Return the stages of a sweep with their numbers of units."""
    seen, run = {}, Sweep.run

    def spy(self, stage, units, undecided=None):
        seen[stage] = len(units)
        return run(self, stage, units, undecided)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "run", spy)
        return seen, call(threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CALLS)
def test_stopped_in_every_stage_and_resumed(kind, tmp_path, monkeypatch):
    """Half-way through each stage, whose next run goes on, the result is the same bits."""
    call = CALLS[kind]
    found, expected = stages(call)
    for stage, count in found.items():
        stopped(call, tmp_path / "x", monkeypatch, stage, count // 2)
    done = store.progress_of(tmp_path / "x").done
    assert done[stage] == count // 2
    resumed = call(store=tmp_path / "x")
    assert_same_bits(resumed, expected)
    again = call(store=tmp_path / "x")  # read from the store
    assert_same_bits(again, expected)
    for name in expected.variables:
        assert again[name].dims == expected[name].dims
        assert again[name].attrs == expected[name].attrs
        assert again[name].dtype.kind == expected[name].dtype.kind


def test_reading_an_unfinished_diagram(tmp_path, monkeypatch):
    expected = diagram()
    folder = tmp_path / "x"
    stopped(diagram, folder, monkeypatch, "edges", 1)
    found = qm.open_phase_diagram(folder)
    assert not found.data_vars
    assert found.attrs["steps"] == 64
    assert 0 < found.attrs["share_done"] < 0.2
    stopped(diagram, folder, monkeypatch, "grid", 4)
    found = qm.open_phase_diagram(str(folder))
    seen = np.isfinite(found.fraction_diverged.values)
    assert seen.sum() == 4
    for name in ("mean_growth", "noise_kernel_norm", "final_loss"):
        np.testing.assert_array_equal(
            found[name].values[..., seen], expected[name].values[..., seen]
        )
    assert (found.phase.values[~seen] == _diagram.NOT_SIMULATED).all()
    np.testing.assert_array_equal(found.phase.values[seen], expected.phase.values[seen])
    np.testing.assert_array_equal(found.critical_learning_rate, expected.critical_learning_rate)
    assert np.isnan(found.scan_mean_growth).all()
    assert "close_growth" not in found
    assert found.attrs["share_done"] == store.progress_of(folder).share
    stopped(diagram, folder, monkeypatch, "close-ups", 1)
    found = qm.open_phase_diagram(folder)
    np.testing.assert_array_equal(found.scan_mean_growth, expected.scan_mean_growth)
    assert 0 < np.isfinite(found.close_growth).sum() < np.isfinite(expected.close_growth).sum()
    diagram(store=folder)
    found = qm.open_phase_diagram(folder)
    assert found.attrs.pop("share_done") == 1.0
    assert_same_bits(found, expected)


def test_only_stores_of_phase_diagrams_are_opened(tmp_path):
    CALLS["sharpening diagram"](store=tmp_path / "x")
    with pytest.raises(InputError, match="must be of a phase diagram, got that of a sharpening"):
        qm.open_phase_diagram(tmp_path / "x")
    with pytest.raises(InputError, match="must be the folder of a sweep"):
        qm.open_phase_diagram(tmp_path)
    with pytest.raises(InputError, match="must be the path of a folder, got 3"):
        qm.open_phase_diagram(3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rates": [0.1, 0.2]}, r"with learning_rates 5 in place of \[0.1, 0.2\]"),
        ({"sizes": (1, 4)}, r"with batch_sizes \[1, 4, 12\] in place of \[1, 4\]"),
        ({"sgd": qm.SGD(1.0, 1, momentum=0.5)}, r"with sgd.momentum 0.0 in place of 0.5"),
        ({"refine": 3}, "with refine 6 in place of 3"),
    ],
    ids=str,
)
def test_another_diagram_is_refused(changed, message, tmp_path):
    diagram(store=tmp_path / "x")
    with pytest.raises(InputError, match=message):
        diagram(**changed, store=tmp_path / "x")


def test_validation_goes_on(tmp_path, monkeypatch):
    seen = []

    def part(name):
        def rows(effort):
            seen.append(name)
            yield Row(name, 0.0, 0.5, 1.0)
            yield Row(f"{name} again", 1.0, 1.0, 2.0)

        return rows

    monkeypatch.setattr("quadmodel.studies.validation.SUITE", tuple(map(part, "abc")))
    expected = qm.validate(quick=True)
    stopped(lambda **o: qm.validate(quick=True, **o), tmp_path / "x", monkeypatch, "parts", 2)
    seen.clear()
    assert_same_bits(qm.validate(quick=True, store=tmp_path / "x"), expected)
    assert seen == ["c"]
    with pytest.raises(InputError, match="with quick True in place of False"):
        qm.validate(store=tmp_path / "x")


@pytest.mark.parametrize("kind", ["phase diagram", "persistent edge"])
def test_plan(kind, tmp_path, monkeypatch):
    """Of short sweeps and of long ones; nothing is written."""
    for short in (3.0, 1e-9):
        monkeypatch.setattr("quadmodel.sweeps.plan._SHORT", short)
        with pytest.raises(DryRun, match=f"^plan of a {kind}") as plan:
            CALLS[kind](store=tmp_path / "x", dry_run=True)
        text = str(plan.value)
        for word in ("units", "model: ", "on disk: about", "time: about"):
            assert word in text
    if kind == "phase diagram":
        assert "grid: up to 15 units" in text
        assert "close-ups: up to 6 units" in text
    assert not (tmp_path / "x").exists()


def test_progress_counts_undecided_cells(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total, *, what, show, initial):
            shown.append((what, total, show))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            pass

        def set_postfix_str(self, text, *, refresh):
            shown.append(text)

    monkeypatch.setattr("quadmodel.sweeps.sweep.progress_bar", Bar)
    found = diagram(progress=True)
    error = found.mean_growth_standard_error
    undecided = int((np.abs(found.mean_growth) < 2 * error).sum())
    after = shown.index(("finer scan", 18, True))
    assert shown[after - 1] == f"{undecided} undecided"
    assert ("grid", 15, True) in shown
    assert isinstance(found, xr.Dataset)
