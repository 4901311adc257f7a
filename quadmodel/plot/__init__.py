"""Pictures: take a Dataset and an Axes, return artists."""

from quadmodel.plot._at_the_edge import large_p_edge, persistent_edge
from quadmodel.plot._boundary import boundary
from quadmodel.plot._diagrams import phase_diagram, sharpening_diagram
from quadmodel.plot._mean_field import mean_field, mean_field_edge
from quadmodel.plot._networks import network_outcomes, network_runs, separation
from quadmodel.plot._runs import loss, sharpening
from quadmodel.plot._spectrum import spectrum
from quadmodel.plot._training import network, trajectory

__all__ = [
    "boundary",
    "large_p_edge",
    "loss",
    "mean_field",
    "mean_field_edge",
    "network",
    "network_outcomes",
    "network_runs",
    "persistent_edge",
    "phase_diagram",
    "separation",
    "sharpening",
    "sharpening_diagram",
    "spectrum",
    "trajectory",
]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)
