r"""Closed forms of the theory. Written by `quadmodel derive`; not to be edited by hand.

Arguments are numbers or arrays that broadcast against each other; so are the results, of which
there is one per formula. SymPy 1.14.0. The arguments, with their symbols in the formulas:

- `a`: :math:`a`, coefficient of z_t in a mode's recursion a z_t - b z_(t-1).
- `a_other`: :math:`a'`, a of the other mode.
- `at_gradient`: :math:`U`, E u u' of two modes at the point of the gradient.
- `b`: :math:`b`, coefficient of -z_(t-1).
- `b_other`: :math:`b'`, b of the other mode.
- `bare`: :math:`S_{0}`, response of a pair of modes.
- `batch_fraction`: :math:`\beta`, batch size over number of data points.
- `batch_size`: :math:`B`, number of points in a batch.
- `coefficient_now`: :math:`p`, coefficient p of the point p z_t - q z_(t-1) where the gradient is taken.
- `coefficient_old`: :math:`q`, coefficient q of that point.
- `covariance`: :math:`C_{a}`, entry of V^T C V for a mode with itself.
- `covariance_between`: :math:`C_{ab}`, entry between the two modes.
- `covariance_other`: :math:`C_{b}`, entry for the other mode with itself.
- `cross`: :math:`X`, E z_t z_(t-1)' of two modes.
- `cross_other`: :math:`X'`, E z_(t-1) z_t' of two modes.
- `data_response_sum`: :math:`X_{R}`, sum over earlier steps of X_s N^T R_n.
- `diffusion`: :math:`B`, mean square of the Jacobian's change with the displacement.
- `displaced`: :math:`Y`, E (z - z_0)(z - z_0)^T.
- `displacement_sum`: :math:`Y_{R}`, sum over earlier steps of R_n N Y_s.
- `distance`: :math:`\theta_{2}`, E theta^T S theta.
- `dressed`: :math:`S`, response of a mode with the correlation of the batch weights.
- `effective_step`: :math:`f`, eta lambda of a mode.
- `effective_step_other`: :math:`f'`, eta lambda of the other mode.
- `eigenvalue`: :math:`\lambda`, NTK eigenvalue of a mode.
- `fluctuation`: :math:`W_{a}`, entry of V^T N Y N^T V for a mode with itself.
- `fluctuation_between`: :math:`W_{ab}`, entry between the two modes.
- `fluctuation_other`: :math:`W_{b}`, entry for the other mode with itself.
- `gamma`: :math:`\gamma`, variance parameter of the batch weights.
- `gap`: :math:`g`, distance of the two eigenvalues without the fluctuation.
- `growth`: :math:`r`, factor per step by which the response is discounted.
- `inner`: :math:`H`, J^+T S J^+.
- `inner_twice`: :math:`H_{2}`, J^+T S^2 J^+.
- `kappa`: :math:`\kappa`, correlation parameter of the batch weights.
- `learning_rate`: :math:`\eta`, learning rate, in units of 1 / eigenvalue.
- `mean`: :math:`m`, E z_t of a mode.
- `mean_other`: :math:`m'`, E z_t of the other mode.
- `mean_square`: :math:`m_{2}`, square of a mode's mean residual.
- `momentum`: :math:`\mu`, momentum.
- `n_data`: :math:`D`, number of data points.
- `n_params`: :math:`P`, number of parameters.
- `noise`: :math:`\Omega`, covariance of the batch noise between two modes.
- `now`: :math:`N`, E z_t z_t' of two modes.
- `old`: :math:`O`, E z_(t-1) z_(t-1)' of two modes.
- `old_mean`: :math:`n`, E z_(t-1) of a mode.
- `old_mean_other`: :math:`n'`, E z_(t-1) of the other mode.
- `outer`: :math:`F_{a}`, entry of V^T J S J^T V for a mode with itself.
- `outer_between`: :math:`F_{ab}`, entry between the two modes.
- `outer_other`: :math:`F_{b}`, entry for the other mode with itself.
- `over_data`: :math:`C`, covariance of the curvature over data points.
- `point_noise`: :math:`E`, V^T diag(E u_i^2) V between two modes.
- `pole`: :math:`pole`, position p/q of the pole, in units of an eigenvalue.
- `skew`: :math:`N`, J S J^+.
- `slope`: :math:`q`, slope q of the response's denominator.
- `source_sum`: :math:`A`, summed source terms.
- `square`: :math:`f`, mean square of the fluctuation between the two modes.
- `trace`: :math:`s`, trace of the covariance S of the curvature over parameters.
- `trace_sum`: :math:`X_{\tau}`, sum over earlier steps of tr(N R_n) X_s.
- `transform`: :math:`m`, Stieltjes transform of the spectral law at the pole.
- `twice`: :math:`L`, J S^2 J^+.
- `unconstrained_sum`: :math:`X_{h}`, sum over earlier steps of h_n X_s.
- `weight_decay`: :math:`\rho`, weight decay, in units of an eigenvalue.
- `weight_decay_force`: :math:`c`, eta rho z_0 of a mode.
- `weight_decay_force_other`: :math:`c'`, eta rho z_0 of the other mode.
- `x`: :math:`x`, eta (lambda + rho) of a mode.
- `y`: :math:`y`, eta (lambda + rho) of the other mode.
"""

