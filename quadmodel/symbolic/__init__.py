"""Derivations: from the SGD step of the quadratic model to its moment equations, with SymPy."""

from quadmodel.symbolic.algebra import names
from quadmodel.symbolic.algebra.gaussian import (
    GaussianField,
    average,
    independent_curvature,
    kronecker_curvature,
)
from quadmodel.symbolic.algebra.indices import data_indices, parameter_indices
from quadmodel.symbolic.algebra.matrices import as_matrix
from quadmodel.symbolic.algebra.polynomials import Tensor, delta
from quadmodel.symbolic.algebra.sampling import (
    SamplingScheme,
    average_batches,
    weight_covariance,
    weight_moment,
)
from quadmodel.symbolic.curvature_average import mean_field_kernels
from quadmodel.symbolic.dynamics import difference, expected
from quadmodel.symbolic.fock import fock_inner_product, fock_moment
from quadmodel.symbolic.given_forces import two_time_functions
from quadmodel.symbolic.large_p import large_p_step
from quadmodel.symbolic.late_time import (
    loss_floor,
    mode_energy_equation,
    rate_equation,
    squared_residual_at_gradient,
    volterra_kernel,
    volterra_sum,
)
from quadmodel.symbolic.linear import (
    HEAVY_BALL,
    NESTEROV,
    PLAIN_SGD,
    LinearOptimizer,
    linear_optimizer,
    second_moment_equation,
)
from quadmodel.symbolic.mean_field import MeanField
from quadmodel.symbolic.mode_ring import modes_of_moments, modes_of_values
from quadmodel.symbolic.ntk_bulk import bulk_moments
from quadmodel.symbolic.sharpening import (
    expected_jacobian_difference,
    expected_ntk_difference,
    mode_part,
    sharpening_factor,
)
from quadmodel.symbolic.stability import (
    bare_response,
    dressed_response,
    edge_of_stability,
    noise_kernel_norm,
    schur_cohn_conditions,
    small_learning_rate_limit,
)

__all__ = [
    "HEAVY_BALL",
    "NESTEROV",
    "PLAIN_SGD",
    "GaussianField",
    "LinearOptimizer",
    "MeanField",
    "SamplingScheme",
    "Tensor",
    "as_matrix",
    "average",
    "average_batches",
    "bare_response",
    "bulk_moments",
    "data_indices",
    "delta",
    "difference",
    "dressed_response",
    "edge_of_stability",
    "expected",
    "expected_jacobian_difference",
    "expected_ntk_difference",
    "fock_inner_product",
    "fock_moment",
    "independent_curvature",
    "kronecker_curvature",
    "large_p_step",
    "linear_optimizer",
    "loss_floor",
    "mean_field_kernels",
    "mode_energy_equation",
    "mode_part",
    "modes_of_moments",
    "modes_of_values",
    "names",
    "noise_kernel_norm",
    "parameter_indices",
    "rate_equation",
    "schur_cohn_conditions",
    "second_moment_equation",
    "sharpening_factor",
    "small_learning_rate_limit",
    "squared_residual_at_gradient",
    "two_time_functions",
    "volterra_kernel",
    "volterra_sum",
    "weight_covariance",
    "weight_moment",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)
