"""Runs scenarios on a Ray cluster, watches them, tells about them.

import cluster
from scenarios import catalogue

outcome = cluster.run(catalogue.get("burst"))

with cluster.exhaust(Descriptors(count=200), for_s=600, hold=True) as files:
    ...  # they stay open on the nodes meanwhile
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__distribution__ = "stress-cluster"
__all__ = ["exhaust", "run"]

if TYPE_CHECKING:
    from .held import exhaust  # their options are checked where they are written
    from .start import run_scenario as run
else:

    def run(scenario: Any, **options: Any) -> Any:
        """Run a scenario and return its outcome; see `start.run_scenario` for the options."""
        from .start import run_scenario  # noqa: PLC0415  # `import cluster` stays light

        return run_scenario(scenario, **options)

    def exhaust(*simulators: Any, **options: Any) -> Any:
        """Use something up, for a time or until it is let go; see `held.exhaust` for the options."""
        from . import held  # noqa: PLC0415

        return held.exhaust(*simulators, **options)
