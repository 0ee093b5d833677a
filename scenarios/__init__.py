"""What should happen, as pure values: scenarios, their text, their plan. Loads no Ray."""

from __future__ import annotations

from .combinators import hold, pause, sequence, together
from .hypotheses import ActorProbe, Threshold
from .model import Budget, Scenario
from .simulators import CpuLoad, DiskFill, MemoryPressure
from .targets import Targets

__distribution__ = "stress-cluster"

__all__ = [
    "ActorProbe",
    "Budget",
    "CpuLoad",
    "DiskFill",
    "MemoryPressure",
    "Scenario",
    "Targets",
    "Threshold",
    "hold",
    "pause",
    "sequence",
    "together",
]
