"""sample_ntk(): plain runs with the same draws, same bits, antithetic pairs, against the theory."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel.batches import batch_indices
from quadmodel.theory import _generated as generated
from tests.assertions import assert_same_bits
from tests.oracles import naive_sgd

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
PER_PAIR = {"ntk_projection", "ntk_eigenvalue", "ntk_trace"}
N_DATA, N_PARAMS = 4, 7


def law_of(kind: str, scale: float = 0.2) -> qm.curvature.CurvatureLaw:
    if kind == "independent":
        return qm.curvature.IndependentCurvature(scale)
    if kind == "low rank":
        return qm.curvature.RandomLowRankCurvature(rank=3, scale=scale)
    rng = np.random.default_rng(0)
    over_data = rng.standard_normal((N_DATA, N_DATA))
    over_parameters = rng.standard_normal((N_PARAMS, N_PARAMS))
    return qm.curvature.KroneckerCurvature(
        over_data @ over_data.T / N_DATA, over_parameters @ over_parameters.T / N_PARAMS, scale
    )


LAWS = ("independent", "correlated", "low rank")


def base() -> qm.QuadraticModel:
    return qm.Ensemble(N_DATA, N_PARAMS).sample(seed=1)


# ---- plain runs


def naive(model, sgd, law, recorded, *, pair, batch_sequences, seed, signs=(1, -1)):
    """Mean projections and ordered eigenvalues of a pair's NTKs, from plain loops."""
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pair,)))
    drawn = law.sample(stream, model.n_data, model.n_params)
    curvature = drawn.dense() if isinstance(drawn, qm.LowRankCurvature) else drawn.copy()
    vectors = model.eigensystem[1]
    projections, spectra = [], []
    for sign in signs:
        for sequence in range(batch_sequences):
            chosen = [
                batch_indices(
                    model.n_data, sgd.batch_size, seed=seed, replica=sequence, step=step,
                    model=pair, sampling=sgd.sampling,
                ).tolist()
                for step in range(recorded[-1])
            ]  # fmt: skip
            thetas, _ = naive_sgd.parameter_space(
                model.residual.tolist(), model.jacobian.tolist(), (sign * curvature).tolist(),
                chosen, sgd.learning_rate, sgd.batch_size, sgd.momentum, sgd.nesterov,
                sgd.weight_decay,
            )  # fmt: skip
            jacobians = [model.jacobian + sign * curvature @ np.array(thetas[t]) for t in recorded]
            ntks = [jacobian @ jacobian.T / model.n_data for jacobian in jacobians]
            projections.append([np.diagonal(vectors.T @ ntk @ vectors) for ntk in ntks])
            spectra.append([np.linalg.eigvalsh(ntk)[::-1] for ntk in ntks])
    return np.mean(projections, axis=0), np.mean(spectra, axis=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampling": "with_replacement"},
        {"sampling": "bernoulli"},
        {"momentum": 0.6},
        {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_is_the_mean_of_plain_runs(law, options):
    model, sgd = base(), qm.SGD(0.1, 2, **options)
    found = qm.sample_ntk(
        model, sgd, 8, replicas=3, curvature=law_of(law), batch_sequences=2, record_every=4, seed=11
    )
    for pair in range(3):
        projections, spectra = naive(
            model, sgd, law_of(law), [0, 4, 8], pair=pair, batch_sequences=2, seed=11
        )
        np.testing.assert_allclose(found.ntk_projection[pair], projections, rtol=1e-10)
        np.testing.assert_allclose(found.ntk_eigenvalue[pair], spectra, rtol=1e-10)
        np.testing.assert_allclose(found.ntk_trace[pair], spectra.sum(axis=1), rtol=1e-10)
    moved = np.abs(found.ntk_trace - found.ntk_trace[:, 0]).isel(step=-1)
    assert (moved > 1e-4 * found.ntk_trace[:, 0]).all()  # the NTK does move


def test_seeds_beyond_32_bits_are_used_whole():
    model, sgd, law = base(), qm.SGD(0.1, 2), law_of("independent")
    runs = [
        qm.sample_ntk(model, sgd, 5, replicas=2, curvature=law, record_every=5, seed=seed)
        for seed in (3, 3 + 2**32, 2**64 - 1)
    ]
    for run, seed in zip(runs, (3, 3 + 2**32, 2**64 - 1), strict=True):
        projections, _ = naive(model, sgd, law, [0, 5], pair=1, batch_sequences=1, seed=seed)
        np.testing.assert_allclose(run.ntk_projection[1], projections, rtol=1e-10)
    assert not np.array_equal(runs[0].ntk_trace, runs[1].ntk_trace)


# ---- what a result depends on, and how it's laid out


@pytest.mark.parametrize("law", ["independent", "low rank"])
def test_same_bits_for_any_number_of_threads(law):
    model, sgd = base(), qm.SGD(0.2, 2, sampling="with_replacement")
    runs = [
        qm.sample_ntk(
            model,
            sgd,
            60,
            replicas=12,
            curvature=law_of(law, 0.35),
            batch_sequences=3,
            threads=threads,
        )
        for threads in (1, 2, 3, None, 1)
    ]
    for other in runs[1:]:
        assert_same_bits(runs[0], other)


def test_a_pair_depends_on_its_number_only():
    model, sgd = base(), qm.SGD(0.1, 2)
    options = {"curvature": 0.2, "batch_sequences": 2, "seed": 4}
    many = qm.sample_ntk(model, sgd, 12, replicas=5, record_every=1, **options)
    few = qm.sample_ntk(model, sgd, 12, replicas=2, record_every=1, **options)
    assert_same_bits(many.isel(replica=[0, 1]), few, attrs=False)
    seldom = qm.sample_ntk(model, sgd, 12, replicas=5, record_every=5, **options)
    assert seldom.step.values.tolist() == [0, 5, 10]
    assert_same_bits(many.sel(step=[0, 5, 10]), seldom)


def test_layout():
    model = qm.Ensemble(N_DATA, N_PARAMS, curvature=0.1).sample(seed=0)
    sgd = qm.SGD(0.1, 2, momentum=0.5, nesterov=True, sampling="bernoulli")
    found = qm.sample_ntk(model, sgd, 120, replicas=2, batch_sequences=3, seed=2**63)
    assert {name: found[name].dims for name in found.data_vars} == {
        "ntk_projection": ("replica", "step", "mode"),
        "ntk_eigenvalue": ("replica", "step", "mode"),
        "ntk_trace": ("replica", "step"),
    }
    assert found.step.values.tolist() == list(range(0, 121, 2))
    assert found.replica.values.tolist() == [0, 1]
    assert found.mode.values.tolist() == list(range(N_DATA))
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in found.data_vars)
    assert found.attrs == {
        "kind": "simulation", "steps": 120, "replicas": 2, "batch_sequences": 3, "seed": str(2**63),
        "curvature": "IndependentCurvature(scale=0.1)", "quadmodel_version": qm.__version__,
        "n_data": N_DATA, "n_params": N_PARAMS, "learning_rate": 0.1, "batch_size": 2,
        "momentum": 0.5, "nesterov": 1, "weight_decay": 0.0, "sampling": "bernoulli",
    }  # fmt: skip
    lam = model.eigensystem[0]
    start = found.isel(step=0)
    np.testing.assert_allclose(start.ntk_projection, np.tile(lam, (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(start.ntk_eigenvalue, np.tile(lam, (2, 1)), rtol=1e-12)
    assert (found.ntk_eigenvalue.diff("mode") <= 0).all()


def test_law_of_the_model_is_the_default_and_its_own_draw_is_not_used():
    model = qm.Ensemble(N_DATA, N_PARAMS, curvature=0.1).sample(seed=0)
    other = qm.QuadraticModel(model.residual, model.jacobian, 5 * model.curvature)
    sgd = qm.SGD(0.1, 2)
    by_model = qm.sample_ntk(model, sgd, 4, replicas=2)
    assert_same_bits(by_model, qm.sample_ntk(other, sgd, 4, replicas=2, curvature=0.1))


def test_progress_changes_nothing(capsys):
    model, sgd = base(), qm.SGD(0.1, 2)
    plain = qm.sample_ntk(model, sgd, 4, replicas=3, curvature=0.1)
    shown = qm.sample_ntk(model, sgd, 4, replicas=3, curvature=0.1, progress=True)
    assert_same_bits(plain, shown)
    assert capsys.readouterr() == ("", "")


# ---- antithetic pairs, and what common draws are for


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.6, "nesterov": True}], ids=str)
def test_odd_orders_cancel(law, options):
    """A pair's change is of second order in the curvature; that of one sign is of first."""
    model, sgd = base(), qm.SGD(0.1, 2, **options)
    start = model.eigensystem[0]
    changes, alone = [], []
    for scale in (1e-4, 1e-3):
        pairs = qm.sample_ntk(
            model, sgd, 6, replicas=2, curvature=law_of(law, scale), record_every=6
        )
        changes.append(pairs.ntk_projection.isel(step=-1).values - start)
        only = naive(
            model, sgd, law_of(law, scale), [0, 6], pair=0, batch_sequences=1, seed=0, signs=(1,)
        )
        alone.append(only[0][-1] - start)
    np.testing.assert_allclose(changes[1], 100 * changes[0], rtol=1e-4, atol=1e-10)
    assert np.abs(changes[1]).max() > 1e-8
    np.testing.assert_allclose(alone[1], 10 * alone[0], rtol=0.05, atol=1e-5)
    # The first order is as large as the scale, the second as its square.
    assert np.abs(alone[0]).max() > 100 * np.abs(changes[0]).max()


@pytest.mark.parametrize(
    "other",
    [qm.SGD(0.1, 3), qm.SGD(0.09, 2), qm.SGD(0.1, 2, momentum=0.1)],
    ids=["batch size", "learning rate", "momentum"],
)
def test_a_difference_of_two_runs_is_measured_by_common_draws(other):
    model = qm.Ensemble(6, 20, curvature=0.02).sample(seed=2)

    def change(sgd, seed):
        found = qm.sample_ntk(model, sgd, 10, replicas=200, record_every=10, seed=seed)
        return found.ntk_projection.isel(step=-1, mode=0).values

    ours = change(qm.SGD(0.1, 2), 0)
    common, independent = ours - change(other, 0), ours - change(other, 1)
    assert np.var(common) < 0.5 * np.var(independent)
    # The draws of another seed are others, not worse ones.
    assert np.var(independent) == pytest.approx(np.var(ours) + np.var(change(other, 1)), rel=0.3)


def test_full_batches_are_all_the_same():
    model = qm.Ensemble(6, 20, curvature=0.02).sample(seed=2)
    full = [
        qm.sample_ntk(model, qm.SGD(0.1, 6), 10, replicas=3, batch_sequences=n, record_every=10)
        for n in (1, 4)
    ]
    np.testing.assert_allclose(full[0].ntk_trace, full[1].ntk_trace, rtol=1e-12)


# ---- divergence


@pytest.mark.parametrize("law", ["independent", "low rank"])
def test_divergence_is_infinite_and_silent(law):
    model = base()
    far = qm.SGD(20 * qm.edge_of_stability(model.ntk(), qm.SGD(1.0, 2)), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = qm.sample_ntk(
            model, far, 200, replicas=3, curvature=law_of(law), batch_sequences=2, record_every=1
        )
    for name in PER_PAIR:
        values = found[name].values
        assert not np.isnan(values).any()
        assert np.isfinite(values[:, 0]).all()
        assert np.isposinf(values[:, -1]).all()
    gone = np.isinf(found.ntk_trace)
    assert (gone.astype(int).diff("step") >= 0).all()  # and stays so
    for name in ("ntk_projection", "ntk_eigenvalue"):
        assert (np.isinf(found[name]).all("mode") == gone).all()
        assert (np.isinf(found[name]).any("mode") == gone).all()


# ---- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": np.eye(4)}, "^model must be a QuadraticModel, got ndarray$"),
        ({"sgd": 0.1}, "^sgd must be an SGD, got float$"),
        ({"sgd": qm.SGD(0.1, 5)}, "^batch_size must be between 1 and n_data=4, got 5$"),
        ({"steps": 0}, "^steps must be"),
        ({"steps": 2.5}, "^steps must be"),
        ({"steps": 2**32}, "^steps must be"),
        ({"replicas": 1}, "^replicas must be .*2.*got 1$"),
        ({"replicas": True}, "^replicas must be"),
        ({"replicas": 2**32}, "^replicas must be"),
        ({"batch_sequences": 0}, "^batch_sequences must be"),
        ({"batch_sequences": "many"}, "^batch_sequences must be"),
        ({"record_every": 0}, "^record_every must be"),
        ({"seed": -1}, "^seed must be"),
        ({"seed": 2**64}, "^seed must be"),
        ({"threads": 0}, "^threads must be"),
        ({"curvature": None}, "^curvature must be given for a model that has no law, got None$"),
        ({"curvature": -0.1}, "^scale must be"),
        ({"curvature": np.nan}, "^scale must be"),
        ({"curvature": qm.curvature.KroneckerCurvature(np.eye(3))}, "^data_covariance must have"),
    ],
    ids=str,
)
def test_refusals(changed, message, monkeypatch):
    _no_work(monkeypatch)
    arguments = {
        "model": base(),
        "sgd": qm.SGD(0.1, 2), "steps": 3, "replicas": 2, "curvature": 0.1, **changed
    }  # fmt: skip
    with pytest.raises(InputError, match=message) as refused:
        qm.sample_ntk(**arguments)
    assert "\n" not in str(refused.value)


