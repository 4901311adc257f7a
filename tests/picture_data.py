"""Results made up for tests of pictures: every kind, without simulation."""

import numpy as np
import xarray as xr

from tests.plot_grids import ATTRS, phase_grid

SGD = {
    "learning_rate": 0.1,
    "batch_size": 5,
    "momentum": 0.0,
    "nesterov": 0,
    "weight_decay": 0.0,
    "sampling": "without_replacement",
}
ATTRS = ATTRS | SGD | {"steps": 100, "replicas": 3}
STEPS = np.arange(0, 101, 5)
RUNS = ("replica", "step")


def wiggle(amplitude, replicas=3):
    """Return a wave per replica, the same on every machine up to rounding."""
    phase = np.arange(replicas)[:, None]
    return amplitude * np.sin(0.23 * STEPS + 1.7 * phase) * STEPS / STEPS[-1]


def run():
    """Return what simulate() and a tracked network hold: K, eigenvalue and loss along training."""
    rise = 1 - np.exp(-STEPS / 30)
    variables = {
        "loss": (RUNS, np.exp(-STEPS / 40 + wiggle(0.4))),
        "ntk_largest_eigenvalue": (RUNS, 8 + 9 * rise + wiggle(1.5)),
        "noise_kernel_norm": (RUNS, 0.3 + 0.5 * rise + wiggle(0.05)),
        "noise_kernel_norm_finite": (RUNS, 0.32 + 0.55 * rise + wiggle(0.05)),
        "noise_kernel_norm_exact": (RUNS, 0.36 + 0.75 * rise + wiggle(0.06)),
    }
    return xr.Dataset(variables, {"step": STEPS, "replica": [0, 1, 2]}, ATTRS)


def prediction():
    """Return what predict() and mean_field() hold."""
    rise = 1 - np.exp(-STEPS / 30)
    variables = {
        "loss": ("step", np.exp(-STEPS / 40)),
        "noise_kernel_norm_finite": ("step", 0.32 + 0.55 * rise),
    }
    return xr.Dataset(variables, {"step": STEPS}, ATTRS)


def expected():
    """Return what expected_ntk() holds."""
    t = STEPS[:, None] / STEPS[-1]
    parts = {"progressive": 0.4 * t, "conservative": -0.15 * t**2, "diffusive": 0.1 * t}
    total = 2.0 + sum(parts.values())
    variables = {n: (("step", "mode"), v) for n, v in (parts | {"ntk_projection": total}).items()}
    return xr.Dataset(variables, {"step": STEPS, "mode": [0]}, ATTRS)


def sharpening_grid():
    """Return what sharpening_diagram() holds."""
    grid = phase_grid([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], [1, 3, 10, 30, 100])
    growth = np.log(grid.noise_kernel_norm[-1] * 0 + grid.learning_rate * 20) * 0.02
    growth = growth.where(grid.learning_rate < 0.4)
    growth.attrs["long_name"] = "simulated growth of the largest eigenvalue"
    valid = grid.noise_kernel_norm[-1] < 3
    return grid.assign(
        simulated_growth=growth,
        predicted_growth=growth.assign_attrs(long_name="predicted growth"),
        standard_error=xr.full_like(growth, 0.004),
        valid=valid,
    )


def boundary():
    """Return what trace_boundary() holds."""
    value = np.array([0.02, 0.08, 0.3])
    variables = {
        "critical_learning_rate": ("batch_size", value),
        "critical_learning_rate_low": ("batch_size", 0.9 * value),
        "critical_learning_rate_high": ("batch_size", 1.2 * value),
        "resolved": ("batch_size", [True, False, True]),
    }
    attrs = {name: v for name, v in ATTRS.items() if name not in ("learning_rate", "batch_size")}
    return xr.Dataset(variables, {"batch_size": [1, 4, 16]}, attrs | {"boundary": "mean_square"})


