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
from quadmodel.studies._validation import curvature, growth, large_p, mean_field, moments
from quadmodel.theory import _generated as generated

TINY = suite.Effort(
    replicas=40, ntk_replicas=10, large_replicas=2, growth_steps=64, threads=None, seed=0
)
# Enough to see each part of the theory.
SMALL = suite.Effort(
    replicas=4000, ntk_replicas=300, large_replicas=8, growth_steps=600, threads=None, seed=0
)
PARTS = {part.__name__: part for part in suite.SUITE}
COUNTS = {
    "linear": 32, "closure": 8, "floor": 7, "norms": 9, "crossing": 1, "rate": 33, "edge": 8,
    "one_step": 12, "typical": 4, "threshold": 2, "sharpening": 48, "response": 20,
    "conservative": 2, "large_p": 3, "mean_field_theory": 8,
}  # fmt: skip


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
    assert table.sizes["row"] == sum(COUNTS.values())
    assert len(set(table.row.values.tolist())) == table.sizes["row"]
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


def table_rows(table, *words):
    """Which rows hold one of the words."""
    return np.array([any(word in row for word in words) for row in table.row.values])


@pytest.mark.slow
def test_seed_changes_every_part(effort, tables):
    effort(TINY)
    other = qm.validate(quick=True, seed=2**63)
    assert other.attrs["seed"] == str(2**63)
    random = ~table_rows(other, "at the edge of stability", "full batches, learning")
    assert (other.measured != tables[0].measured).values[random].all()


def test_effort_of_quick_and_full(monkeypatch):
    """Each with its own, and with the seed and threads that were asked for."""
    seen = []

    def part(effort):
        seen.append(effort)
        yield suite.Row("one", 0.0, 0.0, 1.0)

    monkeypatch.setattr(module, "SUITE", (part,))
    qm.validate(quick=True, seed=5, threads=3)
    assert qm.validate(seed=6, threads=2).attrs["quick"] == 0
    quick, full = seen
    assert quick == replace(module._QUICK, seed=5, threads=3)
    assert full == replace(module._FULL, seed=6, threads=2)
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
    effort(TINY, moments.floor)
    assert qm.validate(quick=True).identical(qm.validate(quick=True, progress=True))
    assert capsys.readouterr() == ("", "")


# ---- negative controls


@pytest.fixture
def failed(effort):
    """Run a part of the suite; return the rows that failed."""

    def failed(part, size=SMALL):
        effort(size, PARTS[part])
        table = qm.validate(quick=True)
        assert table.sizes["row"] == COUNTS[part]
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


@pytest.fixture(scope="module")
def bent():
    """simulate() that runs once per curvature, for all theories."""
    known = {}

    def simulate(model, sgd, steps, **options):
        bend = None if model.curvature is None else model.curvature.tobytes()
        key = bend, repr((sgd, steps, options))
        if key not in known:
            known[key] = qm.simulate(model, sgd, steps, **options)
        return known[key]

    return simulate


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("part", COUNTS)
def test_right_theory_agrees(part, failed, remembered, monkeypatch):
    """Each part wrong by chance once in a million."""
    monkeypatch.setattr(curvature, "sample_ntk", remembered)
    assert failed(part) == set()


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("wrong", "least", "never"),
    [
        ({"sampling": "with_replacement"}, ("SGD: loss", "Bernoulli: loss"), ("with replacement",)),
        ({"weight_decay": 0.0}, ("Nesterov, decay: loss",), ("SGD", "Bernoulli", "Nesterov:")),
        ({"nesterov": False}, ("Nesterov: loss",), ("SGD", "heavy ball", "momentum, decay")),
        ({"momentum": 0.0, "nesterov": False}, ("heavy ball: loss",), ("SGD", "weight decay")),
    ],
    ids=["sampling", "weight decay", "Nesterov", "momentum"],
)
def test_wrong_moments_are_named(wrong, least, never, failed, monkeypatch):
    monkeypatch.setattr(
        moments,
        "predict",
        lambda model, sgd, *rest, **named: qm.predict(model, replace(sgd, **wrong), *rest, **named),
    )
    names = failed("linear")
    for start in least:
        assert any(name.startswith(start) for name in names)
    assert not any(name.startswith(never) for name in names)


def scaled(function, factor):
    """A theory that is off by a factor."""
    return lambda *arguments, **options: factor * function(*arguments, **options)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("part", "of", "function", "factor", "words"),
    [
        ("floor", moments, "loss_floor", 1.02, ("loss floor",)),
        ("norms", moments, "noise_kernel_norm", 1.1, ("noise kernel norm", "spectral law")),
        ("rate", growth, "late_time_rate", 1.05, ("log growth",)),
        ("rate", growth, "critical_learning_rate", 1.1, ("critical",)),
        ("edge", growth, "edge_of_stability", 1.01, ("edge of stability",)),
    ],
)
def test_a_wrong_factor_is_named(part, of, function, factor, words, failed, monkeypatch):
    monkeypatch.setattr(of, function, scaled(getattr(of, function), factor))
    names = failed(part)
    assert names
    assert all(any(word in name for word in words) for name in names)


