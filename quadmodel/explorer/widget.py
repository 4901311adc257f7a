"""The explorer as a widget of Jupyter, by anywidget."""

from __future__ import annotations

from dataclasses import fields
from threading import Lock
from typing import Any

import anywidget
import traitlets

from quadmodel._util.checks import (
    InputError,
    as_choice,
    as_integer,
    as_number,
    shown,
)
from quadmodel.explorer._computed import edges, exact_norms, sgd_of, simulated
from quadmodel.explorer._front import front_file, module
from quadmodel.explorer._latest import Latest, Stale
from quadmodel.explorer._source import OF_EDGES, OF_NORMS, Settings
from quadmodel.explorer._subject import Subject
from quadmodel.optimizer import SGD

SETTINGS = tuple(field.name for field in fields(Settings))


class Explorer(anywidget.AnyWidget):
    r"""Sliders over which predictions move, with simulations; :func:`quadmodel.explore` makes it.

    Every setting is an attribute that can be read and set, and observed as traits are:
    `learning_rate`, `batch_size`, `momentum`, `nesterov`, `weight_decay`, `sampling` as
    :class:`quadmodel.SGD` has them, or all at once as `sgd`; `spectrum` and `parameter` of the
    built-in spectra; `curvature_strength` :math:`q = \sigma\sqrt P`; `steps`. `computed` holds what
    Python has added: simulated losses, exact K, edges, each with the settings it belongs to.

    Parameters
    ----------
    subject : Subject
        What is explored.
    seed : int
        Seed of the batches.

    Raises
    ------
    InputError
        Where a setting is out of range.
    """

    _esm = module()
    _css = front_file("explorer.css")

    source = traitlets.Dict().tag(sync=True)
    computed = traitlets.Dict().tag(sync=True)
    learning_rate = traitlets.Any().tag(sync=True)
    batch_size = traitlets.Any().tag(sync=True)
    momentum = traitlets.Any().tag(sync=True)
    nesterov = traitlets.Any().tag(sync=True)
    weight_decay = traitlets.Any().tag(sync=True)
    sampling = traitlets.Any().tag(sync=True)
    spectrum = traitlets.Any().tag(sync=True)
    parameter = traitlets.Any().tag(sync=True)
    curvature_strength = traitlets.Any().tag(sync=True)
    steps = traitlets.Any().tag(sync=True)

    def __init__(self, subject: Subject, seed: int) -> None:
        """Show a subject."""
        self._subject, self._seed = subject, seed
        self._lock = Lock()
        self._simulations: Latest[Settings] = Latest(self._simulate)
        self._edges: Latest[Settings] = Latest(self._find_edges)
        self._asked: Settings | None = None
        self._cut_short = False  # whether some of the edges are missing
        super().__init__(source=subject.source(), computed={}, **subject.settings().state())
        self.observe(self._ask, names=list(SETTINGS))
        self._ask()

    @property
    def settings(self) -> Settings:
        """All settings."""
        return Settings(**{name: getattr(self, name) for name in SETTINGS})

    @property
    def sgd(self) -> SGD:
        """Learning rate, batch size, momentum, weight decay and sampling scheme as one."""
        return sgd_of(self.settings)

    @sgd.setter
    def sgd(self, value: SGD) -> None:
        if not isinstance(value, SGD):
            raise InputError(f"sgd must be an SGD, got {shown(value)}")
        value.check_batch_size(self.source["n_data"])
        with self.hold_trait_notifications():
            for name, setting in value.spec().items():
                setattr(self, name, bool(setting) if name == "nesterov" else setting)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until Python has computed all that the present settings ask for.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, for each of simulations and edges.

        Returns
        -------
        bool
            Whether that came in time.
        """
        return self._simulations.wait(timeout) & self._edges.wait(timeout)

    def close(self) -> None:
        """End the widget; nothing more is computed."""
        self._simulations.cancel()
        self._edges.cancel()
        super().close()

    @traitlets.validate(*SETTINGS)
    def _checked(self, proposal: Any) -> Any:
        """Check a setting, whoever sets it."""
        name, value = proposal["trait"].name, proposal["value"]
        if name == "batch_size":
            return as_integer(name, value, high=self.source["n_data"])
        if name == "steps":
            return as_integer(name, value, high=100_000)
        if name == "curvature_strength":
            most = 1e100 if self.source["adjustable"] else 0.0
            return as_number(name, value, least=0.0, most=most)
        if name == "spectrum":
            return as_choice(name, value, tuple(f["name"] for f in self.source["families"]))
        if name == "parameter":
            return self._checked_parameter(value)
        return getattr(SGD(**{"learning_rate": 1.0, "batch_size": 1, name: value}), name)

    def _checked_parameter(self, value: Any) -> float:
        family = next(f for f in self.source["families"] if f["name"] == self.spectrum)
        number = as_number("parameter", value)
        if number not in family["values"]:
            wanted = ", ".join(f"{v:g}" for v in family["values"])
            raise InputError(f"parameter must be one of {wanted}, got {number:g}")
        return number

    def _ask(self, _: Any = None) -> None:
        """Ask for what belongs to the settings, once for each."""
        family = next(f for f in self.source["families"] if f["name"] == self.spectrum)
        if self.parameter not in family["values"]:
            self.parameter = family["default"]  # asks again
            return
        settings = self.settings
        if settings != self._asked:
            self._asked = settings
            self._simulations.ask(settings)
            self._edges.ask(settings)

    def _add(self, name: str, value: dict[str, Any]) -> None:
        with self._lock:
            self.computed = {**self.computed, name: value}

    def _simulate(self, settings: Settings, stale: Stale) -> None:
        self._add("simulation", simulated(self._subject, settings, self._seed))

    def _find_edges(self, settings: Settings, stale: Stale) -> None:
        if not self._known("norms", settings, OF_NORMS):
            norms = exact_norms(self._subject, settings, stale)
            if norms is not None:
                self._add("norms", norms)
        if not self._known("edges", settings, OF_EDGES) or self._cut_short:
            self._cut_short = True
            for found in edges(self._subject, settings, stale):
                self._add("edges", found)
            self._cut_short = stale()

    def _known(self, name: str, settings: Settings, names: tuple[str, ...]) -> bool:
        """Whether what has been computed under a name belongs to the settings."""
        if name not in self.computed:
            return False
        of = self.computed[name]["settings"]
        return all(of[n] == getattr(settings, n) for n in names)
