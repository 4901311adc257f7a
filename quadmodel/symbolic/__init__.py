"""Derivations: from the SGD step of the quadratic model to its moment equations, with SymPy."""

from quadmodel.symbolic.algebra import names as names
from quadmodel.symbolic.algebra.gaussian import GaussianField as GaussianField
from quadmodel.symbolic.algebra.gaussian import average as average
from quadmodel.symbolic.algebra.gaussian import independent_curvature as independent_curvature
from quadmodel.symbolic.algebra.gaussian import kronecker_curvature as kronecker_curvature
from quadmodel.symbolic.algebra.indices import data_indices as data_indices
from quadmodel.symbolic.algebra.indices import parameter_indices as parameter_indices
from quadmodel.symbolic.algebra.matrices import as_matrix as as_matrix
from quadmodel.symbolic.algebra.polynomials import Tensor as Tensor
from quadmodel.symbolic.algebra.polynomials import delta as delta
from quadmodel.symbolic.algebra.sampling import SamplingScheme as SamplingScheme
from quadmodel.symbolic.algebra.sampling import average_batches as average_batches
from quadmodel.symbolic.algebra.sampling import weight_covariance as weight_covariance
from quadmodel.symbolic.algebra.sampling import weight_moment as weight_moment
from quadmodel.symbolic.curvature_average import mean_field_kernels as mean_field_kernels
from quadmodel.symbolic.dynamics import difference as difference
from quadmodel.symbolic.dynamics import expected as expected
from quadmodel.symbolic.fock import fock_inner_product as fock_inner_product
from quadmodel.symbolic.fock import fock_moment as fock_moment
from quadmodel.symbolic.given_forces import two_time_functions as two_time_functions
from quadmodel.symbolic.large_p import large_p_step as large_p_step
from quadmodel.symbolic.late_time import loss_floor as loss_floor
from quadmodel.symbolic.late_time import mode_energy_equation as mode_energy_equation
from quadmodel.symbolic.late_time import rate_equation as rate_equation
from quadmodel.symbolic.late_time import (
    squared_residual_at_gradient as squared_residual_at_gradient,
)
from quadmodel.symbolic.late_time import volterra_kernel as volterra_kernel
from quadmodel.symbolic.late_time import volterra_sum as volterra_sum
from quadmodel.symbolic.linear import HEAVY_BALL as HEAVY_BALL
from quadmodel.symbolic.linear import NESTEROV as NESTEROV
from quadmodel.symbolic.linear import PLAIN_SGD as PLAIN_SGD
from quadmodel.symbolic.linear import LinearOptimizer as LinearOptimizer
from quadmodel.symbolic.linear import linear_optimizer as linear_optimizer
from quadmodel.symbolic.linear import second_moment_equation as second_moment_equation
from quadmodel.symbolic.mean_field import MeanField as MeanField
from quadmodel.symbolic.mode_ring import modes_of_moments as modes_of_moments
from quadmodel.symbolic.mode_ring import modes_of_values as modes_of_values
from quadmodel.symbolic.ntk_bulk import bulk_moments as bulk_moments
from quadmodel.symbolic.sharpening import (
    expected_jacobian_difference as expected_jacobian_difference,
)
from quadmodel.symbolic.sharpening import expected_ntk_difference as expected_ntk_difference
from quadmodel.symbolic.sharpening import mode_part as mode_part
from quadmodel.symbolic.sharpening import sharpening_factor as sharpening_factor
from quadmodel.symbolic.stability import bare_response as bare_response
from quadmodel.symbolic.stability import dressed_response as dressed_response
from quadmodel.symbolic.stability import edge_of_stability as edge_of_stability
from quadmodel.symbolic.stability import noise_kernel_norm as noise_kernel_norm
from quadmodel.symbolic.stability import schur_cohn_conditions as schur_cohn_conditions
from quadmodel.symbolic.stability import small_learning_rate_limit as small_learning_rate_limit