from typing import Any

import numpy as np


def without_replacement_covariance(n_data: Any, batch_size: Any) -> Any:
    r"""Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).

    See derivations/01-batch-weights.md.

    .. math:: - \frac{D \left(B - D\right)}{B \left(D - 1\right)}
    .. math:: 1
    """
    return -n_data*(batch_size - n_data)/(batch_size*(n_data - 1)), 1


def with_replacement_covariance(n_data: Any, batch_size: Any) -> Any:
    r"""Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).

    See derivations/01-batch-weights.md.

    .. math:: \frac{D}{B}
    .. math:: 1
    """
    return n_data/batch_size, 1


def bernoulli_covariance(n_data: Any, batch_size: Any) -> Any:
    r"""Return gamma, kappa of Cov(w) = gamma (I - kappa 11^T/D).

    See derivations/01-batch-weights.md.

    .. math:: - \frac{B - D}{B}
    .. math:: 0
    """
    return -(batch_size - n_data)/batch_size, 0


def paper_variance(batch_fraction: Any) -> Any:
    r"""Return gamma without replacement for many data points.

    See derivations/01-batch-weights.md.

    .. math:: -1 + \frac{1}{\beta}
    """
    return -1 + 1/batch_fraction


def heavy_ball_recursion(x: Any, momentum: Any) -> Any:
    r"""Return a, b of a mode's noise-free z_(t+1) = a z_t - b z_(t-1).

    See derivations/02-second-moment.md.

    .. math:: \mu - x + 1
    .. math:: \mu
    """
    return momentum - x + 1, momentum


def heavy_ball_edges(momentum: Any) -> Any:
    r"""Return candidates for the edge in eta (lambda + rho), the least positive of them.

    See derivations/03-noise-kernel.md.

    .. math:: 2 \mu + 2
    """
    return 2*momentum + 2,


def nesterov_recursion(x: Any, momentum: Any) -> Any:
    r"""Return a, b of a mode's noise-free z_(t+1) = a z_t - b z_(t-1).

    See derivations/02-second-moment.md.

    .. math:: - \left(\mu + 1\right) \left(x - 1\right)
    .. math:: - \mu \left(x - 1\right)
    """
    shared0 = x - 1
    return -shared0*(momentum + 1), -momentum*shared0


def nesterov_edges(momentum: Any) -> Any:
    r"""Return candidates for the edge in eta (lambda + rho), the least positive of them.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{\mu - 1}{\mu}
    .. math:: \frac{\mu + 1}{\mu}
    .. math:: \frac{2 \left(\mu + 1\right)}{2 \mu + 1}
    """
    shared0 = 1/momentum
    shared1 = momentum + 1
    return shared0*(momentum - 1), shared0*shared1, 2*shared1/(2*momentum + 1)


