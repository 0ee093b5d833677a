"""The network between nodes and head: delays, losses, reordering, partitions in one direction or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .timeline import MS, Process

if TYPE_CHECKING:
    from .world import World


class Network:
    """Carries messages. What is late is carried all the same: later messages overtake it."""

    def __init__(self, world: World) -> None:
        self._world, self._timeline, self._random = world, world.timeline, world.chance.random
        self.loss = 0.0
        self.slow = 0.0
        self.cut_up: set[str] = set()
        self.cut_down: set[str] = set()

    def up(self, node: str, receiver: Process, call: Callable[..., Any], *args: Any) -> None:
        """Carry from a node to the head."""
        if node in self.cut_up:
            self._world.fired["cut_up"] += 1
        else:
            self._carry(receiver, call, args)

    def down(self, node: str, receiver: Process, call: Callable[..., Any], *args: Any) -> None:
        """Carry from the head to a node."""
        if node in self.cut_down:
            self._world.fired["cut_down"] += 1
        else:
            self._carry(receiver, call, args)

    def _carry(self, receiver: Process, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        dice = self._random()
        if dice < self.loss:
            self._world.fired["message_lost"] += 1
            return
        delay_ns = 200_000 + int(self._random() * 3 * MS)
        if dice > 1.0 - self.slow:
            delay_ns = int(self._random() * 3_000 * MS)
            self._world.fired["message_late"] += 1
        self._timeline.after(delay_ns, receiver.take, call, *args)

    def heal(self) -> None:
        """Carry everything again."""
        self.loss = self.slow = 0.0
        self.cut_up.clear()
        self.cut_down.clear()
