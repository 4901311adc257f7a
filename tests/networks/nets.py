"""Small networks in double precision, and their derivatives one by one."""

import numpy as np

try:
    import torch
except ImportError:  # every test that would need it is skipped: conftest.py
    torch = None


def small_net(n_outputs=1, seed=0, width=7):
    """Return an untrained network of 5 inputs."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, n_outputs)
    ).double()


def inputs_for(n_data, seed=1):
    """Return data points."""
    return torch.as_tensor(np.random.default_rng(seed).standard_normal((n_data, 5)))


def classes_for(n_data, n_outputs, seed=2):
    """Return classes."""
    return torch.as_tensor(np.random.default_rng(seed).integers(n_outputs, size=n_data))


class GivenJacobian(torch.nn.Module if torch else object):
    """A linear network whose Jacobian is a given matrix: inputs are the numbers of its rows."""

    def __init__(self, rows, n_outputs=1):
        """Take rows of shape (D C, P)."""
        super().__init__()
        self.rows = torch.as_tensor(rows).reshape(-1, n_outputs, rows.shape[-1])
        self.theta = torch.nn.Parameter(torch.zeros(rows.shape[-1], dtype=self.rows.dtype))

    def forward(self, points):
        """Return outputs of shape (points, C)."""
        return self.rows[points] @ self.theta


def numeric_jacobian(net, inputs, step=1e-6):
    """Return the Jacobian (D C, P) by central differences of the parameters."""
    columns = []
    with torch.no_grad():
        for parameter in net.parameters():
            flat = parameter.view(-1)
            for k in range(len(flat)):
                kept = float(flat[k])
                flat[k] = kept + step
                up = net(inputs).flatten().numpy().copy()
                flat[k] = kept - step
                down = net(inputs).flatten().numpy().copy()
                flat[k] = kept
                columns.append((up - down) / (2 * step))
    return np.array(columns).T