def recursion_roots(a: Any, b: Any) -> Any:
    r"""Return the growth factors per step of the two solutions of a mode's recursion.

    See derivations/02-second-moment.md.

    .. math:: \frac{a}{2} - \frac{\sqrt{a^{2} - 4 b}}{2}
    .. math:: \frac{a}{2} + \frac{\sqrt{a^{2} - 4 b}}{2}
    """
    shared0 = (1/2)*a
    shared1 = (1/2)*np.sqrt(a**2 - 4*b)
    return shared0 - shared1, shared0 + shared1


def heavy_ball_pair_sum_at_gradient(x: Any, y: Any, momentum: Any, growth: Any) -> Any:
    r"""Return the pair sum of r^(-n-1) h_n h'_n, h the response at the gradient.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{r \left(2 r \left(- \mu + r\right) - \left(- \mu + r\right)^{2}\right)}{\mu r^{2} \left(x - y\right)^{2} + \left(- \mu + r\right)^{2} \left(- x y + \left(\mu + 1\right) \left(x + y\right) + \left(r - 1\right) \left(- a a' + 2 \mu + r + 1\right)\right)}
    """
    a = momentum - x + 1
    a_other = momentum - y + 1
    margin = growth - momentum
    margin_other = growth - momentum
    at_one = -x*y + (momentum + 1)*(x + y)
    rest = -a*a_other + growth + 2*momentum + 1
    shared0 = margin*margin_other
    return growth*(growth*margin + growth*margin_other - shared0)/(growth**2*momentum*(x - y)**2 + shared0*(at_one + rest*(growth - 1)))


def heavy_ball_diagonal_pair_sum(x: Any, momentum: Any) -> Any:
    r"""Return the pair sum of a mode with itself at the gradient, common factors cancelled.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{\mu + 1}{x \left(\mu - 1\right) \left(- 2 \mu + x - 2\right)}
    """
    return (momentum + 1)/(x*(momentum - 1)*(-2*momentum + x - 2))


def nesterov_pair_sum_at_gradient(x: Any, y: Any, momentum: Any, growth: Any) -> Any:
    r"""Return the pair sum of r^(-n-1) h_n h'_n, h the response at the gradient.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{- \mu r \left(\mu + 1\right) \left(a \left(- b' + r\right) + a' \left(- b + r\right)\right) + \left(\mu^{2} + r \left(\mu + 1\right)^{2}\right) \left(r \left(- b + r\right) + r \left(- b' + r\right) - \left(- b + r\right) \left(- b' + r\right)\right)}{\mu^{2} r^{2} \left(x - y\right)^{2} + \left(- b + r\right) \left(- b' + r\right) \left(x y \left(- 2 \mu - 1\right) + \left(\mu + 1\right) \left(x + y\right) + \left(r - 1\right) \left(- a a' + b + b' + r + 1\right)\right)}
    """
    a = -(momentum + 1)*(x - 1)
    b = -momentum*(x - 1)
    a_other = -(momentum + 1)*(y - 1)
    b_other = -momentum*(y - 1)
    margin = -b + growth
    margin_other = -b_other + growth
    at_one = x*y*(-2*momentum - 1) + (momentum + 1)*(x + y)
    rest = -a*a_other + b + b_other + growth + 1
    shared0 = margin*margin_other
    shared1 = momentum**2
    shared2 = momentum + 1
    return (-growth*momentum*shared2*(a*margin_other + a_other*margin) + (growth*shared2**2 + shared1)*(growth*margin + growth*margin_other - shared0))/(growth**2*shared1*(x - y)**2 + shared0*(at_one + rest*(growth - 1)))


