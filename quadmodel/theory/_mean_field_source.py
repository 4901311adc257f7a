"""What the mean-field theory needs of a model, an ensemble, or an NTK, in units of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from quadmodel._util.checks import (
    FloatArray,
    InputError,
    IntArray,
    as_array,
    as_integer,
    n_axes,
    shown,
)
from quadmodel._util.results import checksum
from quadmodel.laws.curvature import CurvatureLaw, IndependentCurvature
from quadmodel.laws.residuals import ResidualLaw
from quadmodel.model import QuadraticModel
from quadmodel.optimizer import SGD
from quadmodel.spectra import SpectralLaw
from quadmodel.theory import _noise
from quadmodel.theory._inputs import Spectrum, as_finite_spectrum
from quadmodel.theory._mean_field import Groups, Statistics

# Covariances may have so large a part, relative to the rest, that the theory leaves out.
_NOT_DIAGONAL = 1e-6
# Eigenvalues below this share of the mean are told apart by their distance, not their ratio.
_SLOW = 0.02
# Modes that spread less than this, squared, are the same up to rounding.
_ALIKE = 1e-20
# Modes with this share of the squared residual, and with so many times the mean of a mode, are
# heavy; so many are followed at most.
_HEAVY, _MANY_TIMES, _MOST_HEAVY = 0.02, 10.0, 8


@runtime_checkable
class EnsembleLike(Protocol):
    """What is asked of an ensemble: its laws, as :class:`quadmodel.Ensemble` holds them."""

    @property
    def n_data(self) -> int:
        """Data points."""

    @property
    def n_params(self) -> int:
        """Parameters."""

    @property
    def jacobian(self) -> Any:
        """Law of the NTK eigenvalues."""

    @property
    def curvature(self) -> Any:
        """Law of the curvature."""

    @property
    def residual(self) -> Any:
        """Law of the residual."""

    @property
    def eigenvectors(self) -> Any:
        """Law of the NTK eigenvectors."""

    def spec(self) -> dict[str, Any]:
        """Return what attributes of results say about it."""


@dataclass(frozen=True)
class Modes:
    """All modes of a model, descending: in units of powers of two, as `Statistics` are."""

    lam: FloatArray
    vectors: FloatArray | None
    energy: FloatArray  # mean squared residual at the start
    residual: FloatArray | None  # along the modes, where it is known
    over_data: FloatArray  # the curvature's variance along each mode, of mean 1
    strength: float
    n_params: float
    spec: dict[str, Any]
    unit_of_ntk: float = 1.0
    unit_of_residual: float = 1.0

    @property
    def n_data(self) -> int:
        """Number of data points."""
        return self.lam.size

    def strength_of_source(self) -> float:
        r"""Return :math:`\hat q = \sigma\sqrt{P/D}` in the units of the source."""
        return math.sqrt(self.strength) * self.unit_of_ntk / self.unit_of_residual

    def in_units(self, sgd: SGD) -> SGD:
        """Return the optimizer with learning rate and weight decay in the units of the modes."""
        limits = np.finfo(np.float64)
        rate = float(np.clip(sgd.learning_rate * self.unit_of_ntk, limits.tiny, limits.max))
        return replace(
            sgd, learning_rate=rate, weight_decay=min(sgd.weight_decay / self.unit_of_ntk, 1e300)
        )


def as_modes(
    source: Any,
    curvature: CurvatureLaw | float | None,
    residual: Any,
    n_params: int | None,
) -> Modes:
    """Check and unify what the theory may be asked about."""
    if isinstance(source, QuadraticModel | EnsembleLike):
        for name, value in (("residual", residual), ("n_params", n_params)):
            if value is not None:
                kind = type(source).__name__
                raise InputError(f"{name} must be left out, the {kind} has its own, got {value!r}")
        found = (
            _of_model(source, curvature)
            if isinstance(source, QuadraticModel)
            else (_of_ensemble(source, curvature))
        )
    else:
        found = _of_ntk(source, curvature, residual, n_params)
    return _in_units(found)


def _of_model(model: QuadraticModel, curvature: CurvatureLaw | float | None) -> Modes:
    lam, vectors = model.eigensystem
    law = model.curvature_law if curvature is None else _as_law(curvature)
    if law is None and curvature is None and model.curvature is not None:
        raise InputError("curvature must be given for a model that has no law, got None")
    strength, over_data = _strength(law, model.n_data, model.n_params, vectors)
    along = vectors.T @ model.residual
    spec = model.spec(with_curvature=False)
    return Modes(lam, vectors, along**2, along, over_data, strength, model.n_params, spec)


def _of_ensemble(ensemble: EnsembleLike, curvature: CurvatureLaw | float | None) -> Modes:
    n_data, n_params = ensemble.n_data, ensemble.n_params
    spectrum, residual = ensemble.jacobian, ensemble.residual
    assert isinstance(spectrum, SpectralLaw)
    assert isinstance(residual, ResidualLaw)
    lam = spectrum.eigenvalues(n_data, n_params)
    law = _as_law(ensemble.curvature if curvature is None else curvature)
    strength, over_data = _strength(law, n_data, n_params, None)
    energy = residual.mean_mode_energies(lam)
    return Modes(lam, None, energy, None, over_data, strength, n_params, ensemble.spec())


def _of_ntk(
    source: Any, curvature: CurvatureLaw | float | None, residual: Any, n_params: int | None
) -> Modes:
    if isinstance(source, SpectralLaw):
        raise InputError(
            f"source must be an Ensemble with this law as its jacobian, got {shown(source)} alone"
        )
    spectrum = as_finite_spectrum(source)
    spec = spectrum.spec()
    lam, vectors = spectrum.eigenvalues, spectrum.vectors
    law = _as_law(curvature)
    if n_params is None:
        if law is not None:
            raise InputError("n_params must be given with an NTK and a curvature, got None")
        params = math.inf
    else:
        params = as_integer("n_params", n_params, low=int(np.count_nonzero(lam)))
        spec["n_params"] = params
    strength, over_data = (
        (0.0, np.ones(lam.size)) if law is None else _strength(law, lam.size, int(params), vectors)
    )
    along = None
    if residual is None or n_axes("residual", residual) == 0:
        scale = 1.0 if residual is None else float(as_array("residual", [residual], (1,))[0])
        energy = np.full(lam.size, scale**2)
        spec["residual"] = scale
    else:
        given = as_array("residual", residual, (lam.size,))
        along = given if vectors is None else vectors.T @ given
        energy = along**2
        spec["residual"] = checksum(given)
    spec["curvature"] = repr(law)
    return Modes(lam, vectors, energy, along, over_data, strength, params, spec)


def _as_law(curvature: Any) -> CurvatureLaw | None:
    if curvature is None or isinstance(curvature, CurvatureLaw):
        return curvature
    law = IndependentCurvature(curvature)
    return law if law.scale > 0 else None


def _strength(
    law: CurvatureLaw | None, n_data: int, n_params: int, vectors: FloatArray | None
) -> tuple[float, FloatArray]:
    r"""Return :math:`\hat q^2` and the variances along the modes; refuse other covariances."""
    if law is None:
        return 0.0, np.ones(n_data)
    data, parameters, scale = law.kronecker(n_data, n_params)
    size = 1.0
    if parameters is not None:
        size = float(np.trace(parameters)) / n_params
        if np.abs(parameters - size * np.eye(n_params)).max() > _NOT_DIAGONAL * size:
            raise InputError(
                "curvature must be uncorrelated between parameters (parameter_covariance a "
                "multiple of the identity) in mean-field theory, got another covariance"
            )
    over_data = np.ones(n_data)
    if data is not None:
        along = data if vectors is None else vectors.T @ data @ vectors
        over_data = np.diagonal(along).copy()
        largest = float(over_data.max())
        off = float(np.abs(along - np.diag(over_data)).max())
        if vectors is None:
            off = max(off, float(np.ptp(over_data)))
        if off > _NOT_DIAGONAL * largest:
            raise InputError(
                "curvature must have a data_covariance that commutes with the NTK in mean-field "
                f"theory, got one with a part of {off / largest:.2g} that does not"
                + (": give a model instead of eigenvalues or a law" if vectors is None else "")
            )
    mean = float(over_data.mean())
    if scale == 0 or mean == 0:
        return 0.0, np.ones(n_data)
    # In this order, so that neither square alone leaves the range of floats before it must.
    root = scale * size * math.sqrt(mean * n_params / n_data)
    return root, over_data / mean


def _in_units(modes: Modes) -> Modes:
    """Return modes whose largest eigenvalue and squared residual are of order one.

    `strength` comes as its root, in units of NTK eigenvalue / residual.
    """
    of_ntk = math.frexp(float(modes.lam[0]))[1]
    largest = math.sqrt(float(modes.energy.max(initial=0.0)))
    of_residual = math.frexp(largest)[1] if largest > 0 else 0
    if modes.residual is not None:
        largest = float(np.abs(modes.residual).max())
        of_residual = math.frexp(largest)[1] if largest > 0 else 0
    along = None if modes.residual is None else np.ldexp(modes.residual, -of_residual)
    energy = along**2 if along is not None else np.ldexp(modes.energy, -2 * of_residual)
    try:
        root = math.ldexp(modes.strength, of_residual - of_ntk)
        strength = root**2
    except OverflowError:
        strength = math.inf
    return replace(
        modes,
        lam=np.ldexp(modes.lam, -of_ntk),
        energy=energy,
        residual=along,
        strength=strength,
        unit_of_ntk=math.ldexp(1.0, of_ntk),
        unit_of_residual=math.ldexp(1.0, of_residual),
    )


# ---- bins and groups


def heavy_modes(modes: Modes) -> IntArray:
    """Return the modes that hold so much of the residual that they move on their own."""
    share = modes.energy / max(float(modes.energy.sum()), np.finfo(float).tiny)
    order = np.argsort(-share, kind="stable")[:_MOST_HEAVY]
    least = max(_HEAVY, _MANY_TIMES / modes.n_data)
    return np.sort(order[share[order] >= least])


def bins_of(modes: Modes, count: int, alone: IntArray) -> IntArray:
    """Return the bin of every mode: about so many, of modes that move alike; some stay `alone`.

    The bin that spreads most is divided in two until there are enough. Spread is measured in the
    logarithm of the eigenvalue, or along the eigenvalue itself where modes are slow.
    """
    at = np.log(modes.lam + _SLOW * modes.lam.mean()) if modes.lam[0] > 0 else modes.lam
    scale = np.stack([at, np.log1p(modes.over_data)])
    order = np.arange(modes.n_data)
    zero, single = modes.lam == 0, np.isin(order, alone)
    groups = [g for g in (order[~zero & ~single], order[zero & ~single]) if g.size]
    groups += list(alone[:, None])

    def spread(members: IntArray) -> float:
        return float(np.ptp(scale[:, members], axis=1).max() ** 2 * members.size)

    spreads = [spread(g) for g in groups]
    while len(groups) < count and max(spreads) > _ALIKE:
        widest = int(np.argmax(spreads))
        members = groups[widest]
        axis = int(np.argmax(np.ptp(scale[:, members], axis=1)))
        along = scale[axis, members]
        upper = along > 0.5 * (along.max() + along.min())
        parts = members[upper], members[~upper]
        groups[widest : widest + 1] = parts
        spreads[widest : widest + 1] = [spread(part) for part in parts]
    groups.sort(key=lambda g: int(g.min()))
    found = np.empty(modes.n_data, np.int64)
    for number, members in enumerate(groups):
        found[members] = number
    return found


def statistics(modes: Modes, bins: IntArray, sgd: SGD, density: float, n_groups: int) -> Statistics:
    """Return bins of modes, and groups of points if there are several."""
    count = np.bincount(bins)

    def mean(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(bins, values) / count)

    known = Statistics(
        lam=mean(modes.lam),
        weight=count / modes.n_data,
        energy=mean(modes.energy),
        over_data=mean(modes.over_data),
        n_data=modes.n_data,
        strength=modes.strength,
        density=density,
    )
    if n_groups == 1:
        return known
    return replace(known, groups=_groups(modes, bins, sgd, n_groups))


def _groups(modes: Modes, bins: IntArray, sgd: SGD, n_groups: int) -> Groups:
    """Group points by their entries in the Perron vector of the noise kernel matrix.

    Half of the groups are the largest entries, one by one; the rest are quantiles.
    """
    if modes.vectors is None:
        raise InputError("groups must be 1 where the eigenvectors of the NTK are not known")
    v, lam = modes.vectors, modes.lam
    spectrum = Spectrum(lam, v)
    most = 0.99 * _noise.critical_on_spectrum(spectrum, sgd, "finite")
    at = sgd._at(learning_rate=min(sgd.learning_rate, most))
    order = np.argsort(-_noise.perron_vector(spectrum, at), kind="stable")
    singles = min(n_groups // 2, modes.n_data - 1)
    parts = [order[k : k + 1] for k in range(singles)]
    parts += np.array_split(order[singles:], min(n_groups, modes.n_data) - singles)
    count = bins.max() + 1
    members = np.eye(count)[bins]  # (modes, bins)
    size = np.array([part.size for part in parts], float)
    products = [v[part].T @ v[part] for part in parts]
    share = np.stack([np.diagonal(p) for p in products], axis=1)
    share = members.T @ share / members.sum(axis=0)[:, None]
    overlap = np.empty((size.size, size.size, count, count))
    for g, first in enumerate(products):
        for h, second in enumerate(products):
            overlap[g, h] = members.T @ (first * second) @ members / size[g]
    start = np.empty((size.size, count, count))
    for g, part in enumerate(parts):
        if modes.residual is None:
            start[g] = np.diag(members.T @ (modes.energy * np.diagonal(products[g]))) / size[g]
        else:
            pieces = (v[part] * modes.residual) @ members
            start[g] = pieces.T @ pieces / size[g]
    return Groups(size, share, overlap, start)