def _no_work(monkeypatch):
    def work(*_, **__):
        raise AssertionError("work started before the input was checked")

    for law in ("IndependentCurvature", "KroneckerCurvature", "RandomLowRankCurvature"):
        monkeypatch.setattr(getattr(qm.curvature, law), "sample", work)


@pytest.mark.parametrize(("replicas", "threads"), [(2, 2), (2, 8), (8, 2)])
def test_refuses_what_does_not_fit_in_memory(replicas, threads, monkeypatch):
    """A draw and its negative per thread that has work, but not one per pair."""
    model = qm.Ensemble(30, 40).sample(0)
    sgd = qm.SGD(0.01, 2)
    at_once = min(replicas, threads)
    draws = at_once * 8 * 30 * 40**2

    def free(n_bytes):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))

    options = {"replicas": replicas, "threads": threads, "curvature": 0.01}
    free(4 * draws)
    qm.sample_ntk(model, sgd, 2, **options)
    free(draws)
    _no_work(monkeypatch)
    with pytest.raises(MemoryError, match=r"^the draws of the curvature needs? .* are free$"):
        qm.sample_ntk(model, sgd, 2, **options)


def test_records_count_as_memory(monkeypatch):
    _no_work(monkeypatch)
    with pytest.raises(MemoryError, match="the draws of the curvature"):
        qm.sample_ntk(base(), qm.SGD(0.1, 2), 2**31, replicas=2**20, curvature=0.1, record_every=1)


