"""Files: damaged input is refused in one line, interrupted output leaves nothing."""

import os
import pickle

import numpy as np
import pytest

from quadmodel._util.checks import InputError
from quadmodel._util.files import check_writable, load_array, open_npz, write_atomically


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, one=np.arange(300.0), two=np.ones((2, 2)))
    return path


def test_arrays_come_back(npz, tmp_path):
    arrays = open_npz(npz, required=("one", "two"))
    np.testing.assert_array_equal(arrays["one"], np.arange(300.0))
    np.testing.assert_array_equal(load_array(f"{npz}:two", "--ntk"), np.ones((2, 2)))
    np.save(tmp_path / "plain.npy", np.arange(3))
    np.testing.assert_array_equal(load_array(str(tmp_path / "plain.npy"), "--ntk"), [0, 1, 2])
    np.savez(tmp_path / "single.npz", only=np.arange(4))
    np.testing.assert_array_equal(load_array(str(tmp_path / "single.npz"), "--ntk"), [0, 1, 2, 3])


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no.npz must be an existing .* got no such file$"):
        open_npz(tmp_path / "no.npz")


def test_directory(tmp_path):
    with pytest.raises(InputError, match=r"must be an .npy or .npz file, got a directory$"):
        open_npz(tmp_path)


def test_one_array_where_several_are_needed(tmp_path):
    np.save(tmp_path / "plain.npy", np.arange(3))
    with pytest.raises(InputError, match=r"must be an .npz file with a, b, got one array$"):
        open_npz(tmp_path / "plain.npy", required=("a", "b"))


def test_wrong_or_ambiguous_name(npz):
    with pytest.raises(InputError, match=r"must hold an array 'three', got \['one', 'two'\]$"):
        open_npz(npz, required=("one", "three"))
    with pytest.raises(InputError, match=r"must hold an array 'three', got \['one', 'two'\]$"):
        load_array(f"{npz}:three", "--ntk")
    with pytest.raises(InputError, match=r"must hold one array, or a name as in FILE.npz:name"):
        load_array(str(npz), "--ntk")


@pytest.mark.parametrize("length", [0, 1, 10, 100, 1000, 2500])
def test_truncated_file(npz, length):
    npz.write_bytes(npz.read_bytes()[:length])
    with pytest.raises(InputError, match=r"must be a plain .npy or .npz file, got"):
        open_npz(npz)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_raise_nothing_but_input_errors(tmp_path, save):
    path, rng = tmp_path / "damaged.npz", np.random.default_rng(0)
    save(path, one=rng.normal(size=8))
    good, refused = path.read_bytes(), 0
    for _ in range(400):
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            open_npz(path)
        except InputError:
            refused += 1
    assert refused > 100


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    np.savez(tmp_path / "objects.npz", one=np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match=r"plain .npy or .npz file, got pickled objects$"):
        open_npz(tmp_path / "objects.npz")
    (tmp_path / "bomb.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"got another format, a pickle or a damaged file$"):
        load_array(str(tmp_path / "bomb.npy"), "--ntk")
    assert not (tmp_path / "boom").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_permissions(npz, tmp_path):
    npz.chmod(0)
    with pytest.raises(InputError, match=r"must be readable, got permission denied$"):
        open_npz(npz)
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"must be writable, got Permission denied$"):
        check_writable(tmp_path / "out.npz")
    tmp_path.chmod(0o700)


def test_output_places_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match=r"must lie in an existing folder, got .*nowhere$"):
        check_writable(tmp_path / "nowhere" / "out.npz")
    with pytest.raises(InputError, match=r"must be a file, got a folder$"):
        check_writable(tmp_path)
    with (
        pytest.raises(InputError, match=r"must lie in an existing folder"),
        write_atomically(tmp_path / "nowhere" / "out.npz"),
    ):
        pytest.fail("the block must not run")


def test_a_check_leaves_nothing(tmp_path):
    check_writable(tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "out.txt"
    with write_atomically(target) as partial:
        partial.write_text("all of it")
        assert not target.exists()
        assert partial.suffix == ".txt"
    assert target.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [target]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("before", [None, "the old one"])
def test_an_interrupted_write_leaves_the_old_state(tmp_path, interruption, before):
    target = tmp_path / "out.txt"
    if before is not None:
        target.write_text(before)

    def write():
        with write_atomically(target) as partial:
            partial.write_text("half of")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if before is None else [before])
