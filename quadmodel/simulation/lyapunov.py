"""lyapunov_exponent(): growth of a typical run of linear SGD, by renormalised products."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from quadmodel._util.checks import InputError, as_integer, check_memory, n_axes
from quadmodel._util.progress import progress_bar
from quadmodel._util.results import attributes, variable
from quadmodel._util.threads import workers
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.simulation._kernels.populations import Populations
from quadmodel.simulation.populations import (
    follow,
    growth_of_members,
    random_directions,
    with_relaxation,
)

# The progress bar moves this often, in each of the two stretches.
_BLOCKS = 16


def lyapunov_exponent(
    model: QuadraticModel | ArrayLike,
    sgd: SGD,
    steps: int,
    *,
    replicas: int = 16,
    seed: int = 0,
    burn_in: int | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> xr.Dataset:
    r"""Measure the top Lyapunov exponent of linear SGD: how a typical run grows per step.

    Parameters
    ----------
    model : QuadraticModel, or array_like of shape (n_data, n_data)
        What to train, linearised at its initial parameters: only the NTK matters.
    sgd : SGD
        Learning rate, batch size, momentum, weight decay and sampling scheme.
    steps : int
        SGD steps per replica, those of the burn-in included; below 2**32.
    replicas : int, optional
        Independent runs, at least 2.
    seed : int, optional
        Below 2**64. The batch of a step is a function of (seed, replica, step).
    burn_in : int, optional
        First steps, discarded while directions relax; half of all steps if left out.
    threads : int, optional
        Worker threads; all available cores by default. Results don't depend on it.
    progress : bool, optional
        Show a progress bar, on a terminal or in a notebook.

    Returns
    -------
    xarray.Dataset
        Per step: `lyapunov_exponent`, the growth of :math:`\log|z|`; `typical_growth`, that of
        :math:`\log|z|^2`, the log loss, twice as large; each with its ``..._standard_error``.
        `settled`: whether growth before and after the end of the burn-in agree.
        `run_growth` (replica): :math:`\log|z|^2` of every run. -inf where batches annihilate the
        residual, +inf where one step overflows.

    Raises
    ------
    InputError
        If an argument is out of range, the batch is larger than the data, or the NTK vanishes.
    MemoryError
        If the runs don't fit in memory.

    Notes
    -----
    The exponent of the product of the matrices :math:`I-\eta\Theta W_t`, with momentum of their
    companion on :math:`(z_t, z_{t-1})`; weight decay shrinks residuals to 0, not to :math:`z_0`. A
    residual in a random direction is stepped, its size set back to 1 after every step and the
    logarithms summed. It is kept in the range of the NTK: what lies in the null space never changes
    and would pin the exponent at 0. The mean over replicas has the standard error of independent
    runs. Where it differs significantly from the growth in the second half of the burn-in, slow
    modes have not yet taken over, and the difference is added to the standard error in quadrature:
    as much may be missing still where it decays like 1/t, less if faster. With a burn-in of 0
    nothing is known of it.

    `typical_growth` is measured as in :func:`quadmodel.phase_diagram`, but from random residuals,
    and predicted by :func:`quadmodel.typical_growth`.

    References
    ----------
    .. [1] H. Furstenberg, H. Kesten, "Products of random matrices" (1960), for its existence.
    .. [2] derivations/07-typical-stability.md, for its prediction.

    Examples
    --------
    >>> import numpy as np, quadmodel as qm
    >>> sgd = qm.SGD(learning_rate=0.5, batch_size=2)
    >>> found = qm.lyapunov_exponent(np.diag([1.0, 0.5]), sgd, steps=100)
    >>> bool(abs(float(found.lyapunov_exponent) - np.log(0.75)) < 1e-6)
    True
    """
    if not isinstance(model, QuadraticModel):
        axes = n_axes("model", model)
        if axes != 2:
            raise InputError(
                "model must be a QuadraticModel or an NTK of shape (n_data, n_data), "
                f"got {type(model).__name__} with {axes} dimensions"
            )
        model = QuadraticModel.from_ntk(model)
    if not isinstance(sgd, SGD):
        raise InputError(f"sgd must be an SGD, got {type(sgd).__name__}")
    sgd.check_batch_size(model.n_data)
    steps = as_integer("steps", steps, high=2**32 - 1)
    replicas = as_integer("replicas", replicas, low=2, high=2**32 - 1)
    seed = as_integer("seed", seed, low=0, high=2**64 - 1)
    if burn_in is None:
        burn_in = steps // 2
    burn_in = as_integer("burn_in", burn_in, low=0, high=steps - 1)
    threads = None if threads is None else as_integer("threads", threads)
    check_memory("the runs", 8.0 * 4 * replicas * model.n_data)
    if model.eigensystem[0][0] == 0:
        raise InputError("model: the NTK must not vanish, got eigenvalues that are all zero")

    # A population of one member per run, so that threads share them.
    number = np.arange(replicas)[:, None]
    start = random_directions(model, np.random.default_rng([seed, 0]), number.shape)
    before = np.linspace(0, burn_in, _BLOCKS + 1).astype(np.int64)
    after = np.linspace(burn_in, steps, _BLOCKS + 1).astype(np.int64)
    total = replicas * steps
    with (
        workers(threads) as pool,
        progress_bar(total, what="Lyapunov exponent", show=progress) as bar,
    ):
        rates, sizes = np.full(replicas, sgd.learning_rate), np.full(replicas, sgd.batch_size)
        growth = follow(
            model,
            Populations(start, start.copy(), rates, sizes, number),
            sgd,
            np.concatenate([before, after[1:]]),
            select=False,
            seed=seed,
            pool=pool,
            advance=bar.update,
        )
    with np.errstate(invalid="ignore"):
        runs = growth[_BLOCKS:, :, 0].sum(axis=0) / (steps - burn_in)
    # What vanished or exploded during the burn-in stays what it is.
    lost = growth[:_BLOCKS, :, 0].sum(axis=0)
    runs = np.where(np.isfinite(lost), runs, lost)
    typical = growth_of_members(runs[None, :])
    half = _BLOCKS // 2
    if before[_BLOCKS] > before[half]:
        early = growth[half:_BLOCKS, :, 0].sum(axis=0) / (before[_BLOCKS] - before[half])
        typical = with_relaxation(growth_of_members(early[None, :]), typical)
    rate, error = float(typical.rate[0]), float(typical.standard_error[0])
    settled = bool(np.all(typical.settled))

    unit = "1 / step"
    return xr.Dataset(
        {
            "lyapunov_exponent": variable((), rate / 2, "top Lyapunov exponent", unit),
            "lyapunov_exponent_standard_error": variable(
                (), error / 2, "standard error of the top Lyapunov exponent", unit
            ),
            "typical_growth": variable((), rate, "growth rate of the typical loss", unit),
            "typical_growth_standard_error": variable(
                (), error, "standard error of the typical growth rate", unit
            ),
            "settled": variable((), settled, "whether growth has settled", "1"),
            "run_growth": variable("replica", runs, "growth rate of the loss of each run", unit),
        },
        attrs=attributes(
            "simulation",
            model.spec() | sgd.spec(),
            steps=steps,
            burn_in=burn_in,
            replicas=replicas,
            seed=seed,
        ),
    )
