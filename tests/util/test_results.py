"""Labels of results: steps that are recorded, attributes that files hold, checksums."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import quadmodel as qm
from quadmodel._util.results import attributes, checksum, count_records, recorded_steps

NTK = np.diag([2.0, 1.0, 0.5])
MODEL = qm.QuadraticModel(np.ones(3), np.eye(3, 5))
SGD = qm.SGD(0.1, np.int64(2), 0.5, nesterov=True, weight_decay=0.01, sampling="bernoulli")


@given(steps=st.integers(1, 200), every=st.integers(1, 300))
def test_recorded_steps(steps, every):
    recorded = recorded_steps(steps, every)
    assert recorded.tolist() == sorted({*range(0, steps + 1, every), steps})
    assert count_records(steps, every) == recorded.size


def test_many_steps_and_few_records():
    assert recorded_steps(2**32 - 1, 2**31).tolist() == [0, 2**31, 2**32 - 1]
    with pytest.raises(MemoryError, match="the recorded steps"):
        recorded_steps(2**50, 1)


@pytest.mark.parametrize("every", [3, 4, 6, 100])
def test_the_last_step_is_always_recorded(every):
    wanted = sorted({*range(0, 11, every), 10})
    curved = qm.Ensemble(3, 5, curvature=0.1).sample(0)
    each, some = (
        [
            qm.simulate(MODEL, SGD, 10, record_every=k),
            qm.simulate(curved, SGD, 10, record_every=k),
            qm.predict(MODEL, SGD, 10, record_every=k),
            qm.predict(MODEL, SGD, 10, record_every=k, method="modes"),
            qm.expected_ntk(curved, SGD, 10, record_every=k),
            qm.sample_ntk(curved, SGD, 10, replicas=2, record_every=k),
            qm.large_p_limit(curved, SGD, 10, record_every=k),
        ]
        for k in (1, every)
    )
    for full, sparse in zip(each, some, strict=True):
        assert sparse.step.values.tolist() == wanted
        for name in sparse.data_vars:
            np.testing.assert_allclose(
                sparse[name], full.sel(step=wanted)[name], rtol=1e-12, err_msg=str(name)
            )


def results():
    curved = qm.Ensemble(3, 5, curvature=0.1)
    return {
        "simulate": qm.simulate(MODEL, SGD, 2),
        "predict": qm.predict(MODEL, SGD, 2),
        "expected_ntk": qm.expected_ntk(curved.sample(0), SGD, 2),
        "sample_ntk": qm.sample_ntk(curved.sample(0), SGD, 2, replicas=2),
        "lyapunov_exponent": qm.lyapunov_exponent(NTK, SGD, 20),
        "typical_growth": qm.typical_growth(NTK, SGD),
        "phase_boundaries": qm.phase_boundaries(NTK, [1], SGD),
        "phase_diagram": qm.phase_diagram(NTK, 2, 2, sgd=SGD, steps=32, replicas=2, refine=0),
        "large_p_limit": qm.large_p_limit(curved, SGD, 2),
        "sharpening_diagram": qm.sharpening_diagram(curved, 2, 2, sgd=SGD, steps=2, replicas=2),
    }


def test_every_result_says_what_it_is_made_from_and_survives_a_file(tmp_path):
    found = results()
    for name, result in found.items():
        attrs = result.attrs
        assert attrs["quadmodel_version"] == qm.__version__, name
        assert attrs["kind"], name
        assert len(attrs["source_hash"]) == 12, name
        assert attrs["nesterov"] == 1, name
        result.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as back:
            assert {k: v for k, v in back.attrs.items() if k in attrs} == attrs, name
    assert {name for name, result in found.items() if "n_params" not in result.attrs} == {
        "lyapunov_exponent", "typical_growth", "phase_boundaries", "phase_diagram",
    }  # fmt: skip
    of_ntk = {found[name].attrs["source_hash"] for name in ("typical_growth", "phase_diagram")}
    assert len(of_ntk) == 1
    assert found["simulate"].attrs["source_hash"] == found["predict"].attrs["source_hash"]


def test_an_sgd_comes_back_from_the_attributes_in_a_file(tmp_path):
    qm.simulate(MODEL, SGD, 2).to_netcdf(tmp_path / "runs.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "runs.nc", engine="h5netcdf") as back:
        assert qm.SGD(**{name: back.attrs[name] for name in SGD.spec()}) == SGD


def test_a_seed_is_text_where_there_is_one():
    assert attributes("kind", {}, seed=2**64 - 1)["seed"] == str(2**64 - 1)
    assert "seed" not in attributes("kind", {})


def test_checksum_tells_contents_and_shapes_apart():
    array = np.arange(6.0)
    sums = {
        checksum(array), checksum(array.reshape(2, 3)), checksum(array, None),
        checksum(array[:3], array[3:]), checksum(array + 1e-15),
    }  # fmt: skip
    assert len(sums) == 5
    assert checksum(np.asfortranarray(array.reshape(2, 3))) == checksum(array.reshape(2, 3))