def nesterov_pair_sum_at_residual(x: Any, y: Any, momentum: Any, growth: Any) -> Any:
    r"""Return the pair sum of r^(-n-1) h_n h'_n, h the response at the residual.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{r \left(r \left(- b + r\right) + r \left(- b' + r\right) - \left(- b + r\right) \left(- b' + r\right)\right)}{\mu^{2} r^{2} \left(x - y\right)^{2} + \left(- b + r\right) \left(- b' + r\right) \left(x y \left(- 2 \mu - 1\right) + \left(\mu + 1\right) \left(x + y\right) + \left(r - 1\right) \left(- a a' + b + b' + r + 1\right)\right)}
    """
    a = -(momentum + 1)*(x - 1)
    b = -momentum*(x - 1)
    a_other = -(momentum + 1)*(y - 1)
    b_other = -momentum*(y - 1)
    margin = -b + growth
    margin_other = -b_other + growth
    at_one = x*y*(-2*momentum - 1) + (momentum + 1)*(x + y)
    rest = -a*a_other + b + b_other + growth + 1
    shared0 = margin*margin_other
    return growth*(growth*margin + growth*margin_other - shared0)/(growth**2*momentum**2*(x - y)**2 + shared0*(at_one + rest*(growth - 1)))


def nesterov_diagonal_pair_sum(x: Any, momentum: Any) -> Any:
    r"""Return the pair sum of a mode with itself at the gradient, common factors cancelled.

    See derivations/03-noise-kernel.md.

    .. math:: - \frac{2 \mu^{2} x + \mu x + \mu + 1}{x \left(\mu x - \mu + 1\right) \left(2 \mu x - 2 \mu + x - 2\right)}
    """
    shared0 = momentum*x
    shared1 = shared0 + 1
    return -(2*momentum**2*x + momentum + shared1)/(x*(-momentum + shared1)*(-2*momentum + 2*shared0 + x - 2))


def dressed_response(bare: Any, gamma: Any, kappa: Any, n_data: Any) -> Any:
    r"""Return S = 1 / (1/S0 + kappa gamma/D).

    See derivations/03-noise-kernel.md.

    .. math:: \frac{S_{0}}{1 + \frac{S_{0} \gamma \kappa}{D}}
    """
    return bare/(bare*gamma*kappa/n_data + 1)


def heavy_ball_pole(learning_rate: Any, momentum: Any, gamma: Any, kappa: Any, n_data: Any) -> Any:
    r"""Return p, q of the dressed response eta lambda / (p - q lambda) of a mode, rho = 0.

    See derivations/03-noise-kernel.md.

    .. math:: - 2 \left(\mu - 1\right)
    .. math:: - \frac{\eta \mu}{\mu + 1} + \frac{\eta}{\mu + 1} - \frac{\eta \gamma \kappa}{D}
    """
    shared0 = 1/(momentum + 1)
    return 2 - 2*momentum, -gamma*kappa*learning_rate/n_data - learning_rate*momentum*shared0 + learning_rate*shared0


def mean_over_law(pole: Any, slope: Any, transform: Any) -> Any:
    r"""Return the mean over a law of lambda / (p - q lambda), from its Stieltjes transform.

    See derivations/03-noise-kernel.md.

    .. math:: \frac{m pole - 1}{q}
    """
    return (pole*transform - 1)/slope


def small_rate_response(eigenvalue: Any, weight_decay: Any, momentum: Any) -> Any:
    r"""Return the ratio of a mode's response to the learning rate, for small learning rates.

    See derivations/03-noise-kernel.md.

    .. math:: - \frac{\lambda^{2}}{2 \left(\lambda + \rho\right) \left(\mu - 1\right)}
    """
    return -1/2*eigenvalue**2/((eigenvalue + weight_decay)*(momentum - 1))


def propagated_moment(a: Any, a_other: Any, b: Any, b_other: Any, now: Any, cross: Any, cross_other: Any, old: Any) -> Any:
    r"""Return the noise-free part of the next second moment of two modes.

    See derivations/02-second-moment.md.

    .. math:: N a a' + O b b' - X a b' - X' a' b
    """
    return a*a_other*now - a*b_other*cross - a_other*b*cross_other + b*b_other*old


def forced_moment(a: Any, a_other: Any, b: Any, b_other: Any, weight_decay_force: Any, weight_decay_force_other: Any, mean: Any, mean_other: Any, old_mean: Any, old_mean_other: Any) -> Any:
    r"""Return the part of the next second moment that is due to weight decay.

    See derivations/02-second-moment.md.

    .. math:: c \left(a' m' - b' n'\right) + c' \left(a m - b n + c\right)
    """
    return weight_decay_force*(a_other*mean_other - b_other*old_mean_other) + weight_decay_force_other*(a*mean - b*old_mean + weight_decay_force)


