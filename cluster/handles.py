"""Leaks by handle: what processes that are gone still have at a machine's guardian. `doctor` tells of it.

It is no leak for good: the guardian gives it back when the lease ends. Until then it is reserved, and what stays longer is stuck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.errors import StressError
from actors.proc import identify


@dataclass(frozen=True, slots=True)
class Handle:
    """What somebody still has at a guardian although the processes that had it are gone."""

    owner: str  # operation@node
    run: str
    kind: str  # "slot", or the kind of an undo record
    name: str
    pids: tuple[int, ...]
    amounts: Mapping[str, float]

    def __str__(self) -> str:
        held = ", ".join(f"{name}={value:g}" for name, value in self.amounts.items() if value)
        dead = ", ".join(map(str, self.pids))
        return f"{self.kind} {self.name} of {self.owner} in {self.run}: process {dead} is gone{f', {held} reserved' if held else ''}"


def unreleased(status: Mapping[str, Any], is_alive: Callable[[int], bool]) -> list[Handle]:
    """Return the handles of dead processes in a guardian's `status`: slots that once had processes and have none, and their records."""
    dead = {
        (slot["slot"], slot["generation"]): slot
        for slot in status["slots"]
        if slot["phase"] != "free" and slot["pids"] and not any(map(is_alive, slot["pids"]))
    }
    slots = [
        Handle(slot["operation"], slot["run"], "slot", f"{index}/{generation}", tuple(slot["pids"]), slot["amounts"])
        for (index, generation), slot in dead.items()
    ]
    records = [
        Handle(one["operation"], one["run"], one["kind"], one["id"], tuple(dead[one["slot"], one["generation"]]["pids"]), {})
        for one in status["records"]
        if (one["slot"], one["generation"]) in dead and one["kind"] not in ("process", "slot")
    ]
    return slots + records


def told(status: Callable[[], Mapping[str, Any]]) -> list[str]:
    """Return this machine's handles of dead processes in words, or why they are not known."""
    try:
        return [str(one) for one in unreleased(status(), lambda pid: identify(pid) is not None)]
    except StressError as error:  # what else there is to tell is told all the same
        return [f"not known: {error}"]
