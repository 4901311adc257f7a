"""The benchmarks: peers take the steps that they are timed for; tables, goals, JSON. No timing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import goals, report, timing
from benchmarks.report import Result, Table
from benchmarks.timing import Spread, Timing
from quadmodel.batches import batch_indices
from tests.oracles import naive_sgd


def timed(name, rates, precision="float64", compiling=0.5):
    return Timing(name, precision, compiling, np.array(rates, dtype=float))


def naive_states(checks, ours, kind, batch_size):
    """Return final states of plain loops on the batches that the replicas draw."""
    model = checks.small_model(kind)
    states = []
    rates, sizes = checks.small_replicas(batch_size)
    for replica, (rate, size) in enumerate(zip(rates.tolist(), sizes.tolist(), strict=True)):
        drawn = [
            batch_indices(model.n_data, size, seed=ours.SEED, replica=replica, step=t).tolist()
            for t in range(checks.STEPS)
        ]
        if kind == "linear":
            path = naive_sgd.function_space(
                model.residual.tolist(), model.ntk().tolist(), drawn, rate, size
            )
        else:
            q = model.curvature if kind == "dense" else model.curvature.dense()
            path, _ = naive_sgd.parameter_space(
                model.residual.tolist(), model.jacobian.tolist(), q.tolist(), drawn, rate, size
            )
        states.append(path[-1])
    return np.array(states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "dense", "low_rank"])
def test_every_program_takes_the_steps_of_plain_loops(kind):
    pytest.importorskip("jax")
    from benchmarks import checks, ours

    wanted = {size: naive_states(checks, ours, kind, size) for size in (None, 3)}
    names = []
    for name, size, states in checks.peers(kind):
        assert checks.disagreement(states("float64"), wanted[size]) < 1e-11, name
        names.append(name)
    assert len(names) == len(set(names)) == {"linear": 6, "dense": 8, "low_rank": 5}[kind]
    assert checks.disagreement(checks.our_states(kind, None), wanted[None]) < 1e-11


def test_single_precision_is_single_precision():
    pytest.importorskip("jax")
    from benchmarks import checks

    wanted = checks.our_states("dense", None)
    for name, size, states in checks.peers("dense"):
        if size is None:
            found = states("float32")
            assert found.dtype == "float32", name
            assert 1e-9 < checks.disagreement(found, wanted) < checks.TOLERANCE["float32"], name


def test_a_wrong_peer_is_caught(monkeypatch):
    pytest.importorskip("jax")
    from benchmarks import checks, jax_peers

    peers, right = checks.peers, jax_peers.replicas_by_row
    monkeypatch.setattr(checks, "peers", lambda kind: [p for p in peers(kind) if "sorted" in p[0]])
    monkeypatch.setattr(jax_peers, "replicas_by_row", lambda masks: right(masks[:, ::-1]))
    monkeypatch.setattr(checks, "KINDS", ("dense",))
    with pytest.raises(RuntimeError, match="dense: JAX, lockstep, sorted in float64 is off by"):
        checks.check_all()


def test_batches_drawn_by_jax_follow_the_law():
    jax = pytest.importorskip("jax")
    from benchmarks import checks, jax_peers

    checks.check_draws()
    n_data, size, draws = 6, 2, 3000
    keys = jax_peers.keys(0, draws, 1)[:, 0]
    rows = jax.vmap(lambda key: jax_peers.draw_rows(n_data, size, key, size))(keys)
    masks = np.asarray(jax.vmap(lambda key: jax_peers.draw_mask(n_data, key, size))(keys))
    for drawn in (np.eye(n_data)[np.asarray(rows)].sum(axis=1), masks.astype(float)):
        pairs = drawn.T @ drawn / draws  # how often two points are drawn together
        off = ~np.eye(n_data, dtype=bool)
        for found, chance in ((np.diag(pairs), 1 / 3), (pairs[off], 1 / 15)):
            assert np.abs(found - chance).max() < 5 * (chance * (1 - chance) / draws) ** 0.5


def test_replicas_by_row():
    pytest.importorskip("jax")
    from benchmarks.jax_peers import replicas_by_row

    masks = np.array([[[1, 1, 0], [0, 1, 0]]], dtype=bool)
    assert replicas_by_row(masks).tolist() == [[[0, 2], [0, 1], [2, 2]]]


def test_drawn_beforehand_are_the_batches_of_ours():
    from benchmarks import ours

    rows = ours.drawn_rows(7, 3, 2, 4)
    masks = ours.drawn_masks(7, np.array([3, 3]), 4)
    assert rows.shape == (2, 4, 3)
    for t, replica in np.ndindex(4, 2):
        batch = batch_indices(7, 3, seed=ours.SEED, replica=replica, step=t)
        assert rows[replica, t].tolist() == batch.tolist()
        assert np.flatnonzero(masks[t, replica]).tolist() == sorted(batch.tolist())


def test_grid_lists_first_replicas_first():
    from benchmarks.ours import Grid

    grid = Grid(np.array([0.1, 0.2]), np.array([1, 4]), 2)
    rates, sizes = grid.per_replica
    assert rates.tolist() == [0.1, 0.1, 0.2, 0.2] * 2
    assert sizes.tolist() == [1, 4] * 4
    assert len(grid) == 8


def test_alternation_counts_work_and_calls():
    calls = []
    programs = [
        timing.Program(name, "float64", lambda name=name: calls.append(name), 10.0) for name in "ab"
    ]
    found = timing.alternate(programs, timing.Settings(rounds=3, seconds=0.0, threads=1))
    # Two calls each to warm up, then rounds forwards and backwards.
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert [t.rates.shape for t in found] == [(3,), (3,)]
    assert all((t.rates > 0).all() for t in found)


def test_ratios_are_taken_round_by_round():
    ours, peer = timed("quadmodel", [10, 20, 40]), timed("JAX", [5, 10, 20])
    assert ours.over(peer) == Spread(2, 2, 2)
    assert report.share_of(ours, 2.0, timed("peak", [40, 40, 80])).median == 1.0


def test_mixture_takes_the_fastest_of_each_part():
    slow, fast = timed("slow", [1, 1]), timed("fast", [3, 3])
    whole, chosen = timing.mixture("best", [[slow, fast], [slow]])
    assert [t.name for t in chosen] == ["fast", "slow"]
    np.testing.assert_allclose(whole.rates, 1.5)  # half of the work at 3, half at 1
    assert whole.compile_seconds == 1.0


def test_table_of_programs():
    result = Result()
    programs = [timed("quadmodel", [300, 300]), timed("JAX", [100, 150], compiling=2.0)]
    peaks = {"float64": timed("GEMM", [1200, 1200])}
    result.compare("Dense", programs, flops=2.0, peaks=peaks, note="what was counted")
    (table,) = result.tables
    assert table.columns == (
        "program", "precision", "replica-steps/s", "useful GFLOP/s", "share of GEMM peak",
        "quadmodel float64: times as fast", "compiling",
    )  # fmt: skip
    assert table.rows[0] == ("quadmodel", "float64", "300", "6e-07", "50%", "", "0.5 s")
    assert table.rows[1][2] == "125 [112, 138]"
    assert table.rows[1][5:] == ("2.5 [2.25, 2.75]", "2.0 s")
    assert table.text().splitlines()[1] == "Dense"
    assert table.text().splitlines()[-1] == "what was counted"
    lines = table.markdown().splitlines()
    assert lines[0] == "### Dense"
    assert {line.count("|") for line in lines if line.startswith("|")} == {8}
    assert [t["rates"] for t in result.timings] == [[300, 300], [100, 150]]


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.0, "1,234,567"), (12.345, "12.3"), (float("nan"), "-")]
)
def test_numbers(value, text):
    assert report.number(value) == text


def test_goals():
    single = Result(
        measures={
            "dense.float64.idiomatic": Spread(6, 7, 8),
            "dense.float64.share_of_peak": Spread(0.7, 0.8, 0.9),
            "cold.import": Spread(0.2, 0.2, 0.3),
        },
        ceilings={"dense.float64.share_of_peak": "peak 100 GFLOP/s", "cold.import": "unused"},
    )
    records = goals.verdicts([Result(), single])
    by_key = {r["key"]: r for r in records}
    assert len(by_key) == len(records) == len(goals.GOALS)
    assert by_key["dense.float64.idiomatic"]["reached"] is True
    assert by_key["dense.float64.share_of_peak"]["reached"] is False
    assert by_key["dense.float64.share_of_peak"]["measured"] == pytest.approx(80)
    assert by_key["cold.import"]["reached"] is True
    assert by_key["linear.idiomatic"]["reached"] is None
    table = goals.table(records)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["dense, float64, share of GEMM peak"] == (
        "at least 85 %", "80 %", "no", "peak 100 GFLOP/s",
    )  # fmt: skip
    assert rows["import quadmodel"] == ("at most 0.25 s", "0.2 s", "yes", "")
    assert rows["linear, float64, over idiomatic JAX float64"] == (
        "at least 20 x", "-", "not measured", "",
    )  # fmt: skip


def test_goals_depend_on_the_width_of_vectors(monkeypatch):
    single = Result(measures={"linear.beforehand": Spread(2.5, 2.5, 2.5)})
    for width, required, reached in (("64", 3.3, False), ("32", 2.2, True)):
        monkeypatch.setenv("QUADMODEL_VECTOR_BYTES", width)
        found = next(r for r in goals.verdicts([single]) if r["key"] == "linear.beforehand")
        assert (found["required"], found["reached"]) == (required, reached)


ABOUT = {
    "command": "python -m benchmarks", "date": "2024-05-01 12:00 UTC", "cpu": "some CPU",
    "cores": 2, "threads": 2, "rounds": 5, "versions": {"python": "3.11", "jax": "0.5"},
}  # fmt: skip


def test_json_holds_everything():
    result = Result()
    result.keep("Dense", [timed("quadmodel", [1.0, np.inf])])
    result.measures["single.best"] = Spread(1.3, 1.4, float("nan"))
    found = json.loads(report.as_json(ABOUT, {"dense": result}, goals.verdicts([result])))
    assert found["about"]["cpu"] == "some CPU"
    assert found["jobs"]["dense"]["timings"][0]["rates"] == [1.0, None]
    assert found["jobs"]["dense"]["measures"]["single.best"]["high"] is None
    reached = {g["key"]: g["reached"] for g in found["goals"]}
    assert reached["single.best"] is True
    assert reached["linear.idiomatic"] is None


def test_markdown(tmp_path):
    table = Table("Goals", ("goal", "reached"), [("a | b", "yes")])
    report.write_markdown(tmp_path / "RESULTS.md", ABOUT, [table])
    text = (tmp_path / "RESULTS.md").read_text()
    assert "some CPU, 2 cores, 2 threads used; python 3.11, jax 0.5." in text
    assert r"| a \| b | yes |" in text


def test_without_jax_one_line(monkeypatch):
    from click.testing import CliRunner

    main = pytest.importorskip("benchmarks.__main__")
    monkeypatch.setattr(main.importlib.util, "find_spec", lambda name: None)
    ran = CliRunner().invoke(main.main, [])
    assert ran.exit_code == 2
    assert ran.output == "benchmarks need pip install 'quadmodel[bench]'\n"


def test_exponents_are_fitted_to_what_was_varied_alone():
    from benchmarks import job_scaling

    points = [{"D": 10, "B": 2}, {"D": 20, "B": 2}, {"D": 40, "B": 2}, {"D": 10, "B": 8}]
    rates = np.array([1.0, 0.25, 0.0625, 0.5])
    assert job_scaling._exponent("D", points, rates) == ("10, 20, 40", "2.00")
    assert job_scaling._exponent("B", points, rates) == ("2, 8", "0.50")
    assert job_scaling._exponent("B", points[:3], rates[:3]) is None


def test_seconds_may_be_those_of_the_processor(monkeypatch):
    monkeypatch.setattr(timing, "clock", timing.clock)
    timing.count_processor_time()
    assert timing.seconds_of(lambda: timing.time.sleep(0.2)) < 0.1


def test_avx2_is_what_everybody_is_left_with(monkeypatch):
    from benchmarks import __main__

    environment = {"XLA_FLAGS": "--a"}
    monkeypatch.setattr(__main__.os, "environ", environment)
    __main__._forget_avx512()
    features = environment["NUMBA_CPU_FEATURES"].split(",")
    assert not [f for f in features if f.startswith("+avx512")]
    assert environment["NUMBA_CPU_NAME"] == "haswell"
    assert environment["XLA_FLAGS"] == "--a --xla_cpu_max_isa=AVX2"
