"""What an installation without PyTorch says."""

import subprocess
import sys
from pathlib import Path

import quadmodel as qm

CODE = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import quadmodel as qm
assert qm.networks.__doc__
assert "ntk" in dir(qm.networks)
try:
    qm.networks.ntk
except ImportError as error:
    print(error)
"""


def test_one_line_names_the_extra():
    root = Path(qm.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "quadmodel.networks needs PyTorch: pip install 'quadmodel[networks]'\n"
    assert done.stderr == ""
