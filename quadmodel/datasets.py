"""Data that comes with the package."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import xarray as xr


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
