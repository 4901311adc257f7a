"""Phase diagrams made up for tests of pictures: any grid, without simulation."""

import numpy as np
import xarray as xr

ATTRS = {
    "n_data": 100,
    "n_params": 200,
    "jacobian": "IndependentGaussian(scale=1.0)",
    "curvature": "None",
    "momentum": 0.0,
    "nesterov": 0,
    "weight_decay": 0.0,
    "sampling": "without_replacement",
    "steps": 1000,
    "replicas": 16,
}
LONG = {
    "jacobian": "FromDensity(density=<function a_density_with_a_very_long_name_indeed>, low=0.125)",
    "curvature": "KroneckerCurvature(data_covariance=<100x100, sha256 a3c81aeea2e1>, scale=0.3)",
    "residual": "GaussianResidual(scale=2.5, null_fraction=0.125)",
    "momentum": 0.875,
    "nesterov": 1,
    "weight_decay": 1.25e-5,
    "sampling": "with_replacement",
}


def phase_grid(rates, sizes, *, edge=1.0, apart=1.2, **attrs):
    """Return a diagram whose growth is that of log K; norms differ by the factor `apart`."""
    rates, sizes = np.asarray(rates, float), np.asarray(sizes)
    exact = np.minimum(0.02 * sizes, edge)
    critical = exact * np.array([apart**2, apart, 1.0])[:, None]
    norm = rates[:, None] / critical[:, None, :]
    growth = 0.3 * np.log(norm[-1])
    phase = np.where(growth < 0, "stable", np.where(growth < 0.1, "intermittent", "unstable"))
    plane, nothing = ("learning_rate", "batch_size"), np.full((sizes.size, 1), np.nan)
    variables = {
        "phase": (plane, phase),
        "noise_kernel_norm": (("norm", *plane), norm),
        "critical_learning_rate": (("norm", "batch_size"), critical),
        "edge_of_stability": ("batch_size", np.full(sizes.size, edge)),
        "typical_critical_learning_rate": ("batch_size", exact * 1.5),
        "scan_learning_rate": (("batch_size", "scan"), nothing),
        "scan_noise_kernel_norm": (("norm", "batch_size", "scan"), np.stack([nothing] * 3)),
    }
    for name in ("mean_growth", "typical_growth"):
        for end in ("", "_standard_error"):
            variables[name + end] = (plane, growth if not end else np.full(growth.shape, 1e-3))
            variables[f"scan_{name}{end}"] = (("batch_size", "scan"), nothing)
    coords = {"norm": ["paper", "finite", "exact"], "learning_rate": rates, "batch_size": sizes}
    return xr.Dataset(variables, coords, ATTRS | attrs)
