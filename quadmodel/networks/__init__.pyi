from ._estimate import Estimate as Estimate
from .curvature_operators import gauss_newton as gauss_newton
from .curvature_operators import hessian as hessian
from .eigenvalue import largest_eigenvalue as largest_eigenvalue
from .jacobian import jacobian as jacobian
from .noise_kernel import noise_kernel_norm as noise_kernel_norm
from .ntk import ntk as ntk
from .ntk import row_norms as row_norms
