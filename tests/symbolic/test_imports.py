"""Numbers come without SymPy: it is for derivations only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quadmodel

USES = {
    "theory": """
ntk = np.diag([1.0, 0.5, 0.0])
for nesterov in (False, True):
    sgd = qm.SGD(0.1, 2, momentum=0.5, nesterov=nesterov, weight_decay=0.1)
    for norm in ("paper", "finite", "exact"):
        qm.noise_kernel_norm(ntk, sgd, norm=norm)
        qm.critical_learning_rate(ntk, sgd, norm=norm)
    qm.edge_of_stability(ntk, sgd)
    qm.late_time_rate(ntk, sgd)
    qm.loss_floor(ntk, [1.0, 1.0, 1.0], sgd)
""",
    "curves": """
model = qm.Ensemble(n_data=4, n_params=6).sample(seed=0)
sgd = qm.SGD(0.1, 2)
qm.predict(model, sgd, 3)
qm.simulate(model, sgd, 3, replicas=2)
""",
}


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\nprint('sympy' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(quadmodel.__file__).parents[1])},
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_numbers_load_no_sympy(use):
    assert loaded_by(f"import sys\nimport numpy as np\nimport quadmodel as qm\n{use}") == "False"


def test_derivations_do():
    use = "import sys\nimport quadmodel as qm\nqm.symbolic.weight_moment"
    assert loaded_by(use) == "True"