def injected_moment(effective_step: Any, effective_step_other: Any, noise: Any) -> Any:
    r"""Return the part of the next second moment that the batch noise injects.

    See derivations/02-second-moment.md.

    .. math:: \Omega f f'
    """
    return effective_step*effective_step_other*noise


def cross_moment(a: Any, b: Any, weight_decay_force: Any, now: Any, cross_other: Any, mean_other: Any) -> Any:
    r"""Return E z_(t+1) z_t' of two modes.

    See derivations/02-second-moment.md.

    .. math:: N a - X' b + c m'
    """
    return a*now - b*cross_other + mean_other*weight_decay_force


def next_mean(a: Any, b: Any, weight_decay_force: Any, mean: Any, old_mean: Any) -> Any:
    r"""Return E z_(t+1) of a mode.

    See derivations/02-second-moment.md.

    .. math:: a m - b n + c
    """
    return a*mean - b*old_mean + weight_decay_force


def at_gradient_moment(now: Any, cross: Any, cross_other: Any, old: Any, coefficient_now: Any, coefficient_old: Any) -> Any:
    r"""Return E u u' of two modes at the point where the gradient is taken.

    See derivations/02-second-moment.md.

    .. math:: N p^{2} + O q^{2} - X p q - X' p q
    """
    shared0 = coefficient_now*coefficient_old
    return coefficient_now**2*now + coefficient_old**2*old - cross*shared0 - cross_other*shared0


def noise_covariance(at_gradient: Any, point_noise: Any, gamma: Any, kappa: Any, n_data: Any) -> Any:
    r"""Return the covariance of the batch noise between two modes.

    See derivations/02-second-moment.md.

    .. math:: E \gamma - \frac{U \gamma \kappa}{D}
    """
    return -at_gradient*gamma*kappa/n_data + gamma*point_noise


def propagated_moment_without_memory(a: Any, a_other: Any, now: Any) -> Any:
    r"""Return the noise-free part of the next second moment of two modes.

    See derivations/02-second-moment.md.

    .. math:: N a a'
    """
    return a*a_other*now


def squared_residual_at_gradient(mean_square: Any, dressed: Any, gamma: Any, kappa: Any, n_data: Any) -> Any:
    r"""Return own part and share of the total of a mode's stationary squared residual.

    See derivations/03-noise-kernel.md.

    .. math:: m_{2} - \frac{S \gamma \kappa m_{2}}{D}
    .. math:: \frac{S \gamma}{D}
    """
    shared0 = dressed*gamma/n_data
    return -kappa*mean_square*shared0 + mean_square, shared0


def kept_fraction(eigenvalue: Any, weight_decay: Any) -> Any:
    r"""Return the fraction of z_0 at which weight decay holds a mode's mean for ever.

    See derivations/02-second-moment.md.

    .. math:: \frac{\rho}{\lambda + \rho}
    """
    return weight_decay/(eigenvalue + weight_decay)


def ntk_source(over_data: Any, unconstrained_sum: Any, data_response_sum: Any, trace_sum: Any, displacement_sum: Any, skew: Any, twice: Any, trace: Any) -> Any:
    r"""Return the summed source terms of the mean NTK.

    See derivations/06-expected-ntk.md.

    .. math:: C X_{R} N^{T} + C X_{h} L^{T} + C Y_{R} N^{T} + C X_{\tau} N^{T} -  C X_{h} \left(N^{T}\right)^{2} -  \operatorname{tr}\left(N\right) C X_{h} N^{T} + s C X_{h} N^{T}
    """
    return trace*(over_data @ unconstrained_sum @ skew.T) + (-np.trace(skew))*(over_data @ unconstrained_sum @ skew.T) + over_data @ data_response_sum @ skew.T + over_data @ displacement_sum @ skew.T + over_data @ trace_sum @ skew.T + (-1)*(over_data @ unconstrained_sum @ skew.T @ skew.T) + over_data @ unconstrained_sum @ twice.T


