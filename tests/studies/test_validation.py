"""validate(): its table, and that a wrong theory fails the rows that it is wrong about.

With a small fraction of the effort; every wrong theory is off by many standard errors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.studies import _validation as suite
from quadmodel.studies import validation as module
from quadmodel.theory import _generated as generated

TINY = suite.Effort(
    replicas=40, ntk_replicas=10, large_replicas=2, growth_steps=64, threads=None, seed=0
)
# Enough to see each part of the theory.
SMALL = suite.Effort(
    replicas=1000, ntk_replicas=300, large_replicas=8, growth_steps=600, threads=None, seed=0
)
OPTIMIZERS = (
    "SGD", "with replacement", "Bernoulli", "heavy ball", "Nesterov", "weight decay",
    "momentum, decay",
)  # fmt: skip
AT = ("loss at step 10", "loss at step 40")
MODES = tuple(
    f"squared residual along the {which} mode at step 40" for which in ("largest", "smallest")
)
GROWTHS = ("K = 0.8, B = 6", "K = 1.05, B = 6", "K = 1.05, B = 20")
CASES = ("independent Q, SGD", "correlated Q, SGD", "independent Q, Nesterov")
CHANGES = ("first difference", "second difference", "change in 20 steps")
SIZES = "largest eigenvalue, B = 6 less B = 60"
ROWS = {
    "_linear": [f"{optimizer}: {what}" for optimizer in OPTIMIZERS for what in AT + MODES],
    "_floor": ["loss floor"],
    "_rate": [f"log growth of the mean loss, {case}" for case in GROWTHS],
    "_typical": [
        f"log growth of the typical loss, K = 1, {sampling}"
        for sampling in ("without replacement", "bernoulli")
    ],
    "_threshold": [f"critical noise kernel norm, B = {b}" for b in (2, 6)],
    "_sharpening": [
        f"{case}: {change}, {what}"
        for case in CASES
        for what in ("trace", "top mode")
        for change in CHANGES
    ],
    "_conservative": [f"{SIZES}, mean", f"{SIZES}, along its mode"],
    "_large_p": [
        f"large-P limit: {what} at step 6"
        for what in ("loss", "trace of the NTK", "largest eigenvalue of the NTK")
    ],
}


@pytest.fixture
def effort(monkeypatch):
    """Set how much is simulated, and which parts of the suite."""

    def effort(amount, *parts):
        monkeypatch.setattr(module, "_QUICK", amount)
        if parts:
            monkeypatch.setattr(module, "SUITE", parts)

    return effort


# ---- the table


@pytest.fixture(scope="module")
def tables():
    """The whole suite at its least, with one thread and with two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUICK", TINY)
        return [qm.validate(quick=True, threads=threads) for threads in (1, 2)]


@pytest.mark.slow
def test_layout(tables):
    table = tables[0]
    assert {name: table[name].dims for name in table.variables} == dict.fromkeys(
        ("row", "predicted", "measured", "standard_error", "z", "agrees"), ("row",)
    )
    assert table.row.values.tolist() == [name for rows in ROWS.values() for name in rows]
    assert all("long_name" in table[name].attrs for name in table.data_vars)
    assert table.agrees.dtype == bool
    assert table.attrs.keys() == {
        "quick", "seed", "family_wise_error", "bound", "worst", "verdict", "quadmodel_version",
        "kind",
    }  # fmt: skip
    assert table.attrs["quick"] == 1
    assert table.attrs["seed"] == "0"
    assert table.attrs["quadmodel_version"] == qm.__version__
    for name in ("predicted", "measured", "standard_error"):
        assert np.isfinite(table[name]).all()
    assert (table.standard_error > 0).all()


@pytest.mark.slow
def test_numbers_fit_each_other(tables):
    table = tables[0]
    z = (table.measured - table.predicted) / table.standard_error
    np.testing.assert_allclose(table.z, z, rtol=1e-12)
    assert table.attrs["worst"] == float(np.abs(z).max())
    bound = norm.isf(1e-6 / 2 / table.sizes["row"])
    assert table.attrs["bound"] == pytest.approx(bound, rel=1e-9)
    assert (table.agrees == (np.abs(table.z) <= bound)).all()


@pytest.mark.slow
def test_does_not_depend_on_threads(tables):
    assert tables[0].identical(tables[1])


