"""Vector kernels against plain ones, the storage of Q, and steps that many threads share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import quadmodel as qm
from quadmodel._util.checks import InputError
from quadmodel._util.threads import workers
from quadmodel.simulation import _stepper
from quadmodel.simulation._kernels import columns, shapes, vector_dense
from quadmodel.simulation._replicas import start_replicas
from quadmodel.simulation._stepper import Stepper

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
METHODS = {
    "plain": {},
    "heavy ball": {"momentum": 0.7, "weight_decay": 0.02},
    "Nesterov": {"momentum": 0.6, "nesterov": True},
}


def model_of(kind, n_data=6, n_params=19, scale=0.1):
    curvature = (
        scale if kind == "dense" else qm.curvature.RandomLowRankCurvature(int(kind[-1]), scale)
    )
    return qm.Ensemble(n_data, n_params, curvature=curvature).sample(seed=3)


def advanced(model, sgd, monkeypatch, *, width, replicas=21, steps=9, shared=None, **options):
    """Return replicas after some steps by kernels of a width (0: plain loops).

    Each has its batch size; few replicas per data point are stepped one by one unless `across`.
    """
    monkeypatch.setenv(shapes.VARIABLE, str(width))
    if "across" in options:
        monkeypatch.setattr(_stepper, "_ACROSS_FROM", 0.0 if options.pop("across") else np.inf)
    if shared is not None:
        monkeypatch.setattr(_stepper, "_SHARED_FROM", 0.0 if shared else np.inf)
    sizes = 1 + np.arange(replicas) % model.n_data
    rates = sgd.learning_rate * (1 + np.arange(replicas) / replicas)
    run = start_replicas(model, rates, sizes, np.arange(replicas))
    with workers(options.pop("threads", 2)) as pool:
        stepper = Stepper(model, sgd, seed=5, **options)
        stepper.advance(run, 0, 4, pool)
        stepper.advance(run, 4, steps - 4, pool)
    return run


# The width that this processor has is tried in all combinations, the others in some.
HERE = shapes.register_bytes()
OTHERS = tuple(width for width in (64, 32, 16) if width != HERE)


def check_steps(model, other, sgd, monkeypatch, width, **options):
    loops = advanced(model, sgd, monkeypatch, width=0, shared=False)
    assert np.abs(loops.state).max() > 0.1
    for shared in (False, True):
        found = advanced(model, sgd, monkeypatch, width=width, shared=shared, **options)
        np.testing.assert_allclose(found.state, loops.state, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(found.old, loops.old, rtol=1e-11, atol=1e-13)
    different = advanced(other, sgd, monkeypatch, width=width, shared=True, **options)
    assert np.abs(different.state - loops.state).max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("kind", ["dense", "dense alone", "rank 1", "rank 3", "rank 7"])
def test_vectors_do_what_loops_do(kind, sampling, method, monkeypatch):
    sgd = qm.SGD(0.05, 1, sampling=sampling, **METHODS[method])
    alone, kind = kind.endswith("alone"), kind.removesuffix(" alone")
    models = model_of(kind), model_of(kind, scale=0.11)
    check_steps(*models, sgd, monkeypatch, HERE, across=not alone)


@pytest.mark.slow
@pytest.mark.parametrize("width", OTHERS)
@pytest.mark.parametrize("kind", ["dense", "rank 7"])
def test_other_widths_do_what_loops_do(kind, width, monkeypatch):
    models = model_of(kind), model_of(kind, scale=0.11)
    check_steps(*models, qm.SGD(0.05, 1, **METHODS["Nesterov"]), monkeypatch, width, across=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision"), [("linear", "float64"), ("dense", "float64"), ("dense", "mixed")]
)
def test_all_widths_give_the_same_bits(kind, precision, monkeypatch):
    """Of the linear model and of replicas side by side: each number is a sum in one order."""
    model = some_model(kind, 80 if kind == "linear" else 20)
    runs = [
        advanced(model, qm.SGD(0.02, 1), monkeypatch, width=width, across=True, precision=precision)
        for width in (64, 32, 16)
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.state, runs[0].state)


@pytest.mark.parametrize("replicas", [1, 3])
def test_few_replicas_are_stepped_one_by_one(replicas, monkeypatch):
    """Also where there are several panels of columns, and in single precision."""
    model = model_of("dense", 4, 300, 0.05)
    sgd = qm.SGD(0.2 / np.linalg.eigvalsh(model.ntk())[-1], 1)
    options = {"replicas": replicas, "steps": 6}
    loops = advanced(model, sgd, monkeypatch, width=0, **options)
    found = advanced(model, sgd, monkeypatch, width=HERE, across=False, **options)
    np.testing.assert_allclose(found.state, loops.state, rtol=1e-11, atol=1e-13)
    single = advanced(
        model, sgd, monkeypatch, width=HERE, across=False, **options, precision="mixed"
    )
    size = np.abs(loops.state).max()
    np.testing.assert_allclose(single.state, loops.state, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("precision", ["float64", "mixed"])
@pytest.mark.parametrize("n_params", [4090, 9000])
def test_long_rows_and_many_replicas_of_low_rank(n_params, precision, monkeypatch):
    """More than a stretch of parameters, and more replicas than are taken together at a point."""
    model, other = (model_of("rank 1", 2, n_params, scale) for scale in (1.0, 2.0))
    sgd = qm.SGD(0.1 / np.linalg.eigvalsh(model.ntk())[-1], 1)
    options = {"replicas": 240, "steps": 6, "shared": False}  # groups of 60
    loops = advanced(model, sgd, monkeypatch, width=0, **options)
    found = advanced(model, sgd, monkeypatch, width=HERE, **options, precision=precision)
    different = advanced(other, sgd, monkeypatch, width=HERE, **options)
    tolerance = 1e-12 if precision == "float64" else 1e-6
    size = np.abs(loops.state).max()
    np.testing.assert_allclose(found.state, loops.state, rtol=0, atol=tolerance * size)
    assert np.abs(different.state - loops.state).max() > 10 * tolerance * size


@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("n_params", [1, 7, 9, 16, 40, 127, 129, 300])
def test_packed_matrices_multiply_as_they_were(n_params, width):
    rng = np.random.default_rng(n_params)
    q = rng.normal(size=(3, n_params, n_params))
    q, shape = q + q.transpose(0, 2, 1), shapes.shape_of(width, width == 64)
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 1e-5)):
        stored, wide = vector_dense.packed(q, rng.normal(size=(3, n_params)), np.dtype(dtype))
        order, count = wide.shape[1], 16 * len(shape.dense) // stored.itemsize
        assert stored.nbytes + wide.nbytes == vector_dense.packed_bytes(
            3, n_params, np.dtype(dtype)
        )
        point = np.zeros((order, count), dtype)
        point[:n_params] = rng.normal(size=(n_params, count))
        product = np.full(order * count, np.nan, dtype)
        alone, sums = np.full(order, np.nan, dtype), np.empty(8 * 128, dtype)
        for i in range(3):
            at = i * stored.shape[1]
            vector_dense.symmetric_product(
                stored.reshape(-1), at, point.reshape(-1), product, order,
                shape.dense, shape.dense_rows,
            )  # fmt: skip
            vector_dense.symmetric_product_alone(
                stored.reshape(-1), at, point[:, 0].copy(), alone, order, sums,
                (0,) * (stored.itemsize // 2),
            )  # fmt: skip
            expected = q[i] @ point[:n_params].astype(float)
            scale = np.abs(expected).max()
            found = np.column_stack([product.reshape(order, count), alone])
            np.testing.assert_allclose(
                found[:n_params], np.column_stack([expected, expected[:, 0]]),
                atol=tolerance * scale,
            )  # fmt: skip
            assert (found[n_params:] == 0).all()


@pytest.mark.parametrize("precision", ["float64", "mixed"])
@pytest.mark.parametrize("n_data", [1, 5, 31, 32, 33, 64, 65, 129, 200])
@pytest.mark.parametrize("width", [64, 32, 16])
def test_columns_in_tiles_are_whole_columns(n_data, width, precision):
    rng = np.random.default_rng(n_data)
    ntk = rng.normal(size=(n_data, n_data))
    ntk = (ntk + ntk.T).astype(_stepper.STORED[precision])
    begin = np.array([[0, 3, 3, 4, 11], [12, 12, 14, 19, 19]])
    picked = rng.integers(n_data, size=19, dtype=np.int32)
    coefficient = rng.normal(size=19).astype(ntk.dtype)
    unit, z = rng.uniform(1, 2, 4), rng.normal(size=(4, n_data))
    expected = z + unit[:, None] * sum(
        np.array(
            [
                coefficient[first:last] @ ntk[picked[first:last]].astype(float)
                for first, last in itertools.pairwise(block)
            ]
        )
        for block in begin
    )
    tolerance = 1e-12 if precision == "float64" else 1e-4
    terms, lanes = columns.Terms(begin, picked, coefficient, unit), (0,) * (width // 16)
    tiles, length = columns.tiled(ntk, lanes)
    assert length >= n_data
    assert length // 8 % 2 == 1
    wide = np.zeros((4, length))
    wide[:, :n_data] = z
    columns.add_columns_in_tiles(tiles, lanes, n_data, terms, wide)
    np.testing.assert_allclose(wide[:, :n_data], expected, atol=tolerance)
    assert (wide[:, n_data:] == 0).all()


@pytest.mark.kernels
@pytest.mark.parametrize("sampling", SCHEMES)
def test_large_batches_by_products_are_large_batches_by_columns(sampling):
    """Columns one by one, in blocks, and products, against steps of the parameters."""
    model = qm.Ensemble(100, 30).sample(seed=1)
    slow = qm.QuadraticModel(model.residual, model.jacobian, np.zeros((100, 30, 30)))
    for batch_size in (1, 5, 6, 49, 50, 100):
        sgd = qm.SGD(0.05, batch_size, sampling=sampling, momentum=0.3)
        runs, same = (
            qm.simulate(m, sgd, 10, replicas=20, seed=4, record_every=5) for m in (model, slow)
        )
        np.testing.assert_allclose(runs.loss, same.loss, rtol=1e-10)


@pytest.mark.parametrize("precision", ["float64", "mixed"])
@pytest.mark.parametrize("kind", ["dense", "rank 3"])
def test_replicas_leave_each_other_alone(kind, precision, monkeypatch):
    """The same bits whatever other replicas are stepped, and for any number of threads."""
    model, sgd = model_of(kind), qm.SGD(0.05, 1, momentum=0.4)
    options = {"width": HERE, "shared": False, "precision": precision, "across": True}
    many = advanced(model, sgd, monkeypatch, **options, threads=1)
    again = advanced(model, sgd, monkeypatch, **options, threads=3)
    np.testing.assert_array_equal(many.state, again.state)
    shared = [
        advanced(model, sgd, monkeypatch, **(options | {"shared": True}), threads=threads)
        for threads in (1, 2, 3)
    ]
    for run in shared[1:]:
        np.testing.assert_array_equal(run.state, shared[0].state)


def some_model(kind, n_data=20, n_params=50, scale=0.01):
    if kind == "linear":
        return qm.Ensemble(n_data, n_params).sample(seed=0)
    return model_of(kind, n_data, n_params, scale)


@pytest.mark.parametrize("kind", ["linear", "dense", "rank 1", "rank 6"])
def test_mixed_precision_is_that_of_single_products(kind, monkeypatch):
    """Far from divergence the loss is right to single precision, and the error is there to see."""
    model = some_model(kind)
    sgd = qm.SGD(0.1, 5)
    exact = qm.simulate(model, sgd, 300, replicas=4)
    assert exact.attrs["precision"] == "float64"
    for width in (HERE, 0):
        monkeypatch.setenv(shapes.VARIABLE, str(width))
        mixed = qm.simulate(model, sgd, 300, replicas=4, precision="mixed")
        assert mixed.attrs["precision"] == "mixed"
        error = np.abs(mixed.loss - exact.loss) / (exact.loss + 1e-4 * model.loss())
        # With a low rank the products with the Jacobian are single too.
        assert 1e-12 < float(error.max()) < (1e-5 if kind.startswith("rank") else 1e-6)
        # Residuals are in double precision: they go far below what single precision could hold.
        assert float(mixed.loss[:, -1].max()) < 1e-6 * float(mixed.loss[0, 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampling", SCHEMES)
@pytest.mark.parametrize("kind", ["linear", "rank 1", "rank 3", "rank 7"])
def test_mixed_steps_are_steps(kind, sampling, method, monkeypatch):
    """Batches of all sizes, with and without vectors, shared out among threads or not."""
    # Of the linear model so many data that large batches are products.
    model = some_model(kind, 80 if kind == "linear" else 20, scale=0.1)
    sgd = qm.SGD(0.02, 1, sampling=sampling, **METHODS[method])
    replicas = model.n_data + 1
    exact = advanced(model, sgd, monkeypatch, width=HERE, replicas=replicas)
    assert (exact.diverged_at < 0).all()
    size = np.linalg.norm(exact.state, axis=1).max()
    for width, shared in ((HERE, False), (HERE, True), (0, False)):
        found = advanced(
            model,
            sgd,
            monkeypatch,
            width=width,
            replicas=replicas,
            shared=shared,
            precision="mixed",
        )
        for name in ("state", "old"):
            error = np.abs(getattr(found, name) - getattr(exact, name)).max()
            assert error < 2e-6 * size, name
        assert (found.state != exact.state).any()


def test_single_precision_holds_residuals_of_any_size():
    """An NTK in single precision meets residuals in units of their own norm."""
    model = qm.Ensemble(80, 120).sample(seed=0)
    scaled = [
        qm.QuadraticModel(factor * model.residual, model.jacobian) for factor in (1e-60, 1.0, 1e60)
    ]
    for batch_size in (1, 8, 30, 70):
        small, plain, large = (
            qm.simulate(m, qm.SGD(0.1, batch_size), 50, precision="mixed").loss[-1] for m in scaled
        )
        np.testing.assert_allclose(small * 1e120, plain, rtol=1e-5)
        np.testing.assert_allclose(large * 1e-120, plain, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float64", "mixed"])
def test_divergence_is_noticed_and_stays_alone(precision, monkeypatch):
    model = model_of("dense")
    sgd = qm.SGD(1.0, 1)
    loops = advanced(model, sgd, monkeypatch, width=0, steps=60)
    found = advanced(model, sgd, monkeypatch, width=HERE, steps=60, precision=precision)
    assert (loops.diverged_at >= 0).any()
    # Single precision overflows a few steps earlier.
    gone = loops.diverged_at >= 0
    assert (found.diverged_at[gone] >= 0).all()
    assert (np.abs(found.diverged_at - loops.diverged_at)[gone] <= 4).all()


def test_unknown_widths_are_refused(monkeypatch):
    monkeypatch.setenv(shapes.VARIABLE, "48")
    with pytest.raises(InputError, match=r"^QUADMODEL_VECTOR_BYTES must be 64, 32, 16 or 0"):
        qm.simulate(model_of("dense"), qm.SGD(0.1, 2), 5)


@pytest.mark.parametrize(
    ("features", "name", "width"),
    [
        ("+avx,+avx2,+avx512f", None, 64),
        ("+avx,+avx2,-avx512f", "znver4", 32),
        ("", "generic", 16),
        (None, "haswell", 32),
        (None, "znver5", 64),
        (None, "skylake-avx512", 64),
        (None, "skylake", 32),
        (None, "x86-64-v2", 16),
    ],
)
def test_registers_are_as_wide_as_the_chosen_processors(features, name, width, monkeypatch):
    monkeypatch.setattr(shapes.llvmlite.binding, "get_host_cpu_name", lambda: "another")
    monkeypatch.setattr(shapes.config, "CPU_FEATURES", features)
    monkeypatch.setattr(shapes.config, "CPU_NAME", name)
    assert shapes.register_bytes() == width


def test_unknown_precisions_are_refused():
    model = model_of("dense")
    with pytest.raises(InputError, match=r"^precision must be"):
        qm.simulate(model, qm.SGD(0.1, 2), 5, precision="single")
    with pytest.raises(InputError, match=r"^precision must be"):
        qm.phase_diagram(model, 4, 2, steps=32, precision="half")


@pytest.mark.parametrize("steps", [64, 1500])
@pytest.mark.parametrize("curvature", [None, 0.02, qm.curvature.RandomLowRankCurvature(2, 0.02)])
def test_phase_diagram_in_mixed_precision_says_the_same(curvature, steps):
    """Also where runs have converged to what single precision leaves of their residuals."""
    source = qm.Ensemble(12, 24, curvature=curvature)
    options = {"steps": steps, "replicas": 4, "refine": 0}
    grids = [qm.phase_diagram(source, 6, 3, precision=p, **options) for p in ("float64", "mixed")]
    assert [grid.attrs["precision"] for grid in grids] == ["float64", "mixed"]
    np.testing.assert_array_equal(grids[0].phase, grids[1].phase)
    growth = [grid.mean_growth.values for grid in grids]
    if steps == 64:
        # Runs that explode do so a step earlier.
        tame = growth[0] < 1
        np.testing.assert_allclose(*(g[tame] for g in growth), rtol=1e-2, atol=1e-4)
    np.testing.assert_array_equal(np.sign(growth[0]), np.sign(growth[1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "dense", "rank 3"])
def test_single_precision_is_single(kind, monkeypatch):
    """All numbers of a run are: the loss is right to some rounding errors per step, not to none."""
    model = some_model(kind, 80 if kind == "linear" else 20)
    for sgd in (qm.SGD(0.05, 5), qm.SGD(0.02, 50 if kind == "linear" else 20, 0.8, True, 0.1)):
        exact = qm.simulate(model, sgd, 100, replicas=12)
        for width in (HERE, 0):
            monkeypatch.setenv(shapes.VARIABLE, str(width))
            single = qm.simulate(model, sgd, 100, replicas=12, precision="float32")
            assert single.attrs["precision"] == "float32"
            error = np.abs(single.loss - exact.loss) / exact.loss
            assert 1e-9 < float(error.max()) < 2e-5


@pytest.mark.slow
def test_runs_in_single_precision_diverge():
    for curvature in (None, 0.1):
        model = qm.Ensemble(12, 20, curvature=curvature).sample(seed=0)
        runs = qm.simulate(model, qm.SGD(40.0, 3), 100, replicas=3, precision="float32")
        assert (runs.divergence_step > 0).all()
