"""Data that comes with the package."""

from __future__ import annotations

import json
from importlib.resources import as_file, files

import numpy as np
import xarray as xr

__all__ = [
    "digits_ntk",
    "llm_edge",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)


def digits_ntk() -> xr.Dataset:
    r"""Return the NTK of a real network on real handwritten digits.

    Returns
    -------
    xarray.Dataset
        `ntk_initial` and `ntk_trained`, :math:`\Theta = JJ^\top/D` of shape (200, 200) in units of
        1 / learning rate, at initialisation and after 20,000 steps of SGD; `residual_initial`
        (200,).

    Raises
    ------
    FileNotFoundError
        If the installation lost its data file.

    Notes
    -----
    The network is fully connected, 784-128-128-1, with tanh units and mean squared error; the data
    are 200 handwritten digits with random labels +1 and -1.

    References
    ----------
    .. [1] Computed for this project; the file is ``quadmodel/data/digits_ntk.npz``.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.datasets.digits_ntk().ntk_initial.shape
    (200, 200)
    """
    with as_file(files("quadmodel") / "data" / "digits_ntk.npz") as path, np.load(path) as arrays:
        ntk = {
            name: (("row", "column"), arrays[name], {"units": "1 / learning rate"})
            for name in ("ntk_initial", "ntk_trained")
        }
        residual = ("row", arrays["residual_initial"], {"units": "residual"})
        return xr.Dataset({**ntk, "residual_initial": residual})


def llm_edge() -> xr.Dataset:
    r"""Return where a language model's quadratic approximation has been found unstable.

    Returns
    -------
    xarray.Dataset
        `unstable_fraction` (panel, batch_size, learning_rate): share of 10 seeds whose linearised
        loss exceeded four times its start, NaN where nothing was run; `base_batch_size` and
        `checkpoint_percent` (panel): how the model had been trained, and how far. Learning rates
        are multiples of the base one of the panel's training.

    Raises
    ------
    FileNotFoundError
        If the installation lost its data file.

    Notes
    -----
    A model of 150M parameters, expanded to second order around a checkpoint and trained on from
    there with batch size B; six panels: three checkpoints each of trainings with batch sizes 1 and
    64. :func:`quadmodel.fit_edge_law` draws the edge through a panel.

    References
    ----------
    .. [1] arXiv:2607.21716; github.com/alexandrumeterez/QuadraticModel (MIT licence),
       analysis/data/eos_constant.csv, commit 9ecb41a1. The file is
       ``quadmodel/data/llm_edge.json``.

    Examples
    --------
    >>> import quadmodel as qm
    >>> dict(qm.datasets.llm_edge().sizes)
    {'panel': 6, 'batch_size': 8, 'learning_rate': 5}
    """
    text = (files("quadmodel") / "data" / "llm_edge.json").read_text(encoding="utf-8")
    published = json.loads(text)
    panels = published["panels"]
    sizes = sorted({int(size) for panel in panels for size in panel["unstable_fraction"]})
    rates = [float(rate) for rate in published["learning_rate_multiplier"]]
    fraction = np.full((len(panels), len(sizes), len(rates)), np.nan)
    for place, panel in enumerate(panels):
        for size, fractions in panel["unstable_fraction"].items():
            fraction[place, sizes.index(int(size))] = fractions
    return xr.Dataset(
        {
            "unstable_fraction": (
                ("panel", "batch_size", "learning_rate"),
                fraction,
                {"long_name": "share of seeds that are unstable", "n_seeds": 10},
            )
        },
        coords={
            "batch_size": ("batch_size", sizes, {"units": "sequences"}),
            "learning_rate": ("learning_rate", rates, {"units": "base learning rates"}),
            "base_batch_size": ("panel", [panel["base_batch_size"] for panel in panels]),
            "checkpoint_percent": ("panel", [panel["checkpoint_percent"] for panel in panels]),
        },
        attrs={"source": published["source"], "comment": published["what"]},
    )
