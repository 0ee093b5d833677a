"""Runs scenarios on a Ray cluster, watches them, tells about them.

import cluster
from scenarios import catalogue

outcome = cluster.run(catalogue.get("burst"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__distribution__ = "stress-cluster"
__all__ = ["run"]

if TYPE_CHECKING:
    from .start import run_scenario as run  # its options are checked where they are written
else:

    def run(scenario: Any, **options: Any) -> Any:
        """Run a scenario and return its outcome; see `start.run_scenario` for the options."""
        from .start import run_scenario  # noqa: PLC0415  # `import cluster` stays light

        return run_scenario(scenario, **options)
