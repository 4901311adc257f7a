"""Sweeps: units of work that may be stopped, resumed, and spread over cores and machines.

What phase diagrams, boundaries, edges and validation share: the options of :class:`Running`, and
:class:`SweepError`, :class:`DryRun`. Knows nothing of what is computed: a unit is a function of
what its sweep was asked for.
"""

from quadmodel.sweeps._execution import SweepError
from quadmodel.sweeps.plan import DryRun
from quadmodel.sweeps.running import Running

__all__ = ["DryRun", "Running", "SweepError"]


def __dir__() -> list[str]:
    """Return the public names, and no others."""
    return sorted(__all__)
