"""What options of the command line stand for: grids, spectra, sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from quadmodel import spectra
from quadmodel._util.checks import InputError, as_array, as_integer, as_number
from quadmodel._util.files import load_array

if TYPE_CHECKING:
    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

INPUTS = ("jacobian", "ntk", "eigenvalues")


class Values(click.ParamType[Any]):
    """A count, a comma-separated list, or LOW:HIGH:COUNT spread evenly in the logarithm."""

    name = "values"

    def __init__(self, convert: Callable[[str], Any], *, whole: bool) -> None:
        self._convert, self._whole = convert, whole

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if ":" in value:
                low, high, count = value.split(":")
                ends = float(low), float(high)
                if not 0 < ends[0] < ends[1] < 1e100 or not 1 <= int(count) <= 10**6:
                    raise ValueError
                spread = np.geomspace(*ends, int(count))
                if not self._whole:
                    return spread
                # Beyond any number of data points all sizes are equally wrong.
                return np.unique(np.minimum(spread, 2.0**62).round().astype(np.int64))
            if "," in value:
                return [self._convert(part) for part in value.split(",")]
            return int(value)
        except ValueError:
            self.fail(
                "expected a count, a list like 1,2,4 or LOW:HIGH:COUNT with 0 < LOW < HIGH, "
                f"got {value!r}"
            )


def source(options: dict[str, Any]) -> Ensemble | QuadraticModel:
    """Return the ensemble or model that the options describe."""
    from quadmodel.ensemble import Ensemble
    from quadmodel.model import QuadraticModel

    given = [name for name in INPUTS if options[name] is not None]
    if len(given) > 1:
        raise InputError(f"one of --jacobian, --ntk, --eigenvalues must be given, got {given}")
    scale = as_number("--residual", options["residual"], least=0.0, most=1e100)
    seed = options["seed"]
    if not given:
        law = _law(options["spectrum"])
        n_data = as_integer("n_data", options["n_data"])
        n_params = as_integer("n_params", options["n_params"])
        if law is spectra.MarchenkoPastur:
            law = spectra.MarchenkoPastur(n_params / n_data)
        curvature = _curvature(options, n_params)
        return Ensemble(n_data, n_params, jacobian=law, curvature=curvature, residual=scale)
    (name,) = given
    array = load_array(options[name])
    if name == "eigenvalues":
        values = as_array(f"--{name}", array, (None,))
        curvature = _curvature(options, len(values))
        return Ensemble(len(values), len(values), values, curvature=curvature, residual=scale)
    array = as_array(f"--{name}", array, (None, None))
    if name == "ntk":
        array = QuadraticModel.from_ntk(array).jacobian
    # Residual and curvature as an ensemble of this shape draws them.
    n_data, n_params = array.shape
    ensemble = Ensemble(n_data, n_params, curvature=_curvature(options, n_params), residual=scale)
    if options["limit"] is not None:  # where the law is all that counts
        drawn = replace(ensemble, curvature=None).sample(seed)
        return QuadraticModel(drawn.residual, array, None, ensemble.curvature)  # type: ignore[arg-type]
    drawn = ensemble.sample(seed)
    return QuadraticModel(drawn.residual, array, drawn.curvature, drawn.curvature_law)


def _curvature(options: dict[str, Any], n_params: int) -> float:
    """Return the standard deviation of the curvature, given itself or by its strength."""
    if options["curvature"] is not None:
        return as_number("--curvature", options["curvature"], least=0.0, most=1e100)
    strength = as_number("--strength", options["strength"], least=0.0, most=1e100)
    return strength / math.sqrt(n_params)


def _law(text: str) -> Any:
    """Return the spectral law named on the command line."""
    name, _, detail = text.partition(":")
    try:
        if name == "gaussian" and not detail:
            return spectra.IndependentGaussian()
        if name == "marchenko-pastur" and not detail:
            return spectra.MarchenkoPastur
        if name == "power-law":
            return spectra.PowerLaw(float(detail or 1.0))
        if name == "outliers":
            return spectra.Outliers([float(v) for v in detail.split(",")])
    except InputError as error:
        raise InputError(f"--spectrum: {error}") from None
    except ValueError:
        pass
    raise InputError(
        "--spectrum must be gaussian, marchenko-pastur, power-law[:EXPONENT] or "
        f"outliers:V1,V2,..., got {text!r}"
    )
