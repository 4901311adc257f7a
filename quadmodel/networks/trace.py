"""The trace of a network's curvature by random vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, as_choice, as_integer
from quadmodel.networks._estimate import Estimate, mean_of
from quadmodel.networks._krylov import Product
from quadmodel.networks._linearisation import Linearisation, need_targets
from quadmodel.networks.eigenvalue import CURVATURES

METHODS = ("xtrace", "hutchinson")


def trace(
    net: Any,
    inputs: Any,
    targets: Any = None,
    *,
    of: str = "gauss_newton",
    method: str = "xtrace",
    products: int = 64,
    loss: Any = "mse",
    parameters: Any = None,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Return the trace of the Gauss-Newton matrix or the Hessian of a network's mean loss.

    Parameters
    ----------
    net : torch.nn.Module
        Network that maps (D, ...) to (D, ...) and treats data points one by one.
    inputs : tensor or array, shape (D, ...)
        Data points.
    targets : tensor or array, shape (D, ...), optional
        Needed by the Hessian, and by a loss whose curvature depends on them.
    of : {"gauss_newton", "hessian"}, optional
        Whose trace. That of the Gauss-Newton matrix is the neural tangent kernel's, too.
    method : {"xtrace", "hutchinson"}, optional
        "xtrace" projects out what the other random vectors have found: better where few
        eigenvalues make most of the trace.
    products : int, optional
        Products with the matrix, at least 4; "xtrace" takes two per random vector.
    loss : {"mse", "cross_entropy"} or callable, optional
        Loss of a data point, as for :func:`gauss_newton`.
    parameters : str or callable, optional
        Which parameters count, by their names.
    seed : int, optional
        Of the random vectors.
    chunk_size : int, optional
        Data points that go through the network at once; all by default.

    Returns
    -------
    Estimate
        In units of 1 / learning rate.

    Raises
    ------
    InputError
        If an argument is out of range or the data don't fit.
    ImportError
        Without PyTorch.

    Notes
    -----
    With random signs s, :math:`s^\top As` is unbiased for tr A [1]_. XTrace [2]_ splits A for
    every s by the projector on the range of A times all *other* s, adds the trace within that
    range exactly and estimates the rest with s: unbiased, for s is independent of the projector.
    Its standard error treats these estimates as independent, which they nearly are. The
    Gauss-Newton matrix is traced among the data where that is smaller. Its trace is known without
    random vectors, too: the mean square of :func:`row_norms`.

    References
    ----------
    .. [1] M. Hutchinson, Commun. Stat. 19 (1990) 433.
    .. [2] E. Epperly, J. Tropp, R. Webber, arXiv:2301.07825.

    Examples
    --------
    >>> import torch, quadmodel as qm
    >>> net = torch.nn.Linear(20, 1, bias=False)
    >>> round(qm.networks.trace(net, torch.eye(20), method="hutchinson").value, 4)
    1.0
    """
    as_choice("of", of, CURVATURES)
    as_choice("method", method, METHODS)
    products = as_integer("products", products, low=4)
    rng = np.random.default_rng(as_integer("seed", seed, low=0))
    if of == "hessian":
        need_targets(targets)
    at = Linearisation(
        net, inputs, targets, loss=loss, parameters=parameters, chunk_size=chunk_size
    )
    product: Product
    if of == "hessian":
        product, n = at.hessian_product, at.n_params
    elif at.n_rows < at.n_params:
        product, n = at.ntk_product, at.n_rows
    else:
        product, n = at.gauss_newton_product, at.n_params
    if method == "hutchinson":
        return _hutchinson(product, n, products, rng)
    if products // 2 >= n:
        raise InputError(f"products must be below twice the matrix's size, {n}, got {products}")
    return _xtrace(product, n, products // 2, rng)


def _hutchinson(product: Product, n: int, count: int, rng: np.random.Generator) -> Estimate:
    signs = rng.choice(np.array([-1.0, 1.0]), (count, n))
    return mean_of(np.einsum("kn,kn->k", signs, product(signs)))


def _xtrace(product: Product, n: int, count: int, rng: np.random.Generator) -> Estimate:
    signs = rng.choice(np.array([-1.0, 1.0]), (count, n))
    images = product(signs)
    basis, upper = np.linalg.qr(images.T)
    # The range without image k is what is orthogonal to column k of the inverse transposed.
    if np.abs(np.diag(upper)).min() <= 1e-10 * np.abs(np.diag(upper)).max():
        # Images span the range of the matrix: all of its trace is within.
        return Estimate(float(np.einsum("nk,nk->", basis, product(basis.T).T)), 0.0)
    normals: FloatArray = np.linalg.inv(upper).T
    normals = normals / np.linalg.norm(normals, axis=0)
    within = basis.T @ product(basis.T).T
    within = 0.5 * (within + within.T)
    found = np.empty(count)
    for k in range(count):
        normal = normals[:, k]
        inside = basis.T @ signs[k]
        inside = inside - normal * (normal @ inside)
        rest = signs[k] @ images[k] - 2 * inside @ (basis.T @ images[k]) + inside @ within @ inside
        found[k] = np.trace(within) - normal @ within @ normal + rest
    return mean_of(found)