@pytest.mark.slow
def test_can_be_written(tables, tmp_path):
    tables[0].to_netcdf(tmp_path / "table.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "table.nc", engine="h5netcdf") as read:
        assert read.row.values.tolist() == tables[0].row.values.tolist()
        assert read.attrs["verdict"] == tables[0].attrs["verdict"]


@pytest.mark.slow
def test_seed_changes_every_part(effort, tables):
    effort(TINY)
    other = qm.validate(quick=True, seed=2**63)
    assert other.attrs["seed"] == str(2**63)
    assert (other.measured != tables[0].measured).all()


def test_effort_of_quick_and_full(monkeypatch):
    """Each with its own, and with the seed and threads that were asked for."""
    seen = []

    def part(effort):
        seen.append(effort)
        yield suite.Row("one", 0.0, 0.0, 1.0)

    monkeypatch.setattr(module, "SUITE", (part,))
    qm.validate(quick=True, seed=5, threads=3)
    assert qm.validate(seed=6).attrs["quick"] == 0
    quick, full = seen
    assert quick == replace(module._QUICK, seed=5, threads=3)
    assert full == replace(module._FULL, seed=6, threads=None)
    for amount in ("replicas", "ntk_replicas", "large_replicas", "growth_steps"):
        assert getattr(full, amount) > getattr(quick, amount)


# ---- verdicts on given rows


def given(*rows):
    """A part of the suite whose rows are known."""
    return lambda _effort: iter(suite.Row(*row) for row in rows)


@pytest.mark.parametrize("family_wise_error", [1e-6, 0.05])
@pytest.mark.parametrize("sign", [-1, 1])
def test_verdict_turns_at_the_bound(sign, family_wise_error, effort):
    bound = norm.isf(family_wise_error / 2 / 2)  # two rows, two sides
    for part, agrees in ((0.999, True), (1.001, False)):
        measured = 3.0 + sign * part * bound * 0.1
        effort(TINY, given(("first", 1.0, 1.0, 0.5)), given(("second", 3.0, measured, 0.1)))
        table = qm.validate(quick=True, family_wise_error=family_wise_error)
        assert table.agrees.values.tolist() == [True, agrees]
        assert table.attrs["verdict"] == ("agree" if agrees else "disagree")
        assert table.attrs["worst"] == pytest.approx(part * bound)
        assert table.attrs["family_wise_error"] == family_wise_error


@pytest.mark.parametrize(
    "row",
    [(math.nan, 1.0, 0.1), (1.0, math.nan, 0.1), (1.0, 1.0, math.nan), (1.0, math.inf, 0.1)],
    ids=["predicted", "measured", "error", "diverged"],
)
def test_a_row_without_a_number_fails(row, effort):
    effort(TINY, given(("good", 1.0, 1.0, 0.1), ("bad", *row), ("also good", 1.0, 1.0, 0.1)))
    table = qm.validate(quick=True)
    assert table.agrees.values.tolist() == [True, False, True]
    assert table.attrs["verdict"] == "disagree"
    assert not table.attrs["worst"] <= table.attrs["bound"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**63 + 1}, "^seed must be"),
        ({"seed": 0.5}, "^seed must be"),
        ({"family_wise_error": 0.0}, "^family_wise_error must be"),
        ({"family_wise_error": 1.0}, "^family_wise_error must be"),
        ({"family_wise_error": math.nan}, "^family_wise_error must be"),
        ({"threads": 0}, "^threads must be"),
        ({"threads": 1.5}, "^threads must be"),
    ],
    ids=str,
)
def test_refusals(changed, message, effort):
    def work(_):
        raise AssertionError("work started before the input was checked")

    effort(TINY, work)
    with pytest.raises(InputError, match=message) as refused:
        qm.validate(quick=True, **changed)
    assert "\n" not in str(refused.value)


def test_progress_changes_nothing(effort, capsys):
    effort(TINY, suite._floor)
    assert qm.validate(quick=True).identical(qm.validate(quick=True, progress=True))
    assert capsys.readouterr() == ("", "")


# ---- negative controls


@pytest.fixture
def failed(effort):
    """Run a part of the suite; return the rows that failed."""

    def failed(part):
        effort(SMALL, getattr(suite, part))
        table = qm.validate(quick=True)
        assert table.row.values.tolist() == ROWS[part]
        names = set(table.row.values[~table.agrees.values].tolist())
        assert table.attrs["verdict"] == ("disagree" if names else "agree")
        return names

    return failed


@pytest.fixture(scope="module")
def remembered():
    """sample_ntk() that draws once for all the theories that it's set beside."""
    known = {}

    def sample_ntk(model, sgd, steps, *, curvature=None, **options):
        key = repr((model, sgd, steps, curvature, options))
        if key not in known:
            known[key] = qm.sample_ntk(model, sgd, steps, curvature=curvature, **options)
        return known[key]

    return sample_ntk


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("part", ROWS)
def test_right_theory_agrees(part, failed, remembered, monkeypatch):
    """Each part wrong by chance once in a million."""
    monkeypatch.setattr(suite, "sample_ntk", remembered)
    assert failed(part) == set()