def ntk_source_unit(over_data: Any, unconstrained_sum: Any, data_response_sum: Any, trace_sum: Any, displacement_sum: Any, n_data: Any, n_params: Any) -> Any:
    r"""Return the summed source terms of the mean NTK for covariance S = I over parameters.

    See derivations/06-expected-ntk.md.

    .. math:: C X_{R} + \left(- D + P\right) C X_{h} + C Y_{R} + C X_{\tau}
    """
    return (-n_data + n_params)*(over_data @ unconstrained_sum) + over_data @ data_response_sum + over_data @ displacement_sum + over_data @ trace_sum


def ntk_diffusion(over_data: Any, inner: Any, inner_twice: Any, displaced: Any, trace: Any) -> Any:
    r"""Return the mean square of the Jacobian's change with the parameters' displacement.

    See derivations/06-expected-ntk.md.

    .. math:: \operatorname{tr}\left(H_{2} Y\right) C + s \operatorname{tr}\left(H Y\right) C
    """
    return (trace*np.trace(inner @ displaced))*(over_data) + np.trace(inner_twice @ displaced)*(over_data)


def ntk_change(source_sum: Any, diffusion: Any, learning_rate: Any, n_data: Any) -> Any:
    r"""Return the mean change of the NTK.

    See derivations/06-expected-ntk.md.

    .. math:: \frac{1}{D} B -  \frac{\eta}{D^{2}} A -  \frac{\eta}{D^{2}} A^{T}
    """
    return (-learning_rate/n_data**2)*(source_sum) + (-learning_rate/n_data**2)*(source_sum.T) + 1/n_data*(diffusion)


def mode_fluctuation(distance: Any, covariance: Any, covariance_other: Any, covariance_between: Any, outer: Any, outer_other: Any, outer_between: Any, fluctuation: Any, fluctuation_other: Any, fluctuation_between: Any) -> Any:
    r"""Return D^2 times the mean square of the NTK's fluctuation between two modes.

    See derivations/06-expected-ntk.md.

    .. math:: C_{a} W_{b} + 2 C_{ab} W_{ab} + C_{b} W_{a} + \theta_{2} \left(C_{a} F_{b} + 2 C_{ab} F_{ab} + C_{b} F_{a}\right)
    """
    shared0 = 2*covariance_between
    return covariance*fluctuation_other + covariance_other*fluctuation + distance*(covariance*outer_other + covariance_other*outer + outer_between*shared0) + fluctuation_between*shared0


def eigenvalue_shift(gap: Any, square: Any) -> Any:
    r"""Return how far the larger of two eigenvalues is pushed by a fluctuation between them.

    See derivations/06-expected-ntk.md.

    .. math:: \frac{f}{\frac{g}{2} + \frac{\sqrt{4 f + g^{2}}}{2}}
    """
    return square/((1/2)*gap + (1/2)*np.sqrt(gap**2 + 4*square))


