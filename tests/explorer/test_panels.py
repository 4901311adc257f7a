"""The page's table of nonlinear edges, ticks and words."""

import math

import numpy as np
import pytest

import quadmodel as qm
from quadmodel.explorer._front import module
from quadmodel.explorer._source import Settings, page_source
from quadmodel.explorer._spectra import FAMILIES, N_DATA
from quadmodel.explorer._tables import CURVATURE_STRENGTHS, TABULATED_SIZES, share, tables
from tests.explorer.javascript import evaluate, needs_node


def test_the_module_imports_nothing_and_exports_its_default():
    assert not any(line.startswith("import") for line in module().splitlines())
    exported = [line for line in module().splitlines() if line.startswith("export")]
    assert exported == ["export default { render };"]


def test_eigenvalues_have_mean_one():
    for family in FAMILIES.values():
        for values in family.described()["eigenvalues"]:
            assert len(values) == N_DATA
            assert np.mean(values) == pytest.approx(1, rel=1e-11)
            assert values == sorted(values, reverse=True)
        assert {family.default, *family.tabulated} <= set(family.values)


def test_the_table_has_every_place():
    for name, family in FAMILIES.items():
        shape = (len(family.tabulated), len(CURVATURE_STRENGTHS) - 1, len(TABULATED_SIZES))
        assert np.array(tables()[name], dtype=float).shape == shape


def settings(count=40):
    rng = np.random.default_rng(0)
    for n in range(count):
        family = list(FAMILIES.values())[n % len(FAMILIES)]
        size = float(np.exp(rng.uniform(0, math.log(N_DATA)))) if n % 4 else float(N_DATA)
        yield family, float(rng.choice(family.values)), size, float(rng.uniform(0, 8))


@needs_node
def test_the_front_end_interpolates_as_python_does():
    asked = [(f.name, p, size, strength) for f, p, size, strength in settings()]
    found = evaluate(
        """
        const family = (name) => data.source.families.find((f) => f.name === name);
        const found = data.asked.map(([name, ...at]) =>
          tabulatedShare(data.source.table, family(name), ...at));
        """,
        {"asked": asked, "source": page_source()},
    )
    expected = [share(*at) for at in settings()]
    assert found == pytest.approx(expected, rel=1e-12)
    assert share(FAMILIES["outliers"], 50.0, 4, 2.0) == tables()["outliers"][2][0][1]


def test_the_table_is_the_mean_field_theorys():
    # One entry, to the precision of the bisection; .ci/explorer_tables.py --check tries it between.
    family, parameter, size, strength = FAMILIES["power-law"], 0.0, 16, 8.0
    lam, n_params = family.eigenvalues(parameter), family.n_params(parameter)
    edge = qm.mean_field_edge(
        lam, [size], curvature=strength / math.sqrt(n_params), residual=1.0, n_params=n_params,
        bins=16, rtol=0.01,
    )  # fmt: skip
    linear = qm.critical_learning_rate(lam, qm.SGD(1.0, size))
    found = float(edge.critical_learning_rate[0]) / linear
    assert share(family, parameter, size, strength) == pytest.approx(found, rel=0.011)


@needs_node
def test_words_say_what_limits():
    cases = {
        "stable": {"learning_rate": 0.08},
        "noise": {"learning_rate": 0.25},
        "nonlinear": {"learning_rate": 0.19, "curvature_strength": 8.0, "batch_size": 12},
        "edge": {"learning_rate": 0.5},
        "full": {"learning_rate": 0.2, "batch_size": N_DATA, "curvature_strength": 0.0},
    }
    words = evaluate(
        """
        const family = data.source.families[0];
        const lam = family.eigenvalues[family.values.indexOf(0.5)];
        const found = {};
        for (const [name, s] of Object.entries(data.cases))
          found[name] = verdict(lam, s, edgesOf(lam, s, s, family, data.source.table, null));
        """,
        {
            "source": page_source(),
            "cases": {name: Settings(**changed).state() for name, changed in cases.items()},
        },
    )
    assert words["stable"] == ["stable", "Stable in mean square: K (finite) = 0.386, below 1."]
    assert words["full"] == ["stable", "Stable in mean square: K (finite) = 0, below 1."]
    assert "above 1" in words["noise"][1]
    assert "beyond the nonlinear edge" in words["nonlinear"][1]
    assert "deterministic edge" in words["edge"][1]
    assert {words[name][0] for name in ("noise", "nonlinear", "edge")} == {"unstable"}