def rows_of(optimizers, numbers):
    return {f"{optimizer}: {number}" for optimizer in optimizers for number in numbers}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("wrong", "least", "most"),
    [
        # All optimizers but the one that draws with replacement.
        (
            {"sampling": "with_replacement"},
            rows_of([*OPTIMIZERS[:1], *OPTIMIZERS[2:]], AT),
            rows_of([*OPTIMIZERS[:1], *OPTIMIZERS[2:]], AT + MODES),
        ),
        (
            {"weight_decay": 0.0},
            {"weight decay: loss at step 40", "momentum, decay: loss at step 40"},
            rows_of(OPTIMIZERS[5:], AT + MODES),
        ),
        (
            {"nesterov": False},
            rows_of(["Nesterov"], AT),
            rows_of(["Nesterov"], AT + MODES),
        ),
        (
            {"momentum": 0.0, "nesterov": False},
            rows_of([*OPTIMIZERS[3:5], OPTIMIZERS[6]], AT),
            rows_of([*OPTIMIZERS[3:5], OPTIMIZERS[6]], AT + MODES),
        ),
    ],
    ids=["sampling", "weight decay", "Nesterov", "momentum"],
)  # fmt: skip
def test_wrong_moments_are_named(wrong, least, most, failed, monkeypatch):
    monkeypatch.setattr(
        suite,
        "predict",
        lambda model, sgd, *rest, **named: qm.predict(model, replace(sgd, **wrong), *rest, **named),
    )
    assert least <= failed("_linear") <= most


@pytest.mark.statistical
def test_wrong_floor_is_named(failed, monkeypatch):
    monkeypatch.setattr(suite, "loss_floor", lambda *a, **k: 1.02 * qm.loss_floor(*a, **k))
    assert failed("_floor") == set(ROWS["_floor"])


@pytest.mark.statistical
def test_wrong_rate_is_named(failed, monkeypatch):
    monkeypatch.setattr(suite, "late_time_rate", lambda *a, **k: 1.05 * qm.late_time_rate(*a, **k))
    assert failed("_rate") == set(ROWS["_rate"])


@pytest.mark.statistical
def test_wrong_typical_growth_is_named(failed, monkeypatch):
    """Without half the variance of a step, that of the mean."""

    def wrong(*arguments):
        found = qm.typical_growth(*arguments)
        return found.assign(typical_growth=found.mean_growth)

    monkeypatch.setattr(suite, "typical_growth", wrong)
    assert failed("_typical") == set(ROWS["_typical"])


@pytest.mark.statistical
def test_wrong_noise_kernel_norm_is_named(failed, monkeypatch):
    def wrong(grid):
        larger = {
            name: 1.2 * grid[name] for name in ("noise_kernel_norm", "scan_noise_kernel_norm")
        }
        return qm.critical_noise_kernel_norm(grid.assign(larger))

    monkeypatch.setattr(suite, "critical_noise_kernel_norm", wrong)
    assert failed("_threshold") == set(ROWS["_threshold"])


def named(*words, of="_sharpening"):
    """The rows of a part that hold one of the words."""
    return {row for row in ROWS[of] if any(word in row for word in words)}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("function", "replacement", "least", "most"),
    [
        # The first step is diffusion alone.
        (
            "ntk_diffusion",
            lambda over_data, *_: np.zeros_like(over_data),
            named("first difference", "change in 20 steps"),
            named(""),
        ),
        (
            "ntk_source_unit",
            lambda c, h, r, tau, y, d, p: c @ r + c @ y,
            {"independent Q, SGD: change in 20 steps, trace"},
            named("independent Q") - named("first difference"),
        ),
        (
            "ntk_source",
            lambda c, *_: np.zeros_like(c),
            {"correlated Q, SGD: change in 20 steps, trace"},
            named("correlated Q") - named("first difference"),
        ),
    ],
    ids=["no diffusive part", "no trace factor", "no drive"],
)
def test_wrong_mean_ntk_is_named(
    function, replacement, least, most, failed, remembered, monkeypatch
):
    monkeypatch.setattr(suite, "sample_ntk", remembered)
    monkeypatch.setattr(generated, function, replacement)
    assert least <= failed("_sharpening") <= most


@pytest.mark.statistical
@pytest.mark.parametrize("part", ["diffusive", "conservative"])
def test_mean_ntk_without_a_part_is_named(part, failed, remembered, monkeypatch):
    """Diffusion differs little between batch sizes; of the difference it's the smaller part."""

    def lacking(*arguments, **options):
        mean = qm.expected_ntk(*arguments, **options)
        return mean.assign(
            ntk_projection=mean.ntk_projection - mean[part],
            ntk_eigenvalue=mean.ntk_eigenvalue - mean[part],
            ntk_trace=mean.ntk_trace - mean[part].sum("mode"),
        )

    monkeypatch.setattr(suite, "sample_ntk", remembered)
    monkeypatch.setattr(suite, "expected_ntk", lacking)
    if part == "conservative":
        assert failed("_conservative") == set(ROWS["_conservative"])
    else:
        assert named("first difference", "change in 20 steps") <= failed("_sharpening")


@pytest.mark.statistical
def test_limit_of_other_curvature_is_named(failed, monkeypatch):
    def stronger(model, *arguments, **options):
        law = qm.curvature.IndependentCurvature(1.5 * model.curvature_law.scale)
        return qm.large_p_limit(replace(model, curvature_law=law), *arguments, **options)

    monkeypatch.setattr(suite, "large_p_limit", stronger)
    assert set(ROWS["_large_p"][1:2]) <= failed("_large_p")
