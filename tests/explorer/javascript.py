"""JavaScript of the front end, run by Node."""

import json
import math
import shutil
import subprocess

import pytest

from quadmodel.explorer._front import module

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not there to run JavaScript")
# JSON has no infinities and no NaN.
_PRINT = """
const plain = (key, value) =>
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value;
console.log(JSON.stringify(found, plain));
"""
_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def evaluate(code, data=None):
    """Return `found`, which the code makes of `data` beside everything in the module."""
    text = f"{module()}\nconst data = {json.dumps(data)};\n{code}\n{_PRINT}"
    done = subprocess.run(
        [NODE, "--input-type=module", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return _numbers(json.loads(done.stdout))


def _numbers(value):
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