@needs_node
def test_what_the_table_is_not_of_is_drawn_and_said_to_be_rough():
    cases = {
        "plain": ({}, None),
        "momentum": ({"momentum": 0.3}, None),
        "weight decay": ({"weight_decay": 0.1}, None),
        "with replacement": ({"sampling": "with_replacement"}, None),
        "Bernoulli": ({"sampling": "bernoulli"}, None),
        "computed": ({"momentum": 0.3}, {"batch_size": [1, N_DATA], "nonlinear": [0.01, 0.1]}),
        "none": ({"momentum": 0.3, "curvature_strength": 0.0}, None),
    }
    asked = {
        name: (Settings(**({"curvature_strength": 8.0} | changed)).state(), computed)
        for name, (changed, computed) in cases.items()
    }
    found = evaluate(
        """
        const family = data.source.families[0];
        const lam = family.eigenvalues[family.values.indexOf(0.5)];
        const found = {};
        for (const [name, [s, computed]] of Object.entries(data.asked)) {
          const edges = edgesOf(lam, s, s, family, data.source.table, computed);
          const { layers } = phaseChart(lam, s, edges, [1e-3, 4]);
          const { style, name: called } = layers.find((l) => l.style.startsWith("nonlinear")) ?? {};
          const just = edgeAt(edges.nonlinear, s.batch_size) * 1.02;
          const beyond = { ...s, learning_rate: just };
          const words = edges.nonlinear ? verdict(lam, beyond, edges)[1] : "";
          found[name] = [style ?? "", called ?? "", words.split(":")[0]];
        }
        """,
        {"source": page_source(), "asked": asked},
    )
    rough = ["nonlinear rough", "nonlinear edge, roughly: from plain SGD", "May diverge"]
    for name in ("momentum", "weight decay", "with replacement", "Bernoulli"):
        assert found[name] == rough, name
    assert found["plain"] == found["computed"] == ["nonlinear", "nonlinear edge", "Diverges"]
    assert found["none"] == ["", "", ""]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_typical_edges_hold_where_the_page_says(name):
    family = FAMILIES[name]
    lam = family.eigenvalues(family.default)
    ntk = qm.Ensemble(N_DATA, family.n_params(family.default), lam).sample(0).ntk()
    for size in (1, 10, 70):
        assert math.isnan(qm.typical_critical_learning_rate(ntk, qm.SGD(1.0, size)))
    if name == "power-law":
        assert qm.typical_critical_learning_rate(ntk, qm.SGD(1.0, 40, 0.9)) > 0
        flat, sgd = np.eye(N_DATA), qm.SGD(1.0, 10)
        expected = qm.critical_learning_rate(flat, sgd, norm="exact")
        assert qm.typical_critical_learning_rate(flat, sgd) == pytest.approx(expected)


@needs_node
@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ({"range": [0, 200], "log": False}, [0, 25, 50, 75, 100, 125, 150, 175, 200]),
        ({"range": [1, 100], "log": True}, [1, 2, 5, 10, 20, 50, 100]),
        ({"range": [1e-6, 1e6], "log": True}, [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6]),
    ],
)
def test_ticks(axis, expected):
    found = evaluate("const found = ticks(data, 400, 50);", axis)
    assert found == pytest.approx(expected)


@needs_node
def test_numbers_as_readers_see_them():
    values = [0, 0.1, 12345.678, 123456, 1e-5, 2.5e-7, -3, math.inf]
    code = "const found = data.map((value) => shown(value === null ? Infinity : value));"
    found = evaluate(code, [None if math.isinf(v) else v for v in values])
    assert found == ["0", "0.1", "12300", "1.23 · 10⁵", "10⁻⁵", "2.5 · 10⁻⁷", "−3", "∞"]


@needs_node
@pytest.mark.parametrize(
    ("lam", "changed"),
    [
        ([1.0], {}),
        ([2.0, 0.0], {"batch_size": 2}),
        ([3.0, 1.0, 0.0, 0.0], {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        ([1.0] * 50, {"learning_rate": 5.0}),
        ([1e9, 1e-9], {"learning_rate": 1e-12}),
        ([1e-9] * 3, {"learning_rate": 1e9, "batch_size": 3}),
    ],
)
def test_awkward_spectra_are_drawn(lam, changed):
    settings = Settings(**{"batch_size": 1, "spectrum": "own", "parameter": 0.0} | changed).state()
    charts = evaluate(
        """
        const { lam, s } = data;
        const family = { name: "own", values: [0], tabulated: [] };
        const table = { shares: {} };
        const edges = edgesOf(lam, s, s, family, table, null);
        const unit = lam.reduce((a, b) => a + b) / lam.length;
        const range = [1e-3 / unit, 4 / unit];
        const start = lam.map(() => 1);
        const found = [
          phaseChart(lam, s, edges, range), normChart(lam, s, edges, range, null),
          lossChart(lam, start, s, s.steps, false, null), spectrumChart(lam, s, edges),
        ].map((description) => chart(description, 400, 250, "id"));
        found.push(verdict(lam, s, edges)[1]);
        """,
        {"lam": lam, "s": settings},
    )
    for markup in charts:
        assert markup
        assert "NaN" not in markup
        assert "undefined" not in markup
        assert "Infinity" not in markup
