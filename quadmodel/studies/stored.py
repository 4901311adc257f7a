"""open_phase_diagram(): what a store holds, also while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr

from quadmodel._util.checks import InputError, shown
from quadmodel.studies._diagram import Diagram
from quadmodel.sweeps.store import Folder, progress_of, read_manifest


def open_phase_diagram(store: str | os.PathLike[str]) -> xr.Dataset:
    """Read the phase diagram in a store, as far as it is done.

    Parameters
    ----------
    store : path-like
        Folder that :func:`quadmodel.phase_diagram` or :func:`quadmodel.large_p_phase_diagram`
        was given as `store`. Nothing is written there, and another process may.

    Returns
    -------
    xarray.Dataset
        As of the function that writes it, with the attribute `share_done`, between 0 and 1. Of an
        unfinished sweep, what is not measured yet is NaN and its phase "not simulated"; close-ups
        are left out before they begin, and everything until the edges are there.

    Raises
    ------
    InputError
        If there is no store of a phase diagram.

    References
    ----------
    .. [1] Beyond arXiv:2404.19261, whose figure 1 it follows.

    Examples
    --------
    >>> import tempfile
    >>> import quadmodel as qm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grid = qm.phase_diagram(qm.Ensemble(8, 16), 4, 2, steps=64, replicas=2, store=folder)
    ...     qm.open_phase_diagram(folder).attrs["share_done"]
    1.0
    """
    if not isinstance(store, str | os.PathLike):
        raise InputError(f"store must be the path of a folder, got {shown(store)}")
    path = Path(store)
    manifest, folder = read_manifest(path), Folder(path)
    if manifest.kind != "phase diagram":
        raise InputError(f"store {path} must be of a phase diagram, got that of a {manifest.kind}")
    found = folder.result()
    if found is None:
        share = progress_of(path).share
        found = Diagram.from_specification(manifest.specification).run(folder.read)
        ended = folder.result()  # in the meantime: then records were removed
        found = found.assign_attrs(share_done=share) if ended is None else ended
    return found if "share_done" in found.attrs else found.assign_attrs(share_done=1.0)