# ---- against the theory


STRONG = qm.Ensemble(4, 12, jacobian=2.0 / np.arange(1, 5)).sample(seed=1)
LAW = qm.curvature.IndependentCurvature(0.003)


def noisy_sgd(**options) -> qm.SGD:
    """SGD at two thirds of the stochastic edge, so that the batches' noise is no small part."""
    sgd = qm.SGD(1.0, 2, **options)
    rate = qm.critical_learning_rate(STRONG.ntk(), sgd, norm="exact", level=0.67)
    return qm.SGD(rate, 2, **options)


@pytest.fixture(scope="module")
def drawn():
    """Draws of the case that all negative controls are set beside."""
    return qm.sample_ntk(
        STRONG, noisy_sgd(), 12, replicas=2500, curvature=LAW, batch_sequences=4, record_every=4
    )


def predicted(sgd=None):
    return qm.expected_ntk(STRONG, sgd or noisy_sgd(), 12, curvature=LAW, record_every=4)


@pytest.mark.slow
@pytest.mark.statistical
def test_agrees_with_the_closed_form(drawn):
    """27 rows, wrong by chance once in a million; the change is known to 3 %."""
    table = qm.compare(drawn, predicted())
    assert table.attrs["verdict"] == "agree"
    assert table.attrs["rows"] == 36
    assert set(table.variable.values) == PER_PAIR
    last = table.where((table.step == 12) & (table.variable == "ntk_trace"), drop=True)
    change = float(last.predicted[0]) - float(STRONG.eigensystem[0].sum())
    assert float(last.standard_error[0]) < 0.03 * change


