"""SGD: step size, or a rule that sets it, batches, momentum, weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from quadmodel._util.checks import InputError, as_choice, as_integer, as_number, shown
from quadmodel._util.display import html_table
from quadmodel._util.roots import newton_in_bracket

SAMPLING_SCHEMES = ("without_replacement", "with_replacement", "bernoulli")

# Noise kernel norms that a rule may hold; "trace", which needs no spectrum, for networks only.
HELD = ("exact", "finite", "paper", "trace")
# Share of the target by which the first K may be off.
_SETTLED = 1e-3


@dataclass(frozen=True)
class HoldK(float):
    r"""A rule for the learning rate: hold the noise kernel norm K at a target.

    Takes the place of a number in :class:`SGD`, for :func:`quadmodel.simulate` and
    :func:`quadmodel.networks.track`; all other functions need a number and refuse it.

    Parameters
    ----------
    target : float
        K to hold, above 0; below 1 training is stable in mean square.
    norm : {"exact", "finite", "paper", "trace"}, optional
        Which K is measured; "trace" is the bound by the trace, for networks only.
    every : int, optional
        Steps between two renewals of the learning rate, each of which measures K.
    gain : float, optional
        Share of the distance to the target, in the logarithm, that a renewal makes up where K is in
        proportion to the learning rate; between 0 and 1. Lower values smooth an estimate's noise.
    most : float, optional
        Factor by which a renewal changes the learning rate at most.

    Raises
    ------
    InputError
        If a value lies outside its range (a ValueError).

    Notes
    -----
    .. math:: \eta \leftarrow \eta\,\mathrm{clip}[(K^*/K(\eta))^g,\ 1/m,\ m]

    with target :math:`K^*`, gain g and `most` m; a K that is infinite or not known counts as above
    every target. Near an unchanged model this converges while
    :math:`g\,\mathrm{d}\log K/\mathrm{d}\log\eta < 2`; that slope is 1 far from the deterministic
    edge, and grows towards it. The first learning rate is that at which K is at the target. As a
    number the rule is NaN.

    References
    ----------
    .. [1] Goes beyond arXiv:2404.19261. Compare V. Roulet et al., arXiv:2407.06183, for rules that
       hold the largest eigenvalue.

    Examples
    --------
    >>> import quadmodel as qm
    >>> qm.HoldK(0.5, gain=1.0).renewed(0.1, norm=1.0)
    0.05
    """

    target: float
    norm: str = "exact"
    every: int = 50
    gain: float = 0.5
    most: float = 2.0

    def __new__(
        cls,
        target: float,
        norm: str = "exact",
        every: int = 50,
        gain: float = 0.5,
        most: float = 2.0,
    ) -> HoldK:
        """Return a float that is not a number, so that nothing computes with it unnoticed."""
        return float.__new__(cls, math.nan)

    def __post_init__(self) -> None:
        """Check every field once."""
        put = object.__setattr__  # the dataclass is frozen
        put(self, "target", as_number("target", self.target, above=0.0))
        as_choice("norm", self.norm, HELD)
        put(self, "every", as_integer("every", self.every))
        put(self, "gain", as_number("gain", self.gain, above=0.0, most=1.0))
        put(self, "most", as_number("most", self.most, above=1.0))

    def renewed(self, learning_rate: float, norm: float) -> float:
        """Return the next learning rate.

        Parameters
        ----------
        learning_rate : float
            The present one.
        norm : float
            K at it.

        Returns
        -------
        float
            The next one.
        """
        if not math.isfinite(norm):
            return learning_rate / self.most
        wanted = (self.target / norm) ** self.gain if norm > 0 else math.inf
        return learning_rate * min(max(wanted, 1 / self.most), self.most)

    def settled(self, norm_at: Callable[[float], float], guess: float) -> float:
        """Return the learning rate at which K is at the target.

        Parameters
        ----------
        norm_at : callable
            K as a function of the learning rate.
        guess : float
            First learning rate.

        Returns
        -------
        float
            Learning rate.
        """
        return newton_in_bracket(
            lambda rate: (norm_at(rate) - self.target, math.nan),
            guess,
            0.0,
            math.inf,
            step_tolerance=1e-3 * _SETTLED * guess,
            value_tolerance=_SETTLED * self.target,
        )


@dataclass(frozen=True, repr=False)
class SGD:
    r"""Stochastic gradient descent with momentum, weight decay and a sampling scheme.

    Parameters
    ----------
    learning_rate : float or HoldK
        Step size :math:`\eta > 0`, in units of 1 / (NTK eigenvalue); or a rule that sets it.
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
        if not isinstance(self.learning_rate, HoldK):
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

    @property
    def rule(self) -> HoldK | None:
        """The rule that sets the learning rate, if there is one."""
        return self.learning_rate if isinstance(self.learning_rate, HoldK) else None

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
        rows = self.spec() | {"sampling": self.sampling.replace("_", " ")}
        rows["nesterov"] = self.nesterov
        units = {"learning_rate": " / NTK eigenvalue", "batch_size": " data points"}
        return html_table(
            "SGD",
            {name.replace("_", " "): f"{v}{units.get(name, '')}" for name, v in rows.items()},
        )

    def check_batch_size(self, n_data: int, *, rules: tuple[str, ...] = ()) -> None:
        """Check the batch size against the number of data points, and that there is a number.

        Parameters
        ----------
        n_data : int
            Number of data points :math:`D`.
        rules : tuple of str, optional
            Norms that a rule for the learning rate may hold.

        Raises
        ------
        InputError
            If the batch size is above `n_data`, or the learning rate is a rule that can't be
            followed here.
        """
        if self.rule is not None and self.rule.norm not in rules:
            wanted = f"a number or a rule that holds {', '.join(rules)}" if rules else "a number"
            raise InputError(f"learning_rate must be {wanted} here, got {self.rule}")
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
            0 or 1, since NetCDF has no attributes that are True or False. A rule for the learning
            rate is kept as text.
        """
        known = {name: int(v) if isinstance(v, bool) else v for name, v in asdict(self).items()}
        return known if self.rule is None else known | {"learning_rate": repr(self.rule)}
