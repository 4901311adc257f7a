"""explore(): the explorer in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadmodel._util.checks import InputError, as_integer, shown
from quadmodel.optimizer import SGD

if TYPE_CHECKING:
    from quadmodel.explorer.widget import Explorer


def explore(source: Any = None, sgd: SGD | None = None, *, seed: int = 0) -> Explorer:
    r"""Show sliders over which the predictions move, with simulations beside them.

    Parameters
    ----------
    source : QuadraticModel, Ensemble, or array_like, optional
        What is trained: a model, an ensemble to draw it from, an NTK of shape (n_data, n_data), or
        its eigenvalues of shape (n_data,), whose modes are drawn then. Spectra to choose from, with
        100 data points, if left out.
    sgd : SGD, optional
        Where the sliders stand at first.
    seed : int, optional
        Seed of the batches, and of what is drawn of the model.

    Returns
    -------
    Explorer
        A widget, shown as the last line of a cell. Its settings are attributes that can be read,
        set and observed: `learning_rate`, `batch_size`, `momentum`, `nesterov`, `weight_decay`,
        `sampling`, all of them as `sgd`; `curvature_strength`, `steps`, `spectrum`, `parameter`.

    Raises
    ------
    InputError
        If `source` is none of these, or `sgd` does not fit it.
    ImportError
        If anywidget is not installed.

    Notes
    -----
    The front end computes paper's and finite K, :math:`(\gamma/D)\sum_\alpha S_{\alpha\alpha}`,
    their edges and the mean loss (closure in modes) itself, by formulas that are emitted as
    JavaScript from the derivations. Python adds, in the background, simulated losses, exact K, its
    edge and the typical one, and for a source of your own the nonlinear edge of
    :func:`quadmodel.mean_field_edge`; for the built-in spectra that one comes from a table.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 3; derivations/03-noise-kernel.md.

    Examples
    --------
    >>> import quadmodel as qm
    >>> explorer = qm.explore([2.0, 1.0, 0.5], qm.SGD(0.1, 2))  # doctest: +SKIP
    >>> explorer.learning_rate = 0.3  # moves the slider  # doctest: +SKIP
    """
    if not (sgd is None or isinstance(sgd, SGD)):
        raise InputError(f"sgd must be an SGD, got {shown(sgd)}")
    seed = as_integer("seed", seed, low=0)
    try:
        from quadmodel.explorer.widget import Explorer
    except ImportError as error:
        if error.name not in ("anywidget", "traitlets"):
            raise
        raise ImportError(
            "explore() needs anywidget: pip install 'quadmodel[explorer]'; without it, "
            "`quadmodel explore --html FILE` writes a page"
        ) from None
    from quadmodel.explorer._subject import as_subject

    explorer = Explorer(as_subject(source, seed), seed)
    if sgd is not None:
        explorer.sgd = sgd
    return explorer
