"""What a notebook's explorer shows: the page's spectra, or the user's own model or NTK."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from quadmodel._util.checks import FloatArray, InputError, n_axes
from quadmodel.ensemble import Ensemble
from quadmodel.explorer._source import Settings, page_source
from quadmodel.explorer._spectra import FAMILIES
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.theory.noise_kernel import critical_learning_rate

# Numbers in a curvature that is drawn for the simulation; larger models are simulated without.
_LARGEST_CURVATURE = 2**23


class Subject(Protocol):
    """What is explored."""

    def source(self) -> dict[str, Any]:
        """Return what the front end is given once."""

    def settings(self) -> Settings:
        """Return the settings to start with."""

    def linear(self, settings: Settings) -> QuadraticModel:
        """Return the model without curvature."""

    def model(self, settings: Settings) -> QuadraticModel:
        """Return the model to simulate."""

    def of_edge(self, settings: Settings) -> tuple[QuadraticModel, Any] | None:
        """Return model and curvature law for the nonlinear edge; None where there is none."""


class Spectra:
    """The page's spectra, with a model drawn for each."""

    def __init__(self, seed: int) -> None:
        """Draw with a seed."""
        self._seed = seed
        self._linear = lru_cache(maxsize=4)(self._drawn)

    def source(self) -> dict[str, Any]:
        """Return spectra and table of the page."""
        return page_source()

    def settings(self) -> Settings:
        """Return those of the page."""
        return Settings()

    def _drawn(self, name: str, parameter: float) -> QuadraticModel:
        family = FAMILIES[name]
        lam, n_params = family.eigenvalues(parameter), family.n_params(parameter)
        return Ensemble(lam.size, n_params, lam).sample(self._seed)

    def linear(self, settings: Settings) -> QuadraticModel:
        """Return the model without curvature."""
        return self._linear(settings.spectrum, settings.parameter)

    def model(self, settings: Settings) -> QuadraticModel:
        """Return the model to simulate."""
        return _curved(self.linear(settings), settings.curvature_strength, self._seed)

    def of_edge(self, settings: Settings) -> None:
        """Leave the nonlinear edge to the page's table."""


@dataclass(frozen=True)
class Own:
    """The user's model; `adjustable` if the explorer adds the curvature."""

    given: QuadraticModel
    flat: QuadraticModel
    adjustable: bool
    seed: int

    def source(self) -> dict[str, Any]:
        """Return the model's spectrum as the only one."""
        lam, vectors = self.flat.eigensystem
        start = (vectors.T @ self.flat.residual) ** 2
        family = {
            "name": "own",
            "label": "own",
            "parameter_label": "",
            "values": [0.0],
            "default": 0.0,
            "tabulated": [],
            "logarithmic": False,
            "eigenvalues": [lam.tolist()],
            "start": start.tolist(),
        }
        return page_source() | {
            "families": [family],
            "n_data": self.flat.n_data,
            "unit": float(lam.mean()),
            "residual": math.sqrt(float(start.mean())) or 1.0,
            "adjustable": self.adjustable,
            "curved": self.given.curvature is not None,
            "table": {"shares": {}, "batch_sizes": [], "curvature_strengths": []},
        }

    def settings(self) -> Settings:
        """Return a batch of a tenth of the data, at half the critical learning rate."""
        lam = self.flat.eigensystem[0]
        size = max(1, self.flat.n_data // 10)
        rate = 0.5 * critical_learning_rate(lam, SGD(1.0, size))
        return Settings(
            learning_rate=float(f"{rate:.3g}"),
            batch_size=size,
            spectrum="own",
            parameter=0.0,
            curvature_strength=0.0,
        )

    def linear(self, settings: Settings) -> QuadraticModel:
        """Return the model without curvature."""
        return self.flat

    def model(self, settings: Settings) -> QuadraticModel:
        """Return the model to simulate."""
        if not self.adjustable:
            return self.given
        return _curved(self.flat, settings.curvature_strength, self.seed)

    def of_edge(self, settings: Settings) -> tuple[QuadraticModel, Any] | None:
        """Return model and curvature law for the nonlinear edge; None where there is none."""
        if not self.adjustable:
            law = self.given.curvature_law
            return None if law is None else (self.given, law)
        if settings.curvature_strength == 0:
            return None
        return self.flat, _law(self.flat, settings.curvature_strength)


def as_subject(source: Any, seed: int) -> Subject:
    """Check what is to be explored, and unify it; arrays are NTKs or their eigenvalues."""
    if source is None:
        return Spectra(seed)
    if isinstance(source, Ensemble):
        source = source.sample(seed)
    if isinstance(source, QuadraticModel):
        flat = QuadraticModel(source.residual, source.jacobian)
        adjustable = source.curvature is None
    else:
        flat, adjustable = _of_array(source, seed), True
        source = flat
    lam = flat.eigensystem[0]
    if lam[0] == 0:
        raise InputError("source must have an NTK that does not vanish, got eigenvalues of 0 only")
    return Own(source, flat, adjustable, seed)


def _of_array(source: Any, seed: int) -> QuadraticModel:
    """Return the model of an NTK with a random residual, or of eigenvalues with random modes."""
    if n_axes("source", source) == 1:
        lam = np.sort(np.asarray(source))[::-1]
        return Ensemble(lam.size, 2 * lam.size, lam).sample(seed)
    n_data = QuadraticModel.from_ntk(source).n_data
    return QuadraticModel.from_ntk(source, np.random.default_rng(seed).standard_normal(n_data))


def _curved(linear: QuadraticModel, strength: float, seed: int) -> QuadraticModel:
    """Return a model with an independent curvature of a strength q = sigma sqrt(P), if it fits."""
    n_data, n_params = linear.jacobian.shape
    if strength == 0 or n_data * n_params**2 > _LARGEST_CURVATURE:
        return linear
    curvature = _scale(linear, strength) * _unit_curvature(n_data, n_params, seed)
    return QuadraticModel(linear.residual, linear.jacobian, curvature)


def _scale(model: QuadraticModel, strength: float) -> float:
    """Return the standard deviation of a curvature of some strength q = sigma sqrt(P)."""
    return strength / math.sqrt(model.n_params)


def _law(model: QuadraticModel, strength: float) -> Any:
    """Return the law of an independent curvature of some strength."""
    return Ensemble(model.n_data, model.n_params, curvature=_scale(model, strength)).curvature


@lru_cache(maxsize=2)
def _unit_curvature(n_data: int, n_params: int, seed: int) -> FloatArray:
    """Return a curvature of independent entries of variance 1, drawn once for all strengths."""
    return np.asarray(Ensemble(n_data, n_params, curvature=1.0).sample(seed).curvature)
