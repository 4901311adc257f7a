"""State of a training on disk: written as a whole or not at all, read without pickle."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError
from quadmodel._util.files import open_npz, write_atomically
from quadmodel.networks._descent import Descent
from quadmodel.networks._torch import torch

Records = dict[str, dict[int, float]]


def save(
    path: str | PathLike[str],
    descent: Descent,
    names: list[str],
    records: Records,
    settings: dict[str, Any],
    trace: FloatArray,
) -> None:
    """Write parameters, velocities, step, learning rate, records, settings, the trace's state."""
    arrays: dict[str, Any] = {
        "settings": np.array(json.dumps(settings)),
        "state": np.array([descent.step, descent.diverged_at, descent.renewed_at]),
        "learning_rate": np.array(descent.learning_rate),
        "trace": trace,
    }
    tensors = zip(names, descent.learner.tensors, descent.velocity, strict=True)
    for name, tensor, velocity in tensors:
        arrays[f"parameter {name}"] = tensor.detach().numpy()
        arrays[f"velocity {name}"] = velocity.numpy()
    for name, values in records.items():
        arrays[f"record {name}"] = np.array(list(values.items()), dtype=np.float64).reshape(-1, 2)
    with write_atomically(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def read(path: str | PathLike[str], descent: Descent, names: list[str]) -> dict[str, Any]:
    """Return the arrays of a checkpoint of this net, nothing else."""
    arrays = open_npz(path, required=("settings", "state", "learning_rate", "trace"))
    shapes = {
        f"{kind} {name}": tuple(tensor.shape)
        for kind in ("parameter", "velocity")
        for name, tensor in zip(names, descent.learner.tensors, strict=True)
    }
    held = {
        key: array.shape
        for key, array in arrays.items()
        if key.startswith(("parameter ", "velocity "))
    }
    if shapes != held:
        key = next(key for key in sorted({*shapes, *held}) if shapes.get(key) != held.get(key))
        raise InputError(
            f"{path} must be a checkpoint of this net, got one whose {key.partition(' ')[2]} has "
            f"shape {held.get(key)} in place of {shapes.get(key)}"
        )
    return arrays


def settings_of(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in a checkpoint."""
    found: dict[str, Any] = json.loads(str(arrays["settings"]))
    return found


def records_of(arrays: dict[str, Any]) -> Records:
    """Return the records in a checkpoint."""
    return {
        key.partition(" ")[2]: {int(step): float(value) for step, value in pairs}
        for key, pairs in arrays.items()
        if key.startswith("record ")
    }


def put_back(arrays: dict[str, Any], descent: Descent, names: list[str]) -> None:
    """Put parameters, velocities, step and learning rate back."""
    with torch.no_grad():
        tensors = zip(names, descent.learner.tensors, descent.velocity, strict=True)
        for name, tensor, velocity in tensors:
            tensor.copy_(torch.from_numpy(arrays[f"parameter {name}"]))
            velocity.copy_(torch.from_numpy(arrays[f"velocity {name}"]))
    state = (int(n) for n in arrays["state"])
    descent.step, descent.diverged_at, descent.renewed_at = state
    descent.learning_rate = float(arrays["learning_rate"])


def exists(path: str | PathLike[str] | None) -> bool:
    """Return whether there is a checkpoint."""
    return path is not None and Path(path).exists()