def edges():
    """Return results of mean_field_edge() along a curvature strength."""
    norms = np.array([[1.0, 0.99], [0.8, 0.7], [0.6, 0.5]])
    return xr.Dataset(
        {"noise_kernel_norm_finite": (("curvature_strength", "batch_size"), norms)},
        {"curvature_strength": [0.0, 0.1, 0.2], "batch_size": [1, 5]},
        {"n_data": 50, "n_params": 100},
    )


def persistent():
    """Return what persistent_edge() holds."""
    rise = 1 - np.exp(-STEPS / 30)
    dims = ("curvature_strength", *RUNS)
    norm = np.stack([0.3 + 0.6 * q * rise + wiggle(0.08 * q, 2) for q in (0.5, 1.0)])
    norm[1, 0, 12:] = np.nan
    variables = {
        "noise_kernel_norm_exact": (dims, norm),
        "scaled_largest_eigenvalue": (dims, norm),
        "divergence_step": (dims[:2], [[-1, -1], [60, -1]]),
        "mean_field_noise_kernel_norm_finite": (dims[::2], norm[:, 1]),
    }
    coords = {"curvature_strength": [0.5, 1.0], "replica": [0, 1], "step": STEPS}
    return xr.Dataset(variables, coords, ATTRS | {"initial_norm": 0.3})


def large_p():
    """Return what large_p_edge() holds."""
    dims = ("curvature_strength", "batch_size", "initial_norm", "replica")
    end = np.array([[0.3, 0.35, 0.9, 0.8], [0.3, 0.4, 1.3, np.inf]]).reshape(1, 2, 2, 2)
    outcome = np.where(end < 0.5, "stayed below", np.where(end < 1, "turned back", "ended above"))
    outcome = np.where(np.isinf(end), "diverged", outcome)
    coords = {
        "curvature_strength": [1.0],
        "batch_size": [1, 8],
        "initial_norm": [0.3, 0.6],
        "replica": [0, 1],
    }
    attrs = {"n_data": 50, "kind": "edge at large P", "truncation_order": 4}
    return xr.Dataset({"final_norm": (dims, end), "outcome": (dims, outcome)}, coords, attrs)


def grid():
    """Return what phase_diagram() holds."""
    return phase_grid([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.5], [1, 3, 10, 30, 100])


def network_grid():
    """Return what train_grid() holds of six runs, one of which diverges."""
    dims = ("batch_size", "share", "replica", "step")
    batch = np.array([2.0, 16.0])[:, None, None, None]
    share = np.array([0.3, 1.0, 2.0])[:, None, None]
    rise = (1 - np.exp(-STEPS / 30)) * np.ones((2, 3, 1, 1))
    norm = share * (0.3 + rise * 2 / batch**0.5) + wiggle(0.03, 1)
    scaled = 0.1 * share * batch**0.6 * (1 + rise) + wiggle(0.02, 1)
    ended = np.full((2, 3, 1), -1)
    ended[0, 2] = 62
    gone = STEPS > 62
    norm[0, 2, :, gone] = scaled[0, 2, :, gone] = np.nan
    return xr.Dataset(
        {
            "noise_kernel_norm_exact": (dims, norm, {"long_name": "noise kernel norm (exact)"}),
            "scaled_largest_eigenvalue": (dims, scaled),
            "divergence_step": (dims[:3], ended),
        },
        {"batch_size": [2, 16], "share": [0.3, 1.0, 2.0], "replica": [0], "step": STEPS},
        ATTRS,
    )


def areas():
    """Return what separation() says of three measures, two times ahead."""
    middle = np.array([[0.95, 0.9], [0.85, 0.8], [0.6, 0.45]])
    dims = ("measure", "lead")
    ends = {"auc_low": (dims, middle - 0.1), "auc_high": (dims, np.minimum(middle + 0.1, 1))}
    names = ["noise_kernel_norm_exact", "noise_kernel_norm", "scaled_largest_eigenvalue"]
    return xr.Dataset({"auc": (dims, middle), **ends}, {"measure": names, "lead": [0, 100]})