@pytest.mark.statistical
@pytest.mark.parametrize("part", ["progressive", "conservative", "diffusive"])
def test_is_wrong_without(part, drawn):
    mean = predicted()
    lacking = mean.assign(
        ntk_projection=mean.ntk_projection - mean[part],
        ntk_eigenvalue=mean.ntk_eigenvalue - mean[part],
        ntk_trace=mean.ntk_trace - mean[part].sum("mode"),
    )
    table = qm.compare(drawn, lacking)
    assert table.attrs["verdict"] == "disagree"
    assert set(table.variable[~table.agrees].values) == PER_PAIR


# tau_n = P - D + tr R^n and the two terms beside it; each dropped in turn.
WRONG_DRIVES = {
    "the trace factor": lambda c, h, r, tau, y, d, p: c @ r + c @ y,
    "P - D": lambda c, h, r, tau, y, d, p: c @ tau + c @ r + c @ y,
    "- D": lambda c, h, r, tau, y, d, p: p * c @ h + c @ tau + c @ r + c @ y,
    "tr R^n": lambda c, h, r, tau, y, d, p: (p - d) * c @ h + c @ r + c @ y,
    "what stands beside it": lambda c, h, r, tau, y, d, p: (p - d) * c @ h + c @ tau,
}


@pytest.mark.statistical
@pytest.mark.parametrize("dropped", WRONG_DRIVES)
def test_drive_is_wrong_without(dropped, drawn, monkeypatch):
    monkeypatch.setattr(generated, "ntk_source_unit", WRONG_DRIVES[dropped])
    assert qm.compare(drawn, predicted()).attrs["verdict"] == "disagree"


