"""What a flood needs of Ray, as a protocol: implemented in `actors.shell`, and without Ray by the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

from ..errors import RefusedError
from ..messages import Operation
from .flow import Outcome

MARK: Final = "STRESS_CLUSTER_OPERATION"  # in the first environment of every process that Ray starts for an operation


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended, what it returned, or why it failed. `at_ns`: when its end arrived here, 0 where that is not told."""

    outcome: Outcome
    value: Any = None
    reason: str = ""
    at_ns: int = 0


@dataclass(frozen=True, slots=True)
class StoreUse:
    """A node's object store as its raylet counts it, in bytes. `primary` may not be evicted; `spilled` and `restored` only grow."""

    primary_bytes: int = 0
    used_bytes: int = 0
    spilled_bytes: int = 0
    restored_bytes: int = 0


class ObjectStore(Protocol):
    """The object store of the process that uses this; what it puts is freed when it lets go of it, or ends. Travels to actors."""

    def put(self, data: bytes) -> Any:
        """Put an object and return what holds it; None when neither the store nor its disk has room."""
        ...

    def get(self, held: Any) -> bytes:
        """Return an object, from disk where it was spilled."""
        ...


def logical_share(cpus: float, at_once: int) -> float:
    """Return how many logical CPUs a task asks for, so that at most `at_once` of a kind run on a node with so many.

    Ray takes ten-thousandths below one and whole numbers above. Raises `RefusedError` (`capability`) on a node without any.
    """
    if cpus <= 0.0:
        raise RefusedError("capability", "this node offers no logical CPUs, so Ray would never run a task here", "start it with --num-cpus")
    share = cpus / at_once
    return float(math.ceil(share)) if share > 1.0 else math.ceil(share * 10_000) / 10_000


def name_over_nodes(operation: Operation) -> str:
    """Return what an operation is called among actors' names, the same on all nodes that run it."""
    return sha256(operation.id.removesuffix(f"@{operation.node}").encode()).hexdigest()[:12]


class RayWork(Protocol):
    """The actors and tasks of one operation on one node. All of them end when the process that holds this ends."""

    @property
    def place(self) -> str:
        """Ray's id of this node."""
        ...

    def places(self) -> frozenset[str]:
        """Return Ray's ids of the nodes that it holds for alive."""
        ...

    def spawn(self, factory: type, *args: Any, calls_max: int = 0, at_once: int = 0, name: str = "") -> Any:
        """Create an actor on this node and return its handle at once. `calls_max`: beyond so many outstanding calls Ray refuses more.

        `at_once`: how many calls an actor of coroutines has under way, where that is to be more than Ray's thousand. With a name the
        simulators of the run on other nodes find it; None when the name is taken.
        """
        ...

    def find(self, prefix: str, known: Collection[str] = ()) -> dict[str, Any]:
        """Return the living actors of this run whose name begins so, less those that are known."""
        ...

    def call(self, victim: Any, method: str, *args: Any) -> Any:
        """Send a call to an actor and return it at once; None when Ray refused it, because too many are outstanding."""
        ...

    def post(self, victim: Any, method: str, *args: Any) -> Any:
        """Send a call to an actor and have the arrival of its end timed; what it returns is small."""
        ...

    def submit(self, function: Callable[..., Any], *args: Any, at_once: int) -> Any:
        """Submit a task to this node and return the call; at most `at_once` of them run at the same time. Arguments are hashable."""
        ...

    def look(self, calls: Sequence[Any]) -> list[Ended | None]:
        """Return for each call how it ended, None while it has not. Never waits."""
        ...

    def cancel(self, calls: Sequence[Any]) -> None:
        """Cancel what has not begun."""
        ...

    def kill(self, victim: Any) -> None:
        """End an actor at once."""
        ...

    def store_use(self) -> StoreUse:
        """Return what is in this node's object store, as its raylet counts it."""
        ...

    def object_store(self) -> ObjectStore:
        """Return what an actor puts objects with."""
        ...
