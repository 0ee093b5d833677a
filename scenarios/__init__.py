"""What should happen, as pure values: scenarios, their text, their plan. Loads no Ray."""

from __future__ import annotations

from .combinators import hold, pause, sequence, together
from .hypotheses import ActorProbe, Threshold
from .kinds import *  # noqa: F403  # the classes of the simulators
from .kinds import KINDS
from .model import Budget, Scenario
from .simulators import Simulator
from .targets import Targets

__distribution__ = "stress-cluster"

__all__ = [
    "ActorProbe",
    "Budget",
    "Scenario",
    "Simulator",
    "Targets",
    "Threshold",
    "hold",
    "pause",
    "sequence",
    "together",
]
__all__ += [*KINDS]  # noqa: PLE0604  # names of records