@pytest.mark.statistical
def test_is_wrong_without_the_square_of_the_displacement(drawn, monkeypatch):
    monkeypatch.setattr(generated, "ntk_diffusion", lambda c, *_: np.zeros_like(c))
    assert qm.compare(drawn, predicted()).attrs["verdict"] == "disagree"


@pytest.mark.statistical
def test_sees_gamma(drawn):
    """The variance of the batch weights of another scheme."""
    assert qm.compare(drawn, predicted()).attrs["verdict"] == "agree"
    for scheme in SCHEMES[1:]:
        sgd = qm.SGD(noisy_sgd().learning_rate, 2, sampling=scheme)
        other = qm.compare(drawn, predicted(sgd))
        assert other.attrs["verdict"] == "disagree", scheme


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("law", "options"),
    [
        ("correlated", {}),
        ("correlated", {"momentum": 0.6, "nesterov": True}),
        ("independent", {"momentum": 0.6}),
        ("independent", {"weight_decay": 0.2, "sampling": "bernoulli"}),
    ],
    ids=str,
)
def test_agrees_for_other_laws_and_methods(law, options):
    """The same rows; plain SGD's or independent entries' prediction must be called wrong."""
    model, curvature = base(), law_of(law, 0.003)
    plain = qm.SGD(1.0, 1)
    sgd = qm.SGD(
        qm.critical_learning_rate(model.ntk(), plain, norm="paper", level=0.3), 1, **options
    )
    found = qm.sample_ntk(
        model, sgd, 8, replicas=800, curvature=curvature, batch_sequences=2, record_every=4
    )

    def verdict(sgd, curvature):
        mean = qm.expected_ntk(model, sgd, 8, curvature=curvature, record_every=4)
        return qm.compare(found, mean).attrs["verdict"]

    assert verdict(sgd, curvature) == "agree"
    if options:
        assert verdict(qm.SGD(sgd.learning_rate, 1), curvature) == "disagree"
    if law == "correlated":
        assert verdict(sgd, law_of("independent", 0.003)) == "disagree"
