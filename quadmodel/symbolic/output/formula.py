"""A formula of the emitted module: name, arguments, results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy as sp

# What the arguments are, for the docstring of the module
MEANING = {
    "x": "eta (lambda + rho) of a mode",
    "y": "eta (lambda + rho) of the other mode",
    "momentum": "momentum",
    "growth": "factor per step by which the response is discounted",
    "gamma": "variance parameter of the batch weights",
    "kappa": "correlation parameter of the batch weights",
    "n_data": "number of data points",
    "n_params": "number of parameters",
    "batch_size": "number of points in a batch",
    "batch_fraction": "batch size over number of data points",
    "learning_rate": "learning rate, in units of 1 / eigenvalue",
    "eigenvalue": "NTK eigenvalue of a mode",
    "weight_decay": "weight decay, in units of an eigenvalue",
    "bare": "response of a pair of modes",
    "dressed": "response of a mode with the correlation of the batch weights",
    "mean_square": "square of a mode's mean residual",
    "a": "coefficient of z_t in a mode's recursion a z_t - b z_(t-1)",
    "b": "coefficient of -z_(t-1)",
    "a_other": "a of the other mode",
    "b_other": "b of the other mode",
    "coefficient_now": "coefficient p of the point p z_t - q z_(t-1) where the gradient is taken",
    "coefficient_old": "coefficient q of that point",
    "effective_step": "eta lambda of a mode",
    "effective_step_other": "eta lambda of the other mode",
    "weight_decay_force": "eta rho z_0 of a mode",
    "weight_decay_force_other": "eta rho z_0 of the other mode",
    "now": "E z_t z_t' of two modes",
    "cross": "E z_t z_(t-1)' of two modes",
    "cross_other": "E z_(t-1) z_t' of two modes",
    "old": "E z_(t-1) z_(t-1)' of two modes",
    "mean": "E z_t of a mode",
    "mean_other": "E z_t of the other mode",
    "old_mean": "E z_(t-1) of a mode",
    "old_mean_other": "E z_(t-1) of the other mode",
    "at_gradient": "E u u' of two modes at the point of the gradient",
    "noise": "covariance of the batch noise between two modes",
    "point_noise": "V^T diag(E u_i^2) V between two modes",
    "pole": "position p/q of the pole, in units of an eigenvalue",
    "slope": "slope q of the response's denominator",
    "transform": "Stieltjes transform of the spectral law at the pole",
    "over_data": "covariance of the curvature over data points",
    "unconstrained_sum": "sum over earlier steps of h_n X_s",
    "data_response_sum": "sum over earlier steps of X_s N^T R_n",
    "trace_sum": "sum over earlier steps of tr(N R_n) X_s",
    "displacement_sum": "sum over earlier steps of R_n N Y_s",
    "skew": "J S J^+",
    "twice": "J S^2 J^+",
    "inner": "J^+T S J^+",
    "inner_twice": "J^+T S^2 J^+",
    "displaced": "E (z - z_0)(z - z_0)^T",
    "source_sum": "summed source terms",
    "diffusion": "mean square of the Jacobian's change with the displacement",
    "trace": "trace of the covariance S of the curvature over parameters",
    "distance": "E theta^T S theta",
    "gap": "distance of the two eigenvalues without the fluctuation",
    "square": "mean square of the fluctuation between the two modes",
    "covariance": "entry of V^T C V for a mode with itself",
    "covariance_other": "entry for the other mode with itself",
    "covariance_between": "entry between the two modes",
    "outer": "entry of V^T J S J^T V for a mode with itself",
    "outer_other": "entry for the other mode with itself",
    "outer_between": "entry between the two modes",
    "fluctuation": "entry of V^T N Y N^T V for a mode with itself",
    "fluctuation_other": "entry for the other mode with itself",
    "fluctuation_between": "entry between the two modes",
}


@dataclass(frozen=True)
class Formula:
    """A function of the emitted module.

    Parameters
    ----------
    name : str
        Its name.
    summary : str
        First line of its docstring.
    arguments : mapping of str to Symbol
        Python names and what stands for them in the expressions.
    results : tuple of SymPy expression
        What it returns.
    document : str
        Number of the derivation.
    steps : mapping of str to SymPy expression, optional
        Intermediate values, by Python name, for `results` to use as symbols of that name.
    several : bool, optional
        Whether to return a tuple even of one result.
    """

    name: str
    summary: str
    arguments: Mapping[str, sp.Symbol]
    results: tuple[sp.Expr, ...]
    document: str
    steps: Mapping[str, sp.Expr] = field(default_factory=dict)
    several: bool = False
