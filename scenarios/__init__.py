"""What should happen, as pure values: scenarios, their text, their plan. Loads no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .combinators import hold, pause, sequence, together
from .hypotheses import ActorProbe, Threshold
from .kinds import KINDS
from .model import Budget, Scenario
from .simulators import Simulator
from .targets import Targets

if TYPE_CHECKING:
    from .kinds import *  # noqa: F403  # the classes of the simulators, which are made when first asked for
else:

    def __getattr__(name: str) -> Any:
        if name in KINDS:
            return KINDS[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *KINDS})


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
