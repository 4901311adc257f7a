"""SGD: step size, batches, momentum, weight decay."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from quadmodel._util.checks import InputError, as_choice, as_integer, as_number, shown
from quadmodel._util.display import html_table

SAMPLING_SCHEMES = ("without_replacement", "with_replacement", "bernoulli")


@dataclass(frozen=True, repr=False)
class SGD:
    r"""Stochastic gradient descent with momentum, weight decay and a sampling scheme.

    Parameters
    ----------
    learning_rate : float
        Step size :math:`\eta > 0`, in units of 1 / (NTK eigenvalue).
    batch_size : int
        Data points per step :math:`B`, between 1 and the number of data points :math:`D`.
        For Bernoulli sampling it is the expected number.
    momentum : float, optional
        Heavy-ball coefficient :math:`\mu`, inside (-1, 1).
    nesterov : bool, optional
        Evaluate the gradient at the extrapolated point instead of at the current one. 0 and 1 will
        do, as attributes of results hold it.
    weight_decay : float, optional
        Coefficient :math:`\rho \ge 0` of :math:`\rho|\theta|^2/2`, with :math:`\theta` the
        displacement from the initial parameters; in units of an NTK eigenvalue.
    sampling : {"without_replacement", "with_replacement", "bernoulli"}, optional
        How a batch is drawn. Every drawn point carries the weight :math:`D/B`.

    Raises
    ------
    InputError
        If a value lies outside its range (a ValueError).

    Notes
    -----
    One step, with batch weights :math:`w_t`, mean 1, and :math:`W_t = \mathrm{diag}(w_t)`:

    .. math:: \theta_{t+1} = \theta_t + \mu(\theta_t - \theta_{t-1})
              - \eta\,[J(\varphi_t)^\top W_t z(\varphi_t)/D + \rho\varphi_t]

    with :math:`\varphi_t = \theta_t` (heavy ball), or
    :math:`\varphi_t = \theta_t + \mu(\theta_t - \theta_{t-1})` (Nesterov). PyTorch's Nesterov
    iterates are the :math:`\varphi_t` of these.

    References
    ----------
    .. [1] A. Agarwala, J. Pennington, arXiv:2404.19261, section 2 (plain SGD without replacement).

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.SGD(learning_rate=0.2, batch_size=8).momentum
    0.0
    """

    learning_rate: float
    batch_size: int
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    sampling: str = "without_replacement"

    def __post_init__(self) -> None:
        """Check every field once."""
        put = object.__setattr__  # the dataclass is frozen
        put(self, "learning_rate", as_number("learning_rate", self.learning_rate, above=0.0))
        put(self, "batch_size", as_integer("batch_size", self.batch_size))
        put(self, "momentum", as_number("momentum", self.momentum, above=-1.0, below=1.0))
        if not (
            isinstance(self.nesterov, bool | np.bool_ | int | np.integer)
            and self.nesterov in (0, 1)
        ):
            raise InputError(f"nesterov must be True or False, got {shown(self.nesterov)}")
        put(self, "nesterov", bool(self.nesterov))
        put(self, "weight_decay", as_number("weight_decay", self.weight_decay, least=0.0))
        put(self, "sampling", as_choice("sampling", self.sampling, SAMPLING_SCHEMES))

    def _at(self, *, learning_rate: float | None = None, batch_size: int | None = None) -> SGD:
        """Return a copy at another learning rate or batch size, for callers within the package.

        Nothing is checked: searches and grids run over values that are known to be valid.
        """
        copy = object.__new__(SGD)
        copy.__dict__.update(self.__dict__)
        if learning_rate is not None:
            copy.__dict__["learning_rate"] = learning_rate
        if batch_size is not None:
            copy.__dict__["batch_size"] = batch_size
        return copy

    def __repr__(self) -> str:
        """Show what differs from the defaults."""
        shown = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"SGD({', '.join(shown)})"

    def _repr_html_(self) -> str:
        """Show every field in a notebook."""
        rows = asdict(self) | {"sampling": self.sampling.replace("_", " ")}
        units = {"learning_rate": " / NTK eigenvalue", "batch_size": " data points"}
        return html_table(
            "SGD",
            {name.replace("_", " "): f"{v}{units.get(name, '')}" for name, v in rows.items()},
        )

    def check_batch_size(self, n_data: int) -> None:
        """Check the batch size against the number of data points.

        Parameters
        ----------
        n_data : int
            Number of data points :math:`D`.

        Raises
        ------
        InputError
            If the batch size is above `n_data`.
        """
        if self.batch_size > n_data:
            raise InputError(
                f"batch_size must be between 1 and n_data={n_data}, got {self.batch_size}"
            )

    def spec(self) -> dict[str, Any]:
        """Return the fields as a dictionary that NetCDF attributes can hold.

        Returns
        -------
        dict
            Field names and values, of which ``SGD(**spec)`` makes the same SGD again. `nesterov` is
            0 or 1, since NetCDF has no attributes that are True or False.
        """
        return {name: int(v) if isinstance(v, bool) else v for name, v in asdict(self).items()}