def without_replacement_fluctuations(n_data: Any, batch_size: Any) -> Any:
    r"""Return c3, c21, c111, c4, c31, c22, c211, c1111 of the moments of x = w - 1.

    See derivations/07-typical-stability.md.

    .. math:: \frac{D^{2} \left(B - D\right) \left(2 B - D\right)}{B^{2} \left(D - 2\right) \left(D - 1\right)}
    .. math:: - \frac{D \left(B - D\right) \left(2 B - D\right)}{B^{2} \left(D - 2\right) \left(D - 1\right)}
    .. math:: \frac{2 \left(B - D\right) \left(2 B - D\right)}{B^{2} \left(D - 2\right) \left(D - 1\right)}
    .. math:: - \frac{D^{3} \left(B - D\right) \left(6 B^{2} - 6 B D + D^{2} + D\right)}{B^{3} \left(D - 3\right) \left(D - 2\right) \left(D - 1\right)}
    .. math:: \frac{D^{2} \left(B - D\right) \left(6 B^{2} - 6 B D + D^{2} + D\right)}{B^{3} \left(D - 3\right) \left(D - 2\right) \left(D - 1\right)}
    .. math:: \frac{D^{3} \left(B - 1\right) \left(B - D\right) \left(B - D + 1\right)}{B^{3} \left(D - 3\right) \left(D - 2\right) \left(D - 1\right)}
    .. math:: - \frac{D \left(B - D\right) \left(B^{2} D + 6 B^{2} - B D^{2} - 6 B D + 2 D^{2}\right)}{B^{3} \left(D - 3\right) \left(D - 2\right) \left(D - 1\right)}
    .. math:: \frac{3 \left(B - D\right) \left(B^{2} D + 6 B^{2} - B D^{2} - 6 B D + 2 D^{2}\right)}{B^{3} \left(D - 3\right) \left(D - 2\right) \left(D - 1\right)}
    """
    shared0 = n_data**2
    shared1 = -n_data
    shared2 = batch_size + shared1
    shared3 = shared2/((n_data - 2)*(n_data - 1))
    shared4 = shared0*shared3
    shared5 = batch_size**2
    shared6 = (2*batch_size + shared1)/shared5
    shared7 = shared3*shared6
    shared8 = batch_size**(-3.0)
    shared9 = 1/(n_data - 3)
    shared10 = -6*batch_size*n_data + 6*shared5
    shared11 = shared8*shared9*(n_data + shared0 + shared10)
    shared12 = n_data**3*shared3
    shared13 = shared8*shared9
    shared14 = shared13*shared3*(-batch_size*shared0 + n_data*shared5 + 2*shared0 + shared10)
    return shared4*shared6, -n_data*shared7, 2*shared7, -shared11*shared12, shared11*shared4, shared12*shared13*(batch_size - 1)*(shared2 + 1), -n_data*shared14, 3*shared14


def with_replacement_fluctuations(n_data: Any, batch_size: Any) -> Any:
    r"""Return c3, c21, c111, c4, c31, c22, c211, c1111 of the moments of x = w - 1.

    See derivations/07-typical-stability.md.

    .. math:: \frac{D^{2}}{B^{2}}
    .. math:: - \frac{D}{B^{2}}
    .. math:: \frac{2}{B^{2}}
    .. math:: \frac{D^{3}}{B^{3}}
    .. math:: - \frac{D^{2}}{B^{3}}
    .. math:: \frac{D^{2} \left(B - 1\right)}{B^{3}}
    .. math:: - \frac{D \left(B - 2\right)}{B^{3}}
    .. math:: \frac{3 \left(B - 2\right)}{B^{3}}
    """
    shared0 = batch_size**(-2.0)
    shared1 = n_data**2
    shared2 = batch_size**(-3.0)
    shared3 = shared1*shared2
    shared4 = shared2*(batch_size - 2)
    return shared0*shared1, -n_data*shared0, 2*shared0, n_data**3*shared2, -shared3, shared3*(batch_size - 1), -n_data*shared4, 3*shared4


def bernoulli_fluctuations(n_data: Any, batch_size: Any) -> Any:
    r"""Return c3, c21, c111, c4, c31, c22, c211, c1111 of the moments of x = w - 1.

    See derivations/07-typical-stability.md.

    .. math:: \frac{\left(B - D\right) \left(2 B - D\right)}{B^{2}}
    .. math:: 0
    .. math:: 0
    .. math:: - \frac{\left(B - D\right) \left(6 B^{2} - 6 B D + D^{2}\right)}{B^{3}}
    .. math:: 0
    .. math:: \frac{\left(B - D\right)^{2}}{B^{2}}
    .. math:: 0
    .. math:: 0
    """
    shared0 = batch_size**2
    shared1 = 1/shared0
    shared2 = -n_data
    shared3 = batch_size + shared2
    return shared1*shared3*(2*batch_size + shared2), 0, 0, -shared3*(-6*batch_size*n_data + n_data**2 + 6*shared0)/batch_size**3, 0, shared1*shared3**2, 0, 0