@pytest.mark.statistical
def test_wrong_typical_growth_is_named(failed, monkeypatch):
    """Without half the variance of a step, that of the mean; and with a variance 10 % off."""

    def wrong(*arguments):
        found = qm.typical_growth(*arguments)
        return found.assign(
            typical_growth=found.mean_growth, one_step_variance=1.1 * found.one_step_variance
        )

    monkeypatch.setattr(growth, "typical_growth", wrong)
    assert len(failed("typical", replace(SMALL, replicas=16000))) == COUNTS["typical"]
    names = failed("one_step")
    assert names
    assert all("variance" in name for name in names)


@pytest.mark.statistical
def test_wrong_noise_kernel_norm_is_named(failed, monkeypatch):
    def wrong(grid):
        places = ("", "scan_", "close_")
        larger = {f"{p}noise_kernel_norm": 1.2 * grid[f"{p}noise_kernel_norm"] for p in places}
        return qm.critical_noise_kernel_norm(grid.assign(larger))

    monkeypatch.setattr(growth, "critical_noise_kernel_norm", wrong)
    assert len(failed("threshold")) == COUNTS["threshold"]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("function", "replacement", "least", "never"),
    [
        # The first step is diffusion alone.
        (
            "ntk_diffusion",
            lambda over_data, *_: np.zeros_like(over_data),
            ("first difference", "change in 20 steps"),
            (),
        ),
        (
            "ntk_source_unit",
            lambda c, h, r, tau, y, d, p: c @ r - c @ y + c @ tau + (p - d) * c @ h,
            ("change in 20 steps, trace",),
            ("first difference", "correlated"),
        ),
        (
            "mode_fluctuation",
            lambda *arguments: 0.5 * np.ones_like(arguments[3]),
            ("repulsion",),
            ("difference", "change"),
        ),
    ],
    ids=["no diffusive part", "sign of R Y", "no law of repulsion"],
)
def test_wrong_mean_ntk_is_named(
    function, replacement, least, never, failed, remembered, monkeypatch
):
    monkeypatch.setattr(curvature, "sample_ntk", remembered)
    monkeypatch.setattr(generated, function, replacement)
    names = failed("sharpening")
    for word in least:
        assert any(word in name for name in names)
    assert not any(word in name for word in never for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("term", range(7))
def test_wrong_sign_of_any_drive_is_named(term, failed, bent, monkeypatch):
    """The terms of the drive with correlated parameters, one at a time."""
    signs = np.where(np.arange(7) == term, -1, 1)

    def wrong(c, h, of_data, of_trace, of_displaced, skew, twice, trace):
        inner = (trace * h, -np.trace(skew) * h, of_data, of_displaced, of_trace, -h @ skew.T)
        drive = sum(s * c @ x @ skew.T for s, x in zip(signs, inner, strict=False))
        return drive + signs[6] * c @ h @ twice.T

    monkeypatch.setattr(curvature, "simulate", bent)
    monkeypatch.setattr(generated, "ntk_source", wrong)
    names = failed("response")
    assert names
    assert all(name.startswith("correlated") for name in names)


@pytest.mark.statistical
def test_mean_ntk_without_the_noise_of_batches_is_named(failed, remembered, monkeypatch):
    def lacking(*arguments, **options):
        mean = qm.expected_ntk(*arguments, **options)
        return mean.assign(
            ntk_projection=mean.ntk_projection - mean.conservative,
            ntk_eigenvalue=mean.ntk_eigenvalue - mean.conservative,
        )

    monkeypatch.setattr(curvature, "sample_ntk", remembered)
    monkeypatch.setattr(curvature, "expected_ntk", lacking)
    assert len(failed("conservative")) == COUNTS["conservative"]


@pytest.mark.statistical
def test_limit_of_other_curvature_is_named(failed, monkeypatch):
    def stronger(model, *arguments, **options):
        law = qm.curvature.IndependentCurvature(1.5 * model.curvature_law.scale)
        return qm.large_p_limit(replace(model, curvature_law=law), *arguments, **options)

    monkeypatch.setattr(large_p, "large_p_limit", stronger)
    assert any("trace" in name for name in failed("large_p"))


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "least"),
    [(1.1, ("trace", "noise kernel norm")), (0.9, ("trace",)), (0.0, ("loss", "distance"))],
)
def test_mean_field_of_other_curvature_is_named(wrong, least, failed, monkeypatch):
    def other(model, *arguments, curvature, **options):
        law = replace(curvature, scale=wrong * curvature.scale)
        return qm.mean_field(model, *arguments, curvature=law, **options)

    monkeypatch.setattr(mean_field, "mean_field", other)
    names = failed("mean_field_theory", replace(SMALL, large_replicas=40))
    for word in least:
        assert any(word in name for name in names)
    for kind in ("as the NTK", "independent"):
        assert any(kind in name and "trace" in name for name in names)
