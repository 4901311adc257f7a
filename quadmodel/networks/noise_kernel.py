"""The noise kernel norm of a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import InputError, as_choice, as_integer, as_number
from quadmodel.networks._bounds import bound
from quadmodel.networks._estimate import Estimate
from quadmodel.networks._exact_norm import matrix_free_norm
from quadmodel.networks._linearisation import Linearisation
from quadmodel.networks._noise_map import Kernel
from quadmodel.networks.ntk import kernel_of, norms_of
from quadmodel.optimizer import SGD
from quadmodel.theory._inputs import NORMS, check_sgd
from quadmodel.theory._noise_blocks import block_noise_kernel_norm, norm_of_modes
from quadmodel.theory.noise_kernel import noise_kernel_norm as norm_of_ntk

METHODS = ("dense", "matrix_free")
# The kernel is formed by default up to so many rows.
_DENSE = 1000


def noise_kernel_norm(
    net: Any,
    inputs: Any,
    targets: Any,
    sgd: SGD,
    *,
    norm: str = "exact",
    method: str | None = None,
    loss: Any = "mse",
    parameters: Any = None,
    relative_error: float = 0.02,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Return the noise kernel norm K of a network around its present parameters.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points, those that batches are drawn from.
    targets : tensor or array, shape (D, ...), or None
        Needed only by a loss whose curvature depends on them.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme. The learning rate is
        that of the mean loss over a batch.
    norm : {"exact", "finite", "paper"}, optional
        Which K, as for :func:`quadmodel.noise_kernel_norm`.
    method : {"dense", "matrix_free"}, optional
        "dense" forms the neural tangent kernel and draws nothing; "matrix_free" needs its products
        only. By default "dense" up to D C = 1000.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point: half the squared distance, the cross-entropy of scores, or a function
        of one output and one target, convex in the output. PyTorch's ``MSELoss`` of C outputs has
        2/C times this learning rate.
    parameters : str or callable, optional
        Which parameters count, by their names: K of a layer.
    relative_error : float, optional
        Standard error, as a share of K, at which "matrix_free" stops drawing.
    seed : int, optional
        Of the random vectors.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    Estimate
        `value` and `standard_error` (0 for "dense"). +inf at and above the deterministic edge, 0
        for full batches below it.

    Raises
    ------
    InputError
        If an argument is out of range, the data don't fit, or the network ties data points.
    MemoryError
        If the kernel does not fit ("dense").
    ImportError
        Without PyTorch.

    Notes
    -----
    Training is linearised in the parameters, with the loss's curvature as it is now: rows of the
    Jacobian are :math:`H_i^{1/2}J_i`. Batches pick points with all their outputs, so that "exact"
    is the Perron root of :math:`X \mapsto \gamma\,\mathrm{blockdiag}(V[S\circ(V^\top XV)]V^\top)`
    on matrices of one block per point. "finite" and "paper" are
    :math:`\gamma\sum_\alpha S_{\alpha\alpha}/(Dr)`, r the number of outputs (one less for
    cross-entropy, which has no curvature along their sum); "finite" is a lower bound of "exact".

    "matrix_free" takes Krylov spaces of the kernel: for "exact" from random signs
    :math:`X_i^{1/2}s_i`, the points with the largest blocks without signs, inside a power
    iteration; for the others stochastic Lanczos quadrature. Estimates are unbiased but for what the
    Krylov spaces cut off and for what the power iteration leaves: it approaches "exact" from below,
    by half a percent where all points are alike and the spectrum is flat. Both are in the standard
    error of "exact"; that of the others holds the random signs only, with 1e-3 cut off at most.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, for the paper's norm. The exact one goes
       beyond it; compare R. Mulayoff, T. Michaeli, arXiv:2306.07850.
    .. [2] S. Ubaru, J. Chen, Y. Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net, points = torch.nn.Linear(10, 1, bias=False), 10**0.5 * torch.eye(10)
    >>> sgd = qm.SGD(learning_rate=0.5, batch_size=5)
    >>> round(qm.networks.noise_kernel_norm(net, points, None, sgd).value, 4)
    0.3571
    """
    as_choice("norm", norm, NORMS)
    relative_error = as_number("relative_error", relative_error, above=0.0, most=1.0)
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    check_sgd(sgd, at.n_data)
    dense = at.n_rows <= _DENSE
    if method is not None:
        dense = as_choice("method", method, METHODS) == "dense"
    if dense:
        return Estimate(_dense(at, sgd, norm, chunk_size), 0.0)
    if norm == "exact":
        squares = norms_of(at, chunk_size) ** 2
        kernel = Kernel(at.ntk_product, at.n_data, at.n_outputs, squares, at.n_data)
        return matrix_free_norm(kernel, sgd, relative_error, rng)
    kernel = Kernel(at.ntk_product, at.n_data, at.n_outputs, np.empty(0), at.n_data)
    return bound(kernel, sgd, norm, at.n_outputs - at.loss.flat, relative_error, rng)


def _dense(at: Linearisation, sgd: SGD, norm: str, chunk_size: int | None) -> float:
    """Return K from the kernel itself."""
    kernel = kernel_of(at, chunk_size)
    if norm == "exact":
        if at.n_outputs == 1:
            return float(norm_of_ntk(at.rounded(kernel), sgd, norm="exact"))
        return block_noise_kernel_norm(kernel, sgd, at.n_outputs, at.tolerance)
    values = np.linalg.eigvalsh(kernel).astype(np.float64)
    if values[0] < -at.tolerance * values[-1]:
        raise InputError(f"net gave a kernel with the eigenvalue {values[0]:.3g}: use more digits")
    outputs = at.n_outputs - int(at.loss.flat)
    return norm_of_modes(np.maximum(values, 0.0), sgd, norm, at.n_data, outputs)
