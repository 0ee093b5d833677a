"""What lies on a machine beside processes: the control page, fill files, outboxes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.messages import Halt

if TYPE_CHECKING:
    from .load import Fill, Load


@dataclass(slots=True)
class Page:
    """The control page: shared by a guardian and its standby, gone with both."""

    leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)  # the newest deadline that was not zero
    stops: dict[int, tuple[int, int]] = field(default_factory=dict)
    gates: dict[int, int] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)
    halt: Halt = field(default_factory=Halt)
    halt_kept: Halt = field(default_factory=Halt)
    lookers: dict[int, Load] = field(default_factory=dict)


@dataclass(slots=True)
class Box:
    """One stream's outbox file."""

    counts: list[int] = field(default_factory=list)  # what each sealed record counts; its place plus one is its sequence number
    acked: int = 0
    ended: bool = False

    @property
    def drained(self) -> bool:
        """Whether the end has been acknowledged."""
        return self.ended and self.acked == len(self.counts)


@dataclass(slots=True)
class File:
    """A fill file."""

    size: int
    ours: bool
    fill: Fill | None
